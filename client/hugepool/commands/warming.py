"""``hugepool warm``: pages brought in, and how they are mapped, proved."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from hugepool.channel import Channel
from hugepool.commands.arguments import (
    EXIT_FAILURE,
    address_option,
    all_arrays,
    json_option,
    names_argument,
    opened,
)
from hugepool.commands.tables import Column, count, print_json, print_table, share, size, warn
from hugepool.lease import Lease
from hugepool.progress import Waiting
from hugepool_common.errors import ArrayNotFoundError, HugepoolError
from hugepool_common.mapping import Mapping
from hugepool_common.messages import Attach, Attached
from hugepool_common.spec import check_name


@click.command("warm")
@names_argument(required=False)
@address_option
@json_option
def warm_command(names: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Map arrays here, bring in every page, and show how many bytes are huge.

    All of them, unless some are named. What was swapped out is in memory afterwards. Page
    tables belong to a process: others populate their own when they attach. Exit
    status 1 if one could not be mapped, or is not there.

    \b
    Example:
      hugepool warm x
    """
    wanted = [check_name(name) for name in dict.fromkeys(names)]
    with opened(address) as channel:
        if not names:
            wanted = [info.spec.name for info in all_arrays(channel) if not info.lost]
        found = [_warmed(channel, name) for name in wanted]
    findings = [finding for finding in found if finding is not None]
    if as_json:
        print_json(findings)
    elif findings or not names:
        columns = (
            *(Column("name"), size("bytes"), Column("backing"), size("huge bytes")),
            *(share("huge %"), count("ms"), Column("result")),
        )
        print_table(columns, [_row(finding) for finding in findings])
    if not all(finding is not None and finding["ok"] for finding in found):
        sys.exit(EXIT_FAILURE)


def _warmed(channel: Channel, name: str) -> dict[str, Any] | None:
    """What was found; None of a name that is not there, which is told here."""
    started_ns = time.monotonic_ns()
    try:
        attached = channel.request(Attach(name), Attached)
        lease = Lease(channel, attached.lease)
        segment = attached.array.segment
        try:
            channel.check_owner(segment)
            with Waiting(f"mapping {name}"), Mapping.open(segment) as mapping:
                pages = mapping.report(
                    segment.backing, segment.page_size, attached.array.pages.reasons
                )
        finally:
            lease.release()
    except ArrayNotFoundError as error:
        warn(str(error))
        return None
    except HugepoolError as error:
        return {"name": name, "ok": False, "error": str(error)}
    return {
        "name": name,
        "ok": True,
        "backing": pages.backing,
        "page_size": pages.page_size,
        "length": pages.length,
        "huge_bytes": pages.huge_bytes,
        "present_bytes": pages.present_bytes,
        "method": pages.method,
        "wall_ns": time.monotonic_ns() - started_ns,
    }


def _row(finding: dict[str, Any]) -> tuple[Any, ...]:
    if not finding["ok"]:
        return (finding["name"], None, None, None, None, None, finding["error"])
    length, huge = finding["length"], finding["huge_bytes"]
    milliseconds = f"{finding['wall_ns'] / 1e6:.1f}"
    fraction = huge / length if length else 0.0
    return (finding["name"], length, finding["backing"], huge, fraction, milliseconds, "ok")
