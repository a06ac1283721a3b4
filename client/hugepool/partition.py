"""Cut rows into contiguous parts, one a worker.

Bounds are a tuple of ``parts + 1`` ints that begins with 0, ends with the number
of rows and never falls: part k is ``[bounds[k], bounds[k+1])`` and may be empty.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from hugepool_common.errors import InvalidMatrixError, InvalidSpecError

ROW_COST = 2
"""What a row costs besides its entries, in entries.

By bytes: an entry is 12 (a float64 and an int32), a row about 20 (its indptr, its
result written and, before that, read into the cache).
"""


def by_rows(rows: int, parts: int) -> tuple[int, ...]:
    """Bounds of `parts` parts whose numbers of rows differ by at most one.

    Raises
    ------
    InvalidSpecError
        `rows` is negative or `parts` is less than 1.
    """
    _check(rows, parts)
    return tuple(rows * part // parts for part in range(parts + 1))


def by_nnz(indptr: npt.NDArray[Any], parts: int) -> tuple[int, ...]:
    """Bounds of `parts` parts of equal work: entries, and :data:`ROW_COST` for each row.

    A row is never cut, so one giant row makes one part that is larger than the rest.
    An `indptr` that falls gives valid bounds of no particular balance.

    Parameters
    ----------
    indptr
        Of a CSR matrix; integers, shape (rows + 1,).
    parts
        How many.

    Raises
    ------
    InvalidSpecError
        `parts` is less than 1.
    InvalidMatrixError
        `indptr` is no 1-D array of integers with at least one element.
    """
    work_before = _work(indptr, parts)
    rows = len(indptr) - 1
    total = work_before(rows)
    bounds = [0]
    for part in range(1, parts):
        target = total * part // parts
        # Reads a handful of row starts a bound, where searchsorted over the work of
        # all rows would first have to make that array.
        row = min(bisect.bisect_left(range(rows + 1), target, key=work_before), rows)
        if row > 0 and target - work_before(row - 1) < work_before(row) - target:
            row -= 1
        bounds.append(max(row, bounds[-1]))
    return (*bounds, rows)


def excess(indptr: npt.NDArray[Any], bounds: Sequence[int]) -> tuple[float, int]:
    """How much more work the largest part has than a fair share: the ratio, and in entries.

    Parameters
    ----------
    indptr
        As :func:`by_nnz` takes it.
    bounds
        As it gives them.

    Returns
    -------
    tuple of float and int
        1.0 and 0 for parts of equal work, and where there is none.
    """
    before = [int(indptr[row]) + ROW_COST * row for row in bounds]
    largest = max((stop - start for start, stop in itertools.pairwise(before)), default=0)
    fair = (before[-1] - before[0]) / max(len(before) - 1, 1)
    return (largest / fair, int(largest - fair)) if fair > 0 else (1.0, 0)


def merge_path(indptr: npt.NDArray[Any], parts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bounds of `parts` parts of equal work which may cut a row in two or more.

    The parts are equal pieces of the path that merges the ends of the rows with the
    entries (Merrill and Garland, "Merge-based parallel sparse matrix-vector
    multiplication", SC 2016), on which a row's end counts :data:`ROW_COST`.

    Returns
    -------
    tuple of two tuples of int
        The bounds of the rows that begin in each part, and of the entries that it has.
        ``entries[k] <= indptr[rows[k]]``: where it is less, the entries between belong to
        row ``rows[k] - 1``, which an earlier part began.

    Raises
    ------
    InvalidSpecError, InvalidMatrixError
        As :func:`by_nnz`.
    """
    work_before = _work(indptr, parts)
    rows = len(indptr) - 1
    row_bounds, entry_bounds = [0], [int(indptr[0])]
    for part in range(1, parts):
        target = work_before(rows) * part // parts
        row = max(bisect.bisect_right(range(rows + 1), target, key=work_before) - 1, 0)
        begun = row
        entry = int(indptr[row])
        if row < rows and target > work_before(row):
            entry = min(entry + target - work_before(row), int(indptr[row + 1]))
            begun = row + 1
        row_bounds.append(max(begun, row_bounds[-1]))
        entry_bounds.append(max(entry, entry_bounds[-1]))
    return (*row_bounds, rows), (*entry_bounds, int(indptr[-1]))


def _work(indptr: npt.NDArray[Any], parts: int) -> Callable[[int], int]:
    """Work of the rows before a row, for the parts of an indptr that can be one."""
    if indptr.ndim != 1 or len(indptr) == 0 or indptr.dtype.kind not in "iu":
        raise InvalidMatrixError(
            "indptr is no array of row starts",
            needed="integers of shape (rows + 1,)",
            had=f"{indptr.dtype} of shape {indptr.shape}",
        )
    _check(len(indptr) - 1, parts)
    first = int(indptr[0])
    return lambda row: int(indptr[row]) - first + ROW_COST * row


def _check(rows: int, parts: int) -> None:
    if rows < 0 or parts < 1:
        raise InvalidSpecError(
            "no such partition",
            needed="0 rows or more, 1 part or more",
            had=f"{rows} rows, {parts} parts",
        )
