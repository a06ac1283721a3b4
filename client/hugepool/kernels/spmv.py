"""``matvec``: ``out = A @ x`` for a range of rows of a CSR matrix.

Operands: ``A`` (:class:`CsrArrays`), ``x`` of shape (columns,), ``out`` of shape
(rows,) with the dtype that NumPy gives the product. The structure is checked on
every call, by the rows that are asked for; after an error ``out`` may hold some
of these rows. Columns of a row may come in any order and repeat.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    CsrArrays,
    Operands,
    Work,
    check_length,
    check_rows,
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
from hugepool_common.errors import MissingExtraError

VALUE_CODES = ("<i4", "<u4", "<i8", "<u8", "<f4", "<f8", "<c8", "<c16")
"""Dtypes of ``data`` and ``x``."""

_loop = CompiledLoop("hugepool.kernels.spmv_loops", "matvec", outputs=("out",))
_BLOCK_ENTRIES = 1 << 18


@dataclass(frozen=True, slots=True)
class _ProductOperands:
    a: CsrArrays
    x: Array
    out: Array

    def span(self, row_start: int, row_stop: int) -> tuple[int, int]:
        """Where the entries of the rows begin and end, as indptr says now."""
        return int(self.a.indptr[row_start]), int(self.a.indptr[row_stop])

    def work(self, row_start: int, row_stop: int) -> Work:
        """What the product of the rows reads and writes, counting x once an entry at most."""
        rows = row_stop - row_start
        start, stop = self.span(row_start, row_stop)
        nnz = max(0, min(stop, self.a.nnz) - max(start, 0))
        entry_bytes = self.a.indices.itemsize + self.a.data.itemsize
        row_bytes = self.a.indptr.itemsize + self.out.itemsize
        x_bytes = min(nnz * self.x.itemsize, self.x.nbytes)
        return Work(rows, nnz, nnz * entry_bytes + rows * row_bytes + x_bytes)


def _checked(operands: Operands) -> _ProductOperands:
    a = matrix(operands, "A", VALUE_CODES)
    x = vector(operands, "x", VALUE_CODES)
    result = np.result_type(a.data, x)
    out = vector(operands, "out", (result.str,), writable=True)
    check_length(x, "x", a.shape[1])
    check_length(out, "out", a.shape[0])
    refuse_overlap(out, x=x, indptr=a.indptr, indices=a.indices, data=a.data)
    return _ProductOperands(a, x, out)


class NumbaMatvec:
    """Compiled: one accumulator a row, checked entry by entry; floats equal SciPy's bit for bit.

    Prefetches 32 entries ahead where a sample of the columns shows that x is
    reached in no order that the processor could foresee. Cannot fault even if
    another process writes to the matrix meanwhile.
    """

    name = "matvec"
    implementation = "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        return _bound(_checked(operands))

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, found.a.shape[0])
        bound = _bound(found)
        refuse_failure(bound.loop(*bound.arguments, int(row_start), int(row_stop)), found.a)
        return found.work(row_start, row_stop)


def _bound(found: _ProductOperands) -> Bound:
    a = found.a
    prefetching = int(pays_to_prefetch(a, found.x.itemsize))
    arguments = (a.indptr, a.indices, a.data, found.x, found.out, prefetching)
    return Bound(_loop, arguments, a.shape[0], DONE)


class ScipyMatvec:
    """SciPy as its users write it, ``A[row_start:row_stop] @ x``, to compare with.

    The block of rows is a view, not the copy that slicing makes, and the product is
    then copied to ``out``. SciPy faults on a bad structure, so the matrix's bounds are
    checked before: in :meth:`prepare`, so that a measured run is what SciPy's users
    see, else in the call. The matrix must not be written to meanwhile: use it on
    sealed ones.
    """

    name = "matvec"
    implementation = "scipy"

    def __init__(self) -> None:
        self._safe: CsrArrays | None = None

    def prepare(self, operands: Operands) -> None:
        """Check the operands and every bound of the matrix, and import SciPy."""
        self._safe = None
        found = _checked(operands)
        indptr = checked_indptr(found.a, 0, found.a.shape[0])
        start, stop = int(indptr[0]), int(indptr[-1])
        check_columns(found.a.indices[start:stop], start, found.a.shape[1])
        import_scipy_sparse()
        self._safe = cast(CsrArrays, operands["A"])

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        sparse = import_scipy_sparse()
        found = _checked(operands)
        check_rows(row_start, row_stop, found.a.shape[0])
        safe = operands["A"] is self._safe
        if safe:
            indptr = found.a.indptr[row_start : row_stop + 1]
        else:
            indptr = checked_indptr(found.a, row_start, row_stop)
            start, stop = int(indptr[0]), int(indptr[-1])
            check_columns(found.a.indices[start:stop], start, found.a.shape[1])
        found.out[row_start:row_stop] = block(sparse, found.a, indptr) @ found.x
        return found.work(row_start, row_stop)


def import_scipy_sparse() -> ModuleType:
    """``scipy.sparse``, imported now.

    Raises
    ------
    MissingExtraError
        SciPy cannot be imported.
    """
    try:
        return importlib.import_module("scipy.sparse")
    except ImportError as error:
        raise MissingExtraError(
            "this product needs SciPy",
            had=f"{type(error).__name__}: {error}",
            remedy='pip install "hugepool[compute]"',
        ) from None


class NumpyMatvec:
    """NumPy alone: products of a block of rows, then one reduction over its non-empty rows.

    Equals SciPy's result up to the rounding of sums in another order. Cannot fault
    even if another process writes to the matrix meanwhile.
    """

    name = "matvec"
    implementation = "numpy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked(operands)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, found.a.shape[0])
        indptr = checked_indptr(found.a, row_start, row_stop)
        row = 0
        while row < row_stop - row_start:
            # As many rows as fit the block, and at least one.
            fitting = int(np.searchsorted(indptr, indptr[row] + _BLOCK_ENTRIES, side="right")) - 1
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
        products = np.multiply(found.a.data[start:stop], found.x[columns], dtype=dtype)
        target[filled] = np.add.reduceat(products, indptr[filled] - start, dtype=dtype)
