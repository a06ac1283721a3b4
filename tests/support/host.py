"""What tests need of the machine: features, pages, mounts, and gauges for leaks."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host, Pool
from hugepool_common.paths import segment_directory_owner
from hugepool_common.units import GIB, MIB

REQUIRE_VARIABLE = "HUGEPOOL_REQUIRE"
PAGE_2M = 2 * MIB

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)
_private_mounts: bool | None = None


def require(feature: str, present: bool, reason: str) -> None:
    """Skip the test where the machine lacks a feature, or fail it.

    It fails if the feature is in the comma list ``$HUGEPOOL_REQUIRE``: a machine
    that is known to have it must not skip in silence.
    """
    if present:
        return
    if feature in os.environ.get(REQUIRE_VARIABLE, "").split(","):
        pytest.fail(f"{feature} is required here: {reason}")
    pytest.skip(f"{feature}: {reason}")


def free_pages() -> int:
    """2 MiB pages that are free and not promised."""
    return _pool("free_hugepages") - _pool("resv_hugepages")


def held_pages() -> int:
    """2 MiB pages taken or promised: what a leak would raise, whoever resizes the pool."""
    return _pool("nr_hugepages") - free_pages()


def _pool(name: str) -> int:
    return int((_POOL / name).read_text()) if _POOL.exists() else 0


def raise_pool(pages: int) -> tuple[int, int]:
    """Make at least so many pages free; the count before, and the count set."""
    count = _POOL / "nr_hugepages"
    before = int(count.read_text())
    missing = pages - free_pages()
    if missing > 0:
        count.write_text(str(before + missing))
    return before, int(count.read_text())


def lower_pool(before: int, made: int) -> None:
    """Undo :func:`raise_pool`, unless somebody else has changed the pool since."""
    count = _POOL / "nr_hugepages"
    if int(count.read_text()) == made:
        count.write_text(str(before))


def settles(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something comes true soon; other processes share the CPUs, the pool and /dev/shm."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Descriptors:
    """What this process has open; others of its threads, and its rubbish, may be closing theirs."""

    def __init__(self) -> None:
        self._before = self._now()

    def opened(self) -> set[tuple[str, int, int]]:
        """Those opened since, each with the device and inode of what it is open on."""
        return self._now() - self._before

    @staticmethod
    def _now() -> set[tuple[str, int, int]]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                status = os.fstat(int(name))
            except OSError:
                continue  # that of the listing
            found.add((name, status.st_dev, status.st_ino))
        return found


def free_port() -> int:
    """A port that nobody listens at, of those that the kernel gives to nobody unasked.

    Not to a connection that another process opens meanwhile either, nor to one that is made to
    this very port while nobody listens there: that one would be connected to itself.
    """
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first = max(1024, given // 2)
    for port in random.sample(range(first, max(given, first + 4096)), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def dead_directories() -> set[str]:
    """Segment directories in /dev/shm that no living process has locked."""
    found = set()
    for entry in os.scandir("/dev/shm"):
        if segment_directory_owner(entry.name) != os.geteuid():
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found.add(entry.path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return found


@dataclass(frozen=True)
class Gauges:
    """What a test may not change."""

    descriptors: int
    held_pages: int
    directories: frozenset[str]

    @classmethod
    def read(cls) -> Gauges:
        """Take them now."""
        return cls(
            len(os.listdir("/proc/self/fd")),
            held_pages(),
            frozenset(dead_directories()),
        )

    def restored(self) -> bool:
        """Whether nothing is left behind."""
        now = Gauges.read()
        return (
            now.descriptors <= self.descriptors
            and now.held_pages <= self.held_pages
            and now.directories <= self.directories
        )


class Mounts:
    """Mounts of one test, in a mount namespace that nobody else sees."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths: list[Path] = []
        require("mounts", enter_private_mounts(), "needs root to mount")

    def hugetlbfs(self, options: str = "pagesize=2M") -> str:
        """Mount hugetlbfs with these options."""
        return self._mount("hugetlbfs", options)

    def tmpfs(self, options: str) -> str:
        """Mount tmpfs with these options."""
        return self._mount("tmpfs", options)

    def make_read_only(self, path: str) -> None:
        """Make a mount of this test read-only."""
        subprocess.run(["mount", "-o", "remount,ro", path], check=True, capture_output=True)

    def make_writable(self, path: str) -> None:
        """Undo :meth:`make_read_only`."""
        subprocess.run(["mount", "-o", "remount,rw", path], check=True, capture_output=True)

    def over(self, path: str, options: str) -> None:
        """Mount another tmpfs over a mount of this test."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
        self._paths.append(Path(path))

    def close(self) -> None:
        """Unmount all, the last one first."""
        for path in reversed(self._paths):
            subprocess.run(["umount", str(path)], check=True, capture_output=True)

    def _mount(self, kind: str, options: str) -> str:
        path = self._directory / f"{kind}-{len(self._paths)}"
        path.mkdir()
        said = ""

        def mounted() -> bool:
            nonlocal said
            done = subprocess.run(
                ["mount", "-t", kind, "-o", options, "none", str(path)],
                capture_output=True,
                text=True,
            )
            said = done.stderr.strip()
            return done.returncode == 0

        # Pages that are claimed at once may be in use elsewhere, by a test that soon ends.
        require("mounts", settles(mounted, 60 if "min_size" in options else 0), said)
        self._paths.append(path)
        return str(path)


def enter_private_mounts() -> bool:
    """Move this process into a mount namespace of its own, once."""
    global _private_mounts
    if _private_mounts is None:
        libc = ctypes.CDLL(None, use_errno=True)
        _private_mounts = (
            os.geteuid() == 0
            and libc.unshare(_CLONE_NEWNS) == 0
            and libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) == 0
        )
    return _private_mounts


def fake_host(**changes: Any) -> Host:
    """A generous machine: both pools full, all mounts there; changed as a test wants it."""
    host = Host(
        kernel_release="6.18.0",
        page_size=4096,
        hpage_pmd_size=PAGE_2M,
        default_huge_page_size=PAGE_2M,
        thp_enabled="madvise",
        shmem_enabled="never",
        shmem_enabled_pmd="inherit",
        process_thp=True,
        overcommit_memory=0,
        memory_available_bytes=64 * GIB,
        pools=(Pool(PAGE_2M, 1000, 1000, 0, 0, 0), Pool(GIB, 4, 4, 0, 0, 0)),
        hugetlbfs_mounts=(
            HugetlbfsMount("/mnt/2m", PAGE_2M, None, 0, None, True),
            HugetlbfsMount("/mnt/1g", GIB, None, 0, None, True),
        ),
        tmpfs_mounts=(
            TmpfsMount("/dev/shm", "never", 32 * GIB, 32 * GIB, True),
            TmpfsMount("/mnt/huge", "always", 32 * GIB, 32 * GIB, True),
        ),
    )
    return replace(host, **changes)
