"""Who is at the socket of a channel that threads share, and who is woken."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hugepool.calls import Call, TakenBack
from hugepool.place import Place

ROUNDS = 300


def test_who_wants_the_place_and_is_taken_back_leaves_it_to_others() -> None:
    """A thread that made way for it is not left waiting while nobody has the place."""
    for _ in range(ROUNDS):
        place = Place()
        call = Call()
        assert not place.enter()

        def want(place: Place = place, call: Call = call) -> None:
            with pytest.raises(TakenBack):
                place.enter(call)

        def follow(place: Place = place) -> None:
            while not place.come(False, place.news, None):
                pass
            place.leave(False)

        threads = [threading.Thread(target=each, daemon=True) for each in (follow, want)]
        for thread in threads:
            thread.start()
        while not (place._wanting and place._following):
            pass
        call.take_back()
        place.leave(False)
        for thread in threads:
            thread.join(60)
        assert not [thread for thread in threads if thread.is_alive()]
        place.close()


@pytest.mark.parametrize("looks", ["before the write", "after it"])
def test_a_wake_that_is_met_half_way_does_not_last(
    monkeypatch: pytest.MonkeyPatch, looks: str
) -> None:
    """Or whoever has the place would be woken from every later wait without end."""
    place = Place()
    write = os.eventfd_write

    def met(fd: int, value: int) -> None:
        if looks == "before the write":
            place.was_woken()
        write(fd, value)
        if looks == "after it":
            place.was_woken()

    monkeypatch.setattr(os, "eventfd_write", met)
    assert not place.enter()
    place.wake()
    place.was_woken()
    assert not select.select([place.wake_fd], [], [], 0)[0]
    place.leave(False)
    place.close()


def test_who_is_interrupted_as_it_leaves_and_leaves_again_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Place()
    notify_all = place._changed.notify_all
    assert not place.enter()

    def follow() -> None:
        while not place.come(False, place.news, None):
            pass
        place.leave(False)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    while not place._following:
        pass
    with place._lock:  # it is free once the thread waits
        pass

    def interrupted() -> None:
        monkeypatch.setattr(place._changed, "notify_all", notify_all)
        raise KeyboardInterrupt

    monkeypatch.setattr(place._changed, "notify_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.leave(False)
    place.leave(False)
    thread.join(10)
    assert not thread.is_alive()
    place.close()


def test_who_is_interrupted_as_it_begins_to_wait_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not that it has no lock, which an `except Exception` would take for an error."""
    place = Place()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        place.enter()
        held.set()
        over.wait()
        place.leave(False)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    condition: Any = place._changed
    release = condition._release_save

    def interrupted() -> None:
        monkeypatch.setattr(condition, "_release_save", release)
        release()
        raise KeyboardInterrupt

    waits: list[Callable[[], object]] = [
        place.enter,
        lambda: place.come(False, place.news, None),
    ]
    for wait in waits:
        monkeypatch.setattr(condition, "_release_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            wait()
    over.set()
    thread.join(10)
    assert not thread.is_alive()
    assert not place.enter()
    place.leave(False)
    assert (place._wanting, place._following) == (0, 0)
    place.close()


def test_who_waits_nested_is_not_woken_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the place to nobody, so that each would wake the other without end."""
    place = Place()
    wakes: list[int] = []
    waits = threading.Semaphore(0)
    wake, await_change = place.wake, place._await_change

    def counted() -> None:
        wakes.append(1)
        wake()

    def noted(timeout_s: float | None) -> None:
        waits.release()
        await_change(timeout_s)

    monkeypatch.setattr(place, "wake", counted)
    monkeypatch.setattr(place, "_await_change", noted)

    def want() -> None:
        place.enter()
        place.leave(False)

    assert not place.enter()
    assert place.enter()  # in a signal's handler
    thread = threading.Thread(target=want, daemon=True)
    thread.start()
    assert waits.acquire(timeout=10)
    for _ in range(3):
        assert place.come(True, place.news, None)
        place.was_woken([place.wake_fd])
        assert waits.acquire(timeout=10)
    assert len(wakes) == 1
    place.leave(True)
    assert waits.acquire(timeout=10)
    assert len(wakes) == 2  # it is for who waits not nested now
    place.leave(False)
    thread.join(10)
    assert not thread.is_alive()
    place.close()
