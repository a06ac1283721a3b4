"""A product from an ordered plan is SciPy's, however it was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hugepool.kernels.base import CsrArrays
from support.examples import examples
from support.extras import need
from support.matrix_plans import (
    banded,
    build_ordered,
    cuts,
    matrices,
    run_ordered,
    same_bits,
    scipy_product,
    vectors,
)

quick = settings(deadline=None, max_examples=examples(150))


@pytest.fixture(autouse=True, scope="module")
def numba() -> None:
    need("numba")


@st.composite
def skewed(draw: st.DrawFn) -> CsrArrays:
    """A few columns and a few rows have most of the entries."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 400))
    counts = np.minimum(rng.zipf(1.3, rows) - 1, 300)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(draw(st.sampled_from(["<i4", "<i8"])))
    indices = np.minimum(rng.zipf(1.5, int(indptr[-1])) - 1, columns - 1).astype(indptr.dtype)
    return CsrArrays(indptr, indices, rng.standard_normal(len(indices)), (rows, columns))


@given(a=st.one_of(skewed(), matrices(), banded()), data=st.data())
@quick
def test_an_ordered_product_equals_scipys_bit_for_bit(a: CsrArrays, data: st.DataObject) -> None:
    need("scipy")
    plan = build_ordered(a, cuts(data))
    x = data.draw(vectors(a.shape[1]))
    out = np.full(a.shape[0], 7.0, np.result_type(a.data, x))
    run_ordered(plan, x, out, cuts(data))
    assert same_bits(out, scipy_product(a, x))


@given(a=skewed(), data=st.data())
@quick
def test_a_plan_built_in_parts_is_the_plan_built_at_once(a: CsrArrays, data: st.DataObject) -> None:
    whole, cut = build_ordered(a), build_ordered(a, cuts(data))
    for role, array in whole.arrays.items():
        assert array.tobytes() == cut.arrays[role].tobytes(), role


@given(a=skewed())
@quick
def test_columns_come_by_falling_use_and_rows_by_falling_length(a: CsrArrays) -> None:
    plan = build_ordered(a).arrays
    uses = np.bincount(a.indices, minlength=a.shape[1])
    order, row = plan["order"], plan["row"]
    assert sorted(order.tolist()) == np.flatnonzero(uses).tolist()
    magnitudes = [int(uses[column]).bit_length() for column in order]
    assert magnitudes == sorted(magnitudes, reverse=True)
    lengths = np.diff(a.indptr)
    assert sorted(row.tolist()) == list(range(a.shape[0]))
    assert lengths[row].tolist() == sorted(lengths.tolist(), reverse=True)
