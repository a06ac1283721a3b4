"""Products, transposed products and scatter-adds, in any parts, against SciPy and exact sums."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hugepool import kernels
from hugepool.kernels import CsrArrays
from hugepool.partition import ROW_COST, by_nnz, by_rows, excess, merge_path
from hugepool_common.errors import HugepoolError, IndexOutOfRangeError, InvalidMatrixError
from support.examples import examples
from support.extras import need

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.timeout(1000)  # numba compiles much here, once
quick = settings(deadline=None, max_examples=examples(100))
DTYPES = ["<f8", "<f4", "<i8", "<i4"]
SPECIAL = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e308, -1e308, 5e-324]


def _kernel(name: str, implementation: str) -> kernels.Kernel:
    if implementation in ("numba", "scipy"):
        need(implementation)
    return kernels.resolve(name, implementation)


def _numbers(dtype: str, special: bool = False) -> st.SearchStrategy[Any]:
    if np.dtype(dtype).kind == "i":
        return st.integers(-(2**31), 2**31 - 1)
    ordinary = st.floats(-1e3, 1e3, width=32)
    return st.one_of(ordinary, st.sampled_from(SPECIAL)) if special else ordinary


@st.composite
def values(draw: st.DrawFn, count: int, dtype: str, special: bool = False) -> Array:
    with np.errstate(over="ignore"):
        drawn = draw(st.lists(_numbers(dtype, special), min_size=count, max_size=count))
        return np.array(drawn, np.dtype(dtype).kind + "8").astype(dtype)


@st.composite
def matrices(
    draw: st.DrawFn, dtype: str | None = None, special: bool = False, most_rows: int = 20
) -> CsrArrays:
    """Few rows, some of them empty or long; columns in no order, some of them twice."""
    columns = draw(st.integers(0, 12))
    length = st.one_of(st.integers(0, 4), st.just(0), st.integers(20, 60))
    counts = draw(st.lists(length if columns else st.just(0), max_size=most_rows))
    code = dtype or draw(st.sampled_from(DTYPES))
    index = draw(st.sampled_from([np.int32, np.int64]))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index)
    nnz = int(indptr[-1])
    indices = draw(arrays.arrays(index, nnz, elements=st.integers(0, max(columns - 1, 0))))
    return CsrArrays(indptr, indices, draw(values(nnz, code, special)), (len(counts), columns))


def _scipy(a: CsrArrays) -> Any:
    need("scipy")
    from scipy.sparse import csr_array

    return csr_array((a.data, a.indices, a.indptr), shape=a.shape)


def _run(kernel: kernels.Kernel, operands: dict[str, Any], bounds: tuple[int, ...]) -> None:
    # The parts in another order than theirs: none may wait for, or touch, another's.
    for start, stop in reversed(list(itertools.pairwise(bounds))):
        kernel(operands, start, stop)


def _exact(a: CsrArrays, x: Array) -> tuple[list[Fraction], list[Fraction]]:
    """The product of every row, and the sum of its terms' magnitudes, as rational numbers."""
    sums, magnitudes = [], []
    for start, stop in itertools.pairwise(a.indptr.tolist()):
        terms = [
            Fraction(float(a.data[entry])) * Fraction(float(x[a.indices[entry]]))
            for entry in range(start, stop)
        ]
        sums.append(sum(terms, Fraction()))
        magnitudes.append(sum(map(abs, terms), Fraction()))
    return sums, magnitudes


def _bound(count: int, dtype: str, magnitude: Fraction) -> Fraction:
    """Of a sum of products in any order: n u / (1 - n u) times the sum of the magnitudes."""
    roundoff = Fraction(float(np.finfo(dtype).eps)) / 2
    # Products may also fall below the least normal number.
    least = Fraction(float(np.finfo(dtype).smallest_subnormal))
    return count * roundoff / (1 - count * roundoff) * magnitude + count * least


@pytest.mark.parametrize("implementation", ["numba", "scipy"])
@given(data=st.data(), width=st.sampled_from([0, 1, 2, 3, 5, 8, 9, 17, 33, 64]))
@quick
def test_a_product_with_several_vectors_is_scipy_s_bit_for_bit(
    implementation: str, data: st.DataObject, width: int
) -> None:
    a = data.draw(matrices(special=True))
    drawn = data.draw(values(a.shape[1] * min(width, 3), a.data.dtype.str, True))
    x = np.resize(drawn, (a.shape[1], width)) if len(drawn) else np.zeros((a.shape[1], width))
    x = x.astype(a.data.dtype)
    out = np.full((a.shape[0], width), 77, a.data.dtype)
    kernel = _kernel("matmat", implementation)
    bounds = by_nnz(a.indptr, data.draw(st.integers(1, 4)))
    _run(kernel, {"A": a, "X": x, "out": out}, bounds)
    with np.errstate(all="ignore"):
        expected = _scipy(a) @ x
    np.testing.assert_array_equal(out, expected)
    assert out.dtype == expected.dtype


