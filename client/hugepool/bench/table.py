"""The table on standard output: rich on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hugepool.bench import headline
from hugepool.bench.reproduce import Article, ArticleRow
from hugepool.bench.results import (
    Benchmark,
    CellResult,
    Environment,
    LimitResult,
    Missing,
    tlb_note,
)
from hugepool.bench.statistics import Speedup
from hugepool_common.printable import printable
from hugepool_common.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
_ANY_WIDTH = 10_000
COLUMNS = (
    "w: worker processes. GB/s: payload (x, indices or matrix, result). %limit: of this "
    "machine's own limit, measured on the same pages by the same workers in the same rounds "
    "(best round of both); above 100 where caches serve a part; cache: too small for a "
    "fair limit. %huge: proved by the workers."
)
"""What the columns mean."""
_LEFT = {"backing", "kernel", "speed-up over shm-4k", "row", "article"} | {
    "pattern",
    "hugepool on",
    "against",
    "speed-up",
    "range",
    "change",
}
Row = Sequence[str]
Show = Callable[[str, Sequence[str], Sequence[Row]], None]


def print_benchmark(benchmark: Benchmark, console: Console | None = None) -> None:
    """Print a run.

    Parameters
    ----------
    console
        A rich console to draw on; None prints plain text.
    """
    print_with(console, lambda show, say: _benchmark(benchmark, show, say))


def print_article(article: Article, console: Console | None = None) -> None:
    """Print the comparison with the article."""
    print_with(console, lambda show, say: _article(article, show, say))


def plain_table(title: str, header: Sequence[str], rows: Sequence[Row]) -> str:
    """Aligned text: numbers to the right, at most :data:`WIDTH` columns where they fit."""
    header, *rows = ([printable(text) for text in row] for row in (header, *rows))
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    lines = [printable(title)] if title else []
    for row in (header, *rows):
        cells = (
            text.ljust(width) if name in _LEFT else text.rjust(width)
            for name, text, width in zip(header, row, widths, strict=True)
        )
        lines.append(gap.join(cells).rstrip())
    return "\n".join(lines)


def print_with(
    console: Console | None, tell: Callable[[Show, Callable[[str], None]], None]
) -> None:
    """Call `tell` with what shows a table and what says a line, on `console` or as plain text."""
    if console is None:
        tell(lambda *table: print(plain_table(*table)), lambda text: print(wrapped(text)))
        return

    def say(text: str) -> None:
        console.print(wrapped(text), markup=False, highlight=False, soft_wrap=True)

    tell(lambda *table: _rich_table(console, *table), say)


def wrapped(text: str) -> str:
    """Text in lines of :data:`WIDTH`; an indented line is a command, which stays whole."""
    if text.startswith("      "):
        return printable(text)
    return textwrap.fill(
        printable(text),
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rich_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for name in header:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    # Nothing is cut short: where the terminal is narrower, a line goes on in the next one.
    table.width = console.measure(table, options=console.options.update_width(_ANY_WIDTH)).maximum
    console.print(table, crop=False, soft_wrap=True)


# A run --------------------------------------------------------------------------


def _benchmark(benchmark: Benchmark, show: Show, say: Callable[[str], None]) -> None:
    note = tlb_note(benchmark.cells)
    for _, group in itertools.groupby(benchmark.cells, lambda cell: cell.pattern):
        cells = list(group)
        show(_title(cells[0]), cell_header(cells, note), [cell_row(c, note) for c in cells])
        say("")
    header, rows = limit_table(benchmark.limits)
    if rows:
        show(limit_title(benchmark.limits), header, rows)
        say("")
    if note:
        say(f"dTLB misses: {note}")
    for line in explanations(benchmark):
        say(line)
    _say_missing(benchmark.missing, say)
    for line in environment_lines(benchmark.environment):
        say(line)
    short = headline.headlines(benchmark.cells)
    if short:
        say("")
        show(headline.TITLE, headline.HEADER, short)
        for line in headline.remarks(benchmark.cells):
            say(line)


def _title(cell: CellResult) -> str:
    limit = "random lines" if cell.limit == "lines" else "STREAM bandwidth"
    return f"{cell.title}; times in ns per {cell.unit}, limit: {limit}"


def cell_header(cells: Sequence[CellResult], note: str) -> list[str]:
    """Column names; without the dTLB column when a note stands for it."""
    names = ["backing", "kernel", "w", "median", "IQR", "min", "GB/s", "%limit", "%huge"]
    return names + ([] if note else ["dTLB"]) + ["speed-up over shm-4k"]


def cell_row(cell: CellResult, note: str) -> list[str]:
    """One cell as text."""
    spread = cell.per_item_ns
    row = [
        cell.backing,
        cell.kernel,
        str(cell.workers),
        number(spread.median),
        number(spread.iqr),
        number(spread.minimum),
        number(cell.gb_per_s),
        "cache" if "cache" in cell.limit_note else percentage(cell.percent_of_limit),
        percentage(100 * cell.huge_fraction),
    ]
    if not note:
        row.append("-" if cell.tlb_misses_per_item is None else f"{cell.tlb_misses_per_item:.3f}")
    return [*row, speedup_text(cell.speedup)]


def speedup_text(speedup: Speedup) -> str:
    """A claim, ``not significant``, or why there is none."""
    if speedup.ratio is None or speedup.low is None or speedup.high is None:
        return speedup.refused
    span = f"({speedup.low:.2f}-{speedup.high:.2f})"
    if not speedup.significant:
        return f"not significant {span}"
    return f"{speedup.ratio:.2f}x {span}"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percentage(value: float | None) -> str:
    """A whole percentage; a dash for none."""
    return "-" if value is None else f"{value:.0f}"


def limit_ns(cell: CellResult) -> float | None:
    """Time per item that the machine's limit would allow, or None where there is no fair one."""
    if cell.percent_of_limit is None:
        return None
    return cell.per_item_ns.minimum * cell.percent_of_limit / 100


