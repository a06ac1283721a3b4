"""When this client stops using a session over TCP: before the coordinator may think that it has.

The coordinator ends such a session when it was not renewed for the length of its lease. What it
counts from is when it *hears* a renewal; we count from when we *sent* the last one that was
confirmed, which is earlier, and stop a tenth of the lease before it is over, for clocks that do
not run alike. So there is no moment at which we rely on what the coordinator has given to others.

A fence that was passed stays so, whatever arrives later: what had been refused must not work again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hugepool_common.errors import LeaseExpiredError

MARGIN = 10
"""The part of a lease that is left unused: one in so many."""

RENEWALS = 3
"""How often a lease is renewed while it lasts."""


def boottime_ns() -> int:
    """As CLOCK_MONOTONIC, but it goes on while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Fence:
    """How long a session may still be used. Without a lease, as local ones are, for ever.

    Parameters
    ----------
    now_ns
        The clock that it goes by. It must run on while the process, or the machine, does not.

    Notes
    -----
    Threads may share it.
    """

    def __init__(self, now_ns: Callable[[], int] = boottime_ns) -> None:
        self.now_ns = now_ns
        self._lease_ns = 0
        self._until_ns = 0
        self._over = False
        self._confirming = threading.RLock()

    def __repr__(self) -> str:
        if not self._lease_ns:
            return "<Fence: none>"
        return f"<Fence: {'passed' if self.over else f'in {self.left_s or 0:.1f} s'}>"

    @property
    def lease_ns(self) -> int:
        """Length of the lease; 0 for none."""
        return self._lease_ns

    @property
    def over(self) -> bool:
        """Whether the session may be used no more."""
        if self._lease_ns and not self._over and self.now_ns() >= self._until_ns:
            self._over = True
        return self._over

    @property
    def left_s(self) -> float | None:
        """Seconds until it is over, unless it is confirmed meanwhile; None without end."""
        if not self._lease_ns:
            return None
        return max(0.0, (self._until_ns - self.now_ns()) / 1e9)

    @property
    def renewal_s(self) -> float:
        """Seconds between two renewals."""
        return self._lease_ns / RENEWALS / 1e9

    def begin(self, lease_ns: int, sent_ns: int) -> None:
        """The session began with a request that was sent at `sent_ns`."""
        self._lease_ns = lease_ns
        self._until_ns = sent_ns + lease_ns - lease_ns // MARGIN

    def confirm(self, sent_ns: int) -> None:
        """The coordinator answered what was sent at `sent_ns`, and keeps the session on."""
        until_ns = sent_ns + self._lease_ns - self._lease_ns // MARGIN
        with self._confirming:  # or an older one could overwrite what a newer one just set
            if not self.over and until_ns > self._until_ns:
                self._until_ns = until_ns

    def end(self) -> None:
        """The coordinator said that the session is over."""
        self._over = True

    def check(self) -> None:
        """Refuse to use what may not be ours any more.

        Raises
        ------
        LeaseExpiredError
            The session is over, or may be.
        """
        if self._lease_ns and self.over:
            raise LeaseExpiredError(
                "the session over TCP is over: the coordinator was not heard in time",
                needed=f"an answer every {self._lease_ns / 1e9:g} s, less a tenth",
                remedy="call hugepool.connect() again; leases, and what was not sealed, are given "
                "up, but arrays that were taken out of handles before can still be read",
            )
