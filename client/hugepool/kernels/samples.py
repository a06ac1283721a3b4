"""Short measurements on a caller's own arrays, from which a plan predicts.

Times are processor time of the calling thread, which others on the machine disturb least.
"""

from __future__ import annotations

import time

import numpy as np

from hugepool.kernels.base import Array, Kernel
from hugepool.kernels.binned_layout import aligned_empty
from hugepool.kernels.stream import numba_copy

_SAMPLE_PARTS = 16
_SAMPLE_PART = 1 << 16
_COPY_PARTS = 8
_COPY_PART = 1 << 20


def gather_ns_per_index(kernel: Kernel, x: Array, idx: Array) -> float:
    """Of a gather kernel for about a million indices from all over a flat `idx`."""
    span = -(-len(idx) // _SAMPLE_PARTS)
    part = min(_SAMPLE_PART, -(-span // 2))
    target = np.zeros(part, x.dtype)
    entries, elapsed_ns = 0, 0
    # The first pass touches the pages and compiles; the second meets other indices.
    for lead in (0, span // 2):
        entries, elapsed_ns = 0, 0
        for start in range(lead, len(idx), span):
            some = idx[start : start + part]
            operands = {"x": x, "idx": some, "out": target[: len(some)]}
            started_ns = time.thread_time_ns()
            kernel(operands, 0, len(some))
            elapsed_ns += time.thread_time_ns() - started_ns
            entries += len(some)
    return elapsed_ns / max(entries, 1)


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