def binary(nbytes: int) -> str:
    """Bytes in the units that pages and caches come in, such as ``8 MiB``."""
    value, unit = float(nbytes), 0
    while value >= 1024 and unit < 4:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def limit_table(limits: Sequence[LimitResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one for each backing and number of workers, from the first pattern."""
    header = ["backing", "w", "copy GB/s", "triad GB/s", "ns per random line"]
    if not limits:
        return header, []
    first = [limit for limit in limits if limit.pattern == limits[0].pattern]
    rows = []
    for backing, workers in dict.fromkeys((limit.backing, limit.workers) for limit in first):
        found = {
            limit.kind: limit
            for limit in first
            if (limit.backing, limit.workers) == (backing, workers)
        }
        line = found.get("random_lines")
        rows.append(
            [
                backing,
                str(workers),
                *(number(found[kind].gb_per_s) for kind in ("copy", "triad")),
                "-" if line is None or line.ns_per_line is None else number(line.ns_per_line),
            ]
        )
    return header, rows


def limit_title(limits: Sequence[LimitResult]) -> str:
    """What the limits were measured over: an array that fits a cache shows the cache's limit."""
    arrays = {
        "lines" if limit.kind == "random_lines" else "streams": format_bytes(limit.array_bytes)
        for limit in limits
        if limit.pattern == limits[0].pattern
    }
    over = ", ".join(f"{what} over {nbytes}" for what, nbytes in arrays.items())
    return f"Limits of this machine on the same pages, best round; {over}"


def explanations(benchmark: Benchmark) -> list[str]:
    """What the columns mean, what was checked, and the notes of the run."""
    lines = [
        COLUMNS,
        benchmark.rule,
        checked_text(benchmark.cells),
    ]
    return [*lines, *benchmark.notes]


def checked_text(cells: Sequence[CellResult]) -> str:
    """One sentence about the comparison of results with the reference."""
    exact = sum(cell.agreement == "bit for bit" for cell in cells)
    checked = sum(cell.verified for cell in cells)
    text = f"Results: {checked} of {len(cells)} checked before timing"
    products = sum(cell.unit == "nnz" for cell in cells)
    source = "NumPy's x[idx]" + (" and SciPy's A @ x" if products else "")
    text += f" against {source}, {exact} equal bit for bit"
    return text + ("." if exact == checked else ", the rest within the rounding bound.")


def environment_lines(environment: Environment) -> list[str]:
    """The machine in words."""
    pools = ", ".join(f"{size} {text}" for size, text in environment.huge_page_pools.items())
    versions = ", ".join(f"{name} {text}" for name, text in environment.versions.items())
    return [
        f"{environment.cpu}, {environment.cpus} CPUs, "
        f"{format_bytes(environment.last_level_cache_bytes)} cache, "
        f"{format_bytes(environment.memory_bytes)} memory, Linux {environment.kernel_release}, "
        f"load {environment.load_average}",
        f"THP {environment.thp_enabled}, shmem {environment.shmem_enabled}, "
        f"huge pages: {pools or 'none'}",
        versions,
    ]


def _say_missing(missing: Sequence[Missing], say: Callable[[str], None]) -> None:
    if missing:
        say("Not measured:")
    for one in missing:
        say(f"  {one.fact}")
        if one.remedy:
            say(f"      {one.remedy}")


# The article --------------------------------------------------------------------


def _article(article: Article, show: Show, say: Callable[[str], None]) -> None:
    title = (
        f"{article.gathers:,} random indices into {article.elements:,} float64, one process; "
        "seconds, measured here"
    )
    note = next((row.tlb_note for row in article.rows if row.tlb_note), "")
    header = ["row", "median", "IQR", "min", "GB/s", "%huge"] + ([] if note else ["dTLB"])
    show(
        title,
        [*header, "speed-up over shm-4k", "article"],
        [_article_cells(row, note) for row in article.rows],
    )
    say("")
    if note:
        say(f"dTLB misses: {note}")
    checked = sum(row.verified for row in article.rows)
    say(f"Results: {checked} of {len(article.rows)} equal NumPy's bit for bit.")
    say(article.rule)
    for note in article.notes:
        say(note)
    _say_missing(article.missing, say)
    for line in environment_lines(article.environment):
        say(line)


def _article_cells(row: ArticleRow, note: str) -> list[str]:
    misses = "-" if row.tlb_misses is None else f"{row.tlb_misses / 1e6:.2f}M"
    return [
        row.label,
        f"{row.seconds.median:.3f}",
        f"{row.seconds.iqr:.3f}",
        f"{row.seconds.minimum:.3f}",
        "" if row.gb_per_s is None else number(row.gb_per_s),
        percentage(100 * row.huge_fraction),
        *([] if note else [misses]),
        speedup_text(row.speedup),
        row.article,
    ]


def terminal() -> Console | None:
    """A rich console if standard output is a terminal that may be drawn on, else None."""
    import sys

    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    return Console()
