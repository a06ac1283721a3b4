"""What this host offers: pools, mounts, huge-page modes, limits. Reads, never changes.

All of it is a hint. Another process may take the last page a moment later, and in
a container ``/sys`` shows the machine; only a finished segment proves anything.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from hugepool_common import linux
from hugepool_common.cgroups import (
    HugetlbLimit,
    MemoryLimit,
    read_hugetlb_limits,
    read_memory_limit,
)
from hugepool_common.mounts import (
    HugetlbfsMount,
    Room,
    TmpfsMount,
    measure,
    mount_under,
    parse_mountinfo,
    read_mounts,
)
from hugepool_common.units import KIB, MIB

MOUNT_VARIABLE = "HUGEPOOL_MOUNT"
"""Environment variable: the directory, on hugetlbfs or tmpfs, to put segments in."""

_THP = "sys/kernel/mm/transparent_hugepage"
_POOLS = "sys/kernel/mm/hugepages"
_POOL_NAME = re.compile(r"hugepages-([0-9]+)kB")


@dataclass(frozen=True, slots=True)
class Pool:
    """The kernel's huge pages of one size, counted in pages."""

    page_size: int
    total_pages: int
    free_pages: int
    reserved_pages: int
    """Promised to files, not yet taken; they are still counted free."""
    surplus_pages: int
    overcommit_pages: int
    """How many surplus pages there may be."""

    @property
    def available_pages(self) -> int:
        """Pages that a new file could have."""
        return max(
            0,
            self.free_pages
            - self.reserved_pages
            + max(0, self.overcommit_pages - self.surplus_pages),
        )

    @property
    def available_bytes(self) -> int:
        """Bytes that a new file could have."""
        return self.available_pages * self.page_size


@dataclass(frozen=True, slots=True)
class Host:
    """A picture of the host at one moment. Modes are ``""`` where the kernel has none."""

    kernel_release: str
    page_size: int
    """Bytes of a base page."""
    hpage_pmd_size: int
    """Bytes of a transparent huge page."""
    default_huge_page_size: int
    """Bytes per page of the pool that ``vm.nr_hugepages`` sets."""
    thp_enabled: str
    """Of anonymous memory: always, madvise or never."""
    shmem_enabled: str
    """always, within_size, advise, never, deny or force."""
    shmem_enabled_pmd: str
    """The same for transparent huge pages of `hpage_pmd_size` alone: inherit and others."""
    process_thp: bool
    """False where prctl(2) switched transparent huge pages off for this process."""
    overcommit_memory: int
    """vm.overcommit_memory: 0, 1 or 2."""
    memory_available_bytes: int
    """MemAvailable and free swap: what tmpfs could take before the kernel kills."""
    pools: tuple[Pool, ...] = ()
    hugetlbfs_mounts: tuple[HugetlbfsMount, ...] = ()
    tmpfs_mounts: tuple[TmpfsMount, ...] = ()
    memory_limit: MemoryLimit | None = None
    hugetlb_limits: tuple[HugetlbLimit, ...] = ()
    container: str = ""
    """docker, podman, kubernetes, gvisor or what systemd calls it; empty outside."""
    preferred_directory: str = ""
    """``$HUGEPOOL_MOUNT``."""
    knows_collapse: bool = True
    """Whether madvise(2) knows MADV_COLLAPSE (Linux 6.1)."""

    @property
    def memory_headroom_bytes(self) -> int:
        """The lesser of free memory and the control group's headroom."""
        if self.memory_limit is None:
            return self.memory_available_bytes
        return min(self.memory_available_bytes, self.memory_limit.headroom_bytes)

    def pool(self, page_size: int) -> Pool | None:
        """The pool of a page size in bytes; None if the kernel has none."""
        return next((pool for pool in self.pools if pool.page_size == page_size), None)

    def hugetlb_limit(self, page_size: int) -> HugetlbLimit | None:
        """The control group's limit for a page size in bytes; None without one."""
        return next((limit for limit in self.hugetlb_limits if limit.page_size == page_size), None)

    def preferred_mount(self) -> str | None:
        """The mount point that the preferred directory lies on; None if on none of ours."""
        if not self.preferred_directory:
            return None
        paths = [mount.path for mount in self.hugetlbfs_mounts]
        paths += [mount.path for mount in self.tmpfs_mounts]
        return mount_under(self.preferred_directory, paths)


