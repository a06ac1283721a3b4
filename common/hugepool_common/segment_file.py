"""Opening the file of a published segment, and knowing that it is the one announced."""

from __future__ import annotations

import errno
import os
import stat

from hugepool_common.errors import (
    HugepoolError,
    InvalidSpecError,
    NotEnoughMemoryError,
    NotPermittedError,
    SegmentChangedError,
)
from hugepool_common.spec import MAX_EXTENT, Segment

_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EBUSY)


def refusal(error: OSError, path: str, done: str = "mapped") -> HugepoolError:
    """What to raise where the kernel refuses something about a segment without a better word."""
    if isinstance(error, HugepoolError):
        return error
    message = f"the segment cannot be {done}: {error.strerror or error}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return NotEnoughMemoryError(
            message, needed="a free descriptor", where=path, remedy="raise it with: ulimit -n"
        )
    if error.errno in _SCARCE:
        return NotEnoughMemoryError(message, where=path, remedy="free memory, then try again")
    return SegmentChangedError(message, where=path)


def open_segment(segment: Segment, writable: bool) -> int:
    """Open a segment's file without following links, and check it.

    Returns
    -------
    int
        Its descriptor, close-on-exec, read-only unless `writable`.

    Raises
    ------
    InvalidSpecError
        The description contradicts itself.
    SegmentChangedError
        The file is gone or is another one.
    NotPermittedError
        Its mode does not let this user in.
    OSError
        Whatever else the kernel refuses; :func:`refusal` has words for it.
    """
    _check_segment(segment)
    fd = _open_file(segment, writable)
    try:
        _check_file(fd, segment, writable)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_segment(segment: Segment) -> None:
    page = segment.page_size
    if not (
        segment.path.startswith("/")
        and page >= 4096
        and page & (page - 1) == 0
        and 0 < segment.length <= MAX_EXTENT
        and segment.length % page == 0
    ):
        raise InvalidSpecError(
            "no segment can be like this",
            had=f"length {segment.length}, page size {page}",
            where=segment.path,
        )


def _open_file(segment: Segment, writable: bool) -> int:
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # O_NONBLOCK: a FIFO planted under the name must not hold us.
        return os.open(segment.path, flags | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SegmentChangedError("the segment was destroyed", where=segment.path) from None
    except PermissionError as error:
        raise NotPermittedError(
            f"the segment may not be opened {'for writing' if writable else 'for reading'}: "
            f"{error.strerror}",
            where=segment.path,
        ) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR):
            raise SegmentChangedError(
                "the segment is no regular file", where=segment.path
            ) from None
        raise


def _check_file(fd: int, segment: Segment, writable: bool) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SegmentChangedError("the segment is no regular file", where=segment.path)
    # A shorter file would be SIGBUS past its end; another file is a planted one.
    needed = (segment.device, segment.inode, segment.owner_uid, segment.length)
    had = (status.st_dev, status.st_ino, status.st_uid, status.st_size)
    if needed != had:
        raise SegmentChangedError(
            "the file is not the segment that was announced",
            needed="device {}, inode {}, uid {}, {} bytes".format(*needed),
            had="device {}, inode {}, uid {}, {} bytes".format(*had),
            where=segment.path,
        )
    # Root may open anything. Looked at after opening: a seal sets the mode first, and is then
    # refused as long as anybody has the file open for writing.
    if writable and not status.st_mode & 0o222:
        raise NotPermittedError(
            "the segment may not be opened for writing: it is sealed", where=segment.path
        )
