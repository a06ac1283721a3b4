"""Threads that make calls for others, and what comes between two of their steps."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from hugepool.background import Background


@pytest.fixture
def background() -> Background:
    """Of a channel that does nothing."""
    channel: Any = SimpleNamespace(
        check_usable=lambda: None,
        making=lambda _: contextlib.nullcontext(),
        flush=lambda: None,
        take_back=lambda call: call.take_back(),
    )
    return Background(channel)


def test_a_call_whose_thread_was_not_begun_for_ctrl_c_is_never_made(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    over = threading.Event()

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            background.start(lambda: made.append("first"), lambda *_: over.set())
    background.start(lambda: made.append("second"), lambda *_: over.set())
    assert over.wait(60)
    background.stop()
    assert made == ["second"]


def test_a_pool_that_is_collected_in_its_own_thread_is_closed(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may run as the thread begins to wait for its next call."""
    over, stopped = threading.Event(), threading.Event()

    def collected(timeout_s: float) -> bool:
        background.stop()
        stopped.set()
        return False

    background.start(lambda: None, lambda *_: over.set())
    assert over.wait(60)
    monkeypatch.setattr(background._came, "wait", collected)
    with background._lock:
        background._came.notify_all()  # what waits now waits no more
    assert stopped.wait(60)
