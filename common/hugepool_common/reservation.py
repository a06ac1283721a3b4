"""Address space of our own, larger than a segment, to map it at an aligned address::

    reservation  |....|=============== file ===============|......|
                 base  address (multiple of the alignment)

The kernel chooses the base, so the MAP_FIXED mapping inside can hit nobody else.
The reservation is an object with a buffer: whatever exports that buffer keeps the
addresses, and the last export that goes unmaps everything.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import weakref
from collections.abc import Callable

import numpy

from hugepool_common import linux
from hugepool_common.errors import (
    NotEnoughMemoryError,
    NotPermittedError,
)
from hugepool_common.units import format_bytes

Owner = mmap.mmap | memoryview
"""An object whose buffer is a reservation."""

_ANONYMOUS = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS | linux.MAP_NORESERVE

_STRANDED: list[object] = []
"""Reservations with a hole that could not be plugged: unmapping them could hit a stranger."""


def reserve(length: int, writable: bool) -> tuple[Owner, int, Callable[[], None]]:
    """Reserve address space without memory.

    Parameters
    ----------
    length
        Bytes.
    writable
        Whether arrays over it may be written.

    Returns
    -------
    owner : Owner
        Exports the reservation as a buffer.
    base : int
        Its address.
    unmap : callable
        Frees it at once; for when nothing exports it any more.

    Raises
    ------
    NotEnoughMemoryError
        There is no such address space.
    """
    linux.require_linux()
    protection = linux.PROT_READ | (linux.PROT_WRITE if writable else 0)
    try:
        holder = mmap.mmap(-1, length, flags=_ANONYMOUS, prot=protection)
    except (OSError, OverflowError):
        # vm.overcommit_memory=2 charges a writable reservation; PROT_NONE is free.
        return _reserve_uncharged(length)
    return holder, numpy.frombuffer(holder, dtype=numpy.uint8).ctypes.data, holder.close


def _reserve_uncharged(length: int) -> tuple[Owner, int, Callable[[], None]]:
    try:
        base = linux.map_memory(0, length, linux.PROT_NONE, _ANONYMOUS)
    except OSError:
        raise NotEnoughMemoryError(
            "no address space for a mapping",
            needed=format_bytes(length),
            remedy="raise the limit of ulimit -v",
        ) from None
    array = (ctypes.c_ubyte * length).from_address(base)
    finalizer = weakref.finalize(array, linux.unmap_memory, base, length)
    finalizer.atexit = False  # other exit handlers may still use arrays

    def unmap() -> None:
        finalizer()

    return memoryview(array).cast("B"), base, unmap


def map_over(
    fd: int, address: int, length: int, *, writable: bool, private: bool, owner: Owner
) -> None:
    """Map a file over a part of our own reservation.

    Parameters
    ----------
    fd, length
        The file, from its start, in bytes.
    address
        Inside the reservation, aligned.
    private
        MAP_PRIVATE instead of MAP_SHARED.
    owner
        What :func:`reserve` gave.

    Raises
    ------
    NotPermittedError
        The descriptor is not open for that.
    NotEnoughMemoryError
        The kernel has no room, or no huge pages for a sparse file.
    """
    protection = linux.PROT_READ | (linux.PROT_WRITE if writable else 0)
    # A private hugetlb mapping would reserve a second set of pages for copies
    # that a read-only mapping never makes.
    sharing = linux.MAP_PRIVATE | linux.MAP_NORESERVE if private else linux.MAP_SHARED
    try:
        linux.map_memory(address, length, protection, sharing | linux.MAP_FIXED, fd)
    except OSError as error:
        if error.errno == errno.EACCES:  # found before anything was unmapped
            raise NotPermittedError("the descriptor does not allow the mapping") from None
        _plug(address, length, owner)
        raise NotEnoughMemoryError(
            f"the segment cannot be mapped: {error.strerror}", needed=format_bytes(length)
        ) from error


def fill_gap(address: int, length: int, owner: object) -> None:
    """Put memory of zeros where a fork left a reservation without its file.

    Parameters
    ----------
    address, length
        What the child was not given.
    owner
        What keeps the reservation; kept for ever if the gap cannot be filled.
    """
    # Strict overcommit charges what can be written; nothing of the library's is.
    for protection in (linux.PROT_READ | linux.PROT_WRITE, linux.PROT_READ):
        if _filled(address, length, protection):
            return
    _STRANDED.append(owner)


def _plug(address: int, length: int, owner: Owner) -> None:
    # A failed MAP_FIXED may have unmapped our reservation there already. Another
    # thread's mapping could land in the hole, and unmapping the reservation later
    # would tear it away: fill the hole, or never unmap.
    if not _filled(address, length, linux.PROT_NONE):
        _STRANDED.append(owner)


def _filled(address: int, length: int, protection: int) -> bool:
    try:
        found = linux.map_memory(
            address, length, protection, _ANONYMOUS | linux.MAP_FIXED_NOREPLACE
        )
    except OSError:
        return False
    if found != address:  # kernels before 4.17 take the address for a hint
        linux.unmap_memory(found, length)
        return False
    return True
