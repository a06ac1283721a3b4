"""The comparison of two runs on standard output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hugepool.bench.comparison import Change, Comparison, Difference, Differing, Key
from hugepool.bench.statistics import Spread
from hugepool.bench.table import Show, number, print_with

if TYPE_CHECKING:
    from rich.console import Console

HEADER = ["pattern", "kernel", "backing", "w", "old", "new", "old/new", "range", "change"]
_MOST_NAMED = 6


def print_comparison(
    comparison: Comparison, old: str, new: str, console: Console | None = None
) -> None:
    """Print a comparison.

    Parameters
    ----------
    old, new
        Names of the files.
    console
        A rich console to draw on; None prints plain text.
    """
    print_with(console, lambda show, say: _tell(comparison, old, new, show, say))


def _tell(
    comparison: Comparison, old: str, new: str, show: Show, say: Callable[[str], None]
) -> None:
    title = (
        f"Times in ns per gather or stored entry, of a limit in ms (± half the interquartile "
        f"range); old: {old}, {comparison.old_started}; new: {new}, {comparison.new_started}"
    )
    if comparison.changes:
        say(title)
        show("", HEADER, [_row(change) for change in comparison.changes])
        say("")
    for change in comparison.changes:
        if change.note:
            say(f"{change.key}: {change.note}")
    for line in verdict_lines(comparison):
        say(line)
    say(comparison.rule)


def verdict_lines(comparison: Comparison) -> list[str]:
    """What has changed and what was not compared, in sentences."""
    marked = comparison.marked
    faster = sum(change.verdict == "faster" for change in marked)
    lines = [
        f"{len(marked)} of {len(comparison.changes)} differ beyond the noise of both runs: "
        f"{faster} faster, {len(marked) - faster} slower."
        if comparison.changes
        else "Nothing was measured in both runs with the same inputs."
    ]
    for text, keys in (
        ("Other inputs, not compared", comparison.other_inputs),
        ("Only in the old run", comparison.only_old),
        ("Only in the new run", comparison.only_new),
    ):
        if keys:
            lines.append(f"{text}: {_named(keys)}.")
    if comparison.old_disturbed or comparison.new_disturbed:
        lines.append(
            "Rounds timed while other processes used the workers' CPUs: old "
            f"{_share(comparison.old_disturbed)}, new {_share(comparison.new_disturbed)}."
        )
    if not comparison.environment:
        lines.append("Machine and versions: the same.")
    for text, differences in (
        ("Machine and versions", comparison.environment),
        ("Options", comparison.options),
    ):
        lines += [f"{text}: {_difference(one)}" for one in differences]
    return lines


def _row(change: Change) -> list[str]:
    key = change.key
    return [
        key.pattern,
        key.what,
        key.backing,
        str(key.workers),
        _spread(change.old),
        _spread(change.new),
        f"{change.ratio:.2f}x",
        f"{change.low:.2f}-{change.high:.2f}",
        change.verdict,
    ]


def _spread(spread: Spread) -> str:
    """A median and half the distance of its quartiles."""
    return f"{number(spread.median)} ±{number(spread.iqr / 2)}"


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else "under 1 %"


def _named(keys: Sequence[Key]) -> str:
    more = len(keys) - _MOST_NAMED
    text = ", ".join(str(key) for key in keys[:_MOST_NAMED])
    return text + (f" and {more} more" if more > 0 else "")


def _difference(one: Differing) -> str:
    return f"{one.what}: {_value(one.old)}, now {_value(one.new)}"


def _value(value: Difference) -> str:
    if value is None or value == "" or value == {}:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "none"
    return str(value)
