"""The structure of a CSR matrix, checked on behalf of the kernels that read one.

A kernel may be given a matrix that somebody writes to meanwhile. So what is
checked here is a private copy, or is checked again where it is used.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    CsrArrays,
    last_level_cache_bytes,
)
from hugepool_common.errors import IndexOutOfRangeError, InvalidMatrixError

DONE, BAD_INDPTR, BAD_COLUMN, BAD_BOUNDS, CHANGED = range(5)
"""How a loop over a matrix ended; the first item of what it returns."""

_SAMPLES = 16
_SAMPLE_ENTRIES = 256
_FEWEST_ENTRIES = 1 << 16


def refuse_indptr(position: int, value: int, nnz: int) -> NoReturn:
    """Raise for an element of indptr.

    Raises
    ------
    InvalidMatrixError
        Always.
    """
    raise InvalidMatrixError(
        f"indptr[{position}] is {value}",
        needed=f"0 <= indptr[i] <= indptr[i+1] <= {nnz}",
        had=str(value),
        where="indptr",
    )


def refuse_column(position: int, value: int, columns: int) -> NoReturn:
    """Raise for the column of an entry.

    Raises
    ------
    IndexOutOfRangeError
        Always.
    """
    raise IndexOutOfRangeError(
        f"column {value} of entry {position} is out of range",
        needed=f"0 <= column < {columns}",
        had=str(value),
        where="indices",
        position=position,
    )


def refuse_failure(outcome: tuple[int, int, int], a: CsrArrays) -> None:
    """Raise what a loop found wrong with a matrix, if anything.

    Parameters
    ----------
    outcome
        ``(DONE, 0, 0)``, or what was wrong, where, and the value there as uint64.
    a
        The matrix.

    Raises
    ------
    InvalidMatrixError, IndexOutOfRangeError
        The loop did not end well.
    """
    failure, position, value = (int(number) for number in outcome)
    if failure == DONE:
        return
    signed = value - (1 << 64) if value >= 1 << 63 else value
    if failure == BAD_INDPTR:
        refuse_indptr(position, signed, a.nnz)
    if failure == BAD_COLUMN:
        refuse_column(position, signed, a.shape[1])
    raise InvalidMatrixError(
        f"the bounds of part {position} do not fit the matrix",
        needed="those of a partition of it",
        had=str(signed),
        where="bounds",
    )


def checked_indptr(a: CsrArrays, row_start: int, row_stop: int) -> Array:
    """A private copy of the range's indptr as int64; what is checked is what is used.

    Raises
    ------
    InvalidMatrixError
        It falls, or leaves ``[0, nnz]``.
    """
    indptr = a.indptr[row_start : row_stop + 1].astype(np.int64)
    bad = (indptr < 0) | (indptr > a.nnz)
    bad[1:] |= indptr[1:] < indptr[:-1]
    if bad.any():
        first = int(bad.argmax())
        refuse_indptr(row_start + first, int(indptr[first]), a.nnz)
    return indptr


def check_columns(columns: Array, start: int, limit: int) -> None:
    """Refuse columns, those of the entries from `start` on, that are not in ``[0, limit)``.

    Raises
    ------
    IndexOutOfRangeError
        Names the first.
    """
    # One pass: as unsigned numbers, negative ones lie above every valid one.
    unsigned = columns.view(f"u{columns.itemsize}")
    positive = np.iinfo(columns.dtype).max
    if len(columns) == 0 or unsigned.max() <= min(limit - 1, positive):
        return
    bad = (columns < 0) | (columns >= limit)
    first = int(bad.argmax())
    refuse_column(start + first, int(columns[first]), limit)


def block(sparse: Any, a: CsrArrays, indptr: Array) -> Any:
    """Rows of a matrix as ``scipy.sparse.csr_array``, their entries not copied.

    Parameters
    ----------
    sparse
        ``scipy.sparse``.
    a
        The matrix.
    indptr
        Starts of the rows, and the end of the last, in the entries of `a`; checked.
    """
    start, stop = int(indptr[0]), int(indptr[-1])
    indices = a.indices[start:stop]
    # Filled in by hand: the constructor would copy 64-bit indices to 32 bits.
    rows = sparse.csr_array((len(indptr) - 1, a.shape[1]), dtype=a.data.dtype)
    rows.indptr = (indptr - start).astype(indices.dtype, copy=False)
    rows.indices = indices
    rows.data = a.data[start:stop]
    return rows


def pays_to_prefetch(a: CsrArrays, row_bytes: int) -> bool:
    """Whether what the columns lead to misses the cache and is reached in no order.

    On banded matrices and stencils, which stream, a prefetch per entry only costs.
    Several short runs of entries are looked at: where they touch more cache lines
    than half their number of entries, the columns are called scattered.

    Parameters
    ----------
    a
        The matrix.
    row_bytes
        What belongs to one column: an element of a vector, a row of several.

    Notes
    -----
    Cached means here: an eighth of the last-level cache, which is not x's alone. With one of
    32 MiB, a product without prefetching took this many times as long as with, columns being
    random or of a Kronecker graph: 1.0 (0.96 to 1.06) for x from 0.5 to 4 MiB, 1.03 and 1.12
    for 8 MiB, 1.38 and 1.34 for 16, 1.48 and 1.64 for 32, 1.26 and 2.8 for 64. On a stencil of
    27 points, which is not scattered, it would have taken 0.58 to 0.80 times as long.
    """
    large = a.shape[1] * row_bytes > last_level_cache_bytes() // 8
    return large and is_scattered(a, row_bytes)


def is_scattered(a: CsrArrays, row_bytes: int) -> bool:
    """Whether columns are used in no order, by the sample of :func:`pays_to_prefetch`."""
    if a.nnz < _FEWEST_ENTRIES:
        return False
    begins = np.linspace(0, a.nnz - _SAMPLE_ENTRIES, _SAMPLES).astype(np.int64)
    columns = a.indices[begins[:, np.newaxis] + np.arange(_SAMPLE_ENTRIES)]
    lines = np.sort(columns.astype(np.int64) * row_bytes // CACHE_LINE_BYTES, axis=1)
    distinct = _SAMPLES + int(np.count_nonzero(np.diff(lines, axis=1)))
    return distinct > _SAMPLES * _SAMPLE_ENTRIES // 2
