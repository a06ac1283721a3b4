"""``matmat``: ``out = A @ X`` for a range of rows of a CSR matrix and several vectors at once.

Operands: ``A`` (:class:`CsrArrays`), ``X`` of shape (columns, k), ``out`` of shape
(rows, k) with the dtype that NumPy gives the product; both C-contiguous, so that
the k elements which belong to one column of A are neighbours. The structure is
checked on every call, by the rows that are asked for; after an error ``out`` may
hold some of these rows. Columns of a row may come in any order and repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    CsrArrays,
    Operands,
    Work,
    check_rows,
    dense,
    matrix,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.csr import (
    DONE,
    block,
    check_columns,
    checked_indptr,
    pays_to_prefetch,
    refuse_failure,
)
from hugepool.kernels.spmv import VALUE_CODES, import_scipy_sparse
from hugepool_common.errors import InvalidSpecError

_LANE_CODES = ("<f4", "<f8", "<i4", "<i8")
_LOOPS = "hugepool.kernels.matmat_loops"
_lanes = CompiledLoop(_LOOPS, "matmat_lanes", outputs=("out",))
_any = CompiledLoop(_LOOPS, "matmat", outputs=("out",))

_BLOCK_PRODUCTS = 1 << 18


@dataclass(frozen=True, slots=True)
class _ProductOperands:
    a: CsrArrays
    x: Array
    out: Array

    @property
    def width(self) -> int:
        """Vectors."""
        return self.x.shape[1]

    def work(self, row_start: int, row_stop: int) -> Work:
        """What the product of the rows reads and writes, counting X once an entry at most."""
        rows = row_stop - row_start
        start, stop = int(self.a.indptr[row_start]), int(self.a.indptr[row_stop])
        nnz = max(0, min(stop, self.a.nnz) - max(start, 0))
        entry_bytes = self.a.indices.itemsize + self.a.data.itemsize
        row_bytes = self.a.indptr.itemsize + self.out.itemsize * self.width
        x_bytes = min(nnz * self.x.itemsize * self.width, self.x.nbytes)
        return Work(rows, nnz, nnz * entry_bytes + rows * row_bytes + x_bytes)


def _checked(operands: Operands) -> _ProductOperands:
    a = matrix(operands, "A", VALUE_CODES)
    x = _table(operands, "X", VALUE_CODES, a.shape[1])
    result = np.result_type(a.data, x)
    out = _table(operands, "out", (result.str,), a.shape[0], writable=True)
    if out.shape[1] != x.shape[1]:
        raise InvalidSpecError(
            "out has another number of vectors than X",
            needed=str(x.shape[1]),
            had=str(out.shape[1]),
            where="out",
        )
    refuse_overlap(out, X=x, indptr=a.indptr, indices=a.indices, data=a.data)
    return _ProductOperands(a, x, out)


def _table(
    operands: Operands, role: str, dtypes: tuple[str, ...], rows: int, *, writable: bool = False
) -> Array:
    array = dense(operands, role, writable=writable)
    if array.ndim != 2 or len(array) != rows:
        raise InvalidSpecError(
            "the operand has the wrong shape",
            needed=f"({rows}, vectors)",
            had=str(array.shape),
            where=role,
        )
    vector({role: array.reshape(-1)}, role, dtypes)
    return array


class NumbaMatmat:
    """Compiled: sums in registers, up to 32 vectors at a time; floats equal SciPy's bit for bit.

    Prefetches where X is larger than the cache and a sample of the columns shows no
    order. Cannot fault even if another process writes to the matrix meanwhile.
    """

    name = "matmat"
    implementation = "numba"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands and give the loop for their dtypes."""
        return _bound(_checked(operands))

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        bound = _bound(found)
        check_rows(row_start, row_stop, bound.rows)
        refuse_failure(bound.loop(*bound.arguments, int(row_start), int(row_stop)), found.a)
        return found.work(row_start, row_stop)


def _bound(found: _ProductOperands) -> Bound:
    a, x, out, width = found.a, found.x, found.out, found.width
    shared = a.indptr, a.indices, a.data, x.reshape(-1), out.reshape(-1), a.shape[1], width
    if a.data.dtype == x.dtype and x.dtype.str in _LANE_CODES:
        prefetching = pays_to_prefetch(a, x.itemsize * width)
        return Bound(_lanes, (*shared, int(prefetching)), a.shape[0], DONE)
    return Bound(_any, shared, a.shape[0], DONE)


class ScipyMatmat:
    """SciPy's product of the block of rows, copied to ``out``.

    SciPy faults on a bad structure, so the rows' bounds and columns are checked in
    every call. The matrix must not be written to meanwhile: use it on sealed ones.
    """

    name = "matmat"
    implementation = "scipy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and import SciPy."""
        _checked(operands)
        import_scipy_sparse()

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        sparse = import_scipy_sparse()
        found = _checked(operands)
        check_rows(row_start, row_stop, found.a.shape[0])
        indptr = checked_indptr(found.a, row_start, row_stop)
        check_columns(found.a.indices[indptr[0] : indptr[-1]], int(indptr[0]), found.a.shape[1])
        found.out[row_start:row_stop] = block(sparse, found.a, indptr) @ found.x
        return found.work(row_start, row_stop)


class NumpyMatmat:
    """NumPy alone: products of a block of rows, then one reduction over its non-empty rows.

    Equals SciPy's result up to the rounding of sums in another order. Cannot fault
    even if another process writes to the matrix meanwhile.
    """

    name = "matmat"
    implementation = "numpy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked(operands)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, found.a.shape[0])
        indptr = checked_indptr(found.a, row_start, row_stop)
        most = max(_BLOCK_PRODUCTS // max(found.width, 1), 1)
        row = 0
        while row < row_stop - row_start:
            # As many rows as fit the block, and at least one.
            fitting = int(np.searchsorted(indptr, indptr[row] + most, side="right")) - 1
            following = max(row + 1, fitting)
            target = found.out[row_start + row : row_start + following]
            _reduce_rows(found, indptr[row : following + 1], target)
            row = following
        return found.work(row_start, row_stop)


def _reduce_rows(found: _ProductOperands, indptr: Array, target: Array) -> None:
    start, stop = int(indptr[0]), int(indptr[-1])
    target[:] = 0
    if start == stop:
        return
    columns = found.a.indices[start:stop].copy()
    check_columns(columns, start, found.a.shape[1])
    dtype = found.out.dtype
    # reduceat gives the element at its start, not 0, for an empty row, and fails on
    # one at the end; so only rows with entries take part.
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    with np.errstate(all="ignore"):  # NaN and infinity go through in silence, as in SciPy
        values = found.a.data[start:stop, np.newaxis]
        products = np.multiply(values, found.x[columns], dtype=dtype)
        sums = np.add.reduceat(products, indptr[filled] - start, axis=0, dtype=dtype)
        target[filled] = sums
