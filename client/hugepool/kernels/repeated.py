"""``matvec_repeated``: ``out = A @ x`` where a row repeats the one before, shifted by one column.

Stencils on regular grids and other banded matrices consist of runs of such rows. The
distances between column and row, the pattern of a run, are kept once for all runs that
have the same: no entry needs a column of its own. Rows of a run are then computed side
by side, from neighbouring elements of x, and each sum is made in the order of its row's
entries: the result equals SciPy's bit for bit, unless values were rounded
(:func:`~hugepool.kernels.rounding.stored_as`). Only the structure counts; the matrix need
not come from a grid.

Where also the values of a run's rows are the same, as in a stencil with constant
coefficients, they are kept with the pattern, and hardly anything is left of the matrix
to read. A matrix keeps all its values, or none but those of the patterns.

A plan has the parts ``head`` (its own words, from the 7th: runs, patterns, elements of all
patterns, 1 if values are shared), ``first`` (row that each run begins with, and the number
of rows), ``pattern`` (of each run), ``place`` (where the run's values begin), ``starts``
(where each pattern begins), ``shift`` (column less row) and ``values``. Kernels count runs.
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
from hugepool.kernels.csr import refuse_failure
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
    refuse_changed,
    refuse_fill,
    source_in,
    source_vector,
    target_vector,
    write_head,
)
from hugepool.kernels.rounding import Storage, stored_as

REPEATED_FORM = 303
"""First word of the head of such a plan."""
FEWEST_ROWS = 4
"""A plan is possible where runs have so many rows on average."""
LONGEST_RUN = 4096
"""Rows; so that runs can be dealt out to workers."""
_SPARE_RUNS = 64

_LOOPS = "hugepool.kernels.repeated_loops"
_find_runs = CompiledLoop(_LOOPS, "find_runs", outputs=("first",))
_digest_runs = CompiledLoop(_LOOPS, "digest_runs", outputs=("digests",))
_compare_runs = CompiledLoop(_LOOPS, "compare_runs")
_fill_patterns = CompiledLoop(_LOOPS, "fill_patterns", outputs=("shift", "values"))
_fill_runs = CompiledLoop(_LOOPS, "fill_runs", outputs=("values",))
_matvec_own = CompiledLoop(_LOOPS, "matvec_own", outputs=("out",))
_matvec_shared = CompiledLoop(_LOOPS, "matvec_shared", outputs=("out",))


@dataclass(frozen=True, slots=True)
class RepeatedLayout:
    """What a plan of this form holds, known before it is filled.

    Parameters
    ----------
    stored
        The matrix.
    runs, patterns
        How many.
    elements
        Of all patterns together.
    shared
        Whether the rows of a pattern share their values.
    """

    stored: Stored
    runs: int
    patterns: int
    elements: int
    shared: bool

    @classmethod
    def read(cls, plan: PlanArrays) -> RepeatedLayout:
        """From the head of a plan.

        Raises
        ------
        InvalidSpecError
            It is of another form.
        """
        stored, own = read_head(plan, REPEATED_FORM)
        return cls(stored, own[0], own[1], own[2], bool(own[3]))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the plan's segment."""
        values = self.elements if self.shared else self.stored.nnz
        return (
            HEAD,
            ("first", "<u4", self.runs + 1),
            ("pattern", "<u4", self.runs),
            ("place", "<i8", self.runs),
            ("starts", "<i8", self.patterns + 1),
            ("shift", "<i8", self.elements),
            ("values", self.stored.stored_code, values),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return nbytes_of(self.parts)

    @property
    def units(self) -> int:
        """What kernels count: runs."""
        return self.runs

    @property
    def fill_units(self) -> int:
        """What there is to fill: the runs, or nothing if values are shared."""
        return 0 if self.shared else self.runs


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of rows, and the patterns of columns that these have; made by :func:`runs_of`.

    Parameters
    ----------
    first, pattern, starts
        As a plan's parts.
    source
        A row of each pattern.
    shared
        Whether the rows of a run have the same values, too.
    """

    first: Array
    pattern: Array
    starts: Array
    source: Array
    shared: bool

    @property
    def elements(self) -> int:
        """Of all patterns together."""
        return int(self.starts[-1])

    @property
    def widths(self) -> Array:
        """Entries of a row of each run."""
        found: Array = np.diff(self.starts)[self.pattern]
        return found

    def check_reach(self, shift: Array, columns: int) -> None:
        """Refuse runs that would read beyond x: the matrix must have changed.

        Raises
        ------
        InvalidSpecError
            With these distances between column and row, one would.
        """
        patterns = len(self.source)
        filled = np.flatnonzero(np.diff(self.starts))
        least = np.zeros(patterns, np.int64)
        most = np.zeros(patterns, np.int64)
        if len(filled):
            least[filled] = np.minimum.reduceat(shift, self.starts[filled])
            most[filled] = np.maximum.reduceat(shift, self.starts[filled])
        used = self.widths > 0
        rows = self.first.astype(np.int64)
        low = (rows[:-1] + least[self.pattern])[used]
        high = (rows[1:] - 1 + most[self.pattern])[used]
        if (low < 0).any() or (high >= columns).any():
            refuse_changed("indices")


@dataclass(frozen=True, slots=True)
class RepeatedSurvey:
    """Runs and patterns of one matrix; made by :func:`survey_repeated`.

    Parameters
    ----------
    layout
        What the plan will hold.
    runs
        And their patterns.
    """

    layout: RepeatedLayout
    runs: Runs

    def begin(self, a: CsrArrays, plan: PlanArrays) -> None:
        """Write what no fill writes; all of it, if values are shared. Once, before the first fill.

        Raises
        ------
        InvalidSpecError
            The arrays are not those of the layout's `parts`, are read-only, or the matrix
            is not the one that was looked at.
        """
        layout, runs = self.layout, self.runs
        a = source_in({"A": a}, layout.stored)
        found = parts_in(plan, layout.parts, writable=True)
        for role, array in (
            ("first", runs.first),
            ("pattern", runs.pattern),
            ("starts", runs.starts),
        ):
            found[role][:] = array
        shift = found["shift"]
        values = found["values"] if layout.shared else found["values"][:0]
        arguments = (a.indptr, a.indices, a.data, a.shape[1], runs.source, runs.starts)
        outcome = _fill_patterns(*arguments, shift, values, 0, layout.patterns)
        refuse_fill(outcome, a)
        if layout.shared:
            found["place"][:] = runs.starts[runs.pattern]
        else:
            entries = np.diff(runs.first.astype(np.int64)) * runs.widths
            found["place"][:] = np.cumsum(entries) - entries
            if entries.sum() != layout.stored.nnz:
                refuse_changed("indptr")
        runs.check_reach(shift, layout.stored.columns)
        write_head(
            plan,
            REPEATED_FORM,
            layout.stored,
            *(layout.runs, layout.patterns, layout.elements, int(layout.shared)),
        )


def survey_repeated(a: CsrArrays, storage: Storage = "exact") -> RepeatedSurvey | str:
    """Look at a matrix for repeated rows: how a plan would hold it, or why none can.

    One or two passes of the calling thread, given up soon where few rows repeat.

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
    begin, end = int(a.indptr[0]), int(a.indptr[-1])
    stored_bytes, rounded = stored_as(a.data[begin:end], storage, fewest=2)
    stored = Stored(rows, columns, end - begin, a.data.itemsize, stored_bytes, rounded)
    counts = (len(runs.pattern), len(runs.source), runs.elements)
    return RepeatedSurvey(RepeatedLayout(stored, *counts, runs.shared), runs)


def runs_of(a: CsrArrays) -> Runs | str:
    """Find runs of rows and their patterns, or why there are too many.

    Parameters
    ----------
    a
        The matrix, as :func:`real_matrix` gives it.

    Raises
    ------
    InvalidMatrixError, IndexOutOfRangeError, InvalidSpecError
        As :func:`survey_repeated`.
    """
    rows, columns = a.shape
    bits = a.data.view(f"u{a.data.itemsize}")
    first = np.empty(rows // FEWEST_ROWS + _SPARE_RUNS, np.uint32)
    # Equal values first: much the better plan where it is possible.
    for compared in (bits, bits[:0]):
        arguments = (a.indptr, a.indices, compared, columns, LONGEST_RUN, first)
        outcome = _find_runs(*arguments, 0, rows)
        refuse_failure(outcome, a)
        runs = int(outcome[1])
        if runs >= 0:
            break
    else:
        return f"{len(first):,} runs of rows with the same columns end before row {outcome[2]:,}"
    first = np.append(first[:runs], np.uint32(rows))
    begin, end = int(a.indptr[0]), int(a.indptr[-1])
    if not 0 <= begin <= end <= a.nnz:
        refuse_changed("indptr")
    digests = np.empty(runs, np.uint64)
    arrays = (a.indptr, a.indices, compared)
    _digest_runs(*arrays, first, digests, 0, runs)
    _, chosen, inverse = np.unique(digests, return_index=True, return_inverse=True)
    pattern, source = inverse.astype(np.uint32), first[chosen]
    if _compare_runs(*arrays, first, pattern, source, 0, runs) >= 0:
        return "two patterns of columns have the same digest"
    starts = np.zeros(len(source) + 1, np.int64)
    lengths = a.indptr[source.astype(np.int64) + 1] - a.indptr[source]
    np.cumsum(lengths, out=starts[1:])
    index_nbytes = (end - begin) * a.indices.itemsize
    if int(starts[-1]) * 8 > index_nbytes // 2 + (_SPARE_RUNS << 10):
        return f"its {len(source):,} patterns take more than half of the space of its columns"
    return Runs(first, pattern, starts, source, len(compared) > 0 or end == begin)


def repeated_work(plan: PlanArrays) -> Array:
    """Entries before each run, int64, shape (runs + 1,): what to cut parts by."""
    layout = RepeatedLayout.read(plan)
    found = parts_in(plan, layout.parts)
    entries = np.diff(found["first"].astype(np.int64)) * np.diff(found["starts"])[found["pattern"]]
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(entries)))


