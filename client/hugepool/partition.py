"""Cut rows into contiguous parts, one a worker.

Bounds are a tuple of ``parts + 1`` ints that begins with 0, ends with the number
of rows and never falls: part k is ``[bounds[k], bounds[k+1])`` and may be empty.
"""

from __future__ import annotations

import bisect
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
    if indptr.ndim != 1 or len(indptr) == 0 or indptr.dtype.kind not in "iu":
        raise InvalidMatrixError(
            "indptr is no array of row starts",
            needed="integers of shape (rows + 1,)",
            had=f"{indptr.dtype} of shape {indptr.shape}",
        )
    rows = len(indptr) - 1
    _check(rows, parts)

    def work_before(row: int) -> int:
        return int(indptr[row]) - int(indptr[0]) + ROW_COST * row

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


def _check(rows: int, parts: int) -> None:
    if rows < 0 or parts < 1:
        raise InvalidSpecError(
            "no such partition",
            needed="0 rows or more, 1 part or more",
            had=f"{rows} rows, {parts} parts",
        )