def read_host(root: str = "/", look: Callable[[str], Room | None] = measure) -> Host:
    """Look at the host.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are found; another than ``/`` shows another host.
    look
        Measures a mounted directory.

    Raises
    ------
    UnsupportedPlatformError
        This is not Linux.
    """
    linux.require_linux()
    lines = parse_mountinfo(_read(root, "proc/self/mountinfo"))
    memory = _meminfo(root)
    default_huge_page_size = memory.get("Hugepagesize", 2 * MIB)
    pools = _pools(root)
    hugetlbfs, tmpfs = read_mounts(lines, default_huge_page_size, look)
    pmd_size = hpage_pmd_size(root)
    return Host(
        kernel_release=_read(root, "proc/sys/kernel/osrelease").strip(),
        page_size=os.sysconf("SC_PAGESIZE"),
        hpage_pmd_size=pmd_size,
        default_huge_page_size=default_huge_page_size,
        thp_enabled=_chosen(_read(root, f"{_THP}/enabled")),
        shmem_enabled=_chosen(_read(root, f"{_THP}/shmem_enabled")),
        shmem_enabled_pmd=_chosen(
            _read(root, f"{_THP}/hugepages-{pmd_size // KIB}kB/shmem_enabled")
        ),
        process_thp=not re.search(r"^THP_enabled:\s*0$", _read(root, "proc/self/status"), re.M),
        overcommit_memory=_count(root, "proc/sys/vm/overcommit_memory"),
        memory_available_bytes=memory.get("MemAvailable", 0) + memory.get("SwapFree", 0),
        pools=pools,
        hugetlbfs_mounts=hugetlbfs,
        tmpfs_mounts=tmpfs,
        memory_limit=read_memory_limit(lines, root),
        hugetlb_limits=read_hugetlb_limits(lines, [pool.page_size for pool in pools], root),
        container=_container(root),
        preferred_directory=os.environ.get(MOUNT_VARIABLE, ""),
        knows_collapse=linux.probe_advice(linux.MADV_COLLAPSE),
    )


@functools.cache
def hpage_pmd_size(root: str = "/") -> int:
    """Bytes of a transparent huge page: what a mapping must be aligned to."""
    return _count(root, f"{_THP}/hpage_pmd_size") or 2 * MIB


def _pools(root: str) -> tuple[Pool, ...]:
    try:
        names = os.listdir(os.path.join(root, _POOLS))
    except OSError:
        return ()
    found = []
    for match in filter(None, map(_POOL_NAME.fullmatch, names)):
        total, free, reserved, surplus, overcommit = (
            _count(root, f"{_POOLS}/{match[0]}/{name}_hugepages")
            for name in ("nr", "free", "resv", "surplus", "nr_overcommit")
        )
        found.append(Pool(int(match[1]) * KIB, total, free, reserved, surplus, overcommit))
    return tuple(sorted(found, key=lambda pool: pool.page_size))


def _meminfo(root: str) -> dict[str, int]:
    rows = re.findall(r"^(\w+):\s+([0-9]+) kB$", _read(root, "proc/meminfo"), re.M)
    return {name: int(count) * KIB for name, count in rows}


def _container(root: str) -> str:
    if "gVisor" in _read(root, "proc/version"):
        return "gvisor"
    if root == "/" and "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    for path, kind in (("run/.containerenv", "podman"), (".dockerenv", "docker")):
        if os.path.exists(os.path.join(root, path)):
            return kind
    return _read(root, "run/systemd/container").strip()


def _chosen(text: str) -> str:
    """The word in brackets of a sysfs mode file."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else ""


def _count(root: str, path: str) -> int:
    text = _read(root, path).strip()
    return int(text) if text.isdigit() else 0


def _read(root: str, path: str) -> str:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
