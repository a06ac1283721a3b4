"""What commands have in common: where the coordinator is, and names that complete live."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from hugepool.address import local_address
from hugepool.channel import Channel
from hugepool_common.messages import ArrayInfo, List, Listed
from hugepool_common.spec import HugePages, PageSize

EXIT_FAILURE = 1
EXIT_NOT_ENOUGH_PAGES = 4

COMPLETION_S = 2.0
"""A shell that waits for names is told that there are none after so long."""

_F = TypeVar("_F", bound=Callable[..., Any])

address_option = click.option(
    "--address",
    metavar="ADDRESS",
    help="Coordinator. Default: $HUGEPOOL_ADDRESS, else the local one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def page_options(command: _F) -> _F:
    """The options that say on which pages an array is made."""
    for option in (
        click.option(
            "--backing", metavar="RUNG", help="Exactly this rung, such as hugetlbfs-2m, or fail."
        ),
        click.option(
            "--page-size", type=click.Choice(["auto", "4K", "2M", "1G"]), help="Default: auto."
        ),
        click.option(
            "--huge-pages",
            type=click.Choice(["try", "on", "off"]),
            help="try falls to 4 KiB pages and says why, on fails instead. Default: try.",
        ),
    ):
        command = option(command)
    return command


def policy(
    huge_pages: HugePages | None, page_size: PageSize | None, backing: str | None
) -> dict[str, Any]:
    """What the options of :func:`page_options` said, as ``pool.create`` takes it."""
    chosen = {"huge_pages": huge_pages, "page_size": page_size, "backing": backing}
    return {name: value for name, value in chosen.items() if value is not None}


@contextmanager
def opened(address: str | None) -> Iterator[Channel]:
    """A session with a running coordinator, for one command."""
    channel = Channel(local_address(address), client="hugepool command")
    try:
        yield channel
    finally:
        channel.close()


def all_arrays(channel: Channel) -> list[ArrayInfo]:
    """All named objects, in order of their names."""
    found: list[ArrayInfo] = []
    while True:
        page = channel.request(List(found[-1].spec.name if found else ""), Listed)
        found += page.arrays
        if not page.more:
            return found


def complete_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names that the coordinator has now; none where it cannot be asked."""
    # A coordinator that is stopped would keep the shell waiting.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, COMPLETION_S)
    try:
        with opened(context.params.get("address")) as channel:
            arrays = all_arrays(channel)
    except Exception:
        return []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = context.params.get(parameter.name or "") or ()
    return [
        CompletionItem(info.spec.name)
        for info in arrays
        if info.spec.name.startswith(incomplete) and info.spec.name not in taken
    ]


def name_argument(command: _F) -> _F:
    """One name of an object that exists."""
    return click.argument("name", shell_complete=complete_names)(command)


def names_argument(*, required: bool) -> Callable[[_F], _F]:
    """Several names of objects that exist."""
    return click.argument(
        "names",
        nargs=-1,
        required=required,
        metavar="NAME..." if required else "[NAME]...",
        shell_complete=complete_names,
    )
