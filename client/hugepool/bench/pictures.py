"""The pictures of a run: throughput against workers, and time against array size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hugepool.bench.drawing import (
    COLOURS,
    FAINT,
    INK,
    Draw,
    inline_svg,
    label_ends,
    with_grid,
    with_spread,
)
from hugepool.bench.options import BACKINGS
from hugepool.bench.results import Benchmark, CellResult, Environment, SweepPoint
from hugepool.bench.table import binary, number
from hugepool.bench.tlb import PAGE_BYTES

SIZE = (4.9, 3.3)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what is to be read beside it.

    Parameters
    ----------
    name
        One that no other picture of the run has.
    draw
        Draws it on axes.
    caption
        What is drawn and where its figures come from.
    alternative
        What it shows, in words and figures.
    """

    name: str
    draw: Draw
    caption: str
    alternative: str

    def svg(self) -> str:
        """As an element of a page.

        Raises
        ------
        MissingExtraError
            Matplotlib is not installed.
        """
        return inline_svg(self.draw, self.name, self.alternative, SIZE)


# Throughput against workers ---------------------------------------------------------


def throughput_picture(cells: Sequence[CellResult]) -> Picture | None:
    """Items a second against workers for one pattern; None for a single number of workers."""
    kernel = _main_kernel(cells)
    lines = {
        backing: sorted(
            (cell for cell in cells if (cell.backing, cell.kernel) == (backing, kernel)),
            key=lambda cell: cell.workers,
        )
        for backing in _backings_of(cells)
    }
    lines = {backing: line for backing, line in lines.items() if line}
    counts = sorted({cell.workers for line in lines.values() for cell in line})
    if len(counts) < 2:
        return None
    unit = {"gather": "gathers", "nnz": "stored entries"}[cells[0].unit]
    caption = (
        f"Million {unit} a second by {kernel}'s kernel: median, and from the slowest round to "
        f"the fastest. Dotted: {counts[0]} worker{'s' * (counts[0] > 1)} of the best backing, "
        "times the number of workers."
    )
    told = "; ".join(
        f"{backing} " + ", ".join(f"{number(_rate(cell)[0])} with {cell.workers}" for cell in line)
        for backing, line in lines.items()
    )
    return Picture(
        f"throughput-{cells[0].pattern}",
        lambda axis: _draw_throughput(axis, lines, counts, unit),
        caption,
        f"Million {unit} a second against workers, {cells[0].pattern}: {told}.",
    )


def _rate(cell: CellResult) -> tuple[float, float, float]:
    """Median, lowest and highest of the rounds, million items a second."""
    spread = cell.per_item_ns
    return 1e3 / spread.median, 1e3 / spread.maximum, 1e3 / spread.minimum


def _draw_throughput(
    axis: Any, lines: dict[str, list[CellResult]], counts: Sequence[int], unit: str
) -> None:
    for backing, line in lines.items():
        with_spread(axis, [cell.workers for cell in line], [_rate(cell) for cell in line], backing)
    one = max(_rate(line[0])[0] / line[0].workers for line in lines.values())
    axis.plot(counts, [one * count for count in counts], ":", color=FAINT, linewidth=1)
    axis.set_xlabel("worker processes")
    axis.set_ylabel(f"million {unit} a second")
    axis.set_xticks(counts)
    axis.set_xlim(counts[0] - 0.08 * len(counts), counts[-1] + 0.04 * len(counts))
    axis.set_ylim(bottom=0)
    with_grid(axis)
    ends = [
        (line[-1].workers, _rate(line[-1])[0], name, COLOURS[name]) for name, line in lines.items()
    ]
    label_ends(axis, ends)


# Time against array size ------------------------------------------------------------


