"""Children that cannot be started: an error with a remedy, and nothing left open."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hugepool.children import EmbeddedCoordinator, start_worker
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    NotEnoughMemoryError,
    NoWorkersError,
)
from support.host import Descriptors


@contextmanager
def descriptors(free: int) -> Iterator[None]:
    """So many that this process may open, and not one more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # rubbish that closes its own below would be room
    first = os.dup(0)
    os.close(first)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4])
def test_a_coordinator_without_descriptors(free: int) -> None:
    descriptors_here = Descriptors()
    with (
        descriptors(free),
        pytest.raises(NotEnoughMemoryError, match="a private coordinator cannot") as caught,
    ):
        EmbeddedCoordinator()
    assert "ulimit -n" in caught.value.remedy
    assert not descriptors_here.opened()


@pytest.mark.parametrize("free", [0, 1, 2])
def test_a_worker_without_descriptors(free: int) -> None:
    with (
        descriptors(free),
        pytest.raises(NotEnoughMemoryError, match="a worker cannot be started") as caught,
    ):
        start_worker("ipc:///nowhere")
    assert "ulimit -n" in caught.value.remedy


def test_no_further_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for start in (EmbeddedCoordinator, lambda: start_worker("ipc:///nowhere")):
        with pytest.raises(NotEnoughMemoryError) as caught:
            start()
        assert "TasksMax" in caught.value.remedy


def test_nothing_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CoordinatorUnreachableError, match="No such file") as told:
        EmbeddedCoordinator()
    assert told.value.where == "/nowhere/python"
    with pytest.raises(NoWorkersError, match="No such file"):
        start_worker("ipc:///nowhere")


def test_a_coordinator_that_ctrl_c_keeps_from_being_waited_for_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be there, with its files, until this process ends."""
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(coordinator: EmbeddedCoordinator, *_: object) -> str:
        started.append(coordinator._process)
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedCoordinator, "_wait_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedCoordinator()
    (process,) = started
    ended = process.poll() is not None
    process.kill()
    process.wait()
    assert ended
