"""Messages as a coordinator would write them, for tests of what a client makes of them."""

from __future__ import annotations

from hugepool_common.messages import ArrayInfo
from hugepool_common.spec import ArraySpec, PageReport, Segment

SPEC = ArraySpec("x", (10,), "<f8")


def info(segment_id: int, spec: ArraySpec = SPEC) -> ArrayInfo:
    """What is told of an array in this segment."""
    path = f"/dev/shm/hugepool-0-0123456789abcdef/{segment_id}"
    segment = Segment(segment_id, path, 1, segment_id, 0, 4096, 4096, "shm-4k")
    pages = PageReport("shm-4k", 4096, 4096, 0, 4096, "pagemap_scan")
    return ArrayInfo(spec, segment, pages, False, 1, 0, 0, 1)
