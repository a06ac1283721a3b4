"""Free memory: looked at, promised, and counted for a moment."""

from __future__ import annotations

import threading

import pytest

from hugepool_common.units import GIB, MIB
from hugepool_server.backends import filling


class Memory:
    """Free memory that tells how often it was looked at."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.free_bytes


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_seen", filling._Seen())


def test_plenty_of_memory_is_looked_at_once_for_many_small_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filling, "SEEN_NS", 1 << 60)
    memory = Memory(GIB)
    assert all(filling.surely_fits(MIB, memory) for _ in range(700))
    assert memory.looks == 1


def test_what_was_taken_of_it_is_no_longer_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SEEN_NS", 1 << 60)
    memory = Memory(GIB)
    fitting = sum(filling.surely_fits(MIB, memory) for _ in range(2000))
    assert fitting == (GIB - 4 * filling.SPARE_BYTES) // MIB + 1


def test_memory_seen_a_while_ago_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SEEN_NS", 0)
    memory = Memory(GIB)
    assert filling.surely_fits(4096, memory)
    memory.free_bytes = 100 * MIB
    assert not filling.surely_fits(4096, memory)


def test_what_is_promised_to_others_is_not_counted_on() -> None:
    memory = Memory(GIB)
    with filling.promised(900 * MIB, memory):
        assert not filling.surely_fits(4096, memory)


def test_large_segments_are_never_counted_without_looking() -> None:
    memory = Memory(1 << 50)
    assert not filling.surely_fits(filling.THREAD_BYTES + 1, memory)
    assert memory.looks == 0


def test_little_work_is_done_by_the_calling_thread() -> None:
    seen: list[tuple[int, int, int]] = []
    told: list[tuple[int, int]] = []

    def act(start: int, stop: int) -> None:
        seen.append((threading.get_ident(), start, stop))

    filling.in_slices(8192, 4096, act, lambda *done: told.append(done), None)
    assert seen == [(threading.get_ident(), 0, 8192)]
    assert told == [(8192, 8192)]
