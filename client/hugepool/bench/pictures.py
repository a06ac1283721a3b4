"""The pictures of a run: throughput against workers, time against array size, roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hugepool.bench.drawing import (
    COLOURS,
    FAINT,
    INK,
    MARKERS,
    PAPER,
    Draw,
    inline_svg,
    label_ends,
    with_spread,
)
from hugepool.bench.options import BACKINGS
from hugepool.bench.results import Benchmark, CellResult, Environment, LimitResult, SweepPoint
from hugepool.bench.table import binary, number
from hugepool.bench.tlb import PAGE_BYTES

SIZE = (4.9, 3.3)
_FLOPS_PER_ENTRY = 2
_STREAMS = ("copy", "triad")
_RIDGE_MARGIN = 3.0


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
    _grid(axis)
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
    _grid(axis)
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


# Roofline ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Roofline:
    """The products of a run and the limits over them, for one number of workers."""

    workers: int
    cells: tuple[CellResult, ...]
    gb_per_s: float
    line_ns: dict[str, float]
    peak_gflops: float | None


def roofline_picture(benchmark: Benchmark) -> Picture | None:
    """Operations a second of the CSR products against their intensity; None without a product."""
    found = _roofline(benchmark)
    if found is None:
        return None
    flat = (
        f"the flat roof is a dense product on one CPU × {found.workers} "
        f"({number(found.peak_gflops * found.workers)} GFLOP/s)"
        if found.peak_gflops
        else "the flat roof was not measured"
    )
    lines = (
        " Dashed: one random cache line for each stored entry, at the rate that these pages allow; "
        "a product whose x stays in the caches may pass it."
        if found.line_ns
        else ""
    )
    count = f"{found.workers} worker{'s' * (found.workers > 1)}"
    caption = (
        f"CSR products by {count}: two operations for each stored entry over the bytes of matrix, "
        "x and result; filled is hugepool's kernel, hollow another's. The slope is the best STREAM "
        f"rate of the same workers ({number(found.gb_per_s)} GB/s), {flat}.{lines}"
    )
    told = "; ".join(
        f"{cell.pattern} {cell.kernel} {cell.backing} {number(_gflops(cell))} GFLOP/s at "
        f"{_intensity(cell):.3f} FLOP a byte"
        for cell in found.cells
    )
    return Picture(
        "roofline",
        lambda axis: _draw_roofline(axis, found),
        caption,
        f"Roofline of the CSR products, {count}, under {number(found.gb_per_s)} GB/s: {told}.",
    )


def _roofline(benchmark: Benchmark) -> _Roofline | None:
    products = [cell for cell in benchmark.cells if cell.unit == "nnz"]
    if not products:
        return None
    workers = max(cell.workers for cell in products)
    cells = tuple(cell for cell in products if cell.workers == workers)
    limits = [
        limit
        for limit in benchmark.limits
        if limit.workers == workers and limit.pattern in {cell.pattern for cell in cells}
    ]
    rates = [limit.gb_per_s for limit in limits if limit.kind in _STREAMS]
    if not rates:
        return None
    return _Roofline(workers, cells, max(rates), _line_ns(limits), benchmark.peak_gflops)


def _line_ns(limits: Sequence[LimitResult]) -> dict[str, float]:
    """Time of a random line by backing, over the first pattern's x."""
    return {
        limit.backing: limit.ns_per_line
        for limit in limits
        if limit.ns_per_line is not None and limit.pattern == limits[0].pattern
    }


def _intensity(cell: CellResult) -> float:
    """Operations per byte of payload."""
    return _FLOPS_PER_ENTRY * cell.items / cell.nbytes


def _gflops(cell: CellResult) -> float:
    return _FLOPS_PER_ENTRY / cell.per_item_ns.median


def _draw_roofline(axis: Any, found: _Roofline) -> None:
    places = [_intensity(cell) for cell in found.cells]
    speeds = [_gflops(cell) for cell in found.cells]
    peak = None if found.peak_gflops is None else found.peak_gflops * found.workers
    left = min(places) / 2
    ridge = max(places) * 2 if peak is None else peak / found.gb_per_s
    right = max(ridge * _RIDGE_MARGIN, max(places) * 2)
    ceilings = {name: _FLOPS_PER_ENTRY / line for name, line in found.line_ns.items()}
    roof_end = ridge if peak is not None else right
    axis.plot(
        [left, roof_end],
        [left * found.gb_per_s, roof_end * found.gb_per_s],
        color=INK,
        linewidth=1.5,
    )
    if peak is not None:
        axis.plot([ridge, right], [peak, peak], color=INK, linewidth=1.5)
    for name, ceiling in ceilings.items():
        start = max(left, ceiling / found.gb_per_s)
        axis.plot([start, right], [ceiling, ceiling], "--", color=COLOURS[name], linewidth=1)
    for cell, place, speed in zip(found.cells, places, speeds, strict=True):
        ours = cell.kernel == "hugepool"
        axis.plot(
            place,
            speed,
            MARKERS[cell.backing],
            color=COLOURS[cell.backing],
            markerfacecolor=COLOURS[cell.backing] if ours else PAPER,
            markersize=5.5,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = min([*speeds, *ceilings.values()]) / 2.2
    axis.set_xlim(left, right)
    axis.set_ylim(low, max([right * found.gb_per_s if peak is None else peak, *speeds]) * 2)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_xlabel("FLOP a byte")
    axis.set_ylabel("GFLOP/s")
    _grid(axis, "both")
    _name_products(axis, found.cells)
    label_ends(
        axis,
        [(right, y, f"lines, {name}", COLOURS[name]) for name, y in ceilings.items()]
        + ([(right, peak, "dense product", INK)] if peak is not None else []),
    )
    axis.annotate(
        f"STREAM {number(found.gb_per_s)} GB/s",
        (ridge / 2, ridge / 2 * found.gb_per_s),
        (-5, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
    )


def _name_products(axis: Any, cells: Sequence[CellResult]) -> None:
    """The pattern's name under its lowest point."""
    for pattern in dict.fromkeys(cell.pattern for cell in cells):
        named = [cell for cell in cells if cell.pattern == pattern]
        lowest = min(named, key=_gflops)
        axis.annotate(
            pattern,
            (_intensity(lowest), _gflops(lowest)),
            (0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
        )


# What they share --------------------------------------------------------------------


def _main_kernel(cells: Sequence[CellResult]) -> str:
    kernels = [cell.kernel for cell in cells]
    return "hugepool" if "hugepool" in kernels else kernels[0]


def _backings_of(cells: Sequence[CellResult]) -> list[str]:
    return [name for name in BACKINGS if any(cell.backing == name for cell in cells)]


def _grid(axis: Any, which: str = "y") -> None:
    axis.grid(axis=which)
    axis.set_axisbelow(True)
    axis.tick_params(length=3)
    axis.minorticks_off()
