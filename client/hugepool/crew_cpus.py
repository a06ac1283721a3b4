"""Which processors this process may really use, and threads that are kept on one of them."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hugepool_common.cgroups import read_cpu_limits
from hugepool_common.kernel_files import read_kernel_file
from hugepool_common.mounts import parse_mountinfo

_lock = threading.Lock()
_pinned: dict[int, tuple[set[int], int]] = {}
"""By thread id: the CPUs that it might use before, and how many crews keep it on one."""


def allowed_cpus() -> set[int]:
    """Affinity mask of this thread, as it was before a crew narrowed it."""
    with _lock:
        before, _ = _pinned.get(threading.get_native_id(), (None, 0))
    return set(before) if before is not None else os.sched_getaffinity(0)


def pin(cpu: int) -> int:
    """Keep this thread on a CPU until as many :func:`unpin` as there were calls of this.

    Returns
    -------
    int
        The thread, for :func:`unpin`.
    """
    thread = threading.get_native_id()
    with _lock:
        before, crews = _pinned.get(thread, (os.sched_getaffinity(0), 0))
        os.sched_setaffinity(0, (cpu,))
        _pinned[thread] = (before, crews + 1)
    return thread


def unpin(thread: int) -> None:
    """Undo one :func:`pin`; the last one restores the mask that was before the first."""
    with _lock:
        before, crews = _pinned.pop(thread)
        if crews > 1:
            _pinned[thread] = (before, crews - 1)
            return
        try:
            os.sched_setaffinity(thread, before)
        except ProcessLookupError:
            pass  # the thread has ended


@contextmanager
def unpinned() -> Iterator[None]:
    """Give processes that this thread starts meanwhile the CPUs that it had before a crew."""
    narrowed, allowed = os.sched_getaffinity(0), allowed_cpus()
    if narrowed == allowed:
        yield
        return
    os.sched_setaffinity(0, allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, narrowed)


def usable_cpus() -> int:
    """CPUs of our affinity mask, or fewer if a control group gives us less time than that."""
    limits = read_cpu_limits(parse_mountinfo(read_kernel_file("/proc/self/mountinfo")))
    return max(1, min([len(allowed_cpus()), *(math.floor(limit) for limit in limits)]))
