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
from typing import NoReturn, cast

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    CsrArrays,
    Operands,
    Work,
    check_length,
    check_rows,
    last_level_cache_bytes,
    matrix,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool_common.errors import (
    IndexOutOfRangeError,
    InvalidMatrixError,
    MissingExtraError,
)

VALUE_CODES = ("<i4", "<u4", "<i8", "<u8", "<f4", "<f8", "<c8", "<c16")
"""Dtypes of ``data`` and ``x``."""

_loop = CompiledLoop("hugepool.kernels.spmv_loops", "matvec", outputs=("out",))
_BAD_INDPTR, _BAD_COLUMN = 1, 2  # as in the module of loops, which is not imported here

_BLOCK_ENTRIES = 1 << 18
_SAMPLES = 16
_SAMPLE_ENTRIES = 256
_FEWEST_ENTRIES = 1 << 16


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


def _refuse_indptr(position: int, value: int, nnz: int) -> NoReturn:
    raise InvalidMatrixError(
        f"indptr[{position}] is {value}",
        needed=f"0 <= indptr[i] <= indptr[i+1] <= {nnz}",
        had=str(value),
        where="indptr",
    )


def _refuse_column(position: int, value: int, columns: int) -> NoReturn:
    raise IndexOutOfRangeError(
        f"column {value} of entry {position} is out of range",
        needed=f"0 <= column < {columns}",
        had=str(value),
        where="indices",
        position=position,
    )


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
        _loop.prepare(*_loop_arguments(_checked(operands), 0, 0))

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, found.a.shape[0])
        failure, position, value = _loop(*_loop_arguments(found, row_start, row_stop))
        if failure:
            signed = value - (1 << 64) if value >= 1 << 63 else value
            if failure == _BAD_INDPTR:
                _refuse_indptr(position, signed, found.a.nnz)
            _refuse_column(position, signed, found.a.shape[1])
        return found.work(row_start, row_stop)


def _loop_arguments(found: _ProductOperands, row_start: int, row_stop: int) -> tuple[object, ...]:
    a = found.a
    prefetching = _pays_to_prefetch(found, row_start, row_stop)
    return (
        a.indptr,
        a.indices,
        a.data,
        found.x,
        found.out,
        int(row_start),
        int(row_stop),
        int(prefetching),
    )


def _pays_to_prefetch(found: _ProductOperands, row_start: int, row_stop: int) -> bool:
    """Whether x misses the cache and is reached in no order.

    On banded matrices and stencils, which stream, a prefetch per entry only costs.
    Several short runs of entries are looked at: where they touch more cache lines
    than half their number of entries, the columns are called scattered.
    """
    if found.x.nbytes <= last_level_cache_bytes() // 2:
        return False
    start, stop = found.span(row_start, row_stop)
    stop = min(stop, found.a.nnz)
    if start < 0 or stop - start < _FEWEST_ENTRIES:
        return False
    begins = np.linspace(start, stop - _SAMPLE_ENTRIES, _SAMPLES).astype(np.int64)
    columns = found.a.indices[begins[:, np.newaxis] + np.arange(_SAMPLE_ENTRIES)]
    lines = np.sort(columns.astype(np.int64) * found.x.itemsize // CACHE_LINE_BYTES, axis=1)
    distinct = _SAMPLES + int(np.count_nonzero(np.diff(lines, axis=1)))
    return distinct > _SAMPLES * _SAMPLE_ENTRIES // 2


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
        indptr = _checked_indptr(found.a, 0, found.a.shape[0])
        start, stop = int(indptr[0]), int(indptr[-1])
        _check_columns(found.a.indices[start:stop], start, found.a.shape[1])
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
            indptr = _checked_indptr(found.a, row_start, row_stop)
        start, stop = int(indptr[0]), int(indptr[-1])
        indices = found.a.indices[start:stop]
        if not safe:
            _check_columns(indices, start, found.a.shape[1])
        # Filled in by hand: the constructor would copy 64-bit indices to 32 bits.
        rows = row_stop - row_start
        block = sparse.csr_array((rows, found.a.shape[1]), dtype=found.a.data.dtype)
        block.indptr = (indptr - start).astype(indices.dtype, copy=False)
        block.indices = indices
        block.data = found.a.data[start:stop]
        found.out[row_start:row_stop] = block @ found.x
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
        indptr = _checked_indptr(found.a, row_start, row_stop)
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
    _check_columns(columns, start, found.a.shape[1])
    dtype = found.out.dtype
    # reduceat gives the element at its start, not 0, for an empty row, and fails on
    # one at the end; so only rows with entries take part.
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    with np.errstate(all="ignore"):  # NaN and infinity go through in silence, as in SciPy
        products = np.multiply(found.a.data[start:stop], found.x[columns], dtype=dtype)
        target[filled] = np.add.reduceat(products, indptr[filled] - start, dtype=dtype)


def _checked_indptr(a: CsrArrays, row_start: int, row_stop: int) -> Array:
    """A private copy of the range's indptr as int64; what is checked is what is used."""
    indptr = a.indptr[row_start : row_stop + 1].astype(np.int64)
    bad = (indptr < 0) | (indptr > a.nnz)
    bad[1:] |= indptr[1:] < indptr[:-1]
    if bad.any():
        first = int(bad.argmax())
        _refuse_indptr(row_start + first, int(indptr[first]), a.nnz)
    return indptr


def _check_columns(columns: Array, start: int, limit: int) -> None:
    # One pass: as unsigned numbers, negative ones lie above every valid one.
    unsigned = columns.view(f"u{columns.itemsize}")
    positive = np.iinfo(columns.dtype).max
    if len(columns) == 0 or unsigned.max() <= min(limit - 1, positive):
        return
    bad = (columns < 0) | (columns >= limit)
    first = int(bad.argmax())
    _refuse_column(start + first, int(columns[first]), limit)
