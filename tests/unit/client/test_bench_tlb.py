"""The last-level data TLB, out of what CPUID tells on processors of several makers."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from hugepool.bench.tlb import Cpuid, Registers, Stlb, decode, read_stlb
from hugepool_common.units import GIB, MIB
from support.host import require

NONE = (0, 0, 0, 0)


def vendor(name: str, most: int) -> Registers:
    first, second, third = (
        int.from_bytes(name[place : place + 4].encode(), "little") for place in (0, 8, 4)
    )
    return (most, first, second, third)


def told(leaves: dict[tuple[int, int], Registers]) -> Cpuid:
    return lambda leaf, subleaf: leaves.get((leaf, subleaf), NONE)


def test_amd_counts_data_and_not_instructions() -> None:
    # Zen 3: 2048 entries for data and 512 for instructions of 4 KiB pages, 1G in the first level.
    found = decode(
        told(
            {
                (0, 0): vendor("AuthenticAMD", 0x10),
                (0x8000_0000, 0): (0x8000_0023, 0, 0, 0),
                (0x8000_0006, 0): (0x5800_2200 | 0x800 << 16, 0x6800_4200 | 0x800 << 16, 0, 0),
                (0x8000_0019, 0): (0xF040_F040, 0, 0, 0),
            }
        )
    )
    assert found.entries == {"4K": 2048, "2M": 2048}
    assert found.reach_bytes() == {"4K": 8 * MIB, "2M": 4 * GIB}
    assert "8000_0006H" in found.source


def test_amd_switched_off_is_not_there() -> None:
    found = decode(
        told(
            {
                (0, 0): vendor("AuthenticAMD", 0x10),
                (0x8000_0000, 0): (0x8000_0006, 0, 0, 0),
                (0x8000_0006, 0): (0x0400_0000, 0x4200_4200, 0, 0),
            }
        )
    )
    assert found.entries == {"4K": 512}


def test_intel_takes_the_second_level_for_data() -> None:
    # One level-1 data TLB, one for instructions, and two of the second level.
    found = decode(
        told(
            {
                (0, 0): vendor("GenuineIntel", 0x20),
                (0x18, 0): (4, 0, 0, 0),
                (0x18, 1): (0, 16 << 16 | 0b0001, 6, 1 << 5 | 1),
                (0x18, 2): (0, 8 << 16 | 0b0111, 512, 2 << 5 | 2),
                (0x18, 3): (0, 16 << 16 | 0b0111, 128, 2 << 5 | 3),
                (0x18, 4): (0, 16 << 16 | 0b1001, 64, 2 << 5 | 3),
            }
        )
    )
    assert found.entries == {"4K": 2048, "2M": 2048, "1G": 1024}
    assert list(found.entries) == ["4K", "2M", "1G"]


def test_an_older_intel_tells_by_descriptors() -> None:
    # Skylake: 0x00c30000 in EDX's third byte; a register with bit 31 set holds none.
    leaves = {
        (0, 0): vendor("GenuineIntel", 0x16),
        (2, 0): (0x7603_6301, 0x00F0_B5FF, 0, 0x00C3_0000),
    }
    assert decode(told(leaves)).entries == {"4K": 1536, "2M": 1536, "1G": 16}
    leaves[2, 0] = (0x7603_6301, 0, 0, 0x80C3_0000)
    hidden = decode(told(leaves))
    assert hidden.entries == {}
    assert "not told" in hidden.source


@pytest.mark.parametrize(
    ("leaves", "said"),
    [
        ({(0, 0): vendor("CentaurHauls", 7)}, "CentaurHauls"),
        ({(0, 0): vendor("AuthenticAMD", 1)}, "8000_0006H"),
        ({(0, 0): vendor("GenuineIntel", 1)}, "not told"),
    ],
)
def test_unknown_has_a_reason(leaves: dict[tuple[int, int], Registers], said: str) -> None:
    found = decode(told(leaves))
    assert found.entries == {}
    assert found.reach_bytes() == {}
    assert said in found.source


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("x86-64", platform.machine() == "x86_64", "CPUID is its instruction")
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    assert read_stlb().entries == {}
    assert "hugepool[compute]" in read_stlb().source


def test_this_processor_agrees_with_its_kernel() -> None:
    """Linux shows the sum of data and instructions, on AMD only."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    shown = re.search(r"^TLB size\s*: (\d+) 4K pages", text, re.MULTILINE)
    require("TLB size", shown is not None, "this kernel shows none in /proc/cpuinfo")
    pytest.importorskip("numba")
    assert shown is not None
    found = read_stlb()
    assert 0 < found.entries["4K"] <= int(shown[1])
    assert found != Stlb()
