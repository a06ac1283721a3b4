"""Which sessions end, and when somebody has to look."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from hugepool_server.liveness import (
    BIND_PATIENCE_NS,
    CHECK_INTERVAL_NS,
    POLL_INTERVAL_NS,
    Liveness,
)
from hugepool_server.records import OVER_TCP, Identity
from hugepool_server.tokens import Tokens
from support.host import Descriptors
from support.locker import FORK, Locker

BOOT = "00000000-1111-2222-3333-444444444444"


class Watched:
    """Liveness over tokens of a fresh runtime directory."""

    def __init__(self, directory: Path) -> None:
        self.tokens = Tokens(str(directory), BOOT)
        self.poller = zmq.Poller()
        self.liveness = Liveness(self.tokens, self.poller)

    def open(self, session: int, pid: int) -> str:
        """What the daemon does for a session's first message."""
        assert self.liveness.watch(session, pid, 0)
        return self.tokens.make(session, Identity(os.geteuid(), os.getegid(), pid), "test")

    def polled(self, timeout_ms: int) -> list[int]:
        return self.liveness.exited(dict(self.poller.poll(timeout_ms)))

    def close(self) -> None:
        self.liveness.close()
        self.tokens.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Nothing is watched yet."""
    made = Watched(tmp_path)
    yield made
    made.close()


def test_every_second_is_looked_around_for_a_session_over_tcp(watched: Watched) -> None:
    watched.tokens.make(1, OVER_TCP.of_session(1), "test", 10**10)
    watched.liveness.schedule(0)
    assert watched.liveness.wake_ns == CHECK_INTERVAL_NS
    assert watched.liveness.ended(CHECK_INTERVAL_NS) == []
    assert watched.liveness.wake_ns == 2 * CHECK_INTERVAL_NS
    watched.liveness.unwatch(1)
    assert watched.liveness.ended(2 * CHECK_INTERVAL_NS) == []
    assert watched.liveness.wake_ns is None


def test_nobody_looks_while_there_is_nothing_to_see(watched: Watched) -> None:
    assert watched.liveness.wake_ns is None
    watched.open(1, os.getpid())
    assert watched.liveness.wake_ns == CHECK_INTERVAL_NS
    watched.liveness.unwatch(1)
    assert watched.liveness.ended(CHECK_INTERVAL_NS) == []
    assert watched.liveness.wake_ns is None


def test_a_death_is_seen_by_its_pidfd(watched: Watched, locker: Callable[..., Locker]) -> None:
    client, other = locker(), locker()
    client.lock(watched.open(1, client.pid))
    other.lock(watched.open(2, other.pid))
    assert watched.liveness.bind(1)
    assert watched.liveness.bind(2)
    assert watched.polled(0) == []
    client.process.kill()
    assert watched.polled(60_000) == [1]
    watched.liveness.unwatch(1)
    assert watched.polled(0) == []
    assert not watched.tokens.check(1)
    assert watched.tokens.check(2)


def test_the_dead_are_not_bound(watched: Watched, locker: Callable[..., Locker]) -> None:
    client = locker()
    path = watched.open(1, client.pid)
    assert not watched.liveness.bind(1), "nothing is locked"
    client.lock(path)
    client.kill()
    assert not watched.liveness.bind(1)
    assert not watched.liveness.watch(2, client.pid, 0)


def test_a_holder_that_is_dead_but_for_its_lock_is_not_bound(
    watched: Watched, locker: Callable[..., Locker]
) -> None:
    # A zombie's pidfd is readable; its locks are gone by then, so look at each alone.
    client, other = locker(), locker()
    path = watched.tokens.make(1, Identity(0, 0, client.pid), "test")
    client.lock(path)
    assert watched.liveness.watch(1, other.pid, 0)
    assert watched.liveness.bind(1)
    other.kill()
    assert watched.tokens.check(1)
    assert not watched.liveness.bind(1)


def test_an_exec_is_seen_by_the_next_look(watched: Watched, locker: Callable[..., Locker]) -> None:
    client = locker("os.close(fd)")
    client.lock(watched.open(1, client.pid))
    assert watched.liveness.bind(1)
    assert watched.liveness.ended(CHECK_INTERVAL_NS) == []
    client.tell("let go")
    assert client.said() == "done"
    assert watched.polled(0) == []
    assert watched.liveness.ended(CHECK_INTERVAL_NS + 1) == [], "not due yet"
    assert watched.liveness.wake_ns == 2 * CHECK_INTERVAL_NS
    assert watched.liveness.ended(2 * CHECK_INTERVAL_NS) == [1]


def test_a_lock_that_cannot_be_looked_at_ends_nothing(
    watched: Watched, locker: Callable[..., Locker], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, late = locker(), locker()
    client.lock(watched.open(1, client.pid))
    late.lock(watched.open(2, late.pid))
    assert watched.liveness.bind(1)

    def refused(fd: int, command: int, argument: bytes) -> bytes:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "fcntl", refused)
        assert watched.liveness.ended(CHECK_INTERVAL_NS) == []
        assert watched.liveness.bind(1), "as it was seen to be before"
        assert not watched.liveness.bind(2), "nobody has seen it hold its lock"
        assert watched.tokens.check(1) is None
    assert watched.liveness.ended(2 * CHECK_INTERVAL_NS) == []
    assert watched.liveness.bind(2)
    client.kill()
    assert watched.liveness.ended(3 * CHECK_INTERVAL_NS) == [1]


def test_a_stopped_process_is_no_dead_one(watched: Watched, locker: Callable[..., Locker]) -> None:
    client = locker()
    client.lock(watched.open(1, client.pid))
    assert watched.liveness.bind(1)
    client.process.send_signal(signal.SIGSTOP)
    now_ns = 0
    for _ in range(100):
        now_ns += CHECK_INTERVAL_NS
        assert watched.liveness.ended(now_ns) == []
    assert watched.polled(0) == []
    client.process.send_signal(signal.SIGCONT)


def test_a_child_of_the_dead_keeps_nothing_alive(
    watched: Watched, locker: Callable[..., Locker]
) -> None:
    client = locker(FORK)
    client.lock(watched.open(1, client.pid))
    assert watched.liveness.bind(1)
    client.tell("fork")
    child = int(client.said())
    client.kill()
    try:
        assert watched.polled(60_000) == [1]
        assert watched.liveness.ended(CHECK_INTERVAL_NS) == [1]
    finally:
        os.kill(child, signal.SIGKILL)


def test_without_a_pidfd_the_lock_is_looked_at_often(
    watched: Watched, locker: Callable[..., Locker]
) -> None:
    client, seen = locker(), locker()
    seen.lock(watched.open(1, seen.pid))
    client.lock(watched.open(2, 0))  # what a pid of a sibling namespace is told as
    assert watched.liveness.bind(1)
    assert watched.liveness.bind(2)
    assert watched.liveness.wake_ns == POLL_INTERVAL_NS
    assert watched.liveness.ended(POLL_INTERVAL_NS) == []
    assert watched.liveness.wake_ns == 2 * POLL_INTERVAL_NS
    client.kill()
    assert watched.liveness.ended(2 * POLL_INTERVAL_NS) == [2]
    watched.liveness.unwatch(2)
    assert watched.liveness.ended(3 * POLL_INTERVAL_NS) == []
    assert watched.liveness.wake_ns == CHECK_INTERVAL_NS


def test_a_session_that_is_never_bound_ends(
    watched: Watched, locker: Callable[..., Locker]
) -> None:
    client = locker()
    path = watched.open(1, client.pid)
    assert watched.liveness.ended(BIND_PATIENCE_NS) == []
    assert watched.liveness.ended(BIND_PATIENCE_NS + CHECK_INTERVAL_NS) == [1]
    watched.open(2, 0)
    client.lock(path)
    assert watched.liveness.bind(1)
    assert watched.liveness.ended(2 * BIND_PATIENCE_NS) == [2]


def test_a_session_that_is_taken_over_is_bound_already(
    tmp_path: Path, locker: Callable[..., Locker]
) -> None:
    before = Watched(tmp_path)
    client = locker()
    client.lock(before.open(1, client.pid))
    before.liveness.close()
    before.tokens.close(keep=True)
    after = Watched(tmp_path)
    (session,) = after.tokens.read()
    assert after.liveness.watch(session.session, session.identity.pid, 0)
    assert after.liveness.ended(2 * BIND_PATIENCE_NS) == []
    client.kill()
    assert after.polled(60_000) == [1]
    assert after.liveness.ended(3 * BIND_PATIENCE_NS) == [1]
    after.close()
    assert os.listdir(tmp_path) == []


def test_descriptors_are_given_back(watched: Watched) -> None:
    descriptors = Descriptors()
    for session in range(1, 20):
        watched.open(session, os.getpid())
    for session in range(1, 20):
        watched.liveness.unwatch(session)
        watched.liveness.unwatch(session)
    assert not descriptors.opened()
