"""``matvec_split`` and ``add_carries``: ``out = A @ x`` where one row may be work for several.

In two phases over parts of equal work, as :func:`hugepool.partition.merge_path` cuts
them. The first computes each part's entries: whole rows go to ``out``, the sum of a piece
of a row to ``carry``. The second writes each row that was cut: the sums of its pieces,
added from left to right. Both only write, they never add to what is there, so a part
may be run again.

Operands: ``A`` (:class:`CsrArrays`), ``x`` of shape (columns,), ``bounds``, int64, shape
(2, parts + 1), the bounds of rows and of entries; ``carry`` of shape (2 * parts,) and
``out`` of shape (rows,), both of the dtype that NumPy gives the product. The second phase
takes no ``x``. Ranges are parts.

Whole rows are summed as by ``matvec``. A row of n entries that was cut is off by at most
``n u / (1 - n u) * sum |a x|``, u being half the dtype's ``eps``: the bound of a sum of n
products in any order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    CsrArrays,
    Kernel,
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
    checked_indptr,
    pays_to_prefetch,
    refuse_failure,
)
from hugepool.kernels.spmv import VALUE_CODES, NumpyMatvec, ScipyMatvec, import_scipy_sparse
from hugepool_common.errors import InvalidMatrixError, InvalidSpecError

_LOOPS = "hugepool.kernels.split_loops"
_matvec_split = CompiledLoop(_LOOPS, "matvec_split", outputs=("carry", "out"))
_add_carries = CompiledLoop(_LOOPS, "add_carries", outputs=("out",))
_NONE = -1


@dataclass(frozen=True, slots=True)
class _SplitOperands:
    a: CsrArrays
    bounds: Array
    carry: Array
    out: Array

    @property
    def parts(self) -> int:
        """How many."""
        return len(self.carry) // 2

    def part(self, part: int) -> tuple[int, int, int, int]:
        """First and last row bound and entry bound of a part."""
        rows, entries = self.bounds[part : part + 2], self.bounds[self.parts + 1 + part :][:2]
        return int(rows[0]), int(rows[1]), int(entries[0]), int(entries[1])

    def work(self, row_start: int, row_stop: int, item_bytes: int) -> Work:
        """What these parts read and write, counting x once an entry."""
        spans = [self.part(part) for part in range(row_start, row_stop)]
        rows = sum(last - first for first, last, _, _ in spans)
        nnz = sum(stop - start for _, _, start, stop in spans)
        entry_bytes = self.a.indices.itemsize + self.a.data.itemsize + item_bytes
        row_bytes = self.a.indptr.itemsize + self.out.itemsize
        return Work(rows, nnz, nnz * entry_bytes + rows * row_bytes)


def _checked(operands: Operands, *, writes: tuple[str, ...]) -> _SplitOperands:
    a = matrix(operands, "A", VALUE_CODES)
    out = dense(operands, "out", writable=True)
    out = vector({"out": out}, "out", VALUE_CODES)
    check_length(out, "out", a.shape[0])
    carry = vector(operands, "carry", (out.dtype.str,), writable="carry" in writes)
    bounds = dense(operands, "bounds").reshape(-1)
    vector({"bounds": bounds}, "bounds", ("<i8",))
    if len(carry) % 2 or not 2 < len(bounds) == len(carry) + 2:
        raise InvalidSpecError(
            "bounds and carry are not of the same number of parts",
            needed=f"{len(bounds) - 2} carries, two a part",
            had=str(len(carry)),
            where="carry",
        )
    structure = {"indptr": a.indptr, "indices": a.indices, "data": a.data, "bounds": bounds}
    refuse_overlap(out, carry=carry, **structure)
    refuse_overlap(carry, **structure)
    found = _SplitOperands(a, bounds, carry, out)
    first, last = found.part(0), found.part(found.parts - 1)
    ends = first[0], last[1], first[2], last[3]
    if ends != (0, a.shape[0], int(a.indptr[0]), int(a.indptr[-1])):
        raise InvalidMatrixError(
            "the bounds do not cover the matrix",
            needed=f"rows 0 to {a.shape[0]}, entries {a.indptr[0]} to {a.indptr[-1]}",
            had=f"rows {ends[0]} to {ends[1]}, entries {ends[2]} to {ends[3]}",
            where="bounds",
        )
    return found


def _checked_product(operands: Operands) -> tuple[_SplitOperands, Array]:
    found = _checked(operands, writes=("carry", "out"))
    x = vector(operands, "x", VALUE_CODES)
    check_length(x, "x", found.a.shape[1])
    result = np.result_type(found.a.data, x)
    vector({"out": found.out}, "out", (result.str,))
    refuse_overlap(found.out, x=x)
    refuse_overlap(found.carry, x=x)
    return found, x


class NumbaMatvecSplit:
    """Compiled; cannot fault even if another process writes to the operands meanwhile."""

    name = "matvec_split"
    implementation = "numba"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands and give the loop for their dtypes."""
        return _bound(*_checked_product(operands))

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the parts ``[row_start, row_stop)``."""
        found, x = _checked_product(operands)
        bound = _bound(found, x)
        check_rows(row_start, row_stop, bound.rows)
        refuse_failure(bound.loop(*bound.arguments, int(row_start), int(row_stop)), found.a)
        return found.work(row_start, row_stop, x.itemsize)


def _bound(found: _SplitOperands, x: Array) -> Bound:
    a, parts = found.a, found.parts
    prefetching = int(pays_to_prefetch(a, x.itemsize))
    results = found.bounds, found.carry, found.out, parts
    arguments = (a.indptr, a.indices, a.data, x, *results, prefetching)
    return Bound(_matvec_split, arguments, parts, DONE)


@dataclass(frozen=True)
class RowwiseMatvecSplit:
    """A part as a matrix of its own, whose first and last row may be pieces.

    Parameters
    ----------
    implementation
        ``scipy`` or ``numpy``: what multiplies it.
    """

    implementation: str

    @property
    def name(self) -> str:
        """``matvec_split``."""
        return "matvec_split"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked_product(operands)
        if self.implementation == "scipy":
            import_scipy_sparse()

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the parts ``[row_start, row_stop)``."""
        found, x = _checked_product(operands)
        check_rows(row_start, row_stop, found.parts)
        kernel: Kernel = ScipyMatvec() if self.implementation == "scipy" else NumpyMatvec()
        for part in range(row_start, row_stop):
            _compute_part(kernel, found, x, part)
        return found.work(row_start, row_stop, x.itemsize)


