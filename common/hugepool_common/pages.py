"""What this host offers: pools, mounts, huge-page modes, limits. Reads, never changes.

All of it is a hint. Another process may take the last page a moment later, and in
a container ``/sys`` shows the machine; only a finished segment proves anything.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields

from hugepool_common import linux
from hugepool_common.cgroups import (
    HugetlbLimit,
    MemoryLimit,
    read_hugetlb_limits,
    read_memory_limit,
)
from hugepool_common.kernel_files import read_kernel_file
from hugepool_common.mounts import (
    HugetlbfsMount,
    MountLine,
    Room,
    TmpfsMount,
    measure,
    mount_under,
    parse_mountinfo,
    read_mounts,
)
from hugepool_common.units import KIB, MIB, format_bytes

MOUNT_VARIABLE = "HUGEPOOL_MOUNT"
"""Environment variable: the directory, on hugetlbfs or tmpfs, to put segments in."""

_THP = "sys/kernel/mm/transparent_hugepage"
_POOLS = "sys/kernel/mm/hugepages"
_MEMINFO = re.compile(r"^(Hugepagesize|MemTotal|MemAvailable|SwapFree):\s+([0-9]+) kB$", re.M)
_POOL_NAME = re.compile(r"hugepages-([0-9]+)kB")

# By its text, read anew each time, so a mount made meanwhile is seen.
_parsed_mountinfo = functools.lru_cache(maxsize=1)(parse_mountinfo)


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
    memory_total_bytes: int = 0
    """MemTotal; 0 where it is not known."""

    def past_all_memory(self, nbytes: int, *, limited: bool = True) -> str:
        """Why no setting makes room for so many bytes; empty if the memory is as large.

        Parameters
        ----------
        nbytes
            Bytes that would be in use together.
        limited
            Whether the control group's limit counts: not for the huge-page pool.
        """
        if 0 < self.memory_total_bytes < nbytes:
            return f"this machine has {format_bytes(self.memory_total_bytes)} of memory"
        limit = self.memory_limit
        if limited and limit is not None and limit.limit_bytes < nbytes:
            return (
                f"the control group {limit.where} has {format_bytes(limit.limit_bytes)} of memory"
            )
        return ""

    def pool_shortage(self, page_size: int, pages: int) -> str:
        """Why the pool of a page size cannot have so many pages for new arrays; else empty.

        What a pool takes is taken from everybody, and the kernel looks for it to the last
        byte: a pool larger than what is free would leave nothing to the rest.
        """
        pool = self.pool(page_size)
        missing = 0 if pool is None else max(0, pages - pool.available_pages)
        total = pages if pool is None else pool.total_pages - pool.surplus_pages + missing
        found = self.past_all_memory(max(pages, total) * page_size, limited=False)
        free = self.memory_available_bytes
        if not found and self.memory_total_bytes and missing * page_size > free:
            return f"only {format_bytes(free)} of memory are free"
        return found

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


class LiveHost(Host):
    """A host looked at piece by piece: a fact is read when it is first asked for, then kept.

    To decide one thing by few of the facts; it must not outlive that decision. Nothing is
    kept from one such host to the next.

    Parameters
    ----------
    root, look
        As :func:`read_host` takes them.

    Raises
    ------
    UnsupportedPlatformError
        This is not Linux.
    """

    def __init__(self, root: str = "/", look: Callable[[str], Room | None] = measure) -> None:
        linux.require_linux()
        # Host's own fields stay unset: the properties below stand before them.
        self.__dict__.update(_root=root, _look=look)

    @functools.cached_property
    def kernel_release(self) -> str:
        return self._read("proc/sys/kernel/osrelease").strip()

    @functools.cached_property
    def page_size(self) -> int:
        return os.sysconf("SC_PAGESIZE")

    @functools.cached_property
    def hpage_pmd_size(self) -> int:
        return hpage_pmd_size(self.__dict__["_root"])

    @functools.cached_property
    def default_huge_page_size(self) -> int:
        return self._meminfo.get("Hugepagesize", 2 * MIB)

    @functools.cached_property
    def thp_enabled(self) -> str:
        return _chosen(self._read(f"{_THP}/enabled"))

    @functools.cached_property
    def shmem_enabled(self) -> str:
        return _chosen(self._read(f"{_THP}/shmem_enabled"))

    @functools.cached_property
    def shmem_enabled_pmd(self) -> str:
        return _chosen(self._read(f"{_THP}/hugepages-{self.hpage_pmd_size // KIB}kB/shmem_enabled"))

    @functools.cached_property
    def process_thp(self) -> bool:
        return not re.search(r"^THP_enabled:\s*0$", self._read("proc/self/status"), re.M)

    @functools.cached_property
    def overcommit_memory(self) -> int:
        return _number(self._read("proc/sys/vm/overcommit_memory"))

    @functools.cached_property
    def memory_available_bytes(self) -> int:
        return self._meminfo.get("MemAvailable", 0) + self._meminfo.get("SwapFree", 0)

    @functools.cached_property
    def memory_total_bytes(self) -> int:
        return self._meminfo.get("MemTotal", 0)

    @functools.cached_property
    def pools(self) -> tuple[Pool, ...]:
        return _pools(self.__dict__["_root"])

    @functools.cached_property
    def hugetlbfs_mounts(self) -> tuple[HugetlbfsMount, ...]:
        return self._mounts[0]

    @functools.cached_property
    def tmpfs_mounts(self) -> tuple[TmpfsMount, ...]:
        return self._mounts[1]

    @functools.cached_property
    def memory_limit(self) -> MemoryLimit | None:
        return read_memory_limit(self._mount_lines, self.__dict__["_root"])

    @functools.cached_property
    def hugetlb_limits(self) -> tuple[HugetlbLimit, ...]:
        page_sizes = [pool.page_size for pool in self.pools]
        return read_hugetlb_limits(self._mount_lines, page_sizes, self.__dict__["_root"])

    @functools.cached_property
    def container(self) -> str:
        return _container(self.__dict__["_root"])

    @functools.cached_property
    def preferred_directory(self) -> str:
        return os.environ.get(MOUNT_VARIABLE, "")

    @functools.cached_property
    def knows_collapse(self) -> bool:
        return linux.probe_advice(linux.MADV_COLLAPSE)

    # What several facts come from ---------------------------------------------

    @functools.cached_property
    def _meminfo(self) -> dict[str, int]:
        rows = _MEMINFO.findall(self._read("proc/meminfo"))
        return {name: int(count) * KIB for name, count in rows}

    @functools.cached_property
    def _mount_lines(self) -> list[MountLine]:
        return _parsed_mountinfo(self._read("proc/self/mountinfo"))

    @functools.cached_property
    def _mounts(self) -> tuple[tuple[HugetlbfsMount, ...], tuple[TmpfsMount, ...]]:
        lines = self._mount_lines
        of_hugetlbfs = any(line.kind == "hugetlbfs" for line in lines)
        default = self.default_huge_page_size if of_hugetlbfs else 0  # /proc/meminfo is slow
        return read_mounts(lines, default, self.__dict__["_look"])

    def _read(self, path: str) -> str:
        return _read(self.__dict__["_root"], path)


def read_host(root: str = "/", look: Callable[[str], Room | None] = measure) -> Host:
    """Look at the whole host, now.

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
    live = LiveHost(root, look)
    return Host(**{fact.name: getattr(live, fact.name) for fact in fields(Host)})


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
    return _number(_read(root, path))


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else 0


def _read(root: str, path: str) -> str:
    return read_kernel_file(os.path.join(root, path))
