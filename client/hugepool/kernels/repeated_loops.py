"""The loops of the product with repeated rows. Importing this module imports numba.

What the arrays hold is told by the module ``repeated``. For unsigned arithmetic see the
loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.bfloat16 import put_value, value_at
from hugepool.kernels.csr import BAD_COLUMN, BAD_INDPTR, CHANGED, DONE
from hugepool.kernels.lanes import shifted_sums

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_FOUR = np.uint64(4)
_EIGHT = np.uint64(8)
_SIXTEEN = np.uint64(16)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


_store_8 = shifted_sums(8, shared=False)
_store_4 = shifted_sums(4, shared=False)
_store_shared_16 = shifted_sums(16, shared=True)


def find_runs(
    indptr: Any,
    indices: Any,
    data: Any,
    columns: int,
    longest: int,
    first: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write to `first` where runs of rows begin that have the same columns, shifted by one.

    `data` holds the bits of the values, which must then agree, too; or nothing. A run has
    at most `longest` rows.

    Returns (DONE, runs, 0); or (DONE, -1, row) where `first` is full; or (BAD_INDPTR, row,
    value) or (BAD_COLUMN, entry, value).
    """
    nnz = np.uint64(len(indices))
    limit = np.uint64(columns)
    room = np.uint64(len(first))
    by_value = len(data) > 0
    runs = _ZERO
    begin = np.uint64(row_start)
    start = np.uint64(indptr[begin])
    if start > nnz:
        return BAD_INDPTR, np.int64(begin), start
    before = start
    width = _ZERO
    for row in range(np.uint64(row_start), np.uint64(row_stop)):
        stop = np.uint64(indptr[row + _ONE])
        if stop < start or stop > nnz:
            return BAD_INDPTR, np.int64(row + _ONE), stop
        most = _ZERO
        for entry in range(start, stop):
            most = max(most, np.uint64(indices[entry]))
        if most >= limit and stop > start:
            for entry in range(start, stop):
                column = np.uint64(indices[entry])
                if column >= limit:
                    return BAD_COLUMN, np.int64(entry), column
        repeats = runs > _ZERO and stop - start == width and row - begin < np.uint64(longest)
        if repeats:
            other = _ZERO
            for k in range(width):
                here = np.uint64(indices[start + k])
                other |= here - np.uint64(indices[before + k]) - _ONE
            if by_value:
                for k in range(width):
                    other |= np.uint64(data[start + k]) ^ np.uint64(data[before + k])
            repeats = other == _ZERO
        if not repeats:
            if runs == room:
                return DONE, np.int64(-1), row
            first[runs] = row
            runs += _ONE
            begin = np.uint64(row)
            width = stop - start
        before = start
        start = stop
    return DONE, np.int64(runs), _ZERO


def digest_runs(
    indptr: Any,
    indices: Any,
    data: Any,
    first: Any,
    digests: Any,
    row_start: int,
    row_stop: int,
) -> None:
    """Write a digest of the columns, less the row, of the first row of each run.

    `data` as in :func:`find_runs`.
    """
    nnz = np.uint64(len(indices))
    by_value = len(data) > 0
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(first[run])
        start = np.uint64(indptr[row])
        stop = min(np.uint64(indptr[row + _ONE]), nnz)
        # A large seed: from a small one, a first small number could lead to that of an empty row.
        digest = (stop - start + _ONE) * _MIX
        for entry in range(start, stop):
            digest = (digest ^ (np.uint64(indices[entry]) - row)) * _MIX
            digest ^= digest >> _SHIFT
            if by_value:
                digest = (digest ^ np.uint64(data[entry])) * _MIX
                digest ^= digest >> _SHIFT
        digests[run] = digest


