"""The loops of the compiled scatter-add. Importing them imports numba.

For unsigned arithmetic see the loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from hugepool.kernels.intrinsics import prefetch

AHEAD = np.uint64(32)
BLOCK = 1024
_ZERO = np.uint64(0)
_ONE = np.uint64(1)


@register_jitable
def first_outside(idx: Any, limit: int, row_start: int, row_stop: int) -> tuple[Any, Any]:
    """Return the first position of a range of `idx` that is not in ``[0, limit)``, and its value.

    (-1, 0) if there is none; the value is uint64.
    """
    bound = np.uint64(limit)
    start = np.uint64(row_start)
    stop = np.uint64(row_stop)
    while start < stop:
        last = min(start + np.uint64(BLOCK), stop)
        # No way out of the inner loop, so that it becomes vector instructions.
        bad = _ZERO
        for i in range(start, last):
            bad |= np.uint64(np.uint64(idx[i]) >= bound)
        if bad != _ZERO:
            for i in range(start, last):
                row = np.uint64(idx[i])
                if row >= bound:
                    return np.int64(i), row
        start = last
    return np.int64(-1), _ZERO


def scatter_add(idx: Any, values: Any, out: Any, row_start: int, row_stop: int) -> tuple[Any, Any]:
    """Add `values` to those elements ``[row_start, row_stop)`` of `out` that `idx` leads to.

    Returns as :func:`first_outside` for the whole of `idx` and ``[0, len(out))``; if an
    index is bad nothing is written.
    """
    position, value = first_outside(idx, len(out), 0, len(idx))
    if position < 0 and row_stop - row_start == len(out):
        _add_all(idx, values, out)
    elif position < 0:
        _add_own(idx, values, out, row_start, row_stop)
    return position, value


def scatter_to(
    idx: Any, values: Any, base: Any, out: Any, row_start: int, row_stop: int
) -> tuple[Any, Any]:
    """Write the elements of `base`, and what :func:`scatter_add` adds to them, to `out`."""
    position, value = first_outside(idx, len(out), 0, len(idx))
    if position < 0:
        for i in range(np.uint64(row_start), np.uint64(row_stop)):
            out[i] = base[i]
        if row_stop - row_start == len(out):
            _add_all(idx, values, out)
        else:
            _add_own(idx, values, out, row_start, row_stop)
    return position, value


@register_jitable
def _add_all(idx: Any, values: Any, out: Any) -> None:
    count = np.uint64(len(idx))
    limit = np.uint64(len(out))
    base = np.uint64(out.ctypes.data)
    stride = np.uint64(out.itemsize)
    tail = count - min(AHEAD, count)
    for i in range(_ZERO, tail):
        prefetch(base + np.uint64(idx[i + AHEAD]) * stride)
        row = np.uint64(idx[i])
        # Checked again: somebody may have written to idx since.
        if row < limit:
            out[row] += values[i]
    for i in range(tail, count):
        row = np.uint64(idx[i])
        if row < limit:
            out[row] += values[i]


@register_jitable
def _add_own(idx: Any, values: Any, out: Any, row_start: int, row_stop: int) -> None:
    count = np.uint64(len(idx))
    first = np.uint64(row_start)
    width = np.uint64(row_stop) - first
    base = np.uint64(out.ctypes.data)
    stride = np.uint64(out.itemsize)
    rows = np.empty(BLOCK + 1, np.uint64)
    places = np.empty(BLOCK + 1, np.uint64)
    start = _ZERO
    while start < count:
        last = min(start + np.uint64(BLOCK), count)
        found = _ZERO
        for i in range(start, last):
            row = np.uint64(idx[i])
            rows[found] = row
            places[found] = i
            # Counted, not branched on: whose an index is nobody could foretell.
            found += np.uint64(row - first < width)
        for k in range(found):
            prefetch(base + rows[min(k + AHEAD, found - _ONE)] * stride)
            out[rows[k]] += values[places[k]]
        start = last
