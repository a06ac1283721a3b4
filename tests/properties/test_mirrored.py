"""A product from half of a symmetric matrix is SciPy's; bfloat16 values are the nearest ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hugepool.kernels.base import CsrArrays, PlanArrays
from hugepool.kernels.mirrored import looks_asymmetric
from hugepool.kernels.rounding import stored_as
from hugepool_common.errors import InvalidSpecError
from support.examples import examples
from support.extras import need
from support.matrix_plans import (
    Array,
    banded,
    blank,
    build_mirrored,
    build_repeated,
    cuts,
    matrices,
    run_mirrored,
    run_repeated,
    same_bits,
    scipy_product,
    symmetric,
    vectors,
)

pytestmark = pytest.mark.timeout(1000)  # numba compiles much here, once
quick = settings(deadline=None, max_examples=examples(150))


@pytest.fixture(autouse=True, scope="module")
def numba() -> None:
    need("numba")


def _mirrored(a: CsrArrays, *options: object) -> PlanArrays:
    plan = build_mirrored(a, *options)  # type: ignore[arg-type]
    assume(plan is not None)  # a run may share its values, and few entries need as many places
    assert plan is not None
    return plan


@given(a=symmetric(), data=st.data())
@quick
def test_a_mirrored_product_equals_scipys_bit_for_bit(a: CsrArrays, data: st.DataObject) -> None:
    need("scipy")
    assert looks_asymmetric(a) == ""
    plan = _mirrored(a, cuts(data))
    x = data.draw(vectors(a.shape[1]))
    out = blank(a, x)
    run_mirrored(plan, x, out, cuts(data))
    assert same_bits(out, scipy_product(a, x))


@given(a=symmetric(), data=st.data(), storage=st.sampled_from(["exact", "compact", "bfloat16"]))
@quick
def test_half_of_a_matrix_built_in_parts_is_that_built_at_once(
    a: CsrArrays, data: st.DataObject, storage: str
) -> None:
    whole = _mirrored(a, lambda units: [(0, units)], storage)
    cut = build_mirrored(a, cuts(data), storage)  # type: ignore[arg-type]
    assert cut is not None
    for role, array in whole.arrays.items():
        assert array.tobytes() == cut.arrays[role].tobytes(), role


@given(a=symmetric(), data=st.data())
@quick
def test_an_entry_that_differs_from_its_mirror_image_is_refused(
    a: CsrArrays, data: st.DataObject
) -> None:
    _mirrored(a)
    row_of = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    off = np.flatnonzero(a.indices[int(a.indptr[0]) :] != row_of) + int(a.indptr[0])
    assume(len(off))
    place = data.draw(st.sampled_from(off.tolist()))
    before = a.data[place]
    a.data.view(f"u{a.data.itemsize}")[place] ^= 1
    assume(not np.isnan(before))
    with pytest.raises(InvalidSpecError, match="not symmetric"):
        build_mirrored(a, cuts(data))
    assert "mirrors" in looks_asymmetric(a)


@given(
    a=symmetric(),
    indptr_faults=st.dictionaries(st.integers(0, 60), st.integers(-(2**31), 2**31 - 1), max_size=3),
    column_faults=st.dictionaries(
        st.integers(0, 900),
        st.one_of(st.integers(0, 60), st.integers(-(2**31), 2**31 - 1)),
        max_size=3,
    ),
    early=st.booleans(),
)
@quick
def test_a_matrix_that_changes_is_refused_or_gives_a_plan_that_runs(
    a: CsrArrays, indptr_faults: dict[int, int], column_faults: dict[int, int], early: bool
) -> None:
    def spoil() -> None:
        for place, value in indptr_faults.items():
            a.indptr[place % len(a.indptr)] = value
        for place, value in column_faults.items():
            if len(a.indices):
                a.indices[place % len(a.indices)] = value

    def spoiled_cut(units: int) -> list[tuple[int, int]]:
        spoil()
        return [(0, units)]

    if early:
        spoil()
        looks_asymmetric(a)
    try:
        plan = build_mirrored(a, spoiled_cut)
    except (ValueError, IndexError):
        return
    if plan is not None:
        x = np.ones(a.shape[1])
        run_mirrored(plan, x, blank(a, x))


@given(
    a=st.one_of(symmetric(numbers="tame"), matrices(numbers="tame"), banded()),
    data=st.data(),
    storage=st.sampled_from(["compact", "bfloat16"]),
)
@quick
def test_a_rounded_product_keeps_the_stated_bound(
    a: CsrArrays, data: st.DataObject, storage: str
) -> None:
    assume(np.isfinite(a.data).all())
    x = data.draw(vectors(a.shape[1], "tame"))
    plan = build_repeated(a, storage=storage)  # type: ignore[arg-type]
    # A symmetric matrix of more rows may have more runs than a plan is worth.
    assert plan is not None or a.shape[0] > 64
    assume(plan is not None)
    assert plan is not None
    out = blank(a, x)
    run_repeated(plan, x, out)
    _assert_within_bound(a, x, out, storage)
    if a.shape[0] == a.shape[1] and looks_asymmetric(a) == "":
        half = build_mirrored(a, storage=storage)  # type: ignore[arg-type]
        if half is not None:
            again = blank(a, x)
            run_mirrored(half, x, again)
            assert same_bits(again, out)


def _assert_within_bound(a: CsrArrays, x: Array, out: Array, storage: str) -> None:
    unit = Fraction(1, 2**53 if out.itemsize == 8 else 2**24)
    rounding = Fraction(1, 2**24 if storage == "compact" else 2**8)
    for row in range(a.shape[0]):
        products = [
            Fraction(float(a.data[entry])) * Fraction(float(x[a.indices[entry]]))
            for entry in range(int(a.indptr[row]), int(a.indptr[row + 1]))
        ]
        if not products:
            assert out[row] == 0
            continue
        length = len(products) * unit
        bound = (rounding + length * (1 + rounding) / (1 - length)) * sum(map(abs, products))
        tiny = len(products) * Fraction(float(np.finfo(out.dtype).smallest_subnormal))
        if np.isfinite(out[row]):
            assert abs(Fraction(float(out[row])) - sum(products)) <= bound + tiny
        else:
            largest = Fraction(float(np.finfo(out.dtype).max))
            assert sum(map(abs, products)) * (1 + rounding) > largest / 2


def _as_bfloat16(values: Array) -> Array:
    """What a plan makes of some values, the diagonal of a matrix: its product with ones."""
    count = len(values)
    a = CsrArrays(np.arange(count + 1), np.arange(count), values, (count, count))
    plan = build_repeated(a, storage="bfloat16")
    assert plan is not None and plan.arrays["values"].dtype == np.uint16
    out = np.empty(count, values.dtype)
    run_repeated(plan, np.ones(count, values.dtype), out)
    return out


@given(
    values=st.lists(
        st.one_of(
            st.floats(2.0**-120, 2.0**120),
            st.floats(-(2.0**120), -(2.0**-120)),
            # Between two bfloat16, or as near to it as can be.
            st.builds(
                lambda odd, power, nudge: float((128 + odd) * 2 + 1 + nudge) * 2.0**power,
                st.integers(0, 127),
                st.integers(-100, 100),
                st.sampled_from([0.0, 2.0**-30, -(2.0**-30), 2.0**-42, -(2.0**-42)]),
            ),
        ),
        min_size=1,
        max_size=40,
    ),
    code=st.sampled_from(["<f4", "<f8"]),
)
@quick
def test_values_become_the_nearest_bfloat16_ties_to_even(values: list[float], code: str) -> None:
    given_values = np.array(values, code)
    assert stored_as(given_values, "bfloat16", fewest=2)[0] == 2
    kept = _as_bfloat16(given_values).astype(np.float32).view(np.uint32)
    assert not (kept % (1 << 16)).any()
    for value, bits in zip(given_values, (kept >> 16).tolist(), strict=True):
        exact = Fraction(float(value))
        errors = [abs(_number(bits + step) - exact) for step in (-1, 0, 1)]
        assert errors[1] <= min(errors[0], errors[2])
        if errors[1] in (errors[0], errors[2]):
            assert bits % 2 == 0


def _number(bits: int) -> Fraction:
    return Fraction(float(np.array([bits << 16], np.uint32).view(np.float32)[0]))


def test_infinities_and_nan_stay_what_they_are_as_bfloat16() -> None:
    kept = _as_bfloat16(np.array([np.inf, -np.inf, np.nan, 1.0, 1 + 2.0**-8]))
    assert kept[:2].tolist() == [np.inf, -np.inf] and np.isnan(kept[2])
    assert kept[3:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "compact", "bfloat16"),
    [
        ([1.0, -26.0, np.nan, np.inf], (4, False), (2, False)),
        ([0.1], (4, True), (2, True)),
        ([0.1, 1e300], (8, False), (8, False)),
        ([0.1, 3.4e38], (4, True), (4, True)),  # beyond the largest bfloat16
        ([1e-40], (8, False), (8, False)),
        ([2.0**-130], (4, False), (2, False)),
        ([], (4, False), (2, False)),
    ],
)
def test_values_become_bfloat16_only_where_each_keeps_its_digits(
    values: list[float], compact: tuple[int, bool], bfloat16: tuple[int, bool]
) -> None:
    data = np.array(values)
    assert stored_as(data, "bfloat16") == compact
    assert stored_as(data, "bfloat16", fewest=2) == bfloat16
    assert stored_as(np.array([0.1], np.float32), "bfloat16", fewest=2) == (2, True)
