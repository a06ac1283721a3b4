"""The roofline of CSR products: what memory, arithmetic, and random lines allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hugepool.bench.drawing import COLOURS, INK, MARKERS, PAPER, label_ends, with_grid
from hugepool.bench.pictures import Picture
from hugepool.bench.results import Benchmark, CellResult, LimitResult
from hugepool.bench.table import number

_FLOPS_PER_ENTRY = 2
_STREAMS = ("copy", "triad")
_RIDGE_MARGIN = 3.0
_NEIGHBOURS = 1.5
"""Patterns whose intensities are nearer than this would write their names over each other."""


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
    with_grid(axis, "both")
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
    """Each pattern's name at the right of its points, or at the left of a near neighbour's."""
    patterns = {cell.pattern: _intensity(cell) for cell in cells}
    for pattern, place in patterns.items():
        speeds = [_gflops(cell) for cell in cells if cell.pattern == pattern]
        left = any(place < other < _NEIGHBOURS * place for other in patterns.values())
        axis.annotate(
            pattern,
            (place, (min(speeds) * max(speeds)) ** 0.5),
            (-7 if left else 7, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
