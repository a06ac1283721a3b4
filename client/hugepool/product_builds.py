"""The forms that a plan of a matrix could have, and how each is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hugepool import forms, partition
from hugepool.array import SharedArray
from hugepool.builds import Build, BuildSession, predict_ns
from hugepool.kernels import available, last_level_cache_bytes
from hugepool.kernels.base import CsrArrays, PlanArrays
from hugepool.kernels.binned_product import build_entries
from hugepool.kernels.binned_product_layout import ProductLayout
from hugepool.kernels.csr import is_scattered
from hugepool.kernels.mirrored import looks_asymmetric, mirrored_work, survey_mirrored
from hugepool.kernels.narrow import survey_narrow
from hugepool.kernels.ordered import ordered_work, survey_ordered
from hugepool.kernels.plan_parts import MOST_ENTRIES, REAL_CODES, Part, Stored
from hugepool.kernels.repeated import repeated_work, survey_repeated
from hugepool.kernels.rounding import Storage, stored_as
from hugepool.kernels.samples import hot_share, widest_group
from hugepool.matrix import SharedMatrix
from hugepool.phases import Phase
from hugepool.plan_record import PlanSegment
from hugepool.trials import Built, Proposal
from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import Member

_BUILD_NS = {
    forms.BINNED: 35,
    forms.ORDERED: 28,
    forms.REPEATED: 4,
    forms.MIRRORED: 8,
    forms.NARROW: 8,
}
"""Processor time of a build per entry, as it was seen on pages of 2 MiB."""
_FIRST_LEVEL_BYTES = 1 << 16
_SMALL = 16
_SMALL_SHARE = 16
"""Bins do not help where x is at most one in so many parts of the last-level cache."""
_HOT_COLUMNS = 1 << 15
_HOT_SHARE = 0.25
"""Columns that fit a second-level cache, and the share of entries that makes them hot."""


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
        Whether values may be rounded, and to what.
    workers
        That build and will run.
    """
    a, refusal, propose = _proposing(session, record, matrix, x, workers, "matvec")
    direct = Proposal(forms.DIRECT, lambda: Built(forms.DIRECT, None, (), 0))
    if refusal:
        return [direct] + [propose(form, None, "", 0, 0) for form in _BUILD_NS]
    scattered = is_scattered(a, x.dtype.itemsize)
    small = _small_beside_cache("x", x.nbytes)
    stored = _stored(a, storage)
    binned = ProductLayout.fitting(stored, np.dtype(out_dtype).itemsize).likely
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
            lambda build: _bins_of_product(build, matrix, a, out_dtype, stored),
            small or _too_few(binned),
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
            forms.MIRRORED,
            lambda build: _half_of_runs(build, matrix, a, storage),
            ("x is reached in no order" if scattered else "") or looks_asymmetric(a),
            a.nnz * stored.stored_bytes // 2 + vectors,
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


def rmatvec_forms(
    session: BuildSession,
    record: PlanSegment,
    matrix: SharedMatrix,
    x: SharedArray,
    out_dtype: str,
    storage: Storage,
    workers: int,
) -> list[Proposal]:
    """What a planned product with the transpose could be, the direct form first.

    Parameters
    ----------
    session, record, matrix, x, out_dtype, storage, workers
        As for :func:`matvec_forms`.
    """
    a, refusal, propose = _proposing(session, record, matrix, x, workers, "rmatvec")
    direct = Proposal(forms.DIRECT, lambda: Built(forms.DIRECT, None, (), 0))
    if refusal:
        return [direct, propose(forms.BINNED, None, "", 0, 0)]
    item_bytes = np.dtype(out_dtype).itemsize
    stored = _stored(a, storage)
    binned = ProductLayout.fitting(stored, item_bytes, transposed=True).likely
    return [
        direct,
        propose(
            forms.BINNED,
            lambda build: _bins_of_product(build, matrix, a, out_dtype, stored, transposed=True),
            _small_beside_cache("the result", a.shape[1] * item_bytes) or _too_few(binned),
            binned.moved_nbytes,
            binned.nbytes + binned.bins_nbytes + 4 * binned.counts,
        ),
    ]


def _proposing(
    session: BuildSession,
    record: PlanSegment,
    matrix: SharedMatrix,
    x: SharedArray,
    workers: int,
    operation: str,
) -> tuple[CsrArrays, str, Callable[[str, Any, str, int, int], Proposal]]:
    """The matrix, why nothing can be built for it, and what makes proposals."""
    a = CsrArrays(matrix.indptr, matrix.indices, matrix.data, (matrix.shape[0], matrix.shape[1]))
    refusal = ""
    if "numba" not in available(operation):
        refusal = "it needs numba"
    elif a.data.dtype.str not in REAL_CODES or x.spec.dtype not in REAL_CODES:
        refusal = f"it takes float32 and float64, not {a.data.dtype} and {x.dtype}"
    elif max(*a.shape, a.nnz) > MOST_ENTRIES:
        refusal = f"it takes at most {MOST_ENTRIES:,} entries"

    def propose(form: str, build: Any, unwise: str, moved: int, most_nbytes: int) -> Proposal:
        return Proposal(
            form,
            lambda: build(Build(session, record, form, workers)),
            refusal,
            unwise,
            0 if refusal or unwise else predict_ns(moved, x.array, workers),
            _BUILD_NS[form] * a.nnz // workers,
            most_nbytes,
        )

    return a, refusal, propose


