"""Restoring is all or nothing, whatever ends in the middle, and touches nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool import snapshot
from hugepool.channel import Channel
from hugepool_common.messages import PublishAll
from support.host import settles
from support.service import Service

NAMES = ["n0", "n1", "n2", "n3"]
ELEMENTS = 100_000
NBYTES = 8 * ELEMENTS


@pytest.fixture
def pool(service: Service) -> Iterator[hugepool.Pool]:
    service.start()
    with hugepool.connect(service.address) as pool:
        yield pool


@pytest.fixture
def other(service: Service, pool: hugepool.Pool) -> Iterator[hugepool.Pool]:
    with hugepool.connect(service.address) as other:
        yield other


@pytest.fixture
def saved(pool: hugepool.Pool, tmp_path: Path) -> Path:
    """A snapshot of :data:`NAMES`, none of which is there any more."""
    for number, name in enumerate(NAMES):
        pool.put(name, np.full(ELEMENTS, float(number)))
    pool.snapshot(tmp_path / "disk")
    for name in NAMES:
        pool.destroy(name)
    return tmp_path / "disk"


def held(pool: hugepool.Pool) -> dict[str, tuple[int, int]]:
    """What there is: name to generation and shape."""
    return {one.spec.name: (one.generation, one.spec.shape[0]) for one in pool.list()}


def once_at(nbytes: int, act: Callable[[], object]) -> Callable[[int, int], None]:
    """A progress that does something when so much is done."""
    done: list[object] = []

    def progress(done_bytes: int, total_bytes: int) -> None:
        if done_bytes >= nbytes and not done:
            done.append(act)
            act()

    return progress


RESTORED = dict.fromkeys(NAMES, (1, ELEMENTS))


# What fails in the middle -------------------------------------------------------


def test_nothing_has_its_name_before_all_is_there(
    pool: hugepool.Pool, other: hugepool.Pool, saved: Path
) -> None:
    seen: list[set[str]] = []
    pool.restore(saved, progress=lambda *_: seen.append(set(held(other))))
    assert len(seen) >= len(NAMES)
    assert not any(names & set(NAMES) for names in seen)
    assert held(other) == RESTORED
    for number, name in enumerate(NAMES):
        assert other.verify(name).checksum
        assert other.attach(name).array[-1] == number


def test_in_several_messages_it_is_one_step_too(
    pool: hugepool.Pool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PAGE_OF_PUBLICATIONS", 3)
    pool.restore(saved)
    assert held(pool) == RESTORED
    pool.destroy("n3")
    pool.create("n3", 5)
    with pytest.raises(hugepool.ArrayBusyError, match="not sealed"):
        pool.restore(saved, replace=True)
    assert held(pool) == {**RESTORED, "n3": (1, 5)}
    pool.attach("n3", readonly=False).seal()
    pool.restore(saved, replace=True)
    assert held(pool) == dict.fromkeys(NAMES, (2, ELEMENTS))


def test_threads_that_restore_at_once_do_not_begin_one_another_s_batches_anew(
    pool: hugepool.Pool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "PAGE_OF_PUBLICATIONS", 1)
    request = Channel.request
    befores = []

    def noting(self: Channel, message: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(message, PublishAll):
            befores.append(message.before)
            time.sleep(0.02)  # so that they meet
        return request(self, message, *arguments, **options)

    monkeypatch.setattr(Channel, "request", noting)
    threads = [
        threading.Thread(target=pool.restore, args=(saved,), kwargs={"replace": True})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert befores == [0, 1, 2, 3] * 3
    assert held(pool) == dict.fromkeys(NAMES, (3, ELEMENTS))


def test_a_name_that_cannot_be_replaced_leaves_all(
    pool: hugepool.Pool, other: hugepool.Pool, saved: Path
) -> None:
    pool.publish("n0", np.zeros(3))
    other.create("n2", 5)
    before = held(pool)
    with pytest.raises(hugepool.ArrayBusyError, match="not sealed"):
        pool.restore(saved, replace=True)
    assert held(pool) == before


def test_a_name_that_is_taken_meanwhile_leaves_all(
    pool: hugepool.Pool, other: hugepool.Pool, saved: Path
) -> None:
    taken = once_at(NBYTES, lambda: other.put("n2", np.arange(5.0)))
    with pytest.raises(hugepool.ArrayExistsError, match="taken"):
        pool.restore(saved, progress=taken)
    assert held(pool) == {"n2": (1, 5)}


def test_a_part_that_is_destroyed_meanwhile_leaves_all(
    pool: hugepool.Pool, other: hugepool.Pool, saved: Path
) -> None:
    for name in NAMES:
        pool.put(name, np.zeros(3))

    def destroy() -> None:
        (name,) = (name for name in held(other) if name.startswith("n1.new-"))
        other.destroy(name)

    with pytest.raises(hugepool.HugepoolError, match="gone"):
        pool.restore(saved, replace=True, progress=once_at(2 * NBYTES + 1, destroy))
    assert held(pool) == dict.fromkeys(NAMES, (1, 3))


RESTORER = """
import hugepool, sys
from pathlib import Path

