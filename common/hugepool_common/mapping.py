"""One process's view of a segment: checked, aligned, populated, proved.

Alignment is the whole job of an attacher: a file of 2 MiB folios gives huge
page-table entries only where address and file offset agree modulo 2 MiB. So a
mapping lies at an aligned place inside a larger reservation of address space
(:mod:`~hugepool_common.reservation`).

One root ndarray exports the reservation's buffer and every array handed out is a
view of it. The last view that dies frees the address space; no finalizer has to
guess when that is.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from hugepool_common import linux
from hugepool_common.errors import (
    ArrayBusyError,
    CancelledError,
    DetachedError,
    HugepoolError,
    InvalidSpecError,
    NotEnoughMemoryError,
)
from hugepool_common.pages import hpage_pmd_size
from hugepool_common.reservation import fill_gap, map_over, reserve
from hugepool_common.segment_file import open_segment, refusal
from hugepool_common.spec import (
    Fall,
    PageReport,
    Part,
    Segment,
    check_dtype,
    check_shape,
)
from hugepool_common.units import format_bytes, page_size_name, round_up

Progress = Callable[[int, int], None]
"""Called with ``(done_bytes, total_bytes)``."""

POPULATE_SLICE = 64 << 20
"""Bytes populated by one system call: the longest wait of a cancellation."""

_IOV_MAX = 1024
_EHWPOISON = 133
_PATIENCE = 16


_FORK_PATIENCE_S = 1.0
"""How long a fork and the making of a mapping that a child is not to have wait for each other.

