"""The loops of the compiled product of a transposed matrix. Importing them imports numba.

For unsigned arithmetic see the loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.csr import BAD_BOUNDS, BAD_COLUMN, BAD_INDPTR, DONE
from hugepool.kernels.intrinsics import prefetch

AHEAD = np.uint64(32)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_SUM_BLOCK = np.uint64(2048)


def rmatvec(
    indptr: Any,
    indices: Any,
    data: Any,
    x: Any,
    bounds: Any,
    partial: Any,
    columns: int,
    prefetching: int,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write what the rows of each of the parts ``[row_start, row_stop)`` add to ``A.T @ x``.

    Part k has the rows ``[bounds[k], bounds[k+1])`` and the elements from ``k * columns``
    on of `partial`. Returns (DONE, 0, 0), (BAD_INDPTR, row, value), (BAD_COLUMN, entry,
    value) or (BAD_BOUNDS, part, value), the value as uint64.
    """
    # Every index is read once into a register, checked and used from there, so
    # that a process that writes to the matrix meanwhile cannot make it fault.
    limit = np.uint64(columns)
    rows = np.uint64(min(len(x), len(indptr) - 1))
    nnz = np.uint64(min(len(indices), len(data)))
    base = np.uint64(partial.ctypes.data)
    stride = np.uint64(partial.itemsize)
    for part in range(np.uint64(row_start), np.uint64(row_stop)):
        first = part * limit
        for i in range(first, first + limit):
            partial[i] = partial.dtype.type(0)
        begin = np.uint64(bounds[part])
        end = np.uint64(bounds[part + _ONE])
        if begin > end or end > rows:
            return BAD_BOUNDS, np.int64(part), end
        start = np.uint64(indptr[begin])
        if start > nnz:
            return BAD_INDPTR, np.int64(begin), start
        for row in range(begin, end):
            stop = np.uint64(indptr[row + _ONE])
            if stop < start or stop > nnz:
                return BAD_INDPTR, np.int64(row + _ONE), stop
            factor = x[row]
            entry = start
            if prefetching != 0 and nnz - stop >= AHEAD:
                while entry < stop:
                    prefetch(base + (first + np.uint64(indices[entry + AHEAD])) * stride)
                    column = np.uint64(indices[entry])
                    if column >= limit:
                        return BAD_COLUMN, np.int64(entry), column
                    partial[first + column] += data[entry] * factor
                    entry += _ONE
            while entry < stop:
                column = np.uint64(indices[entry])
                if column >= limit:
                    return BAD_COLUMN, np.int64(entry), column
                partial[first + column] += data[entry] * factor
                entry += _ONE
            start = stop
    return DONE, np.int64(0), _ZERO


def sum_parts(partial: Any, out: Any, parts: int, row_start: int, row_stop: int) -> None:
    """Write the elements ``[row_start, row_stop)`` of the sum of all parts, in order, to `out`."""
    count = np.uint64(len(out))
    stop = np.uint64(row_stop)
    # Block by block, so that out is in the cache while part after part is added.
    first = np.uint64(row_start)
    while first < stop:
        last = min(first + _SUM_BLOCK, stop)
        for i in range(first, last):
            out[i] = partial[i]
        for part in range(_ONE, np.uint64(parts)):
            offset = part * count
            for i in range(first, last):
                out[i] += partial[offset + i]
        first = last
