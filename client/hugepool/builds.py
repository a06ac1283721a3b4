"""The forms that a plan of an index or a matrix could have, and how each is built.

Building is work for the workers wherever it goes over all entries; what this process does
between two jobs is small. A payload is sealed before it is used.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np

from hugepool import forms, partition
from hugepool.array import SharedArray, SharedObject
from hugepool.kernels import available, last_level_cache_bytes
from hugepool.kernels.base import Array, CsrArrays, PlanArrays, vector
from hugepool.kernels.binned_layout import ITEM_CODES, GatherBlocks, GatherLayout, gather_head
from hugepool.kernels.binned_product import build_entries
from hugepool.kernels.binned_product_layout import ProductLayout
from hugepool.kernels.csr import is_scattered
from hugepool.kernels.gather import INDEX_CODES
from hugepool.kernels.narrow import survey_narrow
from hugepool.kernels.ordered import ordered_work, survey_ordered
from hugepool.kernels.plan_parts import MOST_ENTRIES, REAL_CODES, Part, Stored
from hugepool.kernels.repeated import repeated_work, survey_repeated
from hugepool.kernels.rounding import Storage, stored_as
from hugepool.kernels.samples import copy_ns_per_byte, hot_share, widest_group
from hugepool.matrix import SharedMatrix
from hugepool.phases import Phase, elapsed_ns
from hugepool.plan_record import PlanSegment
from hugepool.timings import JobTimings
from hugepool.trials import Built, Proposal
from hugepool_common.errors import HugepoolError, IndexOutOfRangeError, InvalidSpecError
from hugepool_common.spec import ArraySpec, Member

_CHECK_BLOCK = 1 << 16
_SLOWER_THAN_COPY = 1.5
"""The two phases reach about two thirds of the bandwidth of a plain copy."""
_BUILD_NS = {forms.BINNED: 35, forms.ORDERED: 28, forms.REPEATED: 4, forms.NARROW: 8}
"""Processor time of a build per entry, as it was seen on pages of 2 MiB."""
_FIRST_LEVEL_BYTES = 1 << 16
_SMALL = 16
_SMALL_SHARE = 16
"""Bins do not help where x is at most one in so many parts of the last-level cache."""
_HOT_COLUMNS = 1 << 15
_HOT_SHARE = 0.25
"""Columns that fit a second-level cache, and the share of entries that makes them hot."""


_S = TypeVar("_S", bound=SharedObject)


class BuildSession(Protocol):
    """What a build asks of the pool."""

    def make_payload(self, kind: type[_S], spec: ArraySpec) -> _S:
        """A writable named object."""

    @contextmanager
    def _spare(self, role: str, shape: tuple[int, ...], dtype: str) -> Iterator[SharedArray]:
        """Zeros for as long as this lasts."""

    def run_phases(self, steps: Sequence[Phase]) -> JobTimings:
        """Run phases as jobs."""

    def destroy(self, name: str) -> None:
        """Remove a name."""


class _Build:
    """One build under way: its payload's name, its workers, and the time it has taken."""

    def __init__(self, session: BuildSession, record: PlanSegment, form: str, workers: int) -> None:
        self.session = session
        self.form = form
        self.workers = workers
        self.taken_ns = 0
        self._record = record

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what this process does."""
        began_ns = time.monotonic_ns()
        yield
        self.taken_ns += time.monotonic_ns() - began_ns

    def run(self, *steps: Phase) -> None:
        """Have workers do it, and count their kernels' time: not their compiling."""
        self.taken_ns += elapsed_ns(steps, self.session.run_phases(steps))

    def payload(self, shape: tuple[int, ...], dtype: str, parts: Sequence[Part]) -> PlanSegment:
        """A payload of these parts."""
        members = tuple(Member(*part) for part in parts)
        spec = ArraySpec(self._name, shape, dtype, "plan", members=members, made_of=self._made_of)
        with self.timed():
            return self.session.make_payload(PlanSegment, spec)

    def array(self, shape: tuple[int, ...], dtype: str) -> SharedArray:
        """A payload that is one array."""
        spec = ArraySpec(self._name, shape, dtype, made_of=self._made_of)
        with self.timed():
            return self.session.make_payload(SharedArray, spec)

    def done(self, payload: SharedObject, *scratch: Member) -> Built:
        """Seal it."""
        payload.seal()
        return Built(self.form, payload, scratch, self.taken_ns)

    def abandon(self, payload: SharedObject) -> None:
        """Leave nothing, and do not hide the error under way."""
        with contextlib.suppress(HugepoolError):  # what is in use now goes with the record
            self.session.destroy(payload.name)

    @property
    def _name(self) -> str:
        return f"{self._record.name}.{self.form}"

    @property
    def _made_of(self) -> int:
        return self._record.info.segment.segment_id


