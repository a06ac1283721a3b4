"""``matvec_ordered``: ``out = A @ x`` for skewed matrices, columns and rows in a better order.

In graphs a few columns have most of the entries. Columns are renumbered by falling
use, so that what is used most of x lies together and stays in a cache; columns that no
entry uses are left out. Columns whose use has the same power of two keep their order,
which makes bringing x into the new order a few sweeps and no random walk. Rows are
taken longest first, in groups of 4 of nearly the same length: their entries are
interleaved, and the four sums are made side by side, each in the order of its row's
entries. So the result equals SciPy's bit for bit, unless values were rounded
(:func:`~hugepool.kernels.rounding.stored_as`).

A run has two phases: ``order_x`` writes ``permuted[i] = x[order[i]]``, then
``matvec_ordered`` multiplies. `permuted` has as many elements as there are used columns,
and x's dtype.

A plan has the parts ``head`` (its own word, the 7th: used columns), ``order`` (of each new
column the old one), ``row`` (the rows, longest first), ``starts`` (where the share of each
of these begins), ``columns`` (new numbers) and ``values``. Of the last two some elements
behind the entries are 0: prefetching reads ahead. ``order_x`` counts used columns,
the other kernels groups of 4 rows in the new order.
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
    check_length,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.csr import refuse_failure
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
    refuse_changed,
    refuse_fill,
    source_in,
    source_vector,
    target_vector,
    write_head,
)
from hugepool.kernels.rounding import Storage, stored_as

ORDERED_FORM = 302
"""First word of the head of such a plan."""
AHEAD = 128
"""Elements behind the entries, as in the loops."""

_LOOPS = "hugepool.kernels.ordered_loops"
_count_uses = CompiledLoop(_LOOPS, "count_uses", outputs=("uses",))
_fill_ordered = CompiledLoop(_LOOPS, "fill_ordered", outputs=("columns", "values"))
_matvec_sorted = CompiledLoop(_LOOPS, "matvec_sorted", outputs=("out",))
_gather_elements = CompiledLoop(
    "hugepool.kernels.gather_loops", "gather_elements", outputs=("out",)
)
_SECOND_LEVEL_BYTES = 1 << 19
"""What fits there is reached soon enough without asking ahead."""
_UNUSED = np.uint32(0xFFFFFFFF)
_LONG = 0xFFFF
"""Rows from this length on are sorted on their own: the rest sorts by 16 bits."""


@dataclass(frozen=True, slots=True)
class OrderedLayout:
    """What a plan of this form holds, known before it is filled.

    Parameters
    ----------
    stored
        The matrix.
    used
        Columns with entries.
    """

    stored: Stored
    used: int

    @classmethod
    def read(cls, plan: PlanArrays) -> OrderedLayout:
        """From the head of a plan.

        Raises
        ------
        InvalidSpecError
            It is of another form.
        """
        stored, own = read_head(plan, ORDERED_FORM)
        return cls(stored, own[0])

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the plan's segment."""
        stored = self.stored
        return (
            HEAD,
            ("order", "<u4", self.used),
            ("row", "<u4", stored.rows),
            ("starts", "<u4", stored.rows + 1),
            ("columns", "<u4", stored.nnz + AHEAD),
            ("values", stored.stored_code, stored.nnz + AHEAD),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return nbytes_of(self.parts)

    @property
    def build_nbytes(self) -> int:
        """Bound on what the build takes besides: uses, new numbers, and sorting."""
        stored = self.stored
        return stored.columns * (4 + 4) + self.used * (8 + 8 + 8 + 2) + stored.rows * (8 * 4 + 2)

    @property
    def units(self) -> int:
        """What the fill and the product count: groups of 4 rows."""
        return self.stored.groups

    def begin(self, a: CsrArrays, uses: Array, plan: PlanArrays, renumbered: Array) -> None:
        """Find the orders, and write what no fill writes. Once, before the first fill.

        Parameters
        ----------
        a
            The matrix.
        uses
            uint32, shape (columns,): entries of each column, from :func:`survey_ordered`.
        plan
            Its arrays, writable.
        renumbered
            uint32, shape (columns,), written: the new number of each column.

        Raises
        ------
        InvalidSpecError
            The arrays are not those of `parts`, are read-only, or the matrix is not the
            one that was looked at.
        """
        found = parts_in(plan, self.parts, writable=True)
        a = source_in({"A": a}, self.stored)
        check_length(vector({"uses": uses}, "uses", ("<u4",)), "uses", self.stored.columns)
        vector({"renumbered": renumbered}, "renumbered", ("<u4",), writable=True)
        check_length(renumbered, "renumbered", self.stored.columns)
        order = _by_use(uses)
        check_length(order, "uses", self.used)
        found["order"][:] = order
        renumbered[:] = _UNUSED
        renumbered[order] = np.arange(self.used, dtype=np.uint32)
        lengths = np.diff(a.indptr.astype(np.int64))
        if (lengths < 0).any() or lengths.sum() != self.stored.nnz:
            refuse_changed("indptr")
        row = _longest_first(lengths)
        found["row"][:] = row
        found["starts"][0] = 0
        np.cumsum(lengths[row], out=found["starts"][1:], dtype=np.uint32)
        for role in ("columns", "values"):
            found[role][self.stored.nnz :] = 0
        write_head(plan, ORDERED_FORM, self.stored, self.used)


def _by_use(uses: Array) -> Array:
    used = np.flatnonzero(uses)
    _, magnitude = np.frexp(uses[used].astype(np.float32))
    # Of 8 bits, stable: NumPy sorts by radix then.
    falling = (64 - magnitude).astype(np.uint8)
    return used[np.argsort(falling, kind="stable")]


def _longest_first(lengths: Array) -> Array:
    falling = (_LONG - np.minimum(lengths, _LONG)).astype(np.uint16)
    row = np.argsort(falling, kind="stable")
    long = int(np.count_nonzero(falling == 0))
    row[:long] = row[:long][np.argsort(-lengths[row[:long]], kind="stable")]
    return row


def survey_ordered(a: CsrArrays, storage: Storage = "exact") -> tuple[OrderedLayout, Array]:
    """Look at a matrix once: how a plan of this form would hold it.

    One pass of the calling thread; about as long as two products.

    Parameters
    ----------
    a
        The matrix, float32 or float64, at most 2**32 - 1 rows, columns and entries.
    storage
        Whether values may be rounded to float32.

    Returns
    -------
    tuple of OrderedLayout and numpy.ndarray
        The layout, and the entries of each column: uint32, shape (columns,).

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
    rows, columns = a.shape
    uses = np.zeros(columns, np.uint32)
    refuse_failure(_count_uses(a.indptr, a.indices, uses, 0, rows), a)
    first, last = int(a.indptr[0]), int(a.indptr[-1])
    if not 0 <= first <= last <= a.nnz:
        refuse_changed("indptr")
    stored_bytes, rounded = stored_as(a.data[first:last], storage)
    stored = Stored(rows, columns, last - first, a.data.itemsize, stored_bytes, rounded)
    return OrderedLayout(stored, int(np.count_nonzero(uses))), uses


def ordered_work(plan: PlanArrays) -> Array:
    """Entries before each group, int64, shape (groups + 1,): what to cut parts by."""
    layout = OrderedLayout.read(plan)
    starts = parts_in(plan, layout.parts)["starts"]
    ends = np.minimum(np.arange(layout.units + 1) * LANES, layout.stored.rows)
    return starts[ends].astype(np.int64)


class FillOrdered(BoundKernel):
    """Build. Operands: ``A``, ``renumbered``, and ``plan``, begun and writable.

    Rows are groups of 4 rows. Ranges may be filled side by side and in any order.
    """

    name = "fill_ordered"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = OrderedLayout.read(plan)
        a = source_in(operands, layout.stored)
        found = parts_in(plan, layout.parts, writable=True)
        renumbered = vector(operands, "renumbered", ("<u4",))
        check_length(renumbered, "renumbered", layout.stored.columns)
        arguments = (
            *(a.indptr, a.indices, a.data, renumbered, layout.used),
            *(found["row"], found["starts"], found["columns"], found["values"]),
        )
        return Bound(_fill_ordered, arguments, layout.units, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Fill the groups ``[row_start, row_stop)``.

        Raises
        ------
        InvalidSpecError
            The matrix is not what was looked at.
        """
        outcome = self.call(operands, row_start, row_stop)
        layout = OrderedLayout.read(plan_in(operands))
        a = source_in(operands, layout.stored)
        refuse_fill(outcome, a)
        entries, rows = _share(plan_in(operands), layout, row_start, row_stop)
        return build_work(layout.stored, entries, rows, a.indices.itemsize)


class OrderX(BoundKernel):
    """The first phase. Operands: ``plan``, ``x`` and ``permuted``. Rows are used columns."""

    name = "order_x"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = OrderedLayout.read(plan)
        order = parts_in(plan, layout.parts)["order"]
        x = source_vector(operands, "x", layout.stored.columns)
        permuted = vector(operands, "permuted", (x.dtype.str,), writable=True)
        check_length(permuted, "permuted", layout.used)
        refuse_overlap(permuted, x=x, order=order)
        unit = f"u{x.itemsize}"
        arguments = (x.view(unit), order, permuted.view(unit))
        return Bound(_gather_elements, arguments, layout.used, succeeded=-1)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the elements ``[row_start, row_stop)`` of ``permuted``.

        Raises
        ------
        InvalidSpecError
            The plan is not as it was built.
        """
        position, _ = self.call(operands, row_start, row_stop)
        if position >= 0:
            refuse_changed(f"order, element {int(position)}")
        width = vector(operands, "x", ("<f4", "<f8")).itemsize
        moved = row_stop - row_start
        return Work(moved, 0, moved * (4 + 2 * width))


class MatvecOrdered(BoundKernel):
    """The second phase. Operands: ``plan``, ``permuted`` and ``out``. Rows are groups of 4 rows.

    float32 and float64, x too; ``out`` has the dtype that NumPy gives the product, and
    sums are made in it.
    """

    name = "matvec_ordered"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        layout = OrderedLayout.read(plan_in(operands))
        found, permuted, out = product_operands(
            operands, layout.parts, layout.stored, role="permuted", length=layout.used
        )
        arguments = (
            *(found["row"], found["starts"], found["columns"], found["values"]),
            *(permuted, out, int(permuted.nbytes > _SECOND_LEVEL_BYTES)),
        )
        return Bound(_matvec_sorted, arguments, layout.units)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the groups ``[row_start, row_stop)`` of ``out``."""
        self.call(operands, row_start, row_stop)
        layout = OrderedLayout.read(plan_in(operands))
        nnz, rows = _share(plan_in(operands), layout, row_start, row_stop)
        permuted = source_vector(operands, "permuted", layout.used)
        out = target_vector(operands, layout.stored, permuted)
        x_bytes = min(nnz * permuted.itemsize, permuted.nbytes)
        row_bytes = 4 + 4 + out.itemsize
        nbytes = nnz * (4 + layout.stored.stored_bytes) + rows * row_bytes + x_bytes
        return Work(rows, nnz, nbytes)


def _share(
    plan: PlanArrays, layout: OrderedLayout, group_start: int, group_stop: int
) -> tuple[int, int]:
    """Entries and rows of some groups."""
    rows = layout.stored.rows
    start, stop = min(group_start * LANES, rows), min(group_stop * LANES, rows)
    starts = parts_in(plan, layout.parts)["starts"]
    return int(starts[stop]) - int(starts[start]), stop - start
