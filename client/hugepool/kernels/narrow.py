"""``matvec_narrow``: ``out = A @ x`` with columns in 16 bits, for rows that lie close together.

Rows are taken in groups of 4. A column is kept as its distance from the least column of
its group, which fits 16 bits where no group reaches over more than 65536 columns: banded
matrices, meshes in a good order. Values are kept as float32 where that loses nothing, or
where the user allows rounding (:func:`~hugepool.kernels.rounding.stored_as`). So an entry
takes 6 or 10 bytes, not 12 or 16. The entries of a group's rows are interleaved as far as
its shortest row goes; what is left of each row follows. The four sums are then made
side by side, each in the order of its row's entries: the result equals SciPy's bit for
bit unless values were rounded.

A plan has the parts ``head`` (its own words: none), ``starts`` (where each row's share of
the entries begins, as in the matrix), ``base`` (least column of each group), ``offset`` and
``values``. Kernels count groups, not rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    CsrArrays,
    Operands,
    PlanArrays,
    Work,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.csr import refuse_failure, refuse_indptr
from hugepool.kernels.plan_parts import (
    HEAD,
    LANES,
    BoundKernel,
    Part,
    Stored,
    build_work,
    nbytes_of,
    parts_in,
    plan_in,
    product_operands,
    read_head,
    real_matrix,
    refuse_fill,
    source_in,
    write_head,
)
from hugepool.kernels.rounding import Storage, stored_as

NARROW_FORM = 301
"""First word of the head of such a plan."""
FARTHEST = (1 << 16) - 1
"""Largest distance from the least column of a group."""

_LOOPS = "hugepool.kernels.narrow_loops"
_widest_group = CompiledLoop(_LOOPS, "widest_group")
_fill_groups = CompiledLoop(_LOOPS, "fill_groups", outputs=("starts", "base", "offset", "values"))
_matvec_groups = CompiledLoop(_LOOPS, "matvec_groups", outputs=("out",))


@dataclass(frozen=True, slots=True)
class NarrowLayout:
    """What a plan of this form holds, known before it is filled.

    Parameters
    ----------
    stored
        The matrix.
    """

    stored: Stored

    @classmethod
    def read(cls, plan: PlanArrays) -> NarrowLayout:
        """From the head of a plan.

        Raises
        ------
        InvalidSpecError
            It is of another form.
        """
        stored, _ = read_head(plan, NARROW_FORM)
        return cls(stored)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the plan's segment."""
        stored = self.stored
        return (
            HEAD,
            ("starts", "<u4", stored.rows + 1),
            ("base", "<u4", stored.groups),
            ("offset", "<u2", stored.nnz),
            ("values", stored.stored_code, stored.nnz),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return nbytes_of(self.parts)

    @property
    def units(self) -> int:
        """What kernels count: groups of 4 rows."""
        return self.stored.groups

    def begin(self, plan: PlanArrays) -> None:
        """Write what no fill writes. Once, before the first fill.

        Raises
        ------
        InvalidSpecError
            The arrays are not those of `parts`, or are read-only.
        """
        found = parts_in(plan, self.parts, writable=True)
        found["starts"][0] = 0
        write_head(plan, NARROW_FORM, self.stored)


def survey_narrow(a: CsrArrays, storage: Storage = "exact") -> NarrowLayout | str:
    """Look at a matrix once: how a plan of this form would hold it, or why none can.

    One pass of the calling thread over columns and values; it takes about as long as
    one product.

    Parameters
    ----------
    a
        The matrix, float32 or float64, at most 2**32 - 1 rows, columns and entries.
    storage
        Whether values may be rounded to float32.

    Raises
    ------
    InvalidMatrixError
        indptr falls or leaves the entries; its position is named.
    IndexOutOfRangeError
        A column lies outside the matrix; the first such entry is named.
    InvalidSpecError
        The matrix has another dtype, or is too large.
    """
    a = real_matrix({"A": a})
    groups = -(-a.shape[0] // LANES)
    outcome = _widest_group(a.indptr, a.indices, a.shape[1], 0, groups)
    refuse_failure((int(outcome[0]), int(outcome[1]), int(outcome[2])), a)
    widest = int(outcome[1])
    if widest > FARTHEST:
        return f"4 neighbouring rows reach over {widest + 1:,} columns, more than {FARTHEST + 1:,}"
    first, last = _ends(a)
    stored_bytes, rounded = stored_as(a.data[first:last], storage)
    rows, columns = a.shape
    return NarrowLayout(Stored(rows, columns, last - first, a.data.itemsize, stored_bytes, rounded))


def _ends(a: CsrArrays) -> tuple[int, int]:
    first, last = int(a.indptr[0]), int(a.indptr[-1])
    for position, value in ((0, first), (a.shape[0], last)):
        if not 0 <= value <= a.nnz:
            refuse_indptr(position, value, a.nnz)
    return first, last


def narrow_work(plan: PlanArrays) -> Array:
    """Entries before each group, int64, shape (groups + 1,): what to cut parts by."""
    layout = NarrowLayout.read(plan)
    starts = parts_in(plan, layout.parts)["starts"]
    ends = np.minimum(np.arange(layout.units + 1) * LANES, layout.stored.rows)
    return starts[ends].astype(np.int64)


class FillNarrow(BoundKernel):
    """Build. Operands: ``A``, and ``plan``, begun and writable. Rows are groups of 4 rows.

    Ranges may be filled side by side and in any order; each writes its own share.
    """

    name = "fill_narrow"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = NarrowLayout.read(plan)
        a = source_in(operands, layout.stored)
        found = parts_in(plan, layout.parts, writable=True)
        arguments = (
            *(a.indptr, a.indices, a.data, a.shape[1]),
            *(found["starts"], found["base"], found["offset"], found["values"]),
        )
        return Bound(_fill_groups, arguments, layout.units, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Fill the groups ``[row_start, row_stop)``.

        Raises
        ------
        InvalidSpecError
            The matrix is not what was looked at.
        """
        outcome = self.call(operands, row_start, row_stop)
        a = source_in(operands, NarrowLayout.read(plan_in(operands)).stored)
        refuse_fill(outcome, a)
        stored = NarrowLayout.read(plan_in(operands)).stored
        rows = _rows(stored, row_start, row_stop)
        starts = parts_in(plan_in(operands), NarrowLayout(stored).parts)["starts"]
        entries = int(starts[rows.stop]) - int(starts[rows.start])
        return build_work(stored, entries, len(rows), a.indices.itemsize)


class MatvecNarrow(BoundKernel):
    """The product. Operands: ``plan``, ``x`` and ``out``. Rows are groups of 4 rows.

    float32 and float64, x too; ``out`` has the dtype that NumPy gives the product, and
    sums are made in it.
    """

    name = "matvec_narrow"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        layout = NarrowLayout.read(plan_in(operands))
        found, x, out = product_operands(operands, layout.parts, layout.stored)
        arguments = (found["starts"], found["base"], found["offset"], found["values"], x, out)
        return Bound(_matvec_groups, arguments, layout.units)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the groups ``[row_start, row_stop)`` of ``out``."""
        self.call(operands, row_start, row_stop)
        plan = plan_in(operands)
        layout = NarrowLayout.read(plan)
        stored = layout.stored
        x, out = operands["x"], operands["out"]
        assert isinstance(x, np.ndarray) and isinstance(out, np.ndarray), "bind has checked"
        rows = _rows(stored, row_start, row_stop)
        starts = parts_in(plan, layout.parts)["starts"]
        nnz = int(starts[rows.stop]) - int(starts[rows.start])
        row_bytes = 4 + out.itemsize + 1
        x_bytes = min(nnz * x.itemsize, x.nbytes)
        nbytes = nnz * (2 + stored.stored_bytes) + len(rows) * row_bytes + x_bytes
        return Work(len(rows), nnz, nbytes)


def _rows(stored: Stored, group_start: int, group_stop: int) -> range:
    return range(min(group_start * LANES, stored.rows), min(group_stop * LANES, stored.rows))
