"""A lease: the coordinator's promise to keep a segment for this client."""

from __future__ import annotations

import weakref

from hugepool.channel import Channel
from hugepool.holdings import Claim
from hugepool_common.errors import CoordinatorUnreachableError, DetachedError


class Lease:
    """Held from attach to :meth:`release`; a forgotten one is given back when collected.

    Parameters
    ----------
    channel
        The session that it belongs to.
    number
        As the coordinator granted it.
    """

    def __init__(self, channel: Channel, number: int) -> None:
        self.number = number
        self._channel = channel
        self._claim = channel.claim(number)
        self._finalizer = weakref.finalize(self, channel.release_later, self._claim)
        self._finalizer.atexit = False  # the session's end gives everything back

    @property
    def claim(self) -> Claim:
        """What stands behind it."""
        return self._claim

    @property
    def held(self) -> bool:
        """Whether the lease was not released yet."""
        return self._finalizer.alive

    @property
    def lost(self) -> bool:
        """Whether the coordinator was restarted and what this is a lease on was gone then."""
        return self._claim.lost

    def release(self) -> None:
        """Give the lease back; again, after the coordinator's end, or in a fork, does nothing."""
        if self._finalizer.detach() is None or self._channel.closed or self._channel.inherited:
            return
        try:
            self._channel.release(self._claim)
        except (CoordinatorUnreachableError, DetachedError):
            pass  # DetachedError: another thread closes the session, which gives everything back
