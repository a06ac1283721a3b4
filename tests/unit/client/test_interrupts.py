"""Signals at the edges of a block that none of them cuts in two."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from hugepool import interrupts
from hugepool.interrupts import Uninterrupted


@pytest.fixture
def alarms() -> Iterator[list[int]]:
    """The alarms that a handler of the program's own has heard."""
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(number)

    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, hear)
    yield heard
    signal.signal(signal.SIGALRM, before)
    signal.signal(signal.SIGINT, interrupt)


def raising_after(number: int, is_own: bool, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal just after the handler of another was put aside, or back."""
    left = [1]

    def met(changed: int, handler: Any) -> Any:
        found = signal.signal(changed, handler)
        own = getattr(handler, "__func__", None) is Uninterrupted._note
        if changed == number and own == is_own and left:
            left.clear()
            signal.raise_signal(sent)
        return found

    handlers = SimpleNamespace(getsignal=signal.getsignal, signal=met)
    monkeypatch.setattr(interrupts, "_handlers", handlers)


def test_ctrl_c_as_handlers_are_put_back_leaves_none_out(
    alarms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    raising_after(signal.SIGINT, False, signal.SIGINT, monkeypatch)
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        signal.raise_signal(signal.SIGALRM)
        assert not alarms
    assert len(alarms) == 1  # what came in the block
    signal.raise_signal(signal.SIGALRM)
    assert len(alarms) == 2
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_time_out_as_handlers_are_put_aside_leaves_ctrl_c_at_work(
    alarms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, time_out)
    raising_after(signal.SIGINT, True, signal.SIGALRM, monkeypatch)
    with pytest.raises(TimeoutError), Uninterrupted():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_as_handlers_are_put_back_takes_none_away(
    alarms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def met(changed: int, handler: Any) -> Any:
        found = signal.signal(changed, handler)
        if changed == signal.SIGINT and handler is signal.default_int_handler:
            signal.raise_signal(signal.SIGINT)
        return found

    handlers = SimpleNamespace(getsignal=signal.getsignal, signal=met)
    monkeypatch.setattr(interrupts, "_handlers", handlers)
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        pass
    signal.raise_signal(signal.SIGALRM)
    assert len(alarms) == 1
