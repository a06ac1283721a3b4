"""``A @ x`` or ``A.T @ x`` for a matrix that stays: products are sorted into bins, then summed.

x is cut into source blocks, the result into target blocks. The entries with the same
source and target block make a cell, and lie together in the plan. Phase 1 goes through
x block by block, multiplies, and appends the products to bins, one for each target
block; phase 2 sums each bin up in a scratch the size of one block. Every access is then
in order or in a cache, wherever the columns are. (The idea is propagation blocking:
Beamer, Asanović and Patterson, IPDPS 2017.)

Where many rows have several entries in a cell, as in graphs with skewed degrees, runs
of up to 8 of them become one value of the bins. Runs of one length lie together, so that
a line of sums is made without a branch. Each kind is padded to full lines with
zeros that are added to a place behind the block, never to a row: ``0 * x`` is not 0
where x is infinite or no number.

Order of sums. Without combining, a row is summed by rising source block, and inside one
in the order of its entries; each product and each sum is rounded on its own. For sorted
columns that is SciPy's order, so floats are equal bit for bit; for ``A.T`` it is SciPy's
order in any case. Otherwise the sum is the same up to its order: both differ from the
exact sum by at most ``n * eps / (1 - n * eps) * sum(|a_ij * x_j|)`` for a row of n
entries, eps being half a unit in the last place of 1 (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, sections 3.1 and 4.2), underflow aside.

Four kernels in this order, each over ranges that may run side by side:
``CountProducts`` and ``PlaceProducts`` build, ``FillProducts`` and ``SumBins`` run. Each
cell of the bins and each block of the result has one writer. But no range of one kernel
may begin before all of the one before are done, nor the next run before this one is.
"""

from __future__ import annotations

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
from hugepool.kernels.binned import bins_of, on_lines
from hugepool.kernels.binned_layout import aligned_empty
from hugepool.kernels.binned_product_layout import ProductLayout, layout_in
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.plan_parts import (
    REAL_CODES,
    BoundKernel,
    build_work,
    parts_in,
    plan_in,
    refuse_fill,
    source_in,
    source_vector,
)
from hugepool_common.errors import InvalidSpecError

_BUILD_LOOPS = "hugepool.kernels.binned_product_build_loops"
_LOOPS = "hugepool.kernels.binned_product_loops"
_count_products = CompiledLoop(_BUILD_LOOPS, "count_products", outputs=("counts",))
_count_transposed = CompiledLoop(_BUILD_LOOPS, "count_transposed", outputs=("counts",))
_place_products = CompiledLoop(_BUILD_LOOPS, "place_products", outputs=("src", "val", "dst"))
_place_transposed = CompiledLoop(_BUILD_LOOPS, "place_transposed", outputs=("src", "val", "dst"))
_fill_products = CompiledLoop(_LOOPS, "fill_products", outputs=("bins",))
_sum_bins = CompiledLoop(_LOOPS, "sum_bins", outputs=("lap", "out"))


def build_entries(layout: ProductLayout, a: CsrArrays) -> Array:
    """Entries before each range of a build, int64, shape (units + 1,): what to cut it by."""
    starts = np.minimum(np.arange(layout.units + 1) * layout.unit_rows, layout.stored.rows)
    return a.indptr[starts].astype(np.int64)


def fill_work(plan: PlanArrays) -> Array:
    """Entries before each cell, int64, shape (cells + 1,): what to cut ``FillProducts`` by."""
    return parts_in(plan, ProductLayout.read(plan).parts)["cell"]


def sum_work(plan: PlanArrays) -> Array:
    """Values and rows before each target block, int64, shape (targets + 1,): for ``SumBins``."""
    layout = ProductLayout.read(plan)
    rows = np.arange(layout.targets + 1) * layout.target_width
    return parts_in(plan, layout.parts)["edge"] + np.minimum(rows, layout.target_elements)


