"""Segments on plain tmpfs, made huge by MADV_COLLAPSE: needs no privilege and no setting."""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from hugepool_common.mapping import CancelFlag, Mapping, Progress
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host, hpage_pmd_size
from hugepool_common.spec import Fall
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.backends.shared_memory import (
    HUGE_OPTIONS,
    SharedMemoryBackend,
    tmpfs_candidates,
)
from hugepool_server.backends.unpublished import UnpublishedFile


class ShmCollapse(SharedMemoryBackend):
    """Seed every extent with one base page, then collapse it."""

    rung: ClassVar[str] = "shm-collapse"

    def __init__(self) -> None:
        self.page_size = hpage_pmd_size()

    def candidates(self, host: Host) -> list[TmpfsMount]:
        """See :meth:`SharedMemoryBackend.candidates`."""
        return tmpfs_candidates(host, ("never", "advise", *HUGE_OPTIONS))

    def place(self, host: Host, length: int) -> TmpfsMount:
        """See :meth:`Backend.place`."""
        self.check_collapse(host)
        return super().place(host, length)

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
        mapping = self.map(file, length)
        try:
            fall = self.collapse(file, mapping, progress, cancel)
            huge_bytes, present_bytes, _ = mapping.prove()
            if huge_bytes == length:
                return mapping, []
            fall = fall or Fall(self.rung, "madvise", 0, "the kernel collapsed only a part")
            if huge_bytes == 0 or request.whole:
                raise self._fallen(file, fall)
            # Some extents stay base pages. Their holes must be filled before
            # anybody may touch them; existing huge pages are kept by this.
            if present_bytes < length or os.fstat(file.fd).st_blocks * 512 < length:
                self.allocate(file, mapping, None, cancel)
        except BaseException:
            mapping.close()
            raise
        return mapping, [fall]

    def _fallen(self, file: UnpublishedFile, fall: Fall) -> Exception:
        room = os.fstatvfs(file.fd)
        if fall.errno == errno.EINVAL and room.f_bavail * room.f_bsize < self.page_size:
            # The kernel says EINVAL, not ENOSPC, when the file system runs full in a collapse.
            return self.refused(
                "madvise", "the file system ran full in the collapse", error=errno.EINVAL
            )
        return self.refused(fall.call, fall.reason, error=fall.errno, remedy=fall.remedy)
