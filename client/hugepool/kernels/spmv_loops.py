"""The loop of the compiled product of a CSR matrix and a vector. Importing it imports numba.

One accumulator a row, in the order of the entries and without fused
multiply-add: the sum that SciPy makes, bit for bit. For unsigned arithmetic see
the loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.csr import BAD_COLUMN, BAD_INDPTR, DONE
from hugepool.kernels.intrinsics import prefetch

AHEAD = np.uint64(32)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_FOUR = np.uint64(4)


def matvec(
    indptr: Any,
    indices: Any,
    data: Any,
    x: Any,
    out: Any,
    prefetching: int,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write ``A @ x`` for the rows ``[row_start, row_stop)`` to `out`.

    Returns (DONE, 0, 0), (BAD_INDPTR, row, value) or (BAD_COLUMN, entry, value),
    the value as uint64; then `out` is written up to the row before.
    """
    # Every index is read once into a register, checked and used from there, so
    # that a process that writes to the matrix meanwhile cannot make it fault.
    columns = np.uint64(len(x))
    nnz = np.uint64(min(len(indices), len(data)))
    base = np.uint64(x.ctypes.data)
    stride = np.uint64(x.itemsize)
    first = np.uint64(row_start)
    start = np.uint64(indptr[first])
    if start > nnz:
        return BAD_INDPTR, np.int64(first), start
    for row in range(first, np.uint64(row_stop)):
        stop = np.uint64(indptr[row + _ONE])
        if stop < start or stop > nnz:
            return BAD_INDPTR, np.int64(row + _ONE), stop
        total = out.dtype.type(0)
        entry = start
        if prefetching != 0 and nnz - stop >= AHEAD:
            while entry < stop:
                prefetch(base + np.uint64(indices[entry + AHEAD]) * stride)
                column = np.uint64(indices[entry])
                if column >= columns:
                    return BAD_COLUMN, np.int64(entry), column
                total += data[entry] * x[column]
                entry += _ONE
        # Four at a time, in the same order: the fewer instructions a row takes, the
        # more of the next row's sum the processor does while it waits for this one's.
        while stop - entry >= _FOUR:
            c0 = np.uint64(indices[entry])
            c1 = np.uint64(indices[entry + _ONE])
            c2 = np.uint64(indices[entry + _TWO])
            c3 = np.uint64(indices[entry + _THREE])
            if c0 >= columns or c1 >= columns or c2 >= columns or c3 >= columns:
                break  # the loop below finds which
            total += data[entry] * x[c0]
            total += data[entry + _ONE] * x[c1]
            total += data[entry + _TWO] * x[c2]
            total += data[entry + _THREE] * x[c3]
            entry += _FOUR
        while entry < stop:
            column = np.uint64(indices[entry])
            if column >= columns:
                return BAD_COLUMN, np.int64(entry), column
            total += data[entry] * x[column]
            entry += _ONE
        out[row] = total
        start = stop
    return DONE, np.int64(0), _ZERO
