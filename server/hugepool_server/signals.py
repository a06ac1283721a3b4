"""Signals as a source of the loop."""

from __future__ import annotations

import signal
import socket


class SignalInbox:
    """Signals as something to poll: their names can be read once they arrived."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._numbers = numbers
        for number in numbers:
            signal.signal(number, lambda *_: None)

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
