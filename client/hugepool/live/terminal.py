"""The picture on a terminal, until somebody presses q."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from hugepool.interrupts import orderly_end
from hugepool.live.feed import Feed
from hugepool.live.picture import Picture
from hugepool.live.screen import View, screen
from hugepool.live.selection import SORTS

_TICK_S = 0.2
"""How often a terminal is looked at for its size, and clocks move on."""

_PAGE_ROWS = 10
_ARROWS = {"\x1b[A": -1, "\x1b[B": 1, "\x1bOA": -1, "\x1bOB": 1, "k": -1, "j": 1}
_ARROWS |= {"\x1b[5~": -_PAGE_ROWS, "\x1b[6~": _PAGE_ROWS}
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~])")
"""What a key sends that is no character, whether it means anything here or not."""

_ESCAPE, _ENTER, _ERASE = "\x1b", ("\r", "\n"), ("\x7f", "\b")


def watch(feed: Feed, view: View) -> None:
    """Show the newest picture of a feed, and do what keys say, until the key q.

    Parameters
    ----------
    feed
        Started.
    view
        How to begin.
    """
    console = Console()
    with orderly_end(), _stop_requests() as requests:
        while not _watched(console, feed, view, requests):
            requests.clear()
            _stop()


def _watched(console: Console, feed: Feed, view: View, requests: list[int]) -> bool:
    """Show it until the key q (True), or until a stop is requested (False)."""
    shown: Picture = feed.newest()
    with (
        _single_keys() as keyboard,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        while not requests:
            if not view.paused:
                shown = feed.newest()
            width, height = console.size
            live.update(screen(shown, view, width=width, height=height), refresh=True)
            for key in _pressed(keyboard, feed):
                if key == "q" and not view.typing:
                    return True
                press(key, view)
    return False


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Ctrl-Z, noted instead of obeyed: the terminal is to be given back before."""
    requests: list[int] = []
    before = signal.signal(signal.SIGTSTP, lambda number, _: requests.append(number))
    try:
        yield requests
    finally:
        signal.signal(signal.SIGTSTP, before)


def _stop() -> None:
    """Stop, as Ctrl-Z asked for, until whoever asked has us go on."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        signal.raise_signal(signal.SIGTSTP)
    finally:
        signal.signal(signal.SIGTSTP, handler)


def press(key: str, view: View) -> None:
    """Do what a key says.

    Parameters
    ----------
    key
        A character, or the escape sequence of a key that has none.
    view
        Changed by it.
    """
    if view.typing:
        if key in _ENTER or key == _ESCAPE:
            view.typing = False
        if key == _ESCAPE:
            view.pattern = ""
        elif key in _ERASE:
            view.pattern = view.pattern[:-1]
        elif key.isprintable():
            view.pattern += key
        view.first = 0
    elif key == "s":
        view.sort = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
    elif key == "r":
        view.reverse = not view.reverse
    elif key == "p" or key == " ":
        view.paused = not view.paused
    elif key == "/":
        view.typing = True
    elif key == _ESCAPE:
        view.pattern = ""
    else:
        view.first = max(0, view.first + _ARROWS.get(key, 0))


@contextmanager
def _single_keys() -> Iterator[int]:
    """Keys as they are pressed, if stdin is a terminal; its descriptor, else -1."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield -1
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)  # Ctrl-C stays a signal
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _pressed(keyboard: int, feed: Feed) -> list[str]:
    """Wait for a picture, a key, or a tick; the keys."""
    sources = [feed.fileno()] + ([keyboard] if keyboard >= 0 else [])
    ready, _, _ = select.select(sources, [], [], _TICK_S)
    feed.acknowledge()
    if keyboard not in ready:
        return []
    typed = os.read(keyboard, 1024)
    if not typed:  # the terminal is gone
        return ["\x1b", "q"]
    return list(split_keys(codecs.decode(typed, "utf-8", "replace")))


def split_keys(typed: str) -> Iterator[str]:
    """What was typed, key by key: an escape sequence is one."""
    while typed:
        sequence = _SEQUENCE.match(typed)
        key = sequence[0] if sequence else typed[0]
        yield key
        typed = typed[len(key) :]
