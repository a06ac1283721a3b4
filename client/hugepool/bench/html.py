"""One self-contained page: tables, inline drawings and the environment; nothing is fetched."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from html import escape

from hugepool.bench import headline
from hugepool.bench.plot import COLOURS, limit_ns
from hugepool.bench.results import Benchmark, CellResult, tlb_note
from hugepool.bench.table import (
    COLUMNS,
    cell_header,
    cell_row,
    checked_text,
    environment_lines,
    limit_table,
    limit_title,
    number,
)

_LABEL, _BAR, _VALUE, _STEP = 236, 420, 70, 18
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
.scroll { overflow-x: auto; }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0 1rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .whisker { stroke: var(--ink); stroke-width: 1; }
svg .limit { stroke: var(--ink); stroke-width: 3; }
p.faint, li.faint { color: var(--faint); } code { font-size: 13px; overflow-wrap: anywhere; }
"""
_TEXT_COLUMNS = {"backing", "kernel", "speed-up over shm-4k"} | {
    "pattern",
    "hugepool on",
    "against",
    "speed-up",
}


def render_page(benchmark: Benchmark) -> str:
    """The page of a run, as HTML."""
    note = tlb_note(benchmark.cells)
    header, rows = limit_table(benchmark.limits)
    sections = [
        _section(list(group), note)
        for _, group in itertools.groupby(benchmark.cells, lambda cell: cell.pattern)
    ]
    body = [
        "<h1>hugepool bench</h1>",
        f'<p class="faint">{escape(benchmark.started)}<br>',
        f"<code>{escape(shlex.join(benchmark.command))}</code></p>",
        *_in_short(benchmark),
        f"<p>{escape(checked_text(benchmark.cells))}</p>",
        f"<p>{escape(benchmark.rule)}</p>",
        f"<p>{escape(_marks(benchmark.cells))}</p>",
        f"<p>{escape(COLUMNS)}</p>",
        *sections,
    ]
    if rows:
        body += [f"<h2>{escape(limit_title(benchmark.limits))}</h2>", _table(header, rows)]
    body += _ending(benchmark, note)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>hugepool bench</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


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
    return [f"<h2>{escape(headline.TITLE)}</h2>", _table(headline.HEADER, rows)]


def _ending(benchmark: Benchmark, note: str) -> list[str]:
    remarks = list(benchmark.notes)
    if note:
        remarks.append(f"dTLB misses: {note}")
    found = []
    if remarks:
        found += ["<h2>Notes</h2>", _list(remarks)]
    if benchmark.missing:
        found += ["<h2>Not measured</h2>", _list(str(one) for one in benchmark.missing)]
    return [*found, "<h2>Machine</h2>", _list(environment_lines(benchmark.environment))]


def _section(cells: Sequence[CellResult], note: str) -> str:
    limit = "random lines" if cells[0].limit == "lines" else "STREAM bandwidth"
    return "\n".join(
        (
            f"<h2>{escape(cells[0].title)}</h2>",
            f'<p class="faint">ns per {escape(cells[0].unit)}; limit: {limit}</p>',
            _chart(cells),
            _table(cell_header(cells, note), [cell_row(cell, note) for cell in cells]),
        )
    )


def _chart(cells: Sequence[CellResult]) -> str:
    most = max(max(cell.per_item_ns.upper_quartile, limit_ns(cell) or 0.0) for cell in cells)
    scale = _BAR / most
    height = _STEP * len(cells) + 4
    width = _LABEL + _BAR + _VALUE
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(cells[0].title)}: time per {escape(cells[0].unit)}">'
    ]
    for line, cell in enumerate(cells):
        parts.append(_bar(cell, line * _STEP, scale))
    parts.append("</svg>")
    return "\n".join(parts)


def _bar(cell: CellResult, top: float, scale: float) -> str:
    spread = cell.per_item_ns
    middle = top + _STEP / 2
    workers = f"{cell.workers} worker{'s' * (cell.workers > 1)}"
    parts = [
        f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">'
        f"{escape(cell.backing)}, {escape(cell.kernel)}, {workers}</text>",
        f'<rect x="{_LABEL}" y="{top + 3}" width="{spread.median * scale:.1f}" '
        f'height="{_STEP - 6}" fill="{COLOURS[cell.backing]}"/>',
        _line("whisker", spread.minimum, spread.upper_quartile, middle, middle, scale),
    ]
    limit = limit_ns(cell)
    if limit is not None:
        parts.append(_line("limit", limit, limit, top + 1, top + _STEP - 1, scale))
    right = _LABEL + max(spread.upper_quartile, spread.median, limit or 0.0) * scale + 6
    parts.append(f'<text x="{right:.1f}" y="{middle + 4}">{number(spread.median)}</text>')
    return "".join(parts)


def _line(kind: str, start: float, stop: float, top: float, bottom: float, scale: float) -> str:
    return (
        f'<line class="{kind}" x1="{_LABEL + start * scale:.1f}" x2="{_LABEL + stop * scale:.1f}" '
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