def _compute_part(kernel: Kernel, found: _SplitOperands, x: Array, part: int) -> None:
    a = found.a
    row, last_row, entry, last = found.part(part)
    if not (0 <= row <= last_row <= a.shape[0] and 0 <= entry <= last <= a.nnz):
        refuse_failure((BAD_BOUNDS, part, last_row), a)
    begun = checked_indptr(a, row, last_row)
    if begun[0] < entry or begun[-1] < last or (begun[:-1] > last).any():
        refuse_failure((BAD_BOUNDS, part, last), a)
    indptr = np.concatenate([[entry], begun[:-1], [last]])
    block = CsrArrays(indptr, a.indices, a.data, (len(indptr) - 1, a.shape[1]))
    sums = np.empty(len(indptr) - 1, found.out.dtype)
    kernel({"A": block, "x": x, "out": sums}, 0, len(sums))
    found.carry[2 * part : 2 * part + 2] = 0
    found.carry[2 * part] = sums[0]
    if row == last_row:
        return
    whole = len(sums) - 1 if begun[-1] == last else len(sums) - 2
    found.out[row : row + whole] = sums[1 : 1 + whole]
    if begun[-1] != last:
        found.carry[2 * part + 1] = sums[-1]


@dataclass(frozen=True)
class AddCarries:
    """The second phase.

    Parameters
    ----------
    implementation
        ``numba`` or ``numpy``; both give the same bits.
    """

    implementation: str = "numba"

    @property
    def name(self) -> str:
        """``add_carries``."""
        return "add_carries"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands and give the loop for their dtypes."""
        found = _checked(operands, writes=("out",))
        arguments = found.a.indptr, found.bounds, found.carry, found.out, found.parts
        return Bound(_add_carries, arguments, found.parts, _NONE)

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        if self.implementation == "numba":
            bound.loop.prepare(*bound.arguments, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the rows that the parts ``[row_start, row_stop)`` begin and do not end."""
        found = _checked(operands, writes=("out",))
        check_rows(row_start, row_stop, found.parts)
        if self.implementation == "numba":
            bound = self.bind(operands)
            wrong = bound.loop(*bound.arguments, int(row_start), int(row_stop))
        else:
            wrong = _add(found, row_start, row_stop)
        if wrong != _NONE:
            refuse_failure((BAD_BOUNDS, wrong, found.part(wrong)[1]), found.a)
        parts = row_stop - row_start
        return Work(parts, 0, parts * 3 * found.carry.itemsize)


def _add(found: _SplitOperands, row_start: int, row_stop: int) -> int:
    for part in range(row_start, row_stop):
        row, following, _, last = found.part(part)
        if not 0 <= following <= found.a.shape[0]:
            return part
        stop = int(found.a.indptr[following])
        if row >= following or last >= stop:
            continue
        total = found.carry[2 * part + 1]
        for other in range(part + 1, found.parts):
            begun, _, entry, _ = found.part(other)
            if begun != following or entry >= stop:
                break
            with np.errstate(all="ignore"):
                total = total + found.carry[2 * other]
        found.out[following - 1] = total
    return _NONE
