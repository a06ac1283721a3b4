"""Waiting for the coordinator that follows one that ended, and going on with it."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from hugepool.interrupts import Uninterrupted
from hugepool.ledger import Ledger
from hugepool.link import LinkEnded
from hugepool.listener import START_REMEDY, probe
from hugepool.progress import Waiting
from hugepool.reunion import Absence
from hugepool.session import Session
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    LeaseExpiredError,
    RequestTimeoutError,
)

_PROBE_MS = 30
"""How often an absent coordinator is looked for."""


class Succession:
    """From one coordinator to the next. Not locked, as :class:`~hugepool.ledger.Ledger`.

    Parameters
    ----------
    session
        What is taken up again.
    ledger
        What is told and asked there.
    patience_s
        How long nobody may be there.

    Attributes
    ----------
    count
        How often it succeeded.
    """

    def __init__(self, session: Session, ledger: Ledger, patience_s: float) -> None:
        self.count = 0
        self._session = session
        self._ledger = ledger
        self._patience_s = patience_s
        self._absence: Absence | None = None
        self._era = ledger.holdings.era

    def follow(
        self, deadline: float | None, watch: Sequence[int] = (), *, silent: bool = False
    ) -> None:
        """Wait for the coordinator that follows the one that ended, and go on with it.

        Returns without having done so if a watched descriptor is readable.

        Parameters
        ----------
        deadline
            Of the clock ``time.monotonic``.
        watch
            Descriptors.
        silent
            Whether nobody at a terminal is to be told.

        Raises
        ------
        CoordinatorUnreachableError
            There is none, or ours was one that nothing outlives.
        LeaseExpiredError
            The session was one over TCP, and is over.
        RequestTimeoutError
            There was none by the caller's own deadline.
        """
        self._hear_out()
        self._session.leave()
        address, durable = self._session.address, self._session.welcome.durable
        if self._absence is None:
            self._absence = Absence(
                self._patience_s if durable else 0.0, in_order=self._ledger.stopping
            )
        watcher = select.poll()
        for fd in watch:
            watcher.register(fd, select.POLLIN)
        # Over TCP a link that was lost and a coordinator that ended look alike.
        far = self._session.coordinator_uid is None
        ended = "the coordinator is out of reach" if far else "the coordinator ended"
        shown = Waiting(f"{ended}; waiting for {'it' if far else 'the next one'}")
        with nullcontext() if silent else shown:
            while not (durable and self._taken_up()):
                self._session.fence.check()
                if self._absence.over:
                    raise CoordinatorUnreachableError(ended, where=address, remedy=START_REMEDY)
                if deadline is not None and time.monotonic() > deadline:
                    raise too_late(address)
                if watcher.poll(_PROBE_MS):
                    return
        self._absence = None

    def follow_if_there(self) -> None:
        """Go on with the coordinator that follows the one that ended, if it is there already.

        Else, and whatever keeps us from it, the next request does it, and is told.
        """
        self._hear_out()
        self._session.leave()
        if self._session.welcome.durable:
            with suppress(HugepoolError):
                if self._taken_up():
                    self._absence = None

    def _hear_out(self) -> None:
        """Take in what the coordinator said before it ended."""
        try:
            while self._session.receive(time.monotonic()) is not None:
                pass
        except LinkEnded:
            pass

    def _taken_up(self) -> bool:
        """Take the session up with whoever listens now; False if nobody does, or not for long."""
        try:
            listener = probe(self._session.address)
        except CoordinatorUnreachableError:
            return False
        # Interrupted half-way, this would leave the coordinator with a session that we
        # do not know of. It answers soon: what it found was looked through before it listened.
        with Uninterrupted():
            try:
                self._ledger.settle_abandoned()
                self._session.take_up(listener, self._ledger.holdings)
                if self._ledger.holdings.era != self._era:  # also since one that ended half-way
                    self._ledger.forget_segments()
                    self._era = self._ledger.holdings.era
                self.send_abandoned()  # first, for the same names may be asked for again
                for number, request in self._ledger.ask_again():
                    self._session.send(number, request)
            except LeaseExpiredError:
                self._session.leave()
                raise
            except (LinkEnded, CoordinatorUnreachableError, RequestTimeoutError):
                self._session.leave()
                return False
            except BaseException:
                self._session.leave()
                raise
            self._ledger.begin_anew()
            self.count += 1
        return True

    def send_abandoned(self) -> None:
        """Send what was abandoned to the coordinator of the moment.

        Raises
        ------
        LinkEnded
            It is known to have ended.
        """
        while (message := self._ledger.next_abandoned()) is not None:
            number = self._session.next_number()
            self._session.send(number, message)
            self._ledger.sent_abandoned(number, message)


def too_late(address: str) -> RequestTimeoutError:
    """The error of a reply that did not come in the time that a caller gave."""
    return RequestTimeoutError("the coordinator did not answer in time", where=address)