def progress(done, total):
    if done > total // 2:
        print("half", flush=True)
        sys.stdin.readline()

hugepool.connect().restore(sys.argv[1], replace=sys.argv[2] == "replace", progress=progress)
"""


@pytest.mark.parametrize("how", ["replace", "new"])
def test_who_is_killed_at_it_leaves_nothing(
    service: Service, pool: hugepool.Pool, saved: Path, how: str
) -> None:
    if how == "replace":
        pool.put("n0", np.zeros(3))
    before = held(pool)
    script = f"import sys\nsys.argv[1:] = [{str(saved)!r}, {how!r}]\n" + RESTORER
    victim = service.python(script)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "half\n"
    assert len(held(pool)) > len(before)
    victim.kill()
    assert settles(lambda: held(pool) == before), held(pool)
    pool.restore(saved, replace=how == "replace")
    assert held(pool).keys() == RESTORED.keys()


# What is somebody else's by then ------------------------------------------------


def test_what_failed_does_not_destroy_what_another_has_put_meanwhile(
    pool: hugepool.Pool, other: hugepool.Pool, saved: Path
) -> None:
    last = sorted(saved.rglob("*.data"))[-1]
    content = bytearray(last.read_bytes())
    content[100] ^= 1
    last.write_bytes(content)
    put = once_at(NBYTES, lambda: other.put("n0", np.arange(5.0)))
    with pytest.raises(hugepool.SnapshotError, match="damaged"):
        pool.restore(saved, progress=put)
    assert held(pool) == {"n0": (1, 5)}


def test_what_failed_does_not_destroy_later_what_another_has_restored(
    service: Service, pool: hugepool.Pool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "0")
    with hugepool.connect(service.address) as impatient:
        with pytest.raises(hugepool.CoordinatorUnreachableError):
            impatient.restore(saved, progress=once_at(NBYTES + 1, service.kill))
        service.start()
        pool.restore(saved, replace=True)
        for _ in range(3):
            impatient.list()  # takes along what was to be said
        assert settles(lambda: held(pool) == RESTORED), held(pool)


def test_ctrl_c_while_nobody_answers_leaves_nothing(
    service: Service, pool: hugepool.Pool, other: hugepool.Pool, saved: Path
) -> None:
    assert service.process is not None
    process = service.process

    def stop() -> None:
        process.send_signal(signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        pool.restore(saved, progress=once_at(2 * NBYTES, stop))
    # It has come back, and the coordinator is stopped still.
    process.send_signal(signal.SIGCONT)
    assert settles(lambda: pool.stats().arrays == 0), held(other)
    pool.restore(saved)
    assert held(other) == RESTORED


def test_ctrl_c_while_nobody_answers_gives_back_later_what_it_is_granted(
    service: Service, pool: hugepool.Pool
) -> None:
    assert service.process is not None
    pool.list()
    service.process.send_signal(signal.SIGSTOP)
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        pool.create("x", 10)
    service.process.send_signal(signal.SIGCONT)
    assert settles(lambda: pool.list() == ()), pool.list()
    pool.put("x", np.ones(3))
    assert held(pool) == {"x": (1, 3)}
