"""One picture of a whole run: times with their spread and the machine's limits, and the curves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, Literal

from hugepool.bench.drawing import COLOURS, INK, Draw, import_matplotlib, styled
from hugepool.bench.options import BACKINGS
from hugepool.bench.pictures import sweep_picture
from hugepool.bench.results import Benchmark, CellResult
from hugepool.bench.roofline import roofline_picture
from hugepool.bench.table import limit_ns

_COLUMNS = 2
_DPI = 120


def write_plot(benchmark: Benchmark, output: BinaryIO, kind: Literal["png", "svg"]) -> None:
    """Draw a panel a pattern, the sweep and the roofline where the run has them.

    Parameters
    ----------
    benchmark
        The run.
    output
        Takes the picture.
    kind
        What it is written as.

    Raises
    ------
    MissingExtraError
        Matplotlib is not installed.
    """
    new_figure = import_matplotlib()
    panels = list(_panels(benchmark))
    lines = -(-len(panels) // _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    environment = benchmark.environment
    with styled():
        figure = new_figure(figsize=(6.2 * columns, 3.3 * lines + 0.9), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flat
        for axis, panel in itertools.zip_longest(axes, panels):
            if panel is None:
                axis.set_axis_off()
                continue
            title, draw = panel
            draw(axis)
            axis.set_title(title, fontsize=9.5)
        _legend(figure, benchmark)
        figure.suptitle(
            f"hugepool bench: {environment.cpu}, Linux {environment.kernel_release}, "
            f"load {environment.load_average}, {benchmark.started}",
            fontsize=10,
        )
        figure.savefig(output, format=kind, dpi=_DPI)


def _panels(benchmark: Benchmark) -> Iterator[tuple[str, Draw]]:
    """Title and drawing of each part of the figure."""
    for _, group in itertools.groupby(benchmark.cells, lambda cell: cell.pattern):
        cells = list(group)
        yield cells[0].title, partial(_draw, cells=cells)
    sweep = sweep_picture(benchmark)
    if sweep is not None:
        yield "random gather by one worker from arrays of growing size", sweep.draw
    roofline = roofline_picture(benchmark)
    if roofline is not None:
        yield (
            "roofline of the CSR products (filled: hugepool's; dashed: a random line an entry)",
            roofline.draw,
        )


def _draw(axis: Any, cells: Sequence[CellResult]) -> None:
    groups = list(dict.fromkeys((cell.kernel, cell.workers) for cell in cells))
    backings = [name for name in BACKINGS if any(cell.backing == name for cell in cells)]
    width = 0.8 / len(backings)
    for cell in cells:
        group = groups.index((cell.kernel, cell.workers))
        place = group + (backings.index(cell.backing) - (len(backings) - 1) / 2) * width
        spread = cell.per_item_ns
        below, above = spread.median - spread.minimum, spread.upper_quartile - spread.median
        axis.bar(place, spread.median, 0.92 * width, color=COLOURS[cell.backing])
        axis.errorbar(place, spread.median, [[below], [above]], color=INK, capsize=2, linewidth=0.8)
        limit = limit_ns(cell)
        if limit is not None:
            axis.hlines(limit, place - width / 2, place + width / 2, color=INK, linewidth=2)
    axis.set_xticks(
        range(len(groups)),
        [f"{kernel}\n{workers} worker{'s' * (workers > 1)}" for kernel, workers in groups],
        fontsize=8,
    )
    axis.set_ylabel(f"ns per {cells[0].unit}")
    axis.set_title(cells[0].title, fontsize=9)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")
    axis.set_axisbelow(True)


def _legend(figure: Any, benchmark: Benchmark) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    measured = {cell.backing for cell in benchmark.cells}
    entries: list[Any] = [
        Patch(color=COLOURS[name], label=name) for name in BACKINGS if name in measured
    ]
    entries.append(Line2D([], [], color=INK, linewidth=0.8, label="minimum to upper quartile"))
    if any(limit_ns(cell) is not None for cell in benchmark.cells):
        entries.append(Line2D([], [], color=INK, linewidth=2, label="limit of this machine"))
    figure.legend(handles=entries, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
