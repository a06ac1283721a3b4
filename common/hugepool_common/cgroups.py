"""Limits that control groups put on memory and on huge pages, versions 1 and 2.

A memory limit matters before any allocation: filling shared memory past it is
not an error of the call but SIGKILL for the process (tmpfs), and a huge-page
limit turns a touch into SIGBUS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hugepool_common.kernel_files import read_kernel_file
from hugepool_common.mounts import MountLine
from hugepool_common.units import GIB, KIB, MIB

_NO_LIMIT = 1 << 62  # version 1 writes "unlimited" as almost 2**63


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The tightest memory limit over this process's control group and its ancestors."""

    limit_bytes: int
    usage_bytes: int
    reclaimable_bytes: int
    """Page cache in the usage that the kernel would drop first."""
    where: str
    """Directory of the group that sets it."""

    @property
    def headroom_bytes(self) -> int:
        """What may still be allocated before the kernel kills."""
        return max(0, self.limit_bytes - self.usage_bytes + self.reclaimable_bytes)


@dataclass(frozen=True, slots=True)
class HugetlbLimit:
    """The tightest limit on huge pages of one size."""

    page_size: int
    limit_bytes: int
    usage_bytes: int
    where: str
    """The file that sets it."""

    @property
    def headroom_bytes(self) -> int:
        """What may still be allocated before mmap or a page fault fails."""
        return max(0, self.limit_bytes - self.usage_bytes)


def read_memory_limit(lines: list[MountLine], root: str = "/") -> MemoryLimit | None:
    """The memory limit with the least headroom; None without any."""
    found: list[MemoryLimit] = []
    for directory, version in _directories(lines, "memory", root):
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if version == 1
            else ("memory.max", "memory.current", "inactive_file")
        )
        limit = _number(os.path.join(directory, names[0]))
        if limit is None:
            continue
        usage = _number(os.path.join(directory, names[1])) or 0
        cache = _field(os.path.join(directory, "memory.stat"), names[2])
        found.append(MemoryLimit(limit, usage, min(cache, usage), _shown(directory, root)))
    return min(found, key=lambda limit: limit.headroom_bytes, default=None)


def read_hugetlb_limits(
    lines: list[MountLine], page_sizes: list[int], root: str = "/"
) -> tuple[HugetlbLimit, ...]:
    """The limit with the least headroom for every page size that has one."""
    found = []
    for page_size in page_sizes:
        limits: list[HugetlbLimit] = []
        stem = f"hugetlb.{_hugetlb_name(page_size)}"
        for directory, version in _directories(lines, "hugetlb", root):
            pairs = (
                (
                    ("limit_in_bytes", "usage_in_bytes"),
                    ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes"),
                )
                if version == 1
                else (("max", "current"), ("rsvd.max", "rsvd.current"))
            )
            for limit_name, usage_name in pairs:
                path = os.path.join(directory, f"{stem}.{limit_name}")
                limit = _number(path)
                if limit is not None:
                    usage = _number(os.path.join(directory, f"{stem}.{usage_name}")) or 0
                    limits.append(HugetlbLimit(page_size, limit, usage, _shown(path, root)))
        if limits:
            found.append(min(limits, key=lambda limit: limit.headroom_bytes))
    return tuple(found)


def read_cpu_limits(lines: list[MountLine], root: str = "/") -> list[float]:
    """CPUs' worth of time that our group and its ancestors may have, where limited.

    Parameters
    ----------
    lines
        Of ``mountinfo``.
    root
        Prefix of all paths.
    """
    found = []
    for directory, version in _directories(lines, "cpu", root):
        if version == 2:
            quota, _, period = read_kernel_file(os.path.join(directory, "cpu.max")).partition(" ")
        else:
            quota = read_kernel_file(os.path.join(directory, "cpu.cfs_quota_us"))
            period = read_kernel_file(os.path.join(directory, "cpu.cfs_period_us"))
        if quota.strip().isdigit() and period.strip().isdigit() and int(period):
            found.append(int(quota) / int(period))
    return found


def _directories(lines: list[MountLine], controller: str, root: str) -> list[tuple[str, int]]:
    """Our group's directory and its ancestors with the version; some may not be visible."""
    found: list[tuple[str, int]] = []
    for group in read_kernel_file(os.path.join(root, "proc/self/cgroup")).splitlines():
        number, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts, version = [line for line in lines if line.kind == "cgroup2"], 2
        elif controller in controllers.split(","):
            mounts = [
                line for line in lines if line.kind == "cgroup" and controller in line.options
            ]
            version = 1
        else:
            continue
        for mount in mounts[-1:]:
            top = os.path.join(root, mount.path.lstrip("/"))
            found += [(directory, version) for directory in _upwards(top, _below(path, mount.root))]
    return found


def _below(path: str, mounted: str) -> str:
    """A group's path relative to the directory that is mounted."""
    path = os.path.normpath("/" + path.lstrip("/"))
    # ".." leads out of a container's own view; its visible top is all there is.
    if mounted != "/" and (path + "/").startswith(mounted + "/"):
        path = path[len(mounted) :]
    return path.strip("/")


def _upwards(top: str, below: str) -> list[str]:
    found = []
    while below:
        found.append(os.path.join(top, below))
        below = os.path.dirname(below)
    return [*found, top]


def _hugetlb_name(page_size: int) -> str:
    for unit, letters in ((GIB, "GB"), (MIB, "MB")):
        if page_size % unit == 0:
            return f"{page_size // unit}{letters}"
    return f"{page_size // KIB}KB"


def _shown(path: str, root: str) -> str:
    return "/" + os.path.relpath(path, root)


def _number(path: str) -> int | None:
    """A limit or usage; None for no file, no limit, or no number."""
    text = read_kernel_file(path).strip()
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


def _field(path: str, name: str) -> int:
    for line in read_kernel_file(path).splitlines():
        word, _, number = line.partition(" ")
        if word == name and number.isdigit():
            return int(number)
    return 0
