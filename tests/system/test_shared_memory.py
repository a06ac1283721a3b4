"""``hugepool.SharedMemory`` in the place of the standard library's, here and over processes."""

from __future__ import annotations

import errno
import importlib.util
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool.handover import pool_at
from hugepool_common.paths import ADDRESS_VARIABLE
from support.blocks import total, write_by_name, write_to
from support.host import require, settles
from support.service import Service, said, tell

STARTS = ["fork", "spawn", "forkserver"]

# Python 3.12 and later; a pool's own thread holds nothing that a child needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork")

CPYTHON_TESTS = (
    "test_invalid_shared_memory_creation",
    "test_shared_memory_ShareableList_basics",
    "test_shared_memory_ShareableList_pickling",
    "test_shared_memory_ShareableList_pickling_dead_object",
    "test_shared_memory_SharedMemoryManager_basics",
    "test_shared_memory_across_processes",
    "test_shared_memory_basics",
    "test_shared_memory_name_with_embedded_null",
    "test_shared_memory_pickle_unpickle",
    "test_shared_memory_pickle_unpickle_dead_object",
    "test_shared_memory_recreate",
)
"""Those of CPython's tests that apply; docs/interop.md says why the others do not."""


@pytest.fixture(autouse=True)
def running(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that the class finds as any program would."""
    service.start()
    monkeypatch.setenv(ADDRESS_VARIABLE, service.address)
    return service


def buf(block: hugepool.SharedMemory) -> memoryview:
    """The bytes of a block that is not closed."""
    assert block.buf is not None
    return block.buf


@pytest.fixture
def block(running: Service) -> Iterator[hugepool.SharedMemory]:
    """A block of 512 bytes."""
    made = hugepool.SharedMemory("block", create=True, size=512)
    yield made
    made.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", STARTS)
def test_cpythons_own_tests_pass(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec("test._test_multiprocessing") is not None
    require("cpython-tests", there, "this Python came without its own tests")
    monkeypatch.delenv(ADDRESS_VARIABLE)  # with a private coordinator, as out of the box
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "support.cpython_cases", start, *CPYTHON_TESTS],
        capture_output=True,
        text=True,
        timeout=850,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 9, done.stderr  # as many as Python 3.11 has


def test_a_block_is_zeros_of_exactly_its_size(block: hugepool.SharedMemory) -> None:
    assert block.name == "block"
    assert block.size == len(buf(block)) == 512
    assert bytes(buf(block)) == bytes(512)
    assert not buf(block).readonly
    assert repr(block) == "SharedMemory('block', size=512)"


def test_attached_it_is_the_same_bytes_and_the_size_is_not_asked_for(
    block: hugepool.SharedMemory,
) -> None:
    again = hugepool.SharedMemory("block", size=10**9)
    assert again.size == 512
    buf(again)[3] = 7
    assert buf(block)[3] == 7
    again.close()
    again.close()
    assert again.buf is None
    assert (again.name, again.size) == ("block", 512)


@pytest.mark.parametrize(
    "arguments",
    [
        {"create": True},
        {"create": True, "size": 0},
        {"create": True, "size": -1},
        {"size": -1, "name": "block"},
        {},
        {"name": "block\0a"},
        {"name": "a/b", "create": True, "size": 1},
        {"create": True, "size": 1, "track": False},
    ],
)
def test_what_cannot_be_is_a_value_error(
    block: hugepool.SharedMemory, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        hugepool.SharedMemory(**arguments)


def test_names_that_are_taken_or_absent(block: hugepool.SharedMemory) -> None:
    with pytest.raises(FileExistsError) as taken:
        hugepool.SharedMemory("block", create=True, size=1)
    assert (taken.value.errno, taken.value.filename) == (errno.EEXIST, "block")
    with pytest.raises(FileNotFoundError) as absent:
        hugepool.SharedMemory("absent")
    assert (absent.value.errno, absent.value.filename) == (errno.ENOENT, "absent")


def test_unlinked_once_it_goes_with_its_last_user(block: hugepool.SharedMemory) -> None:
    buf(block)[:5] = b"howdy"
    again = hugepool.SharedMemory("block")
    again.unlink()
    with pytest.raises(FileNotFoundError):
        block.unlink()
    with pytest.raises(FileNotFoundError):
        hugepool.SharedMemory("block")
    assert bytes(buf(again)[:5]) == b"howdy"
    other = hugepool.SharedMemory("block", create=True, size=8)  # the name is free
    assert bytes(buf(other)) == bytes(8)
    for each in (again, other):
        each.close()


def test_names_are_made_up(running: Service) -> None:
    blocks = [hugepool.SharedMemory(create=True, size=1) for _ in range(3)]
    assert len({one.name for one in blocks}) == 3
    for one in blocks:
        one.unlink()
        one.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda view: np.frombuffer(view, "u1"),
        lambda view: np.ndarray(512, "u1", view),
        lambda view: view[10:20],
    ],
    ids=["frombuffer", "ndarray", "slice"],
)
def test_it_is_not_closed_under_who_uses_it(
    block: hugepool.SharedMemory, use: Callable[[memoryview], Any]
) -> None:
    user = use(buf(block))
    with pytest.raises(BufferError):
        block.close()
    assert user[0] == 0
    del user
    block.close()
    assert block.buf is None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_it_is_attached_again(block: hugepool.SharedMemory, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(block, protocol))
    buf(again)[:3] = b"new"
    assert bytes(buf(block)[:3]) == b"new"
    again.close()


def test_pickled_and_then_unlinked_it_is_not_found(running: Service) -> None:
    block = hugepool.SharedMemory(create=True, size=5)
    passed = pickle.dumps(block)
    block.close()
    block.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(passed)


@pytest.mark.parametrize("start", STARTS)
def test_processes_write_it_by_name_and_by_object(block: hugepool.SharedMemory, start: Any) -> None:
    context = multiprocessing.get_context(start)
    ways: list[tuple[Any, Any, bytes]] = [(write_to, block, b"HELLO")]
    if start != "forkserver":  # another test's server may have begun with another environment
        ways.append((write_by_name, block.name, b"howdy"))
    for target, argument, text in ways:
        child = context.Process(target=target, args=(argument, text))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert bytes(buf(block)[:5]) == text


def test_large_blocks_lie_on_huge_pages_in_every_process(running: Service) -> None:
    block = hugepool.SharedMemory(create=True, size=4 << 20)
    pages = block.pages
    require("collapse", pages.huge_bytes == pages.length, f"no huge pages: {pages}")
    np.frombuffer(buf(block), "f8")[:] = 1.0
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert processes.apply(total, [block]) == ((4 << 20) / 8, pages.length)
    block.unlink()
    block.close()


HOLDER = """
import sys, hugepool
block = hugepool.SharedMemory(create=True, size=10)
print(block.name, flush=True)
sys.stdin.readline()
"""


def test_killed_with_its_creator_it_goes(running: Service) -> None:
    creator = running.python(HOLDER)
    name = said(creator)
    hugepool.SharedMemory(name).close()
    creator.kill()
    creator.wait()
    with hugepool.connect(running.address) as pool:
        assert settles(lambda: not pool.list())
    with pytest.raises(FileNotFoundError):
        hugepool.SharedMemory(name)


ATTACHER = """
import sys, hugepool
block = hugepool.SharedMemory(sys.argv[1] if len(sys.argv) > 1 else sys.stdin.readline().strip())
block.buf[0] = 1
print("attached", flush=True)
"""


def test_the_end_of_who_attached_it_deletes_nothing(
    block: hugepool.SharedMemory, running: Service
) -> None:
    attacher = running.python(ATTACHER)
    assert tell(attacher, block.name) == "attached"
    assert attacher.wait(60) == 0
    again = hugepool.SharedMemory(block.name, track=False)
    assert buf(again)[0] == 1
    again.close()


def test_who_attached_it_keeps_it_when_its_creator_is_killed(running: Service) -> None:
    creator = running.python(HOLDER)
    name = said(creator)
    kept = hugepool.SharedMemory(name)
    creator.kill()
    creator.wait()
    buf(kept)[9] = 9
    with hugepool.connect(running.address) as pool:
        kept.close()
        assert settles(lambda: not pool.list())


def test_it_stands_beside_arrays(running: Service) -> None:
    with hugepool.connect(running.address) as pool:
        x = pool.create("x", 4, "f8")
        bytes_of_x = hugepool.SharedMemory("x", pool=pool)
        assert bytes_of_x.size == 32
        np.frombuffer(buf(bytes_of_x), "f8")[2] = 5.0
        assert x.array.tolist() == [0, 0, 5, 0]
        bytes_of_x.close()
        x.seal()
        with pytest.raises(PermissionError):
            hugepool.SharedMemory("x", pool=pool)


def test_threads_make_and_remove_blocks_of_their_own(running: Service) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                block = hugepool.SharedMemory(f"t{number}", create=True, size=100)
                buf(block)[0] = number
                assert buf(block)[0] == number
                block.unlink()
                block.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not pool_at().list()
