"""Which of a channel's threads is at its socket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Container
from contextlib import suppress

from hugepool.calls import Call
from hugepool.interrupts import Uninterrupted


class Place:
    """At most one thread has it, for as long as it likes; it waits so that others can wake it.

    Attributes
    ----------
    wake_fd
        Becomes readable when the thread that has the place is to look around.
    news
        Changes whenever there may be something for other threads than the one at the socket.

    Notes
    -----
    Taken by its own thread again the place is *nested*: by a signal's handler, or by what a
    request calls back. It is left when the outermost taker leaves it.
    """

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.news = 0
        # Entered by itself, for the condition's own way in and out can be cut in two by Ctrl-C.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._descriptor = threading.RLock()
        self._holder = 0
        self._wanting = 0
        self._following = 0
        self._woken = False
        self._kept = False
        """Whether who has it waits nested, and so gives it to nobody, however often it is woken."""

    @property
    def mine(self) -> bool:
        """Whether this thread has it."""
        return self._holder == threading.get_ident()

    @property
    def taken_by_another(self) -> bool:
        """Whether another thread has it."""
        return self._holder not in (0, threading.get_ident())

    def enter(self, call: Call | None = None) -> bool:
        """Take the place, from whoever has it; True where it is nested.

        Raises
        ------
        TakenBack
            `call` was taken back meanwhile.
        """
        me = threading.get_ident()
        if self._holder == me:
            return True
        with self._lock:
            self._wanting += 1
            try:
                while self._holder:
                    if not self._kept:  # else leave() has us look again
                        self.wake()
                    self._await_change(None)
                    if call is not None:
                        call.check()
                self._holder = me
            finally:
                self._wanting -= 1
                if not self._holder:  # it was interrupted; others had made way for it
                    self._changed.notify_all()
        return False

    def come_back(self) -> None:
        """Take the place again, to tidy up: Ctrl-C waits for that."""
        if self._holder != threading.get_ident():
            with Uninterrupted():  # others make way at once
                self.enter()

    def come(self, nested: bool, seen: int, deadline: float | None) -> bool:
        """Take the place if nobody has it or wants it; else wait for news, and say False.

        Parameters
        ----------
        nested
            As :meth:`enter` said.
        seen
            What :attr:`news` was before it was looked whether there is something to wait for.
        deadline
            Of the clock ``time.monotonic``.
        """
        me = threading.get_ident()
        if nested:
            self._kept = True
            return True
        if self._holder == me and not self._wanting:
            return True
        with self._lock:
            if self._holder == me:
                self._changed.notify_all()
                self._holder = 0
            elif not self._holder and not self._wanting:
                self._holder = me
                return True
            self._following += 1  # before the comparison: see tell()
            try:
                if self.news == seen:
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    self._await_change(left)
            finally:
                self._following -= 1
        return False

    def _await_change(self, timeout_s: float | None) -> None:
        try:
            self._changed.wait(timeout_s)
        except BaseException:
            # Ctrl-C may come when the condition has given up the lock and does not wait yet: then
            # it does not take it back, and who leaves the block would find that it has none.
            with suppress(RuntimeError):
                self._lock.release()
            self._lock.acquire()
            raise

    def leave(self, nested: bool) -> None:
        """Let others have it, unless it is nested or was left already.

        Ctrl-C may cut it in two, or even off as it begins: then it is to be called again.
        """
        if self._holder != threading.get_ident() or (nested and not self._kept):
            return
        with self._lock:
            if self._following or self._wanting:
                self._changed.notify_all()
            # Last: what was not told by then is told when it is called again.
            self._kept = False
            if not nested:
                self._holder = 0

    def tell(self) -> None:
        """There is something for another thread, perhaps. For who has the place."""
        self.news += 1  # before it is looked who waits: see come()
        if self._following or self._wanting:
            with self._lock:
                self._changed.notify_all()

    def wake(self) -> None:
        """Have the thread that has the place look around. Waits for nobody."""
        with self._descriptor:
            if self.wake_fd >= 0:
                os.eventfd_write(self.wake_fd, 1)
                # After the write: who reads in between may not leave it readable and not know.
                self._woken = True

    def was_woken(self, ready: Container[object] = ()) -> None:
        """Look around after a wait. For who has the place."""
        if not self._woken and self.wake_fd not in ready:
            return
        self._woken = False
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            pass  # read between the write and the note of it
        self.tell()

    def close(self) -> None:
        """Close the descriptor; whoever waits sees that the channel is closed."""
        with self._descriptor:
            if self.wake_fd >= 0:
                os.close(self.wake_fd)
                self.wake_fd = -1
        self.tell()
