"""``x[idx]`` for an ``idx`` that stays: entries are sorted into bins once, then moved in order.

The elements of x are cut into source blocks, those of ``out`` into target blocks,
each of a power of two that fits the second-level cache. Entries with the same source
and target block make a cell. Phase 1 goes through x block by block and appends the
values to bins, one for each target block; phase 2 empties each bin into its piece of
``out``. Every access is then in order or in a cache, whatever ``idx`` holds. (The
idea is propagation blocking: Beamer, Asanović and Patterson, IPDPS 2017.)

Four kernels in this order, each over ranges that may run side by side: ``CountCells``
and ``FillCells`` build, ``FillBins`` and ``EmptyBins`` run. Each cell of the bins, and
each block of ``out``, has one writer. But no range of one kernel may begin before all
of the one before are done, nor the next run before this one is.
"""

from __future__ import annotations

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Bound,
    Operands,
    PlanArrays,
    Work,
    check_length,
    dense,
    refuse_overlap,
    vector,
)
from hugepool.kernels.binned_layout import (
    ITEM_CODES,
    GatherBlocks,
    GatherLayout,
    aligned_empty,
    blocks_in,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.gather import INDEX_CODES
from hugepool.kernels.plan_parts import BoundKernel, parts_in, plan_in
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError

_LOOPS = "hugepool.kernels.binned_loops"
_count_cells = CompiledLoop(_LOOPS, "count_cells", outputs=("counts",))
_fill_cells = CompiledLoop(_LOOPS, "fill_cells", outputs=("src", "dst"))
_fill_bins = CompiledLoop(_LOOPS, "fill_bins", outputs=("bins",))
_empty_bins = CompiledLoop(_LOOPS, "empty_bins", outputs=("lap", "out"))
_GOOD = -1


def fill_work(plan: PlanArrays) -> Array:
    """Entries before each cell, int64, shape (cells + 1,): what to cut ``FillBins`` by."""
    return parts_in(plan, GatherLayout.read(plan).parts)["cell"]


def empty_work(plan: PlanArrays) -> Array:
    """Entries before each target block, int64, shape (targets + 1,): for ``EmptyBins``."""
    return parts_in(plan, GatherLayout.read(plan).parts)["edge"]


class CountCells(BoundKernel):
    """Build, first step. Operands: ``idx``, ``head`` and ``counts``. Rows are target blocks.

    ``head`` is what :func:`~hugepool.kernels.binned_layout.gather_head` makes; ``counts``
    is uint32, shape (cells,), of which each target block writes its own share.
    """

    name = "count_cells"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        blocks = blocks_in(operands)
        idx = _index(operands, blocks)
        counts = vector(operands, "counts", ("<u4",), writable=True)
        check_length(counts, "counts", blocks.cells)
        refuse_overlap(counts, idx=idx)
        numbers = (blocks.rows, blocks.source_bits, blocks.target_bits, blocks.sources)
        return Bound(_count_cells, (idx, *numbers, counts), blocks.targets, succeeded=_GOOD)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Count the entries in the cells of the target blocks ``[row_start, row_stop)``.

        Raises
        ------
        IndexOutOfRangeError
            An index of these blocks lies outside x; the first one is named.
        """
        position, value = self.call(operands, row_start, row_stop)
        blocks = blocks_in(operands)
        idx = dense(operands, "idx", least_axes=0)
        if position != _GOOD:
            signed = idx.dtype.kind == "i" and value >= 1 << 63
            had = int(value) - (1 << 64) if signed else int(value)
            raise IndexOutOfRangeError(
                f"index {had} at position {position} is out of range",
                needed=f"0 <= index < {blocks.rows}",
                had=str(had),
                where="idx",
                position=int(position),
            )
        entries = _entries(blocks, row_start, row_stop)
        return Work(entries, 0, entries * idx.itemsize)


class FillCells(BoundKernel):
    """Build, second step. Operands: ``idx``, and ``plan``, begun and writable.

    Rows are target blocks; each fills and pads its own cells.
    """

    name = "fill_cells"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = GatherLayout.read(plan)
        blocks = layout.blocks
        idx = _index(operands, blocks)
        found = parts_in(plan, layout.parts, writable=True)
        _check_ends(layout, found)
        numbers = (blocks.rows, blocks.source_bits, blocks.target_bits)
        arrays = (found["cell"], found["home"], found["src"], found["dst"])
        arguments = (idx, *numbers, blocks.sources, blocks.targets, *arrays)
        return Bound(_fill_cells, arguments, blocks.targets, succeeded=_GOOD)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Fill and pad the cells of the target blocks ``[row_start, row_stop)``.

        Raises
        ------
        InvalidSpecError
            ``idx`` is not what was counted.
        """
        position = self.call(operands, row_start, row_stop)
        if position != _GOOD:
            raise InvalidSpecError(
                "idx was written to while its plan was built",
                where=f"idx, near position {position}",
                remedy="build from an array that nobody writes to",
            )
        blocks = GatherLayout.read(plan_in(operands)).blocks
        entries = _entries(blocks, row_start, row_stop)
        index_bytes = dense(operands, "idx", least_axes=0).itemsize
        return Work(entries, 0, entries * (index_bytes + blocks.offset_bytes))


class FillBins(BoundKernel):
    """Phase 1. Operands: ``plan``, ``x`` and ``bins``. Rows are cells, source-major.

    ``bins`` is of x's width, on a cache line, and at least as long as the plan's
    padded entries; what lies behind those is left alone.
    """

    name = "fill_bins"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = GatherLayout.read(plan)
        blocks = layout.blocks
        found = parts_in(plan, layout.parts)
        _check_ends(layout, found)
        x = vector(operands, "x", ITEM_CODES[blocks.item_bytes])
        check_length(x, "x", blocks.rows)
        bins = _bins(operands, layout, writable=True)
        refuse_overlap(bins, x=x, **found)
        unit = f"u{blocks.item_bytes}"
        arrays = (x.view(unit), found["src"], found["cell"], found["home"], bins)
        arguments = (*arrays, blocks.source_bits, blocks.targets)
        return Bound(_fill_bins, arguments, blocks.cells)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Move the elements of the cells ``[row_start, row_stop)`` to the bins."""
        self.call(operands, row_start, row_stop)
        plan = plan_in(operands)
        layout = GatherLayout.read(plan)
        found = parts_in(plan, layout.parts)
        moved = int(found["cell"][row_stop] - found["cell"][row_start])
        item = layout.blocks.item_bytes
        # The same share of x as of the cells: nobody counted what these blocks use of it.
        used = layout.blocks.rows * (row_stop - row_start) // max(layout.blocks.cells, 1)
        return Work(moved, 0, used * item + moved * (found["src"].itemsize + item))


class EmptyBins(BoundKernel):
    """Phase 2. Operands: ``plan``, ``bins`` and ``out``, perhaps ``lap``. Rows are target blocks.

    ``lap`` is private scratch of x's width, on a cache line, one target block and one
    line long; without one it is made.
    """

    name = "empty_bins"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once, and make the scratch."""
        plan = plan_in(operands)
        layout = GatherLayout.read(plan)
        blocks = layout.blocks
        found = parts_in(plan, layout.parts)
        _check_ends(layout, found)
        flat = dense(operands, "out", least_axes=0, writable=True).reshape(-1)
        out = vector({"out": flat}, "out", ITEM_CODES[blocks.item_bytes], writable=True)
        check_length(out, "out", blocks.entries)
        bins = _bins(operands, layout)
        unit = f"<u{blocks.item_bytes}"
        if "lap" in operands:
            lap = on_lines(vector(operands, "lap", (unit,), writable=True), "lap")
            check_length(lap, "lap", blocks.lap_elements)
        else:
            lap = aligned_empty(blocks.lap_elements, unit)
        refuse_overlap(out, bins=bins, lap=lap, **found)
        arrays = (bins, found["dst"], found["edge"], lap, out.view(unit))
        return Bound(_empty_bins, (*arrays, blocks.target_bits), blocks.targets)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the target blocks ``[row_start, row_stop)`` of ``out``."""
        self.call(operands, row_start, row_stop)
        plan = plan_in(operands)
        layout = GatherLayout.read(plan)
        found = parts_in(plan, layout.parts)
        moved = int(found["edge"][row_stop] - found["edge"][row_start])
        made = _entries(layout.blocks, row_start, row_stop)
        item = layout.blocks.item_bytes
        return Work(made, 0, moved * (found["dst"].itemsize + item) + made * item)


def _index(operands: Operands, blocks: GatherBlocks) -> Array:
    flat = dense(operands, "idx", least_axes=0).reshape(-1)
    idx = vector({"idx": flat}, "idx", INDEX_CODES)
    check_length(idx, "idx", blocks.entries)
    # A negative index becomes one that is out of range, too.
    return idx.view(np.uint64) if idx.itemsize == 8 else idx


def _entries(blocks: GatherBlocks, block_start: int, block_stop: int) -> int:
    first, last = block_start << blocks.target_bits, block_stop << blocks.target_bits
    return min(last, blocks.entries) - min(first, blocks.entries)


def _check_ends(layout: GatherLayout, found: dict[str, Array]) -> None:
    """Refuse a plan that was not begun, or whose head is another's."""
    ends = (int(found["cell"][-1]), int(found["edge"][-1]))
    if ends != (layout.padded, layout.padded):
        raise InvalidSpecError(
            "the plan contradicts itself",
            needed=f"cells of {layout.padded} elements",
            had=f"{ends[0]} and {ends[1]}",
            where="plan",
        )


def _bins(operands: Operands, layout: GatherLayout, *, writable: bool = False) -> Array:
    item = layout.blocks.item_bytes
    bins = vector(operands, "bins", ITEM_CODES[item], writable=writable)
    return bins_of(bins, layout.padded).view(f"u{item}")


def bins_of(bins: Array, needed: int) -> Array:
    """The part of a scratch for bins that a plan uses.

    Raises
    ------
    InvalidSpecError
        It is too short, or does not begin on a cache line.
    """
    if len(bins) < needed:
        raise InvalidSpecError(
            "the operand is too short", needed=f"{needed}", had=f"{len(bins)}", where="bins"
        )
    return on_lines(bins, "bins")[:needed]


def on_lines(array: Array, role: str) -> Array:
    """The array, if it is empty or begins on a cache line.

    Raises
    ------
    InvalidSpecError
        It does not: a streaming store would fault.
    """
    if len(array) and array.ctypes.data % CACHE_LINE_BYTES:
        raise InvalidSpecError(
            "the operand does not begin on a cache line",
            needed=f"an address that is a multiple of {CACHE_LINE_BYTES}",
            where=role,
        )
    return array