# Gathers ----------------------------------------------------------------------


def gather_forms(
    session: BuildSession, record: PlanSegment, index: SharedArray, x: SharedArray, workers: int
) -> list[Proposal]:
    """What a planned gather could be, the direct form first.

    Parameters
    ----------
    session
        Builds.
    record
        Of the plan; payloads go with it.
    index, x
        What is gathered, and from where.
    workers
        That build and will run.
    """
    entries, rows = math.prod(index.shape), x.shape[0]
    build_cost_ns = _BUILD_NS[forms.BINNED] * entries // workers
    refusal, unwise, predicted_ns, most_nbytes = "", "", 0, 0
    if x.dtype.itemsize not in ITEM_CODES:
        refusal = f"elements of {x.dtype.itemsize} bytes cannot be binned"
    elif "numba" not in available("gather"):
        refusal = "bins need numba"
    else:
        blocks = GatherBlocks.fitting(rows, entries, x.dtype.itemsize)
        most_nbytes = blocks.likely_nbytes
        if 4 * x.nbytes <= last_level_cache_bytes():
            unwise = f"x ({x.nbytes / 1e6:.1f} MB) fits a quarter of the last-level cache"
        elif not entries or blocks.sparse:
            unwise = f"{entries:,} indices are too few for {blocks.cells:,} pairs of blocks"
        else:
            moved = blocks.likely_padded * (blocks.offset_bytes + 2 * blocks.item_bytes)
            moved += (rows + entries) * blocks.item_bytes
            predicted_ns = _predicted_ns(moved, x.array, workers)
    return [
        Proposal(
            forms.DIRECT,
            lambda: _index(_Build(session, record, forms.DIRECT, workers), index, rows),
        ),
        Proposal(
            forms.BINNED,
            lambda: _bins_of_gather(_Build(session, record, forms.BINNED, workers), index, x),
            refusal,
            unwise,
            predicted_ns,
            build_cost_ns,
            most_nbytes,
        ),
    ]


def _index(build: _Build, index: SharedArray, rows: int) -> Built:
    """A checked copy, uint32 if `rows` allows it, else uint64."""
    kept = build.array(index.shape, "<u4" if rows <= 1 << 32 else "<u8")
    try:
        with build.timed():
            flat = vector({"idx": index.array.reshape(-1)}, "idx", INDEX_CODES)
            target = kept.array.reshape(-1)
            for start in range(0, len(flat), _CHECK_BLOCK):
                # Copied before it is checked: another process may write to it meanwhile.
                block = flat[start : start + _CHECK_BLOCK].copy()
                if int(block.min()) < 0 or int(block.max()) >= rows:
                    _refuse_index(block, start, rows)
                target[start : start + len(block)] = block
            del target
        return build.done(kept)
    except BaseException:
        build.abandon(kept)
        raise


def _refuse_index(block: Array, start: int, rows: int) -> None:
    first = int(((block < 0) | (block >= rows)).argmax())
    value, position = int(block[first]), start + first
    raise IndexOutOfRangeError(
        f"index {value} at position {position} is out of range",
        needed=f"0 <= index < {rows}",
        had=str(value),
        where="idx",
        position=position,
    )


def _bins_of_gather(build: _Build, index: SharedArray, x: SharedArray) -> Built:
    entries = math.prod(index.shape)
    blocks = GatherBlocks.fitting(x.shape[0], entries, x.dtype.itemsize)
    rows = partition.by_rows(blocks.targets, build.workers)
    session = build.session
    head_words = gather_head(blocks)
    with (
        session._spare("head", head_words.shape, "<i8") as head,
        session._spare("counts", (blocks.cells,), "<u4") as counts,
    ):
        head.array[:] = head_words
        counting = {"idx": index, "head": head, "counts": counts}
        build.run(Phase("count_cells", counting, rows, frozenset({"counts"})))
        layout = GatherLayout.counted(blocks, counts.array)
        payload = build.payload(index.shape, x.spec.dtype, layout.parts)
        try:
            with build.timed():
                layout.begin(PlanArrays(payload.arrays), counts.array)
            filling = {"idx": index, "plan": payload}
            build.run(Phase("fill_cells", filling, rows, frozenset({"plan"})))
            return build.done(payload, Member("bins", x.spec.dtype, layout.padded))
        except BaseException:
            build.abandon(payload)
            raise


