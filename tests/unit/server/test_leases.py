"""Sessions and leases."""

from __future__ import annotations

import pytest

from hugepool_common.errors import NotEnoughMemoryError, NotPermittedError
from hugepool_server.leases import Leases, Session, SessionState
from hugepool_server.records import Identity


def bound(leases: Leases, peer: bytes, identity: Identity) -> Session:
    session = leases.open(peer, identity, "test")
    leases.told_token(session, f"/run/tokens/{peer.decode()}")
    leases.bind(session)
    assert session.state is SessionState.BOUND
    return session


class Two:
    """Leases with two sessions open."""

    def __init__(self, *, max_sessions: int = 2, max_leases: int = 3) -> None:
        self.all = Leases(max_sessions=max_sessions, max_leases=max_leases, first_number=0)
        self.alice = bound(self.all, b"alice", Identity(1000, 1000, 11))
        self.bob = bound(self.all, b"bob", Identity(1000, 1000, 22))

    def check(self, *segment_ids: int) -> None:
        self.all.validate(segment_ids)


@pytest.fixture
def two() -> Two:
    return Two()


def readers(leases: Leases, segment_id: int) -> list[Session]:
    return [lease.session for lease in leases.on(segment_id)]


def test_a_session_is_found_by_peer_and_number_until_it_closes(two: Two) -> None:
    assert two.all.of_peer(b"alice") is two.alice
    assert two.all.of_number(two.alice.number) is two.alice
    two.all.close(two.alice)
    assert two.all.of_peer(b"alice") is None
    assert two.all.of_number(two.alice.number) is None
    assert two.all.sessions == (two.bob,)


def test_a_closed_session_has_nothing(two: Two) -> None:
    two.all.grant(two.alice, 7, readonly=True)
    two.all.hold(two.alice, 8, readonly=True)
    two.all.take_up(two.alice, b"alice again")
    two.all.close(two.alice)
    assert not (two.alice.leases or two.alice.held or two.alice.unconfirmed)
    two.check()


def test_a_session_that_is_taken_up_is_reached_at_its_new_peer(two: Two) -> None:
    two.alice.reachable = False
    two.all.take_up(two.alice, b"alice again")
    assert (two.alice.peer, two.alice.reachable) == (b"alice again", True)
    two.check()


def test_a_lease_told_again_is_known_or_may_be_granted_again(two: Two) -> None:
    lease = two.all.grant(two.alice, 7, readonly=True)
    assert two.all.check_again(two.alice, lease.number, 7) is lease
    two.all.release(two.alice, lease.number)
    assert two.all.check_again(two.alice, lease.number, 7) is None, "the newest number too"
    with pytest.raises(NotPermittedError, match=f"had lease {lease.number + 1}"):
        two.all.check_again(two.alice, lease.number + 1, 7)


def test_leases_are_numbered_one_after_another(two: Two) -> None:
    two.all.hold(two.alice, 7, readonly=True)
    two.all.hold(two.alice, 8, readonly=True)
    assert [two.all.on(7)[0].number, two.all.on(8)[0].number] == [1, 2]
    assert two.all.grant(two.alice, 7, readonly=True).number == 3


def test_sessions_are_limited_and_numbers_not_used_again(two: Two) -> None:
    with pytest.raises(NotEnoughMemoryError, match="needed fewer than 2 sessions, had 2"):
        two.all.open(b"carol", Identity(1, 1, 33), "test")
    two.all.close(two.alice)
    assert two.all.open(b"carol", Identity(1, 1, 33), "test").number == 3


def test_what_a_client_calls_itself_is_cut() -> None:
    leases = Leases(max_sessions=1, max_leases=1, first_number=0)
    assert len(leases.open(b"a", Identity(1, 1, 1), "x" * 8000).client) == 200


def test_a_lease_is_granted_and_released(two: Two) -> None:
    lease = two.all.grant(two.alice, 7, readonly=False)
    assert readers(two.all, 7) == [two.alice]
    assert two.all.writers(7) == [lease]
    two.check(7)
    two.all.release(two.alice, lease.number)
    assert two.all.on(7) == ()
    assert two.all.count == 0
    two.check()


def test_releasing_twice_is_no_error(two: Two) -> None:
    lease = two.all.grant(two.alice, 7, readonly=True)
    two.all.release(two.alice, lease.number)
    two.all.release(two.alice, lease.number)


