"""``rmatvec``: ``out = A.T @ x`` for a CSR matrix, in two phases; and ``sum_parts``, the second.

A row of A adds to elements all over the result, so each part of the rows has a
result of its own. Operands of ``rmatvec``: ``A`` (:class:`CsrArrays`) and ``x`` of
shape (rows,), both real; ``bounds``, int64, shape (parts + 1,), the rows of each part;
and ``partial``, of the dtype that NumPy gives the product and of ``parts * columns``
elements, in which part k writes those from ``k * columns`` on. Its ranges are parts.

Operands of ``sum_parts``: ``partial``, and ``out`` of shape (columns,) with the same dtype.
Its ranges are elements of ``out``. The parts are added in their order, so the result
depends on the bounds alone. With one part, ``partial`` may be the result itself.

An element to which A has n entries is off by at most ``n u / (1 - n u) * sum |a x|``,
u being half the dtype's ``eps``: the bound of a sum of n products in any order (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1). Sums of zeros add nothing.
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
    check_length,
    check_rows,
    dense,
    matrix,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.csr import (
    BAD_BOUNDS,
    DONE,
    block,
    check_columns,
    checked_indptr,
    pays_to_prefetch,
    refuse_failure,
)
from hugepool.kernels.spmv import VALUE_CODES, import_scipy_sparse
from hugepool_common.errors import InvalidSpecError

REAL_CODES = tuple(code for code in VALUE_CODES if np.dtype(code).kind != "c")
"""Dtypes of ``data`` and ``x``: for complex ones it is disputed whether rmatvec conjugates."""

_LOOPS = "hugepool.kernels.transposed_loops"
_rmatvec = CompiledLoop(_LOOPS, "rmatvec", outputs=("partial",))
_sum_parts = CompiledLoop(_LOOPS, "sum_parts", outputs=("out",))
_BLOCK_ENTRIES = 1 << 18


@dataclass(frozen=True, slots=True)
class _ProductOperands:
    a: CsrArrays
    x: Array
    bounds: Array
    partial: Array

    @property
    def parts(self) -> int:
        """Of the rows."""
        return len(self.bounds) - 1

    def rows(self, part: int) -> tuple[int, int]:
        """Of a part, checked again: others may write to the bounds."""
        start, stop = int(self.bounds[part]), int(self.bounds[part + 1])
        if not 0 <= start <= stop <= self.a.shape[0]:
            refuse_failure((BAD_BOUNDS, part, stop), self.a)
        return start, stop

    def result(self, part: int) -> Array:
        """What a part writes."""
        columns = self.a.shape[1]
        return self.partial[part * columns : (part + 1) * columns]

    def work(self, row_start: int, row_stop: int) -> Work:
        """What these parts read and write, counting a result twice an entry at most."""
        rows = entries = 0
        for part in range(row_start, row_stop):
            start, stop = self.rows(part)
            rows += stop - start
            entries += int(self.a.indptr[stop]) - int(self.a.indptr[start])
        nnz = max(0, min(entries, self.a.nnz))
        entry_bytes = self.a.indices.itemsize + self.a.data.itemsize
        row_bytes = self.a.indptr.itemsize + self.x.itemsize
        results = (row_stop - row_start) * self.a.shape[1] + 2 * nnz
        nbytes = nnz * entry_bytes + rows * row_bytes + results * self.partial.itemsize
        return Work(rows, nnz, nbytes)


def _checked(operands: Operands) -> _ProductOperands:
    a = matrix(operands, "A", REAL_CODES)
    x = vector(operands, "x", REAL_CODES)
    check_length(x, "x", a.shape[0])
    bounds = vector(operands, "bounds", ("<i8",))
    if len(bounds) == 0:
        check_length(bounds, "bounds", 2)
    partial = dense(operands, "partial", writable=True).reshape(-1)
    vector({"partial": partial}, "partial", (np.result_type(a.data, x).str,))
    check_length(partial, "partial", (len(bounds) - 1) * a.shape[1])
    inputs = {"indptr": a.indptr, "indices": a.indices, "data": a.data, "bounds": bounds}
    refuse_overlap(partial, x=x, **inputs)
    return _ProductOperands(a, x, bounds, partial)


class NumbaRmatvec:
    """Compiled: entry by entry in their order; one part's result equals SciPy's bit for bit.

    Prefetches 32 entries ahead where the result is larger than the cache and a sample
    of the columns shows no order. Cannot fault even if another process writes to the
    operands meanwhile.
    """

    name = "rmatvec"
    implementation = "numba"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands and give the loop for their dtypes."""
        return _bound(_checked(operands))

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the results of the parts ``[row_start, row_stop)``."""
        found = _checked(operands)
        bound = _bound(found)
        check_rows(row_start, row_stop, bound.rows)
        refuse_failure(bound.loop(*bound.arguments, int(row_start), int(row_stop)), found.a)
        return found.work(row_start, row_stop)


def _bound(found: _ProductOperands) -> Bound:
    a, columns = found.a, found.a.shape[1]
    prefetching = pays_to_prefetch(a, found.partial.itemsize)
    results = found.bounds, found.partial, columns
    arguments = (a.indptr, a.indices, a.data, found.x, *results, int(prefetching))
    return Bound(_rmatvec, arguments, found.parts, DONE)


class ScipyRmatvec:
    """SciPy's product of the transposed block of rows, copied to the part's result.

    SciPy faults on a bad structure, so bounds and columns are checked in every call.
    The matrix must not be written to meanwhile: use it on sealed ones.
    """

    name = "rmatvec"
    implementation = "scipy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and import SciPy."""
        _checked(operands)
        import_scipy_sparse()

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the results of the parts ``[row_start, row_stop)``."""
        sparse = import_scipy_sparse()
        found = _checked(operands)
        check_rows(row_start, row_stop, found.parts)
        for part in range(row_start, row_stop):
            start, stop = found.rows(part)
            indptr = checked_indptr(found.a, start, stop)
            columns = found.a.indices[indptr[0] : indptr[-1]]
            check_columns(columns, int(indptr[0]), found.a.shape[1])
            rows = block(sparse, found.a, indptr)
            found.result(part)[:] = rows.T @ found.x[start:stop]
        return found.work(row_start, row_stop)


class NumpyRmatvec:
    """NumPy alone: ``numpy.add.at``, which adds in the order of the entries.

    Cannot fault even if another process writes to the operands meanwhile.
    """

    name = "rmatvec"
    implementation = "numpy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked(operands)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the results of the parts ``[row_start, row_stop)``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, found.parts)
        for part in range(row_start, row_stop):
            start, stop = found.rows(part)
            _add_entries(found, start, checked_indptr(found.a, start, stop), found.result(part))
        return found.work(row_start, row_stop)


def _add_entries(found: _ProductOperands, row_start: int, indptr: Array, result: Array) -> None:
    result[:] = 0
    for start in range(int(indptr[0]), int(indptr[-1]), _BLOCK_ENTRIES):
        stop = min(start + _BLOCK_ENTRIES, int(indptr[-1]))
        columns = found.a.indices[start:stop].copy()
        check_columns(columns, start, found.a.shape[1])
        rows = np.searchsorted(indptr, np.arange(start, stop), side="right") - 1 + row_start
        with np.errstate(all="ignore"):  # NaN and infinity go through in silence, as in SciPy
            products = np.multiply(found.a.data[start:stop], found.x[rows], dtype=result.dtype)
            np.add.at(result, columns, products)


@dataclass(frozen=True)
class SumParts:
    """``out[i] = partial[0, i] + partial[1, i] + ...``, from left to right.

    Parameters
    ----------
    implementation
        ``numba`` or ``numpy``; both give the same bits.
    """

    implementation: str = "numba"

    @property
    def name(self) -> str:
        """``sum_parts``."""
        return "sum_parts"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands and give the loop for their dtypes."""
        partial, out = self._checked(operands)
        arguments = partial, out, len(partial) // max(len(out), 1)
        return Bound(_sum_parts, arguments, len(out))

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        if self.implementation == "numba":
            bound.loop.prepare(*bound.arguments, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Sum the elements ``[row_start, row_stop)`` of all parts."""
        bound = self.bind(operands)
        check_rows(row_start, row_stop, bound.rows)
        partial, out, parts = bound.arguments
        if self.implementation == "numba":
            bound.loop(*bound.arguments, int(row_start), int(row_stop))
        elif parts:
            table = partial.reshape(parts, len(out))[:, row_start:row_stop]
            target = out[row_start:row_stop]
            target[:] = table[0]
            with np.errstate(all="ignore"):
                for result in table[1:]:
                    np.add(target, result, out=target)
        elements = row_stop - row_start
        return Work(elements, 0, elements * (parts + 1) * out.itemsize)

    def _checked(self, operands: Operands) -> tuple[Array, Array]:
        out = dense(operands, "out", writable=True)
        out = vector({"out": out}, "out", (out.dtype.str,), writable=True)
        partial = dense(operands, "partial").reshape(-1)
        vector({"partial": partial}, "partial", (out.dtype.str,))
        if len(partial) % max(len(out), 1) or len(partial) < len(out):
            raise InvalidSpecError(
                "partial does not hold whole results",
                needed=f"a multiple of {len(out)}",
                had=str(len(partial)),
                where="partial",
            )
        refuse_overlap(out, partial=partial)
        return partial, out
