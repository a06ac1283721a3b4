"""Who takes part in a crew, as its leader sees it: seats given, watched and taken back."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from hugepool.crew_control import Participant, ProcessIdentity, kill
from hugepool.crew_watch import MemberWatch
from hugepool.kernels import crew_words as words
from hugepool_common.errors import JobFailedError

log = logging.getLogger("hugepool.crew")

KILL_TIMEOUT_S = 10.0
"""How long a killed process may take to be gone."""

STOPPED_NS = 100_000_000
"""How long a member may be stopped by a signal before it is killed."""

_BUSY_SHARE = 0.02
"""A member that used this share of a CPU is at work: its part is only long."""

_SHORT_SLEEP_S = 0.0002
_LONG_SLEEP_S = 0.005


@dataclass(frozen=True, slots=True)
class Loss:
    """A member that ended before its crew did.

    Parameters
    ----------
    seat
        From 1.
    pid
        Its process.
    reason
        Why it does not take part any more.
    """

    seat: int
    pid: int
    reason: str


@dataclass(slots=True)
class Seated:
    """A member as its leader sees it."""

    process: ProcessIdentity
    pidfd: int
    stopped_ns: int = 0
    """When it was first seen stopped; 0 if it is not."""
    killed_ns: int = 0
    """When we killed it; 0 if we did not."""
    reason: str = "its process ended"
    ended: bool = False
    """Whether nobody is to wait for it any more. Of this member, whoever has its seat next."""


class Patience:
    """How long has been waited for members that neither arrive nor compute."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: dict[int, tuple[float, float]] = {}

    def over(self, seat: int, process: ProcessIdentity) -> bool:
        """Whether it has been too long for this member; to be asked again and again."""
        now, cpu_s = time.monotonic(), process.cpu_s()
        began, cpu_before_s = self._since.setdefault(seat, (now, cpu_s))
        if now - began < self.limit_s:
            return False
        if cpu_s - cpu_before_s > _BUSY_SHARE * (now - began):
            self._since[seat] = (now, cpu_s)
            return False
        return True


