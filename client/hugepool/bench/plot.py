"""A PNG: time per item on every backing, with its spread and the machine's limit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hugepool.bench.options import BACKINGS
from hugepool.bench.results import Benchmark, CellResult
from hugepool_common.errors import MissingExtraError

# Okabe and Ito's palette, which keeps its differences for colour-blind readers.
COLOURS = dict(
    zip(BACKINGS, ("#999999", "#d55e00", "#e69f00", "#009e73", "#0072b2", "#cc79a7"), strict=True)
)
_COLUMNS = 2
_DPI = 120


def import_matplotlib() -> Any:
    """Matplotlib's figure class with a canvas that needs no display.

    Raises
    ------
    MissingExtraError
        Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "a plot needs Matplotlib", remedy='pip install "hugepool[plot]"'
        ) from None

    def new_figure(**options: Any) -> Figure:
        figure = Figure(**options)
        FigureCanvasAgg(figure)
        return figure

    return new_figure


def write_plot(benchmark: Benchmark, path: str) -> None:
    """Draw one panel a pattern and save it as PNG, whatever the ending of `path`.

    Raises
    ------
    MissingExtraError
        Matplotlib is not installed.
    """
    panels = [
        list(group) for _, group in itertools.groupby(benchmark.cells, lambda cell: cell.pattern)
    ]
    lines = -(-len(panels) // _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    figure = import_matplotlib()(figsize=(6.4 * columns, 3.4 * lines + 0.9), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, cells in itertools.zip_longest(axes, panels):
        if cells is None:
            axis.set_axis_off()
        else:
            _draw(axis, cells)
    _legend(figure, benchmark)
    environment = benchmark.environment
    figure.suptitle(
        f"hugepool bench: {environment.cpu}, Linux {environment.kernel_release}, "
        f"{benchmark.started}",
        fontsize=10,
    )
    figure.savefig(path, format="png", dpi=_DPI)


def limit_ns(cell: CellResult) -> float | None:
    """Time per item that the machine's limit would allow, or None where there is no fair one."""
    if cell.percent_of_limit is None:
        return None
    return cell.per_item_ns.minimum * cell.percent_of_limit / 100


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
        axis.errorbar(
            place, spread.median, [[below], [above]], color="black", capsize=2, linewidth=0.8
        )
        limit = limit_ns(cell)
        if limit is not None:
            axis.hlines(limit, place - width / 2, place + width / 2, color="black", linewidth=2)
    axis.set_xticks(
        range(len(groups)),
        [f"{kernel}\n{workers} worker{'s' * (workers > 1)}" for kernel, workers in groups],
        fontsize=8,
    )
    axis.set_ylabel(f"ns per {cells[0].unit}")
    axis.set_title(cells[0].title, fontsize=9)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _legend(figure: Any, benchmark: Benchmark) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    measured = {cell.backing for cell in benchmark.cells}
    entries: list[Any] = [
        Patch(color=COLOURS[name], label=name) for name in BACKINGS if name in measured
    ]
    entries.append(Line2D([], [], color="black", linewidth=0.8, label="minimum to upper quartile"))
    if any(limit_ns(cell) is not None for cell in benchmark.cells):
        entries.append(Line2D([], [], color="black", linewidth=2, label="limit of this machine"))
    figure.legend(handles=entries, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
