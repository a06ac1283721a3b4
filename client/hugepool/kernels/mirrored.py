"""``matvec_mirrored``: ``out = A @ x`` for a symmetric matrix, of which half is kept.

It has its entries on few diagonals. Rows are found in runs, as for the form ``repeated``.
Values lie by their distance from the diagonal, and only those on it and above it: what a
row has below it, it reads where an earlier row has its mirror image. If the matrix is not
too wide, that is still in a cache since that row's turn, so that memory is read for half of
the values. No row adds to another's sum: each is made in the order of its entries, eight
rows side by side, and equals SciPy's bit for bit unless values were rounded
(:func:`~hugepool.kernels.rounding.stored_as`).

A plan has the parts ``head`` (its own words, from the 7th: runs, patterns, elements of all
patterns, distances), ``first`` (row that each run begins with, and the number of rows),
``pattern`` (of each run), ``starts`` (where each pattern begins), ``shift`` (column less row),
``place`` (where the value is, less the row) and ``values``. Kernels count runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Bound,
    CsrArrays,
    Operands,
    PlanArrays,
    Work,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.csr import DONE
from hugepool.kernels.plan_parts import (
    HEAD,
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
    source_vector,
    target_vector,
    write_head,
)
from hugepool.kernels.repeated import Runs, runs_of
from hugepool.kernels.rounding import Storage, stored_as
from hugepool_common.errors import InvalidSpecError

MIRRORED_FORM = 304
"""First word of the head of such a plan."""
MOST_KEPT = 0.75
"""A plan is possible where the diagonals have so many places to an entry of the matrix."""
UNEQUAL = 8
"""Outcome of a loop: two entries that mirror each other differ."""
_PAGE_LINES = 64
_ODD_LINES = 37
"""Diagonals begin so many lines apart in a page: those 4 KiB apart would share a set of a cache."""
_SAMPLED_ROWS = 1000
_SAMPLED_PAIRS = 1 << 24

_LOOPS = "hugepool.kernels.mirrored_loops"
_REPEATED_LOOPS = "hugepool.kernels.repeated_loops"
_find_asymmetry = CompiledLoop(_LOOPS, "find_asymmetry")
_fill_patterns = CompiledLoop(_REPEATED_LOOPS, "fill_patterns", outputs=("shift", "values"))
_fill_diagonals = CompiledLoop(_LOOPS, "fill_diagonals", outputs=("values",))
_compare_diagonals = CompiledLoop(_LOOPS, "compare_diagonals")
_matvec_mirrored = CompiledLoop(_LOOPS, "matvec_mirrored", outputs=("out",))


@dataclass(frozen=True, slots=True)
class MirroredLayout:
    """What a plan of this form holds, known before it is filled.

    Parameters
    ----------
    stored
        The matrix.
    runs, patterns
        How many.
    elements
        Of all patterns together.
    distances
        From the diagonal, at which there are entries.
    """

    stored: Stored
    runs: int
    patterns: int
    elements: int
    distances: int

    @classmethod
    def read(cls, plan: PlanArrays) -> MirroredLayout:
        """From the head of a plan.

        Raises
        ------
        InvalidSpecError
            It is of another form.
        """
        stored, own = read_head(plan, MIRRORED_FORM)
        return cls(stored, *own[:4])

    @property
    def stride(self) -> int:
        """Values between the beginnings of two diagonals."""
        per_line = CACHE_LINE_BYTES // self.stored.stored_bytes
        lines = -(-self.stored.rows // per_line)
        return (lines + (_ODD_LINES - lines) % _PAGE_LINES) * per_line

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the plan's segment."""
        return (
            HEAD,
            ("first", "<u4", self.runs + 1),
            ("pattern", "<u4", self.runs),
            ("starts", "<i8", self.patterns + 1),
            ("shift", "<i8", self.elements),
            ("place", "<i8", self.elements),
            ("values", self.stored.stored_code, self.distances * self.stride),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return nbytes_of(self.parts)

    @property
    def units(self) -> int:
        """What kernels count: runs."""
        return self.runs


@dataclass(frozen=True, slots=True)
class MirroredSurvey:
    """Runs and diagonals of one matrix; made by :func:`survey_mirrored`.

    Parameters
    ----------
    layout
        What the plan will hold.
    runs
        And their patterns.
    shift
        As the plan's part.
    """

    layout: MirroredLayout
    runs: Runs
    shift: Array

    def begin(self, plan: PlanArrays) -> None:
        """Write what no fill writes. Once, before the first fill.

        Raises
        ------
        InvalidSpecError
            The arrays are not those of the layout's `parts`, or are read-only.
        """
        layout, runs, shift = self.layout, self.runs, self.shift
        found = parts_in(plan, layout.parts, writable=True)
        slot = np.searchsorted(np.unique(abs(shift)), abs(shift))
        for role, array in (
            ("first", runs.first),
            ("pattern", runs.pattern),
            ("starts", runs.starts),
            ("shift", shift),
            ("place", slot * layout.stride + np.minimum(shift, 0)),
        ):
            found[role][:] = array
        counts = (layout.runs, layout.patterns, layout.elements, layout.distances)
        write_head(plan, MIRRORED_FORM, layout.stored, *counts)


def looks_asymmetric(a: CsrArrays) -> str:
    """Say why a matrix is not symmetric, from a sample of its rows; empty if it may be.

    Parameters
    ----------
    a
        The matrix, float32 or float64.
    """
    rows, columns = a.shape
    if rows != columns:
        return f"it is not square ({rows:,} x {columns:,})"
    step = max(1, rows // _SAMPLED_ROWS)
    outcome = _find_asymmetry(a.indptr, a.indices, a.data, step, _SAMPLED_PAIRS, 0, rows)
    return "" if outcome[0] == DONE else _asymmetry(outcome)


def survey_mirrored(a: CsrArrays, storage: Storage = "exact") -> MirroredSurvey | str:
    """Look at a matrix for repeated rows on few diagonals: how a plan would hold it, or why not.

    A few passes of the calling thread, given up soon where few rows repeat. Whether the
    matrix is symmetric is found by the build.

    Parameters
    ----------
    a
        The matrix, float32 or float64, at most 2**32 - 1 rows, columns and entries.
    storage
        Whether values may be rounded, and to what.

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
    runs = runs_of(a)
    if isinstance(runs, str):
        return runs
    if rows != columns:
        return f"it is not square ({rows:,} x {columns:,})"
    if runs.shared:
        return "the rows of a run share their values already"
    shift = np.zeros(runs.elements, np.int64)
    patterns = len(runs.source)
    arguments = (a.indptr, a.indices, a.data, columns, runs.source, runs.starts)
    refuse_fill(_fill_patterns(*arguments, shift, a.data[:0].copy(), 0, patterns), a)
    runs.check_reach(shift, columns)
    begin, end = int(a.indptr[0]), int(a.indptr[-1])
    distances = len(np.unique(abs(shift)))
    if distances * rows > MOST_KEPT * (end - begin):
        return f"{distances:,} diagonals would take more than {MOST_KEPT:.0%} of its entries"
    of_pattern = np.repeat(np.arange(patterns), np.diff(runs.starts))
    ordered = shift[np.lexsort((shift, of_pattern))]
    if ((np.diff(ordered) == 0) & (np.diff(of_pattern) == 0)).any():
        return "a row has a column more than once"
    stored_bytes, rounded = stored_as(a.data[begin:end], storage, fewest=2)
    stored = Stored(rows, columns, end - begin, a.data.itemsize, stored_bytes, rounded)
    layout = MirroredLayout(stored, len(runs.pattern), patterns, len(shift), distances)
    return MirroredSurvey(layout, runs, shift)


def mirrored_work(plan: PlanArrays) -> Array:
    """Entries before each run, int64, shape (runs + 1,): what to cut parts by."""
    found = parts_in(plan, MirroredLayout.read(plan).parts)
    entries = np.diff(found["first"].astype(np.int64)) * np.diff(found["starts"])[found["pattern"]]
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(entries)))


class _OfMatrix(BoundKernel):
    """A step of the build, which reads the matrix."""

    loop: CompiledLoop
    fills: bool

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = MirroredLayout.read(plan)
        a = source_in(operands, layout.stored)
        found = parts_in(plan, layout.parts, writable=self.fills)
        roles = ("first", "pattern", "starts", "shift", "place", "values")
        arguments = (a.indptr, a.indices, a.data, *(found[role] for role in roles))
        return Bound(self.loop, arguments, layout.units, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Do it for the runs ``[row_start, row_stop)``.

        Raises
        ------
        InvalidSpecError
            The matrix is not what was looked at, or is not symmetric.
        """
        outcome = self.call(operands, row_start, row_stop)
        if outcome[0] == UNEQUAL:
            raise InvalidSpecError(
                "the matrix is not symmetric", had=_asymmetry(outcome), where="A"
            )
        plan = plan_in(operands)
        layout = MirroredLayout.read(plan)
        a = source_in(operands, layout.stored)
        refuse_fill(outcome, a)
        entries, rows = _share(plan, row_start, row_stop)
        return build_work(layout.stored, entries // 2, rows, a.indices.itemsize)


class FillMirrored(_OfMatrix):
    """Build, first step. Operands: ``A``, and ``plan``, begun and writable. Rows are runs.

    Ranges may be filled side by side and in any order.
    """

    name = "fill_mirrored"
    loop = _fill_diagonals
    fills = True


class CheckMirrored(_OfMatrix):
    """Build, second step, once all is filled: refuses a matrix that is not symmetric.

    Operands: ``A`` and ``plan``. Rows are runs. Values are compared as the plan keeps them.
    """

    name = "check_mirrored"
    loop = _compare_diagonals
    fills = False


class MatvecMirrored(BoundKernel):
    """The product. Operands: ``plan``, ``x`` and ``out``. Rows are runs.

    float32 and float64, x too; ``out`` has the dtype that NumPy gives the product, and
    sums are made in it.
    """

    name = "matvec_mirrored"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        layout = MirroredLayout.read(plan_in(operands))
        found, x, out = product_operands(operands, layout.parts, layout.stored)
        roles = ("first", "pattern", "starts", "shift", "place", "values")
        arguments = (*(found[role] for role in roles), x, out)
        return Bound(_matvec_mirrored, arguments, layout.runs)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the runs ``[row_start, row_stop)`` of ``out``."""
        self.call(operands, row_start, row_stop)
        plan = plan_in(operands)
        layout = MirroredLayout.read(plan)
        nnz, rows = _share(plan, row_start, row_stop)
        x = source_vector(operands, "x", layout.stored.columns)
        out = target_vector(operands, layout.stored, x)
        kept = min(rows * layout.distances, nnz) * layout.stored.stored_bytes
        runs = row_stop - row_start
        return Work(rows, nnz, kept + runs * 8 + rows * out.itemsize + min(nnz, rows) * x.itemsize)


def _share(plan: PlanArrays, run_start: int, run_stop: int) -> tuple[int, int]:
    """Entries and rows of some runs."""
    found = parts_in(plan, MirroredLayout.read(plan).parts)
    first = found["first"][run_start : run_stop + 1].astype(np.int64)
    widths = np.diff(found["starts"])[found["pattern"][run_start:run_stop]]
    return int((np.diff(first) * widths).sum()), int(first[-1] - first[0])


def _asymmetry(outcome: tuple[int, int, int]) -> str:
    row, column = int(outcome[1]), int(outcome[2])
    return f"the entry in row {row:,} and column {column:,} is not the one it mirrors"
