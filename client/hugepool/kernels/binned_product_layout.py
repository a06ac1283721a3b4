"""What the plan of a binned product holds, known before it is filled.

What blocks, cells, runs and bins are is told by the module ``binned_product``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Operands,
    PlanArrays,
    check_length,
    vector,
)
from hugepool.kernels.binned_layout import number_cells
from hugepool.kernels.plan_parts import (
    HEAD,
    HEAD_WORDS,
    Part,
    Stored,
    nbytes_of,
    parts_in,
    read_head,
    write_head,
)
from hugepool_common.errors import InvalidSpecError

PRODUCT_FORM = 102
"""First word of the head of such a plan."""
BLOCK_BYTES = 1 << 18
"""Of x, and of the result, in a block: the next block is fetched while one is used, and
two blocks fit the 512 KiB of the smaller second-level caches. Twice that measured slower."""
FEWEST_BITS, MOST_BITS = 5, 20
NARROW_BITS = 16
"""Up to here, places in a block take 16 bits."""
ROOMY_ENTRIES = 64
"""In a cell, on average: below this, larger blocks are taken while places fit 16 bits."""
FEWEST_ENTRIES = 20
"""Below this, larger blocks are taken even so; padding outweighs the rest."""
LONGEST_RUN = 8
"""Entries of one row that may become one value of the bins, as in the module of loops."""
COMBINING_GAIN = 0.85
"""Runs are combined where the bytes of a run of the product then fall below this share."""


@dataclass(frozen=True, slots=True)
class ProductLayout:
    """How a matrix is cut, and, once it was counted, what a plan of this form holds.

    A source block is `source_width` elements of x, a target block `target_width` of the
    result. A cell is (source block, target block). ``src``, ``val``, ``cell`` and
    ``lines`` are ordered by source block first, ``dst`` and ``edge`` by target block
    first, as the bins are.

    =====  ================  ===============  ===============================================
    role   dtype             elements         holds
    =====  ================  ===============  ===============================================
    head   int64             32               words 0 to 6 as in ``plan_parts``, then
                                              `item_bytes`, `transposed`, `source_bits`,
                                              `target_bits`, `longest`, `entries`, `values`
    src    uint16 or uint32  entries          offset of each entry in its source block
    val    stored floats     entries          its value
    dst    uint16 or uint32  values           offset of each sum in its target block
    cell   int64             cells + 1        where each cell begins in src and val
    home   int64             cells            where it begins in dst and the bins
    lines  uint32            cells * longest  lines of its sums of 1, 2, ... `longest` entries
    edge   int64             targets + 1      where each target block begins in the bins
    =====  ================  ===============  ===============================================

    Inside a cell lie the sums of one entry, then those of two, and so on, each kind
    padded to full lines. Where a line has n sums of t entries, the first n places of src
    and val hold the first entry of each, the next n the second, up to t.

    Parameters
    ----------
    stored
        The matrix.
    item_bytes
        Of an element of the bins and the result: 4 or 8, floating point.
    transposed
        Whether the product is ``A.T @ x``.
    source_bits, target_bits
        A source block has two to this power elements, a target block one line less.
    longest
        Entries that one value of the bins may sum up: 1 or 8; 0 before anything is counted.
    entries, values
        Of the plan and of the bins, padding included; 0 before anything is counted.

    Raises
    ------
    InvalidSpecError
        What no plan holds.
    """

    stored: Stored
    item_bytes: int
    transposed: bool
    source_bits: int
    target_bits: int
    longest: int = 0
    entries: int = 0
    values: int = 0

    def __post_init__(self) -> None:
        bits = (self.source_bits, self.target_bits)
        sound = (
            self.item_bytes in (4, 8)
            and self.stored.stored_bytes <= self.item_bytes
            and all(FEWEST_BITS <= some <= MOST_BITS for some in bits)
            and self.longest in (0, 1, 1 if self.transposed else LONGEST_RUN)
            and min(self.entries, self.values) >= 0
        )
        if not sound:
            raise InvalidSpecError("no plan of a binned product is like this", had=str(self))

    @classmethod
    def fitting(cls, stored: Stored, item_bytes: int, *, transposed: bool = False) -> ProductLayout:
        """Blocks of 256 KiB, or as much larger as enough entries a cell take.

        Where even the largest leave fewer than 20 entries a cell, it is :attr:`sparse`.
        """
        bits = (BLOCK_BYTES // item_bytes).bit_length() - 1
        layout = cls(stored, item_bytes, transposed, bits, bits)
        for fewest, most in ((ROOMY_ENTRIES, NARROW_BITS), (FEWEST_ENTRIES, MOST_BITS)):
            while layout.thin(fewest) and layout.source_bits < most and layout.sources > 1:
                layout = replace(layout, source_bits=layout.source_bits + 1)
            while layout.thin(fewest) and layout.target_bits < most and layout.targets > 1:
                layout = replace(layout, target_bits=layout.target_bits + 1)
        return layout

    @classmethod
    def read(cls, plan: PlanArrays) -> ProductLayout:
        """From the head of a plan.

        Raises
        ------
        InvalidSpecError
            It is of another form, or makes no sense.
        """
        stored, own = read_head(plan, PRODUCT_FORM)
        item_bytes, transposed, *others = own[:7]
        return cls(stored, item_bytes, bool(transposed), *others)

    def counted(self, counts: Array, longest: int | None = None) -> ProductLayout:
        """With what was counted.

        Parameters
        ----------
        counts
            uint32, shape (cells * 8,), as ``CountProducts`` makes them.
        longest
            1 keeps the order of every sum, 8 combines runs; with None, runs are
            combined if that spares a sixth of the bytes that a product moves.

        Raises
        ------
        InvalidSpecError
            `counts` are of another length or dtype, or `longest` is not 1 or 8.
        """
        if longest is not None:
            layout = replace(self, longest=longest)
            lines = layout.lines(counts)
            entries = int(_entry_lines(lines).sum()) * self.line_elements
            return replace(layout, entries=entries, values=int(lines.sum()) * self.line_elements)
        apart = self.counted(counts, 1)
        if self.transposed:
            return apart
        together = self.counted(counts, LONGEST_RUN)
        worth = together.moved_nbytes < COMBINING_GAIN * apart.moved_nbytes
        return together if worth else apart

    def lines(self, counts: Array) -> Array:
        """Lines of sums in each cell: int64, shape (longest, targets, sources)."""
        found = vector({"counts": counts}, "counts", ("<u4",))
        check_length(found, "counts", self.cells * LONGEST_RUN)
        # Lengths first: sums over them then go along long rows.
        runs = found.reshape(-1, LONGEST_RUN).T.astype(np.int64, order="C")
        if self.longest == 1:
            runs = _entry_lines(runs)[np.newaxis]
        runs += self.line_elements - 1
        runs //= self.line_elements
        if self.transposed:
            return runs.reshape(self.longest, self.sources, self.targets).swapaxes(1, 2)
        return runs.reshape(self.longest, self.targets, self.sources)

    def head(self) -> Array:
        """int64, shape (32,)."""
        head = np.zeros(HEAD_WORDS, np.int64)
        self._write_head(PlanArrays({"head": head}))
        return head

    def _write_head(self, plan: PlanArrays) -> None:
        bits = (self.source_bits, self.target_bits)
        own = (self.item_bytes, int(self.transposed), *bits)
        counted = (self.longest, self.entries, self.values)
        write_head(plan, PRODUCT_FORM, self.stored, *own, *counted)

    def begin(self, plan: PlanArrays, counts: Array) -> None:
        """Write what no build of a range writes. Once, before the first.

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
        found = parts_in(plan, self.parts, writable=True)
        lines = self.lines(counts)
        in_cells = _entry_lines(lines) * self.line_elements
        in_bins = lines.sum(0) * self.line_elements
        number_cells(in_cells, in_bins, found["cell"], found["home"], found["edge"])
        found["lines"][:] = lines.T.reshape(-1)
        self._write_head(plan)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the plan's segment."""
        return (
            HEAD,
            ("src", _offset_code(self.source_bits), self.entries),
            ("val", self.stored.stored_code, self.entries),
            ("dst", _offset_code(self.target_bits), self.values),
            ("cell", "<i8", self.cells + 1),
            ("home", "<i8", self.cells),
            ("lines", "<u4", self.cells * self.longest),
            ("edge", "<i8", self.targets + 1),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return nbytes_of(self.parts)

    @property
    def bins_nbytes(self) -> int:
        """Bytes of the bins that a run needs."""
        return self.values * self.item_bytes

    @property
    def counts(self) -> int:
        """Elements, uint32, of the counts that a build needs."""
        return self.cells * LONGEST_RUN

    @property
    def build_nbytes(self) -> int:
        """Bytes that a build takes besides the plan: the counts, and sums of these."""
        return self.cells * LONGEST_RUN * (4 + 3 * 8)

    @property
    def likely(self) -> ProductLayout:
        """A guess before anything is counted: no run combined, each cell padded by half a line."""
        padding = min(self.cells, self.stored.nnz) * (self.line_elements - 1) // 2
        padded = self.stored.nnz + padding
        return replace(self, longest=1, entries=padded, values=padded)

    @property
    def moved_nbytes(self) -> int:
        """Bytes that a product reads and writes, x and the result included."""
        entry = np.dtype(_offset_code(self.source_bits)).itemsize + self.stored.stored_bytes
        value = np.dtype(_offset_code(self.target_bits)).itemsize + 2 * self.item_bytes
        ends = (self.source_elements + self.target_elements) * self.item_bytes
        return self.entries * entry + self.values * value + ends

    @property
    def source_elements(self) -> int:
        """Length of x."""
        return self.stored.rows if self.transposed else self.stored.columns

    @property
    def target_elements(self) -> int:
        """Length of the result."""
        return self.stored.columns if self.transposed else self.stored.rows

    @property
    def source_width(self) -> int:
        """Elements of x in a source block."""
        return 1 << self.source_bits

    @property
    def target_width(self) -> int:
        """Elements of the result in a target block.

        One line less than a power of two, so that the place behind them, which padding
        is added to, still has an offset of as many bits.
        """
        return (1 << self.target_bits) - self.line_elements

    @property
    def sources(self) -> int:
        """Blocks of x."""
        return -(-self.source_elements // self.source_width)

    @property
    def targets(self) -> int:
        """Blocks of the result."""
        return -(-self.target_elements // self.target_width)

    @property
    def cells(self) -> int:
        """Pairs of a source and a target block."""
        return self.sources * self.targets

    @property
    def units(self) -> int:
        """Ranges that a build is cut into: blocks of rows of the matrix."""
        return self.sources if self.transposed else self.targets

    @property
    def unit_rows(self) -> int:
        """Rows of the matrix in each of them."""
        return self.source_width if self.transposed else self.target_width

    @property
    def line_elements(self) -> int:
        """Sums in one line of 64 bytes."""
        return CACHE_LINE_BYTES // self.item_bytes

    @property
    def lap_elements(self) -> int:
        """Length of the scratch of phase 2: a target block and its padding, shifted in a line."""
        return (1 << self.target_bits) + self.line_elements

    @property
    def sparse(self) -> bool:
        """Whether cells hold fewer than 20 entries on average."""
        return self.thin(FEWEST_ENTRIES)

    def thin(self, fewest: int) -> bool:
        """Whether cells hold fewer entries than that on average."""
        return self.stored.nnz < fewest * self.cells


def layout_in(operands: Operands) -> ProductLayout:
    """The layout that the array in the role ``head`` tells.

    Raises
    ------
    InvalidSpecError
        It is the head of another form, or makes no sense.
    """
    return ProductLayout.read(PlanArrays({"head": vector(operands, "head", ("<i8",))}))


def _entry_lines(lines: Array) -> Array:
    """Of as many sums of 1, 2, ... entries as `lines`, by its first axis, says: their entries."""
    total = np.zeros(lines.shape[1:], np.int64)
    for length, some in enumerate(lines, 1):
        total += length * some
    return total


def _offset_code(bits: int) -> str:
    return "<u2" if bits <= NARROW_BITS else "<u4"
