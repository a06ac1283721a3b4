"""The loops of the mirrored product. Importing this module imports numba.

What the arrays hold is told by the module ``mirrored``. For unsigned arithmetic see the
loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.bfloat16 import bits_of, holds_value, put_value, value_at
from hugepool.kernels.csr import CHANGED, DONE
from hugepool.kernels.lanes import diagonal_sums
from hugepool.kernels.mirrored import UNEQUAL

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_EIGHT = np.uint64(8)

_AHEAD = 64
"""Rows. Far enough for memory; of 27 diagonals in float64 twice as far no longer fits the cache."""

_store_8 = diagonal_sums(8, _AHEAD)


def find_asymmetry(
    indptr: Any, indices: Any, data: Any, step: int, most: int, row_start: int, row_stop: int
) -> tuple[Any, Any, Any]:
    """Look in every `step`-th row for an entry that no entry mirrors with the same bits.

    Gives up after about `most` comparisons: rows may be long. Returns (DONE, 0, 0), or
    (UNEQUAL, row, column). What is out of bounds is passed over.
    """
    left = np.int64(most)
    rows = np.uint64(len(indptr)) - _ONE
    nnz = np.uint64(min(len(indices), len(data)))
    for row in range(np.uint64(row_start), np.uint64(row_stop), np.uint64(step)):
        # A range from beyond the end, such as from -1 unsigned, would not be empty.
        start = min(np.uint64(indptr[row]), nnz)
        for entry in range(start, min(np.uint64(indptr[row + _ONE]), nnz)):
            column = np.uint64(indices[entry])
            if column >= rows:
                continue
            found = False
            begin = min(np.uint64(indptr[column]), nnz)
            stop = min(np.uint64(indptr[column + _ONE]), nnz)
            if left <= 0:
                return DONE, np.int64(0), _ZERO
            left -= np.int64(stop) - np.int64(begin)
            for other in range(begin, stop):
                same = bits_of(data[other]) == bits_of(data[entry])
                found |= np.uint64(indices[other]) == row and same
            if not found:
                return UNEQUAL, np.int64(row), column
    return DONE, np.int64(0), _ZERO


def fill_diagonals(
    indptr: Any,
    indices: Any,
    data: Any,
    first: Any,
    pattern: Any,
    starts: Any,
    shift: Any,
    place: Any,
    values: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write the diagonal and what is above it of some runs; compare all columns with the patterns.

    Returns (DONE, 0, 0), or (CHANGED, row, 0) where the matrix is not what was looked at.
    """
    nnz = np.uint64(min(len(indices), len(data)))
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        at = np.uint64(starts[np.uint64(pattern[run])])
        width = np.uint64(starts[np.uint64(pattern[run]) + _ONE]) - at
        for row in range(np.uint64(first[run]), np.uint64(first[run + _ONE])):
            begin = np.uint64(indptr[row])
            end = np.uint64(indptr[row + _ONE])
            if begin > nnz or end > nnz or end - begin != width:
                return CHANGED, np.int64(row), _ZERO
            other = _ZERO
            for k in range(width):
                distance = np.uint64(shift[at + k])
                other |= (np.uint64(indices[begin + k]) - row) ^ distance
                if shift[at + k] >= 0:
                    put_value(values, row + np.uint64(place[at + k]), data[begin + k])
            if other != _ZERO:
                return CHANGED, np.int64(row), _ZERO
    return DONE, np.int64(0), _ZERO


def compare_diagonals(
    indptr: Any,
    indices: Any,
    data: Any,
    first: Any,
    pattern: Any,
    starts: Any,
    shift: Any,
    place: Any,
    values: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Compare what is below the diagonal in some runs with what all runs wrote from above it.

    Returns (DONE, 0, 0); (UNEQUAL, row, column) for the first entry that is not its
    mirror image; or (CHANGED, row, 0) where the matrix is not what was looked at.
    """
    nnz = np.uint64(min(len(indices), len(data)))
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        at = np.uint64(starts[np.uint64(pattern[run])])
        width = np.uint64(starts[np.uint64(pattern[run]) + _ONE]) - at
        for row in range(np.uint64(first[run]), np.uint64(first[run + _ONE])):
            begin = np.uint64(indptr[row])
            if begin > nnz or width > nnz - begin:
                return CHANGED, np.int64(row), _ZERO
            for k in range(width):
                if shift[at + k] < 0:
                    kept = row + np.uint64(place[at + k])
                    if not holds_value(values, kept, data[begin + k]):
                        return UNEQUAL, np.int64(row), row + np.uint64(shift[at + k])
    return DONE, np.int64(0), _ZERO


def matvec_mirrored(
    first: Any,
    pattern: Any,
    starts: Any,
    shift: Any,
    place: Any,
    values: Any,
    x: Any,
    out: Any,
    row_start: int,
    row_stop: int,
) -> None:
    """Write the rows of some runs of ``A @ x`` to `out`."""
    kind = out.dtype.type
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(first[run])
        stop = np.uint64(first[run + _ONE])
        at = np.uint64(starts[np.uint64(pattern[run])])
        width = np.uint64(starts[np.uint64(pattern[run]) + _ONE]) - at
        if stop - row >= _EIGHT:
            while stop - row >= _EIGHT:
                _store_8(out, row, shift, place, at, width, values, x)
                row += _EIGHT
            if row < stop:
                # Some rows once more, with the same result: faster than one at a time.
                _store_8(out, stop - _EIGHT, shift, place, at, width, values, x)
            continue
        while row < stop:
            total = kind(0)
            for k in range(width):
                value = kind(value_at(values, row + np.uint64(place[at + k])))
                total += value * kind(x[row + np.uint64(shift[at + k])])
            out[row] = total
            row += _ONE
