"""Signals as a source of the loop."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType

SAME_GESTURE_NS = 200_000_000
"""Signals this close are one: ``timeout`` sends two, a terminal and its shell one each."""


class SignalInbox:
    """Signals as something to poll: their names can be read once they arrived.

    Parameters
    ----------
    numbers
        Which ones.
    spared
        Those of them that stay ignored where whoever started the process had them ignored:
        ``nohup`` does so with SIGHUP, a shell with the SIGINT of what it runs in the background.
    urgent
        Those of them that end the process at once when one of them came before.
    """

    def __init__(
        self,
        *numbers: signal.Signals,
        spared: Sequence[signal.Signals] = (),
        urgent: Sequence[signal.Signals] = (),
    ) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._numbers = tuple(
            number
            for number in numbers
            if number not in spared or signal.getsignal(number) is not signal.SIG_IGN
        )
        self._urgent = urgent
        self._asked_ns: int | None = None
        for number in self._numbers:
            signal.signal(number, self._on_signal)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader.fileno()

    def read(self) -> list[str]:
        """Names of the signals that have come."""
        return [
            signal.Signals(number).name
            for number in self._reader.recv(64)
            if number in self._numbers
        ]

    def close(self) -> None:
        """Take no more: what comes now must not change the status that we end with."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._old_wakeup)
        self._reader.close()
        self._writer.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number not in self._urgent:
            return
        now_ns = time.monotonic_ns()
        if self._asked_ns is None:
            self._asked_ns = now_ns
        elif now_ns - self._asked_ns > SAME_GESTURE_NS:
            # As if killed: the next coordinator puts right what is left undone.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # the first process of a container outlives that
