"""The loops of norms and quotients by them. Importing this module imports numba.

Sums are kept in eight accumulators that are added at the end, always in the same order.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

BLOCK = np.uint64(4096)
_L2 = 0
_L1 = 1
_MAX = 2
_EIGHT = np.uint64(8)
_ONE = np.uint64(1)


@numba.njit
def _share(value: Any, kind: Any) -> Any:
    wide = np.float64(value)
    if kind == _L2:
        return wide * wide
    return abs(wide)


@numba.njit
def _joined(total: Any, share: Any, kind: Any) -> Any:
    if kind == _MAX:
        # Not max(): what is no number must stay one.
        return share if share > total or share != share else total
    return total + share


def block_norms(out: Any, partials: Any, kind: int, row_start: int, row_stop: int) -> None:
    """Write the shares of the blocks ``[row_start, row_stop)`` of `out` to `partials`."""
    lanes = np.zeros(8, np.float64)
    length = np.uint64(len(out))
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        lanes[:] = 0.0
        start = block * BLOCK
        stop = min(start + BLOCK, length)
        for i in range(start, stop):
            lane = i % _EIGHT
            lanes[lane] = _joined(lanes[lane], _share(out[i], kind), kind)
        total = lanes[0]
        for other in range(_ONE, _EIGHT):
            total = _joined(total, lanes[other], kind)
        partials[block] = total


@numba.njit
def _norm(partials: Any, kind: Any) -> Any:
    total = 0.0
    for block in range(np.uint64(len(partials))):
        total = _joined(total, partials[block], kind)
    return np.sqrt(total) if kind == _L2 else total


def total_norm(partials: Any, kind: int, row_start: int, row_stop: int) -> Any:
    """The norm that all shares together give."""
    return _norm(partials, kind)


def scale_blocks(out: Any, partials: Any, x: Any, kind: int, row_start: int, row_stop: int) -> Any:
    """Write ``out / norm`` to the blocks ``[row_start, row_stop)`` of `x`.

    Returns 1, and writes nothing, if the norm is 0 or not finite; else 0.
    """
    start = np.uint64(row_start) * BLOCK
    stop = min(np.uint64(row_stop) * BLOCK, np.uint64(len(out)))
    if kind > _MAX:
        for i in range(start, stop):
            x[i] = out[i]
        return np.int64(0)
    norm = _norm(partials, kind)
    if norm == 0.0 or not np.isfinite(norm):
        return np.int64(1)
    for i in range(start, stop):
        x[i] = out[i] / norm
    return np.int64(0)
