"""The measurement that hugepool began with: 400 MB, random indices, NumPy's own ``x[idx]``.

One worker process. x lies on another page kind in every row; the indices are on the
worker's heap in all of them, as they are in a NumPy user's program.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
import numpy as np

from hugepool import kernels
from hugepool.array import SharedArray
from hugepool.bench.cases import Reference
from hugepool.bench.environment import read_environment
from hugepool.bench.measure import Cell, Patience, Progress, measure, verify, warm_up
from hugepool.bench.operands import Placement, drop
from hugepool.bench.patterns import make_indices, strided
from hugepool.bench.results import FORMAT, HUGE_ENOUGH, Environment, Missing, missing_rung
from hugepool.bench.statistics import MIN_ROUNDS, RULE, Speedup, Spread, paired_speedup
from hugepool.pool import Pool
from hugepool_common.errors import NotEnoughMemoryError, NotEnoughPagesError
from hugepool_common.messages import View
from hugepool_common.pages import read_host
from hugepool_common.units import format_bytes

ELEMENTS = 50_000_000
"""float64 elements of x, and random indices."""

REPEATS = 12
"""Measured rounds by default: the loss of 4 KiB pages at 400 MB is near the noise of five."""

_HUGE_RUNGS = ("hugetlbfs-2m", "tmpfs-huge", "shm-collapse")
_SPARE_BYTES = 500_000_000

STORY = {
    "heap": (0.69, "0.69 s"),
    "shm-4k": (1.39, "1.39 s, 19.3M misses"),
    "private": (0.69, "as the heap copy"),
    "huge": (0.657, "0.657 s, 0.09M misses"),
    "stride": (0.062, "62 ms, 12.9 GB/s"),
}
"""The article's figures in seconds and in words, for 5e7 elements."""


class ArticleRow(msgspec.Struct, frozen=True):
    """One row beside the article's.

    Parameters
    ----------
    label, kernel
        What was measured.
    article_s, article
        Its time there in seconds, and in words.
    samples_ns, seconds
        Ours: raw, and their spread in seconds.
    gb_per_s
        Bytes that must be moved over the median; None for the random rows.
    huge_fraction
        Share of x's mapping in the worker that is huge, as it proved.
    tlb_misses, tlb_note
        Median dTLB read misses, or None and why.
    speedup
        Over 4 KiB shared memory, by paired rounds.
    verified
        Whether the result was compared with NumPy's in this process.
    """

    label: str
    kernel: str
    article_s: float
    article: str
    samples_ns: tuple[int, ...]
    seconds: Spread
    gb_per_s: float | None
    huge_fraction: float
    tlb_misses: float | None
    tlb_note: str
    speedup: Speedup
    verified: bool


