"""Hardware counters: dTLB read misses of one thread, or the reason why there are none."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from types import TracebackType

from hugepool_common.errors import HugepoolError
from hugepool_common.linux import perf_event_open

# perf_event_open(2): PERF_TYPE_HW_CACHE, and its config of three bytes, which
# cache, what is done, how it ends.
_TYPE_CACHE = 3
_DTLB, _READ, _MISS = 3, 0, 1
_CONFIG = _DTLB | _READ << 8 | _MISS << 16

_ENABLE, _DISABLE = 0x2400, 0x2401  # PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_DISABLE
_PARANOID = "/proc/sys/kernel/perf_event_paranoid"

_WORDS = {
    errno.ENOENT: "this CPU or virtual machine has no dTLB miss counter",
    errno.EOPNOTSUPP: "this CPU or virtual machine has no dTLB miss counter",
    errno.ENODEV: "this CPU or virtual machine has no dTLB miss counter",
    errno.EINVAL: "the kernel does not know the dTLB miss event of this CPU",
    errno.ENOSYS: "the kernel is built without performance counters",
    errno.EMFILE: "no file descriptor is left",
    errno.EBUSY: "another user has the counter for himself",
}


class TlbCounter:
    """Counts the dTLB read misses, in user mode, of the thread that makes it.

    Open once, use as a context manager around each run, read :attr:`misses` after it::

        counter = TlbCounter()
        with counter:
            kernel(operands, 0, rows)
        counter.misses, counter.note

    Attributes
    ----------
    misses : int or None
        Of the last run; None where they cannot be counted, never a made-up 0.
    note : str
        ``unavailable: `` and why, if `misses` is None; else empty, or what must be
        known of the figure.
    """

    def __init__(self) -> None:
        self.misses: int | None = None
        self.note = ""
        self._fd = -1
        self._thread = threading.get_ident()
        self._before = (0, 0, 0)
        try:
            self._fd = perf_event_open(_TYPE_CACHE, _CONFIG)
        except OSError as error:
            self.note = f"unavailable: {_reason(error)}"
        except HugepoolError as error:
            self.note = f"unavailable: {error}"

    def __enter__(self) -> TlbCounter:
        self.misses = None
        if self._fd < 0:
            return self
        if threading.get_ident() != self._thread:
            self.note = "unavailable: the counter belongs to another thread"
            return self
        self.note = ""
        self._before = self._read()
        fcntl.ioctl(self._fd, _ENABLE, 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd < 0 or self.note:
            return
        fcntl.ioctl(self._fd, _DISABLE, 0)
        after = self._read()
        counted, enabled, running = (b - a for a, b in zip(self._before, after, strict=True))
        self.misses, self.note = _interpreted(counted, enabled, running)

    def close(self) -> None:
        """Give the counter back; from then on it is unavailable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.misses = None
            self.note = "unavailable: the counter is closed"

    def _read(self) -> tuple[int, int, int]:
        """Count so far, and, if the counter tells them, ns enabled and ns really counting."""
        words = os.read(self._fd, 24)
        if len(words) == 24:
            count, enabled, running = struct.unpack("=QQQ", words)
            return count, enabled, running
        return (struct.unpack("=Q", words)[0], 0, 0) if len(words) == 8 else (0, 0, 0)


def _interpreted(counted: int, enabled: int, running: int) -> tuple[int | None, str]:
    """The misses and the note of a run, from what the counter told of it.

    The kernel gives the few counters of a CPU in turns: one that had no turn reads
    0, and one that had some counted only part of the run.
    """
    if counted == 0 and running == 0:
        return None, "unavailable: the counter did not run; others may be using all of them"
    if running < enabled:
        share = running / enabled
        return round(counted / share), f"scaled: counted during {100 * share:.0f} % of the run"
    return counted, ""


def _reason(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        try:
            with open(_PARANOID, encoding="ascii") as file:
                level = file.read().strip()
        except OSError:
            level = "unknown"
        return (
            f"not permitted (kernel.perf_event_paranoid is {level}, 2 or less is needed, "
            "and a container may forbid the call)"
        )
    fallback = error.strerror or str(error)
    return _WORDS.get(error.errno or 0, fallback)
