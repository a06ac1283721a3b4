"""``hugepool plan``: how many pages so many bytes take, and what is free of them."""

from __future__ import annotations

from typing import Any

import click

from hugepool.commands.arguments import json_option
from hugepool.commands.tables import Column, count, print_json, print_table, size, sized, warn
from hugepool.remedies import set_pool
from hugepool_common.pages import Host, read_host
from hugepool_common.settings import export_mount, read_settings
from hugepool_common.units import GIB, MIB, page_size_name, parse_bytes, round_up


@click.command("plan")
@click.argument("sizes", nargs=-1, required=True, metavar="SIZE...")
@json_option
def plan_command(sizes: tuple[str, ...], as_json: bool) -> None:
    """Show how many pages arrays of these sizes take, and the command for those missing.

    One SIZE for each array, as 400MB, 2M or 5e7: each takes whole pages. "free" is
    what new arrays could have now; of 4K pages that is the memory left. No coordinator
    is asked, and nothing is changed: hugepool setup does that. What is more than the
    machine's memory has no command, and the reason is told on stderr.

    \b
    Examples:
      hugepool plan 400MB
      hugepool plan 4GB 4GB 100MB --json
    """
    nbytes = [parse_bytes(text) for text in sizes]
    export_mount(read_settings())
    rows = planned(nbytes, read_host())
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            reasons.setdefault(row["reason"], []).append(page_size_name(row["page_size"]))
    for reason, names in reasons.items():
        warn(f"{sized(sum(nbytes))} do not fit in {' or '.join(names)} pages: {reason}")
    if as_json:
        print_json(rows)
        return
    columns = (
        *(Column("pages of"), count("pages"), size("bytes"), count("free")),
        *(count("missing"), Column("as root")),
    )
    print_table(
        columns,
        [
            (
                page_size_name(row["page_size"]),
                row["pages"],
                row["length"],
                row["available_pages"],
                row["missing_pages"],
                row["command"],
            )
            for row in rows
        ],
    )


def planned(nbytes: list[int], host: Host) -> list[dict[str, Any]]:
    """What arrays of so many bytes take on each page size of the host.

    Parameters
    ----------
    nbytes
        Of every array.
    host
        The host as it is.
    """
    rows = []
    for page_size in (host.page_size, *(2 * MIB, GIB)):
        pages = sum(round_up(one, page_size) // page_size for one in nbytes)
        pool = host.pool(page_size)
        command = reason = ""
        if page_size == host.page_size:
            available = host.memory_headroom_bytes // page_size
            reason = host.past_all_memory(pages * page_size)
        elif pool is None:
            continue  # this kernel or processor has none
        else:
            available = pool.available_pages
            reason = host.pool_shortage(page_size, pages)
        missing = max(0, pages - available)
        if missing and pool is not None and not reason:
            command = set_pool(host, page_size, pool.total_pages + missing).command
        rows.append(
            {
                "page_size": page_size,
                "pages": pages,
                "length": pages * page_size,
                "available_pages": available,
                "missing_pages": missing,
                "command": command,
                "reason": reason,
            }
        )
    return rows
