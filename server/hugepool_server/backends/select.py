"""The ladder: which rungs to try for a request, in which order, and what to say when none will do.

======  =====================  =================================================
rung    needs                  gives
======  =====================  =================================================
1G      pool, mount, request   pages of 1 GiB
2M      pool, mount            pages of 2 MiB, reserved or refused as a whole
tmpfs   a mount option         2 MiB from plain allocation
shm     Linux 6.1              2 MiB by collapse, without privilege
4K      nothing                base pages
======  =====================  =================================================
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from dataclasses import replace

import msgspec

from hugepool_common.errors import (
    ArrayBusyError,
    CancelledError,
    InvalidSpecError,
    NotEnoughMemoryError,
    NotEnoughPagesError,
    NotPermittedError,
    SegmentChangedError,
)
from hugepool_common.mapping import CancelFlag, Progress
from hugepool_common.pages import Host, LiveHost
from hugepool_common.spec import BY_LENGTH, Fall, HugePages, PageReport, PageSize, Segment
from hugepool_common.units import KIB, MIB, format_bytes, parse_page_size
from hugepool_server.backends.base import Backend, RungRefused, SegmentRequest
from hugepool_server.backends.hugetlbfs import Hugetlbfs1G, Hugetlbfs2M, HugetlbfsBackend
from hugepool_server.backends.shm_collapse import ShmCollapse
from hugepool_server.backends.small_pages import SmallPages
from hugepool_server.backends.tmpfs import TmpfsHuge
from hugepool_server.reclaim import SegmentDirectories

_KINDS: tuple[type[Backend], ...] = (Hugetlbfs1G, Hugetlbfs2M, TmpfsHuge, ShmCollapse, SmallPages)

RUNGS: tuple[str, ...] = tuple(kind.rung for kind in _KINDS)
"""All backings, from the largest pages down."""

SMALL_RUNG = SmallPages.rung
SMALL_ARRAY_BYTES = MIB
"""Arrays below this take base pages unless asked otherwise: a huge page would be mostly waste."""

_HUGE_2M = (Hugetlbfs2M.rung, TmpfsHuge.rung, ShmCollapse.rung)
_SIZE_RUNGS: dict[PageSize, tuple[str, ...]] = {
    "auto": _HUGE_2M,
    "2M": _HUGE_2M,
    "1G": (Hugetlbfs1G.rung,),
    "4K": (),
}


def backend_of(rung: str) -> Backend:
    """The backend of a rung.

    Raises
    ------
    InvalidSpecError
        No rung has that name.
    """
    for kind in _KINDS:
        if kind.rung == rung:
            return kind()
    raise InvalidSpecError(f"{rung!r} is not a backing", needed=f"one of {' '.join(RUNGS)}")


def usable_rungs(host: Host) -> list[str]:
    """The rungs that could give a segment of one page, from the largest pages down."""
    found = []
    for kind in _KINDS:
        backend = kind()
        if backend.unusable(host, backend.page_size) is None:
            found.append(kind.rung)
    return found


def make_segment(
    request: SegmentRequest,
    *,
    huge_pages: HugePages,
    page_size: PageSize,
    backing: str,
    directories: SegmentDirectories,
    progress: Progress | None = None,
    cancel: CancelFlag | None = None,
    host: Host | None = None,
) -> tuple[Segment, PageReport]:
    """Make, prove and publish a segment on the first rung that will do.

    Parameters
    ----------
    request
        What to make.
    huge_pages
        ``try`` walks down to base pages, ``on`` fails before them, ``off`` takes them.
    page_size
        Restricts the rungs; with ``try`` smaller pages may follow.
    backing
        Exactly this rung; empty walks the ladder.
    directories
        Where to put it.
    progress
        Called with bytes done and bytes in all.
    cancel
        Stops soon after it is set.
    host
        What to decide by; looked at anew by default.

    Returns
    -------
    Segment, PageReport
        The report's reasons tell every rung passed over.

    Raises
    ------
    InvalidSpecError
        The options contradict each other, or name no rung.
    NotEnoughPagesError
        Huge pages were demanded and none can be had.
    NotEnoughMemoryError
        No rung has room.
    CancelledError
        `cancel` was set; nothing is kept.
    """
    rungs = rungs_for(request.nbytes, huge_pages, page_size, backing)
    falls: list[Fall] = []
    if rungs[0] == SMALL_RUNG and len(rungs) > 1:
        reason = f"arrays under {_iec(SMALL_ARRAY_BYTES)} take small pages"
        falls.append(Fall(_HUGE_2M[0], BY_LENGTH, 0, reason, "ask for huge_pages='on'"))
    whole = huge_pages == "on" or backing not in ("", SMALL_RUNG)
    host = host or LiveHost()  # a small array needs little of it
    for rung in rungs:
        if cancel is not None and cancel.is_set():
            raise CancelledError("making the segment was cancelled")
        try:
            segment, report = backend_of(rung).make(
                replace(request, whole=whole), directories, host, progress, cancel
            )
        except RungRefused as refusal:
            falls.append(refusal.fall)
        else:
            return segment, msgspec.structs.replace(report, reasons=(*falls, *report.reasons))
    raise _nothing(request.nbytes, rungs, falls, host)


def rungs_for(nbytes: int, huge_pages: HugePages, page_size: PageSize, backing: str) -> list[str]:
    """The rungs to try, in order; at least one.

    Raises
    ------
    InvalidSpecError
        The options contradict each other, or name no rung or page size.
    """
    parse_page_size(page_size)
    if huge_pages not in ("try", "on", "off"):
        raise InvalidSpecError(f"huge_pages={huge_pages!r}", needed="try, on or off")
    if (huge_pages == "on" and page_size == "4K") or (
        huge_pages == "off" and page_size in ("2M", "1G")
    ):
        raise InvalidSpecError(
            f"huge_pages={huge_pages!r} and page_size={page_size!r} contradict each other"
        )
    if backing:
        _check_backing(huge_pages, page_size, backing)
        return [backing]
    if huge_pages == "off" or page_size == "4K":
        return [SMALL_RUNG]
    huge = list(_SIZE_RUNGS[page_size])
    if huge_pages == "on":
        return huge
    if page_size == "1G":
        huge += _HUGE_2M
    if page_size == "auto" and nbytes < SMALL_ARRAY_BYTES:
        return [SMALL_RUNG, *huge]
    return [*huge, SMALL_RUNG]


def _check_backing(huge_pages: HugePages, page_size: PageSize, backing: str) -> None:
    backend_of(backing)
    wrong_size = page_size != "auto" and backing not in (_SIZE_RUNGS[page_size] or (SMALL_RUNG,))
    wrong_mode = huge_pages == ("on" if backing == SMALL_RUNG else "off")
    if wrong_size or wrong_mode:
        option = f"page_size={page_size!r}" if wrong_size else f"huge_pages={huge_pages!r}"
        raise InvalidSpecError(f"backing={backing!r} and {option} contradict each other")


def unlink_segment(segment: Segment) -> None:
    """Remove a segment's file; the pages go with the last mapping.

    Does nothing if the file is gone or is another one.
    """
    try:
        status = os.lstat(segment.path)
        if (status.st_dev, status.st_ino) == (segment.device, segment.inode):
            os.unlink(segment.path)
    except (FileNotFoundError, NotADirectoryError):
        return


def seal_segment(segment: Segment, file_mode: int) -> None:
    """Take all write permission off a segment, if nobody maps it writable.

    Parameters
    ----------
    segment
        Published, and not open in this process.
    file_mode
        0o400, or 0o440 for a group.

    Raises
    ------
    ArrayBusyError
        A writable mapping or descriptor is alive somewhere; the mode is as before.
    SegmentChangedError
        The file is gone or is another one.
    NotPermittedError
        The file system or the owner does not allow the check.
    """
    try:
        fd = os.open(segment.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SegmentChangedError("the segment was destroyed", where=segment.path) from None
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (segment.device, segment.inode):
            raise SegmentChangedError("the file is another one", where=segment.path)
        # First the mode, then the look: nobody can open it for writing in between.
        os.fchmod(fd, file_mode)
        try:
            _refuse_writers(fd, segment.path)
        except BaseException:
            os.fchmod(fd, status.st_mode & 0o7777)
            raise
    finally:
        os.close(fd)


def _refuse_writers(fd: int, path: str) -> None:
    # The kernel grants a read lease only if no descriptor and no mapping could
    # write. Should root open the file for writing in the instant that we hold it,
    # we are told by a signal: one that is ignored by default, not SIGIO, which kills.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise ArrayBusyError(
                "a writable mapping is still alive",
                where=path,
                remedy="detach it, or let a job under way or its process end (a child "
                "forked before the seal is one), and seal again",
            ) from None
        raise NotPermittedError(
            f"whether anybody can still write to the segment cannot be known: {error.strerror}",
            where=path,
        ) from error
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _nothing(
    nbytes: int, rungs: list[str], falls: list[Fall], host: Host
) -> NotEnoughPagesError | NotEnoughMemoryError:
    """The error when every rung refused, with the facts of the first and all reasons."""
    tried = [fall for fall in falls if fall.call != BY_LENGTH]
    reasons = "; ".join(f"{fall.rung}: {fall.reason}" for fall in tried)
    remedy = next((fall.remedy for fall in tried if fall.remedy), "")
    too_large = host.past_all_memory(nbytes, limited=False)
    if too_large:  # what mends a rung elsewhere makes no room here
        remedy = f"{too_large}: make a smaller array, or several on several machines"
    if SMALL_RUNG in rungs:
        last = next(fall for fall in tried if fall.rung == SMALL_RUNG)
        return NotEnoughMemoryError(
            f"no page kind has room ({reasons})",
            needed=format_bytes(nbytes),
            had=last.reason,
            remedy=remedy if too_large else last.remedy or remedy,
        )
    backend = backend_of(rungs[0])
    pool = host.pool(backend.page_size) if isinstance(backend, HugetlbfsBackend) else None
    count = backend.length_of(nbytes) // backend.page_size
    return NotEnoughPagesError(
        f"huge pages were demanded and cannot be had ({reasons})",
        needed=f"{count} huge {'page' if count == 1 else 'pages'} of {_iec(backend.page_size)}",
        had=f"{pool.available_pages} free" if pool else tried[0].reason,
        where=rungs[0],
        remedy=remedy or (host.pool_shortage(backend.page_size, count) if pool else ""),
    )


def _iec(page_size: int) -> str:
    for letter, unit in (("GiB", 1 << 30), ("MiB", MIB)):
        if page_size >= unit:
            return f"{page_size // unit} {letter}"
    return f"{page_size // KIB} KiB"
