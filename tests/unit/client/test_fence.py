"""The fence of a session over TCP, by a clock of its own."""

from __future__ import annotations

import threading

import pytest

from hugepool.fence import Fence
from hugepool_common.errors import LeaseExpiredError

LEASE_NS = 10_000_000_000
SAFE_NS = 9_000_000_000


class Clock:
    """A clock that stands."""

    now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fence(clock: Clock) -> Fence:
    made = Fence(clock)
    made.begin(LEASE_NS, clock.now_ns)
    return made


def test_a_local_session_has_no_fence(clock: Clock) -> None:
    fence = Fence(clock)
    clock.now_ns += 10 * LEASE_NS
    fence.check()
    assert (fence.over, fence.left_s, repr(fence)) == (False, None, "<Fence: none>")


def test_it_is_over_a_tenth_before_the_lease_counted_from_what_was_sent(
    clock: Clock, fence: Fence
) -> None:
    assert fence.left_s == 9.0
    assert fence.renewal_s == pytest.approx(10 / 3)
    assert repr(fence) == "<Fence: in 9.0 s>"
    clock.now_ns += SAFE_NS - 1
    fence.check()
    clock.now_ns += 1
    with pytest.raises(LeaseExpiredError, match="connect") as caught:
        fence.check()
    assert isinstance(caught.value, ConnectionError)
    assert (fence.over, fence.left_s, repr(fence)) == (True, 0.0, "<Fence: passed>")


def test_a_confirmation_counts_from_when_it_was_asked_for(clock: Clock, fence: Fence) -> None:
    sent_ns = clock.now_ns + LEASE_NS // 3
    clock.now_ns = sent_ns + LEASE_NS // 2
    fence.confirm(sent_ns)
    clock.now_ns = sent_ns + SAFE_NS - 1
    fence.check()
    clock.now_ns += 1
    assert fence.over


def test_what_is_confirmed_out_of_order_takes_nothing_back(clock: Clock, fence: Fence) -> None:
    early_ns, late_ns = clock.now_ns + 1, clock.now_ns + 2_000_000_000
    clock.now_ns = late_ns
    fence.confirm(late_ns)
    fence.confirm(early_ns)
    clock.now_ns = late_ns + SAFE_NS - 1
    fence.check()


def test_an_older_confirmation_overwrites_no_newer_one_of_another_thread(
    clock: Clock, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_ns = fence._until_ns
    early_ns, late_ns = clock.now_ns + 1, clock.now_ns + 2_000_000_000
    other = threading.Thread(target=fence.confirm, args=(late_ns,))

    def confirmed(fence: Fence, value_ns: int) -> None:
        """Just before the older one is noted, the newer one comes; it may have to wait."""
        nonlocal until_ns
        if threading.current_thread() is not other:
            other.start()
            other.join(0.5)
        until_ns = value_ns

    monkeypatch.setattr(Fence, "_until_ns", property(lambda _: until_ns, confirmed), raising=False)
    fence.confirm(early_ns)
    other.join()
    assert until_ns == late_ns + SAFE_NS


@pytest.mark.parametrize("looked", [True, False], ids=["somebody was refused", "nobody looked"])
def test_a_confirmation_that_comes_too_late_changes_nothing(
    clock: Clock, fence: Fence, looked: bool
) -> None:
    sent_ns = clock.now_ns + LEASE_NS // 2
    clock.now_ns += SAFE_NS
    if looked:
        assert fence.over
    fence.confirm(sent_ns)
    with pytest.raises(LeaseExpiredError):
        fence.check()


def test_what_the_coordinator_says_is_over_is(fence: Fence) -> None:
    fence.end()
    fence.confirm(fence.now_ns())
    with pytest.raises(LeaseExpiredError):
        fence.check()