@pytest.mark.parametrize("number", [-1, 0, 2, 1 << 60])
def test_a_lease_that_never_was_is_refused(two: Two, number: int) -> None:
    two.all.grant(two.alice, 7, readonly=True)
    with pytest.raises(NotPermittedError):
        two.all.release(two.alice, number)


def test_a_lease_of_another_is_refused_and_stays(two: Two) -> None:
    lease = two.all.grant(two.bob, 7, readonly=True)
    with pytest.raises(NotPermittedError, match=f"lease {lease.number}"):
        two.all.release(two.alice, lease.number)
    assert two.all.on(7) == (lease,)


def test_a_workers_lease_cannot_be_released_by_number(two: Two) -> None:
    two.all.hold(two.alice, 7, readonly=True)
    (lease,) = two.all.on(7)
    with pytest.raises(NotPermittedError):
        two.all.release(two.alice, lease.number)
    two.check(7)


def test_leases_of_a_session_are_limited_and_promises_count(two: Two) -> None:
    for segment_id in (7, 8):
        two.all.grant(two.alice, segment_id, readonly=True)
    two.all.hold(two.alice, 7, readonly=True)
    two.all.check_room(two.alice)
    with pytest.raises(NotEnoughMemoryError, match="needed fewer than 3 leases, had 3"):
        two.all.check_room(two.alice, 1)
    two.all.grant(two.alice, 7, readonly=True)
    with pytest.raises(NotEnoughMemoryError):
        two.all.check_room(two.alice)
    two.all.check_room(two.bob)


def test_a_worker_holds_a_segment_once_and_as_widely_as_it_used_it(two: Two) -> None:
    two.all.hold(two.alice, 7, readonly=True)
    assert two.all.worker_writers(7) == []
    two.all.hold(two.alice, 7, readonly=False)
    two.all.hold(two.alice, 7, readonly=True)
    (lease,) = two.all.on(7)
    assert two.all.worker_writers(7) == [lease]
    assert two.all.writers(7) == []
    two.all.drop(lease)
    assert two.all.on(7) == ()
    two.check()


def test_void_ends_all_and_tells_the_workers(two: Two) -> None:
    mine = two.all.grant(two.alice, 7, readonly=False)
    kept = two.all.grant(two.alice, 8, readonly=False)
    two.all.hold(two.alice, 7, readonly=True)
    two.all.hold(two.bob, 7, readonly=True)
    assert two.all.void(7) == [two.alice, two.bob]
    assert two.all.void(7) == []
    assert list(two.alice.leases.values()) == [kept]
    assert two.bob.held == {}
    two.check(8)
    two.all.release(two.alice, mine.number)


def test_closing_a_session_ends_its_leases_only(two: Two) -> None:
    two.all.grant(two.alice, 7, readonly=True)
    two.all.hold(two.alice, 8, readonly=True)
    kept = two.all.grant(two.bob, 7, readonly=True)
    two.all.close(two.alice)
    assert two.all.on(7) == (kept,)
    assert two.all.on(8) == ()
    two.check(7)


def test_a_sealed_segment_has_readers_only(two: Two) -> None:
    two.all.grant(two.alice, 7, readonly=False)
    other = two.all.grant(two.alice, 8, readonly=False)
    two.all.make_readonly(7)
    assert two.all.writers(7) == []
    assert two.all.writers(8) == [other]


def test_repr_tells_counts(two: Two) -> None:
    two.all.grant(two.alice, 7, readonly=True)
    two.all.hold(two.alice, 7, readonly=True)
    assert repr(two.all) == "<Leases: 2 sessions, 2 leases>"
    assert repr(two.alice) == "<Session 1 of pid 11: 1 leases, 1 held by its worker>"


def test_validate_sees_a_lease_on_nothing(two: Two) -> None:
    two.all.grant(two.alice, 7, readonly=True)
    with pytest.raises(AssertionError, match="segment that is gone"):
        two.check(8)


def test_validate_sees_a_lease_without_a_session(two: Two) -> None:
    lease = two.all.grant(two.alice, 7, readonly=True)
    del two.alice.leases[lease.number]
    with pytest.raises(AssertionError):
        two.check(7)
