"""A thread that looks, for others that show: whoever is slow misses pictures, and delays none."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

from msgspec.structs import replace

from hugepool.live.picture import Picture
from hugepool.live.watcher import Watcher
from hugepool_common.printable import printable

INTERVAL_S = 0.5

_END_S = 3.0


class Feed:
    """The newest picture, kept up to date by a thread of its own while somebody wants it.

    Parameters
    ----------
    watcher
        Used by that thread alone from here on; closed with the feed.
    interval_s
        Seconds between looks.
    first
        A picture that was taken before.
    wanted
        Whether `first` is the first one to be shown, and looks follow it; else there is
        nothing before somebody is a viewer.

    Attributes
    ----------
    number
        How many pictures there were that showed a change.

    Notes
    -----
    Safe for any number of threads. A context manager.
    """

    def __init__(
        self,
        watcher: Watcher,
        *,
        first: Picture,
        interval_s: float = INTERVAL_S,
        wanted: bool = True,
    ) -> None:
        self.number = int(wanted)
        self._watcher = watcher
        self._interval_s = interval_s
        self._picture = first
        self._viewers = int(wanted)
        self._ended = False
        self._changed = threading.Condition()
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="looking", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # A look lasts seconds at most, but for a coordinator that is stopped just when a
        # session is opened: that is not worth waiting for.
        self._thread.join(_END_S)
        if not self._thread.is_alive():
            os.close(self._news)

    def newest(self) -> Picture:
        """The newest picture."""
        with self._changed:
            return self._picture

    def wait(self, known: int, timeout_s: float) -> tuple[int, Picture] | None:
        """Wait for a picture that shows a change.

        Parameters
        ----------
        known
            Number of the one that the caller has; 0 for none.

        Returns
        -------
        tuple of int and Picture, or None
            Its number and itself; None if the time is over, or the feed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.number > known or self._ended, timeout_s)
            return (self.number, self._picture) if self.number > known else None

    def join(self) -> None:
        """Become a viewer: there are pictures from now on."""
        with self._changed:
            self._viewers += 1
            self._changed.notify_all()

    def leave(self) -> None:
        """Be a viewer no more."""
        with self._changed:
            self._viewers -= 1

    @property
    def viewers(self) -> int:
        """How many there are."""
        return self._viewers

    @property
    def ended(self) -> bool:
        """Whether there will be no more pictures."""
        return self._ended

    def fileno(self) -> int:
        """Readable when there is a new picture, until :meth:`acknowledge`."""
        return self._news

    def acknowledge(self) -> None:
        """Note that the newest picture was seen."""
        try:
            os.eventfd_read(self._news)
        except BlockingIOError:
            pass

    def _run(self) -> None:
        if self._viewers:
            self._pause(self._interval_s)
        while True:
            if not self._viewers:
                self._rest()  # nobody looks: leave the coordinator alone
            with self._changed:
                self._changed.wait_for(lambda: self._viewers or self._ended)
                if self._ended:
                    break
            began = time.monotonic()
            picture = self._look()
            with self._changed:
                if not (self.number and picture.same_as(self._picture)):
                    self.number += 1
                self._picture = picture
                os.eventfd_write(self._news, 1)
                self._changed.notify_all()
            self._pause(self._interval_s - (time.monotonic() - began))
        self._rest()

    def _look(self) -> Picture:
        """A picture; of a look that failed, the last one with what went wrong."""
        try:
            return self._watcher.look()
        except Exception as error:  # else this thread would end, and others wait for ever
            self._rest()
            said = printable(f"looking failed: {type(error).__name__}: {error}")
            return replace(self._picture, taken=time.time(), state="silent", said=said)

    def _rest(self) -> None:
        """End the session until the next look."""
        with suppress(Exception):  # it is one of a coordinator that has ended, or the like
            self._watcher.close()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended, max(seconds, 0.01))
