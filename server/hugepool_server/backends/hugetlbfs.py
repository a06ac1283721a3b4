"""Segments on hugetlbfs: pages that the administrator set aside, never swapped or split."""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import replace
from typing import ClassVar

from hugepool_common.mapping import CancelFlag, Mapping, Progress
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import MOUNT_VARIABLE, Host, LiveHost, Pool
from hugepool_common.spec import Fall
from hugepool_common.units import GIB, KIB, MIB, format_bytes, page_size_name
from hugepool_server.backends.base import Backend, RungRefused, SegmentRequest
from hugepool_server.backends.filling import in_slices
from hugepool_server.backends.unpublished import UnpublishedFile


class HugetlbfsBackend(Backend):
    """A file on a hugetlbfs mount of one page size.

    Notes
    -----
    ``posix_fallocate`` is not used: refused, it keeps what it took until the file
    goes, and so could starve others while being refused. ``mmap`` reserves every
    page or none.
    """

    def place(self, host: Host, length: int) -> HugetlbfsMount:
        """See :meth:`Backend.place`."""
        pool = host.pool(self.page_size)
        if pool is None:
            raise self.refused("sysfs", f"the kernel has no {self._page_name} huge pages")
        mount = self._mount(host, pool, length)
        short = self._lacking(host, pool, mount, length)
        if short is not None:
            raise short
        return mount

    def fill(
        self,
        file: UnpublishedFile,
        length: int,
        request: SegmentRequest,
        mount: HugetlbfsMount | TmpfsMount,
        progress: Progress | None,
        cancel: CancelFlag | None,
    ) -> tuple[Mapping, list[Fall]]:
        """See :meth:`Backend.fill`."""
        block_bytes = os.fstatvfs(file.fd).f_bsize
        if block_bytes != self.page_size:
            raise self.refused(
                "fstatvfs", f"{mount.path} has pages of {page_size_name(block_bytes)}"
            )
        with self.step("ftruncate"):
            os.ftruncate(file.fd, length)
        # The reservation belongs to the file. It is made by a mapping wherever the
        # kernel likes, because a failed MAP_FIXED leaves a hole behind.
        try:
            mmap.mmap(file.fd, length, flags=mmap.MAP_SHARED).close()
        except OSError as error:
            raise self._exhausted(length, mount, error.errno or errno.ENOMEM) from error
        with self.step("mmap"):
            mapping = Mapping.over(file.fd, length, page_size=self.page_size)
        try:
            with self.step("madvise"):
                in_slices(
                    length,
                    self.page_size,
                    lambda start, stop: mapping.populate(True, start=start, stop=stop),
                    progress,
                    cancel,
                )
        except RungRefused as refusal:
            mapping.close()
            if refusal.fall.errno == errno.EFAULT:
                raise self._limited() from refusal
            raise
        except BaseException:
            mapping.close()
            raise
        return mapping, []

    @property
    def _page_name(self) -> str:
        return page_size_name(self.page_size)

    def _mount(self, host: Host, pool: Pool, length: int) -> HugetlbfsMount:
        mounts = [mount for mount in host.hugetlbfs_mounts if mount.page_size == self.page_size]
        preferred = host.preferred_mount()
        if host.preferred_directory and preferred is None:
            raise self.refused(
                MOUNT_VARIABLE,
                f"{host.preferred_directory} is on neither hugetlbfs nor tmpfs",
                remedy=f"set {MOUNT_VARIABLE} to a directory on hugetlbfs",
            )
        for mount in mounts:
            if mount.path == preferred:
                # Whether that directory can be written to, mkdir will tell.
                return replace(mount, path=os.path.abspath(host.preferred_directory))
        if not mounts:
            raise self.refused(
                "mountinfo",
                f"no hugetlbfs mount with {self._page_name} pages",
                remedy=self._mount_remedy(host, pool, length),
            )
        writable = [mount for mount in mounts if mount.writable]
        if not writable:
            path = mounts[0].path
            raise self.refused(
                "access",
                f"{path} is not writable for uid {os.geteuid()}",
                error=errno.EACCES,
                remedy=f"mount -o remount,rw {path} && chown {os.geteuid()} {path}",
            )
        roomy = [mount for mount in writable if _room(mount) >= length]
        return max(roomy or writable, key=lambda mount: (mount.claimed_bytes, _room(mount)))

    def _lacking(
        self, host: Host, pool: Pool, mount: HugetlbfsMount, length: int
    ) -> RungRefused | None:
        """What is too small: the mount, the pool or the control group; None if nothing is."""
        if _room(mount) < length:
            return self.refused(
                "statvfs",
                f"{mount.path} has {format_bytes(_room(mount))} left of its size= option",
                error=errno.ENOSPC,
                remedy=""
                if host.past_all_memory(length, limited=False)
                else _mount_command(self.page_size, length + (mount.limit_bytes or 0)),
            )
        # Pages that a mount claimed by min_size= are missing in the pool's own
        # count; only mmap knows how many of them are left.
        if not mount.claimed_bytes and pool.available_bytes < length:
            return self.refused(
                "nr_hugepages",
                f"{pool.available_pages} of {length // self.page_size} pages of "
                f"{self._page_name} are free",
                error=errno.ENOMEM,
                remedy=pool_command(host, pool, length),
            )
        limit = host.hugetlb_limit(self.page_size)
        if limit is not None and limit.headroom_bytes < length:
            return self.refused(
                "hugetlb cgroup",
                f"the control group allows {format_bytes(limit.headroom_bytes)} more",
                error=errno.ENOMEM,
                remedy=""
                if host.past_all_memory(limit.usage_bytes + length, limited=False)
                else f"echo {limit.usage_bytes + length} > {limit.where}",
            )
        return None

    def _exhausted(
        self, length: int, mount: HugetlbfsMount | TmpfsMount, number: int
    ) -> RungRefused:
        """Why mmap found no pages although there seemed to be: look again."""
        host = LiveHost()
        pool = host.pool(self.page_size)
        again = next((one for one in host.hugetlbfs_mounts if one.path == mount.path), None)
        if pool is not None and again is not None:
            lacking = self._lacking(host, pool, again, length)
            if lacking is not None:
                return self.refused(
                    "mmap", lacking.fall.reason, error=number, remedy=lacking.fall.remedy
                )
        remedy = "" if pool is None else pool_command(host, pool, length, at_least=1)
        return self.refused(
            "mmap",
            f"no {length // self.page_size} pages of {self._page_name} could be reserved",
            error=number,
            remedy=remedy,
        )

    def _limited(self) -> RungRefused:
        limit = LiveHost().hugetlb_limit(self.page_size)
        where = limit.where if limit else "the hugetlb limit of the control group"
        return self.refused(
            "madvise",
            "the control group's limit on huge pages was reached",
            error=errno.EFAULT,
            remedy=f"raise {where}",
        )

    def _mount_remedy(self, host: Host, pool: Pool, length: int) -> str:
        command = _mount_command(self.page_size, None)
        if pool.available_bytes < length:
            enlarge = pool_command(host, pool, length)
            return f"{enlarge} && {command}" if enlarge else ""
        return command


