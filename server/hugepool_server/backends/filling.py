"""Work over a segment in slices on several threads, watched and cancellable."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from hugepool_common.errors import CancelledError
from hugepool_common.mapping import CancelFlag, Progress
from hugepool_common.units import format_bytes, round_up

MAX_THREADS = 8
SLICE_BYTES = 64 << 20
THREAD_BYTES = 1 << 20
"""Less than this is not shared out: a thread would cost more than it saves."""
SEEN_NS = 100_000_000
"""How long free memory that was seen counts, for small segments where there is plenty."""
SPARE_BYTES = 64 << 20
"""Memory that a fill leaves to the rest of the machine."""


class NoRoom(Exception):
    """Free memory does not hold a segment; the text says so in figures."""


@dataclass(slots=True)
class _Seen:
    """Free memory as it was a moment ago, less what small segments have taken since."""

    until_ns: int = 0
    left_bytes: int = 0


_promise_lock = threading.Lock()
_seen = _Seen()
_promised_bytes = 0


def in_slices(
    length: int,
    page_size: int,
    act: Callable[[int, int], None],
    progress: Progress | None,
    cancel: CancelFlag | None,
    *,
    slice_bytes: int | None = None,
) -> None:
    """Call ``act(start, stop)`` for every slice of ``[0, length)``.

    Parameters
    ----------
    length, page_size, slice_bytes
        Bytes; slices are multiples of the page size, 64 MiB unless said otherwise.
    act
        Releases the GIL for the long part. Runs on up to 8 threads.
    progress
        Called on the calling thread with bytes done and bytes in all.
    cancel
        Looked at before every slice.

    Raises
    ------
    CancelledError
        `cancel` was set. All threads have ended, as with any other error.
    """
    threads = min(os.cpu_count() or 1, MAX_THREADS)
    fair_bytes = max(-(-length // threads), THREAD_BYTES)
    step = round_up(min(slice_bytes or SLICE_BYTES, fair_bytes), page_size)
    failed = threading.Event()

    def act_unless_over(start: int, stop: int) -> int:
        if failed.is_set():
            return 0
        try:
            if cancel is not None and cancel.is_set():
                raise CancelledError("making the segment was cancelled")
            act(start, stop)
        except BaseException:
            failed.set()  # here, not where it is noticed: the other threads stop at once
            raise
        return stop - start

    if step >= length:
        act_unless_over(0, length)
        if progress is not None:
            progress(length, length)
        return
    done_bytes = 0
    # Leaving the block joins all threads: nobody works on what is unmapped next.
    with ThreadPoolExecutor(threads, thread_name_prefix="fill") as pool:
        slices = [
            pool.submit(act_unless_over, start, min(start + step, length))
            for start in range(0, length, step)
        ]
        try:
            for slice_ in as_completed(slices):
                done_bytes += slice_.result()
                if progress is not None:
                    progress(done_bytes, length)
        except BaseException:
            failed.set()
            for slice_ in slices:
                slice_.cancel()
            raise


def surely_fits(length: int, headroom: Callable[[], int]) -> bool:
    """Whether so few bytes fit in memory without any doubt.

    To look takes as long as to make a small segment, so what was seen counts for a tenth
    of a second, if it was several times what is spared for the rest of the machine, and
    less what was taken by this. False only says that it is for :func:`promised` to decide.

    Parameters
    ----------
    length
        Bytes to be filled.
    headroom
        Bytes that may be allocated now.
    """
    if length > THREAD_BYTES:
        return False
    with _promise_lock:
        now_ns = time.monotonic_ns()
        if now_ns >= _seen.until_ns:
            _seen.left_bytes = headroom() - _promised_bytes
            _seen.until_ns = now_ns + SEEN_NS
        if _seen.left_bytes < 4 * SPARE_BYTES:
            return False
        _seen.left_bytes -= length
        return True


@contextlib.contextmanager
def promised(length: int, headroom: Callable[[], int]) -> Iterator[None]:
    """Hold a promise of memory while a segment of shared memory is filled.

    Several segments may be made at once, and each alone may fit where all
    together would bring the out-of-memory killer.

    Parameters
    ----------
    length
        Bytes to be filled.
    headroom
        Bytes that may be allocated now.

    Raises
    ------
    NoRoom
        On entering: there is not so much.
    """
    global _promised_bytes
    with _promise_lock:
        # What others have filled of their promise is counted twice: too careful
        # for a moment, never too bold.
        free_bytes = headroom() - _promised_bytes - SPARE_BYTES
        if length > free_bytes:
            raise NoRoom(
                f"{format_bytes(length)} do not fit in "
                f"{format_bytes(max(0, free_bytes))} of free memory"
            )
        _promised_bytes += length
    try:
        yield
    finally:
        with _promise_lock:
            _promised_bytes -= length
