"""Named shared NumPy arrays and CSR matrices on verified huge pages, for many processes.

>>> import hugepool
>>> with hugepool.connect("embedded") as pool:
...     x = pool.create("x", shape=1_000_000, dtype="f8")
...     x.array[:] = 1.0
...     print(x.seal().pages.backing)
"""

from hugepool.array import SharedArray
from hugepool.connection import connect
from hugepool.leased_file import VerifyReport
from hugepool.matrix import SharedMatrix
from hugepool.plan import SharedPlan
from hugepool.plan_record import PlanReport
from hugepool.pool import Pool
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
    "JobFailedError",
    "JobInterruptedError",
    "JobTimings",
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
    "SharedPlan",
    "SnapshotError",
    "SnapshotReport",
    "Timing",
    "UnsupportedPlatformError",
    "VerifyReport",
    "__version__",
    "connect",
]
