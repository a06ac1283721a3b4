"""``hugepool top``: what goes on now."""

from __future__ import annotations

import os
import sys
import time

import click
import msgspec

from hugepool.address import local_address
from hugepool.commands.arguments import address_option, json_option
from hugepool.commands.tables import print_json
from hugepool.live.feed import INTERVAL_S, Feed
from hugepool.live.picture import Picture
from hugepool.live.selection import SORTS, selected
from hugepool.live.watcher import Watcher
from hugepool_common.errors import CoordinatorUnreachableError


@click.command("top")
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="bytes",
    show_default=True,
    help="Which arrays come first: the largest, by name, the least huge, most read, newest.",
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--filter", "pattern", default="", metavar="GLOB", help="Only arrays of such names.")
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=INTERVAL_S,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@click.option(
    "--http",
    metavar="[HOST:]PORT",
    help="Serve a page with the same picture instead. Default host: 127.0.0.1.",
)
@click.option("--follow-stdin", is_flag=True, hidden=True, help="Address comes; end with it.")
@address_option
@json_option
def top_command(
    sort: str,
    reverse: bool,
    pattern: str,
    once: bool,
    interval: float,
    http: str | None,
    follow_stdin: bool,
    address: str | None,
    as_json: bool,
) -> None:
    """Show arrays, workers, jobs, pools and mounts as they are now, again and again.

    Keys: s sorts by something else, r reverses, / filters names, p pauses, arrows scroll,
    q quits. HUGE % is what the maker of an array proved. GB/S and DTLB/EL (misses of the
    dTLB per element) are of a worker's newest run; steps of a crew report none.

    With --json a line for every change, with --once one document. Where stdout is no
    terminal, or a dumb one, a picture is printed once, 80 columns wide. The coordinator
    may be restarted meanwhile: that is shown.

    \b
    Examples:
      hugepool top --sort readers
      hugepool top --once --filter 'weights*'
      hugepool top --http 8377
    """
    if http is not None:
        from hugepool.live.page_server import serve_page

        serve_page(http, address, interval_s=interval, follow_stdin=follow_stdin)
        return
    watcher = Watcher(local_address(address))
    first = _looked(watcher)
    if once or not (as_json or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")):
        time.sleep(min(interval, INTERVAL_S))  # rates are between two looks
        first = _looked(watcher)
        watcher.close()
        _print_once(first, sort, reverse, pattern, as_json)
        return
    with Feed(watcher, first=first, interval_s=interval) as feed:
        if as_json:
            _print_changes(feed, sort, reverse, pattern)
        else:
            from hugepool.live.screen import View
            from hugepool.live.terminal import watch

            watch(feed, View(sort, reverse, pattern))


def _looked(watcher: Watcher) -> Picture:
    """A picture of a coordinator that answers.

    Raises
    ------
    CoordinatorUnreachableError
        It does not.
    """
    picture = watcher.look()
    if picture.state != "running":
        raise CoordinatorUnreachableError(picture.said)
    return picture


def _print_once(picture: Picture, sort: str, reverse: bool, pattern: str, as_json: bool) -> None:
    if as_json:
        print_json(_chosen(picture, sort, reverse, pattern))
        return
    from rich.console import Console

    from hugepool.live.screen import View, screen

    # Without colours, bold is left out too: NO_COLOR asks for no codes at all.
    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto")
    console.print(screen(picture, View(sort, reverse, pattern), width=console.width))


def _print_changes(feed: Feed, sort: str, reverse: bool, pattern: str) -> None:
    known = 0
    while not feed.ended:
        news = feed.wait(known, 60.0)
        if news is not None:
            known, picture = news
            told = msgspec.json.encode(_chosen(picture, sort, reverse, pattern))
            sys.stdout.write(told.decode() + "\n")
            sys.stdout.flush()


def _chosen(picture: Picture, sort: str, reverse: bool, pattern: str) -> Picture:
    arrays = selected(picture.arrays, sort=sort, reverse=reverse, pattern=pattern)
    return msgspec.structs.replace(picture, arrays=tuple(arrays))
