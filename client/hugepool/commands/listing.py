"""``hugepool ls``, ``stat`` and ``readers``: what there is, and who has it."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import Any

import click
import msgspec

from hugepool.channel import Channel
from hugepool.commands.arguments import (
    address_option,
    all_arrays,
    complete_names,
    json_option,
    name_argument,
    opened,
)
from hugepool.commands.tables import (
    Column,
    count,
    percent,
    print_fields,
    print_json,
    print_table,
    shape_text,
    share,
    size,
    sized,
)
from hugepool_common.errors import ArrayNotFoundError
from hugepool_common.messages import NOBODY, ArrayInfo, Describe, Described, Holder
from hugepool_common.spec import check_name
from hugepool_common.units import page_size_name

_COLUMNS = (
    *(Column("name"), Column("kind"), Column("dtype"), Column("shape")),
    *(size("bytes"), Column("backing"), share("huge %"), count("readers"), count("generation")),
    Column("state"),
)


def state_of(info: ArrayInfo) -> str:
    """``lost``, ``sealed`` or ``open``."""
    if info.lost:
        return "lost"
    return "sealed" if info.sealed else "open"


def told(info: ArrayInfo) -> dict[str, Any]:
    """An object as ``--json`` tells it, by the names of the fields in the library."""
    spec, pages = info.spec, info.pages
    return {
        "name": spec.name,
        "kind": spec.kind,
        "dtype": spec.dtype,
        "shape": spec.shape,
        "nnz": spec.nnz,
        "nbytes": spec.nbytes,
        "length": info.segment.length,
        "backing": info.segment.backing,
        "page_size": info.segment.page_size,
        "huge_bytes": pages.huge_bytes,
        "readers": info.readers,
        "generation": info.generation,
        "state": state_of(info),
        "sealed": info.sealed,
        "lost": info.lost,
        "checksum": info.checksum,
        "creator_pid": info.creator_pid,
        "creator_uid": info.creator_uid,
        "created_ns": info.created_ns,
    }


@click.command("ls")
@click.argument("pattern", required=False, shell_complete=complete_names)
@address_option
@json_option
def ls_command(pattern: str | None, address: str | None, as_json: bool) -> None:
    """List arrays, matrices and plans: all, or those whose names match PATTERN.

    PATTERN has * ? [...] as in a shell; quote it. "huge %" is what the creator
    proved when the array was made. Sizes are bytes of payload.

    \b
    Examples:
      hugepool ls
      hugepool ls 'weights*' --json
    """
    with opened(address) as channel:
        arrays = all_arrays(channel)
    if pattern is not None:
        arrays = [info for info in arrays if fnmatchcase(info.spec.name, pattern)]
        if not arrays:
            raise ArrayNotFoundError(
                "no array has such a name", where=pattern, remedy="see all names with: hugepool ls"
            )
    if as_json:
        print_json([told(info) for info in arrays])
    else:
        print_table(_COLUMNS, [_row(info) for info in arrays], narrow=True)


def _row(info: ArrayInfo) -> tuple[Any, ...]:
    return (
        info.spec.name,
        info.spec.kind,
        info.spec.dtype,
        shape_text(info.spec.shape),
        info.spec.nbytes,
        info.segment.backing,
        info.pages.huge_fraction,
        info.readers,
        info.generation,
        state_of(info),
    )


@click.command("stat")
@name_argument
@address_option
@json_option
def stat_command(name: str, address: str | None, as_json: bool) -> None:
    """Show everything known of one array, matrix or plan.

    \b
    Example:
      hugepool stat x
    """
    with opened(address) as channel:
        described = channel.request(Describe(check_name(name)), Described)
    info = described.array
    facts = told(info) | {
        "index_dtype": info.spec.index_dtype,
        "made_of": info.spec.made_of,
        "members": info.spec.members,
        "segment_id": info.segment.segment_id,
        "path": info.segment.path,
        "present_bytes": info.pages.present_bytes,
        "method": info.pages.method,
        "reasons": info.pages.reasons,
        "reader_pids": described.reader_pids,
    }
    if as_json:
        print_json(facts)
    else:
        print_fields([(key, _told(key, value), _shown(key, facts)) for key, value in facts.items()])


def _told(key: str, value: Any) -> Any:
    """A value of ``stat`` as a program reads it."""
    if key == "shape":
        return shape_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        if value and isinstance(value[0], msgspec.Struct):
            return msgspec.json.encode(value).decode()
        return " ".join(map(str, value))
    return value


def _shown(key: str, facts: dict[str, Any]) -> str:
    """The same for a reader."""
    value = facts[key]
    match key:
        case "nbytes" | "length" | "present_bytes":
            return f"{sized(value)} ({value} bytes)"
        case "huge_bytes":
            fraction = value / facts["length"] if facts["length"] else 0.0
            return f"{sized(value)}, {percent(fraction)} %"
        case "page_size":
            return page_size_name(value)
        case "created_ns":
            return f"{elapsed(time.monotonic_ns() - value)} ago"
        case "reasons":
            return "; ".join(map(str, value))
        case "members":
            return ", ".join(f"{one.role} {one.count} {one.dtype}" for one in value)
    return str(_told(key, value))


def elapsed(duration_ns: int) -> str:
    """A duration in its two largest units."""
    seconds = max(duration_ns, 0) // 10**9
    for unit, lesser, letters in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if seconds >= unit:
            return f"{seconds // unit} {letters[0]} {seconds % unit // lesser} {letters[1]}"
    return f"{seconds} s"


@click.command("readers")
@name_argument
@address_option
@json_option
def readers_command(name: str, address: str | None, as_json: bool) -> None:
    """Show which processes have an array: one line for each lease.

    \b
    Example:
      hugepool readers x
    """
    with opened(address) as channel:
        holders = _holders(channel, check_name(name))
    facts = [
        msgspec.structs.asdict(one)
        | {
            "command": "over TCP" if one.uid == NOBODY else command_of(one.pid),
            "writable": not one.readonly,
        }
        for one in holders
    ]
    if as_json:
        print_json(facts)
        return
    columns = (
        *(count("pid"), count("uid"), Column("command"), Column("client")),
        *(Column("access"), Column("rows"), count("lease")),
    )
    print_table(
        columns,
        [
            (
                fact["pid"],
                fact["uid"],
                fact["command"],
                fact["client"],
                "write" if fact["writable"] else "read",
                "{}:{}".format(*fact["rows"]) if fact["rows"] else "",
                fact["lease"],
            )
            for fact in facts
        ],
    )


def _holders(channel: Channel, name: str) -> list[Holder]:
    found: list[Holder] = []
    while True:
        after = found[-1].lease if found else 0
        described = channel.request(Describe(name, after), Described)
        found += described.holders
        if not described.more:
            return found


def command_of(pid: int) -> str:
    """What runs in a process of this machine; empty if it cannot be seen from here."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
