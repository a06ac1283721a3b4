"""Random gathers over arrays that grow from a cache's size to the run's: where page kinds part."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hugepool import kernels
from hugepool.bench.cases import Case, build_case, reference_of
from hugepool.bench.measure import Cell, Patience, Progress, measure, verify, warm_up
from hugepool.bench.operands import OperandSet, placement
from hugepool.bench.options import KERNELS, BenchOptions
from hugepool.bench.results import SweepPoint
from hugepool.bench.statistics import Spread
from hugepool.pool import Pool
from hugepool_common.errors import NotEnoughMemoryError, NotEnoughPagesError
from hugepool_common.units import KIB

SMALLEST_BYTES = 256 * KIB
MOST_GATHERS = 1_000_000
"""Enough to time, and few enough that many sizes fit into a limited time."""


def sweep_sizes(most_bytes: int) -> list[int]:
    """Sizes of x in the order of measuring: whenever time is up, they span the whole range.

    The ends come first, then what halves the widest gap; powers of two before the
    half-octaves between them.
    """
    octaves = [SMALLEST_BYTES]
    while 2 * octaves[-1] <= most_bytes:
        octaves.append(2 * octaves[-1])
    if most_bytes > 1.25 * octaves[-1]:
        octaves.append(most_bytes)
    between = [8 * round(2**0.5 * size / 8) for size in octaves]
    halves = [size for size in between if 1.25 * size < octaves[-1]]
    return [*_by_halving(octaves), *_by_halving(halves)]


def sweep_segments(options: BenchOptions) -> tuple[int, ...]:
    """Payload of every segment that the largest size keeps on one backing."""
    gathers = min(options.gathers, MOST_GATHERS)
    return (max(options.nbytes, SMALLEST_BYTES), *2 * (8 * gathers,), *3 * (8,))


def run_sweep(
    pool: Pool,
    options: BenchOptions,
    backings: Sequence[str],
    progress: Progress,
    patience: Patience,
) -> tuple[list[SweepPoint], list[str]]:
    """Measure with one worker until `options.sweep_s` have passed.

    Every result is checked against NumPy's before it is timed. Within a size the backings
    take turns as in every run; the sizes follow each other.

    Returns
    -------
    points, notes
        By backing and rising size; and what kept a backing from going on.

    Notes
    -----
    No size is begun when the time is up, and at least the two ends are measured.
    """
    started = time.monotonic()
    points: list[SweepPoint] = []
    notes: list[str] = []
    kept = list(backings)
    sizes = sweep_sizes(options.nbytes)
    for number, nbytes in enumerate(sizes):
        passed = time.monotonic() - started
        if number >= 2 and passed >= options.sweep_s:
            notes.append(
                f"the sweep ended after {passed:.0f} s with {number} of {len(sizes)} sizes"
            )
            break
        told = f"sweep, {passed:.0f} of {options.sweep_s:.0f} s, {nbytes / KIB:,.0f} KiB: "
        points += _one_size(pool, options, nbytes, kept, notes, _prefixed(progress, told), patience)
    order = {name: place for place, name in enumerate(backings)}
    points.sort(key=lambda point: (order[point.backing], point.array_bytes))
    return points, notes


def _prefixed(progress: Progress, told: str) -> Progress:
    return lambda text: progress(told + text)


def _by_halving(sizes: Sequence[int]) -> list[int]:
    """First, last, middle, and so on into the widest gap that is left."""
    if len(sizes) < 3:
        return list(sizes)
    found = [0, len(sizes) - 1]
    while len(found) < len(sizes):
        ordered = sorted(found)
        gap, low = max((high - low, -low) for low, high in itertools.pairwise(ordered))
        found.append(-low + gap // 2)
    return [sizes[place] for place in found]


def _one_size(
    pool: Pool,
    options: BenchOptions,
    nbytes: int,
    kept: list[str],
    notes: list[str],
    progress: Progress,
    patience: Patience,
) -> list[SweepPoint]:
    """All backings of one size; one without room is taken out of `kept` and noted."""
    gathers = min(options.gathers, MOST_GATHERS)
    case = replace(
        build_case("random", replace(options, nbytes=nbytes, gathers=gathers)), stream_elements=1
    )
    sets: dict[str, OperandSet] = {}
    try:
        for backing in list(kept):
            rung = placement(backing).rung
            try:
                if rung not in sets:
                    progress(f"making {rung}")
                    sets[rung] = OperandSet.of_case(pool, rung, case)
            except (NotEnoughPagesError, NotEnoughMemoryError) as error:
                kept.remove(backing)
                notes.append(f"the sweep leaves out {backing} from {nbytes:,} bytes on: {error}")
        cells = [_cell(case, backing, sets) for backing in kept]
        if not cells:
            return []
        reference = reference_of(case, next(iter(sets.values())).array("x").array)
        warm_up(pool, cells, progress)
        for cell in cells:
            verify(pool, cell, reference, f"sweep: {cell}")
        measure(pool, cells, options.repeats, progress, patience)
    finally:
        for made in sets.values():
            made.destroy()
    return [_point(case, cell) for cell in cells]


def _cell(case: Case, backing: str, sets: dict[str, OperandSet]) -> Cell:
    place = placement(backing)
    choices = KERNELS["hugepool"]["gather"]
    implementation = next(name for name in choices if name in kernels.available("gather"))
    operands = {role: sets[place.rung].objects[role] for role in ("x", "idx", "out")}
    return Cell("hugepool", "gather", implementation, place, operands, case.rows(1))


def _point(case: Case, cell: Cell) -> SweepPoint:
    samples = tuple(sample.wall_ns for sample in cell.samples)
    huge, mapped = cell.least_huge()
    return SweepPoint(
        8 * case.x_elements,
        cell.placement.label,
        cell.implementation,
        case.items,
        samples,
        sum(sample.disturbed for sample in cell.samples),
        Spread.of([float(value) for value in np.array(samples) / case.items]),
        mapped,
        huge,
        cell.agreement,
    )
