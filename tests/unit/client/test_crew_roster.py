"""Who takes part in a crew, as two threads see it at once: the leader's, and the one that watches.

Each test stops the one thread between two of its steps, and lets the other run there.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hugepool import crew as crew_module
from hugepool import crew_watch
from hugepool.crew import Crew
from hugepool.crew_control import ControlBlock, ProcessIdentity
from hugepool.crew_member import _Member
from hugepool.crew_roster import Roster
from hugepool.crew_watch import MemberWatch
from hugepool.kernels import crew_words as words
from hugepool_common.errors import InvalidSpecError

SEATS = 3


class Idle(MemberWatch[Any]):
    """A watch whose thread has ended: what it would do, a test does."""

    def __init__(self, *callbacks: Any) -> None:
        super().__init__(*callbacks)
        self._stopping = True
        self._nudge()
        self._thread.join()


def join(block: ControlBlock, seat: int) -> None:
    """Sit down as a member would; it is this process."""
    me = ProcessIdentity.of_this()
    place = block.seat(seat)
    place[words.PID : words.PID + 3] = (me.pid, me.started, me.namespace)
    place[words.INCARNATION] += 1
    place[words.STATE] = words.JOINED


@pytest.fixture
def block() -> ControlBlock:
    return ControlBlock.laid_out(np.zeros(ControlBlock.nbytes(SEATS), np.uint8), SEATS, 0, 0)


@pytest.fixture
def roster(block: ControlBlock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Roster]:
    monkeypatch.setattr("hugepool.crew_roster.MemberWatch", Idle)
    leader: Any = SimpleNamespace(block=block, epoch=0, stop_order=lambda: None)
    made = Roster(leader, 30.0)
    yield made
    made.close()


def test_an_end_that_is_told_late_is_not_the_next_member_s(
    roster: Roster, block: ControlBlock
) -> None:
    """The newcomer would lose its seat, and its rows be written by two."""
    join(block, 1)
    assert roster.receive(1)
    first = roster.seated[1]
    watched = roster._watch._watched[first.pidfd]
    block.seat(1)[words.STATE] = words.LEFT
    # The watch has seen it end, and comes no further until a newcomer has its seat.
    roster.look_after(roster.patience(), 1)
    assert roster.bury_ended()
    join(block, 1)
    # Its descriptor has the number of the first one's, the lowest that is free, unless another
    # thread of the tests took that just now: then nothing can be mistaken.
    assert roster.receive(1)
    roster._watch._note_end(first.pidfd, watched)
    roster._note_end(first)  # and had it come further than that
    assert not roster.bury_ended()
    assert list(roster.seated) == [1]
    assert [loss.reason for loss in roster.losses] == ["it left"]


def test_an_end_that_is_told_twice_is_one(roster: Roster, block: ControlBlock) -> None:
    join(block, 1)
    assert roster.receive(1)
    member = roster.seated[1]
    roster._note_end(member, "it left")
    assert roster.bury_ended()
    roster._note_end(member)
    assert not roster.bury_ended()
    assert roster.vacant == [1, 2]


def test_a_look_for_joiners_takes_nothing_back(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the leader notes meanwhile stays: else its next order would run into the last one."""

    class Met(Roster):
        noted = False

        @property
        def attention(self) -> bool:
            self.noted = True  # by the leader, just after it was read
            return False

        @attention.setter
        def attention(self, value: bool) -> None:
            self.noted = value
            taken_back.append(not value)

    taken_back: list[bool] = []
    monkeypatch.setattr(roster, "__class__", Met)
    assert not roster._note_joiner()
    assert True not in taken_back


def test_a_seat_that_becomes_vacant_as_another_is_taken_is_looked_at() -> None:
    looks: list[int] = []
    enough = threading.Event()

    def on_vacancy() -> bool:
        looks.append(1)
        if len(looks) == 1:
            watch.look_for_joiners()  # by the leader, before the answer is taken in
        else:
            enough.set()
        return True

    watch = MemberWatch[int](lambda _: None, on_vacancy)
    watch.look_for_joiners()
    assert enough.wait(60)
    watch.stop()


def test_a_number_that_is_another_s_by_now_tells_of_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watch has polled; before it looks whose descriptor that was, another has the number."""
    ended: list[str] = []
    child = subprocess.Popen([sys.executable, "-c", ""])
    pidfd = os.pidfd_open(child.pid)
    child.wait()
    polled = threading.Event()

    class Met:
        def __init__(self) -> None:
            self._poller = select.poll()
            self.register = self._poller.register

        def poll(self, timeout_ms: int | None) -> list[tuple[int, int]]:
            ready = self._poller.poll(timeout_ms)
            if pidfd in dict(ready) and not polled.is_set():
                watch.remove(pidfd)
                watch.add("newcomer", pidfd)
                os.dup2(alive, pidfd)
                polled.set()
            return ready

    alive = os.pidfd_open(os.getpid())
    met = SimpleNamespace(poll=Met, POLLIN=select.POLLIN, POLLNVAL=select.POLLNVAL)
    monkeypatch.setattr(crew_watch, "select", met)
    watch = MemberWatch[str](ended.append, lambda: True)
    watch.add("member", pidfd)
    assert polled.wait(60)
    watch.stop()
    os.close(alive)
    os.close(pidfd)
    assert ended == []


def test_a_crew_that_is_forked_in_the_middle_of_a_step_can_be_closed_in_the_child() -> None:
    """What a child does first is done here; the thread that steps is not there with it."""
    crew = Crew.__new__(Crew)
    crew._lock, crew._closed, crew._forked, crew._steps = threading.RLock(), False, False, {}
    crew._roster = SimpleNamespace(attention=False, seated={})  # type: ignore[assignment]
    crew.workers = 2
    stepping = threading.Thread(target=crew._lock.acquire)
    stepping.start()
    stepping.join()
    crew_module._crews.add(crew)
    try:
        crew_module._disown_crews()
    finally:
        crew_module._crews.discard(crew)
    closing = threading.Thread(target=crew.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_a_member_that_cannot_let_go_of_a_step_says_that_it_left(block: ControlBlock) -> None:
    """Its first thread would wait for that until the leader's process ends."""
    member: Any = _Member.__new__(_Member)
    place = block.seat(1)
    member._me = SimpleNamespace(place=place, own={words.OWN_LEAVING: 1})
    member._seat, member._steps, member._error = 1, {1: None}, None
    member._join = lambda: None

    def failing(number: int) -> None:
        raise InvalidSpecError(f"step {number}")

    member._release = failing
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        member._follow(writer)
    except InvalidSpecError:
        pass
    said = os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    assert (said, place[words.STATE]) == (b".", words.LEFT)
    assert isinstance(member._error, InvalidSpecError)
