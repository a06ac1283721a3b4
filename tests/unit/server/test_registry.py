"""Named objects and slow acts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hugepool_common.errors import (
    ArrayBusyError,
    ArrayExistsError,
    ArrayNotFoundError,
    InvalidSpecError,
    NotEnoughMemoryError,
)
from hugepool_common.spec import ArraySpec
from hugepool_server.events import MakeSegment
from hugepool_server.leases import Asker, Session
from hugepool_server.named_object import (
    ALLOWED,
    ArrayState,
    ForbiddenTransitionError,
    NamedObject,
)
from hugepool_server.records import Identity
from hugepool_server.registry import Act, ActKind, Registry
from support.coordination import array_spec, segment_of

ALICE = Session(1, b"alice", Identity(1000, 1000, 11), "test")
BOB = Session(2, b"bob", Identity(1000, 1000, 22), "test")


def registry(max_arrays: int = 10, max_pending_bytes: int = 1 << 40) -> Registry:
    return Registry(max_arrays=max_arrays, max_pending_bytes=max_pending_bytes, first_number=0)


def made(all_: Registry, name: str, *, session: Session = ALICE) -> NamedObject:
    act = all_.begin_making(array_spec(name), Asker(session, 1), temporary=False)
    all_.end(act.token, ActKind.MAKE)
    complete(act)
    return act.subject


def complete(act: Act) -> None:
    found = act.subject
    make = MakeSegment(
        act.token, found.segment_id, found.spec, "try", "auto", "", found.creator, ALICE.number
    )
    found.made(*segment_of(make), 77)


SEALED = [ArrayState.READY, ArrayState.SEALING, ArrayState.SEALED]
PATHS = {
    ArrayState.MAKING: [],
    ArrayState.READY: [ArrayState.READY],
    ArrayState.SEALING: [ArrayState.READY, ArrayState.SEALING],
    ArrayState.SEALED: SEALED,
    ArrayState.PUBLISHING: [*SEALED, ArrayState.PUBLISHING],
    ArrayState.SUPERSEDED: [*SEALED, ArrayState.SUPERSEDED],
    ArrayState.GONE: [ArrayState.GONE],
}


@pytest.mark.parametrize("now", PATHS)
@pytest.mark.parametrize("then", ArrayState)
def test_a_state_changes_only_as_the_table_says(now: ArrayState, then: ArrayState) -> None:
    found = NamedObject(array_spec("x"), 1, ALICE.identity, ALICE)
    for state in PATHS[now]:
        found.move(state)
    if then in ALLOWED[now]:
        found.move(then)
        assert found.state is then
    else:
        told = " > ".join(state.value for state in [ArrayState.MAKING, *PATHS[now]])
        with pytest.raises(ForbiddenTransitionError, match=f"{then.value} after {told}$"):
            found.move(then)
        assert found.state is now


def test_the_table_has_every_state_and_one_end() -> None:
    assert set(ALLOWED) == set(ArrayState)
    assert [state for state, after in ALLOWED.items() if not after] == [ArrayState.GONE]
    reached = frozenset().union(*ALLOWED.values())
    assert set(ArrayState) - reached == {ArrayState.MAKING, ArrayState.LOST}
    assert set(ArrayState) - PATHS.keys() == {ArrayState.LOST}
    assert ALLOWED[ArrayState.LOST] == {ArrayState.GONE}


def test_the_story_is_bounded() -> None:
    found = NamedObject(array_spec("x"), 1, ALICE.identity, ALICE)
    found.move(ArrayState.READY)
    for _ in range(100):
        found.move(ArrayState.SEALING)
        found.move(ArrayState.READY)
    assert len(found.story) == 16
    assert all(after in ALLOWED[before] for before, after in pairwise(found.story))


def test_a_name_is_taken_from_the_first_request_on() -> None:
    all_ = registry()
    act = all_.begin_making(array_spec("x"), Asker(ALICE, 1), temporary=False)
    all_.validate()
    with pytest.raises(ArrayExistsError, match="pid 11"):
        all_.begin_making(array_spec("x"), Asker(BOB, 1), temporary=False)
    with pytest.raises(ArrayBusyError, match="still being made"):
        all_.find("x")
    assert all_.published == []
    assert all_.end(act.token, ActKind.MAKE) is act
    complete(act)
    all_.validate()
    assert all_.find("x") is act.subject
    with pytest.raises(ArrayExistsError):
        all_.begin_making(array_spec("x"), Asker(BOB, 1), temporary=False)


def test_a_long_name_that_is_not_there_is_told_cut() -> None:
    with pytest.raises(ArrayNotFoundError) as caught:
        registry().find("n" * 999)
    assert caught.value.where == "n" * 200


def test_what_has_a_number_of_before_was_inherited() -> None:
    all_ = Registry(max_arrays=9, max_pending_bytes=1 << 40, first_number=7)
    found = made(all_, "x")
    assert found.segment_id == 8
    assert not all_.is_inherited(found)
    found.segment_id = 7
    assert all_.is_inherited(found)


def test_an_unknown_name_is_not_found() -> None:
    with pytest.raises(ArrayNotFoundError, match="no array has this name"):
        registry().find("x")


def test_a_spec_is_checked_before_its_name_is_taken() -> None:
    all_ = registry()
    with pytest.raises(InvalidSpecError):
        all_.begin_making(ArraySpec("x", (-1,), "<f8"), Asker(ALICE, 1), temporary=False)
    assert repr(all_) == "<Registry: 0 arrays, 0 acts>"


def test_an_act_ends_once_and_as_what_it_began() -> None:
    all_ = registry()
    act = all_.begin_making(array_spec("x"), Asker(ALICE, 1), temporary=False)
    assert all_.end(act.token, ActKind.SEAL) is None
    assert all_.end(act.token + 1, ActKind.MAKE) is None
    assert all_.end(act.token, ActKind.MAKE) is act
    assert all_.end(act.token, ActKind.MAKE) is None


def test_an_abandoned_act_frees_the_name_and_is_still_awaited() -> None:
    all_ = registry()
    act = all_.begin_making(array_spec("x"), Asker(ALICE, 1), temporary=False)
    all_.abandon(act)
    all_.validate()
    again = all_.begin_making(array_spec("x"), Asker(BOB, 1), temporary=False)
    all_.validate()
    assert all_.acts == (act, again)
    assert again.subject.segment_id > act.subject.segment_id
    assert all_.acts_of(ALICE) == [act]
    act.asker = None
    assert all_.acts_of(ALICE) == []


def test_sealing_takes_an_act_and_keeps_the_name() -> None:
    all_ = registry()
    found = made(all_, "x")
    act = all_.begin_sealing(found, Asker(ALICE, 2))
    all_.validate()
    assert not found.sealed
    assert all_.end(act.token, ActKind.SEAL) is act
    found.made_immutable(found.segment, "crc32:0")
    all_.validate()
    assert found.sealed
    with pytest.raises(ForbiddenTransitionError):
        all_.begin_sealing(found, Asker(ALICE, 3))


def test_orphans_are_writable_and_without_owner() -> None:
    all_ = registry()
    mine, sealed, other = made(all_, "a"), made(all_, "b"), made(all_, "c", session=BOB)
    act = all_.begin_sealing(sealed, Asker(ALICE, 2))
    assert all_.orphans == []
    all_.disown(ALICE)
    assert all_.orphans == [mine]
    assert other.owner is BOB
    all_.end(act.token, ActKind.SEAL)
    sealed.move(ArrayState.READY)
    assert all_.orphans == [mine, sealed]


@pytest.mark.parametrize(
    ("after", "count", "expected", "more"),
    [
        ("", 10, "abcde", False),
        ("", 5, "abcde", False),
        ("", 2, "ab", True),
        ("b", 2, "cd", True),
        ("bb", 2, "cd", True),
        ("c", 2, "de", False),
        ("e", 2, "", False),
    ],
)
def test_names_come_in_order_a_page_at_a_time(
    after: str, count: int, expected: str, more: bool
) -> None:
    all_ = registry()
    for name in "ebdac":
        made(all_, name)
    all_.begin_making(array_spec("bb"), Asker(ALICE, 9), temporary=False)
    page, follows = all_.page(after, count)
    assert "".join(found.name for found in page) == expected
    assert follows is more


def test_a_page_of_a_list_leaves_the_reasons_out() -> None:
    found = made(registry(), "x")
    assert len(found.info(3).pages.reasons) == 1
    info = found.info(3, reasons=False)
    assert info.pages.reasons == ()
    assert (info.readers, info.created_ns, info.creator_pid, info.sealed) == (3, 77, 11, False)


def test_arrays_are_limited_and_abandoned_acts_count() -> None:
    all_ = registry(max_arrays=2)
    made(all_, "a")
    act = all_.begin_making(array_spec("b"), Asker(ALICE, 1), temporary=False)
    all_.abandon(act)
    with pytest.raises(NotEnoughMemoryError, match=r"needed fewer than 2 arrays, had 2"):
        all_.begin_making(array_spec("b"), Asker(ALICE, 2), temporary=False)
    all_.end(act.token, ActKind.MAKE)
    all_.begin_making(array_spec("b"), Asker(ALICE, 3), temporary=False)
    all_.validate()


def test_bytes_under_way_are_limited() -> None:
    all_ = registry(max_pending_bytes=10_000)
    act = all_.begin_making(array_spec("a", 1000), Asker(ALICE, 1), temporary=False)
    with pytest.raises(NotEnoughMemoryError, match="8 kB of 10 kB taken"):
        all_.begin_making(array_spec("b", 251), Asker(ALICE, 2), temporary=False)
    all_.begin_making(array_spec("b", 250), Asker(ALICE, 3), temporary=False)
    all_.end(act.token, ActKind.MAKE)
    complete(act)
    all_.begin_making(array_spec("c", 1000), Asker(ALICE, 4), temporary=False)


def test_repr_tells_names_and_states() -> None:
    all_ = registry()
    assert repr(made(all_, "x")) == "<NamedObject x #1 ready>"
    assert repr(all_) == "<Registry: 1 arrays, 0 acts>"


def test_validate_sees_a_lost_act() -> None:
    all_ = registry()
    act = all_.begin_making(array_spec("x"), Asker(ALICE, 1), temporary=False)
    all_.end(act.token, ActKind.MAKE)
    with pytest.raises(AssertionError):
        all_.validate()
