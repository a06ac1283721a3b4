from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import pytest

from hugepool_common import linux
from hugepool_common.errors import UnsupportedPlatformError
from hugepool_common.mapping import Mapping
from hugepool_common.pages import read_host
from hugepool_common.reservation import reserve
from hugepool_common.spec import Segment
from hugepool_common.units import KIB


def test_smaps_of_others_do_not_count(tmp_path: Path) -> None:
    text = """10000-20000 rw-s 00000000 00:01 1 /a
Rss:                  64 kB
ShmemPmdMapped:       64 kB
Shared_Hugetlb:       32 kB
18000-30000 rw-s 00000000 00:01 1 /b
Rss:                  64 kB
"""
    (tmp_path / "smaps").write_text(text)
    path = str(tmp_path / "smaps")
    assert linux.read_smaps(0x10000, 0x10000, path) == (96 * KIB, 96 * KIB)
    assert linux.read_smaps(0x10000, 0x8000, path) == (0, 0)


def test_advice_is_probed_by_doing() -> None:
    assert linux.probe_advice(mmap.MADV_DONTNEED)
    assert not linux.probe_advice(99)


def test_another_system_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    segment = Segment(1, "/x", 0, 0, 0, 4 * KIB, 4 * KIB, "shm-4k")
    for use in (
        linux._libc.__wrapped__,
        lambda: linux.scan_huge(0, 4 * KIB),
        lambda: reserve(4 * KIB, False),
        lambda: Mapping.open(segment),
        read_host,
    ):
        with pytest.raises(UnsupportedPlatformError, match="needs Linux"):
            use()


def test_what_the_kernel_refuses_is_an_os_error_with_its_number() -> None:
    refusals = (
        (errno.EBADF, lambda: linux.map_memory(0, 4 * KIB, linux.PROT_READ, linux.MAP_SHARED)),
        (errno.EINVAL, lambda: linux.unmap_memory(1, 4 * KIB)),
        (errno.EINVAL, lambda: linux.advise(0, 4 * KIB, 99)),
        (errno.EINVAL, lambda: linux.prctl(9999)),
    )
    for number, call in refusals:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == number


def test_prctl_answers() -> None:
    thp_disabled = 42
    status = Path("/proc/self/status").read_text()
    assert linux.prctl(thp_disabled) == (0 if "THP_enabled:\t1" in status else 1)


def test_a_counter_opens_or_says_why_not() -> None:
    software, task_clock = 1, 1
    try:
        fd = linux.perf_event_open(software, task_clock)
    except OSError as error:
        assert error.errno in (errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOENT)
        return
    try:
        enable = 0x2400
        import fcntl

        fcntl.ioctl(fd, enable)
        assert sum(range(10**5))
        assert int.from_bytes(os.read(fd, 8), "little") > 0
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_a_counter_of_another_machine_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(OSError) as caught:
        linux.perf_event_open(1, 1)
    assert caught.value.errno == errno.ENOSYS


def test_a_mapping_made_by_address_is_there_and_goes() -> None:
    flags = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS
    address = linux.map_memory(0, 8 * KIB, linux.PROT_READ | linux.PROT_WRITE, flags)
    ctypes.memset(address, 7, 4 * KIB)
    assert linux.scan_huge(address, 8 * KIB) == (0, 4 * KIB)
    linux.unmap_memory(address, 8 * KIB)
    assert f"{address:x}-" not in Path("/proc/self/maps").read_text()
