"""The checksum of a payload: CRC-32 of 16 MiB chunks, in threads, and one digest of them all.

It finds damage, not malice. What it covers is exact, so that every process and every
number of threads finds the same: the parts of an object in their order, each cut into
chunks of its own, without the padding between parts. For every part its length in
bytes and the CRCs of its chunks are written down, little-endian, and the checksum is
the BLAKE2b digest of that, 8 bytes long::

    u64 nbytes | u32 crc | u32 crc | ... | u64 nbytes | u32 crc | ...

The outer digest is no CRC, for that of CRCs is linear: the same two bits, flipped in
neighbouring chunks, could take each other back.

Files are read with ``preadv``, not through a mapping: a file that is cut short from
outside is then an error, where a touch would be SIGBUS and the end of the process. The
copy costs about what populating the page tables would.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue

from hugepool_common.errors import CancelledError, SegmentChangedError
from hugepool_common.mapping import CancelFlag, Progress

CHUNK_BYTES = 16 << 20
"""What one CRC covers, and the least that is worth a thread."""

SLICE_BYTES = 512 << 10
"""Read at once: small enough to be in a cache when its CRC is computed."""

MAX_THREADS = 8

Extent = tuple[int, int]
"""Offset and length in bytes of one part."""

Look = Callable[[int, int, memoryview], None]
"""Called with the number of a part, an offset in it, and the bytes that lie there.

From several threads, for one part not in order; the bytes are good during the call.
"""

_Chunk = tuple[int, int, int]
"""Number of a part, and where in it the chunk starts and stops."""


def checksum_of_file(
    fd: int,
    extents: Sequence[Extent],
    *,
    where: str = "",
    look: Look | None = None,
    progress: Progress | None = None,
    cancel: CancelFlag | None = None,
) -> str:
    """Read parts of a file, and tell their checksum.

    Parameters
    ----------
    fd
        Readable; its position is not used.
    extents
        The parts, in order.
    where
        The file's name, for errors.
    look
        Sees every byte once. What it raises ends the reading.
    progress
        Called with bytes done and bytes in all, on the calling thread.
    cancel
        Looked at before every slice.

    Raises
    ------
    SegmentChangedError
        The file ends before a part does.
    CancelledError
        `cancel` was set.
    OSError
        The file cannot be read.
    """
    buffers = threading.local()
    slice_bytes = min(SLICE_BYTES, max((nbytes for _, nbytes in extents), default=0))

    def slices(number: int, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        if not hasattr(buffers, "view"):
            buffers.view = memoryview(bytearray(slice_bytes))
        for offset in range(start, stop, slice_bytes):
            view = buffers.view[: min(slice_bytes, stop - offset)]
            read_whole(fd, view, extents[number][0] + offset, where)
            yield offset, view

    return _checksum([nbytes for _, nbytes in extents], slices, look, progress, cancel)


def checksum_of_buffers(
    buffers: Sequence[memoryview],
    *,
    look: Look | None = None,
    progress: Progress | None = None,
    cancel: CancelFlag | None = None,
) -> str:
    """Tell the checksum of parts that lie in memory.

    Parameters
    ----------
    buffers
        The parts, in order, as contiguous bytes.
    look, progress, cancel
        As of :func:`checksum_of_file`.
    """

    def slices(number: int, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        for offset in range(start, stop, SLICE_BYTES):
            yield offset, buffers[number][offset : min(offset + SLICE_BYTES, stop)]

    return _checksum([buffer.nbytes for buffer in buffers], slices, look, progress, cancel)


def _checksum(
    lengths: Sequence[int],
    slices: Callable[[int, int, int], Iterator[tuple[int, memoryview]]],
    look: Look | None,
    progress: Progress | None,
    cancel: CancelFlag | None,
) -> str:
    over = threading.Event()

    def chunk_crc(number: int, start: int, stop: int) -> int:
        crc = 0
        for offset, view in slices(number, start, stop):
            if over.is_set() or (cancel is not None and cancel.is_set()):
                raise CancelledError("computing a checksum was cancelled")
            if look is not None:
                look(number, offset, view)
            crc = zlib.crc32(view, crc)  # without the GIL
        return crc

    chunks = [
        (number, start, min(start + CHUNK_BYTES, nbytes))
        for number, nbytes in enumerate(lengths)
        for start in range(0, nbytes, CHUNK_BYTES)
    ]
    total_bytes = sum(lengths)
    crcs: dict[_Chunk, int] = {}
    done_bytes = 0

    def take(chunk: _Chunk, crc: int) -> None:
        nonlocal done_bytes
        crcs[chunk] = crc
        done_bytes += chunk[2] - chunk[1]
        if progress is not None:
            progress(done_bytes, total_bytes)

    _for_all(chunks, chunk_crc, take, over)
    outer = hashlib.blake2b(digest_size=8)
    for number, nbytes in enumerate(lengths):
        own = [crcs[chunk] for chunk in chunks if chunk[0] == number]
        outer.update(struct.pack(f"<Q{len(own)}I", nbytes, *own))
    return f"crc32-16M:{outer.hexdigest()}"


def _for_all(
    chunks: Sequence[_Chunk],
    act: Callable[[int, int, int], int],
    take: Callable[[_Chunk, int], None],
    over: threading.Event,
) -> None:
    """Act on every chunk in threads, and take the results on this one as they come."""
    to_do: SimpleQueue[_Chunk] = SimpleQueue()
    for chunk in chunks:
        to_do.put(chunk)
    done: SimpleQueue[tuple[_Chunk, int | BaseException]] = SimpleQueue()

    def work() -> None:
        while not over.is_set():
            try:
                chunk = to_do.get_nowait()
            except Empty:
                return
            try:
                done.put((chunk, act(*chunk)))
            except BaseException as error:
                done.put((chunk, error))

    threads: list[threading.Thread] = []
    try:
        _start(min(len(os.sched_getaffinity(0)), MAX_THREADS, len(chunks)), work, threads)
        for _ in chunks:
            if not threads:
                chunk = to_do.get()
                take(chunk, act(*chunk))
                continue
            chunk, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            take(chunk, outcome)
    finally:
        over.set()
        for thread in threads:  # nobody is to read a descriptor that is closed next
            thread.join()


def _start(count: int, work: Callable[[], None], started: list[threading.Thread]) -> None:
    """Start as many threads as can be had; none where one by itself would be no faster."""
    for number in range(count if count > 1 else 0):
        thread = threading.Thread(target=work, name=f"checksum-{number}")
        try:
            thread.start()
        except RuntimeError:
            return  # a limit of tasks or memory: those that there are do all of it
        started.append(thread)


def read_whole(fd: int, view: memoryview, offset: int, where: str) -> None:
    """Fill a buffer from a file, however little a single call may give.

    Raises
    ------
    SegmentChangedError
        The file ends before.
    """
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise SegmentChangedError(
                "the file is shorter than it was",
                needed=f"{offset + len(view)} bytes",
                had=f"{os.fstat(fd).st_size}",
                where=where,
            )
        done += count