@given(a=matrices("<f8"), data=st.data(), width=st.integers(0, 5))
@quick
def test_numpy_s_product_with_several_vectors_is_right_up_to_rounding(
    a: CsrArrays, data: st.DataObject, width: int
) -> None:
    x = data.draw(values(a.shape[1] * width, "<f8")).reshape(a.shape[1], width)
    out = np.full((a.shape[0], width), np.nan)
    _run(_kernel("matmat", "numpy"), {"A": a, "X": x, "out": out}, by_nnz(a.indptr, 3))
    counts = np.diff(a.indptr)
    for column in range(width):
        sums, magnitudes = _exact(a, x[:, column])
        for row, (exact, magnitude) in enumerate(zip(sums, magnitudes, strict=True)):
            error = abs(Fraction(float(out[row, column])) - exact)
            assert error <= _bound(int(counts[row]), "<f8", magnitude)


def _transposed_product(
    implementation: str, a: CsrArrays, x: Array, parts: int
) -> tuple[Array, Array]:
    """The results of the parts, and their sum."""
    bounds = np.array(by_nnz(a.indptr, parts))
    dtype = np.result_type(a.data, x)
    partial = np.full((parts, a.shape[1]), 77, dtype)
    out = np.full(a.shape[1], 55, dtype)
    operands = {"A": a, "x": x, "bounds": bounds, "partial": partial}
    _run(_kernel("rmatvec", implementation), operands, by_rows(parts, 2))
    reduction = "numba" if implementation == "numba" else "numpy"
    operands = {"partial": partial, "out": out}
    _run(_kernel("sum_parts", reduction), operands, by_rows(len(out), 3))
    return partial, out


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@given(data=st.data())
@quick
def test_a_transposed_product_of_one_part_is_scipy_s_bit_for_bit(
    implementation: str, data: st.DataObject
) -> None:
    a = data.draw(matrices(special=True))
    x = data.draw(values(a.shape[0], a.data.dtype.str, True))
    with np.errstate(all="ignore"):
        expected = _scipy(a).T @ x
    partial, out = _transposed_product(implementation, a, x, 1)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(partial[0], expected)


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@pytest.mark.parametrize("dtype", ["<f8", "<f4"])
@given(data=st.data(), parts=st.integers(1, 6))
@quick
def test_a_transposed_product_keeps_its_bound(
    implementation: str, dtype: str, data: st.DataObject, parts: int
) -> None:
    a = data.draw(matrices(dtype))
    x = data.draw(values(a.shape[0], dtype))
    _, out = _transposed_product(implementation, a, x, parts)
    rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    order = np.argsort(a.indices, kind="stable")
    counts = np.bincount(a.indices, minlength=a.shape[1])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    turned = CsrArrays(indptr, rows[order], a.data[order], a.shape[::-1])
    sums, magnitudes = _exact(turned, x)
    for column, (exact, magnitude) in enumerate(zip(sums, magnitudes, strict=True)):
        error = abs(Fraction(float(out[column])) - exact)
        assert error <= _bound(int(counts[column]), dtype, magnitude)


@pytest.mark.parametrize("implementation", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    data=st.data(),
    idx=arrays.arrays(
        st.sampled_from([np.int32, np.int64, np.uint32, np.uint64]),
        st.integers(0, 300),
        elements=st.integers(0, 9),
    ),
    rows=st.integers(10, 15),
    parts=st.integers(1, 5),
    based=st.booleans(),
)
@quick
def test_a_scatter_add_is_numpy_s_bit_for_bit_in_any_parts(
    implementation: str,
    dtype: str,
    data: st.DataObject,
    idx: Array,
    rows: int,
    parts: int,
    based: bool,
) -> None:
    drawn = data.draw(values(7, dtype, True))
    addends = np.resize(drawn, len(idx))
    before = data.draw(values(rows, dtype, True))
    expected = before.copy()
    with np.errstate(all="ignore"):
        np.add.at(expected, idx.astype(np.int64), addends)
    out = np.full(rows, 77, dtype) if based else before.copy()
    operands: dict[str, Any] = {"idx": idx, "values": addends, "out": out}
    if based:
        operands["base"] = before
        _run(_kernel("scatter_add", implementation), operands, (0, rows))  # a part that is repeated
    _run(_kernel("scatter_add", implementation), operands, by_rows(rows, parts))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("implementation", ["numba", "numpy"])
