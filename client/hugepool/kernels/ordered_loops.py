"""The loops of the ordered product. Importing this module imports numba.

What the arrays hold is told by the module ``ordered``. For unsigned arithmetic see the
loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from hugepool.kernels.csr import BAD_COLUMN, BAD_INDPTR, CHANGED, DONE
from hugepool.kernels.intrinsics import prefetch
from hugepool.kernels.lanes import interleaved_sums

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_GROUP = np.uint64(4)
AHEAD = 128
"""Entries, 32 of each row: with 8 of each, the product of a large graph took 1.4 times as long."""
_AHEAD = np.uint64(AHEAD)
_SOON = np.uint64(16)
_BLOCK = np.uint64(64)
_NUMBER_BYTES = np.uint64(4)


_sums = interleaved_sums(4, 0)
_sums_ahead = interleaved_sums(4, AHEAD)


def count_uses(
    indptr: Any, indices: Any, uses: Any, row_start: int, row_stop: int
) -> tuple[Any, Any, Any]:
    """Add the entries of each column to `uses`.

    Returns (DONE, 0, 0), (BAD_INDPTR, row, value) or (BAD_COLUMN, entry, value).
    """
    nnz = np.uint64(len(indices))
    limit = np.uint64(len(uses))
    first = np.uint64(row_start)
    start = np.uint64(indptr[first])
    if start > nnz:
        return BAD_INDPTR, np.int64(first), start
    for row in range(first, np.uint64(row_stop)):
        stop = np.uint64(indptr[row + _ONE])
        if stop < start or stop > nnz:
            return BAD_INDPTR, np.int64(row + _ONE), stop
        for entry in range(start, stop):
            column = np.uint64(indices[entry])
            if column >= limit:
                return BAD_COLUMN, np.int64(entry), column
            uses[column] += np.uint32(1)
        start = stop
    return DONE, np.int64(0), _ZERO


@register_jitable
def _copy_row(
    indices: Any,
    data: Any,
    renumbered: Any,
    limit: Any,
    columns: Any,
    values: Any,
    source: Any,
    place: Any,
    stride: Any,
    count: Any,
) -> Any:
    """Copy some entries of one row to every `stride`-th place; says whether a column is unfit."""
    width = np.uint64(len(renumbered))
    address = np.uint64(renumbered.ctypes.data)
    last = np.uint64(len(indices)) - _ONE
    for k in range(count):
        later = np.uint64(indices[min(source + k + _SOON, last)])
        prefetch(address + later * _NUMBER_BYTES)
        column = np.uint64(indices[source + k])
        new = np.uint64(renumbered[column]) if column < width else limit
        if new >= limit:
            return True
        columns[place + k * stride] = new
        values[place + k * stride] = data[source + k]
    return False


def fill_ordered(
    indptr: Any,
    indices: Any,
    data: Any,
    renumbered: Any,
    used: int,
    row: Any,
    starts: Any,
    columns: Any,
    values: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write some groups of 4 rows into a plan.

    Returns (DONE, 0, 0), or (CHANGED, row, 0) where the matrix is not what was looked at.
    Whatever it holds, places and columns in the plan lie within bounds.
    """
    rows = np.uint64(len(row))
    nnz = np.uint64(min(len(indices), len(data)))
    limit = np.uint64(used)
    begin = np.empty(4, np.uint64)
    count = np.empty(4, np.uint64)
    for group in range(np.uint64(row_start), np.uint64(row_stop)):
        first = group * _GROUP
        lanes = min(_GROUP, rows - first)
        shortest = nnz
        for j in range(lanes):
            source = np.uint64(row[first + j])
            begin[j] = np.uint64(indptr[source])
            stop = np.uint64(indptr[source + _ONE])
            count[j] = np.uint64(starts[first + j + _ONE]) - np.uint64(starts[first + j])
            if begin[j] > nnz or stop > nnz or stop - begin[j] != count[j]:
                return CHANGED, np.int64(source), _ZERO
            shortest = min(shortest, count[j])
        if lanes < _GROUP:
            shortest = _ZERO
        place = np.uint64(starts[first])
        # A block of one row after the other: each is read in order, and what is
        # written stays in the first cache until its lines are whole.
        for block in range(_ZERO, shortest, _BLOCK):
            block_stop = min(block + _BLOCK, shortest)
            for j in range(lanes):
                failed = _copy_row(
                    *(indices, data, renumbered, limit, columns, values),
                    *(begin[j] + block, place + block * lanes + j, lanes, block_stop - block),
                )
                if failed:
                    return CHANGED, np.int64(row[first + j]), _ZERO
        place += shortest * lanes
        for j in range(lanes):
            failed = _copy_row(
                *(indices, data, renumbered, limit, columns, values),
                *(begin[j] + shortest, place, _ONE, count[j] - shortest),
            )
            if failed:
                return CHANGED, np.int64(row[first + j]), _ZERO
            place += count[j] - shortest
    return DONE, np.int64(0), _ZERO


@register_jitable
def _rest(total: Any, columns: Any, values: Any, x: Any, start: Any, count: Any, kind: Any) -> Any:
    """Go on with the sum of one row, whose entries lie side by side."""
    address = np.uint64(x.ctypes.data)
    stride = np.uint64(x.itemsize)
    for entry in range(start, start + count):
        prefetch(address + np.uint64(columns[entry + _AHEAD]) * stride)
        total += kind(values[entry]) * kind(x[np.uint64(columns[entry])])
    return total


def matvec_sorted(
    row: Any,
    starts: Any,
    columns: Any,
    values: Any,
    x: Any,
    out: Any,
    prefetching: int,
    row_start: int,
    row_stop: int,
) -> None:
    """Write the rows of some groups of ``A @ x`` to `out`, x being in the order of the plan."""
    kind = out.dtype.type
    rows = np.uint64(len(out))
    for group in range(np.uint64(row_start), np.uint64(row_stop)):
        first = group * _GROUP
        s0 = np.uint64(starts[first])
        if rows - first < _GROUP:
            for last in range(first, rows):
                s1 = np.uint64(starts[last + _ONE])
                out[np.uint64(row[last])] = _rest(kind(0), columns, values, x, s0, s1 - s0, kind)
                s0 = s1
            break
        s1 = np.uint64(starts[first + _ONE])
        s2 = np.uint64(starts[first + _TWO])
        s3 = np.uint64(starts[first + _THREE])
        s4 = np.uint64(starts[first + _GROUP])
        # Rows come longest first.
        shortest = s4 - s3
        if prefetching != 0:
            t0, t1, t2, t3 = _sums_ahead(out, columns, values, x, _ZERO, s0, shortest)
        else:
            t0, t1, t2, t3 = _sums(out, columns, values, x, _ZERO, s0, shortest)
        place = s0 + shortest * _GROUP
        if place < s4:
            n0 = s1 - s0 - shortest
            t0 = _rest(t0, columns, values, x, place, n0, kind)
            place += n0
            n1 = s2 - s1 - shortest
            t1 = _rest(t1, columns, values, x, place, n1, kind)
            place += n1
            t2 = _rest(t2, columns, values, x, place, s3 - s2 - shortest, kind)
        out[np.uint64(row[first])] = t0
        out[np.uint64(row[first + _ONE])] = t1
        out[np.uint64(row[first + _TWO])] = t2
        out[np.uint64(row[first + _THREE])] = t3
