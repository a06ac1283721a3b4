"""The leases that a restarted coordinator is told of."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from hugepool import holdings as holdings_module
from hugepool.holdings import PAGE_OF_LEASES, Claim, Holdings
from hugepool_common import wire
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    CreateArray,
    Held,
    Listed,
    Resume,
    Seal,
    Sealed,
)
from support.messages import SPEC, info


def told(holdings: Holdings) -> tuple[Held, ...]:
    (page,) = holdings.pages()
    assert not page.more
    return page.leases


def test_what_was_granted_is_told_until_it_is_let_go() -> None:
    holdings = Holdings()
    holdings.note(CreateArray(SPEC), ArrayCreated(7, info(1)))
    holdings.note(Attach("y"), Attached(5, info(2)))
    holdings.note(Attach("z", False, (3, 9)), Attached(6, info(3)))
    assert told(holdings) == (
        Held(5, 2, readonly=True),
        Held(6, 3, readonly=False, rows=(3, 9)),
        Held(7, 1, readonly=False),
    )
    claim = holdings.claim(6)
    assert holdings.let_go(claim)
    assert not holdings.let_go(claim)
    assert [held.lease for held in told(holdings)] == [5, 7]


def test_what_is_sealed_is_held_for_reading() -> None:
    holdings = Holdings()
    holdings.note(CreateArray(SPEC), ArrayCreated(1, info(1)))
    holdings.note(Attach("x", False, (0, 2)), Attached(2, info(1)))
    holdings.note(Attach("y", False), Attached(3, info(2)))
    holdings.note(Seal("x"), Sealed(info(1)))
    assert told(holdings) == (Held(1, 1, True), Held(2, 1, True), Held(3, 2, False))


def test_a_reply_that_grants_nothing_changes_nothing() -> None:
    holdings = Holdings()
    holdings.note(Attach("x"), Listed((info(1),), more=False))
    assert told(holdings) == ()


def test_leases_on_what_is_gone_are_lost_and_not_told_again() -> None:
    holdings = Holdings()
    for lease in (1, 2, 3):
        holdings.note(Attach("x"), Attached(lease, info(lease % 2)))
    claims = [holdings.claim(lease) for lease in (1, 2, 3)]
    holdings.lose([1, 77])
    assert [claim.lost for claim in claims] == [True, False, True]
    assert [held.lease for held in told(holdings)] == [2]
    assert not holdings.let_go(claims[0])  # there is nobody to give it back to


def test_a_stranger_is_told_nothing_and_gives_the_same_numbers() -> None:
    holdings = Holdings()
    holdings.note(Attach("x"), Attached(1, info(7)))
    former = holdings.claim(1)
    holdings.lose_all()
    assert told(holdings) == ()
    holdings.note(Attach("x"), Attached(1, info(7)))
    assert former.lost
    assert not holdings.claim(1).lost
    assert not holdings.let_go(former)
    assert [held.lease for held in told(holdings)] == [1]


def test_what_was_granted_before_a_stranger_came_is_of_another_era() -> None:
    """Also what was given back before: its handle may still have its number."""
    holdings = Holdings()
    for lease in (1, 2):
        holdings.note(Attach("x"), Attached(lease, info(7)))
    claims = [holdings.claim(1), holdings.claim(2)]
    holdings.let_go(claims[0])
    assert [claim.era for claim in claims] == [holdings.era] * 2
    holdings.lose([7])
    assert claims[1].era == holdings.era, "lost, and yet no other has its number"
    holdings.lose_all()
    assert holdings.era not in [claim.era for claim in claims]
    assert holdings.claim(3).era != holdings.era


def test_a_lease_that_nobody_knows_is_lost() -> None:
    assert Holdings().claim(3).lost


def test_many_leases_are_told_in_pages_that_fit_a_frame() -> None:
    holdings = Holdings()
    largest = (1 << 63) - 1
    first = largest - 2 * PAGE_OF_LEASES
    for lease in range(first, largest + 1):
        rows = (largest - 1, largest)
        holdings.note(Attach("x", False, rows), Attached(lease, info(largest)))
    pages = list(holdings.pages())
    assert [len(page.leases) for page in pages] == [PAGE_OF_LEASES, PAGE_OF_LEASES, 1]
    assert [page.more for page in pages] == [True, True, False]
    for page in pages:
        assert wire.decode_request(wire.encode(1, page)) == (1, page)


def test_who_holds_nothing_says_so() -> None:
    assert list(Holdings().pages()) == [Resume((), more=False)]


def three_held() -> Holdings:
    holdings = Holdings()
    for lease in (1, 2, 3):
        holdings.note(Attach("x"), Attached(lease, info(lease)))
    return holdings


def test_a_lease_let_go_by_another_thread_as_a_seal_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the seal's reply would be read and not noted, and its thread wait for ever."""
    holdings = three_held()

    def met(*args: Any, **changes: Any) -> Any:
        holdings.let_go(holdings.claim(3))
        return replace(*args, **changes)

    monkeypatch.setattr(holdings_module, "replace", met)
    holdings.note(Seal("x"), Sealed(info(1)))
    assert told(holdings) == (Held(1, 1, True), Held(2, 2, True))


def test_a_lease_let_go_by_another_thread_as_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    holdings = three_held()
    lose = holdings._lose

    def met(claim: Claim) -> None:
        holdings.let_go(claim)
        lose(claim)

    monkeypatch.setattr(holdings, "_lose", met)
    holdings.lose([2])
    assert told(holdings) == (Held(1, 1, True), Held(3, 3, True))


def test_a_lease_let_go_by_another_thread_as_leases_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may still be told: the next coordinator is asked to take it back as this one was."""
    holdings = three_held()

    def met(claims: Any) -> Any:
        found = sorted(claims)
        holdings.let_go(holdings.claim(2))
        return found

    monkeypatch.setattr(holdings_module, "sorted", met, raising=False)
    assert told(holdings)
    monkeypatch.undo()
    assert told(holdings) == (Held(1, 1, True), Held(3, 3, True))
