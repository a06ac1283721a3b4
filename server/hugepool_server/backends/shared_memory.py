"""What the rungs on tmpfs share: choosing a mount, asking for memory, collapsing."""

from __future__ import annotations

import contextlib
import errno
import os
from abc import abstractmethod
from dataclasses import replace

from hugepool_common import linux
from hugepool_common.mapping import CancelFlag, Mapping, Progress
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host, LiveHost
from hugepool_common.spec import Fall
from hugepool_common.units import MIB, format_bytes
from hugepool_server.backends.base import Backend, RungRefused
from hugepool_server.backends.filling import SPARE_BYTES, in_slices, promised, surely_fits
from hugepool_server.backends.unpublished import UnpublishedFile

SHM = "/dev/shm"
HUGE_OPTIONS = ("always", "within_size")
"""tmpfs options ``huge=`` under which plain allocation gives huge pages."""

_COLLAPSE_SLICE = 32 << 20
_RETRIES = 3
_SYSFS = "/sys/kernel/mm/transparent_hugepage"


class SharedMemoryBackend(Backend):
    """A file on tmpfs."""

    @abstractmethod
    def candidates(self, host: Host) -> list[TmpfsMount]:
        """The mounts that this rung may use, best first."""

    def place(self, host: Host, length: int) -> TmpfsMount:
        """See :meth:`Backend.place`."""
        mounts = self.candidates(host)
        writable = [mount for mount in mounts if mount.writable]
        if not writable:
            where = mounts[0].path if mounts else SHM
            raise self.refused(
                "access",
                f"no tmpfs at {where} that uid {os.geteuid()} may write to",
                error=errno.EACCES,
                remedy=f"mount -t tmpfs -o mode=1777 tmpfs {where}",
            )
        roomy = [mount for mount in writable if mount.available_bytes >= length]
        if not roomy:
            fullest = max(writable, key=lambda mount: mount.available_bytes)
            raise self._full(fullest, length, host)
        if not _surely_fits(length, host) and host.memory_headroom_bytes - SPARE_BYTES < length:
            raise self._no_memory(host, length)
        return roomy[0]

    def room(self, length: int, host: Host) -> contextlib.AbstractContextManager[None]:
        """See :meth:`Backend.room`: filling tmpfs past free memory would end in SIGKILL."""
        if _surely_fits(length, host):
            return contextlib.nullcontext()
        return promised(length, free_memory_bytes)

    def map(self, file: UnpublishedFile, length: int) -> Mapping:
        """Set the length of the file and map it."""
        with self.step("ftruncate"):
            os.ftruncate(file.fd, length)
        with self.step("mmap"):
            return Mapping.over(file.fd, length, page_size=self.page_size)

    def allocate(
        self,
        file: UnpublishedFile,
        mapping: Mapping,
        progress: Progress | None,
        cancel: CancelFlag | None,
    ) -> None:
        """Allocate and populate every page that the file lacks; ENOSPC is clean here."""

        def act(start: int, stop: int) -> None:
            with self.step("posix_fallocate"):
                os.posix_fallocate(file.fd, start, stop - start)
            with self.step("madvise"):
                mapping.populate(True, start=start, stop=stop)

        in_slices(mapping.length, self.page_size, act, progress, cancel)

    def collapse(
        self,
        file: UnpublishedFile,
        mapping: Mapping,
        progress: Progress | None,
        cancel: CancelFlag | None,
    ) -> Fall | None:
        """Rebuild every extent as one huge page; what kept some of them from it.

        One base page in each extent is the seed: an empty extent cannot be
        collapsed, and the kernel zero-fills the rest straight into the huge page,
        which is several times faster than filling base pages first.

        Raises
        ------
        RungRefused
            File system full, or a limit of the control group: nothing to go on with.
        """
        extent = self.page_size
        seed_bytes = os.sysconf("SC_PAGESIZE")
        failures: dict[int, int] = {}

        def act(start: int, stop: int) -> None:
            for offset in range(start, stop, extent):
                # Never by touching: on a full tmpfs that is SIGBUS.
                with self.step("posix_fallocate"):
                    os.posix_fallocate(file.fd, offset, seed_bytes)
                with self.step("madvise"):
                    # Kernels before 6.18 collapse only where a page table is.
                    linux.advise(mapping.address + offset, seed_bytes, linux.MADV_POPULATE_READ)
            number = _collapse_range(mapping.address + start, stop - start)
            if number == errno.EBUSY:
                raise self.refused(
                    "madvise",
                    "the memory limit of the control group was reached",
                    error=number,
                    remedy="raise memory.max",
                )
            if number:
                failures[number] = failures.get(number, 0) + 1

        with self.step("madvise"):
            # Without this, per-size modes in sysfs can make the collapse fail.
            linux.advise(mapping.address, mapping.length, linux.MADV_HUGEPAGE)
        in_slices(mapping.length, extent, act, progress, cancel, slice_bytes=_COLLAPSE_SLICE)
        return self._uncollapsed(failures) if failures else None

    def check_collapse(self, host: Host) -> None:
        """Refuse where the kernel's modes leave no huge pages to shared memory."""
        refusals = (
            (not host.shmem_enabled, "sysfs", "the kernel has no huge pages for tmpfs", ""),
            (
                host.shmem_enabled == "deny",
                "shmem_enabled",
                "shmem_enabled=deny forbids huge pages for tmpfs",
                f"echo never > {_SYSFS}/shmem_enabled",
            ),
            (
                not host.process_thp,
                "prctl",
                "PR_SET_THP_DISABLE was inherited by this process",
                "start the coordinator from another launcher",
            ),
            (
                not host.knows_collapse,
                "madvise",
                "the kernel has no MADV_COLLAPSE (Linux 6.1)",
                "mount -o remount,huge=within_size /dev/shm",
            ),
            (
                host.shmem_enabled_pmd == "never",
                "shmem_enabled",
                "huge pages of this size are switched off for tmpfs",
                f"echo inherit > {_SYSFS}/hugepages-{host.hpage_pmd_size // 1024}kB/shmem_enabled",
            ),
        )
        for forbidden, call, reason, remedy in refusals:
            if forbidden:
                raise self.refused(call, reason, remedy=remedy)

    def _uncollapsed(self, failures: dict[int, int]) -> Fall:
        number = max(failures, key=lambda one: failures[one])
        reason, remedy = {
            errno.ENOMEM: (
                "memory is too fragmented for some huge pages",
                "echo 1 > /proc/sys/vm/compact_memory",
            ),
            errno.EAGAIN: ("some pages were busy at every attempt", ""),
            errno.EINVAL: ("the kernel does not collapse this file", ""),
        }.get(number, (os.strerror(number), ""))
        return Fall(self.rung, "madvise", number, reason, remedy)

    def _full(self, mount: TmpfsMount, length: int, host: Host) -> RungRefused:
        used_bytes = mount.limit_bytes - mount.available_bytes
        needed_mib = -(-(used_bytes + length) // MIB)
        return self.refused(
            "statvfs",
            f"{mount.path} has {format_bytes(mount.available_bytes)} free",
            error=errno.ENOSPC,
            remedy=""
            if host.past_all_memory(needed_mib * MIB)
            else f"mount -o remount,size={needed_mib}M {mount.path}",
        )

    def _no_memory(self, host: Host, length: int) -> RungRefused:
        limit = host.memory_limit
        free_bytes = max(0, host.memory_headroom_bytes - SPARE_BYTES)
        limited = limit is not None and limit.headroom_bytes < host.memory_available_bytes
        reason = f"{format_bytes(free_bytes)} of memory are free"
        if limit is None or not limited:
            return self.refused("MemAvailable", reason, error=errno.ENOMEM)
        return self.refused(
            "memory cgroup",
            f"{reason} under the limit of {limit.where}",
            error=errno.ENOMEM,
            remedy=""
            if 0 < host.memory_total_bytes < length
            else f"raise the limit of {limit.where} by {format_bytes(length - free_bytes)}",
        )


def free_memory_bytes() -> int:
    """What may be allocated now, by free memory and the control group's limit."""
    return LiveHost().memory_headroom_bytes


def tmpfs_candidates(host: Host, options: tuple[str, ...]) -> list[TmpfsMount]:
    """tmpfs mounts with one of the ``huge=`` options: the preferred one, /dev/shm, then others.

    A mount without such an option is used only if it is one of the first two: a
    tmpfs that holds other things (``/run``, a container's secrets) is no place
    for arrays.
    """
    preferred = host.preferred_mount()
    found = [
        mount
        for mount in host.tmpfs_mounts
        if mount.huge in options and (mount.huge != "never" or mount.path in (SHM, preferred))
    ]
    found.sort(key=lambda mount: (mount.path != preferred, mount.path != SHM))
    if found and found[0].path == preferred:
        directory = os.path.abspath(host.preferred_directory)
        found[0] = replace(
            found[0], path=directory, writable=os.access(directory, os.W_OK | os.X_OK)
        )
    return found


def is_huge(mount: HugetlbfsMount | TmpfsMount, host: Host) -> bool:
    """Whether plain allocation on this mount gives huge pages."""
    return (
        isinstance(mount, TmpfsMount) and mount.huge in HUGE_OPTIONS
    ) or host.shmem_enabled == "force"


def _surely_fits(length: int, host: Host) -> bool:
    # A host that was given is what to decide by, whatever was seen of the real one.
    return isinstance(host, LiveHost) and surely_fits(length, lambda: host.memory_headroom_bytes)


def _collapse_range(address: int, length: int) -> int:
    """MADV_COLLAPSE; the errno of its last failing extent, or 0."""
    number = 0
    for _ in range(1 + _RETRIES):
        try:
            linux.advise(address, length, linux.MADV_COLLAPSE)
        except OSError as error:
            number = error.errno or errno.EINVAL
            if number != errno.EAGAIN:  # a page was locked or off its list
                return number
        else:
            return 0
    return number
