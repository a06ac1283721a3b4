"""The picture as a terminal shows it, from 80 columns on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hugepool.commands.listing import elapsed
from hugepool.commands.tables import percent, shape_text, sized
from hugepool.live.picture import MountView, Picture, PoolView, WorkerView
from hugepool.live.selection import huge_fraction, selected
from hugepool_common.messages import JobInfo

MOST_WORKERS = 8
MOST_JOBS = 5
MOST_FILLS = 4
LEAST_ARRAYS = 3
"""Rows of each table on a screen that has no room for all."""

LEAST_SHARED = 8
"""Columns that a name or shape is left with, and cut to, before others are left out."""

_BAR = 20
_RESTART_SHOWN_S = 30.0
_NUMBER = (1 << 32) - 1
"""Numbers of jobs begin anew, in their lower half, with each coordinator."""

_STATES = {"running": "green", "silent": "yellow", "absent": "red"}
_KEYS = "s sort  r reverse  / filter  p pause  ↑↓ scroll  q quit"


@dataclass(slots=True)
class View:
    """How somebody looks at the picture.

    Parameters
    ----------
    sort, reverse, pattern
        As :func:`~hugepool.live.selection.selected` takes them.
    paused
        Whether the picture stands still.
    first
        Number of array rows that are scrolled past.
    typing
        Whether the pattern is being typed.
    """

    sort: str = "bytes"
    reverse: bool = False
    pattern: str = ""
    paused: bool = False
    first: int = 0
    typing: bool = False


def screen(
    picture: Picture, view: View, *, width: int, height: int | None = None
) -> RenderableType:
    """Everything on one screen.

    Parameters
    ----------
    width
        Columns.
    height
        Lines that there are, the last one for the keys; None shows all rows and no keys.
    """
    arrays = selected(picture.arrays, sort=view.sort, reverse=view.reverse, pattern=view.pattern)
    fills: list[PoolView | MountView] = [*picture.pools, *picture.mounts]
    workers, jobs = list(picture.workers), list(picture.jobs)
    above = [*_heading(picture, width)]
    if height is not None:
        fills = fills[:MOST_FILLS]
        workers, more_workers = _cut(workers, MOST_WORKERS)
        jobs, more_jobs = _cut(jobs, MOST_JOBS)
        taken = len(above) + len(fills) + sum(len(rows) + 2 for rows in (workers, jobs) if rows)
        taken += bool(more_workers) + bool(more_jobs) + 5  # headings of the arrays, and keys
        room = max(LEAST_ARRAYS, height - taken)
        view.first = max(0, min(view.first, len(arrays) - room))
        shown = arrays[view.first : view.first + room]
    else:
        shown, more_workers, more_jobs = arrays, 0, 0
    parts: list[RenderableType] = [*above, *(_fill(one, width) for one in fills), Text()]
    parts.append(_arrays(shown, width))
    if not arrays:
        parts.append(Text(f"  {_no_arrays(picture, view)}", "dim"))
    elif len(shown) < len(arrays):
        last = view.first + len(shown)
        parts.append(Text(f"  {view.first + 1} to {last} of {len(arrays)}", "dim"))
    if workers:
        parts += [Text(), _workers(workers, width), *_more(more_workers, "workers")]
    if jobs:
        parts += [Text(), _jobs(jobs, width), *_more(more_jobs, "jobs")]
    if height is not None:
        parts += [Text(), _footer(view, width)]
    return Group(*parts)


def _cut(rows: list[Any], most: int) -> tuple[list[Any], int]:
    return (rows, 0) if len(rows) <= most else (rows[: most - 1], len(rows) - most + 1)


def _more(count: int, what: str) -> list[RenderableType]:
    return [Text(f"  and {count} more {what}", "dim")] if count else []


def _heading(picture: Picture, width: int) -> list[Text]:
    totals = picture.totals
    left = Text.assemble(("hugepool", "bold"), "  ", (picture.address, "dim"))
    right = Text(picture.state, _STATES[picture.state])
    if picture.state == "running":
        right.append(f" {elapsed(totals['uptime_ns'])}")
        if picture.restarted is not None and picture.taken - picture.restarted < _RESTART_SHOWN_S:
            right.append("  restarted", "yellow")
    else:
        right.append(f" for {elapsed(int((time.time() - picture.since) * 1e9))}")
    left.truncate(max(8, width - right.cell_len - 2), overflow="ellipsis")
    left.append(" " * (width - left.cell_len - right.cell_len))
    lines = [Text.assemble(left, right)]
    if picture.said:
        lines.append(Text(f"{picture.said}; what follows is the last that was known", "yellow"))
    if totals:
        lines += [_held(totals), _worked(totals, picture)]
    for line in lines[1:]:
        line.no_wrap = True
        line.overflow = "ellipsis"
    return lines


def _held(totals: dict[str, Any]) -> Text:
    length = totals["length"]
    share = percent(totals["huge_bytes"] / length) if length else "0"
    line = Text(f"{totals['arrays']} arrays, {sized(totals['nbytes'])}, ")
    line.append(f"{share} % huge", _huge_style(totals["huge_bytes"], length))
    if totals["quota_bytes"]:
        used = percent(totals["nbytes"] / totals["quota_bytes"])
        line.append(f", {used} % of the quota of {sized(totals['quota_bytes'])}")
    if totals["lost"]:
        line.append(f", {totals['lost']} lost", "red")
    return line


def _worked(totals: dict[str, Any], picture: Picture) -> Text:
    busy = sum(worker.busy for worker in picture.workers)
    line = Text(f"{len(picture.workers)} workers, {busy} busy; jobs: ")
    line.append(f"{totals['jobs_running']} running, ")
    waiting = totals["jobs_waiting"]
    line.append(f"{waiting} waiting", "yellow" if waiting else "")
    line.append(f", {totals['jobs_done']} done, {totals['jobs_failed']} failed; ")
    return line.append(f"{totals['sessions']} sessions")


def _fill(one: PoolView | MountView, width: int) -> Text:
    """A bar of what is taken of a pool or mount."""
    share = one.taken_bytes / one.total_bytes
    full = max(round(share * _BAR), int(one.taken_bytes > 0))
    line = Text(f"{one.name[-18:]:<18} ")
    line.append("━" * full, "red" if share > 0.95 else "cyan")
    line.append("─" * (_BAR - full), "dim")
    line.append(f" {percent(share)} % of {sized(one.total_bytes)} taken")
    if isinstance(one, MountView) and one.huge:
        line.append(f", huge={one.huge}", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _huge_style(huge: int, length: int) -> str:
    if not length:
        return ""
    return "green" if huge == length else "yellow" if huge else "red"


_Row = Sequence[str | Text]


def _table(width: int, rows: Sequence[_Row], *columns: tuple[str, bool, int]) -> Table:
    """A table without rules, whose columns are a title, whether flush right, and their share.

    What a screen is too narrow for is left out from the right: the first column stays.
    """
    columns = columns[: _that_fit(width, rows, columns)]
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True, header_style="bold")
    for title, right, ratio in columns:
        table.add_column(
            title,
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=ratio or None,
        )
    for row in rows:
        table.add_row(*row[: len(columns)])
    return table


def _that_fit(width: int, rows: Sequence[_Row], columns: Sequence[tuple[str, bool, int]]) -> int:
    """How many columns there is room for, those that share what is left having little."""
    used = -2
    for place, (title, _, ratio) in enumerate(columns):
        longest = max([len(title), *(len(row[place]) for row in rows)])
        used += 2 + (min(longest, LEAST_SHARED) if ratio else longest)
        if used > width:
            return max(place, 1)
    return len(columns)


def _arrays(arrays: Sequence[dict[str, Any]], width: int) -> Table:
    rows: list[_Row] = []
    for array in arrays:
        name = Text(array["name"])
        if array["lost"]:
            name.stylize("red")
        elif not array["sealed"]:
            name.stylize("italic")
        huge = percent(huge_fraction(array))
        rows.append(
            (
                name,
                array["dtype"],
                shape_text(array["shape"]),
                sized(array["nbytes"]),
                "lost" if array["lost"] else array["backing"],
                Text(huge, _huge_style(array["huge_bytes"], array["length"])),
                str(array["readers"]),
            )
        )
    return _table(
        width,
        rows,
        *(("NAME", False, 3), ("DTYPE", False, 0), ("SHAPE", False, 2), ("BYTES", True, 0)),
        *(("BACKING", False, 0), ("HUGE %", True, 0), ("READERS", True, 0)),
    )


def _no_arrays(picture: Picture, view: View) -> str:
    return f"none of {len(picture.arrays)} matches {view.pattern}" if picture.arrays else "none"


def _workers(workers: Sequence[WorkerView], width: int) -> Table:
    rows: list[_Row] = [
        (
            str(one.pid),
            ",".join(map(str, one.cpus)) or "any",
            Text(one.kernel or "idle", "" if one.busy else "dim"),
            "" if one.job is None else str(one.job & _NUMBER),
            str(one.parts_done),
            _rounded(one.parts_per_s),
            _rounded(None if one.rate_bytes_per_s is None else one.rate_bytes_per_s / 1e9),
            "n/a"
            if one.tlb_note and one.tlb_misses_per_element is None
            else _rounded(one.tlb_misses_per_element),
        )
        for one in workers
    ]
    return _table(
        width,
        rows,
        *(("PID", False, 0), ("CPU", False, 1), ("AT", False, 2), ("JOB", True, 0)),
        *(("PARTS", True, 0), ("PARTS/S", True, 0), ("GB/S", True, 0), ("DTLB/EL", True, 0)),
    )


def _rounded(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _jobs(jobs: Sequence[JobInfo], width: int) -> Table:
    rows: list[_Row] = []
    now_ns = time.monotonic_ns()
    for job in jobs:
        full = round(10 * job.parts_done / job.parts)
        bar = Text.assemble(("━" * full, "cyan"), ("─" * (10 - full), "dim"))
        if job.waiting:
            bar = Text("waits for workers", "yellow")
        rows.append(
            (
                str(job.job & _NUMBER),
                job.kernel,
                f"{job.parts_done}/{job.parts}",
                bar,
                str(len(job.workers)),
                str(job.pid),
                "" if job.started_ns is None else elapsed(now_ns - job.started_ns),
            )
        )
    return _table(
        width,
        rows,
        *(("JOB", False, 0), ("KERNEL", False, 2), ("PARTS", False, 0), ("", False, 2)),
        *(("WORKERS", True, 0), ("BY PID", True, 0), ("FOR", True, 0)),
    )


def _footer(view: View, width: int) -> Text:
    if view.typing:
        return Text(f"filter: {view.pattern}█  (Enter keeps it, Escape clears it)", "bold")
    state = f"by {view.sort}{' reversed' if view.reverse else ''}"
    if view.pattern:
        state += f", {view.pattern}"
    line = Text(_KEYS, "dim")
    end = Text.assemble(("  PAUSED" if view.paused else "", "bold yellow"), f"  {state}")
    line.truncate(max(0, width - end.cell_len), overflow="ellipsis")
    return Text.assemble(line, end)