class Roster:
    """The members of a crew.

    Parameters
    ----------
    leader
        The leader's side of the control block.
    patience_s
        Seconds without progress after which a member is taken for hung.

    Attributes
    ----------
    attention
        Whether something happened that the leader has to see to before its next order.
    losses
        Members that ended.
    """

    def __init__(self, leader: Participant, patience_s: float) -> None:
        self.attention = False
        self.losses: list[Loss] = []
        self.seated: dict[int, Seated] = {}
        self._me = leader
        self._block = leader.block
        self._patience_s = patience_s
        self._known: dict[int, int] = {}
        self._watch = MemberWatch(self._note_end, self._note_joiner)

    @property
    def vacant(self) -> list[int]:
        """Seats with nobody on them."""
        return [seat for seat in range(1, self._block.seats) if seat not in self.seated]

    def patience(self) -> Patience:
        """A new measure of waiting."""
        return Patience(self._patience_s)

    def close(self) -> None:
        """Watch nobody any more."""
        self._watch.stop()
        for seated in self.seated.values():
            os.close(seated.pidfd)
        self.seated.clear()
        del self._block

    def receive(self, seat: int) -> bool:
        """Give a seat to whoever joined there; False if it has ended already."""
        place = self._block.seat(seat)
        self._known[seat] = int(place[words.INCARNATION])
        process = self._block.sitting(seat)
        try:
            pidfd = process.open()
        except ProcessLookupError:
            return False
        seated = self.seated[seat] = Seated(process, pidfd)
        place[words.DONE] = self._me.epoch
        place[words.TICK] = 0
        place[words.FAILED_EPOCH] = 0
        place[words.SEATED_INCARNATION] = self._known[seat]
        place[words.SEATED] = self._me.epoch + 1
        self._watch.add(seated, pidfd)
        return True

    def passed(self, epoch: int, first: int) -> int:
        """How many phases everybody has finished, the dead too."""
        ticks = [int(self._block.seat(seat)[words.TICK]) for seat in (0, *self.seated)]
        return min(
            tick & words.MOST_PHASES if tick >> words.EPOCH_SHIFT == epoch else first
            for tick in ticks
        )

    def await_done(self, epoch: int, *, at_least_s: float = 0.0) -> None:
        """Wait until every member is through with an order, or has ended.

        Raises
        ------
        JobFailedError
            One of them hangs and cannot be ended.
        """
        waited = Patience(max(self._patience_s, at_least_s))
        pause_s = _SHORT_SLEEP_S
        while self._behind(words.DONE, epoch):
            self.look_after(waited, epoch, words.DONE)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONG_SLEEP_S)

    def _behind(self, word: int, value: int) -> list[int]:
        return [
            seat
            for seat, seated in self.seated.items()
            if not seated.ended and self._block.seat(seat)[word] < value
        ]

    def look_after(self, waited: Patience, value: int, word: int = words.TICK) -> None:
        """See why those are late who are; whoever will never come is ended for certain.

        Raises
        ------
        JobFailedError
            One of them cannot be ended.
        """
        for seat in self._behind(word, value):
            seated = self.seated[seat]
            if self._block.seat(seat)[words.STATE] == words.LEFT:
                self._note_end(seated, "it left")
            elif seated.killed_ns or waited.over(seat, seated.process):
                self._end_member(seat, f"no progress in {waited.limit_s:g} s")
            elif not seated.process.stopped():
                seated.stopped_ns = 0
            elif not seated.stopped_ns:
                seated.stopped_ns = time.monotonic_ns()
            elif time.monotonic_ns() - seated.stopped_ns > STOPPED_NS:
                self._end_member(seat, "it was stopped by a signal")
        if any(seated.ended for seated in self.seated.values()):
            self._me.stop_order()

    def _end_member(self, seat: int, reason: str) -> None:
        # It might go on later and write old values: its rows are given away only when
        # it is certain to be dead, which the watch will say.
        seated = self.seated[seat]
        if not seated.killed_ns:
            try:
                kill(seated.pidfd)
            except PermissionError as error:
                raise _unending(seated, reason, str(error.strerror)) from None
            seated.killed_ns = time.monotonic_ns()
            seated.reason = reason
        elif time.monotonic_ns() - seated.killed_ns > KILL_TIMEOUT_S * 1e9:
            raise _unending(seated, reason, "it was killed and does not end")

    def dismiss_if_failed(self, seat: int, epoch: int) -> None:
        """A newcomer that could not carry out an order keeps no seat."""
        if self._block.seat(seat)[words.FAILED_EPOCH] == epoch:
            self._note_end(self.seated[seat], str(self._block.take_failure(seat).to_error()))

    def all_left(self) -> bool:
        """Whether every member has left or ended."""
        return all(
            seated.ended or self._block.seat(seat)[words.STATE] == words.LEFT
            for seat, seated in self.seated.items()
        )

    def raise_failure(self, epoch: int) -> None:
        """Raise the error of an order that a member could not carry out."""
        for seat in self.seated:
            if self._block.seat(seat)[words.FAILED_EPOCH] == epoch:
                raise self._block.take_failure(seat).to_error()

    def _note_end(self, seated: Seated, reason: str = "") -> None:
        """A member is gone: nobody is to wait for it. Called in any thread, perhaps twice."""
        if reason:
            seated.reason = reason
        seated.ended = True
        self.attention = True
        self._me.stop_order()

    def _note_joiner(self) -> bool:
        """Whether somebody new sits on a vacant seat; the next step lets them in."""
        found = bool(self.joiners())
        if found:  # else it is left as it is, which the leader may be about to change
            self.attention = True
        return found

    def joiners(self) -> list[int]:
        """Vacant seats with somebody new on them."""
        found = []
        for seat in self.vacant:
            place = self._block.seat(seat)
            new = place[words.INCARNATION] > self._known.get(seat, 0)
            if new and place[words.STATE] == words.JOINED:
                found.append(seat)
        return found

    def bury_ended(self) -> bool:
        """Take the seats of those who ended; whether there were any."""
        buried = False
        for seat, seated in [each for each in self.seated.items() if each[1].ended]:
            del self.seated[seat]
            self._watch.remove(seated.pidfd)
            os.close(seated.pidfd)
            self._block.vacate(seat)
            self.losses.append(Loss(seat, seated.process.pid, seated.reason))
            log.warning(
                "the crew lost seat %d (pid %d): %s; its rows are done by the leader",
                seat,
                seated.process.pid,
                seated.reason,
            )
            buried = True
        return buried

    def look_for_joiners(self) -> None:
        """See whether others take the vacant seats."""
        if self.vacant:
            self._watch.look_for_joiners()


def _unending(seated: Seated, reason: str, why: str) -> JobFailedError:
    return JobFailedError(
        "a member of the crew does not answer and cannot be ended",
        had=f"{reason}; {why}",
        where=f"pid {seated.process.pid}",
        remedy="end it yourself, then make the crew anew",
    )
