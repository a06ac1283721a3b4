"""How commands print: aligned for a reader, with tabs for a program, or as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from hugepool_common.printable import printable
from hugepool_common.units import format_bytes

_GAP = "  "


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    title
        Its heading.
    right
        Whether a reader sees it flush right, as numbers are.
    shown
        How a reader sees a value.
    told
        How a program reads it.
    """

    title: str
    right: bool = False
    shown: Callable[[Any], str] = _plain
    told: Callable[[Any], str] = _plain


def count(title: str) -> Column:
    """A column of numbers."""
    return Column(title, right=True)


def size(title: str) -> Column:
    """A column of bytes: ``400 MB`` to a reader, ``400000000`` to a program."""
    return Column(title, right=True, shown=lambda value: "" if value is None else sized(value))


def sized(nbytes: int) -> str:
    """A number of bytes for a reader."""
    return format_bytes(nbytes)


def share(title: str) -> Column:
    """A column of fractions, in percent."""
    return Column(title, right=True, shown=percent, told=percent)


def percent(fraction: float | None) -> str:
    """A fraction in percent; what is not all never looks like all, nor what is some like none."""
    if fraction is None:
        return ""
    if 0 < fraction < 1:
        return f"{min(max(100 * fraction, 0.1), 99.9):.3g}"
    return f"{100 * fraction:.0f}"


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, narrow: bool = False
) -> None:
    """Print a table on stdout; nothing in it is ever cut short.

    Parameters
    ----------
    columns
        One for each value of a row.
    rows
        Values as they are; None is an empty cell.
    narrow
        On a terminal that is too narrow, leave out columns from the right, and say so. A
        terminal that has not room for two gets all of them, and wraps.
    """
    if not sys.stdout.isatty():
        for row in ([column.title for column in columns], *_cells(columns, rows, "told")):
            click.echo("\t".join(row))
        return
    cells = _cells(columns, rows, "shown")
    widths = [
        max(len(column.title), *(len(row[place]) for row in cells), 0)
        for place, column in enumerate(columns)
    ]
    kept = _that_fit(widths) if narrow else len(widths)
    left_out = ", ".join(column.title for column in columns[kept:])
    columns, widths, cells = columns[:kept], widths[:kept], [row[:kept] for row in cells]
    heading = _line([column.title.upper() for column in columns], columns, widths)
    click.echo(heading if os.environ.get("NO_COLOR") else click.style(heading, bold=True))
    for row in cells:
        click.echo(_line(row, columns, widths))
    if left_out:
        warn(f"left out, for the terminal is narrow: {left_out}")


def _terminal_columns() -> int:
    """As ``shutil.get_terminal_size``, which brings four modules of compression along."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _that_fit(widths: Sequence[int]) -> int:
    """How many columns a line has room for; all, if it has for less than two."""
    room = _terminal_columns()
    used, kept = -len(_GAP), 0
    for width in widths:
        used += len(_GAP) + width
        if used > room:
            break
        kept += 1
    return kept if kept > 1 else len(widths)


def _cells(columns: Sequence[Column], rows: Sequence[Sequence[Any]], form: str) -> list[list[str]]:
    """All values as text, each on one line and without tabs."""
    return [
        [
            printable(" ".join(getattr(column, form)(value).split()))
            for column, value in zip(columns, row, strict=True)
        ]
        for row in rows
    ]


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column.right else cell.ljust(width)
        for cell, column, width in zip(row, columns, widths, strict=True)
    ]
    return _GAP.join(cells).rstrip()


def print_fields(fields: Sequence[tuple[str, Any, str]]) -> None:
    """Print facts of one thing, a line each.

    Parameters
    ----------
    fields
        Name, value as a program reads it, and as a person does.
    """
    if not sys.stdout.isatty():
        value = Column("value")
        rows = [(name, told) for name, told, _ in fields]
        print_table((Column("field"), value), rows)
        return
    # A reader sees units beside the values, not in the names.
    titles = [
        name.removesuffix("_ns").removesuffix("_bytes").replace("_", " ") for name, _, _ in fields
    ]
    width = max(map(len, titles))
    for title, (_, _, shown) in zip(titles, fields, strict=True):
        click.echo(f"{title.ljust(width)}  {printable(shown)}".rstrip())


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def shape_text(shape: Sequence[int]) -> str:
    """A shape as commands write and read it: ``500x20``, and ``()`` for no axis."""
    return "x".join(map(str, shape)) or "()"


def warn(text: str) -> None:
    """Print a message on stderr."""
    click.echo(f"hugepool: {printable(text)}", err=True)