class FillRepeated(BoundKernel):
    """Build. Operands: ``A``, and ``plan``, begun and writable. Rows are runs.

    Ranges may be filled side by side and in any order. Of a plan with shared values
    nothing is left to fill: it has no range but the empty one.
    """

    name = "fill_repeated"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        plan = plan_in(operands)
        layout = RepeatedLayout.read(plan)
        a = source_in(operands, layout.stored)
        found = parts_in(plan, layout.parts, writable=True)
        arguments = (
            *(a.indptr, a.indices, a.data, found["first"], found["pattern"]),
            *(found["starts"], found["shift"], found["place"], found["values"]),
        )
        return Bound(_fill_runs, arguments, layout.fill_units, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Fill the runs ``[row_start, row_stop)``.

        Raises
        ------
        InvalidSpecError
            The matrix is not what was looked at.
        """
        outcome = self.call(operands, row_start, row_stop)
        layout = RepeatedLayout.read(plan_in(operands))
        a = source_in(operands, layout.stored)
        refuse_fill(outcome, a)
        entries, rows = _share(plan_in(operands), layout, row_start, row_stop)
        return build_work(layout.stored, entries, rows, a.indices.itemsize)


class MatvecRepeated(BoundKernel):
    """The product. Operands: ``plan``, ``x`` and ``out``. Rows are runs.

    float32 and float64, x too; ``out`` has the dtype that NumPy gives the product, and
    sums are made in it.
    """

    name = "matvec_repeated"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        layout = RepeatedLayout.read(plan_in(operands))
        found, x, out = product_operands(operands, layout.parts, layout.stored)
        patterns = (found["first"], found["pattern"], found["starts"], found["shift"])
        if layout.shared:
            return Bound(_matvec_shared, (*patterns, found["values"], x, out), layout.runs)
        own = (*patterns, found["place"], found["values"], x, out)
        return Bound(_matvec_own, own, layout.runs)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the runs ``[row_start, row_stop)`` of ``out``."""
        self.call(operands, row_start, row_stop)
        layout = RepeatedLayout.read(plan_in(operands))
        nnz, rows = _share(plan_in(operands), layout, row_start, row_stop)
        x = source_vector(operands, "x", layout.stored.columns)
        out = target_vector(operands, layout.stored, x)
        kept = (0 if layout.shared else nnz) * layout.stored.stored_bytes
        runs = row_stop - row_start
        nbytes = kept + runs * 16 + rows * out.itemsize + min(nnz * x.itemsize, x.nbytes)
        return Work(rows, nnz, nbytes)


def _share(
    plan: PlanArrays, layout: RepeatedLayout, run_start: int, run_stop: int
) -> tuple[int, int]:
    """Entries and rows of some runs."""
    found = parts_in(plan, layout.parts)
    first = found["first"][run_start : run_stop + 1].astype(np.int64)
    widths = np.diff(found["starts"])[found["pattern"][run_start:run_stop]]
    return int((np.diff(first) * widths).sum()), int(first[-1] - first[0])
