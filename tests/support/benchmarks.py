"""A small made-up run of ``hugepool bench``, as its reports get it."""

from __future__ import annotations

from collections.abc import Sequence

from hugepool.bench.results import (
    Benchmark,
    CellResult,
    Environment,
    LimitResult,
    Missing,
    SweepPoint,
)
from hugepool.bench.statistics import RULE, Speedup, Spread, paired_speedup
from hugepool.bench.tlb import Stlb

TITLE = "random gather of 1,000 from 4,000 float64"


def cell(
    backing: str = "hugetlbfs-2m",
    samples_ns: Sequence[int] = (100_000, 101_000, 102_000, 103_000, 104_000),
    speedup: Speedup | None = None,
    **changes: object,
) -> CellResult:
    """A cell of 1,000 random gathers; keyword arguments replace its fields."""
    facts: dict[str, object] = {
        "pattern": "random",
        "title": TITLE,
        "kernel": "hugepool",
        "implementation": "numba",
        "backing": backing,
        "workers": 1,
        "unit": "gather",
        "items": 1_000,
        "nbytes": 24_000,
        "samples_ns": tuple(samples_ns),
        "disturbed": 0,
        "per_item_ns": Spread.of([sample / 1_000 for sample in samples_ns]),
        "gb_per_s": 0.24,
        "mapped_bytes": 1 << 21,
        "huge_bytes": 0 if backing == "shm-4k" else 1 << 21,
        "tlb_misses_per_item": None,
        "tlb_note": "unavailable: no such counter <here>",
        "verified": True,
        "agreement": "bit for bit",
        "limit": "lines",
        "percent_of_limit": 80.0,
        "limit_note": "",
        "speedup": speedup or Speedup.refusal("baseline"),
    }
    return CellResult(**(facts | changes))  # type: ignore[arg-type]


def point(
    array_bytes: int,
    backing: str = "shm-4k",
    samples_ns: Sequence[int] = (3_000, 3_100, 3_200, 3_300, 3_400),
) -> SweepPoint:
    """A thousand gathers from an array of some size."""
    huge = 0 if backing == "shm-4k" else array_bytes
    spread = Spread.of([sample / 1_000 for sample in samples_ns])
    return SweepPoint(
        array_bytes, backing, "numba", 1_000, tuple(samples_ns), 0, spread, array_bytes, huge,
        "bit for bit",
    )  # fmt: skip


def benchmark(*cells: CellResult) -> Benchmark:
    """A run of these cells, or of one backing that is twice as fast as 4 KiB pages."""
    slow = [200_000, 203_000, 201_000, 204_000, 202_000]
    fast = [100_000, 101_000, 102_000, 103_000, 104_000]
    cells = cells or (
        cell("shm-4k", slow),
        cell("hugetlbfs-2m", fast, paired_speedup(slow, fast)),
    )
    limits = tuple(
        LimitResult("random", backing, 1, kind, "numba", 80_000_000, (50_000,), rate, line)
        for backing in dict.fromkeys(one.backing for one in cells)
        for kind, rate, line in (
            ("copy", 21.5, None),
            ("triad", 18.0, None),
            ("random_lines", 0.8, 81.2),
        )
    )
    missing = (Missing("tmpfs-huge", "no such mount", "1 page", "none", "mount -o huge=always"),)
    environment = Environment(
        "6.18", "A CPU & more", 2, 32 << 20, 1 << 34, 1 << 33, "madvise", "never",
        {"2M": "64 available of 64"}, "", 0.5, {"python": "3.11.7", "numpy": "2.4.6"},
        Stlb({"4K": 2048, "2M": 2048}, "CPUID of <this> processor"),
    )  # fmt: skip
    return Benchmark(
        ("hugepool", "bench", "--output", "a b.json"),
        "2026-01-02T03:04:05+0000",
        environment,
        {"nbytes": 32_000, "workers": [1], "matrix": None},
        tuple(cells),
        limits,
        missing,
        ("a note",),
        RULE,
    )