class Hugetlbfs2M(HugetlbfsBackend):
    """Pages of 2 MiB."""

    rung: ClassVar[str] = "hugetlbfs-2m"
    page_size = 2 * MIB


class Hugetlbfs1G(HugetlbfsBackend):
    """Pages of 1 GiB; only where asked for, since an array takes whole ones."""

    rung: ClassVar[str] = "hugetlbfs-1g"
    page_size = GIB


def pool_command(host: Host, pool: Pool, length: int, *, at_least: int = 0) -> str:
    """The command that makes a pool large enough for `length` bytes more.

    Empty where memory is too small for such a pool: see :meth:`Host.pool_shortage`.

    Parameters
    ----------
    at_least
        Pages to add even if enough seem to be there.
    """
    missing = max(at_least, length // pool.page_size - pool.available_pages)
    pages = pool.total_pages - pool.surplus_pages + missing
    if host.pool_shortage(pool.page_size, pool.available_pages + missing):
        return ""
    if pool.page_size == host.default_huge_page_size:
        return f"sysctl vm.nr_hugepages={pages}"
    return (
        f"echo {pages} > /sys/kernel/mm/hugepages/hugepages-{pool.page_size // KIB}kB/nr_hugepages"
    )


def _mount_command(page_size: int, length: int | None) -> str:
    name = page_size_name(page_size)
    place = f"/run/hugepages/hugepool-{os.geteuid()}-{name}"
    limit = "" if length is None else f",size={length // MIB}M"
    return (
        f"mkdir -p {place} && mount -t hugetlbfs -o pagesize={name},uid={os.geteuid()},"
        f"gid={os.getegid()},mode=0700{limit} none {place}"
    )


def _room(mount: HugetlbfsMount) -> int:
    return 1 << 62 if mount.available_bytes is None else mount.available_bytes
