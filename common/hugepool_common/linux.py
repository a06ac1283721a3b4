"""The one ctypes module: system calls that the standard library lacks or makes with the GIL held.

``mmap`` takes no address in CPython and ``mmap.madvise`` holds the GIL while the
kernel fills memory, which can take seconds. Everything else uses ``os``,
``fcntl`` and ``mmap``. The module can be imported on any operating system; using
it off Linux raises :class:`UnsupportedPlatformError`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
import struct
import sys

from hugepool_common.errors import UnsupportedPlatformError

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2

# The values below are those of x86-64 and arm64 (asm-generic).
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MAP_FIXED_NOREPLACE = 0x100000

MADV_DONTFORK = 10
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
MADV_COLLAPSE = 25

_MAP_FAILED = ctypes.c_void_p(-1).value

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_SCAN_ARGUMENT = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")
_REGIONS = 512
_PAGE_IS_PRESENT = 1 << 3
_PAGE_IS_HUGE = 1 << 6

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}
_PERF_ATTRIBUTE_BYTES = 64  # PERF_ATTR_SIZE_VER0
_PERF_FLAG_CLOEXEC = 8
_PERF_DISABLED = 1 << 0
_PERF_EXCLUDE_KERNEL = 1 << 5
_PERF_EXCLUDE_HYPERVISOR = 1 << 6


def require_linux() -> None:
    """Refuse to go on elsewhere.

    Raises
    ------
    UnsupportedPlatformError
        This is not Linux.
    """
    if sys.platform != "linux":
        raise UnsupportedPlatformError("hugepool needs Linux", had=sys.platform)


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library with the types of what we call; ``CDLL`` releases the GIL in every call."""
    require_linux()
    libc = ctypes.CDLL(None, use_errno=True)
    # Addresses as c_void_p: the default int would cut them to 32 bits.
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.restype = ctypes.c_int
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.prctl.restype = ctypes.c_int
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.syscall.restype = ctypes.c_long
    return libc


def _failure(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def map_memory(address: int, length: int, protection: int, flags: int, fd: int = -1) -> int:
    """``mmap(2)`` at offset 0 of `fd`, with an address.

    Returns
    -------
    int
        The address of the mapping.

    Raises
    ------
    OSError
        The kernel refused. With MAP_FIXED whatever lay there may be gone.
    """
    found = _libc().mmap(address, length, protection, flags, fd, 0)
    if found == _MAP_FAILED:
        raise _failure("mmap")
    return int(found or 0)


def unmap_memory(address: int, length: int) -> None:
    """``munmap(2)`` of a mapping made by :func:`map_memory`.

    Raises
    ------
    OSError
        The kernel refused.
    """
    if _libc().munmap(address, length):
        raise _failure("munmap")


def advise(address: int, length: int, advice: int) -> None:
    """``madvise(2)``, with the GIL released.

    Raises
    ------
    OSError
        The kernel refused.
    """
    if _libc().madvise(address, length, advice):
        raise _failure("madvise")


def probe_advice(advice: int) -> bool:
    """Whether this kernel knows an advice (an empty range asks nothing else of it)."""
    return not _libc().madvise(None, 0, advice)


def prctl(option: int, argument: int = 0) -> int:
    """``prctl(2)`` with one argument.

    Raises
    ------
    OSError
        The kernel refused.
    """
    result = int(_libc().prctl(option, argument, 0, 0, 0))
    if result < 0:
        raise _failure("prctl")
    return result


def perf_event_open(type: int, config: int, *, exclude_kernel: bool = True) -> int:
    """Open a disabled hardware counter of the calling thread (``perf_event_open(2)``).

    Parameters
    ----------
    type, config
        As in ``struct perf_event_attr``.
    exclude_kernel
        Count user mode only; the hypervisor is always left out.

    Returns
    -------
    int
        Its descriptor, close-on-exec.

    Raises
    ------
    OSError
        ENOENT, EOPNOTSUPP or ENODEV without such a counter, EACCES or EPERM where
        forbidden, ENOSYS where the call is unknown.
    """
    libc = _libc()
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"perf_event_open: unknown on {platform.machine()}")
    flags = _PERF_DISABLED | _PERF_EXCLUDE_HYPERVISOR
    if exclude_kernel:
        flags |= _PERF_EXCLUDE_KERNEL
    # type, size, config, sample_period, sample_type, read_format, flags, then zeros.
    head = struct.pack("=IIQQQQQ", type, _PERF_ATTRIBUTE_BYTES, config, 0, 0, 0, flags)
    attribute = ctypes.create_string_buffer(head, _PERF_ATTRIBUTE_BYTES)
    arguments = [ctypes.c_long(value) for value in (0, -1, -1, _PERF_FLAG_CLOEXEC)]
    fd = int(libc.syscall(ctypes.c_long(number), ctypes.byref(attribute), *arguments))
    if fd < 0:
        raise _failure("perf_event_open")
    return fd