# Products ---------------------------------------------------------------------


def matvec_forms(
    session: BuildSession,
    record: PlanSegment,
    matrix: SharedMatrix,
    x: SharedArray,
    out_dtype: str,
    storage: Storage,
    workers: int,
) -> list[Proposal]:
    """What a planned product could be, the direct form first.

    Parameters
    ----------
    session
        Builds.
    record
        Of the plan; payloads go with it.
    matrix
        Sealed.
    x
        A vector like those that will be multiplied.
    out_dtype
        Of the result.
    storage
        Whether values may be rounded to float32.
    workers
        That build and will run.
    """
    a = CsrArrays(matrix.indptr, matrix.indices, matrix.data, (matrix.shape[0], matrix.shape[1]))
    refusal = ""
    if "numba" not in available("matvec"):
        refusal = "it needs numba"
    elif a.data.dtype.str not in REAL_CODES or x.spec.dtype not in REAL_CODES:
        refusal = f"it takes float32 and float64, not {a.data.dtype} and {x.dtype}"
    elif max(*a.shape, a.nnz) > MOST_ENTRIES:
        refusal = f"it takes at most {MOST_ENTRIES:,} entries"

    def propose(form: str, build: Any, unwise: str, moved: int, most_nbytes: int) -> Proposal:
        return Proposal(
            form,
            lambda: build(_Build(session, record, form, workers)),
            refusal,
            unwise,
            0 if refusal or unwise else _predicted_ns(moved, x.array, workers),
            _BUILD_NS[form] * a.nnz // workers,
            most_nbytes,
        )

    direct = Proposal(forms.DIRECT, lambda: Built(forms.DIRECT, None, (), 0))
    if refusal:
        return [direct] + [propose(form, None, "", 0, 0) for form in _BUILD_NS]
    scattered = is_scattered(a, x.dtype.itemsize)
    small = ""
    if _SMALL_SHARE * x.nbytes <= last_level_cache_bytes():
        small = f"x ({x.nbytes / 1e6:.1f} MB) is small beside the last-level cache"
    stored = _stored(a, storage)
    binned = ProductLayout.fitting(stored, np.dtype(out_dtype).itemsize).likely
    few = f"{a.nnz:,} entries are too few for {binned.cells:,} pairs of blocks"
    hot = hot_share(a, _HOT_COLUMNS)
    cool = f"the most used {_HOT_COLUMNS:,} columns have {hot:.0%} of the entries"
    if x.nbytes <= _FIRST_LEVEL_BYTES:
        cool = "x fits the first-level cache"
    elif hot >= _HOT_SHARE:
        cool = ""
    entry_bytes = 4 + stored.stored_bytes
    vectors = x.nbytes + a.shape[0] * np.dtype(out_dtype).itemsize
    width = widest_group(a)
    wide = f"4 neighbouring rows reach over {width:,} columns" if width > 1 << 16 else ""
    return [
        direct,
        propose(
            forms.BINNED,
            lambda build: _bins_of_product(build, matrix, a, x, out_dtype, stored),
            small or (few if binned.sparse else ""),
            binned.moved_nbytes,
            binned.nbytes + binned.bins_nbytes + 4 * binned.counts,
        ),
        propose(
            forms.ORDERED,
            lambda build: _order_of_columns(build, matrix, a, x, storage),
            cool,
            a.nnz * entry_bytes + 3 * vectors,
            a.nnz * entry_bytes + 40 * a.shape[0] + 34 * a.shape[1],
        ),
        propose(
            forms.REPEATED,
            lambda build: _runs_of_rows(build, matrix, a, storage),
            "x is reached in no order" if scattered else "",
            vectors,
            a.nnz * stored.stored_bytes + 24 * a.shape[0],
        ),
        propose(
            forms.NARROW,
            lambda build: _narrow_copy(build, matrix, a, storage),
            wide or ("x is reached in no order" if scattered else ""),
            a.nnz * (entry_bytes - 2) + vectors,
            a.nnz * (entry_bytes - 2) + 5 * a.shape[0],
        ),
    ]


def _stored(a: CsrArrays, storage: Storage) -> Stored:
    rows, columns = a.shape
    stored_bytes, rounded = stored_as(a.data, storage)
    return Stored(rows, columns, a.nnz, a.data.itemsize, stored_bytes, rounded)


