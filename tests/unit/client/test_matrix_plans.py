"""Plans of a matrix: what they hold, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hugepool.bench.matrices import stencil
from hugepool.kernels import mirrored
from hugepool.kernels.base import CsrArrays, PlanArrays
from hugepool.kernels.mirrored import (
    MatvecMirrored,
    MirroredLayout,
    looks_asymmetric,
    mirrored_work,
    survey_mirrored,
)
from hugepool.kernels.narrow import (
    FillNarrow,
    MatvecNarrow,
    NarrowLayout,
    narrow_work,
    survey_narrow,
)
from hugepool.kernels.ordered import (
    FillOrdered,
    MatvecOrdered,
    OrderedLayout,
    OrderX,
    ordered_work,
    survey_ordered,
)
from hugepool.kernels.plan_parts import Stored
from hugepool.kernels.repeated import (
    MatvecRepeated,
    RepeatedLayout,
    repeated_work,
    survey_repeated,
)
from hugepool.kernels.rounding import stored_as
from hugepool_common.errors import IndexOutOfRangeError, InvalidMatrixError, InvalidSpecError
from support.extras import need
from support.matrix_plans import (
    Array,
    build_mirrored,
    build_narrow,
    build_ordered,
    build_repeated,
    memory_for,
    run_mirrored,
    run_ordered,
    run_repeated,
    scipy_product,
)


@pytest.fixture(autouse=True, scope="module")
def numba() -> None:
    need("numba")


def _stencil(edge: int = 20) -> CsrArrays:
    found = stencil(edge)
    return CsrArrays(found.indptr, found.indices, found.data, found.shape)


def _varying(a: CsrArrays) -> CsrArrays:
    data = np.random.default_rng(0).random(a.nnz)
    return CsrArrays(a.indptr, a.indices, data, a.shape)


def _scattered(rows: int, columns: int) -> CsrArrays:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, columns, 4 * rows)
    return CsrArrays(np.arange(0, 4 * rows + 1, 4), indices, rng.random(4 * rows), (rows, columns))


def _nbytes(a: CsrArrays) -> int:
    return a.indptr.nbytes + a.indices.nbytes + a.data.nbytes


def test_a_stencil_of_constants_keeps_hardly_more_than_its_patterns() -> None:
    a = _stencil()
    plan = build_repeated(a)
    assert plan is not None
    layout = RepeatedLayout.read(plan)
    assert layout.shared and layout.patterns == 27 and layout.fill_units == 0
    assert layout.nbytes < _nbytes(a) // 50


def test_a_stencil_with_values_of_its_own_keeps_no_columns() -> None:
    need("scipy")
    a = _varying(_stencil())
    plan = build_repeated(a)
    assert plan is not None
    layout = RepeatedLayout.read(plan)
    assert not layout.shared and layout.nbytes < 0.75 * _nbytes(a)
    x, out = np.random.default_rng(1).random(a.shape[1]), np.empty(a.shape[0])
    run_repeated(plan, x, out)
    assert (out == scipy_product(a, x)).all()


def _symmetric(edge: int = 20) -> CsrArrays:
    """The stencil with a value of its own for each pair of neighbours."""
    a = _stencil(edge)
    row = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    pair = np.minimum(row, a.indices) * a.shape[0] + np.maximum(row, a.indices)
    return CsrArrays(a.indptr, a.indices, np.sqrt(pair + 2.0), a.shape)


def test_half_of_a_symmetric_stencil_is_kept() -> None:
    need("scipy")
    a = _symmetric()
    plan = build_mirrored(a)
    assert plan is not None
    layout = MirroredLayout.read(plan)
    assert layout.distances == 14 and layout.nbytes < 0.42 * _nbytes(a)
    x, out = np.random.default_rng(1).random(a.shape[1]), np.empty(a.shape[0])
    run_mirrored(plan, x, out)
    assert (out == scipy_product(a, x)).all()


def test_diagonals_do_not_begin_at_one_place_of_a_page() -> None:
    for rows in (1, 8, 500, 512, 1 << 20):
        for stored_bytes in (2, 4, 8):
            stored = replace(_stored_of(_symmetric(4)), rows=rows, stored_bytes=stored_bytes)
            layout = MirroredLayout(stored, 1, 1, 27, 14)
            assert layout.stride >= rows and layout.stride * stored_bytes % 64 == 0
            assert len({slot * layout.stride * stored_bytes % 4096 for slot in range(14)}) == 14


def _stored_of(a: CsrArrays) -> Stored:
    return Stored(*a.shape, a.nnz, 8, 8, False)


def test_a_sample_of_long_rows_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    full = np.arange(40_000.0)
    a = CsrArrays(np.arange(0, 40_001, 200), np.tile(np.arange(200), 200), full, (200, 200))
    assert looks_asymmetric(a) != ""
    a.data[:] = 1
    a.data[-2] = 2
    assert looks_asymmetric(a) != ""
    monkeypatch.setattr(mirrored, "_SAMPLED_PAIRS", 10_000)
    assert looks_asymmetric(a) == ""


def test_what_cannot_be_halved_says_why() -> None:
    a = _symmetric(6)
    near = _varying(_stencil(6))
    assert looks_asymmetric(a) == "" and "mirrors" in looks_asymmetric(near)
    with pytest.raises(InvalidSpecError, match="not symmetric"):
        build_mirrored(near)
    wide = CsrArrays(a.indptr[:-1], a.indices, a.data, (a.shape[0] - 1, a.shape[1]))
    assert "square" in looks_asymmetric(wide)
    for matrix, reason in (
        (wide, "square"),
        (_stencil(6), "share their values"),
        (_scattered(5000, 5000), "runs"),
        # A diagonal: as many places as entries.
        (CsrArrays(np.arange(901), np.arange(900), np.arange(900.0), (900, 900)), "diagonals"),
        # Each row has its column twice.
        (
            CsrArrays(
                np.arange(0, 1801, 2), np.repeat(np.arange(900), 2), np.arange(1800.0), (900, 900)
            ),
            "more than once",
        ),
    ):
        refusal = survey_mirrored(matrix)
        assert isinstance(refusal, str) and reason in refusal


def test_a_long_run_is_cut_so_that_workers_can_share_it() -> None:
    rows = 10_000
    indptr = np.arange(rows + 1)
    a = CsrArrays(indptr, np.arange(rows), np.ones(rows), (rows, rows))
    survey = survey_repeated(a)
    assert not isinstance(survey, str)
    assert survey.layout.runs == 3 and survey.layout.patterns == 1


def test_narrow_values_and_columns_take_half_the_space() -> None:
    a = _stencil()
    layout = survey_narrow(a)
    assert not isinstance(layout, str)
    assert layout.stored.stored_bytes == 4 and not layout.stored.rounded
    assert layout.nbytes < 0.55 * _nbytes(a)
    varying = survey_narrow(_varying(a))
    assert not isinstance(varying, str) and varying.stored.stored_bytes == 8
    compact = survey_narrow(_varying(a), "compact")
    assert not isinstance(compact, str)
    assert compact.stored.stored_bytes == 4 and compact.stored.rounded


def test_rows_that_reach_too_far_cannot_be_narrow() -> None:
    near = CsrArrays(np.array([0, 2]), np.array([5, 65540]), np.ones(2), (1, 70_000))
    far = CsrArrays(np.array([0, 2]), np.array([5, 65541]), np.ones(2), (1, 70_000))
    assert isinstance(survey_narrow(near), NarrowLayout)
    refusal = survey_narrow(far)
    assert isinstance(refusal, str) and "65,537" in refusal


def test_scattered_rows_do_not_repeat() -> None:
    refusal = survey_repeated(_scattered(5000, 300))
    assert isinstance(refusal, str) and "runs" in refusal


def test_columns_without_entries_are_left_out_of_the_order() -> None:
    a = CsrArrays(np.array([0, 3]), np.array([9, 4, 9]), np.ones(3), (1, 1000))
    plan = build_ordered(a)
    assert OrderedLayout.read(plan).used == 2
    assert plan.arrays["order"].tolist() == [9, 4]


def test_a_product_that_asks_for_x_ahead_equals_scipys() -> None:
    need("scipy")
    rng = np.random.default_rng(0)
    # More of x than is reached without asking ahead, and rows beyond 16 bits of length.
    lengths = np.concatenate([[70_000, 90_000, 66_000, 90_000], rng.integers(0, 60, 2001)])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = rng.integers(0, 80_000, indptr[-1])
    a = CsrArrays(indptr, indices, rng.random(len(indices)), (len(lengths), 80_000))
    plan = build_ordered(a)
    assert plan.arrays["row"][:4].tolist() == [1, 3, 0, 2]
    x, out = rng.random(80_000), np.empty(len(lengths))
    run_ordered(plan, x, out)
    assert (out == scipy_product(a, x)).all()


@pytest.mark.parametrize(
    ("values", "exact", "compact"),
    [
        ([1.0, -26.0, np.nan, np.inf], (4, False), (4, False)),
        ([0.1], (8, False), (4, True)),
        ([0.1, 1e300], (8, False), (8, False)),
        ([1e-40], (8, False), (8, False)),
        ([], (4, False), (4, False)),
    ],
)
def test_values_become_float32_only_where_that_keeps_their_digits(
    values: list[float], exact: tuple[int, bool], compact: tuple[int, bool]
) -> None:
    data = np.array(values)
    assert stored_as(data, "exact") == exact
    assert stored_as(data, "compact") == compact
    assert stored_as(np.array([0.1], np.float32), "compact") == (4, False)


@pytest.mark.parametrize(
    "survey", [survey_narrow, survey_ordered, survey_repeated, survey_mirrored]
)
def test_a_bad_matrix_is_refused_by_position(survey: object) -> None:
    assert callable(survey)
    indptr, data = np.array([0, 2, 4]), np.ones(4)
    with pytest.raises(IndexOutOfRangeError, match="entry 2") as caught:
        survey(CsrArrays(indptr, np.array([0, 1, 5, 1]), data, (2, 5)))
    assert caught.value.position == 2
    with pytest.raises(IndexOutOfRangeError, match="column -1 of entry 1"):
        survey(CsrArrays(indptr, np.array([0, -1, 4, 1]), data, (2, 5)))
    with pytest.raises(InvalidMatrixError, match=r"indptr\[2\] is 1"):
        survey(CsrArrays(np.array([0, 2, 1]), np.array([0, 1, 4, 1]), data, (2, 5)))
    with pytest.raises(InvalidMatrixError, match=r"indptr\[0\] is -1"):
        survey(CsrArrays(np.array([-1, 2, 4]), np.array([0, 1, 4, 1]), data, (2, 5)))
    with pytest.raises(InvalidSpecError, match="dtype"):
        survey(CsrArrays(indptr, np.array([0, 1, 4, 1]), np.ones(4, np.int64), (2, 5)))


def test_a_plan_of_another_form_is_refused() -> None:
    a = _stencil(4)
    narrow, ordered = build_narrow(a), build_ordered(a)
    assert narrow is not None
    x, out = np.ones(64), np.empty(64)
    for kernel, plan in (
        (MatvecNarrow(), ordered),
        (MatvecRepeated(), narrow),
        (MatvecMirrored(), narrow),
    ):
        with pytest.raises(InvalidSpecError, match="another form"):
            kernel({"plan": plan, "x": x, "out": out}, 0, 1)
    with pytest.raises(InvalidSpecError, match="must be a plan"):
        MatvecNarrow()({"x": x, "out": out}, 0, 1)
    with pytest.raises(InvalidSpecError, match="another form"):
        FillNarrow()({"A": a, "plan": memory_for(NarrowLayout.read(narrow).parts)}, 0, 1)


def _read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def test_vectors_that_do_not_fit_are_refused_before_any_write() -> None:
    a = _stencil(7)
    narrow, repeated, ordered = build_narrow(a), build_repeated(a), build_ordered(a)
    out = np.full(343, 7.0)
    for plan, kernel, role in (
        (narrow, MatvecNarrow(), "x"),
        (repeated, MatvecRepeated(), "x"),
        (build_mirrored(_symmetric(7)), MatvecMirrored(), "x"),
        (ordered, MatvecOrdered(), "permuted"),
    ):
        assert plan is not None
        x = np.ones(343)
        for wrong in (
            {role: np.ones(342)},
            {role: np.ones(343, np.int64)},
            {"out": np.full(344, 7.0)},
            {"out": np.full(343, 7.0, np.float32)},
            {"out": _read_only(out)},
            {"out": x},
        ):
            with pytest.raises(InvalidSpecError):
                kernel({"plan": plan, role: x, "out": out, **wrong}, 0, 1)
        with pytest.raises(InvalidSpecError, match="row range"):
            kernel({"plan": plan, role: x, "out": out}, 0, 10_000)
    assert (out == 7).all()
    with pytest.raises(InvalidSpecError, match="dtype"):
        OrderX()({"plan": ordered, "x": x, "permuted": np.ones(343, np.float32)}, 0, 1)
    with pytest.raises(InvalidSpecError, match="overlaps"):
        OrderX()({"plan": ordered, "x": x, "permuted": x}, 0, 1)


def test_parts_of_another_length_are_refused() -> None:
    plan = build_narrow(_stencil(4))
    assert plan is not None
    short = PlanArrays({**plan.arrays, "offset": plan.arrays["offset"][:-1]})
    with pytest.raises(InvalidSpecError, match="length"):
        MatvecNarrow()({"plan": short, "x": np.ones(64), "out": np.empty(64)}, 0, 1)
    without = PlanArrays({role: a for role, a in plan.arrays.items() if role != "base"})
    with pytest.raises(InvalidSpecError, match="base"):
        MatvecNarrow()({"plan": without, "x": np.ones(64), "out": np.empty(64)}, 0, 1)


def test_another_matrix_is_refused_by_the_fill() -> None:
    a, other = _scattered(100, 50), _scattered(90, 50)
    layout, uses = survey_ordered(a)
    plan, renumbered = memory_for(layout.parts), np.zeros(50, np.uint32)
    layout.begin(a, uses, plan, renumbered)
    with pytest.raises(InvalidSpecError, match="another matrix"):
        FillOrdered()({"A": other, "plan": plan, "renumbered": renumbered}, 0, 1)
    a.indptr[1] = 3
    with pytest.raises(InvalidSpecError, match="written to"):
        FillOrdered()({"A": a, "plan": plan, "renumbered": renumbered}, 0, layout.units)


def test_work_is_counted_by_the_units_that_kernels_take() -> None:
    a = _stencil(7)
    half = build_mirrored(_symmetric(7))
    plans = (build_narrow(a), build_repeated(a), build_ordered(a), half)
    works = (narrow_work, repeated_work, ordered_work, mirrored_work)
    for plan, work in zip(plans, works, strict=True):
        assert plan is not None
        before = work(plan)
        assert before[0] == 0 and before[-1] == a.nnz and (np.diff(before) >= 0).all()
    narrow = plans[0]
    assert narrow is not None
    done = [
        MatvecNarrow()({"plan": narrow, "x": np.ones(343), "out": np.empty(343)}, unit, unit + 1)
        for unit in range(NarrowLayout.read(narrow).units)
    ]
    assert [one.nnz for one in done] == np.diff(narrow_work(narrow)).tolist()
    assert sum(one.elements for one in done) == 343


def test_a_bound_kernel_runs_ranges_without_further_checks() -> None:
    a = _stencil(5)
    plan = build_narrow(a)
    assert plan is not None
    x, out = np.ones(125), np.zeros(125)
    bound = MatvecNarrow().bind({"plan": plan, "x": x, "out": out})
    bound.loop(*bound.arguments, 0, bound.rows)
    need("scipy")
    assert (out == scipy_product(a, x)).all()
