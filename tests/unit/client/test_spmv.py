"""Products against SciPy's own, and matrices that lie."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest

from hugepool import kernels
from hugepool.kernels import CsrArrays, csr, spmv
from hugepool_common.errors import (
    HugepoolError,
    IndexOutOfRangeError,
    InvalidMatrixError,
    InvalidSpecError,
)
from support.extras import need

Array = np.ndarray[Any, Any]
ALL = ("numba", "scipy", "numpy")


def _kernel(implementation: str) -> kernels.Kernel:
    if implementation != "numpy":
        need(implementation)
    return kernels.resolve("matvec", implementation)


def _random(
    rows: int, columns: int, *, dtype: str = "<f8", index_dtype: str = "<i4", seed: int = 0
) -> CsrArrays:
    """Rows of 0 to 40 entries, some of them empty; columns in no order, some twice."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 41, rows) * (rng.random(rows) < 0.8)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index_dtype)
    nnz = int(indptr[-1])
    return CsrArrays(
        indptr,
        rng.integers(0, columns, nnz).astype(index_dtype),
        _numbers(rng, nnz, dtype),
        (rows, columns),
    )


def _numbers(rng: np.random.Generator, count: int, dtype: str) -> Array:
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, count).astype(dtype)
    numbers = rng.standard_normal(count)
    if np.dtype(dtype).kind == "c":
        return (numbers + 1j * rng.standard_normal(count)).astype(dtype)
    return numbers.astype(dtype)


def _dense_product(a: CsrArrays, x: Array) -> Array:
    """The product by the definition, one entry after the other, in the result's dtype."""
    out = np.zeros(a.shape[0], np.result_type(a.data, x))
    kind = out.dtype.type
    for row in range(a.shape[0]):
        total = kind(0)
        for entry in range(a.indptr[row], a.indptr[row + 1]):
            total = kind(total + kind(a.data[entry]) * kind(x[a.indices[entry]]))
        out[row] = total
    return out


def _operands(a: CsrArrays, *, dtype: str = "<f8") -> dict[str, Any]:
    x = _numbers(np.random.default_rng(9), a.shape[1], dtype)
    return {"A": a, "x": x, "out": np.full(a.shape[0], 77, np.result_type(a.data, x))}


@pytest.mark.parametrize("implementation", ["numba", "scipy"])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i4", "<i8"])
@pytest.mark.parametrize("index_dtype", ["<i4", "<i8"])
def test_equal_to_the_definition_bit_for_bit(
    implementation: str, dtype: str, index_dtype: str
) -> None:
    a = _random(120, 90, dtype=dtype, index_dtype=index_dtype)
    operands = _operands(a, dtype=dtype)
    work = _kernel(implementation)(operands, 0, 120)
    assert operands["out"].tobytes() == _dense_product(a, operands["x"]).tobytes()
    nnz = len(a.indices)
    item_bytes = a.data.itemsize
    needed = nnz * (a.indices.itemsize + item_bytes) + 120 * (a.indptr.itemsize + item_bytes)
    assert work == kernels.Work(120, nnz, needed + 90 * item_bytes)


def test_equal_to_scipy_bit_for_bit() -> None:
    need("scipy")
    from scipy.sparse import csr_array

    a = _random(3000, 2000, seed=4)
    operands = _operands(a)
    expected = csr_array((a.data, a.indices, a.indptr), shape=a.shape) @ operands["x"]
    for implementation in ("numba", "scipy"):
        operands["out"][:] = 0
        _kernel(implementation)(operands, 0, 3000)
        assert operands["out"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", spmv.VALUE_CODES)
def test_numpy_is_right_up_to_rounding(dtype: str) -> None:
    a = _random(200, 90, dtype=dtype)
    operands = _operands(a, dtype=dtype)
    _kernel("numpy")(operands, 0, 200)
    expected = _dense_product(a, operands["x"])
    tolerance = 0.0 if np.dtype(dtype).kind in "iu" else 200 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(operands["out"], expected, rtol=tolerance, atol=tolerance * 40)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("data_dtype", "x_dtype"),
    [("<f4", "<f8"), ("<i4", "<f8"), ("<c8", "<c8"), ("<f8", "<c16"), ("<i8", "<u8")],
)
def test_mixed_dtypes(implementation: str, data_dtype: str, x_dtype: str) -> None:
    a = _random(60, 50, dtype=data_dtype)
    operands = _operands(a, dtype=x_dtype)
    _kernel(implementation)(operands, 0, 60)
    expected = _dense_product(a, operands["x"])
    assert operands["out"].dtype == expected.dtype
    tolerance = 500 * np.finfo(expected.dtype).eps
    np.testing.assert_allclose(operands["out"], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (17, 18), (17, 60), (99, 100), (100, 100), (0, 100)]
)
def test_rows_outside_the_range_are_untouched(implementation: str, start: int, stop: int) -> None:
    a = _random(100, 80)
    for array in (a.indptr, a.indices, a.data):
        array.flags.writeable = False
    operands = _operands(a)
    operands["x"].flags.writeable = False
    _kernel(implementation)(operands, start, stop)
    out = operands["out"]
    np.testing.assert_allclose(out[start:stop], _dense_product(a, operands["x"])[start:stop])
    assert (out[:start] == 77).all()
    assert (out[stop:] == 77).all()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (4, 3)])