For ever would be a deadlock where the hooks of a fork, or a garbage collection, take a
lock that somebody holds who waits here.
"""

_mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()

_unforked: weakref.WeakValueDictionary[int, NDArray[numpy.uint8]] = weakref.WeakValueDictionary()
"""Root arrays of mappings that a forked child does not get, by address."""

_no_fork: Any = threading.RLock()
"""Held while such a mapping is made, and by forks."""


class CancelFlag(Protocol):
    """What stops a long fill; :class:`threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether the work is no longer wanted."""


class Mapping:
    """An aligned mapping of one segment in this process.

    Made by :meth:`open` (attacher) or :meth:`over` (creator), not by itself. A
    context manager that closes.

    Attributes
    ----------
    address
        Where the segment's first byte is, a multiple of the alignment.
    length
        Bytes mapped.
    page_size
        Bytes per page that the backing promises.
    writable
        Whether arrays of it may be written; where not, the kernel refuses too.
    segment
        What :meth:`open` was given, else None.

    Notes
    -----
    Methods may be called from any thread, and in a forked child.
    """

    def __init__(
        self,
        fd: int,
        length: int,
        *,
        page_size: int,
        writable: bool,
        private: bool = False,
        forked: bool = True,
        segment: Segment | None = None,
    ) -> None:
        block = os.fstatvfs(fd).f_bsize
        alignment = max(hpage_pmd_size(), page_size, block)
        owner, base, unmap = reserve(length + alignment, writable)
        address = round_up(base, alignment)
        map_over(fd, address, length, writable=writable, private=private, owner=owner)
        self.address = address
        self.length = length
        self.page_size = page_size
        self.writable = writable
        self.segment = segment
        self._lock = threading.Lock()
        self._unmap = unmap
        self._root: NDArray[numpy.uint8] | None = numpy.frombuffer(
            owner, dtype=numpy.uint8, count=length, offset=address - base
        )
        del owner
        self._idle_references = self._references()
        _mappings.add(self)
        if not forked:
            _unforked[address] = self._root
            with suppress(OSError):  # then a child gets it, as it gets all others
                linux.advise(address, length, linux.MADV_DONTFORK)

    @classmethod
    def open(
        cls,
        segment: Segment,
        *,
        writable: bool = False,
        private: bool = False,
        populate: bool = True,
        forked: bool = True,
    ) -> Mapping:
        """Attach to a published segment.

        Parameters
        ----------
        segment
            As its coordinator announced it; the file must still be that one.
        writable
            Map read-write. Otherwise the descriptor is read-only, and so the
            kernel refuses every later attempt to write.
        private
            Map MAP_PRIVATE, read-only: what a naive attacher would do, for comparison.
        populate
            Install the page tables now, so that no first access waits or fails.
        forked
            With False a child that is forked has private zeros in its place, and so
            cannot keep the segment writable: for what only the library's own code writes.

        Raises
        ------
        SegmentChangedError
            The file is gone or is another one.
        NotPermittedError
            Its mode does not let this user in.
        NotEnoughMemoryError
            No address space, page tables or descriptors for it.
        """
        linux.require_linux()
        if writable and private:
            raise InvalidSpecError("a private mapping is read-only")
        try:
            try:
                # A child that is forked in here would have the descriptor, and keep it.
                if not forked:
                    _no_fork.acquire(timeout=_FORK_PATIENCE_S)
                fd = open_segment(segment, writable)
                try:
                    mapping = cls(
                        fd,
                        segment.length,
                        page_size=segment.page_size,
                        writable=writable,
                        private=private,
                        forked=forked,
                        segment=segment,
                    )
                finally:
                    os.close(fd)  # the mapping keeps the inode
            finally:
                while _no_fork._is_owned():  # also if Ctrl-C kept it from being released before
                    _no_fork.release()
            if populate:
                try:
                    mapping.populate(writable)
                except BaseException:
                    mapping.close()
                    raise
        except OSError as error:  # many errors of ours are OSErrors as well
            if isinstance(error, HugepoolError):
                raise
            raise refusal(error, segment.path) from error
        return mapping

    @classmethod
    def over(cls, fd: int, length: int, *, page_size: int, writable: bool = True) -> Mapping:
        """Map an open descriptor, without touching a page: the creator's way.

        Parameters
        ----------
        fd
            The file; stays the caller's.
        length
            Bytes, a multiple of `page_size` and not more than the file has.

        Raises
        ------
        NotEnoughMemoryError
            No address space, or a sparse hugetlb file that the pool cannot back.
        """
        return cls(fd, length, page_size=page_size, writable=writable)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has unmapped it."""
        return self._root is None

    def array(self, part: Part) -> NDArray[numpy.generic]:
        """An ndarray over a part of the segment, without a copy.

        Its base keeps the mapping alive, also after this object is gone. It is
        read-only where the mapping is, and cannot be made writable.

        Raises
        ------
        InvalidSpecError
            The part has a dtype or shape that cannot be, or does not lie in the segment.
        DetachedError
            The mapping is closed.
        """
        dtype = check_dtype(part.dtype)
        item_size = numpy.dtype(dtype).itemsize
        shape = check_shape(part.shape, item_size)
        inside = type(part.offset) is int and 0 <= part.offset <= self.length - part.nbytes
        if not inside or part.offset % item_size:
            raise InvalidSpecError(
                f"part {part.role!r} does not lie in its segment",
                needed=f"{part.nbytes} bytes at offset {part.offset}",
                had=f"{self.length} bytes",
            )
        with self._lock:
            return numpy.ndarray(shape, dtype, buffer=self._buffer(), offset=part.offset)

    def live_arrays(self) -> int:
        """How many objects keep the mapping alive: arrays, views, memoryviews of them.

        NumPy gives every view the root array as base, whatever it was a view of,
        so the root's reference count is the number of views. What holds a view
        instead of the root (a memoryview, a DLPack capsule) keeps that view alive
        and counted.
        """
        with self._lock:
            return 0 if self._root is None else self._references() - self._idle_references

    def close(self) -> None:
        """Unmap now. Does nothing if already closed.

        Raises
        ------
        ArrayBusyError
            Arrays of it are still alive; nothing is changed.
        """
        with self._lock:
            if self._root is None:
                return
            live = self._references() - self._idle_references
            if live > 0:
                raise ArrayBusyError(
                    "arrays of the mapping are still in use",
                    had=f"{live} live {'array' if live == 1 else 'arrays'}",
                    where=self.segment.path if self.segment else "",
                    remedy="delete them, or let them go out of scope, first",
                )
            self._root = None
            self._unmap()

    def __enter__(self) -> Mapping:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except ArrayBusyError:
            # The traceback of an error under way holds frames, and these hold
            # arrays: that error is the one worth hearing of.
            if error is None:
                raise

    def __repr__(self) -> str:
        if self.closed:
            return "<Mapping closed>"
        mode = "writable" if self.writable else "read-only"
        return (
            f"<Mapping {format_bytes(self.length)} at {self.address:#x}, "
            f"{page_size_name(self.page_size)} pages, {mode}, {self.live_arrays()} live arrays>"
        )

    def populate(
        self,
        write: bool,
        *,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Give every page of a range its entry, with the GIL released.

        Parameters
        ----------
        write
            Make the entries writable. Contents are never changed.
        progress
            Called after every slice of 64 MiB with bytes done and bytes in all.
        cancel
            Looked at before every slice.
        start, stop
            Byte range, multiples of the page size; to the end by default.

        Raises
        ------
        NotEnoughMemoryError
            A page could not be had: file system full, or a cgroup limit. Touching
            it would have been SIGBUS.
        CancelledError
            `cancel` was set.
        """
        stop = self.length if stop is None else stop
        if self.closed:
            raise DetachedError("the mapping is closed")
        advice = linux.MADV_POPULATE_WRITE if write else linux.MADV_POPULATE_READ
        step = max(POPULATE_SLICE, self.page_size)
        for offset in range(start, stop, step):
            if cancel is not None and cancel.is_set():
                raise CancelledError("populating was cancelled")
            end = min(offset + step, stop)
            self._populate_slice(offset, end, advice)
            if progress is not None:
                progress(end - start, stop - start)

    def prove(self) -> tuple[int, int, str]:
        """Count the bytes that this process maps with huge entries, by the kernel's word.

        Returns
        -------
        huge_bytes, present_bytes : int
            Pages never populated count as neither.
        method : str
            ``pagemap_scan`` or ``smaps``.
        """
        with self._lock:
            self._buffer()
            try:
                return (*linux.scan_huge(self.address, self.length), "pagemap_scan")
            except OSError:
                pass  # a kernel before 6.7, or no descriptor free
            try:
                return (*linux.read_smaps(self.address, self.length), "smaps")
            except OSError as error:
                raise refusal(error, self.segment.path if self.segment else "") from error

    def report(self, backing: str, page_size: int, reasons: Sequence[Fall] = ()) -> PageReport:
        """The proof as a :class:`PageReport`.

        Parameters
        ----------
        backing, page_size, reasons
            As in :class:`PageReport`.
        """
        huge_bytes, present_bytes, method = self.prove()
        return PageReport(
            backing=backing,
            page_size=page_size,
            length=self.length,
            huge_bytes=huge_bytes,
            present_bytes=present_bytes,
            method=method,
            reasons=tuple(reasons),
        )

    def _buffer(self) -> NDArray[numpy.uint8]:
        if self._root is None:
            raise DetachedError("the mapping is closed")
        return self._root

    def _references(self) -> int:
        return sys.getrefcount(self._root)

    def _populate_slice(self, start: int, stop: int, advice: int) -> None:
        try:
            self._advise_patiently(start, stop, advice)
            return
        except OSError as error:
            if error.errno in (errno.EFAULT, errno.ENOMEM, _EHWPOISON):
                raise self._no_page(start, stop, error) from None
            if error.errno != errno.EINVAL or linux.probe_advice(advice):
                raise
        try:
            self._read_through(start, stop)  # kernel before 5.14
        except OSError as error:
            raise self._no_page(start, stop, error) from None

    def _advise_patiently(self, start: int, stop: int, advice: int) -> None:
        """Ask again where the kernel was interrupted, or had nothing free at the moment."""
        for _ in range(_PATIENCE):
            try:
                return linux.advise(self.address + start, stop - start, advice)
            except OSError as error:
                if error.errno not in (errno.EINTR, errno.EAGAIN):
                    raise
        return linux.advise(self.address + start, stop - start, advice)

    def _read_through(self, start: int, stop: int) -> None:
        """Fault pages in by having the kernel read them: EFAULT takes the place of SIGBUS."""
        step = min(self.page_size, os.sysconf("SC_PAGESIZE"))
        reader, writer = os.pipe()
        try:
            with self._buffer().data as view:
                for first in range(start, stop, _IOV_MAX * step):
                    last = min(first + _IOV_MAX * step, stop)
                    bytes_ = [view[offset : offset + 1] for offset in range(first, last, step)]
                    try:
                        if os.writev(writer, bytes_) != len(bytes_):
                            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
                        os.read(reader, len(bytes_))
                    finally:
                        bytes_.clear()  # a traceback must not keep the mapping busy
        finally:
            os.close(reader)
            os.close(writer)

    def _no_page(self, start: int, stop: int, error: OSError) -> NotEnoughMemoryError:
        # EFAULT says that a touch would have been SIGBUS; its own text helps nobody.
        why = "no room" if error.errno == errno.EFAULT else error.strerror
        return NotEnoughMemoryError(
            f"the pages of a segment could not be populated: {why}",
            needed=f"{format_bytes(stop - start)} at offset {start}",
            where=self.segment.path if self.segment else "",
            remedy="free memory, or raise the limit of the mount or cgroup",
        )


def _in_child() -> None:
    """Another thread of the parent may have held some locks; and fill the gaps.

    A gap is an address that the kernel may give to somebody else's mapping, which the
    end of our reservation would then tear away. And whatever reads there must not fault.
    """
    if _no_fork._is_owned():
        _no_fork.release()
    else:
        _no_fork._at_fork_reinit()
    for mapping in list(_mappings):
        mapping._lock = threading.Lock()
    for address, root in list(_unforked.items()):
        fill_gap(address, root.nbytes, root)
    _unforked.clear()  # the child's own children get what it has


# No functions of Python's: Ctrl-C would end them before they have released the lock.
os.register_at_fork(
    before=functools.partial(_no_fork.acquire, timeout=_FORK_PATIENCE_S),
    after_in_parent=_no_fork.release,
    after_in_child=_in_child,
)
