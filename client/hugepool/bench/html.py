"""One self-contained page: tables, inline drawings and the environment; nothing is fetched."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from html import escape

from hugepool.bench import headline
from hugepool.bench.drawing import COLOURS
from hugepool.bench.pictures import (
    Picture,
    sweep_picture,
    throughput_picture,
)
from hugepool.bench.results import HUGE_ENOUGH, Benchmark, CellResult, SweepPoint, tlb_note
from hugepool.bench.roofline import roofline_picture
from hugepool.bench.table import (
    COLUMNS,
    binary,
    cell_header,
    cell_row,
    checked_text,
    environment_lines,
    limit_ns,
    limit_table,
    limit_title,
    number,
    percentage,
)
from hugepool_common.errors import MissingExtraError

_BAR, _VALUE, _STEP, _THICK = 350, 50, 32, 11
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #6a6a6a;
  --rule: #d8d8d8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --faint: #a0a0a0; --rule: #3a3d42; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th.text, td.text { text-align: left; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.pictures { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--faint); }
svg { width: 100%; max-width: 30rem; height: auto; display: block; margin: .5rem 0; }
svg.bars text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .whisker { stroke: var(--ink); stroke-width: 1; }
svg .limit { stroke: var(--ink); stroke-width: 3; }
p.faint, li.faint { color: var(--faint); } code { font-size: 13px; overflow-wrap: anywhere; }
li { overflow-wrap: anywhere; }
pre { font-size: 12px; overflow: auto; max-height: 30rem; }
"""
_TEXT_COLUMNS = {"backing", "kernel", "speed-up over shm-4k"} | {
    "pattern",
    "hugepool on",
    "against",
    "speed-up",
    "least in",
}


def render_page(benchmark: Benchmark) -> str:
    """The page of a run, as HTML.

    Notes
    -----
    Without Matplotlib the page has its tables and bars, and says which extra brings the
    pictures.
    """
    note = tlb_note(benchmark.cells)
    header, rows = limit_table(benchmark.limits)
    pictures = _Pictures()
    groups = [
        list(group) for _, group in itertools.groupby(benchmark.cells, lambda cell: cell.pattern)
    ]
    sections = [_section(cells, note, pictures) for cells in groups]
    body = [
        "<h1>hugepool bench</h1>",
        f'<p class="faint">{escape(benchmark.started)}<br>',
        f"<code>{escape(shlex.join(benchmark.command))}</code></p>",
        *_in_short(benchmark),
        "<h2>Machine</h2>",
        _list(environment_lines(benchmark.environment)),
        *_proof(benchmark.cells),
        *_across(benchmark, pictures),
        "<h2>How to read the rest</h2>",
        f"<p>{escape(checked_text(benchmark.cells))}</p>",
        f"<p>{escape(benchmark.rule)}</p>",
        f"<p>{escape(_marks(benchmark.cells))}</p>",
        f"<p>{escape(COLUMNS)}</p>",
        *sections,
    ]
    if rows:
        body += [f"<h2>{escape(limit_title(benchmark.limits))}</h2>", _table(header, rows)]
    body += _ending(benchmark, note, pictures)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>hugepool bench</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


class _Pictures:
    """Draws what Matplotlib draws, and keeps why it could not."""

    def __init__(self) -> None:
        self.missing = ""

    def figure(self, picture: Picture | None) -> str:
        """A ``<figure>`` with its caption; empty without a picture or without Matplotlib."""
        if picture is None:
            return ""
        try:
            svg = picture.svg()
        except MissingExtraError as error:
            self.missing = f"No pictures by Matplotlib: {error}"
            return ""
        return _figure(svg, picture.caption)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _side_by_side(figures: Iterable[str]) -> str:
    there = [figure for figure in figures if figure]
    return '<div class="pictures">\n' + "\n".join(there) + "\n</div>" if there else ""


def _proof(cells: Sequence[CellResult]) -> list[str]:
    """By backing, the cell with the smallest share of huge pages."""
    rows = []
    for backing in dict.fromkeys(cell.backing for cell in cells):
        there = [cell for cell in cells if cell.backing == backing]
        least = min(there, key=lambda cell: cell.huge_fraction)
        where = f"{least.pattern}, {least.kernel}, {least.workers} w"
        rows.append(
            [
                backing,
                str(len(there)),
                binary(least.mapped_bytes),
                binary(least.huge_bytes),
                percentage(100 * least.huge_fraction),
                where,
            ]
        )
    header = ["backing", "cells", "mapped", "of it huge", "%huge", "least in"]
    said = (
        "What each worker read from the kernel about its own mappings of all operands, in the "
        "measured rounds; shown is the round with the smallest share. A speed-up is credited to "
        f"huge pages from {100 * HUGE_ENOUGH:.0f} % on."
    )
    return ["<h2>Proof of the pages</h2>", f"<p>{escape(said)}</p>", _table(header, rows)]


def _across(benchmark: Benchmark, pictures: _Pictures) -> list[str]:
    """The pictures that are of more than one pattern, and the sweep's table."""
    found = []
    sweep, roofline = sweep_picture(benchmark), roofline_picture(benchmark)
    if benchmark.sweep:
        found += [
            "<h2>Time against the size of the array</h2>",
            _side_by_side([pictures.figure(sweep)]),
            _sweep_table(benchmark.sweep),
        ]
    if roofline is not None:
        drawn = pictures.figure(roofline)
        found += ["<h2>Roofline of the CSR products</h2>", _side_by_side([drawn])] if drawn else []
    return found