@given(
    idx=arrays.arrays(
        st.sampled_from([np.int32, np.int64, np.uint32, np.uint64]), st.integers(1, 300)
    ),
    rows=st.integers(0, 40),
    tame=st.integers(0, 400),
)
@quick
def test_a_bad_index_of_a_scatter_add_is_named_and_nothing_written(
    implementation: str, idx: Array, rows: int, tame: int
) -> None:
    if rows:
        idx[:tame] %= np.array(rows, idx.dtype)
    bad = [place for place, value in enumerate(idx.tolist()) if not 0 <= value < rows]
    out = np.zeros(rows)
    operands = {"idx": idx, "values": np.ones(len(idx)), "out": out}
    kernel = _kernel("scatter_add", implementation)
    if bad:
        with pytest.raises(IndexOutOfRangeError) as caught:
            kernel(operands, rows // 2, rows)
        assert caught.value.position == bad[0]
        assert caught.value.had == str(idx[bad[0]])
        assert not out.any()
    else:
        kernel(operands, 0, rows)
        assert out.sum() == len(idx)


@given(counts=st.lists(st.integers(0, 1000), max_size=60), parts=st.integers(1, 40))
@quick
def test_a_merge_path_has_equal_parts_that_cover_all_once(counts: list[int], parts: int) -> None:
    indptr = np.concatenate([[3], 3 + np.cumsum(counts)]).astype(np.int64)
    rows, entries = merge_path(indptr, parts)
    assert (len(rows), len(entries)) == (parts + 1, parts + 1)
    assert (rows[0], rows[-1]) == (0, len(counts))
    assert (entries[0], entries[-1]) == (3, indptr[-1])
    assert list(rows) == sorted(rows)
    assert list(entries) == sorted(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert indptr[max(row - 1, 0)] <= entry <= indptr[row]
    shares = np.diff(entries) + ROW_COST * np.diff(rows)
    total = int(indptr[-1]) - 3 + ROW_COST * len(counts)
    assert shares.max() <= total // parts + 2 * ROW_COST + 1


@given(counts=st.lists(st.integers(0, 100), max_size=30), parts=st.integers(1, 8))
@quick
def test_excess_is_of_the_largest_part(counts: list[int], parts: int) -> None:
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    bounds = by_nnz(indptr, parts)
    ratio, entries = excess(indptr, bounds)
    work = [
        sum(counts[start:stop]) + ROW_COST * (stop - start)
        for start, stop in itertools.pairwise(bounds)
    ]
    fair = sum(work) / parts
    assert entries == int(max(work) - fair)
    assert ratio == (max(work) / fair if fair else 1.0)


def _split_product(
    implementation: str, a: CsrArrays, x: Array, bounds: Array, repeat: bool = False
) -> Array:
    parts = bounds.shape[1] - 1
    dtype = np.result_type(a.data, x)
    carry = np.full(2 * parts, 33, dtype)
    out = np.full(a.shape[0], 77, dtype)
    operands = {"A": a, "x": x, "bounds": bounds, "carry": carry, "out": out}
    addition = "numba" if implementation == "numba" else "numpy"
    for _ in range(2 if repeat else 1):
        _run(_kernel("matvec_split", implementation), operands, by_rows(parts, 3))
        _run(_kernel("add_carries", addition), operands, by_rows(parts, 2))
    return out


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@pytest.mark.parametrize("dtype", ["<f8", "<f4"])
@given(data=st.data(), parts=st.integers(1, 9), repeat=st.booleans())
@quick
def test_a_product_with_cut_rows_keeps_its_bound_and_whole_rows_their_bits(
    implementation: str, dtype: str, data: st.DataObject, parts: int, repeat: bool
) -> None:
    a = data.draw(matrices(dtype, most_rows=8))
    x = data.draw(values(a.shape[1], dtype))
    bounds = np.array(merge_path(a.indptr, parts))
    out = _split_product(implementation, a, x, bounds, repeat)
    sums, magnitudes = _exact(a, x)
    counts = np.diff(a.indptr)
    for row, (exact, magnitude) in enumerate(zip(sums, magnitudes, strict=True)):
        error = abs(Fraction(float(out[row])) - exact)
        assert error <= _bound(int(counts[row]), dtype, magnitude)
    begun = np.flatnonzero(bounds[1] < a.indptr[bounds[0]])
    whole = np.ones(a.shape[0], bool)
    whole[bounds[0][begun] - 1] = False
    if implementation != "numpy":
        expected = _scipy(a) @ x
        assert out[whole].tobytes() == expected[whole].tobytes()


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@given(data=st.data(), parts=st.integers(1, 9))
@quick
def test_infinity_and_nan_come_through_cut_rows(
    implementation: str, data: st.DataObject, parts: int
) -> None:
    a = data.draw(matrices("<f8", most_rows=6))
    choices = st.sampled_from([np.inf, np.nan, 1.0])
    x = data.draw(arrays.arrays(np.float64, a.shape[1], elements=choices))
    a.data[:] = 2.0
    out = _split_product(implementation, a, x, np.array(merge_path(a.indptr, parts)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(out, _scipy(a) @ x)


_wild = st.one_of(
    st.integers(-5, 70), st.sampled_from([-(2**63), 2**63 - 1, 2**32, -(2**31), 2**31 - 1])
)
_faults = st.dictionaries(st.integers(0, 600), _wild, max_size=3)


def _spoil(array: Array, faults: dict[int, int]) -> None:
    for place, value in faults.items():
        if len(array) and np.iinfo(array.dtype).min <= value <= np.iinfo(array.dtype).max:
            array[place % len(array)] = value


def _sound(a: CsrArrays) -> bool:
    indptr = a.indptr.tolist()
    if not all(0 <= value <= len(a.indices) for value in indptr) or indptr != sorted(indptr):
        return False
    used = a.indices[indptr[0] : indptr[-1]]
    return bool(((used >= 0) & (used < a.shape[1])).all())


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@pytest.mark.parametrize("name", ["matmat", "rmatvec", "matvec_split"])
@given(a=matrices("<f8"), indptr_faults=_faults, column_faults=_faults, parts=st.integers(1, 4))
@quick
def test_a_corrupt_matrix_is_refused_or_right(
    implementation: str,
    name: str,
    a: CsrArrays,
    indptr_faults: dict[int, int],
    column_faults: dict[int, int],
    parts: int,
) -> None:
    rows, columns = a.shape
    split = np.array(merge_path(a.indptr, parts))
    _spoil(a.indptr, indptr_faults)
    _spoil(a.indices, column_faults)
    a.data[:] = 1.0
    bounds = np.array(by_rows(rows, parts))
    operands: dict[str, Any] = {
        "matmat": {"A": a, "X": np.ones((columns, 5)), "out": np.zeros((rows, 5))},
        "rmatvec": {
            "A": a,
            "x": np.ones(rows),
            "bounds": bounds,
            "partial": np.zeros((parts, columns)),
        },
        "matvec_split": {
            "A": a,
            "x": np.ones(columns),
            "bounds": split,
            "carry": np.zeros(2 * parts),
            "out": np.zeros(rows),
        },
    }[name]
    kernel = _kernel(name, implementation)
    try:
        kernel(operands, 0, rows if name == "matmat" else parts)
    except (InvalidMatrixError, IndexOutOfRangeError):
        assert indptr_faults or column_faults
        return
    if not rows:
        return
    assert _sound(a)
    lengths = np.diff(a.indptr)
    if name == "matmat":
        assert (operands["out"] == lengths[:, np.newaxis]).all()
    elif name == "rmatvec":
        assert operands["partial"].sum() == lengths.sum()
    else:
        _kernel("add_carries", "numba" if implementation == "numba" else "numpy")(
            operands, 0, parts
        )
        assert (operands["out"] == lengths).all()


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@pytest.mark.parametrize("name", ["rmatvec", "matvec_split", "add_carries"])
@given(a=matrices("<f8"), faults=_faults, parts=st.integers(1, 4))
@quick
def test_corrupt_bounds_of_parts_do_not_fault(
    implementation: str, name: str, a: CsrArrays, faults: dict[int, int], parts: int
) -> None:
    if name == "add_carries" and implementation == "scipy":
        return
    rows, columns = a.shape
    bounds: Array = np.array(
        by_nnz(a.indptr, parts) if name == "rmatvec" else merge_path(a.indptr, parts)
    )
    _spoil(bounds.reshape(-1), faults)
    operands: dict[str, Any] = {
        "A": a,
        "x": np.ones(rows if name == "rmatvec" else columns),
        "bounds": bounds,
        "partial": np.zeros((parts, columns)),
        "carry": np.zeros(2 * parts),
        "out": np.zeros(rows),
    }
    try:
        _kernel(name, implementation)(operands, 0, parts)
    except HugepoolError:
        assert faults
