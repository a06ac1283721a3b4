"""Whatever the matrix and the blocks, a binned product is SciPy's, or as near as its sums allow."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hugepool.kernels.base import CsrArrays
from hugepool.kernels.binned_product_layout import ProductLayout
from hugepool_common.errors import IndexOutOfRangeError, InvalidMatrixError
from support.binned import build_product, matrix_of, multiply, scipy_product, stored_of
from support.examples import examples
from support.extras import need

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.timeout(1000)  # numba compiles much here, once
quick = settings(deadline=None, max_examples=examples(150))
NOT_FINITE = (np.inf, -np.inf, np.nan)
SPECIAL = (*NOT_FINITE, 0.0, -0.0, 1e308, 5e-324)


@pytest.fixture(autouse=True, scope="module")
def needed() -> None:
    need("numba")
    need("scipy")


@dataclass(frozen=True)
class Product:
    """A matrix and a vector to multiply it, or its transpose, with."""

    a: CsrArrays
    x: Array
    transposed: bool
    bits: tuple[int, int]

    @property
    def layout(self) -> ProductLayout:
        return ProductLayout(stored_of(self.a), self.x.itemsize, self.transposed, *self.bits)


@st.composite
def products(
    draw: st.DrawFn,
    *,
    ordered: bool = True,
    special: tuple[float, ...] = SPECIAL,
    transposed: bool | None = None,
) -> Product:
    """Uniform, skewed, one dense row, one dense column, or all in one place; some rows empty.

    Entries may be doubled. Without `ordered` the columns of a row are in no order.
    """
    rows, columns = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    entries = draw(st.integers(0, 900))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    row, column = rng.integers(0, rows, entries), rng.integers(0, columns, entries)
    kind = draw(st.sampled_from(["uniform", "skewed", "row", "column", "place"]))
    if kind == "skewed":
        row = np.minimum(rng.zipf(1.4, entries) - 1, rows - 1)
        column = np.minimum(rng.zipf(1.3, entries) - 1, columns - 1)
    if kind in ("row", "place"):
        row[:] = rows - 1
    if kind in ("column", "place"):
        column[:] = columns // 2
    dtype = draw(st.sampled_from(["f4", "f8"]))
    flipped = draw(st.booleans()) if transposed is None else transposed
    values = rng.standard_normal(entries).astype(dtype)
    x = rng.standard_normal(rows if flipped else columns).astype(dtype)
    if special:
        for array in (values, x):
            for place in draw(st.lists(st.integers(0, 900), max_size=4)):
                if len(array):
                    with np.errstate(over="ignore"):
                        array[place % len(array)] = draw(st.sampled_from(special))
    a = matrix_of(row, column, values, (rows, columns), draw(st.sampled_from(["<i4", "<i8"])))
    if not ordered:
        for start, stop in itertools.pairwise(a.indptr.tolist()):
            a.indices[start:stop] = rng.permutation(a.indices[start:stop])
    return Product(a, x, flipped, (draw(st.integers(5, 8)), draw(st.integers(5, 8))))


@st.composite
def cuts(draw: st.DrawFn, units: int) -> list[tuple[int, int]]:
    """Ranges that cover all units once, in any order."""
    inner = draw(st.lists(st.integers(0, units), max_size=5))
    return draw(st.permutations(list(itertools.pairwise(sorted([0, *inner, units])))))


def _same(result: Array, expected: Array) -> bool:
    """Bit for bit, but one NaN is as good as another."""
    return result.dtype == expected.dtype and np.array_equal(
        np.where(np.isnan(result), 0, result).view(f"u{result.itemsize}"),
        np.where(np.isnan(expected), 0, expected).view(f"u{result.itemsize}"),
    ) & np.array_equal(np.isnan(result), np.isnan(expected))


@given(product=products())
@quick
def test_sums_that_are_not_combined_are_scipys(product: Product) -> None:
    plan = build_product(product.a, product.layout, longest=1)
    result = multiply(plan, product.x)
    assert _same(result, scipy_product(product.a, product.x, product.transposed))


@given(product=products(ordered=False, special=()), longest=st.sampled_from([1, 8]))
@quick
def test_any_order_of_sums_stays_within_the_bound(product: Product, longest: int) -> None:
    a, x = product.a, product.x
    plan = build_product(a, product.layout, longest=1 if product.transposed else longest)
    result = multiply(plan, x)
    exact = [Fraction(0)] * len(result)
    weight = [Fraction(0)] * len(result)
    terms = [0] * len(result)
    for row, (start, stop) in enumerate(itertools.pairwise(a.indptr.tolist())):
        for entry in range(start, stop):
            column = int(a.indices[entry])
            target, source = (column, row) if product.transposed else (row, column)
            term = Fraction(float(a.data[entry])) * Fraction(float(x[source]))
            exact[target] += term
            weight[target] += abs(term)
            terms[target] += 1
    eps = Fraction(float(np.finfo(x.dtype).eps)) / 2
    tiny = Fraction(float(np.finfo(x.dtype).smallest_subnormal))
    for found, true, size, count in zip(result, exact, weight, terms, strict=True):
        gamma = count * eps / (1 - count * eps)
        assert abs(Fraction(float(found)) - true) <= gamma * size + count * tiny


@given(product=products(special=NOT_FINITE, transposed=False))
@quick
def test_combined_sums_are_not_finite_where_scipys_are_not(product: Product) -> None:
    plan = build_product(product.a, product.layout, longest=8)
    result, expected = multiply(plan, product.x), scipy_product(product.a, product.x)
    finite = np.isfinite(expected)
    assert _same(result[~finite], expected[~finite])
    assert np.isfinite(result[finite]).all()


@given(product=products(ordered=False), longest=st.sampled_from([1, 8, None]), data=st.data())
@quick
def test_parts_of_build_and_run_are_the_whole(
    product: Product, longest: int | None, data: st.DataObject
) -> None:
    a, layout = product.a, product.layout
    if product.transposed and longest:
        longest = 1
    serial = build_product(a, layout, longest=longest)
    plan = build_product(a, layout, longest=longest, parts=data.draw(cuts(layout.units)))
    for role, array in serial.arrays.items():
        assert array.tobytes() == plan.arrays[role].tobytes(), role
    whole = multiply(serial, product.x)
    parts = (data.draw(cuts(layout.cells)), data.draw(cuts(layout.targets)))
    assert _same(multiply(plan, product.x, parts=parts), whole)


@given(product=products(), faults=st.lists(st.integers(0, 899), min_size=1), data=st.data())
@quick
def test_the_first_bad_column_is_named_wherever_it_is(
    product: Product, faults: list[int], data: st.DataObject
) -> None:
    a = product.a
    faults = [place for place in faults if place < a.nnz]
    span = np.iinfo(a.indices.dtype)
    for place in faults:
        a.indices[place] = data.draw(
            st.one_of(st.integers(a.shape[1], span.max), st.integers(span.min, -1))
        )
    if not faults:
        build_product(a, product.layout)
        return
    with pytest.raises(IndexOutOfRangeError) as caught:
        build_product(a, product.layout)
    assert caught.value.position == min(faults)
    assert caught.value.had == str(a.indices[min(faults)])


@given(product=products(), place=st.integers(0, 200), data=st.data())
@quick
def test_an_indptr_that_lies_is_refused_or_harmless(
    product: Product, place: int, data: st.DataObject
) -> None:
    a = product.a
    span = np.iinfo(a.indptr.dtype)
    a.indptr[place % len(a.indptr)] = data.draw(
        st.one_of(st.integers(-3, a.nnz + 3), st.integers(span.min, span.max))
    )
    sound = a.indptr.min() >= 0 and a.indptr.max() <= a.nnz and (np.diff(a.indptr) >= 0).all()
    if sound:
        multiply(build_product(a, product.layout), product.x)
        return
    with pytest.raises(InvalidMatrixError):
        build_product(a, product.layout)
