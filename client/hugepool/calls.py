"""Calls that one thread makes for somebody in another, who may look at them and take them back."""

from __future__ import annotations

import threading


class TakenBack(BaseException):
    """Raised in the thread that makes a call, where that call was taken back.

    Like ``KeyboardInterrupt`` no error: what cleans up after any end of a call does so after
    this one, and what tries another way after an error does not.
    """


class Call:
    """How far one call is. The thread that makes it writes, others read.

    Attributes
    ----------
    parts_done, parts
        Of the jobs that it has submitted so far.
    """

    def __init__(self) -> None:
        self.parts_done = 0
        self.parts = 0
        self._taken_back = False
        self._heard = False

    @property
    def taken_back(self) -> bool:
        """Whether nobody wants it any more."""
        return self._taken_back

    def take_back(self) -> None:
        """Have the call end; see :meth:`hugepool.channel.Channel.take_back`."""
        self._taken_back = True

    def check(self) -> None:
        """End the call if it was taken back; once, for what cleans up asks things too.

        Raises
        ------
        TakenBack
            It was.
        """
        if self._taken_back and not self._heard:
            self._heard = True
            raise TakenBack


class Present(threading.local):
    """The call that a thread makes for another, if it does."""

    call: Call | None = None
