"""Short looks at a caller's own arrays, from which a plan predicts.

Times are processor time of the calling thread, which others on the machine disturb least.
"""

from __future__ import annotations

import time

import numpy as np

from hugepool.kernels.base import Array, CsrArrays
from hugepool.kernels.binned_layout import aligned_empty
from hugepool.kernels.stream import numba_copy

_SAMPLE_RUNS = 1024
_SAMPLE_RUN = 1024
_SAMPLE_GROUPS = 256
_GROUP = 4
_COPY_PARTS = 8
_COPY_PART = 1 << 20


def copy_ns_per_byte(x: Array) -> float:
    """Of streaming copies from x, the bytes read and those written counted."""
    raw = x.view(np.uint8)
    lead = -raw.ctypes.data % 8
    words = raw[lead : lead + (len(raw) - lead) // 8 * 8].view(np.float64)
    copy = numba_copy()
    target = aligned_empty(min(_COPY_PART, len(words)), np.float64)
    target[:] = 0
    span = max(-(-len(words) // _COPY_PARTS), len(target), 1)
    starts = range(0, len(words), span)
    copy.prepare({"a": target, "out": target.copy()})
    nbytes, elapsed_ns = 1, 0
    for start in starts:
        part = words[start : start + len(target)]
        started_ns = time.thread_time_ns()
        copied = copy({"a": part, "out": target[: len(part)]}, 0, len(part))
        elapsed_ns += time.thread_time_ns() - started_ns
        nbytes += copied.nbytes
    return elapsed_ns / nbytes


def hot_share(a: CsrArrays, columns: int) -> float:
    """Share of a sample of entries that lies in the `columns` columns that it uses most."""
    length = min(_SAMPLE_RUN, a.nnz)
    begins = np.linspace(0, a.nnz - length, min(_SAMPLE_RUNS, a.nnz // max(length, 1)))
    if not length or not len(begins):
        return 0.0
    sample = a.indices[begins.astype(np.int64)[:, np.newaxis] + np.arange(length)]
    _, uses = np.unique(sample, return_counts=True)
    # A column seen once may be as rare as any: it says nothing of heat.
    hottest = np.sort(uses[uses > 1])[-columns:]
    return float(hottest.sum() / sample.size)


def widest_group(a: CsrArrays) -> int:
    """Columns that 4 neighbouring rows reach over at most, in a sample of such groups."""
    groups = -(-a.shape[0] // _GROUP)
    widest = 0
    for group in np.linspace(0, max(groups - 1, 0), min(_SAMPLE_GROUPS, groups)).astype(np.int64):
        first = int(a.indptr[group * _GROUP])
        last = int(a.indptr[min((group + 1) * _GROUP, a.shape[0])])
        if 0 <= first < last <= a.nnz:
            columns = a.indices[first:last]
            widest = max(widest, int(columns.max()) - int(columns.min()) + 1)
    return widest
