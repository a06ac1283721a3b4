"""Whatever the arrays hold, kernels agree with NumPy or refuse; they never fault."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hugepool import kernels
from hugepool.kernels import CsrArrays
from hugepool.partition import ROW_COST, by_nnz, by_rows
from hugepool_common.errors import IndexOutOfRangeError, InvalidMatrixError
from support.examples import examples
from support.extras import need

Array = np.ndarray[Any, Any]
quick = settings(deadline=None, max_examples=examples(150))


def _kernel(name: str, implementation: str) -> kernels.Kernel:
    if implementation in ("numba", "scipy"):
        need(implementation)
    return kernels.resolve(name, implementation)


@st.composite
def matrices(draw: st.DrawFn) -> CsrArrays:
    columns = draw(st.integers(0, 30))
    counts = draw(st.lists(st.integers(0, 20 if columns else 0), max_size=30))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    nnz = int(indptr[-1])
    indices = draw(arrays.arrays(np.int64, nnz, elements=st.integers(0, max(columns - 1, 0))))
    # Small integers: sums are exact in any order.
    data = draw(arrays.arrays(np.float64, nnz, elements=st.integers(-9, 9).map(float)))
    return CsrArrays(indptr, indices, data, (len(counts), columns))


def _dense(a: CsrArrays) -> Array:
    dense = np.zeros(a.shape)
    rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    np.add.at(dense, (rows, a.indices), a.data)
    return dense


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@given(a=matrices(), parts=st.integers(1, 6))
@quick
def test_parts_of_a_product_make_the_whole(implementation: str, a: CsrArrays, parts: int) -> None:
    kernel = _kernel("matvec", implementation)
    x = np.arange(1.0, a.shape[1] + 1)
    out = np.full(a.shape[0], np.nan)
    bounds = by_nnz(a.indptr, parts)
    done = [
        kernel({"A": a, "x": x, "out": out}, start, stop)
        for start, stop in itertools.pairwise(bounds)
    ]
    assert (out == _dense(a) @ x).all()
    assert sum(work.nnz for work in done) == len(a.indices)
    assert sum(work.elements for work in done) == a.shape[0]


_wild = st.one_of(
    st.integers(-5, 40), st.sampled_from([-(2**63), 2**63 - 1, 2**32, -(2**31), 2**31 - 1])
)


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
@given(
    a=matrices(),
    indptr_faults=st.dictionaries(st.integers(0, 30), _wild, max_size=3),
    column_faults=st.dictionaries(st.integers(0, 600), _wild, max_size=3),
)
@quick
def test_a_corrupt_matrix_is_refused_or_right(
    implementation: str,
    a: CsrArrays,
    indptr_faults: dict[int, int],
    column_faults: dict[int, int],
) -> None:
    for place, value in indptr_faults.items():
        a.indptr[place % len(a.indptr)] = value
    for place, value in column_faults.items():
        if len(a.indices):
            a.indices[place % len(a.indices)] = value
    indptr = a.indptr.tolist()
    sound = all(0 <= value <= len(a.indices) for value in indptr) and indptr == sorted(indptr)
    used = a.indices[indptr[0] : indptr[-1]] if sound else a.indices[:0]
    in_range = bool(((used >= 0) & (used < a.shape[1])).all())
    x, out = np.ones(a.shape[1]), np.zeros(a.shape[0])
    kernel = _kernel("matvec", implementation)
    if sound and in_range:
        kernel({"A": a, "x": x, "out": out}, 0, a.shape[0])
        expected = [a.data[start:stop].sum() for start, stop in itertools.pairwise(indptr)]
        assert out.tolist() == expected
    elif a.shape[0] or not sound:
        with pytest.raises((InvalidMatrixError, IndexOutOfRangeError)):
            kernel({"A": a, "x": x, "out": out}, 0, a.shape[0])


@pytest.mark.parametrize("implementation", ["numba", "take"])
@given(
    idx=arrays.arrays(
        st.sampled_from([np.int32, np.int64, np.uint32, np.uint64]), st.integers(0, 200)
    ),
    rows=st.integers(0, 40),
    width=st.sampled_from([(), (0,), (1,), (3,)]),
    cut=st.floats(0, 1),
    tame=st.booleans(),
)
@quick
def test_a_gather_agrees_with_numpy_or_names_the_first_bad_index(
    implementation: str, idx: Array, rows: int, width: tuple[int, ...], cut: float, tame: bool
) -> None:
    if tame and rows:
        idx = idx % np.array(rows, idx.dtype)
    x = np.arange(rows * int(np.prod(width)), dtype=np.int16).reshape((rows, *width))
    out = np.full((len(idx), *width), -1, np.int16)
    start = int(cut * len(idx))
    bad = [place for place, value in enumerate(idx.tolist()) if not 0 <= value < rows]
    ours = [place for place in bad if place >= start]
    kernel = _kernel("gather", implementation)
    if ours:
        with pytest.raises(IndexOutOfRangeError) as caught:
            kernel({"x": x, "idx": idx, "out": out}, start, len(idx))
        assert caught.value.position == ours[0]
    else:
        kernel({"x": x, "idx": idx, "out": out}, start, len(idx))
        assert (out[start:] == x[idx[start:]]).all()
    assert (out[:start] == -1).all()


@given(
    counts=st.lists(st.integers(0, 1000), max_size=200),
    parts=st.integers(1, 40),
)
@quick
def test_partitions_cover_every_row_once(counts: list[int], parts: int) -> None:
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    for bounds in (by_nnz(indptr, parts), by_rows(len(counts), parts)):
        assert len(bounds) == parts + 1
        assert (bounds[0], bounds[-1]) == (0, len(counts))
        assert list(bounds) == sorted(bounds)
    weights = np.array(counts) + ROW_COST
    fair = weights.sum() / parts
    by_work = by_nnz(indptr, parts)
    for start, stop in itertools.pairwise(by_work):
        share = weights[start:stop].sum()
        assert share <= fair + weights.max(initial=0)


@given(indptr=arrays.arrays(np.int64, st.integers(1, 50)), parts=st.integers(1, 10))
@quick
def test_bounds_are_valid_whatever_indptr_holds(indptr: Array, parts: int) -> None:
    bounds = by_nnz(indptr, parts)
    assert (bounds[0], bounds[-1]) == (0, len(indptr) - 1)
    assert list(bounds) == sorted(bounds)
