"""``hugepool status``: the coordinator on one screen."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from hugepool.commands.arguments import address_option, json_option, opened
from hugepool.commands.listing import elapsed
from hugepool.commands.tables import percent, print_fields, print_json, sized
from hugepool_common.messages import Counted, Stats


@click.command("status")
@address_option
@json_option
def status_command(address: str | None, as_json: bool) -> None:
    """Show the coordinator: what it holds, who works, what it has done.

    \b
    Exit status: 0 it runs, 3 it does not.

    \b
    Example:
      hugepool status
    """
    with opened(address) as channel:
        counted = channel.request(Stats(), Counted)
        where, durable = channel.address, channel.welcome.durable
    facts = {"address": where, "durable": durable, **msgspec.structs.asdict(counted)}
    del facts["timings"]
    if as_json:
        print_json(facts)
        return
    fields = [(key, len(value) if key == "workers" else value) for key, value in facts.items()]
    print_fields([(key, _plain(value), _shown(key, value, counted)) for key, value in fields])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return "; ".join(value)
    return str(value).lower() if isinstance(value, bool) else value


def _shown(key: str, value: Any, counted: Counted) -> str:
    match key:
        case "durable":
            return "yes: arrays outlive this process" if value else "no: arrays go with it"
        case "uptime_ns":
            return elapsed(value)
        case "nbytes" | "length":
            return sized(value)
        case "huge_bytes":
            fraction = value / counted.length if counted.length else 0.0
            return f"{sized(value)}, {percent(fraction)} % of all"
        case "quota_bytes" | "user_quota_bytes":
            return sized(value) if value else "none"
        case "tcp":
            return value or "none"
        case "troubles":
            return "; ".join(counted.troubles) or "none"
        case "workers":
            busy = sum(worker.busy for worker in counted.workers)
            return f"{value}, {busy} busy"
    return str(value)