def _sweep_table(points: Sequence[SweepPoint]) -> str:
    header = ["backing", "x", "median", "IQR", "min", "%huge"]
    rows = [
        [
            point.backing,
            binary(point.array_bytes),
            number(point.per_item_ns.median),
            number(point.per_item_ns.iqr),
            number(point.per_item_ns.minimum),
            percentage(100 * point.huge_fraction),
        ]
        for point in points
    ]
    return f"<details><summary>Its figures, ns per gather</summary>{_table(header, rows)}</details>"


def _marks(cells: Sequence[CellResult]) -> str:
    """What the charts draw: nothing is explained that none of them has."""
    text = "Bars are medians, thin lines run from the fastest round to the upper quartile"
    if any(limit_ns(cell) is not None for cell in cells):
        text += (
            ", and a thick mark is what this machine's own limit would allow on the same pages "
            "with the same workers"
        )
    return text + "."


def _in_short(benchmark: Benchmark) -> list[str]:
    rows = headline.headlines(benchmark.cells)
    if not rows:
        return []
    remarks = [f"<p>{escape(line)}</p>" for line in headline.remarks(benchmark.cells)]
    return [f"<h2>{escape(headline.TITLE)}</h2>", _table(headline.HEADER, rows), *remarks]


def _ending(benchmark: Benchmark, note: str, pictures: _Pictures) -> list[str]:
    remarks = list(benchmark.notes)
    if note:
        remarks.append(f"dTLB misses: {note}")
    if pictures.missing:
        remarks.append(pictures.missing)
    found = []
    if remarks:
        found += ["<h2>Notes</h2>", _list(remarks)]
    if benchmark.missing:
        found += ["<h2>Not measured</h2>", _list(str(one) for one in benchmark.missing)]
    return [
        *found,
        "<h2>All figures</h2>",
        "<details><summary>As hugepool bench --json prints them: kept in a file, they can be "
        "compared with another run's by hugepool bench --compare</summary>",
        f'<pre id="run">{escape(benchmark.to_json().decode(), quote=False)}</pre></details>',
    ]


def _section(cells: Sequence[CellResult], note: str, pictures: _Pictures) -> str:
    limit = "random lines" if cells[0].limit == "lines" else "STREAM bandwidth"
    bars = _figure(_chart(cells), f"ns per {cells[0].unit}: median and spread of the rounds.")
    return "\n".join(
        (
            f"<h2>{escape(cells[0].title)}</h2>",
            f'<p class="faint">ns per {escape(cells[0].unit)}; limit: {limit}</p>',
            _side_by_side([bars, pictures.figure(throughput_picture(cells))]),
            _table(cell_header(cells, note), [cell_row(cell, note) for cell in cells]),
        )
    )


def _chart(cells: Sequence[CellResult]) -> str:
    most = max(max(cell.per_item_ns.upper_quartile, limit_ns(cell) or 0.0) for cell in cells)
    scale = _BAR / most
    height = _STEP * len(cells) + 4
    told = "; ".join(f"{_name(cell)} {number(cell.per_item_ns.median)}" for cell in cells)
    parts = [
        f'<svg viewBox="0 0 {_BAR + _VALUE} {height}" class="bars" role="img" '
        f'aria-label="{escape(cells[0].title)}, ns per {escape(cells[0].unit)}: {escape(told)}">'
    ]
    for line, cell in enumerate(cells):
        parts.append(_bar(cell, line * _STEP, scale))
    parts.append("</svg>")
    return "\n".join(parts)


def _name(cell: CellResult) -> str:
    return f"{cell.backing}, {cell.kernel}, {cell.workers} worker{'s' * (cell.workers > 1)}"


def _bar(cell: CellResult, top: float, scale: float) -> str:
    """A bar under its name, which may be as long as the picture is wide."""
    spread = cell.per_item_ns
    bar = top + _STEP - _THICK - 4
    middle = bar + _THICK / 2
    parts = [
        f'<text x="0" y="{bar - 4}">{escape(_name(cell))}</text>',
        f'<rect x="0" y="{bar}" width="{spread.median * scale:.1f}" '
        f'height="{_THICK}" fill="{COLOURS[cell.backing]}"/>',
        _line("whisker", spread.minimum, spread.upper_quartile, middle, middle, scale),
    ]
    limit = limit_ns(cell)
    if limit is not None:
        parts.append(_line("limit", limit, limit, bar - 2, bar + _THICK + 2, scale))
    right = max(spread.upper_quartile, spread.median, limit or 0.0) * scale + 6
    parts.append(f'<text x="{right:.1f}" y="{bar + _THICK - 1}">{number(spread.median)}</text>')
    return "".join(parts)


def _line(kind: str, start: float, stop: float, top: float, bottom: float, scale: float) -> str:
    return (
        f'<line class="{kind}" x1="{start * scale:.1f}" x2="{stop * scale:.1f}" '
        f'y1="{top}" y2="{bottom}"/>'
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kinds = [' class="text"' if name in _TEXT_COLUMNS else "" for name in header]
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header, strict=True)
    )
    lines = [
        "<tr>"
        + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
