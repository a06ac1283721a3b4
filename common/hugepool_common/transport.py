"""What ZeroMQ cannot do without: where it is refused, it ends the process with SIGABRT."""

from __future__ import annotations

import _thread  # of which `threading` makes more than is needed here
import errno
import mmap
import os
import time

from hugepool_common.errors import NotEnoughMemoryError

THREADS = 2
"""A context's: one for sockets, one that closes them."""

SPARE_BYTES = 16 << 20
"""Address space for what the threads and their messages need beside the stacks."""

_FAREWELL_S, _PATIENCE_S = 0.1, 1.0


def check_threads(where: str) -> None:
    """See that a ZeroMQ context can begin here and now.

    Parameters
    ----------
    where
        What it is for, told in the error.

    Raises
    ------
    NotEnoughMemoryError
        This process may have no more threads, or has too little address space left.

    Notes
    -----
    It looks once. Another process of the user may take the last thread a moment later.
    """
    try:
        hold_threads(THREADS, SPARE_BYTES)
    except OSError as error:
        raise NotEnoughMemoryError(
            f"no threads can be started for the connection: {error.strerror}",
            needed=f"{THREADS} threads with their stacks, and {SPARE_BYTES >> 20} MiB",
            where=where,
            remedy="raise the limit of processes (ulimit -u, TasksMax= of a systemd unit) or of "
            "address space (ulimit -v), or free memory",
        ) from None


def hold_threads(count: int, spare_bytes: int) -> None:
    """Have so many threads at once, and address space beside their stacks, for a moment.

    Parameters
    ----------
    count
        Threads beside those that there are, with stacks as ZeroMQ's have them.
    spare_bytes
        Private memory to map while they live; none of it is touched.

    Raises
    ------
    OSError
        EAGAIN: no more threads, or no address space for their stacks. ENOMEM: none beside.
    """
    gate = _thread.allocate_lock()
    ended: list[int] = []
    before = _tasks()
    started = 0
    gate.acquire()
    try:
        for _ in range(count):
            _thread.start_new_thread(_wait_for, (gate, ended))
            started += 1
        # What cannot be written is not counted against the memory that is promised.
        with mmap.mmap(-1, spare_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ):
            pass
    except (RuntimeError, MemoryError):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    finally:
        gate.release()
        # The kernel counts a thread until it is quite gone; ZeroMQ's are started next.
        deadline = time.monotonic() + _FAREWELL_S
        while (len(ended) < started or _tasks() > before) and time.monotonic() < deadline:
            time.sleep(0.0001)


def _wait_for(gate: _thread.LockType, ended: list[int]) -> None:
    # Whoever holds the gate may be interrupted before it opens it.
    if gate.acquire(timeout=_PATIENCE_S):
        gate.release()
    ended.append(1)


def _tasks() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # no descriptor left, or no /proc
        return 0
