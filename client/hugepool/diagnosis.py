"""What the doctor found, and how it is shown: as JSON, as plain text, in colour."""

from __future__ import annotations

import os
from typing import Literal, TextIO

import msgspec

from hugepool.remedies import tmpfs_places
from hugepool_common.pages import Host
from hugepool_common.units import format_bytes, page_size_name

Outcome = Literal["huge", "partly", "small", "refused"]
"""All bytes mapped huge, some, none, or no array at all."""


class RungFinding(msgspec.Struct, frozen=True):
    """What a trial on one rung gave.

    Parameters
    ----------
    rung
        The backing.
    outcome
        See :data:`Outcome`.
    huge_bytes, length
        Of the trial array as this process mapped it; 0 when refused.
    page_size
        Bytes per page that the rung promised; 0 when refused.
    room_bytes
        What new arrays could have, as far as the kernel tells.
    took_ns
        To make, map and prove the trial array, or to be refused.
    reason
        Why it is not huge.
    commands
        For a root shell; they bring the rung, or the room that is short on it.
    """

    rung: str
    outcome: Outcome
    huge_bytes: int
    length: int
    page_size: int
    room_bytes: int
    took_ns: int
    reason: str = ""
    commands: tuple[str, ...] = ()


class Diagnosis(msgspec.Struct, frozen=True):
    """All that was found.

    Parameters
    ----------
    machine
        Processor architecture.
    host
        Pools, mounts, modes and limits.
    rungs
        One finding a rung: those of the ladder in its order, then 1 GiB pages.
    default_rung
        Where an ordinary array of this process lands; empty when nowhere.
    tlb_counter
        ``available``, or ``unavailable: `` and why.
    notes
        What else a user of this host should know.
    exit_status
        0 if some rung proved 100 % huge, else 4.
    """

    machine: str
    host: Host
    rungs: tuple[RungFinding, ...]
    default_rung: str
    tlb_counter: str
    notes: tuple[str, ...]
    exit_status: int


def to_json(diagnosis: Diagnosis) -> str:
    """The whole diagnosis as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(diagnosis), indent=2).decode()


def render(diagnosis: Diagnosis, stream: TextIO) -> None:
    """Write the diagnosis for a reader: with colours to a terminal, else as plain text."""
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        _render_rich(diagnosis, stream)
    else:
        stream.write(_plain(diagnosis))


def _headline(diagnosis: Diagnosis) -> str:
    if not diagnosis.default_rung:
        return "no array can be made here"
    default = next(one for one in diagnosis.rungs if one.rung == diagnosis.default_rung)
    if default.outcome == "huge":
        return f"huge pages: yes, arrays go to {default.rung}"
    if diagnosis.exit_status == 0:
        return f"huge pages: on request only, arrays go to {default.rung}"
    return f"huge pages: NO, arrays go to {default.rung}"


def _result(one: RungFinding) -> str:
    if one.outcome == "refused":
        return "refused"
    share = 100 * one.huge_bytes / one.length if one.length else 0.0
    return f"{share:.4g} % huge, {page_size_name(one.page_size)} pages"


def _rows(diagnosis: Diagnosis) -> list[tuple[str, str, str, str]]:
    return [
        (one.rung, _result(one), format_bytes(one.room_bytes), one.reason)
        for one in diagnosis.rungs
    ]


def _facts(diagnosis: Diagnosis) -> list[str]:
    host = diagnosis.host
    facts = [
        f"kernel: {host.kernel_release} {diagnosis.machine}, "
        f"transparent huge pages {host.thp_enabled or 'absent'}, "
        f"shared memory {host.shmem_enabled or 'absent'}"
    ]
    facts += [
        f"pool of {page_size_name(pool.page_size)} pages: {pool.total_pages} in all, "
        f"{pool.available_pages} to be had"
        for pool in host.pools
    ]
    facts += [
        f"hugetlbfs {mount.path}: {page_size_name(mount.page_size)} pages, "
        f"{'writable' if mount.writable else 'not writable by us'}"
        for mount in host.hugetlbfs_mounts
    ]
    facts += [
        f"tmpfs {mount.path}: huge={mount.huge}, {format_bytes(mount.available_bytes)} free"
        for mount in tmpfs_places(host)
    ]
    facts.append(f"memory free: {format_bytes(host.memory_headroom_bytes)}")
    facts.append(f"TLB miss counter: {diagnosis.tlb_counter}")
    return facts


def _plain(diagnosis: Diagnosis) -> str:
    rows = [("RUNG", "RESULT", "ROOM", "REASON"), *_rows(diagnosis)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [_headline(diagnosis), ""]
    for *cells, reason in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, reason]).rstrip())
    for one in diagnosis.rungs:
        if one.commands:
            lines += ["", f"for {one.rung}, as root:", *(f"  {line}" for line in one.commands)]
    lines += ["", *_facts(diagnosis)]
    lines += [f"note: {note}" for note in diagnosis.notes]
    return "\n".join(lines) + "\n"


def _render_rich(diagnosis: Diagnosis, stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"huge": "green", "partly": "yellow", "small": "yellow", "refused": "red"}
    console = Console(file=stream, highlight=False)
    headline_colour = "bold green" if diagnosis.exit_status == 0 else "bold red"
    console.print(Text(_headline(diagnosis), headline_colour))
    table = Table(box=None, pad_edge=False)
    for title in ("rung", "result", "room", "reason"):
        table.add_column(title, overflow="fold")
    for one, (rung, result, room, reason) in zip(diagnosis.rungs, _rows(diagnosis), strict=True):
        table.add_row(rung, Text(result, colours[one.outcome]), room, Text(reason))
    console.print(table)
    for one in diagnosis.rungs:
        if one.commands:
            console.print(Text(f"\nfor {one.rung}, as root:"))
            for command in one.commands:
                # A wrapped command could not be copied.
                console.print(Text(f"  {command}", "cyan"), soft_wrap=True)
    console.print()
    for fact in _facts(diagnosis):
        console.print(Text(fact), soft_wrap=True)
    for note in diagnosis.notes:
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)