def scan_huge(address: int, length: int) -> tuple[int, int]:
    """Ask the page tables of this process how a range is mapped (PAGEMAP_SCAN, Linux 6.7).

    Parameters
    ----------
    address, length
        A page-aligned range in bytes.

    Returns
    -------
    huge_bytes, present_bytes : int
        Bytes mapped by huge entries, and bytes mapped at all.

    Raises
    ------
    OSError
        ENOTTY or EINVAL where the kernel has no such scan.
    """
    require_linux()
    import fcntl  # not on every system that may import this module

    regions = (ctypes.c_ubyte * (_REGIONS * _REGION.size))()
    start, end = address, address + length
    huge_bytes = present_bytes = 0
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            # The vector is never of length 0: some kernels crash on that.
            argument = bytearray(
                _SCAN_ARGUMENT.pack(
                    _SCAN_ARGUMENT.size,
                    0,
                    start,
                    end,
                    0,
                    ctypes.addressof(regions),
                    _REGIONS,
                    0,
                    0,
                    _PAGE_IS_PRESENT,
                    0,
                    _PAGE_IS_PRESENT | _PAGE_IS_HUGE,
                )
            )
            count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument)
            for first, last, kind in _REGION.iter_unpack(bytes(regions)[: count * _REGION.size]):
                present_bytes += last - first
                if kind & _PAGE_IS_HUGE:
                    huge_bytes += last - first
            walk_end = _SCAN_ARGUMENT.unpack(argument)[4]
            if walk_end <= start:
                raise OSError(errno.EINVAL, "PAGEMAP_SCAN made no way")
            start = walk_end
    finally:
        os.close(fd)
    return huge_bytes, present_bytes


_SMAPS_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) [rwxsp-]{4} ")
_SMAPS_FIELD = re.compile(r"(\w+):\s+([0-9]+) kB")
# KernelPageSize and THPeligible say nothing true about shmem; these lines do.
_SMAPS_HUGE = frozenset(
    ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb"]
)
_SMAPS_HUGETLB = frozenset(["Shared_Hugetlb", "Private_Hugetlb"])


def read_smaps(address: int, length: int, path: str = "/proc/self/smaps") -> tuple[int, int]:
    """As :func:`scan_huge`, from ``smaps``: slower, but older and always there.

    An area that reaches past the range is not counted: better too little than
    somebody else's pages.
    """
    huge_bytes = present_bytes = 0
    ours = False
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            head = _SMAPS_HEAD.match(line)
            if head:
                ours = int(head[1], 16) >= address and int(head[2], 16) <= address + length
                continue
            field = _SMAPS_FIELD.match(line) if ours else None
            if field is None:
                continue
            count = int(field[2]) * 1024
            if field[1] in _SMAPS_HUGE:
                huge_bytes += count
            if field[1] == "Rss" or field[1] in _SMAPS_HUGETLB:
                present_bytes += count
    return huge_bytes, present_bytes