def sweep_picture(benchmark: Benchmark) -> Picture | None:
    """Nanoseconds per gather against the size of x; None without a sweep of two sizes."""
    points = benchmark.sweep
    sizes = sorted({point.array_bytes for point in points})
    if len(sizes) < 2:
        return None
    caption = (
        f"Random gathers by one worker, {points[0].gathers:,} a run: median, and from the fastest "
        f"round to the upper quartile. {reach_text(benchmark.environment, sizes)}"
    )
    lines = _sweep_lines(points)
    told = "; ".join(
        f"{backing} {number(line[0].per_item_ns.median)} at {binary(line[0].array_bytes)}, "
        f"{number(line[-1].per_item_ns.median)} at {binary(line[-1].array_bytes)}"
        for backing, line in lines.items()
    )
    return Picture(
        "sweep",
        lambda axis: _draw_sweep(axis, lines, sizes, benchmark.environment),
        caption,
        f"Nanoseconds per random gather against the size of the array: {told}.",
    )


def reach_text(environment: Environment, sizes: Sequence[int]) -> str:
    """What the TLB marks say and where they come from, or why there are none."""
    stlb = environment.stlb
    if not stlb.entries:
        return f"No mark of the TLB's reach: {stlb.source or 'the run did not look for it'}."
    facts = [
        f"{stlb.entries[size]} entries × {binary(PAGE_BYTES[size])} = {_placed(reach, sizes)}"
        for size, reach in stlb.reach_bytes().items()
    ]
    cache = environment.last_level_cache_bytes
    return (
        f"Dashed: the reach of the last-level data TLB, {'; '.join(facts)} "
        f"(entries: {stlb.source}). Dash-dotted: the last-level cache, {_placed(cache, sizes)}."
    )


def _placed(nbytes: int, sizes: Sequence[int]) -> str:
    """A size, and whether the axis does not show it."""
    if sizes[0] <= nbytes <= sizes[-1]:
        return binary(nbytes)
    return f"{binary(nbytes)}, {'beyond' if nbytes > sizes[-1] else 'below'} the axis"


def _sweep_lines(points: Sequence[SweepPoint]) -> dict[str, list[SweepPoint]]:
    found: dict[str, list[SweepPoint]] = {}
    for point in sorted(points, key=lambda one: (BACKINGS.index(one.backing), one.array_bytes)):
        found.setdefault(point.backing, []).append(point)
    return found


def _draw_sweep(
    axis: Any,
    lines: dict[str, list[SweepPoint]],
    sizes: Sequence[int],
    environment: Environment,
) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    for backing, line in lines.items():
        spreads = [
            (one.per_item_ns.median, one.per_item_ns.minimum, one.per_item_ns.upper_quartile)
            for one in line
        ]
        with_spread(axis, [one.array_bytes for one in line], spreads, backing)
    axis.set_xscale("log", base=2)
    axis.set_xlim(sizes[0] / 1.15, sizes[-1] * 1.1)
    axis.set_ylim(bottom=0)
    ticks = [1 << place for place in range(10, 60, 2) if sizes[0] <= 1 << place <= sizes[-1]]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([binary(tick) for tick in ticks])
    axis.set_xlabel("size of the array")
    axis.set_ylabel("ns per gather")
    with_grid(axis)
    for size, reach in environment.stlb.reach_bytes().items():
        if sizes[0] <= reach <= sizes[-1]:
            _mark(axis, reach, f"TLB reach, {size} pages", "--", "right")
    cache = environment.last_level_cache_bytes
    if sizes[0] <= cache <= sizes[-1]:
        _mark(axis, cache, "last-level cache", "-.", "right")
    ends = [
        (line[-1].array_bytes, line[-1].per_item_ns.median, name, COLOURS[name])
        for name, line in lines.items()
    ]
    label_ends(axis, ends)


def _mark(axis: Any, place: float, text: str, style: str, side: str) -> None:
    axis.axvline(place, color=INK, linewidth=0.9, linestyle=style)
    axis.annotate(
        text,
        (place, 1.0),
        (-3, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        ha=side,
        va="top",
        fontsize=9,
    )


# What they share --------------------------------------------------------------------


def _main_kernel(cells: Sequence[CellResult]) -> str:
    kernels = [cell.kernel for cell in cells]
    return "hugepool" if "hugepool" in kernels else kernels[0]


def _backings_of(cells: Sequence[CellResult]) -> list[str]:
    return [name for name in BACKINGS if any(cell.backing == name for cell in cells)]
