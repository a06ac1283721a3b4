"""The loops of the compiled gather. Importing this module imports numba.

All index arithmetic is unsigned: with signed indices numba adds a test for
negative ones to every access. Constants are ``numpy.uint64`` because ``uint64``
with ``int64`` makes ``float64``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.intrinsics import copy_bytes, prefetch

AHEAD = np.uint64(32)
_ZERO = np.uint64(0)


def gather_elements(x: Any, idx: Any, out: Any, row_start: int, row_stop: int) -> tuple[Any, Any]:
    """Copy elements ``idx[row_start:row_stop]`` of `x` to the same elements of `out`.

    Returns (-1, 0), or the position of the first index outside ``[0, len(x))`` and
    its value as uint64; then `out` is written up to the element before it.
    """
    # Every index is read once into a register, checked and used from there, so
    # that a process that writes to idx meanwhile cannot make it fault. The test
    # costs less than checking a block ahead: it waits for nothing, and the
    # prefetches keep memory busy.
    limit = np.uint64(len(x))
    base = np.uint64(x.ctypes.data)
    stride = np.uint64(x.itemsize)
    start = np.uint64(row_start)
    stop = np.uint64(row_stop)
    # Only the address may be garbage, never the place in idx that it is read
    # from: the last elements run without a prefetch.
    tail = stop - min(AHEAD, stop - start)
    for i in range(start, tail):
        prefetch(base + np.uint64(idx[i + AHEAD]) * stride)
        row = np.uint64(idx[i])
        if row >= limit:
            return np.int64(i), row
        out[i] = x[row]
    for i in range(tail, stop):
        row = np.uint64(idx[i])
        if row >= limit:
            return np.int64(i), row
        out[i] = x[row]
    return np.int64(-1), _ZERO


def gather_rows(
    x: Any, rows: int, row_bytes: int, idx: Any, out: Any, row_start: int, row_stop: int
) -> tuple[Any, Any]:
    """Copy rows ``idx[row_start:row_stop]`` of `x` to the same rows of `out`, all of them bytes.

    Returns as :func:`gather_elements`, for indices outside ``[0, rows)``.
    """
    limit = np.uint64(rows)
    stride = np.uint64(row_bytes)
    source = np.uint64(x.ctypes.data)
    target = np.uint64(out.ctypes.data)
    start = np.uint64(row_start)
    stop = np.uint64(row_stop)
    tail = stop - min(AHEAD, stop - start)
    for i in range(start, stop):
        if i < tail:
            prefetch(source + np.uint64(idx[i + AHEAD]) * stride)
        row = np.uint64(idx[i])
        if row >= limit:
            return np.int64(i), row
        copy_bytes(target + i * stride, source + row * stride, stride)
    return np.int64(-1), _ZERO
