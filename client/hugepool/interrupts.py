"""Ctrl-C, and other signals whose handlers raise, at the right moment."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

Handler = Callable[[int, FrameType | None], Any]

_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM),
    *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2),
)
"""Those that programs give handlers to: time-outs and orderly ends."""

_handlers: Any = sys.modules.get("_signal", signal)
"""CPython's own functions: the enums that ``signal`` puts around them cost more than all else
of a block, 35 us, and there are two blocks in every request."""


class Uninterrupted:
    """A block that no signal cuts in two: Python's handlers run when it ends.

    A message of several frames that is half sent, or a reply that is read and not yet
    noted, would leave a session that answers nothing any more. Only for blocks that
    wait for nothing that may take long.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._caught: list[tuple[int, FrameType | None]] = []
        self._over = False

    def __enter__(self) -> None:
        # Python runs handlers on the main thread alone, so no other is interrupted.
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _SIGNALS:
                    handler = _handlers.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        _handlers.signal(number, self._note)
            except BaseException:  # of the handler of one that was not yet ours
                self.__exit__()
                raise

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            self._handlers[number](number, frame)
        else:
            self._caught.append((number, frame))

    def __exit__(self, *_: object) -> None:
        # From here on any of them may raise, and leave those after it unset: so whatever
        # stays ours passes signals on.
        self._over = True
        try:
            self._restore()
        except BaseException:
            self._restore()
            raise
        finally:
            self._run_caught()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            _handlers.signal(number, handler)

    def _run_caught(self) -> None:
        if self._caught:
            number, frame = self._caught.pop(0)
            try:
                self._handlers[number](number, frame)
            finally:
                self._run_caught()  # one that raises must not swallow the others


@contextmanager
def orderly_end() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP leave as Ctrl-C does, so that what it changed is undone.

    The exit status is 128 and the signal's number. Signals that are ignored, or have a handler
    already, stay so, and all do where this is not the main thread.
    """
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
