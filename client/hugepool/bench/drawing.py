"""What pictures have in common: Matplotlib without a display, colours, labels, SVG for a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from hugepool.bench.options import BACKINGS
from hugepool_common.errors import MissingExtraError

# Okabe and Ito's palette, which keeps its differences for colour-blind readers; the grey darker
# than theirs, to be seen on white and on black.
COLOURS = dict(
    zip(BACKINGS, ("#7f7f7f", "#d55e00", "#e69f00", "#009e73", "#0072b2", "#cc79a7"), strict=True)
)
MARKERS = dict(zip(BACKINGS, ("o", "s", "D", "^", "v", "P"), strict=True))
"""Shapes, for who sees no colours."""

INK, FAINT, RULE, PAPER = "#1b1b1b", "#6a6a6a", "#d8d8d8", "#ffffff"
"""Colours that a page replaces by its own, so that a picture follows a dark mode."""

_VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", PAPER: "--paper"}
_LABEL_GAP = 0.072
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Draw = Callable[[Any], None]
"""Draws on one of Matplotlib's axes."""


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


def styled() -> Any:
    """A context in which figures are made and saved in the one style of the reports."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def inline_svg(draw: Draw, name: str, alternative: str, size: tuple[float, float]) -> str:
    """A picture as an ``<svg>`` element that refers to nothing outside itself.

    Parameters
    ----------
    name
        One that no other picture of the page has: it keeps their ids apart.
    alternative
        What the picture shows, for who does not see it.
    size
        Width and height in inches of 72 units.

    Raises
    ------
    MissingExtraError
        Matplotlib is not installed.
    """
    from html import escape

    new_figure = import_matplotlib()
    with styled():
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = name
        figure = new_figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True)
    text = target.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg {box[0]} class="picture" role="img" aria-label="{escape(alternative)}">'
    return opening + text[text.index(">") + 1 :]


def label_ends(axis: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names at the right of the axes, each beside the end of its line, none over another.

    Parameters
    ----------
    ends
        x and y in data units, text, and colour. The limits of the axes must stand already.
    """
    scale = axis.transScale + axis.transLimits
    ordered = sorted(ends, key=lambda end: end[1])
    places = [float(scale.transform((x, y))[1]) for x, y, _, _ in ordered]
    for (x, y, text, colour), place in zip(ordered, spread_apart(places, _LABEL_GAP), strict=True):
        axis.annotate(
            text,
            (x, y),
            (1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 2,
            },
        )


def spread_apart(places: Sequence[float], gap: float) -> list[float]:
    """Rising places moved as little as it takes to be `gap` apart, within 0 and 1 if they fit."""
    found = list(places)
    for number in range(1, len(found)):
        found[number] = max(found[number], found[number - 1] + gap)
    if found and found[-1] > 1.0:
        found[-1] = 1.0
        for number in range(len(found) - 2, -1, -1):
            found[number] = min(found[number], found[number + 1] - gap)
    return found


def with_spread(axis: Any, x: Sequence[float], spreads: Sequence[Any], backing: str) -> None:
    """A line through (middle, low, high) triples, in the backing's colour and shape."""
    middles = [middle for middle, _, _ in spreads]
    below = [middle - low for middle, low, _ in spreads]
    above = [high - middle for middle, _, high in spreads]
    axis.errorbar(
        x,
        middles,
        [below, above],
        color=COLOURS[backing],
        marker=MARKERS[backing],
        markersize=4,
        linewidth=1.6,
        elinewidth=0.8,
        capsize=2,
    )


def with_grid(axis: Any, which: str = "y") -> None:
    """Grid lines behind everything, and short ticks at them."""
    axis.grid(axis=which)
    axis.set_axisbelow(True)
    axis.tick_params(length=3)
    axis.minorticks_off()
