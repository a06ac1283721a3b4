"""The loops of the compiled product of parts that may cut a row. Importing them imports numba.

A whole row is summed as by the loop of ``matvec``, one entry after the other; a piece
of a row in four sums side by side, for its order is broken anyway. For unsigned
arithmetic see the loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from hugepool.kernels.csr import BAD_BOUNDS, BAD_COLUMN, BAD_INDPTR, DONE
from hugepool.kernels.intrinsics import prefetch

AHEAD = np.uint64(32)
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_FOUR = np.uint64(4)


def matvec_split(
    indptr: Any,
    indices: Any,
    data: Any,
    x: Any,
    bounds: Any,
    carry: Any,
    out: Any,
    parts: int,
    prefetching: int,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Compute the parts ``[row_start, row_stop)``: whole rows to `out`, pieces to `carry`.

    Part k has two carries: the sums of the row that it only goes on with, and of the
    one that it only begins. Returns (DONE, 0, 0), (BAD_INDPTR, row, value), (BAD_COLUMN,
    entry, value) or (BAD_BOUNDS, part, value), the value as uint64.
    """
    nnz = np.uint64(min(len(indices), len(data)))
    rows = np.uint64(min(len(out), len(indptr) - 1))
    entry_bounds = np.uint64(parts) + _ONE
    for part in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(bounds[part])
        last_row = np.uint64(bounds[part + _ONE])
        entry = np.uint64(bounds[entry_bounds + part])
        last = np.uint64(bounds[entry_bounds + part + _ONE])
        if row > last_row or last_row > rows:
            return BAD_BOUNDS, np.int64(part), last_row
        if entry > last or last > nnz:
            return BAD_BOUNDS, np.int64(part), last
        carry[_TWO * part] = out.dtype.type(0)
        carry[_TWO * part + _ONE] = out.dtype.type(0)
        stop = np.uint64(indptr[row])
        if stop > nnz:
            return BAD_INDPTR, np.int64(row), stop
        if stop < entry or (row == last_row and stop < last):
            return BAD_BOUNDS, np.int64(part), entry
        piece = min(stop, last)
        if entry < piece:
            total, wrong = _sum_piece(indices, data, x, out, entry, piece, nnz, prefetching)
            if wrong < piece:
                return BAD_COLUMN, np.int64(wrong), np.uint64(indices[wrong])
            carry[_TWO * part] = total
        while row < last_row:
            start = stop
            stop = np.uint64(indptr[row + _ONE])
            if stop < start or stop > nnz:
                return BAD_INDPTR, np.int64(row + _ONE), stop
            ends_part = row + _ONE == last_row
            if (ends_part and stop < last) or (not ends_part and stop > last) or start > last:
                return BAD_BOUNDS, np.int64(part), last
            if stop <= last:
                total, wrong = _sum_row(indices, data, x, out, start, stop, nnz, prefetching)
                if wrong < stop:
                    return BAD_COLUMN, np.int64(wrong), np.uint64(indices[wrong])
                out[row] = total
            else:
                total, wrong = _sum_piece(indices, data, x, out, start, last, nnz, prefetching)
                if wrong < last:
                    return BAD_COLUMN, np.int64(wrong), np.uint64(indices[wrong])
                carry[_TWO * part + _ONE] = total
            row += _ONE
    return DONE, np.int64(0), _ZERO


@register_jitable
def _sum_row(
    indices: Any, data: Any, x: Any, out: Any, start: Any, stop: Any, nnz: Any, prefetching: Any
) -> tuple[Any, Any]:
    """Sum entries from left to right; also return `stop`, or the first with a bad column."""
    columns = np.uint64(len(x))
    base = np.uint64(x.ctypes.data)
    stride = np.uint64(x.itemsize)
    total = out.dtype.type(0)
    entry = start
    if prefetching != 0 and nnz - stop >= AHEAD:
        while entry < stop:
            prefetch(base + np.uint64(indices[entry + AHEAD]) * stride)
            column = np.uint64(indices[entry])
            if column >= columns:
                return total, entry
            total += data[entry] * x[column]
            entry += _ONE
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
            return total, entry
        total += data[entry] * x[column]
        entry += _ONE
    return total, stop


@register_jitable
def _sum_piece(
    indices: Any, data: Any, x: Any, out: Any, start: Any, stop: Any, nnz: Any, prefetching: Any
) -> tuple[Any, Any]:
    """Sum entries, every fourth together; returns as :func:`_sum_row`."""
    columns = np.uint64(len(x))
    base = np.uint64(x.ctypes.data)
    stride = np.uint64(x.itemsize)
    t0 = out.dtype.type(0)
    t1 = out.dtype.type(0)
    t2 = out.dtype.type(0)
    t3 = out.dtype.type(0)
    entry = start
    # Ahead lie whole groups only up to the last entry of all.
    far = nnz - min(nnz, AHEAD + _FOUR) if prefetching != 0 else _ZERO
    while stop - entry >= _FOUR:
        c0 = np.uint64(indices[entry])
        c1 = np.uint64(indices[entry + _ONE])
        c2 = np.uint64(indices[entry + _TWO])
        c3 = np.uint64(indices[entry + _THREE])
        if c0 >= columns or c1 >= columns or c2 >= columns or c3 >= columns:
            break  # the loop below finds which
        if entry < far:
            ahead = entry + AHEAD
            prefetch(base + np.uint64(indices[ahead]) * stride)
            prefetch(base + np.uint64(indices[ahead + _ONE]) * stride)
            prefetch(base + np.uint64(indices[ahead + _TWO]) * stride)
            prefetch(base + np.uint64(indices[ahead + _THREE]) * stride)
        t0 += data[entry] * x[c0]
        t1 += data[entry + _ONE] * x[c1]
        t2 += data[entry + _TWO] * x[c2]
        t3 += data[entry + _THREE] * x[c3]
        entry += _FOUR
    while entry < stop:
        column = np.uint64(indices[entry])
        if column >= columns:
            return t0, entry
        t0 += data[entry] * x[column]
        entry += _ONE
    return (t0 + t1) + (t2 + t3), stop


def add_carries(
    indptr: Any, bounds: Any, carry: Any, out: Any, parts: int, row_start: int, row_stop: int
) -> Any:
    """Write the rows that the parts ``[row_start, row_stop)`` begin and later ones end to `out`.

    Returns -1, or the part whose bounds lie outside the matrix.
    """
    count = np.uint64(parts)
    rows = np.uint64(min(len(out), len(indptr) - 1))
    entry_bounds = count + _ONE
    for part in range(np.uint64(row_start), np.uint64(row_stop)):
        following = np.uint64(bounds[part + _ONE])
        if following > rows:
            return np.int64(part)
        stop = np.uint64(indptr[following])
        begins = np.uint64(bounds[part]) < following
        if not begins or np.uint64(bounds[entry_bounds + part + _ONE]) >= stop:
            continue
        total = carry[_TWO * part + _ONE]
        other = part + _ONE
        # Later parts go on with the row until one of them ends it.
        while other < count:
            if np.uint64(bounds[other]) != following:
                break
            if np.uint64(bounds[entry_bounds + other]) >= stop:
                break
            total += carry[_TWO * other]
            other += _ONE
        out[following - _ONE] = total
    return np.int64(-1)
