"""The loops that measure what a machine's memory can give. Importing this module imports numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.intrinsics import LINE_ELEMENTS, copy_line, prefetch, store_fence

_ONE = np.uint64(1)
_HALF_WORD = np.uint64(32)
_LINE = np.uint64(LINE_ELEMENTS)
_LINE_BYTES = np.uint64(64)
_ITEM_BYTES = np.uint64(8)

# The multiplier and increment of Knuth's MMIX generator (TAOCP volume 2, 3.3.4).
_MULTIPLIER = np.uint64(6364136223846793005)
_INCREMENT = np.uint64(1442695040888963407)


def copy(a: Any, out: Any, row_start: int, row_stop: int) -> None:
    """Copy float64 elements with stores that bypass the caches."""
    i = np.uint64(row_start)
    stop = np.uint64(row_stop)
    target = np.uint64(out.ctypes.data)
    source = np.uint64(a.ctypes.data)
    # A streaming store must be aligned to its line: plain ones lead up to the first.
    while i < stop and (target + i * _ITEM_BYTES) % _LINE_BYTES != 0:
        out[i] = a[i]
        i += _ONE
    while stop - i >= _LINE:
        copy_line(target + i * _ITEM_BYTES, source + i * _ITEM_BYTES)
        i += _LINE
    while i < stop:
        out[i] = a[i]
        i += _ONE
    store_fence()


def triad(a: Any, b: Any, out: Any, row_start: int, row_stop: int) -> None:
    """``out = a + 3 * b`` on float64 elements."""
    for i in range(np.uint64(row_start), np.uint64(row_stop)):
        out[i] = a[i] + 3.0 * b[i]


def total(a: Any, row_start: int, row_stop: int) -> float:
    """Sum float64 elements, with enough accumulators that only memory limits it."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    i = np.uint64(row_start)
    stop = np.uint64(row_stop)
    while stop - i >= _LINE:
        s0 += a[i]
        s1 += a[i + np.uint64(1)]
        s2 += a[i + np.uint64(2)]
        s3 += a[i + np.uint64(3)]
        s4 += a[i + np.uint64(4)]
        s5 += a[i + np.uint64(5)]
        s6 += a[i + np.uint64(6)]
        s7 += a[i + np.uint64(7)]
        i += _LINE
    while i < stop:
        s0 += a[i]
        i += _ONE
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


def random_lines(x: Any, reach: int, ahead: int, row_start: int, row_stop: int) -> float:
    """Sum ``row_stop - row_start`` elements at pseudo-random places below `reach` < 2**32.

    The places depend on no value that is read, and `ahead` (a power of two) of them
    are under way at any time.
    """
    pending = np.empty(ahead, np.uint64)
    base = np.uint64(x.ctypes.data)
    span = np.uint64(reach)
    mask = np.uint64(ahead - 1)
    count = np.uint64(row_stop - row_start)
    # Parts of one job begin at different rows, and so walk different places.
    state = (np.uint64(row_start) + _ONE) * _MULTIPLIER + _INCREMENT
    for j in range(mask + _ONE):
        state = state * _MULTIPLIER + _INCREMENT
        place = ((state >> _HALF_WORD) * span) >> _HALF_WORD
        pending[j] = place
        prefetch(base + place * _ITEM_BYTES)
    result = 0.0
    for j in range(count):
        slot = j & mask
        result += x[pending[slot]]
        state = state * _MULTIPLIER + _INCREMENT
        place = ((state >> _HALF_WORD) * span) >> _HALF_WORD
        pending[slot] = place
        prefetch(base + place * _ITEM_BYTES)
    return result
