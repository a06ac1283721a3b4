from __future__ import annotations

import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hugepool_common import checksum
from hugepool_common.checksum import checksum_of_buffers, checksum_of_file
from hugepool_common.errors import CancelledError, SegmentChangedError
from hugepool_common.spec import is_checksum
from hugepool_common.units import MIB

SIZE = 40 * MIB + 24
DATA = memoryview(os.urandom(MIB) * 40 + os.urandom(24))


@pytest.fixture
def file() -> Iterator[int]:
    """An open file of :data:`DATA` on /dev/shm, without a name."""
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.writev(fd, [DATA])
    yield fd
    os.close(fd)


def by_hand(*parts: memoryview) -> str:
    """The definition, in the plainest words."""
    told = b""
    for part in parts:
        told += struct.pack("<Q", len(part))
        for start in range(0, len(part), 16 * MIB):
            told += struct.pack("<I", zlib.crc32(part[start : start + 16 * MIB]))
    return f"crc32-16M:{hashlib.blake2b(told, digest_size=8).hexdigest()}"


@pytest.mark.parametrize(
    "extents",
    [
        [(0, SIZE)],
        [(0, 0)],
        [],
        [(8, 16 * MIB), (20 * MIB, 0), (24 * MIB, 16 * MIB + 24)],
        [(0, 16 * MIB), (16 * MIB, 24)],
        [(0, 3), (SIZE - 1, 1)],
    ],
)
@pytest.mark.parametrize("threads", [1, 8])
def test_it_is_what_it_is_defined_to_be(
    file: int,
    extents: list[tuple[int, int]],
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads)))
    parts = [DATA[offset : offset + nbytes] for offset, nbytes in extents]
    found = checksum_of_file(file, extents)
    assert found == by_hand(*parts) == checksum_of_buffers(parts)
    assert is_checksum(found)


def test_it_tells_every_bit_and_where_parts_end() -> None:
    zeros = memoryview(bytes(128))
    found = {checksum_of_buffers([zeros[:cut], zeros[cut:]]) for cut in (28, 100)}
    found.add(checksum_of_buffers([zeros]))
    for bit in range(8 * 128):
        changed = bytearray(128)
        changed[bit // 8] ^= 1 << bit % 8
        found.add(checksum_of_buffers([memoryview(changed)[:100], memoryview(changed)[100:]]))
    assert len(found) == 3 + 8 * 128


def test_two_faults_do_not_take_each_other_back() -> None:
    # A CRC of CRCs would: the second flip lies as much nearer to its end as its CRC comes later.
    changed = bytearray(128)
    for bit in (8 * 64 - 200, 8 * 128 - 200 + 96):
        changed[bit // 8] ^= 1 << bit % 8
    halves = [memoryview(changed)[:64], memoryview(changed)[64:]]
    assert checksum_of_buffers(halves) != checksum_of_buffers([memoryview(bytes(64))] * 2)


def test_look_sees_every_byte_once(file: int) -> None:
    seen: dict[tuple[int, int], bytes] = {}

    def look(part: int, offset: int, view: memoryview) -> None:
        assert (part, offset) not in seen
        seen[part, offset] = bytes(view)

    extents = [(0, 17 * MIB), (20 * MIB, 5)]
    checksum_of_file(file, extents, look=look)
    for number, (offset, nbytes) in enumerate(extents):
        own = b"".join(seen[key] for key in sorted(seen) if key[0] == number)
        assert own == DATA[offset : offset + nbytes]


@pytest.mark.parametrize("threads", [1, 8])
def test_progress_and_errors_come_out(
    file: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads)))
    told: list[tuple[int, int]] = []
    checksum_of_file(file, [(0, SIZE)], progress=lambda *done: told.append(done))
    assert told == sorted(told) and told[-1] == (SIZE, SIZE) and len(told) == 3

    def look(part: int, offset: int, view: memoryview) -> None:
        raise KeyError(offset)

    before = threading.active_count()
    with pytest.raises(KeyError):
        checksum_of_file(file, [(0, SIZE)], look=look)
    assert threading.active_count() <= before

    cancel = threading.Event()
    with pytest.raises(CancelledError):
        checksum_of_file(file, [(0, SIZE)], look=lambda *_: cancel.set(), cancel=cancel)


@pytest.mark.parametrize("had", [0, 1, 2])
def test_a_limit_of_threads_makes_it_slower_and_no_error(
    file: int, monkeypatch: pytest.MonkeyPatch, had: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    real = threading.Thread.start
    begun: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if len(begun) == had:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    seen: list[int] = []
    found = checksum_of_file(file, [(0, SIZE)], look=lambda _, offset, view: seen.append(offset))
    assert found == by_hand(DATA)
    assert len(begun) == had
    assert sorted(seen) == list(range(0, SIZE, checksum.SLICE_BYTES)), "each slice once"


def test_a_shorter_file_is_an_error(file: int, tmp_path: Path) -> None:
    os.ftruncate(file, 20 * MIB)
    with pytest.raises(SegmentChangedError, match="shorter") as caught:
        checksum_of_file(file, [(0, SIZE)], where="the file")
    assert (caught.value.had, caught.value.where) == (str(20 * MIB), "the file")


def test_a_file_that_becomes_shorter_meanwhile_is_an_error(file: int) -> None:
    def look(part: int, offset: int, view: memoryview) -> None:
        os.ftruncate(file, 4096)

    with pytest.raises(SegmentChangedError):
        checksum_of_file(file, [(0, SIZE)], look=look)


def test_slices_are_whole_whatever_a_read_gives(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][: max(1, len(buffers[0]) // 3)]], offset)

    monkeypatch.setattr(os, "preadv", short)
    lengths: list[int] = []
    found = checksum_of_file(
        file, [(0, 2 * MIB)], look=lambda part, offset, view: lengths.append(len(view))
    )
    assert found == by_hand(DATA[: 2 * MIB])
    assert set(lengths) == {checksum.SLICE_BYTES}


@pytest.mark.parametrize(
    "text", ["", "crc32-16M:", "crc32-16M:01234567", "crc32-16M:0123456789abcdeF"]
)
def test_what_is_no_checksum(text: str) -> None:
    assert not is_checksum(text)
