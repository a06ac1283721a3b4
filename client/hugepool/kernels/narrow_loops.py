"""The loops of the narrow product. Importing this module imports numba.

What the arrays hold is told by the module ``narrow``. For unsigned arithmetic see the
loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from hugepool.kernels.csr import BAD_COLUMN, BAD_INDPTR, CHANGED, DONE
from hugepool.kernels.lanes import interleaved_sums

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_GROUP = np.uint64(4)
_FARTHEST = np.uint64(65535)
_NO_COLUMN = np.uint64(0xFFFFFFFFFFFFFFFF)


_sums = interleaved_sums(4, 0)


def widest_group(
    indptr: Any, indices: Any, columns: int, row_start: int, row_stop: int
) -> tuple[Any, Any, Any]:
    """Find the largest distance between two columns of one group of 4 rows.

    Returns (DONE, distance, 0), (BAD_INDPTR, row, value) or (BAD_COLUMN, entry, value).
    """
    rows = np.uint64(len(indptr)) - _ONE
    nnz = np.uint64(len(indices))
    limit = np.uint64(columns)
    widest = _ZERO
    for group in range(np.uint64(row_start), np.uint64(row_stop)):
        row = group * _GROUP
        start = np.uint64(indptr[row])
        if start > nnz:
            return BAD_INDPTR, np.int64(row), start
        stop = start
        for following in range(row + _ONE, min(row + _GROUP, rows) + _ONE):
            end = np.uint64(indptr[following])
            if end < stop or end > nnz:
                return BAD_INDPTR, np.int64(following), end
            stop = end
        least = _NO_COLUMN
        most = _ZERO
        for entry in range(start, stop):
            column = np.uint64(indices[entry])
            least = min(least, column)
            most = max(most, column)
        if stop > start:
            if most >= limit:
                for entry in range(start, stop):
                    column = np.uint64(indices[entry])
                    if column >= limit:
                        return BAD_COLUMN, np.int64(entry), column
            widest = max(widest, most - least)
    return DONE, np.int64(widest), _ZERO


def fill_groups(
    indptr: Any,
    indices: Any,
    data: Any,
    columns: int,
    starts: Any,
    base: Any,
    offset: Any,
    values: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write some groups into a plan.

    Returns (DONE, 0, 0), or (CHANGED, row, 0) where the matrix is not what was looked at.
    Whatever it holds, places and columns in the plan lie within bounds.
    """
    rows = np.uint64(len(indptr)) - _ONE
    limit = np.uint64(columns)
    nnz = np.uint64(len(offset))
    origin = np.uint64(indptr[_ZERO])
    begin = np.empty(5, np.uint64)
    for group in range(np.uint64(row_start), np.uint64(row_stop)):
        row = group * _GROUP
        count = min(_GROUP, rows - row)
        for j in range(count + _ONE):
            begin[j] = np.uint64(indptr[row + j])
            unfit = begin[j] < origin or begin[j] - origin > nnz
            if unfit or (j > _ZERO and begin[j] < begin[j - _ONE]):
                return CHANGED, np.int64(row + j), _ZERO
        least = _NO_COLUMN
        for entry in range(begin[_ZERO], begin[count]):
            least = min(least, np.uint64(indices[entry]))
        least = _ZERO if begin[count] == begin[_ZERO] else least
        shortest = begin[_ONE] - begin[_ZERO]
        for j in range(count):
            shortest = min(shortest, begin[j + _ONE] - begin[j])
        if count < _GROUP:
            shortest = _ZERO
        if least > np.uint64(0xFFFFFFFF):
            return CHANGED, np.int64(row), _ZERO
        base[group] = least
        place = begin[_ZERO] - origin
        for k in range(shortest):
            for j in range(count):
                entry = begin[j] + k
                column = np.uint64(indices[entry])
                if column >= limit or column - least > _FARTHEST:
                    return CHANGED, np.int64(row + j), _ZERO
                offset[place] = column - least
                values[place] = data[entry]
                place += _ONE
        for j in range(count):
            for entry in range(begin[j] + shortest, begin[j + _ONE]):
                column = np.uint64(indices[entry])
                if column >= limit or column - least > _FARTHEST:
                    return CHANGED, np.int64(row + j), _ZERO
                offset[place] = column - least
                values[place] = data[entry]
                place += _ONE
            starts[row + j + _ONE] = begin[j + _ONE] - origin
    return DONE, np.int64(0), _ZERO


@register_jitable
def _rest(
    total: Any, offset: Any, values: Any, x: Any, base: Any, start: Any, count: Any, kind: Any
) -> Any:
    """Go on with the sum of one row, whose entries lie side by side."""
    for entry in range(start, start + count):
        total += kind(values[entry]) * kind(x[base + np.uint64(offset[entry])])
    return total


def matvec_groups(
    starts: Any,
    base: Any,
    offset: Any,
    values: Any,
    x: Any,
    out: Any,
    row_start: int,
    row_stop: int,
) -> None:
    """Write the rows of some groups of ``A @ x`` to `out`."""
    kind = out.dtype.type
    rows = np.uint64(len(out))
    for group in range(np.uint64(row_start), np.uint64(row_stop)):
        row = group * _GROUP
        low = np.uint64(base[group])
        s0 = np.uint64(starts[row])
        if rows - row < _GROUP:
            for last in range(row, rows):
                s1 = np.uint64(starts[last + _ONE])
                out[last] = _rest(kind(0), offset, values, x, low, s0, s1 - s0, kind)
                s0 = s1
            break
        s1 = np.uint64(starts[row + _ONE])
        s2 = np.uint64(starts[row + _TWO])
        s3 = np.uint64(starts[row + _THREE])
        s4 = np.uint64(starts[row + _GROUP])
        n0 = s1 - s0
        n1 = s2 - s1
        n2 = s3 - s2
        n3 = s4 - s3
        shortest = min(min(n0, n1), min(n2, n3))
        t0, t1, t2, t3 = _sums(out, offset, values, x, low, s0, shortest)
        place = s0 + shortest * _GROUP
        if place < s4:
            n0 -= shortest
            t0 = _rest(t0, offset, values, x, low, place, n0, kind)
            place += n0
            n1 -= shortest
            t1 = _rest(t1, offset, values, x, low, place, n1, kind)
            place += n1
            n2 -= shortest
            t2 = _rest(t2, offset, values, x, low, place, n2, kind)
            place += n2
            t3 = _rest(t3, offset, values, x, low, place, n3 - shortest, kind)
        out[row] = t0
        out[row + _ONE] = t1
        out[row + _TWO] = t2
        out[row + _THREE] = t3
