"""Where every entry of a binned gather goes, and how that is found out once.

What blocks, cells and bins are is told by the module ``binned``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    check_length,
    check_rows,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.gather import INDEX_CODES
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError
from hugepool_common.spec import ITEM_SIZES

BLOCK_BITS = 16
"""Of a block unless cells would be too small: 512 KiB of 8-byte elements, 16-bit offsets."""
MOST_BLOCK_BITS = 20
FEWEST_ENTRIES_PER_CELL = 20
"""Below this, padding and the fixed cost of a cell outweigh what order gains."""

ITEM_CODES = {
    size: tuple(code for code, width in ITEM_SIZES.items() if width == size) for size in (4, 8)
}
"""Dtypes of x and ``out`` by bytes per element; they move as bits."""

_LOOPS = "hugepool.kernels.binned_loops"
_count_cells = CompiledLoop(_LOOPS, "count_cells", outputs=("counts",))
_fill_cells = CompiledLoop(_LOOPS, "fill_cells", outputs=("src", "dst"))


@dataclass(frozen=True, slots=True)
class GatherBlocks:
    """How x and ``out`` are cut.

    Parameters
    ----------
    rows
        Elements of x.
    entries
        Elements of ``idx`` and ``out``.
    item_bytes
        Of one element of x: 4 or 8.
    source_bits, target_bits
        A block of x, and of ``out``, has two to this power elements.

    Raises
    ------
    InvalidSpecError
        Another `item_bytes`, a negative count, or bits outside 0 to 20.
    """

    rows: int
    entries: int
    item_bytes: int
    source_bits: int = BLOCK_BITS
    target_bits: int = BLOCK_BITS

    def __post_init__(self) -> None:
        if self.item_bytes not in ITEM_CODES:
            raise InvalidSpecError(
                "elements cannot be binned", needed="4 or 8 bytes", had=f"{self.item_bytes} bytes"
            )
        if self.rows < 0 or self.entries < 0:
            raise InvalidSpecError("a length is negative", had=f"{self.rows} and {self.entries}")
        if not all(0 <= bits <= MOST_BLOCK_BITS for bits in (self.source_bits, self.target_bits)):
            raise InvalidSpecError(
                "no such block",
                needed=f"0 to {MOST_BLOCK_BITS} bits",
                had=f"{self.source_bits} and {self.target_bits}",
            )

    @classmethod
    def fitting(cls, rows: int, entries: int, item_bytes: int) -> GatherBlocks:
        """Blocks of 2**16, or as much larger as 20 entries a cell take, up to 2**20."""
        blocks = cls(rows, entries, item_bytes)
        while blocks.sparse and blocks.source_bits < MOST_BLOCK_BITS and blocks.sources > 1:
            blocks = cls(rows, entries, item_bytes, blocks.source_bits + 1)
        while blocks.sparse and blocks.target_bits < MOST_BLOCK_BITS and blocks.targets > 1:
            bits = blocks.target_bits + 1
            blocks = cls(rows, entries, item_bytes, blocks.source_bits, bits)
        return blocks

    @property
    def sources(self) -> int:
        """Blocks of x."""
        return -(-self.rows >> self.source_bits)

    @property
    def targets(self) -> int:
        """Blocks of ``out``."""
        return -(-self.entries >> self.target_bits)

    @property
    def cells(self) -> int:
        """Pairs of a source and a target block."""
        return self.sources * self.targets

    @property
    def sparse(self) -> bool:
        """Whether cells hold fewer than 20 entries on average."""
        return self.entries < FEWEST_ENTRIES_PER_CELL * self.cells

    @property
    def line_elements(self) -> int:
        """Cells are padded to a multiple of this: 64 bytes of elements."""
        return CACHE_LINE_BYTES // self.item_bytes

    @property
    def lap_elements(self) -> int:
        """Length of the scratch of phase 2: a target block, and a line to shift it in."""
        return min(1 << self.target_bits, self.entries) + self.line_elements

    @property
    def source_dtype(self) -> npt.DTypeLike:
        """Of offsets in a source block: uint16, or uint32 for larger blocks."""
        return np.uint16 if self.source_bits <= 16 else np.uint32

    @property
    def target_dtype(self) -> npt.DTypeLike:
        """Of offsets in a target block."""
        return np.uint16 if self.target_bits <= 16 else np.uint32

    @property
    def offset_bytes(self) -> int:
        """Bytes of the two offsets of one entry."""
        return np.dtype(self.source_dtype).itemsize + np.dtype(self.target_dtype).itemsize

    @property
    def likely_padded(self) -> int:
        """Elements of the bins if every cell is padded by half a line, as for a random ``idx``."""
        cells = min(self.cells, self.entries)
        return self.entries + cells * (self.line_elements - 1) // 2

    @property
    def most_nbytes(self) -> int:
        """Bound on what layout, bins and build take together, whatever ``idx`` holds."""
        cells = min(self.cells, self.entries)
        return self._nbytes(self.entries + cells * (self.line_elements - 1))

    @property
    def likely_nbytes(self) -> int:
        """What they take with `likely_padded` elements."""
        return self._nbytes(self.likely_padded)

    def _nbytes(self, padded: int) -> int:
        counting = self.cells * (4 + 3 * 8)  # the counts, and sums on the way to cell and home
        held = padded * self.offset_bytes + (2 * self.cells + self.targets + 2) * 8
        return held + counting + padded * self.item_bytes


@dataclass(frozen=True, slots=True)
class GatherLayout:
    """Where every entry goes.

    A cell is (source block, target block). `src` and `cell` are ordered by source
    block first, `dst` and `edge` by target block first, as the bins are. Inside a
    cell entries keep their order.

    Parameters
    ----------
    blocks
        How x and ``out`` are cut.
    src
        uint16 or uint32, shape (padded,): the offset of each entry in its source block.
    dst
        uint16 or uint32, shape (padded,): its offset in its target block.
    cell
        int64, shape (cells + 1,): where each cell begins in `src`.
    home
        int64, shape (cells,): where the cell begins in the bins and in `dst`, in the
        order of `cell`.
    edge
        int64, shape (targets + 1,): where each target block begins in the bins.
    """

    blocks: GatherBlocks
    src: Array
    dst: Array
    cell: Array
    home: Array
    edge: Array

    @classmethod
    def counted(cls, blocks: GatherBlocks, counts: Array) -> GatherLayout:
        """A layout with room for these counts; its offsets are still to be filled.

        Parameters
        ----------
        blocks
            How x and ``out`` are cut.
        counts
            uint32, shape (targets, sources), as :func:`count_targets` makes them.
        """
        line = blocks.line_elements
        padded = counts.astype(np.int64)
        padded += line - 1
        padded -= padded % line
        cell = np.zeros(blocks.cells + 1, np.int64)
        np.cumsum(padded.T.reshape(-1), out=cell[1:])
        place = np.zeros(blocks.cells + 1, np.int64)
        np.cumsum(padded.reshape(-1), out=place[1:])
        edge = (
            place[:: max(blocks.sources, 1)] if blocks.cells else place.repeat(blocks.targets + 1)
        )
        home = place[:-1].reshape(counts.shape).T
        total = int(cell[-1])
        return cls(
            blocks,
            aligned_empty(total, blocks.source_dtype),
            aligned_empty(total, blocks.target_dtype),
            cell,
            np.ascontiguousarray(home).reshape(-1),
            np.ascontiguousarray(edge),
        )

    @property
    def padded(self) -> int:
        """Elements of the bins: the entries, and the padding of their cells."""
        return len(self.src)

    @property
    def nbytes(self) -> int:
        """Bytes that the layout holds, known before it is filled; without the bins."""
        return sum(a.nbytes for a in (self.src, self.dst, self.cell, self.home, self.edge))

    @property
    def bins_nbytes(self) -> int:
        """Bytes of the bins that a run needs."""
        return self.padded * self.blocks.item_bytes

    def bins(self) -> Array:
        """Fresh bins, unsigned integers of the width of an element."""
        return aligned_empty(self.padded, f"u{self.blocks.item_bytes}")

    def freeze(self) -> None:
        """Make the arrays read-only."""
        for array in (self.src, self.dst, self.cell, self.home, self.edge):
            array.flags.writeable = False


def aligned_empty(elements: int, dtype: npt.DTypeLike) -> Array:
    """An array not yet written whose address is a multiple of 64, as streaming stores need."""
    width = np.dtype(dtype).itemsize
    raw = np.empty(elements * width + CACHE_LINE_BYTES, np.uint8)
    lead = -raw.ctypes.data % CACHE_LINE_BYTES
    return raw[lead : lead + elements * width].view(dtype)


def make_counts(blocks: GatherBlocks) -> Array:
    """Zeros for :func:`count_targets`, uint32, shape (targets, sources)."""
    return np.zeros((blocks.targets, blocks.sources), np.uint32)


def count_targets(
    idx: Array, blocks: GatherBlocks, counts: Array, block_start: int, block_stop: int
) -> None:
    """Count the entries in the cells of the target blocks ``[block_start, block_stop)``.

    Only their rows of `counts` are written.

    Raises
    ------
    IndexOutOfRangeError
        An index of these blocks lies outside x; the first one is named.
    InvalidSpecError
        The arrays or the range do not fit `blocks`.
    """
    flat = _index(idx, blocks)
    check_rows(block_start, block_stop, blocks.targets)
    if counts.shape != (blocks.targets, blocks.sources):
        raise InvalidSpecError("counts do not fit the blocks", had=str(counts.shape))
    position, value = _count_cells(
        flat,
        blocks.rows,
        blocks.source_bits,
        blocks.target_bits,
        blocks.sources,
        vector({"counts": counts.reshape(-1)}, "counts", ("<u4",), writable=True),
        int(block_start),
        int(block_stop),
    )
    if position >= 0:
        signed = flat.dtype.kind == "i" or idx.dtype.kind == "i"
        value = int(value)
        refuse_index(
            position, value - (1 << 64) if signed and value >= 1 << 63 else value, blocks.rows
        )


def refuse_index(position: int, value: int, rows: int) -> NoReturn:
    """Raise the error that names an index outside x."""
    raise IndexOutOfRangeError(
        f"index {value} at position {position} is out of range",
        needed=f"0 <= index < {rows}",
        had=str(value),
        where="idx",
        position=int(position),
    )


def fill_targets(idx: Array, layout: GatherLayout, block_start: int, block_stop: int) -> None:
    """Fill and pad the cells of the target blocks ``[block_start, block_stop)``.

    Raises
    ------
    InvalidSpecError
        The arrays or the range do not fit, or `idx` is not what was counted.
    """
    blocks = layout.blocks
    flat = _index(idx, blocks)
    check_rows(block_start, block_stop, blocks.targets)
    position = _fill_cells(
        flat,
        blocks.rows,
        blocks.source_bits,
        blocks.target_bits,
        blocks.sources,
        blocks.targets,
        layout.cell,
        layout.home,
        layout.src,
        layout.dst,
        int(block_start),
        int(block_stop),
    )
    if position >= 0:
        raise InvalidSpecError(
            "idx was written to while its layout was built",
            where=f"idx, near position {position}",
            remedy="build from an array that nobody writes to",
        )


def build_layout(idx: Array, blocks: GatherBlocks) -> GatherLayout:
    """Count and fill all target blocks, in this thread.

    Raises
    ------
    IndexOutOfRangeError
        An index lies outside x; the first one is named.
    InvalidSpecError
        `idx` does not fit `blocks`.
    """
    counts = make_counts(blocks)
    count_targets(idx, blocks, counts, 0, blocks.targets)
    layout = GatherLayout.counted(blocks, counts)
    fill_targets(idx, layout, 0, blocks.targets)
    layout.freeze()
    return layout


def _index(idx: Array, blocks: GatherBlocks) -> Array:
    flat = vector({"idx": idx.reshape(-1)}, "idx", INDEX_CODES)
    check_length(flat, "idx", blocks.entries)
    # A negative index becomes one that is out of range, too.
    return flat.view(np.uint64) if flat.itemsize == 8 else flat
