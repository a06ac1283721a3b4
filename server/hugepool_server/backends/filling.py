"""Work over a segment in slices on several threads, watched and cancellable."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from hugepool_common.errors import CancelledError
from hugepool_common.mapping import CancelFlag, Progress
from hugepool_common.units import format_bytes, round_up

MAX_THREADS = 8
SLICE_BYTES = 64 << 20
SPARE_BYTES = 64 << 20
"""Memory that a fill leaves to the rest of the machine."""


class NoRoom(Exception):
    """Free memory does not hold a segment; the text says so in figures."""


_promise_lock = threading.Lock()
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
    step = round_up(min(slice_bytes or SLICE_BYTES, -(-length // threads)), page_size)
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
