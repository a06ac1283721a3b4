"""A product from a narrow or repeated plan is SciPy's, however it was cut; or it is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hugepool.kernels.base import CsrArrays, PlanArrays
from support.examples import examples
from support.extras import need
from support.matrix_plans import (
    Array,
    banded,
    blank,
    build_narrow,
    build_ordered,
    build_repeated,
    cuts,
    matrices,
    run_narrow,
    run_ordered,
    run_repeated,
    same_bits,
    scipy_product,
    vectors,
)

pytestmark = pytest.mark.timeout(1000)  # numba compiles much here, once
quick = settings(deadline=None, max_examples=examples(150))


@pytest.fixture(autouse=True, scope="module")
def numba() -> None:
    need("numba")


@given(a=matrices(), data=st.data())
@quick
def test_a_narrow_product_equals_scipys_bit_for_bit(a: CsrArrays, data: st.DataObject) -> None:
    need("scipy")
    plan = build_narrow(a, cuts(data))
    assert plan is not None
    x = data.draw(vectors(a.shape[1]))
    out = blank(a, x)
    run_narrow(plan, x, out, cuts(data))
    assert same_bits(out, scipy_product(a, x))


@given(a=st.one_of(banded(), matrices()), data=st.data())
@quick
def test_a_repeated_product_equals_scipys_bit_for_bit(a: CsrArrays, data: st.DataObject) -> None:
    need("scipy")
    plan = build_repeated(a, cuts(data))
    assert plan is not None, "so small a matrix may have a pattern for every row"
    x = data.draw(vectors(a.shape[1]))
    out = blank(a, x)
    run_repeated(plan, x, out, cuts(data))
    assert same_bits(out, scipy_product(a, x))


@given(a=st.one_of(matrices(), banded()), data=st.data())
@quick
def test_a_plan_built_in_parts_is_the_plan_built_at_once(a: CsrArrays, data: st.DataObject) -> None:
    for build in (build_narrow, build_repeated):
        whole, cut = build(a), build(a, cuts(data))
        assert whole is not None and cut is not None
        _assert_same(whole, cut)


def _assert_same(first: PlanArrays, second: PlanArrays) -> None:
    for role, array in first.arrays.items():
        assert array.tobytes() == second.arrays[role].tobytes(), role


def test_a_row_of_one_entry_beside_the_diagonal_is_no_empty_row() -> None:
    for value in (0.0, 1.0):
        indptr, indices = np.array([0, 1, 2, 2], np.int32), np.array([1, 2], np.int32)
        plan = build_repeated(CsrArrays(indptr, indices, np.full(2, value), (3, 3)))
        assert plan is not None
        out = np.full(3, 7.0)
        run_repeated(plan, np.array([1.0, 2.0, 3.0]), out)
        assert out.tolist() == [2 * value, 3 * value, 0.0]


@given(a=matrices(numbers="tame"), data=st.data())
@quick
def test_a_compact_product_keeps_the_stated_bound(a: CsrArrays, data: st.DataObject) -> None:
    x = data.draw(vectors(a.shape[1], "tame"))
    for build, run in ((build_narrow, run_narrow), (build_repeated, run_repeated)):
        plan = build(a, storage="compact")
        assert plan is not None
        out = blank(a, x)
        run(plan, x, out)
        _assert_within_bound(a, x, out)
    ordered = build_ordered(a, storage="compact")
    out = blank(a, x)
    run_ordered(ordered, x, out)
    _assert_within_bound(a, x, out)


def _assert_within_bound(a: CsrArrays, x: Array, out: Array) -> None:
    unit = Fraction(1, 2**53 if out.itemsize == 8 else 2**24)
    rounding = Fraction(1, 2**24)
    for row in range(a.shape[0]):
        entries = range(int(a.indptr[row]), int(a.indptr[row + 1]))
        products = [
            Fraction(float(a.data[entry])) * Fraction(float(x[a.indices[entry]]))
            for entry in entries
        ]
        length = len(products) * unit
        bound = (rounding + length * (1 + rounding) / (1 - length)) * sum(map(abs, products))
        assert abs(Fraction(float(out[row])) - sum(products)) <= bound


@given(
    a=st.one_of(matrices(), banded()),
    indptr_faults=st.dictionaries(st.integers(0, 60), st.integers(-(2**31), 2**31 - 1), max_size=3),
    column_faults=st.dictionaries(
        st.integers(0, 900),
        st.one_of(st.integers(0, 60), st.integers(-(2**31), 2**31 - 1)),
        max_size=3,
    ),
    data=st.data(),
)
@quick
def test_a_matrix_that_changes_is_refused_or_gives_a_plan_that_runs(
    a: CsrArrays,
    indptr_faults: dict[int, int],
    column_faults: dict[int, int],
    data: st.DataObject,
) -> None:
    assume(indptr_faults or column_faults)
    early = data.draw(st.booleans())

    def spoil() -> None:
        for place, value in indptr_faults.items():
            a.indptr[place % len(a.indptr)] = value
        for place, value in column_faults.items():
            if len(a.indices):
                a.indices[place % len(a.indices)] = value

    def spoiled_cut(units: int) -> list[tuple[int, int]]:
        if not early:
            spoil()
        return [(0, units)]

    if early:
        spoil()
    kept = a.indptr.copy(), a.indices.copy()
    for build, run in (
        (build_narrow, run_narrow),
        (build_repeated, run_repeated),
        (build_ordered, run_ordered),
    ):
        a.indptr[:], a.indices[:] = kept
        try:
            plan = build(a, spoiled_cut)
        except (ValueError, IndexError):
            continue
        if plan is not None:
            x = np.ones(a.shape[1])
            run(plan, x, blank(a, x))
