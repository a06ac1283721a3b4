"""Named shared NumPy arrays and CSR matrices on verified huge pages, for many processes.

>>> import hugepool
>>> with hugepool.connect("embedded") as pool:
...     x = pool.create("x", shape=1_000_000, dtype="f8")
...     x.array[:] = 1.0
...     print(x.seal().pages.backing)
"""

from hugepool.array import SharedArray
from hugepool.connection import connect
from hugepool.matrix import SharedMatrix
from hugepool.plan import SharedPlan
from hugepool.plan_record import PlanReport
from hugepool.pool import Pool
from hugepool.timings import JobTimings
from hugepool_common._version import __version__
from hugepool_common.errors import (
    ArrayBusyError,
    ArrayExistsError,
    ArrayNotFoundError,
    ArraySealedError,
    CancelledError,
    CoordinatorRunningError,
    CoordinatorUnreachableError,
    DetachedError,
    HugepoolError,
    IndexOutOfRangeError,
    InvalidMatrixError,
    InvalidSpecError,
    JobFailedError,
    MissingExtraError,
    NotEnoughMemoryError,
    NotEnoughPagesError,
    NotPermittedError,
    NoWorkersError,
    ProtocolError,
    RequestTimeoutError,
    SegmentChangedError,
    UnsupportedPlatformError,
)
from hugepool_common.messages import ArrayInfo, Timing
from hugepool_common.spec import ArraySpec, Fall, PageReport

__all__ = [
    "ArrayBusyError",
    "ArrayExistsError",
    "ArrayInfo",
    "ArrayNotFoundError",
    "ArraySealedError",
    "ArraySpec",
    "CancelledError",
    "CoordinatorRunningError",
    "CoordinatorUnreachableError",
    "DetachedError",
    "Fall",
    "HugepoolError",
    "IndexOutOfRangeError",
    "InvalidMatrixError",
    "InvalidSpecError",
    "JobFailedError",
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
    "RequestTimeoutError",
    "SegmentChangedError",
    "SharedArray",
    "SharedMatrix",
    "SharedPlan",
    "Timing",
    "UnsupportedPlatformError",
    "__version__",
    "connect",
]
