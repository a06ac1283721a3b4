"""Four processes look up rows of one embedding table, which is in memory once.

Each attaches the table by its name, without a copy, and proves for itself how much of it is mapped
by huge pages. The sums that they find are compared with NumPy's.

    python examples/embedding_lookup.py [rows]
"""

import multiprocessing
import sys
import time

import numpy as np

import hugepool

PROCESSES, LOOKUPS, WIDTH = 4, 20_000, 64


def indices(number, rows):
    return np.random.default_rng(number).integers(0, rows, LOOKUPS)


def look_up(address, number):
    """In a process of its own."""
    with hugepool.connect(address) as pool:
        table = pool.attach("embeddings")
        wanted = indices(number, table.shape[0])
        began = time.perf_counter()
        found = table.array[wanted]
        took = time.perf_counter() - began
        return number, found.sum(dtype="f8"), LOOKUPS / took, table.pages.huge_fraction


def main():
    rows = int(sys.argv[1]) if sys.argv[1:] else 100_000
    with hugepool.connect() as pool:
        table = pool.create("embeddings", (rows, WIDTH), "f4")
        np.random.default_rng(0).standard_normal(out=table.array, dtype="f4")
        table.seal()
        context = multiprocessing.get_context("spawn")  # a forked child could not use the pool
        with context.Pool(PROCESSES) as processes:
            found = processes.starmap(look_up, [(pool.address, n) for n in range(PROCESSES)])
        print(table)
        print("process  lookups/s  huge %  sum")
        for number, total, rate, huge in found:
            expected = table.array[indices(number, rows)].sum(dtype="f8")
            np.testing.assert_allclose(total, expected)
            print(f"{number:<7}  {rate:>9.3g}  {100 * huge:>6.4g}  {total:.3f}")
        pool.destroy("embeddings")


if __name__ == "__main__":
    main()
