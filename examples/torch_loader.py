"""A torch DataLoader whose workers share one table of samples, instead of a copy each.

A data set that holds a NumPy array is pickled to each worker. This one holds a name: a worker
attaches it when it is asked for its first sample. The batches are compared with NumPy's.

    python examples/torch_loader.py [samples]
"""

import sys

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import hugepool

FEATURES, BATCH = 32, 256


class SharedSamples(Dataset):
    def __init__(self, address, name, count):
        self.address, self.name, self.count = address, name, count
        self.array = None

    def __len__(self):
        return self.count

    def __getitems__(self, indices):
        if self.array is None:  # in a worker: sessions are not inherited
            self.pool = hugepool.connect(self.address)
            self.array = self.pool.attach(self.name).array
        return [torch.from_numpy(row) for row in self.array[indices]]


def main():
    count = int(sys.argv[1]) if sys.argv[1:] else 20_000
    with hugepool.connect() as pool:
        values = np.random.default_rng(0).random((count, FEATURES), dtype="f4")
        samples = pool.put("samples", values)
        data = SharedSamples(pool.address, "samples", count)
        print("workers  batches  sum")
        for workers in (0, 2):
            loader = DataLoader(
                *(data, BATCH),
                shuffle=True,
                num_workers=workers,
                multiprocessing_context="spawn" if workers else None,
            )
            batches = [batch.double().sum().item() for batch in loader]
            np.testing.assert_allclose(sum(batches), values.sum(dtype="f8"))
            print(f"{workers:<7}  {len(batches):<7}  {sum(batches):.3f}")
            data.array = data.pool = None  # what this process attached is not to be pickled
        print(samples)
        pool.destroy("samples")


if __name__ == "__main__":
    main()
