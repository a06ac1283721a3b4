"""Where every entry of a binned gather goes: what its plan holds, known before it is filled.

What blocks, cells and bins are is told by the module ``binned``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Operands,
    PlanArrays,
    check_length,
    vector,
)
from hugepool.kernels.plan_parts import HEAD, HEAD_WORDS, Part, nbytes_of, parts_in
from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import ITEM_SIZES

GATHER_FORM = 101
"""First word of the head of such a plan."""

BLOCK_BITS = 16
"""Of a block of x unless cells would be too small: offsets of 16 bits."""
TARGET_BLOCK_BYTES = 1 << 18
"""Of a block of ``out`` unless cells would be too small."""
MOST_BLOCK_BITS = 20
FEWEST_ENTRIES_PER_CELL = 20
"""Below this, padding and the fixed cost of a cell outweigh what order gains."""

ITEM_CODES = {
    size: tuple(code for code, width in ITEM_SIZES.items() if width == size) for size in (4, 8)
}
"""Dtypes of x and ``out`` by bytes per element; they move as bits."""


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
        """Blocks as they measured fastest, or as much larger as 20 entries a cell take.

        A block of x has 2**16 elements; one of ``out`` has 256 KiB, which leaves half of
        the smaller second-level caches to the bins. Neither grows beyond 2**20.
        """
        target_bits = (TARGET_BLOCK_BYTES // item_bytes).bit_length() - 1
        blocks = cls(rows, entries, item_bytes, BLOCK_BITS, target_bits)
        while blocks.sparse and blocks.source_bits < MOST_BLOCK_BITS and blocks.sources > 1:
            blocks = replace(blocks, source_bits=blocks.source_bits + 1)
        while blocks.sparse and blocks.target_bits < MOST_BLOCK_BITS and blocks.targets > 1:
            blocks = replace(blocks, target_bits=blocks.target_bits + 1)
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
        numbers = HEAD_WORDS + 2 * self.cells + self.targets + 2
        held = padded * self.offset_bytes + numbers * 8
        return held + counting + padded * self.item_bytes


@dataclass(frozen=True, slots=True)
class GatherLayout:
    """What a plan of this form holds.

    A cell is (source block, target block). ``src`` and ``cell`` are ordered by source
    block first, ``dst`` and ``edge`` by target block first, as the bins are. Inside a
    cell entries keep their order.

    =====  ================  =================  =============================================
    role   dtype             elements           holds
    =====  ================  =================  =============================================
    head   int64             32                 the form, rows, entries, bytes of an element,
                                                source bits, target bits, padded
    src    uint16 or uint32  padded             offset of each entry in its source block
    dst    uint16 or uint32  padded             its offset in its target block
    cell   int64             cells + 1          where each cell begins in src
    home   int64             cells              where the cell begins in dst and the bins, in
                                                the order of cell
    edge   int64             targets + 1        where each target block begins in the bins
    =====  ================  =================  =============================================

    Parameters
    ----------
    blocks
        How x and ``out`` are cut.
    padded
        Elements of the bins: the entries, and the padding of their cells.
    """

    blocks: GatherBlocks
    padded: int

    @classmethod
    def counted(cls, blocks: GatherBlocks, counts: Array) -> GatherLayout:
        """For the entries of each cell.

        Parameters
        ----------
        blocks
            How x and ``out`` are cut.
        counts
            uint32, shape (cells,), target-major, as ``CountCells`` makes them.
        """
        return cls(blocks, int(_padded(blocks, counts).sum()))

    @classmethod
    def read(cls, plan: PlanArrays) -> GatherLayout:
        """From the head of a plan.

        Raises
        ------
        InvalidSpecError
            It is of another form, or makes no sense.
        """
        *words, padded = _words(plan.arrays, 7)
        return cls(GatherBlocks(*words), padded)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the plan's segment."""
        blocks = self.blocks
        return (
            HEAD,
            ("src", np.dtype(blocks.source_dtype).str, self.padded),
            ("dst", np.dtype(blocks.target_dtype).str, self.padded),
            ("cell", "<i8", blocks.cells + 1),
            ("home", "<i8", blocks.cells),
            ("edge", "<i8", blocks.targets + 1),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return nbytes_of(self.parts)

    @property
    def bins_nbytes(self) -> int:
        """Bytes of the bins that a run needs."""
        return self.padded * self.blocks.item_bytes

    def begin(self, plan: PlanArrays, counts: Array) -> None:
        """Write what no fill writes. Once, before the first fill.

        Parameters
        ----------
        plan
            Writable arrays, those of `parts`.
        counts
            As given to :meth:`counted`.

        Raises
        ------
        InvalidSpecError
            The arrays are not those of `parts`, or are read-only.
        """
        blocks = self.blocks
        found = parts_in(plan, self.parts, writable=True)
        padded = _padded(blocks, counts).reshape(blocks.targets, blocks.sources)
        number_cells(padded, padded, found["cell"], found["home"], found["edge"])
        head = vector(plan.arrays, "head", ("<i8",), writable=True)
        head[:] = 0
        head[:7] = [*gather_head(blocks)[:6].tolist(), self.padded]


def gather_head(blocks: GatherBlocks) -> Array:
    """The head of a plan before anything is counted: int64, shape (32,)."""
    head = np.zeros(HEAD_WORDS, np.int64)
    sizes = (blocks.rows, blocks.entries, blocks.item_bytes)
    head[:6] = (GATHER_FORM, *sizes, blocks.source_bits, blocks.target_bits)
    return head


def blocks_in(operands: Operands) -> GatherBlocks:
    """How x and ``out`` are cut, from the array in the role ``head``.

    Raises
    ------
    InvalidSpecError
        It is the head of another form, or makes no sense.
    """
    return GatherBlocks(*_words(operands, 6))


def _words(operands: Operands, count: int) -> list[int]:
    head = vector(operands, "head", ("<i8",))
    check_length(head, "head", HEAD_WORDS)
    form, *words = (int(word) for word in head[:count])
    if form != GATHER_FORM:
        raise InvalidSpecError(
            "the plan is of another form", needed=str(GATHER_FORM), had=str(form), where="head"
        )
    return words


def _padded(blocks: GatherBlocks, counts: Array) -> Array:
    found = vector({"counts": counts}, "counts", ("<u4",))
    check_length(found, "counts", blocks.cells)
    padded = found.astype(np.int64)
    padded += blocks.line_elements - 1
    padded -= padded % blocks.line_elements
    return padded


def number_cells(in_cells: Array, in_bins: Array, cell: Array, home: Array, edge: Array) -> None:
    """Give every cell its place, from how much is in it.

    Parameters
    ----------
    in_cells, in_bins
        int64, shape (targets, sources): elements of each cell, and of its part of the bins.
    cell, home, edge
        int64; written. Cells lie source-major in `cell` and `home`, target-major in the bins.
    """
    targets, sources = in_bins.shape
    cell[0] = 0
    np.cumsum(in_cells.T.reshape(-1), out=cell[1:])
    place = np.zeros(targets * sources + 1, np.int64)
    np.cumsum(in_bins.reshape(-1), out=place[1:])
    edge[:] = place[::sources] if sources else 0
    home[:] = place[:-1].reshape(targets, sources).T.reshape(-1)


def aligned_empty(elements: int, dtype: npt.DTypeLike) -> Array:
    """An array not yet written whose address is a multiple of 64, as streaming stores need."""
    width = np.dtype(dtype).itemsize
    raw = np.empty(elements * width + CACHE_LINE_BYTES, np.uint8)
    lead = -raw.ctypes.data % CACHE_LINE_BYTES
    return raw[lead : lead + elements * width].view(dtype)
