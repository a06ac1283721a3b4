"""Time a planned gather beside the direct one and NumPy's.

Rounds are interleaved and every result is compared with x[idx], so that a
disturbance meets all of them and no wrong result is timed. All arrays are heap
arrays on pages of 2 MiB where the kernel gives them; the share that it gave is
printed. One process, one thread.

    python benchmarks/gather_plan.py --size 400 --gathers 50000000 --repeats 5
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hugepool import kernels
from hugepool.plan import plan_gather

Array = npt.NDArray[Any]
_HUGE_PAGE = 2 << 20


def huge_empty(elements: int, dtype: npt.DTypeLike) -> Array:
    """An anonymous mapping that begins on a huge page and asks for them."""
    nbytes = elements * np.dtype(dtype).itemsize
    mapping = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    lead = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % _HUGE_PAGE
    return np.frombuffer(mapping, np.uint8)[lead : lead + nbytes].view(dtype)


def huge_bytes() -> int:
    """Bytes of this process that lie on transparent huge pages."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        found = re.search(r"AnonHugePages:\s*(\d+) kB", file.read())
    return int(found[1]) * 1024 if found else 0


def load() -> str:
    """The load averages and the share of time stolen from this machine since boot."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    averages = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"load {averages}; stolen since boot {100 * ticks[7] / sum(ticks):.1f} %"


def timed(run: Callable[[], object]) -> int:
    """Duration of one call in ns."""
    started_ns = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - started_ns


def print_table(
    samples_ns: dict[str, list[int]], gathers: int, base: str = "np.take clip, out="
) -> None:
    """Median, quartile range and minimum per gather, and the median of paired ratios."""
    print(f"{'':24} {'median':>8} {'IQR':>8} {'min':>8}  ns per gather; speed-up over {base}")
    for name, samples in samples_ns.items():
        each = [sample / gathers for sample in samples]
        low, _, high = statistics.quantiles(each, n=4, method="inclusive")
        ratios = [theirs / ours for theirs, ours in zip(samples_ns[base], samples, strict=True)]
        print(
            f"{name:24} {statistics.median(each):8.2f} {high - low:8.2f} {min(each):8.2f}"
            f"  {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=float, default=400, help="MB of x, float64 (400)")
    parser.add_argument("--gathers", type=int, default=50_000_000, help="indices (5e7)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds, 2 or more (5)")
    parser.add_argument("--dtype", default="f8", help="of x: f8 or f4 (f8)")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats must be 2 or more")

    dtype = np.dtype(options.dtype)
    rows = int(options.size * 1e6) // dtype.itemsize
    gathers = options.gathers
    rng = np.random.default_rng(0)
    x, idx = huge_empty(rows, dtype), huge_empty(gathers, np.int64)
    x[:] = rng.random(rows, dtype=dtype)
    idx[:] = rng.integers(0, rows, gathers)
    out, expected = huge_empty(gathers, dtype), huge_empty(gathers, dtype)
    out[:] = 0
    np.take(x, idx, out=expected, mode="clip")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, NumPy {np.__version__}; {load()}")
    print(f"x: {rows:,} {dtype}, {x.nbytes / 1e6:.0f} MB; {gathers:,} uniform random indices")

    started_ns = time.perf_counter_ns()
    plan = plan_gather(idx, rows, dtype=dtype, uses=1000)
    print(f"index checked and copied in {(time.perf_counter_ns() - started_ns) / 1e6:.0f} ms")
    while not plan.describe().settled:
        plan.run(x, out)
    print(plan.describe())
    print(f"{huge_bytes() / 1e6:,.0f} MB of this process on huge pages")

    direct = kernels.resolve("gather")
    operands = {"x": x, "idx": idx, "out": out}
    contenders: dict[str, Callable[[], object]] = {
        "np.take clip, out=": lambda: np.take(x, idx, out=out, mode="clip"),
        f"direct ({direct.implementation}, int64)": lambda: direct(operands, 0, gathers),
        f"plan ({plan.describe().choice})": lambda: plan.run(x, out),
    }
    samples_ns: dict[str, list[int]] = {name: [] for name in contenders}
    for repeat in range(options.repeats + 1):
        for name, run in contenders.items():
            out[::512] = 0
            elapsed_ns = timed(run)
            if not np.array_equal(out, expected):
                raise SystemExit(f"{name} gave a wrong result")
            if repeat:  # the first round only warms
                samples_ns[name].append(elapsed_ns)
    print_table(samples_ns, gathers)
    print(load())


if __name__ == "__main__":
    main()