def _small_beside_cache(what: str, nbytes: int) -> str:
    if _SMALL_SHARE * nbytes > last_level_cache_bytes():
        return ""
    return f"{what} ({nbytes / 1e6:.1f} MB) is small beside the last-level cache"


def _too_few(layout: ProductLayout) -> str:
    if not layout.sparse:
        return ""
    return f"{layout.stored.nnz:,} entries are too few for {layout.cells:,} pairs of blocks"


def _stored(a: CsrArrays, storage: Storage) -> Stored:
    rows, columns = a.shape
    stored_bytes, rounded = stored_as(a.data, storage)
    return Stored(rows, columns, a.nnz, a.data.itemsize, stored_bytes, rounded)


def _bins_of_product(
    build: Build,
    matrix: SharedMatrix,
    a: CsrArrays,
    out_dtype: str,
    stored: Stored,
    *,
    transposed: bool = False,
) -> Built:
    item_bytes = np.dtype(out_dtype).itemsize
    layout = ProductLayout.fitting(stored, item_bytes, transposed=transposed)
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
        with build.or_nothing(payload):
            with build.timed():
                layout.begin(PlanArrays(payload.arrays), counts.array)
            filling = {"A": matrix, "plan": payload}
            build.run(Phase("place_products", filling, rows, frozenset({"plan"})))
            return build.done(
                payload, Member("bins", out_dtype, layout.values), stored=layout.stored
            )


def _order_of_columns(
    build: Build, matrix: SharedMatrix, a: CsrArrays, x: SharedArray, storage: Storage
) -> Built:
    survey_ordered(_small_like(a), storage)  # so that no time of a build holds a compilation
    with build.timed():
        layout, uses = survey_ordered(a, storage)
    payload = build.payload(matrix.shape, matrix.spec.dtype, layout.parts)
    with build.or_nothing(payload):
        with build.session._spare("renumbered", (a.shape[1],), "<u4") as renumbered:
            with build.timed():
                layout.begin(a, uses, PlanArrays(payload.arrays), renumbered.array)
            del uses
            filling = {"A": matrix, "renumbered": renumbered, "plan": payload}
            rows = partition.by_nnz(ordered_work(PlanArrays(payload.arrays)), build.workers)
            build.run(Phase("fill_ordered", filling, rows, frozenset({"plan"})))
        return build.done(
            payload, Member("permuted", x.spec.dtype, layout.used), stored=layout.stored
        )


def _runs_of_rows(build: Build, matrix: SharedMatrix, a: CsrArrays, storage: Storage) -> Built:
    rehearsal = survey_repeated(_small_like(a), storage)
    if not isinstance(rehearsal, str):
        rehearsal.begin(_small_like(a), _blank(rehearsal.layout.parts))
    with build.timed():
        survey = survey_repeated(a, storage)
    if isinstance(survey, str):
        raise InvalidSpecError("rows do not repeat", had=survey)
    payload = build.payload(matrix.shape, matrix.spec.dtype, survey.layout.parts)
    with build.or_nothing(payload):
        with build.timed():
            survey.begin(a, PlanArrays(payload.arrays))
        if survey.layout.fill_units:
            rows = partition.by_nnz(repeated_work(PlanArrays(payload.arrays)), build.workers)
            filling = {"A": matrix, "plan": payload}
            build.run(Phase("fill_repeated", filling, rows, frozenset({"plan"})))
        return build.done(payload, stored=survey.layout.stored)


def _half_of_runs(build: Build, matrix: SharedMatrix, a: CsrArrays, storage: Storage) -> Built:
    survey_mirrored(_small_like(a), storage)
    with build.timed():
        survey = survey_mirrored(a, storage)
    if isinstance(survey, str):
        raise InvalidSpecError("half of it cannot be kept", had=survey)
    payload = build.payload(matrix.shape, matrix.spec.dtype, survey.layout.parts)
    with build.or_nothing(payload):
        with build.timed():
            survey.begin(PlanArrays(payload.arrays))
        rows = partition.by_nnz(mirrored_work(PlanArrays(payload.arrays)), build.workers)
        operands = {"A": matrix, "plan": payload}
        build.run(Phase("fill_mirrored", operands, rows, frozenset({"plan"})))
        build.run(Phase("check_mirrored", operands, rows, frozenset()))
        return build.done(payload, stored=survey.layout.stored)


def _narrow_copy(build: Build, matrix: SharedMatrix, a: CsrArrays, storage: Storage) -> Built:
    survey_narrow(_small_like(a), storage)
    with build.timed():
        layout = survey_narrow(a, storage)
    if isinstance(layout, str):
        raise InvalidSpecError("columns lie too far apart", had=layout)
    payload = build.payload(matrix.shape, matrix.spec.dtype, layout.parts)
    with build.or_nothing(payload):
        with build.timed():
            layout.begin(PlanArrays(payload.arrays))
        filling = {"A": matrix, "plan": payload}
        rows = partition.by_rows(layout.units, build.workers)
        build.run(Phase("fill_narrow", filling, rows, frozenset({"plan"})))
        return build.done(payload, stored=layout.stored)


def _small_like(a: CsrArrays) -> CsrArrays:
    """A small identity in the dtypes of a matrix, to rehearse with."""
    indptr, indices = (np.arange(n, dtype=a.indices.dtype) for n in (_SMALL + 1, _SMALL))
    return CsrArrays(indptr, indices, np.ones(_SMALL, a.data.dtype), (_SMALL, _SMALL))


def _blank(parts: Sequence[Part]) -> PlanArrays:
    return PlanArrays({role: np.zeros(count, code) for role, code, count in parts})
