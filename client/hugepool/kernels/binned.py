"""``x[idx]`` for an ``idx`` that stays: entries are sorted into bins once, then moved in order.

The elements of x are cut into source blocks, those of ``out`` into target blocks,
each of a power of two that fits the second-level cache. Entries with the same source
and target block make a cell. Phase 1 goes through x block by block and appends the
values to bins, one for each target block; phase 2 empties each bin into its piece of
``out``. Every access is then in order or in a cache, whatever ``idx`` holds. (The
idea is propagation blocking: Beamer, Asanović and Patterson, IPDPS 2017.)

Each cell of bins, and each block of ``out``, has one writer: ranges of source blocks
in phase 1, and of target blocks in phase 2 and in the build, may run side by side. But
no part of phase 2 may begin before all of phase 1 is done, nor the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Operands,
    Work,
    check_length,
    check_rows,
    refuse_overlap,
    vector,
)
from hugepool.kernels.binned_layout import (
    ITEM_CODES,
    GatherBlocks,
    GatherLayout,
    aligned_empty,
    count_targets,
    fill_targets,
    make_counts,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError

_LOOPS = "hugepool.kernels.binned_loops"
_fill_bins = CompiledLoop(_LOOPS, "fill_bins", outputs=("bins",))
_empty_bins = CompiledLoop(_LOOPS, "empty_bins", outputs=("lap", "out"))


def scratch(blocks: GatherBlocks) -> Array:
    """What one caller of phase 2 scatters into: one target block and one line."""
    return aligned_empty(blocks.lap_elements, f"u{blocks.item_bytes}")


@dataclass(frozen=True)
class FillBins:
    """Phase 1. Operands: ``x``, the layout's ``src``, ``cell`` and ``home``, and ``bins``.

    Rows are source blocks. The layout's arrays must be those that were built: their
    lengths are checked here, their contents are trusted.
    """

    blocks: GatherBlocks

    @property
    def name(self) -> str:
        """``fill_bins``."""
        return "fill_bins"

    @property
    def implementation(self) -> str:
        """``numba``."""
        return "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile."""
        _fill_bins.prepare(*self._arguments(operands), 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Move the elements of the source blocks ``[row_start, row_stop)`` to the bins."""
        arguments = self._arguments(operands)
        check_rows(row_start, row_stop, self.blocks.sources)
        _fill_bins(*arguments, int(row_start), int(row_stop))
        _, src, cell = arguments[:3]
        targets, width = self.blocks.targets, 1 << self.blocks.source_bits
        moved = int(cell[row_stop * targets] - cell[row_start * targets])
        used = min(row_stop * width, self.blocks.rows) - min(row_start * width, self.blocks.rows)
        item = self.blocks.item_bytes
        return Work(moved, 0, used * item + moved * (src.itemsize + item))

    def _arguments(self, operands: Operands) -> tuple[Any, ...]:
        blocks = self.blocks
        x = vector(operands, "x", ITEM_CODES[blocks.item_bytes])
        check_length(x, "x", blocks.rows)
        src = vector(operands, "src", (np.dtype(blocks.source_dtype).str,))
        cell = vector(operands, "cell", ("<i8",))
        check_length(cell, "cell", blocks.cells + 1)
        check_length(src, "src", int(cell[-1]))
        home = vector(operands, "home", ("<i8",))
        check_length(home, "home", blocks.cells)
        bins = _bins(operands, blocks, len(src), writable=True)
        refuse_overlap(bins, x=x, src=src, cell=cell, home=home)
        unit = f"u{blocks.item_bytes}"
        return x.view(unit), src, cell, home, bins, blocks.source_bits, blocks.targets


@dataclass(frozen=True)
class EmptyBins:
    """Phase 2. Operands: ``bins``, the layout's ``dst`` and ``edge``, ``out``, perhaps ``lap``.

    Rows are target blocks. ``lap`` is private to the caller, see :func:`scratch`;
    without one it is made. The layout's arrays must be those that were built.
    """

    blocks: GatherBlocks

    @property
    def name(self) -> str:
        """``empty_bins``."""
        return "empty_bins"

    @property
    def implementation(self) -> str:
        """``numba``."""
        return "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile."""
        _empty_bins.prepare(*self._arguments(operands), 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the target blocks ``[row_start, row_stop)`` of ``out``."""
        arguments = self._arguments(operands)
        check_rows(row_start, row_stop, self.blocks.targets)
        _empty_bins(*arguments, int(row_start), int(row_stop))
        _, dst, edge = arguments[:3]
        moved = int(edge[row_stop] - edge[row_start])
        width, entries = 1 << self.blocks.target_bits, self.blocks.entries
        made = min(row_stop * width, entries) - min(row_start * width, entries)
        item = self.blocks.item_bytes
        return Work(made, 0, moved * (dst.itemsize + item) + made * item)

    def _arguments(self, operands: Operands) -> tuple[Any, ...]:
        blocks = self.blocks
        out = vector(operands, "out", ITEM_CODES[blocks.item_bytes], writable=True)
        check_length(out, "out", blocks.entries)
        dst = vector(operands, "dst", (np.dtype(blocks.target_dtype).str,))
        edge = vector(operands, "edge", ("<i8",))
        check_length(edge, "edge", blocks.targets + 1)
        check_length(dst, "dst", int(edge[-1]))
        bins = _bins(operands, blocks, len(dst))
        unit = f"u{blocks.item_bytes}"
        if "lap" in operands:
            lap = vector(operands, "lap", (f"<{unit}",), writable=True)
            check_length(lap, "lap", blocks.lap_elements)
            _on_lines(lap, "lap")
        else:
            lap = scratch(blocks)
        refuse_overlap(out, bins=bins, dst=dst, edge=edge, lap=lap)
        return bins, dst, edge, lap, out.view(unit), blocks.target_bits


def _bins(
    operands: Operands, blocks: GatherBlocks, needed: int, *, writable: bool = False
) -> Array:
    bins = vector(operands, "bins", (f"<u{blocks.item_bytes}",), writable=writable)
    check_length(bins, "bins", needed)
    return _on_lines(bins, "bins")


def _on_lines(array: Array, role: str) -> Array:
    if len(array) and array.ctypes.data % CACHE_LINE_BYTES:
        raise InvalidSpecError(
            "the operand does not begin on a cache line",
            needed=f"an address that is a multiple of {CACHE_LINE_BYTES}",
            where=role,
        )
    return array


class BinnedGather:
    """Both phases in one thread, with their layout, bins and scratch.

    Calls must not overlap: they share the bins.
    """

    def __init__(self, layout: GatherLayout) -> None:
        blocks = layout.blocks
        self._blocks = blocks
        self._layout = layout
        self._bins = layout.bins()
        self._bins[:] = 0  # so that no run pays for the first touch
        self._lap = scratch(blocks)
        self._fill = FillBins(blocks)
        self._empty = EmptyBins(blocks)

    @classmethod
    def built(cls, idx: Array, blocks: GatherBlocks, most_nbytes: int) -> BinnedGather:
        """Build for an index.

        Raises
        ------
        NotEnoughMemoryError
            Layout and bins need more than `most_nbytes`; found out before they are filled.
        IndexOutOfRangeError
            An index lies outside x.
        """
        counts = make_counts(blocks)
        count_targets(idx, blocks, counts, 0, blocks.targets)
        layout = GatherLayout.counted(blocks, counts)
        needed = layout.nbytes + layout.bins_nbytes
        if needed > most_nbytes:
            raise NotEnoughMemoryError(
                "the bins of this gather do not fit",
                needed=f"{needed:,} bytes",
                had=f"{most_nbytes:,} bytes",
                remedy="gather directly",
            )
        fill_targets(idx, layout, 0, blocks.targets)
        layout.freeze()
        return cls(layout)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self._layout.nbytes + self._bins.nbytes + self._lap.nbytes

    def __call__(self, x: Array, out: Array) -> Work:
        """Write ``x[idx]`` to `out`."""
        layout = self._layout
        sources = {"x": x, "src": layout.src, "cell": layout.cell, "home": layout.home}
        filled = self._fill(sources | {"bins": self._bins}, 0, self._blocks.sources)
        targets = {"bins": self._bins, "dst": layout.dst, "edge": layout.edge, "lap": self._lap}
        emptied = self._empty(targets | {"out": out}, 0, self._blocks.targets)
        return Work(emptied.elements, 0, filled.nbytes + emptied.nbytes)


def compile_binned(blocks: GatherBlocks, idx_dtype: npt.DTypeLike) -> None:
    """Gather one element through bins of these widths, so that no timing holds a compilation."""
    width = blocks.item_bytes
    one = GatherBlocks(1, 1, width, blocks.source_bits, blocks.target_bits)
    x, out = np.zeros(1, f"u{width}"), np.zeros(1, f"u{width}")
    BinnedGather.built(np.zeros(1, idx_dtype), one, 1 << 30)(x, out)