class CountProducts(BoundKernel):
    """Build, first step. Operands: ``A``, ``head`` and ``counts``. Rows are blocks of rows of A.

    ``head`` is that of a layout; ``counts`` is uint32, shape (layout.counts,), of
    which each range writes its own share.
    """

    name = "count_products"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        layout = layout_in(operands)
        a = source_in(operands, layout.stored)
        counts = vector(operands, "counts", ("<u4",), writable=True)
        check_length(counts, "counts", layout.counts)
        refuse_overlap(counts, indptr=a.indptr, indices=a.indices)
        widths = (layout.source_bits, layout.target_width)
        blocks = layout.targets if layout.transposed else layout.sources
        loop = _count_transposed if layout.transposed else _count_products
        arguments = (a.indptr, a.indices, a.shape[1], *widths, blocks, counts)
        return Bound(loop, arguments, layout.units, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Check and count the entries of the blocks ``[row_start, row_stop)``.

        Raises
        ------
        InvalidMatrixError, IndexOutOfRangeError
            The matrix contradicts itself; the first such place of these rows is named.
        """
        outcome = self.call(operands, row_start, row_stop)
        layout = layout_in(operands)
        a = source_in(operands, layout.stored)
        refuse_fill(outcome, a)
        rows, entries = _span(layout, a, row_start, row_stop)
        return Work(rows, entries, entries * a.indices.itemsize + rows * a.indptr.itemsize)


class PlaceProducts(BoundKernel):
    """Build, second step. Operands: ``A``, and ``plan``, begun and writable.

    Rows are blocks of rows of A; each fills and pads its own cells.
    """

    name = "place_products"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = ProductLayout.read(plan)
        a = source_in(operands, layout.stored)
        found = parts_in(plan, layout.parts, writable=True)
        _check_ends(layout, found)
        cut = (a.shape[1], layout.source_bits, layout.target_width)
        numbers: tuple[int, ...] = (layout.targets, layout.line_elements)
        loop = _place_transposed
        if not layout.transposed:
            numbers = (layout.sources, layout.targets, layout.longest, layout.line_elements)
            loop = _place_products
        roles = ("cell", "home", "lines", "src", "val", "dst")
        arrays = tuple(found[role] for role in roles)
        arguments = (a.indptr, a.indices, a.data, *cut, *numbers, *arrays)
        return Bound(loop, arguments, layout.units, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Fill and pad the cells of the blocks ``[row_start, row_stop)``.

        Raises
        ------
        InvalidSpecError
            The matrix is not what was counted.
        """
        outcome = self.call(operands, row_start, row_stop)
        layout = ProductLayout.read(plan_in(operands))
        a = source_in(operands, layout.stored)
        refuse_fill(outcome, a)
        rows, entries = _span(layout, a, row_start, row_stop)
        return build_work(layout.stored, entries, rows, a.indices.itemsize)


class FillProducts(BoundKernel):
    """Phase 1. Operands: ``plan``, ``x`` and ``bins``. Rows are cells, source-major.

    x is float32 or float64, no wider than the bins. ``bins`` are floats of the plan's
    item size, on a cache line, at least as many as its values.
    """

    name = "fill_products"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = ProductLayout.read(plan)
        found = parts_in(plan, layout.parts)
        _check_ends(layout, found)
        x = source_vector(operands, "x", layout.source_elements)
        if x.itemsize > layout.item_bytes:
            raise InvalidSpecError(
                "the plan makes results of another dtype",
                needed=f"<f{layout.item_bytes}",
                had=x.dtype.str,
                where="x",
            )
        bins = _bins(operands, layout, writable=True)
        refuse_overlap(bins, x=x, **found)
        arrays = tuple(found[role] for role in ("src", "val", "cell", "home", "lines"))
        numbers = (layout.source_bits, layout.targets, layout.longest)
        return Bound(_fill_products, (x, *arrays, bins, *numbers), layout.cells)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the products of the cells ``[row_start, row_stop)`` to the bins."""
        self.call(operands, row_start, row_stop)
        plan = plan_in(operands)
        layout = ProductLayout.read(plan)
        found = parts_in(plan, layout.parts)
        entries = int(found["cell"][row_stop] - found["cell"][row_start])
        lines = found["lines"][row_start * layout.longest : row_stop * layout.longest]
        x = vector(operands, "x", REAL_CODES)
        # The same share of x as of the cells: nobody counted what these blocks use of it.
        used = x.nbytes * (row_stop - row_start) // max(layout.cells, 1)
        entry_bytes = found["src"].itemsize + found["val"].itemsize
        written = int(lines.sum(dtype=np.int64)) * layout.line_elements * layout.item_bytes
        return Work(entries, 0, used + entries * entry_bytes + written)


class SumBins(BoundKernel):
    """Phase 2. Operands: ``plan``, ``bins`` and ``out``, perhaps ``lap``. Rows are target blocks.

    ``out`` is of the dtype of the bins. ``lap`` is private scratch of it too, on a cache
    line, of as many elements as the layout says; without one it is made.
    """

    name = "sum_bins"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once, and make the scratch."""
        plan = plan_in(operands)
        layout = ProductLayout.read(plan)
        found = parts_in(plan, layout.parts)
        _check_ends(layout, found)
        code = f"<f{layout.item_bytes}"
        out = vector(operands, "out", (code,), writable=True)
        check_length(out, "out", layout.target_elements)
        bins = _bins(operands, layout)
        if "lap" in operands:
            lap = on_lines(vector(operands, "lap", (code,), writable=True), "lap")
            check_length(lap, "lap", layout.lap_elements)
        else:
            lap = aligned_empty(layout.lap_elements, code)
        refuse_overlap(out, bins=bins, lap=lap, **found)
        arguments = (bins, found["dst"], found["edge"], lap, out, layout.target_width)
        return Bound(_sum_bins, arguments, layout.targets)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the target blocks ``[row_start, row_stop)`` of ``out``."""
        self.call(operands, row_start, row_stop)
        plan = plan_in(operands)
        layout = ProductLayout.read(plan)
        found = parts_in(plan, layout.parts)
        summed = int(found["edge"][row_stop] - found["edge"][row_start])
        first, last = (
            min(block * layout.target_width, layout.target_elements)
            for block in (row_start, row_stop)
        )
        item = layout.item_bytes
        nbytes = summed * (found["dst"].itemsize + item) + (last - first) * item
        return Work(last - first, 0, nbytes)


def _span(layout: ProductLayout, a: CsrArrays, start: int, stop: int) -> tuple[int, int]:
    """Rows and entries of a range of a build, as indptr says now."""
    first, last = (min(unit * layout.unit_rows, layout.stored.rows) for unit in (start, stop))
    return last - first, max(0, int(a.indptr[last]) - int(a.indptr[first]))


def _check_ends(layout: ProductLayout, found: dict[str, Array]) -> None:
    """Refuse a plan that was not begun, or whose head is another's."""
    needed = (layout.entries, layout.values)
    had = (int(found["cell"][-1]), int(found["edge"][-1]))
    if had != needed or layout.longest == 0:
        raise InvalidSpecError(
            "the plan contradicts itself",
            needed=f"{needed[0]} entries and {needed[1]} values",
            had=f"{had[0]} and {had[1]}",
            where="plan",
        )


def _bins(operands: Operands, layout: ProductLayout, *, writable: bool = False) -> Array:
    bins = vector(operands, "bins", (f"<f{layout.item_bytes}",), writable=writable)
    return bins_of(bins, layout.values)
