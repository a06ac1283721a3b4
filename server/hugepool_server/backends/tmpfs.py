"""Segments on a tmpfs that is mounted for huge pages: ``huge=always`` or ``within_size``."""

from __future__ import annotations

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


class TmpfsHuge(SharedMemoryBackend):
    """Plain allocation gives huge pages; where it does not, extents are collapsed."""

    rung: ClassVar[str] = "tmpfs-huge"

    def __init__(self) -> None:
        self.page_size = hpage_pmd_size()

    def candidates(self, host: Host) -> list[TmpfsMount]:
        """See :meth:`SharedMemoryBackend.candidates`."""
        return tmpfs_candidates(host, HUGE_OPTIONS)

    def place(self, host: Host, length: int) -> TmpfsMount:
        """See :meth:`Backend.place`."""
        if host.shmem_enabled == "deny" or not host.shmem_enabled or not host.process_thp:
            self.check_collapse(host)
        if not self.candidates(host):
            raise self.refused(
                "mountinfo",
                "no tmpfs mounted with huge=always or huge=within_size",
                remedy="mount -o remount,huge=within_size /dev/shm",
            )
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
        mapping = self.map(file, length)  # within_size looks at the length, so that is set first
        try:
            self.allocate(file, mapping, progress, cancel)
            falls: list[Fall] = []
            if mapping.prove()[0] < length:
                fall = self.collapse(file, mapping, None, cancel)
                with self.step("madvise"):
                    mapping.populate(True, cancel=cancel)
                falls += [fall] if fall else []
            if mapping.prove()[0] == 0:
                raise self.refused(
                    "PAGEMAP_SCAN",
                    "the mount gave no huge page",
                    remedy=falls[-1].remedy if falls else "",
                )
        except BaseException:
            mapping.close()
            raise
        return mapping, falls
