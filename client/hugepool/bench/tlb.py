"""How much memory the processor's last translation cache covers, by the processor's own word.

CPUID is the one source that needs no privilege and tells data from instructions:
``/proc/cpuinfo`` adds both on AMD and shows none on Intel, and the kernel's log is
for root on most systems.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable

import msgspec

from hugepool.kernels.compiler import import_numba
from hugepool_common.errors import MissingExtraError
from hugepool_common.units import GIB, KIB, MIB

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX and EDX."""
Cpuid = Callable[[int, int], Registers]
"""CPUID of a leaf and a subleaf."""

PAGE_BYTES = {"4K": 4 * KIB, "2M": 2 * MIB, "1G": GIB}
"""Page sizes by the names that :class:`Stlb` has them under."""

_AMD = ("AuthenticAMD", "HygonGenuine")
_INTEL = "GenuineIntel"
_MOST_SUBLEAVES = 64
# Data or unified, and loads only; instructions and stores are other people's business.
_INTEL_KINDS = (1, 3, 4)
_INTEL_PAGE_BITS = {"4K": 0, "2M": 1, "1G": 3}
# Of leaf 2, for processors older than leaf 18H: Intel SDM volume 2A, table 3-12.
_INTEL_DESCRIPTORS = {
    0xC1: {"4K": 1024, "2M": 1024},
    0xC3: {"4K": 1536, "2M": 1536, "1G": 16},
    0xCA: {"4K": 512},
}


class Stlb(msgspec.Struct, frozen=True):
    """Entries of the last-level data TLB (the second-level, shared one on Intel).

    Parameters
    ----------
    entries
        By page size, ``4K``, ``2M`` or ``1G``; a size that this level does not hold is left
        out, and unknown is empty.
    source
        Where the figures come from, or why there are none.
    """

    entries: dict[str, int] = {}
    source: str = ""

    def reach_bytes(self) -> dict[str, int]:
        """Entries times page size: the most memory that is reached without a page walk."""
        return {size: count * PAGE_BYTES[size] for size, count in self.entries.items()}


def read_stlb() -> Stlb:
    """Ask the processor that this process runs on; never raises."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return Stlb(source=f"{platform.machine()} processors do not tell it to a program")
    try:
        import_numba()
    except MissingExtraError as error:
        return Stlb(source=f"reading CPUID: {error}")
    from hugepool.kernels.cpuid import cpuid

    found = decode(cpuid)
    if found.entries and _is_virtual():
        return Stlb(found.entries, f"{found.source}, as the hypervisor passes it on")
    return found


def decode(cpuid: Cpuid) -> Stlb:
    """Find the last-level data TLB in what CPUID tells."""
    most, *words = cpuid(0, 0)
    vendor = b"".join(words[place].to_bytes(4, "little") for place in (0, 2, 1)).decode(
        "ascii", "replace"
    )
    if vendor in _AMD:
        return _amd(cpuid)
    if vendor == _INTEL:
        return _intel(cpuid, most)
    return Stlb(source=f"how {vendor!r} processors tell it in CPUID is not known here")


def _amd(cpuid: Cpuid) -> Stlb:
    most = cpuid(0x8000_0000, 0)[0]
    if most < 0x8000_0006:
        return Stlb(source="CPUID has no leaf 8000_0006H")
    large, small, *_ = cpuid(0x8000_0006, 0)
    giant = cpuid(0x8000_0019, 0)[1] if most >= 0x8000_0019 else 0
    found = {"4K": small, "2M": large, "1G": giant}
    # Bits 31-28 are the associativity, 0 for switched off; bits 27-16 the data entries.
    entries = {
        size: word >> 16 & 0xFFF
        for size, word in found.items()
        if word >> 28 and word >> 16 & 0xFFF
    }
    return _found(entries, "CPUID 8000_0006H and 8000_0019H, L2 data TLB")


def _intel(cpuid: Cpuid, most: int) -> Stlb:
    if most >= 0x18:
        found = _intel_leaf_18(cpuid)
        if found.entries:
            return found
    entries: dict[str, int] = {}
    for register in cpuid(2, 0) if most >= 2 else ():
        if register >> 31:  # says that it holds no descriptors
            continue
        for byte in register.to_bytes(4, "little"):
            entries |= _INTEL_DESCRIPTORS.get(byte, {})
    return _found(entries, "CPUID 2, shared second-level TLB")


def _intel_leaf_18(cpuid: Cpuid) -> Stlb:
    entries: dict[str, int] = {}
    last = min(cpuid(0x18, 0)[0], _MOST_SUBLEAVES)
    for subleaf in range(last + 1):
        _, ebx, sets, edx = cpuid(0x18, subleaf)
        if edx & 0x1F not in _INTEL_KINDS or edx >> 5 & 7 < 2:
            continue
        count = (ebx >> 16) * sets
        for size, bit in _INTEL_PAGE_BITS.items():
            if ebx >> bit & 1:
                entries[size] = max(entries.get(size, 0), count)
    return _found(entries, "CPUID 18H, second-level TLB")


def _found(entries: dict[str, int], source: str) -> Stlb:
    if not entries:
        return Stlb(source=f"{source}: not told (a hypervisor may hide it)")
    order = {size: entries[size] for size in PAGE_BYTES if size in entries}
    return Stlb(order, source)


def _is_virtual() -> bool:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return " hypervisor" in file.read()
    return False
