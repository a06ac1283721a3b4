"""Every error that hugepool raises, numbered, with the words a user needs to mend it.

An error crosses the socket as its :class:`ErrorCode` and its four facts (needed,
had, where, remedy) and is raised on the far side as the same class, so a caller
catches ``hugepool.NotEnoughPagesError`` or ``MemoryError`` alike, wherever the
failure happened. Numbers are never used again once retired.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ErrorCode(IntEnum):
    """Numbered kinds of failure on the wire."""

    INTERNAL = 1
    PROTOCOL = 2
    INVALID_SPEC = 3
    ARRAY_NOT_FOUND = 4
    ARRAY_EXISTS = 5
    ARRAY_BUSY = 6
    ARRAY_SEALED = 7
    NOT_PERMITTED = 8
    NOT_ENOUGH_PAGES = 9
    NOT_ENOUGH_MEMORY = 10
    COORDINATOR_UNREACHABLE = 11
    REQUEST_TIMEOUT = 12
    INDEX_OUT_OF_RANGE = 13
    INVALID_MATRIX = 14
    JOB_FAILED = 15
    NO_WORKERS = 16
    MISSING_EXTRA = 17
    UNSUPPORTED_PLATFORM = 18
    CANCELLED = 19
    SEGMENT_CHANGED = 20
    COORDINATOR_RUNNING = 21
    DETACHED = 22
    ARRAY_LOST = 23
    JOB_INTERRUPTED = 24
    CHECKSUM_MISMATCH = 25
    QUOTA_EXCEEDED = 26
    SNAPSHOT_INVALID = 27
    LEASE_EXPIRED = 28


class HugepoolError(Exception):
    """Root of all hugepool errors.

    Parameters
    ----------
    message
        What went wrong, in one sentence without a final stop.
    needed, had
        What the operation asked for and what was there, with units.
    where
        The file, mount, pool, array or frame that it happened on.
    remedy
        The command or change that mends it.
    """

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL

    def __init__(
        self, message: str, *, needed: str = "", had: str = "", where: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.needed = needed
        self.had = had
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message
        facts = [
            f"{word} {fact}"
            for word, fact in (("needed", self.needed), ("had", self.had), ("at", self.where))
            if fact
        ]
        if facts:
            text += f" ({', '.join(facts)})"
        if self.remedy:
            text += f"; {self.remedy}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[HugepoolError], facts: dict[str, str]) -> HugepoolError:
    error = kind(facts["message"])
    error.__dict__.update(facts)
    return error


class ProtocolError(HugepoolError, ValueError):
    """A frame or message that does not follow the control protocol."""

    code = ErrorCode.PROTOCOL


class InvalidSpecError(HugepoolError, ValueError):
    """A name, shape, dtype or option that no array can have."""

    code = ErrorCode.INVALID_SPEC


class ArrayNotFoundError(HugepoolError, KeyError):
    """No array has this name."""

    code = ErrorCode.ARRAY_NOT_FOUND


class ArrayExistsError(HugepoolError, FileExistsError):
    """The name is taken."""

    code = ErrorCode.ARRAY_EXISTS


class ArrayBusyError(HugepoolError, BufferError):
    """Live views or writers forbid the operation."""

    code = ErrorCode.ARRAY_BUSY


class ArraySealedError(HugepoolError, PermissionError):
    """A write was asked of a sealed array."""

    code = ErrorCode.ARRAY_SEALED


class NotPermittedError(HugepoolError, PermissionError):
    """The caller's identity does not allow the operation."""

    code = ErrorCode.NOT_PERMITTED


class NotEnoughPagesError(HugepoolError, MemoryError):
    """Huge pages were demanded and this host does not give them."""

    code = ErrorCode.NOT_ENOUGH_PAGES


class NotEnoughMemoryError(HugepoolError, MemoryError):
    """No page kind has room for the array."""

    code = ErrorCode.NOT_ENOUGH_MEMORY


class CoordinatorUnreachableError(HugepoolError, ConnectionError):
    """No coordinator answers at the address."""

    code = ErrorCode.COORDINATOR_UNREACHABLE


class LeaseExpiredError(CoordinatorUnreachableError):
    """The coordinator was out of reach for longer than the lease of a session over TCP.

    That session is over, and with it every handle: nothing of it begins again by itself.
    """

    code = ErrorCode.LEASE_EXPIRED


class RequestTimeoutError(HugepoolError, TimeoutError):
    """The coordinator did not answer in time."""

    code = ErrorCode.REQUEST_TIMEOUT


class IndexOutOfRangeError(HugepoolError, IndexError):
    """An index or column lies outside its array.

    Attributes
    ----------
    position
        Where the first bad one stands in the index array or in ``indices``; -1 if unknown.
    """

    code = ErrorCode.INDEX_OUT_OF_RANGE

    def __init__(self, message: str, *, position: int = -1, **facts: str) -> None:
        super().__init__(message, **facts)
        self.position = position


class InvalidMatrixError(HugepoolError, ValueError):
    """A CSR structure that contradicts itself, or a file that holds no matrix."""

    code = ErrorCode.INVALID_MATRIX


class JobFailedError(HugepoolError, RuntimeError):
    """A part of a job failed in its worker."""

    code = ErrorCode.JOB_FAILED


class NoWorkersError(JobFailedError):
    """A job needs more workers than are registered."""

    code = ErrorCode.NO_WORKERS


class MissingExtraError(HugepoolError, ImportError):
    """An optional dependency is not installed; the remedy names the extra."""

    code = ErrorCode.MISSING_EXTRA


class UnsupportedPlatformError(HugepoolError, OSError):
    """The operating system or kernel lacks something without a substitute."""

    code = ErrorCode.UNSUPPORTED_PLATFORM


class CancelledError(HugepoolError):
    """The request was cancelled by its own client."""

    code = ErrorCode.CANCELLED


class SegmentChangedError(HugepoolError, OSError):
    """The file behind a segment is not the one that was announced."""

    code = ErrorCode.SEGMENT_CHANGED


class CoordinatorRunningError(HugepoolError, FileExistsError):
    """Another coordinator owns the runtime directory."""

    code = ErrorCode.COORDINATOR_RUNNING


class DetachedError(HugepoolError, ValueError):
    """A handle or pool was used after it was detached or closed, or in a forked child."""

    code = ErrorCode.DETACHED


class ArrayLostError(HugepoolError, OSError):
    """The name is known and its memory is gone: removed from outside, or with the mount."""

    code = ErrorCode.ARRAY_LOST


class JobInterruptedError(JobFailedError):
    """The coordinator ended while the job ran; it may be submitted again."""

    code = ErrorCode.JOB_INTERRUPTED


class ChecksumError(HugepoolError, ValueError):
    """The bytes of a sealed array are not those that were sealed."""

    code = ErrorCode.CHECKSUM_MISMATCH


class QuotaExceededError(NotEnoughMemoryError):
    """The array would pass the coordinator's quota, in all or of its user."""

    code = ErrorCode.QUOTA_EXCEEDED


class SnapshotError(HugepoolError, ValueError):
    """A directory holds no whole snapshot, or one that must not be replaced now."""

    code = ErrorCode.SNAPSHOT_INVALID


def _kinds(root: type[HugepoolError]) -> list[type[HugepoolError]]:
    found = [root]
    for kind in root.__subclasses__():
        found += _kinds(kind)
    return found


ERROR_KINDS: dict[ErrorCode, type[HugepoolError]] = {
    kind.code: kind for kind in _kinds(HugepoolError)
}
"""The class of every code."""