def fill_patterns(
    indptr: Any,
    indices: Any,
    data: Any,
    columns: int,
    source: Any,
    starts: Any,
    shift: Any,
    values: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write the patterns, each from the row `source`; values too, if there is room for any.

    Returns (DONE, 0, 0), or (CHANGED, row, 0) where the matrix is not what was looked at.
    """
    nnz = np.uint64(min(len(indices), len(data)))
    limit = np.uint64(columns)
    for pattern in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(source[pattern])
        start = np.uint64(indptr[row])
        stop = np.uint64(indptr[row + _ONE])
        place = np.uint64(starts[pattern])
        width = np.uint64(starts[pattern + _ONE]) - place
        if start > nnz or stop > nnz or stop - start != width:
            return CHANGED, np.int64(row), _ZERO
        for k in range(width):
            column = np.uint64(indices[start + k])
            if column >= limit:
                return CHANGED, np.int64(row), _ZERO
            shift[place + k] = np.int64(column - row)
            if len(values) > 0:
                put_value(values, place + k, data[start + k])
    return DONE, np.int64(0), _ZERO


def compare_runs(
    indptr: Any,
    indices: Any,
    data: Any,
    first: Any,
    pattern: Any,
    source: Any,
    row_start: int,
    row_stop: int,
) -> Any:
    """Find the first run whose first row differs from the row `source` of its pattern.

    `data` as in :func:`find_runs`. Returns -1 if there is none.
    """
    nnz = np.uint64(min(len(indices), len(data))) if len(data) > 0 else np.uint64(len(indices))
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(first[run])
        other = np.uint64(source[np.uint64(pattern[run])])
        start = np.uint64(indptr[row])
        model = np.uint64(indptr[other])
        width = np.uint64(indptr[row + _ONE]) - start
        same = width == np.uint64(indptr[other + _ONE]) - model
        if not same or start > nnz or model > nnz or width > nnz - max(start, model):
            return np.int64(run)
        for k in range(width):
            here = np.uint64(indices[start + k]) - row
            same &= here == np.uint64(indices[model + k]) - other
            if len(data) > 0:
                same &= data[start + k] == data[model + k]
        if not same:
            return np.int64(run)
    return np.int64(-1)


def fill_runs(
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
    """Write the values of some runs, and compare the columns of their rows with the patterns.

    Returns (DONE, 0, 0), or (CHANGED, row, 0) where the matrix is not what was looked at.
    """
    nnz = np.uint64(min(len(indices), len(data)))
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(first[run])
        stop = np.uint64(first[run + _ONE])
        at = np.uint64(starts[np.uint64(pattern[run])])
        width = np.uint64(starts[np.uint64(pattern[run]) + _ONE]) - at
        target = np.uint64(place[run])
        while row < stop:
            lanes = _ONE
            if stop - row >= _EIGHT:
                lanes = _EIGHT
            elif stop - row >= _FOUR:
                lanes = _FOUR
            for j in range(lanes):
                begin = np.uint64(indptr[row + j])
                end = np.uint64(indptr[row + j + _ONE])
                if begin > nnz or end > nnz or end - begin != width:
                    return CHANGED, np.int64(row + j), _ZERO
                other = _ZERO
                for k in range(width):
                    distance = np.uint64(indices[begin + k]) - (row + j)
                    other |= distance - np.uint64(shift[at + k])
                    put_value(values, target + k * lanes + j, data[begin + k])
                if other != _ZERO:
                    return CHANGED, np.int64(row + j), _ZERO
            row += lanes
            target += lanes * width
    return DONE, np.int64(0), _ZERO


def matvec_own(
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
    """Write the rows of some runs of ``A @ x`` to `out`; every row has values of its own."""
    kind = out.dtype.type
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(first[run])
        stop = np.uint64(first[run + _ONE])
        at = np.uint64(starts[np.uint64(pattern[run])])
        width = np.uint64(starts[np.uint64(pattern[run]) + _ONE]) - at
        source = np.uint64(place[run])
        while stop - row >= _EIGHT:
            _store_8(out, row, shift, at, width, values, source, x)
            row += _EIGHT
            source += width * _EIGHT
        if stop - row >= _FOUR:
            _store_4(out, row, shift, at, width, values, source, x)
            row += _FOUR
            source += width * _FOUR
        while row < stop:
            total = kind(0)
            for k in range(width):
                total += kind(value_at(values, source + k)) * kind(
                    x[row + np.uint64(shift[at + k])]
                )
            out[row] = total
            row += _ONE
            source += width


def matvec_shared(
    first: Any,
    pattern: Any,
    starts: Any,
    shift: Any,
    values: Any,
    x: Any,
    out: Any,
    row_start: int,
    row_stop: int,
) -> None:
    """Write the rows of some runs of ``A @ x`` to `out`; the rows of a pattern share its values."""
    kind = out.dtype.type
    for run in range(np.uint64(row_start), np.uint64(row_stop)):
        row = np.uint64(first[run])
        stop = np.uint64(first[run + _ONE])
        at = np.uint64(starts[np.uint64(pattern[run])])
        width = np.uint64(starts[np.uint64(pattern[run]) + _ONE]) - at
        if stop - row >= _SIXTEEN:
            while stop - row >= _SIXTEEN:
                _store_shared_16(out, row, shift, at, width, values, at, x)
                row += _SIXTEEN
            if row < stop:
                # Some rows once more, with the same result: faster than one at a time.
                _store_shared_16(out, stop - _SIXTEEN, shift, at, width, values, at, x)
            continue
        while row < stop:
            total = kind(0)
            for k in range(width):
                total += kind(value_at(values, at + k)) * kind(x[row + np.uint64(shift[at + k])])
            out[row] = total
            row += _ONE
