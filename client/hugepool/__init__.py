"""Named shared NumPy arrays and CSR matrices on verified huge pages, for many processes.

>>> import hugepool
>>> with hugepool.connect("embedded") as pool:
...     x = pool.create("x", shape=1_000_000, dtype="f8")
...     x.array[:] = 1.0
...     print(x.seal().pages.backing)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hugepool.array import SharedArray
    from hugepool.connection import connect
    from hugepool.job import Job, JobCancelledError, JobProgress
    from hugepool.leased_file import VerifyReport
    from hugepool.matrix import SharedMatrix
    from hugepool.plan import SharedPlan
    from hugepool.plan_record import PlanReport
    from hugepool.pool import Pool
    from hugepool.shared_memory import SharedMemory
    from hugepool.snapshot import SnapshotReport
    from hugepool.snapshot_index import SavedObject
    from hugepool.timings import JobTimings
    from hugepool_common._version import __version__
    from hugepool_common.errors import (
        ArrayBusyError,
        ArrayExistsError,
        ArrayLostError,
        ArrayNotFoundError,
        ArraySealedError,
        CancelledError,
        ChecksumError,
        CoordinatorRunningError,
        CoordinatorUnreachableError,
        DetachedError,
        HugepoolError,
        IndexOutOfRangeError,
        InvalidMatrixError,
        InvalidSpecError,
        JobFailedError,
        JobInterruptedError,
        LeaseExpiredError,
        MissingExtraError,
        NotEnoughMemoryError,
        NotEnoughPagesError,
        NotPermittedError,
        NoWorkersError,
        ProtocolError,
        QuotaExceededError,
        RequestTimeoutError,
        SegmentChangedError,
        SnapshotError,
        UnsupportedPlatformError,
    )
    from hugepool_common.messages import ArrayInfo, Timing
    from hugepool_common.spec import ArraySpec, Fall, PageReport

__all__ = [
    "ArrayBusyError",
    "ArrayExistsError",
    "ArrayInfo",
    "ArrayLostError",
    "ArrayNotFoundError",
    "ArraySealedError",
    "ArraySpec",
    "CancelledError",
    "ChecksumError",
    "CoordinatorRunningError",
    "CoordinatorUnreachableError",
    "DetachedError",
    "Fall",
    "HugepoolError",
    "IndexOutOfRangeError",
    "InvalidMatrixError",
    "InvalidSpecError",
    "Job",
    "JobCancelledError",
    "JobFailedError",
    "JobInterruptedError",
    "JobProgress",
    "JobTimings",
    "LeaseExpiredError",
    "MissingExtraError",
    "NoWorkersError",
    "NotEnoughMemoryError",
    "NotEnoughPagesError",
    "NotPermittedError",
    "PageReport",
    "PlanReport",
    "Pool",
    "ProtocolError",
    "QuotaExceededError",
    "RequestTimeoutError",
    "SavedObject",
    "SegmentChangedError",
    "SharedArray",
    "SharedMatrix",
    "SharedMemory",
    "SharedPlan",
    "SnapshotError",
    "SnapshotReport",
    "Timing",
    "UnsupportedPlatformError",
    "VerifyReport",
    "__version__",
    "connect",
]

_HOMES = {
    "hugepool.array": "SharedArray",
    "hugepool.connection": "connect",
    "hugepool.job": "Job JobCancelledError JobProgress",
    "hugepool.leased_file": "VerifyReport",
    "hugepool.matrix": "SharedMatrix",
    "hugepool.plan": "SharedPlan",
    "hugepool.plan_record": "PlanReport",
    "hugepool.pool": "Pool",
    "hugepool.shared_memory": "SharedMemory",
    "hugepool.snapshot": "SnapshotReport",
    "hugepool.snapshot_index": "SavedObject",
    "hugepool.timings": "JobTimings",
    "hugepool_common._version": "__version__",
    "hugepool_common.errors": " ".join(
        name for name in __all__ if name.endswith("Error") and name != "JobCancelledError"
    ),
    "hugepool_common.messages": "ArrayInfo Timing",
    "hugepool_common.spec": "ArraySpec Fall PageReport",
}
"""Where each name is defined. It is imported on first use, for ``hugepool ls`` needs no NumPy."""

_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name on its first use; from then on it is here."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