class Article(msgspec.Struct, frozen=True):
    """The whole comparison."""

    command: tuple[str, ...]
    started: str
    environment: Environment
    elements: int
    gathers: int
    rows: tuple[ArticleRow, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    rule: str = RULE
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Indented JSON, one trailing newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


@dataclass(slots=True)
class _Row:
    label: str
    story: str
    cell: Cell
    moved_bytes: int = 0


def reproduce(
    pool: Pool,
    command: tuple[str, ...],
    started: str,
    *,
    elements: int = ELEMENTS,
    gathers: int = ELEMENTS,
    repeats: int,
    seed: int,
    progress: Progress,
) -> Article:
    """Measure the rows in a pool with one worker.

    Raises
    ------
    NotEnoughMemoryError
        The arrays and the worker's copies do not fit.
    """
    environment = read_environment()
    check_memory(elements, gathers, read_host().memory_headroom_bytes)
    with ExitStack() as stack:
        progress("copying inputs")
        maker = _Maker(pool, stack, elements)
        x = maker.make("x", elements, "f8", "shm-4k")
        np.random.default_rng(seed).random(out=x.array)
        huge, missing = maker.huge_copy(x)
        rows = _random_rows(maker, x, huge, gathers, seed)
        rows += _stride_rows(maker, x, huge)
        cells = [row.cell for row in rows]
        for row in rows:
            _check(pool, row)
        warm_up(pool, cells, progress)
        patience = Patience()
        measure(pool, cells, repeats, progress, patience)
        proofs = [_proof(pool, row) for row in rows]
        found = tuple(
            _article_row(row, _baseline(rows, row), proof)
            for row, proof in zip(rows, proofs, strict=True)
        )
    disturbed = sum(sample.disturbed for cell in cells for sample in cell.samples)
    notes = (*_notes(found, elements, gathers), *doubts(found))
    told = patience.note(disturbed, repeats * len(cells))
    if told:
        notes += (told,)
    return Article(command, started, environment, elements, gathers, found, missing, notes)


def check_memory(elements: int, gathers: int, headroom_bytes: int) -> None:
    """Refuse a run that does not fit into memory.

    Three copies of x (4K, huge, heap) and as many of the indices and results.

    Raises
    ------
    NotEnoughMemoryError
        With both sums.
    """
    needed = 8 * (3 * elements + 7 * gathers + 2 * elements) + _SPARE_BYTES
    if needed > headroom_bytes:
        raise NotEnoughMemoryError(
            "this comparison does not fit into memory",
            needed=format_bytes(needed),
            had=format_bytes(headroom_bytes),
            remedy="use a smaller --size and fewer --gathers",
        )


@dataclass(slots=True)
class _Maker:
    pool: Pool
    stack: ExitStack
    elements: int

    def make(self, name: str, length: int, dtype: str, rung: str) -> SharedArray:
        made = self.pool.create(f"article-{name}", length, dtype, backing=rung)
        self.stack.callback(drop, self.pool, made)
        return made

    def huge_copy(self, x: SharedArray) -> tuple[SharedArray | None, tuple[Missing, ...]]:
        """x on the best huge backing that is there, and the better ones that are not."""
        missing = []
        for rung in _HUGE_RUNGS:
            try:
                made = self.make("x-huge", self.elements, "f8", rung)
            except (NotEnoughPagesError, NotEnoughMemoryError) as error:
                missing.append(missing_rung(rung, rung, error))
                continue
            np.copyto(made.array, x.array)
            return made, tuple(missing)
        return None, tuple(missing)


def _random_rows(
    maker: _Maker, x: SharedArray, huge: SharedArray | None, gathers: int, seed: int
) -> list[_Row]:
    idx = maker.make("idx", gathers, "i8", "shm-4k")
    np.copyto(idx.array, make_indices("random", len(x), gathers, seed))
    out = maker.make("out", gathers, "f8", "shm-4k")
    places = [
        ("heap copy", "heap", Placement("heap", "shm-4k", "heap"), x),
        ("4K shm", "shm-4k", Placement("shm-4k", "shm-4k", "shared"), x),
        ("MAP_PRIVATE of 4K", "private", Placement("private", "shm-4k", "private"), x),
    ]
    if huge is not None:
        rung = huge.pages.backing
        places.append((rung, "huge", Placement(rung, rung, "shared"), huge))
    return [
        _Row(
            label,
            story,
            _ArticleCell(
                "numpy",
                "gather",
                "fancy",
                place,
                {"x": source, "idx": idx, "out": out},
                (0, gathers),
            ),
        )
        for label, story, place, source in places
    ]


def _stride_rows(maker: _Maker, x: SharedArray, huge: SharedArray | None) -> list[_Row]:
    picked = -(-len(x) // 2)
    idx = maker.make("stride-idx", picked, "i8", "shm-4k")
    np.copyto(idx.array, strided(len(x), picked, 2))
    out = maker.make("stride-out", picked, "f8", "shm-4k")
    implementation = kernels.available("gather")[0]
    # Every line of x, the indices, and the result.
    moved_bytes = 8 * len(x) + 16 * picked
    rows = []
    for label, source in (("4K shm", x), ("huge", huge)):
        if source is None:
            continue
        rung = source.pages.backing
        cell = _ArticleCell(
            "hugepool",
            "gather",
            implementation,
            Placement(rung, rung, "shared"),
            {"x": source, "idx": idx, "out": out},
            (0, picked),
        )
        name = f"stride 2 {label if source is x else rung}"
        rows.append(_Row(name, "stride", cell, moved_bytes))
    return rows


class _ArticleCell(Cell):
    """x as the row says; indices and results on the worker's heap in every row."""

    def views(self, shared: Collection[str] = ()) -> dict[str, View]:
        """View of every role that is not in `shared`."""
        return {
            role: self.placement.view if role == "x" else "heap"
            for role in self.operands
            if role not in shared
        }


def _check(pool: Pool, row: _Row) -> None:
    x, idx = (row.cell.operands[role] for role in ("x", "idx"))
    assert isinstance(x, SharedArray)
    assert isinstance(idx, SharedArray)
    verify(pool, row.cell, Reference(x.array[idx.array], None, "NumPy's x[idx]"), row.label)


def _proof(pool: Pool, row: _Row) -> float:
    """Share of x that is huge in the worker, by a job that has no other operand."""
    x = row.cell.operands["x"]
    timings = pool.run(
        "sum", {"a": x}, (0, x.shape[0]), views={"a": row.cell.placement.view}, writes=()
    )
    return timings.huge_bytes / timings.mapped_bytes if timings.mapped_bytes else 0.0


def _baseline(rows: Sequence[_Row], row: _Row) -> _Row:
    return next(
        one
        for one in rows
        if one.cell.placement.label == "shm-4k" and one.cell.name == row.cell.name
    )


def _article_row(row: _Row, baseline: _Row, huge_fraction: float) -> ArticleRow:
    samples = tuple(sample.wall_ns for sample in row.cell.samples)
    misses = [s.tlb_misses for s in row.cell.samples if s.tlb_misses is not None]
    article_s, article = STORY[row.story]
    if row is baseline:
        speedup = Speedup.refusal("baseline")
    elif row.story == "huge" and huge_fraction < HUGE_ENOUGH:
        speedup = Speedup.refusal("not proved huge")
    else:
        speedup = paired_speedup([s.wall_ns for s in baseline.cell.samples], samples)
    median_ns = statistics.median(samples)
    return ArticleRow(
        row.label,
        row.cell.implementation,
        article_s,
        article,
        samples,
        Spread.of([sample / 1e9 for sample in samples]),
        row.moved_bytes / median_ns if row.moved_bytes else None,
        huge_fraction,
        statistics.median(misses) if misses else None,
        "" if misses else row.cell.samples[-1].tlb_note,
        speedup,
        bool(row.cell.agreement),
    )


def doubts(rows: Sequence[ArticleRow]) -> list[str]:
    """Why a row is not told from 4 KiB shared memory, with the times that forbid it."""
    found = []
    baseline = next(row for row in rows if row.article == STORY["shm-4k"][1])
    for row in rows:
        # the two strides differ too little to be worth a line
        if row.speedup.ratio is None or row.speedup.significant or row.gb_per_s is not None:
            continue
        if row.speedup.rounds < MIN_ROUNDS:
            found.append(f"{row.label}: fewer than {MIN_ROUNDS} rounds allow no claim.")
            continue
        ours, theirs = row.seconds, baseline.seconds
        found.append(
            f"{row.label}: no claim; its rounds took {ours.minimum:.3f} to {ours.maximum:.3f} s, "
            f"those of {baseline.label} {theirs.minimum:.3f} to {theirs.maximum:.3f} s. The "
            f"fastest rounds are {theirs.minimum / ours.minimum:.2f}x apart."
        )
    return found


def _notes(rows: Sequence[ArticleRow], elements: int, gathers: int) -> tuple[str, ...]:
    notes = []
    if (elements, gathers) != (ELEMENTS, ELEMENTS):
        notes.append(
            f"{elements:,} elements and {gathers:,} gathers: the article's figures are for "
            f"{ELEMENTS:,} and do not compare"
        )
    private = next(row for row in rows if row.label.startswith("MAP_PRIVATE"))
    notes.append(
        "MAP_PRIVATE maps the file's own page cache until it is written to, so it is huge only "
        f"where the cache is: {100 * private.huge_fraction:.3g} % here. A heap speed there means "
        "that the pages were copied or were huge."
    )
    notes.append(
        "Stride 2 runs through an index array, which x[::2] does not read; its GB/s count "
        "every line of x, the indices and the result."
    )
    return tuple(notes)