def test_matrices_without_entries(implementation: str, shape: tuple[int, int]) -> None:
    a = CsrArrays(np.zeros(shape[0] + 1, np.int32), np.zeros(0, np.int32), np.zeros(0), shape)
    operands = _operands(a)
    _kernel(implementation)(operands, 0, shape[0])
    assert not operands["out"].any()


@pytest.mark.parametrize("implementation", ALL)
def test_one_giant_row_between_empty_ones(implementation: str) -> None:
    nnz = spmv._BLOCK_ENTRIES + 1000
    columns = np.arange(nnz, dtype=np.int32) % 70
    indptr = np.array([0, 0, nnz - 3, nnz - 3, nnz, nnz], np.int32)
    operands = _operands(CsrArrays(indptr, columns, np.ones(nnz), (5, 70)))
    _kernel(implementation)(operands, 0, 5)
    x = operands["x"]
    expected = [0, x[columns[: nnz - 3]].sum(), 0, x[columns[nnz - 3 :]].sum(), 0]
    np.testing.assert_allclose(operands["out"], expected, rtol=1e-10)


@pytest.mark.parametrize("implementation", ALL)
def test_a_bad_value_stays_in_its_row(implementation: str) -> None:
    a = _random(80, 60, seed=3)
    operands = _operands(a)
    operands["x"][7] = np.nan
    _kernel(implementation)(operands, 0, 80)
    touched = [
        7 in a.indices[begin:end] for begin, end in zip(a.indptr, a.indptr[1:], strict=False)
    ]
    assert np.isnan(operands["out"]).tolist() == touched


def _scattered() -> CsrArrays:
    rng = np.random.default_rng(8)
    lengths = rng.integers(0, 60, 2500)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    nnz = int(indptr[-1])
    assert nnz > csr._FEWEST_ENTRIES
    columns = rng.integers(0, 100_000, nnz, dtype=np.int32)
    return CsrArrays(indptr, columns, rng.random(nnz), (2500, 100_000))


def _banded() -> CsrArrays:
    rows = 10_000
    columns = np.arange(rows)[:, np.newaxis] + np.arange(-4, 5)
    indptr = np.arange(0, rows * 9 + 1, 9)
    return CsrArrays(indptr, np.clip(columns, 0, rows - 1).ravel(), np.ones(rows * 9), (rows, rows))


def test_prefetching_is_for_scattered_columns_of_a_large_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = _random(200, 100_000)
    monkeypatch.setattr(csr, "last_level_cache_bytes", lambda: 1 << 40)
    assert not csr.pays_to_prefetch(_scattered(), 8)
    monkeypatch.setattr(csr, "last_level_cache_bytes", lambda: 1 << 10)
    assert csr.pays_to_prefetch(_scattered(), 8)
    assert not csr.pays_to_prefetch(few, 8)
    assert not csr.pays_to_prefetch(_banded(), 8)


def test_prefetching_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _kernel("numba")
    operands = _operands(_scattered())
    kernel(operands, 0, 2500)
    plain = operands["out"].tobytes()
    monkeypatch.setattr(csr, "last_level_cache_bytes", lambda: 1 << 10)
    operands["out"][:] = 0
    kernel(operands, 0, 2500)
    assert operands["out"].tobytes() == plain