def _bins_of_product(
    build: _Build,
    matrix: SharedMatrix,
    a: CsrArrays,
    x: SharedArray,
    out_dtype: str,
    stored: Stored,
) -> Built:
    layout = ProductLayout.fitting(stored, np.dtype(out_dtype).itemsize)
    rows = partition.by_nnz(build_entries(layout, a), build.workers)
    session = build.session
    with (
        session._spare("head", layout.head().shape, "<i8") as head,
        session._spare("counts", (layout.counts,), "<u4") as counts,
    ):
        head.array[:] = layout.head()
        counting = {"A": matrix, "head": head, "counts": counts}
        build.run(Phase("count_products", counting, rows, frozenset({"counts"})))
        with build.timed():
            layout = layout.counted(counts.array)
        payload = build.payload(matrix.shape, matrix.spec.dtype, layout.parts)
        try:
            with build.timed():
                layout.begin(PlanArrays(payload.arrays), counts.array)
            filling = {"A": matrix, "plan": payload}
            build.run(Phase("place_products", filling, rows, frozenset({"plan"})))
            return build.done(payload, Member("bins", out_dtype, layout.values))
        except BaseException:
            build.abandon(payload)
            raise


def _order_of_columns(
    build: _Build, matrix: SharedMatrix, a: CsrArrays, x: SharedArray, storage: Storage
) -> Built:
    survey_ordered(_small_like(a), storage)  # so that no time of a build holds a compilation
    with build.timed():
        layout, uses = survey_ordered(a, storage)
    payload = build.payload(matrix.shape, matrix.spec.dtype, layout.parts)
    try:
        with build.session._spare("renumbered", (a.shape[1],), "<u4") as renumbered:
            with build.timed():
                layout.begin(a, uses, PlanArrays(payload.arrays), renumbered.array)
            del uses
            filling = {"A": matrix, "renumbered": renumbered, "plan": payload}
            rows = partition.by_nnz(ordered_work(PlanArrays(payload.arrays)), build.workers)
            build.run(Phase("fill_ordered", filling, rows, frozenset({"plan"})))
        return build.done(payload, Member("permuted", x.spec.dtype, layout.used))
    except BaseException:
        build.abandon(payload)
        raise


def _runs_of_rows(build: _Build, matrix: SharedMatrix, a: CsrArrays, storage: Storage) -> Built:
    rehearsal = survey_repeated(_small_like(a), storage)
    if not isinstance(rehearsal, str):
        rehearsal.begin(_small_like(a), _blank(rehearsal.layout.parts))
    with build.timed():
        survey = survey_repeated(a, storage)
    if isinstance(survey, str):
        raise InvalidSpecError("rows do not repeat", had=survey)
    payload = build.payload(matrix.shape, matrix.spec.dtype, survey.layout.parts)
    try:
        with build.timed():
            survey.begin(a, PlanArrays(payload.arrays))
        if survey.layout.fill_units:
            rows = partition.by_nnz(repeated_work(PlanArrays(payload.arrays)), build.workers)
            filling = {"A": matrix, "plan": payload}
            build.run(Phase("fill_repeated", filling, rows, frozenset({"plan"})))
        return build.done(payload)
    except BaseException:
        build.abandon(payload)
        raise


def _narrow_copy(build: _Build, matrix: SharedMatrix, a: CsrArrays, storage: Storage) -> Built:
    survey_narrow(_small_like(a), storage)
    with build.timed():
        layout = survey_narrow(a, storage)
    if isinstance(layout, str):
        raise InvalidSpecError("columns lie too far apart", had=layout)
    payload = build.payload(matrix.shape, matrix.spec.dtype, layout.parts)
    try:
        with build.timed():
            layout.begin(PlanArrays(payload.arrays))
        filling = {"A": matrix, "plan": payload}
        rows = partition.by_rows(layout.units, build.workers)
        build.run(Phase("fill_narrow", filling, rows, frozenset({"plan"})))
        return build.done(payload)
    except BaseException:
        build.abandon(payload)
        raise


def _small_like(a: CsrArrays) -> CsrArrays:
    """A small identity in the dtypes of a matrix, to rehearse with."""
    indptr, indices = (np.arange(n, dtype=a.indices.dtype) for n in (_SMALL + 1, _SMALL))
    return CsrArrays(indptr, indices, np.ones(_SMALL, a.data.dtype), (_SMALL, _SMALL))


def _blank(parts: Sequence[Part]) -> PlanArrays:
    return PlanArrays({role: np.zeros(count, code) for role, code, count in parts})


def _predicted_ns(nbytes: int, x: Array, workers: int) -> int:
    """Of a run that moves so many bytes; on several workers at best, so that none is missed."""
    return int(nbytes * copy_ns_per_byte(x) * _SLOWER_THAN_COPY / workers)
