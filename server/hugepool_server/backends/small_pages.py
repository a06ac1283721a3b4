"""Segments of base pages on tmpfs: the last rung, and the yardstick for all others."""

from __future__ import annotations

import os
from typing import ClassVar

from hugepool_common import linux
from hugepool_common.mapping import CancelFlag, Mapping, Progress
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host, LiveHost
from hugepool_common.spec import Fall
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.backends.filling import in_slices
from hugepool_server.backends.shared_memory import (
    HUGE_OPTIONS,
    SharedMemoryBackend,
    is_huge,
    tmpfs_candidates,
)
from hugepool_server.backends.unpublished import UnpublishedFile


class SmallPages(SharedMemoryBackend):
    """Base pages, also on a host that would rather give huge ones."""

    rung: ClassVar[str] = "shm-4k"

    def __init__(self) -> None:
        self.page_size = os.sysconf("SC_PAGESIZE")

    def candidates(self, host: Host) -> list[TmpfsMount]:
        """See :meth:`SharedMemoryBackend.candidates`."""
        return [
            *tmpfs_candidates(host, ("never", "advise")),
            *tmpfs_candidates(host, HUGE_OPTIONS),
        ]

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
            with self.step("madvise"):
                linux.advise(mapping.address, length, linux.MADV_NOHUGEPAGE)
            if is_huge(mount, LiveHost()):
                # fallocate would take huge pages here, whatever the mapping asks
                # for. A fault obeys the mapping, and populating faults without SIGBUS.
                with self.step("madvise"):
                    in_slices(
                        length,
                        self.page_size,
                        lambda start, stop: mapping.populate(True, start=start, stop=stop),
                        progress,
                        cancel,
                    )
            else:
                self.allocate(file, mapping, progress, cancel)
        except BaseException:
            mapping.close()
            raise
        return mapping, []