@pytest.mark.parametrize("prefetching", [False, True])
@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("value", [100_000, -1, -(2**31), 2**31 - 1])
def test_first_bad_column_is_named(
    implementation: str, value: int, prefetching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if prefetching:
        monkeypatch.setattr(csr, "last_level_cache_bytes", lambda: 1 << 10)
    good = _scattered()
    nnz = len(good.indices)
    for position in (0, 1, 2, 3, 4, 1000, nnz - 33, nnz - 32, nnz - 1):
        a = CsrArrays(good.indptr, good.indices.copy(), good.data, good.shape)
        a.indices[position] = value
        with pytest.raises(IndexOutOfRangeError) as caught:
            _kernel(implementation)(_operands(a), 0, 2500)
        assert caught.value.position == position
        assert caught.value.had == str(value)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("index_dtype", ["<i4", "<i8"])
@pytest.mark.parametrize("position", [0, 1, 50, 99, 100])
@pytest.mark.parametrize("value", ["below", "above", "lowest", "highest"])
def test_hostile_indptr_is_refused(
    implementation: str, index_dtype: str, position: int, value: str
) -> None:
    a = _random(100, 60, index_dtype=index_dtype)
    limits = np.iinfo(index_dtype)
    a.indptr[position] = {
        "below": -1,
        "above": len(a.indices) + 1,
        "lowest": limits.min,
        "highest": limits.max,
    }[value]
    operands = _operands(a)
    with pytest.raises(InvalidMatrixError):
        _kernel(implementation)(operands, 0, 100)
    assert (operands["out"][position:] == 77).all()


@pytest.mark.parametrize("implementation", ALL)
def test_a_falling_indptr_is_refused_only_by_the_rows_that_use_it(implementation: str) -> None:
    a = CsrArrays(np.array([0, 3, 2, 4]), np.arange(4), np.ones(4), (3, 4))
    kernel = _kernel(implementation)
    with pytest.raises(InvalidMatrixError, match=r"indptr\[2\] is 2"):
        kernel(_operands(a), 0, 3)
    with pytest.raises(InvalidMatrixError):
        kernel(_operands(a), 1, 2)
    kernel(_operands(a), 0, 1)
    kernel(_operands(a), 2, 3)


@pytest.mark.parametrize("implementation", ["numba", "numpy"])
def test_a_matrix_that_changes_meanwhile_does_not_fault(implementation: str) -> None:
    a = _scattered()
    operands = _operands(a)
    kernel = _kernel(implementation)
    kernel.prepare(operands)
    over = threading.Event()
    indices, indptr = a.indices.copy(), a.indptr.copy()

    def disturb() -> None:
        while not over.is_set():
            a.indices[::5] = 2**31 - 1
            a.indptr[::9] = -5
            a.indices[:] = indices
            a.indptr[:] = indptr

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(200):
            try:
                kernel(operands, 0, 2500)
            except (InvalidMatrixError, IndexOutOfRangeError):
                pass
    finally:
        over.set()
        thread.join()
    kernel(operands, 0, 2500)


_X = np.ones(4)
_MATRIX = CsrArrays(np.array([0, 2, 4]), np.array([0, 1, 2, 3]), np.ones(4), (2, 4))
_READONLY = np.ones(2)
_READONLY.flags.writeable = False


def _changed(**parts: Any) -> CsrArrays:
    known = {name: getattr(_MATRIX, name) for name in ("indptr", "indices", "data", "shape")}
    return CsrArrays(**(known | parts))


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("kind", "operands"),
    [
        (InvalidSpecError, {"A": None}),
        (InvalidSpecError, {"A": np.ones((2, 4))}),
        (InvalidSpecError, {"x": np.ones(5)}),
        (InvalidSpecError, {"x": np.ones((4, 1))}),
        (InvalidSpecError, {"x": np.ones(8)[::2]}),
        (InvalidSpecError, {"x": np.ones(4, "<f2")}),
        (InvalidSpecError, {"out": np.ones(3)}),
        (InvalidSpecError, {"out": np.ones(2, "<f4")}),
        (InvalidSpecError, {"out": _READONLY}),
        (InvalidSpecError, {"x": _X, "out": _X[:2]}),
        (InvalidSpecError, {"A": _changed(indptr=np.array([0.0, 2.0, 4.0]))}),
        (InvalidSpecError, {"A": _changed(indices=np.arange(4, dtype=np.uint32))}),
        (InvalidSpecError, {"A": _changed(data=np.ones(4, bool))}),
        (InvalidMatrixError, {"A": _changed(indptr=np.array([0, 2]))}),
        (InvalidMatrixError, {"A": _changed(indptr=np.zeros(0, np.int64))}),
        (InvalidMatrixError, {"A": _changed(data=np.ones(3))}),
        (InvalidMatrixError, {"A": _changed(shape=(-2, 4))}),
        (InvalidMatrixError, {"A": _changed(indptr=np.array([0, 2, 5]))}),
        (IndexOutOfRangeError, {"A": _changed(shape=(2, 3)), "x": np.ones(3)}),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    implementation: str, kind: type[HugepoolError], operands: dict[str, Any]
) -> None:
    good: dict[str, Any] = {"A": _MATRIX, "x": np.ones(4), "out": np.zeros(2)}
    kernel = _kernel(implementation)
    with pytest.raises(kind):
        kernel(good | operands, 0, 2)
    kernel(good, 0, 2)
    assert (good["out"] == 2).all()


def test_prepare_writes_nothing() -> None:
    for implementation in kernels.available("matvec"):
        operands: dict[str, Any] = {"A": _MATRIX, "x": np.ones(4), "out": np.zeros(2)}
        kernels.resolve("matvec", implementation).prepare(operands)
        assert not operands["out"].any()


@pytest.mark.parametrize("implementation", kernels.available("matvec"))
def test_nan_and_infinity_go_through_without_a_warning(implementation: str) -> None:
    a = CsrArrays(
        np.array([0, 2, 3, 5]),
        np.array([0, 1, 2, 0, 2]),
        np.array([1.0, np.inf, np.nan, 1e308, 1e308]),
        (3, 3),
    )
    out = np.zeros(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = kernels.resolve("matvec", implementation)
        kernel({"A": a, "x": np.array([1e308, 0.0, 1.0]), "out": out}, 0, 3)
    assert np.isnan(out[:2]).all()
    assert out[2] == np.inf
