"""Products with several vectors, with the transpose, and in parts that cut rows."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest

from hugepool import kernels
from hugepool.kernels import CsrArrays, csr
from hugepool.partition import by_nnz, merge_path
from hugepool_common.errors import (
    HugepoolError,
    IndexOutOfRangeError,
    InvalidMatrixError,
    InvalidSpecError,
)
from support.extras import need

Array = np.ndarray[Any, Any]
NAMES = ("matmat", "rmatvec", "matvec_split")
ALL = ("numba", "scipy", "numpy")


def _kernel(name: str, implementation: str) -> kernels.Kernel:
    if implementation != "numpy":
        need(implementation)
    return kernels.resolve(name, implementation)


def _numbers(rng: np.random.Generator, shape: Any, dtype: str) -> Array:
    numbers: Array = rng.integers(-50, 50, shape)
    if np.dtype(dtype).kind == "c":
        numbers = numbers + 1j * rng.integers(-50, 50, shape)
        return numbers.astype(dtype)
    magnitudes: Array = np.abs(numbers).astype(dtype)
    return magnitudes


def _matrix(
    rows: int = 60, columns: int = 40, dtype: str = "<f8", index_dtype: str = "<i4", most: int = 30
) -> CsrArrays:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, most, rows) * (rng.random(rows) < 0.8)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index_dtype)
    nnz = int(indptr[-1])
    indices = rng.integers(0, columns, nnz).astype(index_dtype)
    return CsrArrays(indptr, indices, _numbers(rng, nnz, dtype), (rows, columns))


def _dense(a: CsrArrays, dtype: Any) -> Array:
    dense = np.zeros(a.shape, dtype)
    rows = np.repeat(np.arange(a.shape[0]), np.diff(a.indptr))
    np.add.at(dense, (rows, a.indices), a.data.astype(dtype))
    return dense


def _operands(name: str, a: CsrArrays, dtype: str = "<f8", parts: int = 3) -> dict[str, Any]:
    """All operands that one of the kernels needs, the result filled with 77."""
    rng = np.random.default_rng(1)
    result = np.result_type(a.data, np.dtype(dtype))
    rows, columns = a.shape
    if name == "matmat":
        return {
            "A": a,
            "X": _numbers(rng, (columns, 5), dtype),
            "out": np.full((rows, 5), 77, result),
        }
    if name == "rmatvec":
        return {
            "A": a,
            "x": _numbers(rng, rows, dtype),
            "bounds": np.array(by_nnz(a.indptr, parts)),
            "partial": np.full((parts, columns), 77, result),
        }
    return {
        "A": a,
        "x": _numbers(rng, columns, dtype),
        "bounds": np.array(merge_path(a.indptr, parts)),
        "carry": np.full(2 * parts, 77, result),
        "out": np.full(rows, 77, result),
    }


def _ranges(name: str, operands: dict[str, Any]) -> int:
    return len(operands["out"]) if name == "matmat" else operands["bounds"].shape[-1] - 1


def _result(name: str, operands: dict[str, Any]) -> Array:
    """What the kernel's parts make together."""
    if name == "rmatvec":
        total: Array = operands["partial"].sum(axis=0)
        return total
    if name == "matvec_split":
        kernels.resolve("add_carries", "numpy")(operands, 0, len(operands["carry"]) // 2)
    out: Array = operands["out"]
    return out


def _expected(name: str, operands: dict[str, Any]) -> Array:
    a = operands["A"]
    x = operands["X" if name == "matmat" else "x"]
    dense = _dense(a, np.result_type(a.data, x))
    product: Array = (dense.T if name == "rmatvec" else dense) @ x
    return product


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index_dtype", ["<i4", "<i8"])
@pytest.mark.parametrize(
    ("data_dtype", "x_dtype"),
    [
        *[(code, code) for code in ("<i4", "<u4", "<i8", "<u8", "<f4", "<f8")],
        *[("<f4", "<f8"), ("<i4", "<f4"), ("<i8", "<u8"), ("<f8", "<i4")],
    ],
)
def test_every_combination_of_dtypes(
    implementation: str, name: str, index_dtype: str, data_dtype: str, x_dtype: str
) -> None:
    a = _matrix(dtype=data_dtype, index_dtype=index_dtype)
    operands = _operands(name, a, x_dtype)
    work = _kernel(name, implementation)(operands, 0, _ranges(name, operands))
    # Small integers: sums are exact in any order.
    np.testing.assert_array_equal(_result(name, operands), _expected(name, operands))
    assert work.nnz == a.nnz
    assert work.elements == 60


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", ["matmat", "matvec_split"])
@pytest.mark.parametrize("dtype", ["<c8", "<c16"])
def test_complex_products(implementation: str, name: str, dtype: str) -> None:
    operands = _operands(name, _matrix(dtype=dtype), dtype)
    _kernel(name, implementation)(operands, 0, _ranges(name, operands))
    np.testing.assert_array_equal(_result(name, operands), _expected(name, operands))


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (20, 21), (7, 59), (60, 60)])
def test_rows_outside_the_range_are_untouched(implementation: str, start: int, stop: int) -> None:
    operands = _operands("matmat", _matrix())
    _kernel("matmat", implementation)(operands, start, stop)
    out, expected = operands["out"], _expected("matmat", operands)
    assert (out[start:stop] == expected[start:stop]).all()
    assert (out[:start] == 77).all()
    assert (out[stop:] == 77).all()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_writes_its_own_result_only(implementation: str, part: int) -> None:
    operands = _operands("rmatvec", _matrix())
    _kernel("rmatvec", implementation)(operands, part, part + 1)
    touched = (operands["partial"] != 77).any(axis=1)
    assert touched.tolist() == [k == part for k in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_may_be_read_only(name: str) -> None:
    operands = _operands(name, _matrix())
    written = {"matmat": "out", "rmatvec": "partial", "matvec_split": "carry out"}[name].split()
    a = operands["A"]
    arrays = [value for role, value in operands.items() if role not in (*written, "A")]
    for array in (a.indptr, a.indices, a.data, *arrays):
        array.flags.writeable = False
    for implementation in kernels.available(name):
        _kernel(name, implementation)(operands, 0, _ranges(name, operands))
        np.testing.assert_array_equal(_result(name, operands), _expected(name, operands))


@pytest.mark.parametrize("name", NAMES)
def test_prefetching_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = _matrix(4000, 20_000, most=60)
    a.data[:] = np.random.default_rng(2).standard_normal(a.nnz)
    kernel = _kernel(name, "numba")
    found = []
    for cache_bytes in (1 << 40, 1 << 10):
        monkeypatch.setattr(
            csr, "last_level_cache_bytes", lambda cache_bytes=cache_bytes: cache_bytes
        )
        operands = _operands(name, a)
        kernel(operands, 0, _ranges(name, operands))
        found.append(_result(name, operands).tobytes())
        assert csr.pays_to_prefetch(a, 8) == (cache_bytes == 1 << 10)
    assert found[0] == found[1]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 11, 16, 31, 32, 33, 47, 63, 64, 100])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i8", "<i4"])
def test_any_number_of_vectors(width: int, dtype: str) -> None:
    a = _matrix(dtype=dtype)
    x = _numbers(np.random.default_rng(3), (40, width), dtype)
    out = np.full((60, width), 77, dtype)
    _kernel("matmat", "numba")({"A": a, "X": x, "out": out}, 0, 60)
    np.testing.assert_array_equal(out, _dense(a, dtype) @ x)


@pytest.mark.parametrize("implementation", ["numba", "numpy"])
def test_parts_are_added_from_left_to_right(implementation: str) -> None:
    partial = np.array([[1.0, -0.0], [1e100, 0.0], [-1e100, -0.0]])
    out = np.zeros(2)
    kernels.resolve("sum_parts", implementation)({"partial": partial, "out": out}, 0, 2)
    assert out.tolist() == [0.0, 0.0]
    # One part is copied, sign of zero and all.
    kernels.resolve("sum_parts", implementation)({"partial": partial[:1], "out": out}, 0, 2)
    assert out.tobytes() == partial[0].tobytes()


@pytest.mark.parametrize("implementation", kernels.available("matvec_split"))
def test_one_row_for_all_parts(implementation: str) -> None:
    a = CsrArrays(np.array([0, 1000]), np.arange(1000), np.ones(1000), (1, 1000))
    operands = _operands("matvec_split", a, parts=7)
    _kernel("matvec_split", implementation)(operands, 0, 7)
    assert operands["out"].tolist() == [77]  # only the second phase knows the whole
    assert _result("matvec_split", operands).tolist() == [operands["x"].sum()]


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_go_through_without_a_warning(implementation: str, name: str) -> None:
    a = _matrix()
    a.data[::7] = np.inf
    operands = _operands(name, a)
    operands["X" if name == "matmat" else "x"][3] = np.nan
    kernel = _kernel(name, implementation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel(operands, 0, _ranges(name, operands))
    assert np.isnan(_result(name, operands)).any()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [40, -1, -(2**31), 2**31 - 1])
def test_the_first_bad_column_is_named(implementation: str, name: str, value: int) -> None:
    good = _matrix()
    for position in (0, 5, good.nnz // 2, good.nnz - 1):
        a = CsrArrays(good.indptr, good.indices.copy(), good.data, good.shape)
        a.indices[position] = value
        operands = _operands(name, a, parts=1)
        with pytest.raises(IndexOutOfRangeError) as caught:
            _kernel(name, implementation)(operands, 0, _ranges(name, operands))
        assert caught.value.position == position
        assert caught.value.had == str(value)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0, 1, 30, 59, 60])
@pytest.mark.parametrize("value", [-1, 10**6, -(2**31), 2**31 - 1])
def test_a_hostile_indptr_is_refused(
    implementation: str, name: str, position: int, value: int
) -> None:
    operands = _operands(name, _matrix(), parts=2)
    operands["A"].indptr[position] = value
    with pytest.raises(InvalidMatrixError):
        _kernel(name, implementation)(operands, 0, _ranges(name, operands))


@pytest.mark.parametrize("implementation", ["numba", "numpy"])
@pytest.mark.parametrize("name", NAMES)
def test_a_matrix_that_changes_meanwhile_does_not_fault(implementation: str, name: str) -> None:
    operands = _operands(name, _matrix(500, 400))
    a = operands["A"]
    kernel = _kernel(name, implementation)
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
                kernel(operands, 0, _ranges(name, operands))
            except (InvalidMatrixError, IndexOutOfRangeError):
                pass
    finally:
        over.set()
        thread.join()
    kernel(operands, 0, _ranges(name, operands))
    np.testing.assert_array_equal(_result(name, operands), _expected(name, operands))


def _read_only(shape: Any) -> Array:
    array = np.ones(shape)
    array.flags.writeable = False
    return array


_DATA = _matrix()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    ("name", "kind", "changed"),
    [
        ("matmat", InvalidSpecError, {"A": np.ones((60, 40))}),
        ("matmat", InvalidSpecError, {"X": np.ones(40)}),
        ("matmat", InvalidSpecError, {"X": np.ones((39, 5))}),
        ("matmat", InvalidSpecError, {"X": np.ones((40, 4))}),
        ("matmat", InvalidSpecError, {"X": np.ones((5, 40)).T}),
        ("matmat", InvalidSpecError, {"X": np.ones((40, 5), "<f2")}),
        ("matmat", InvalidSpecError, {"out": np.ones((60, 5), "<f4")}),
        ("matmat", InvalidSpecError, {"out": np.ones((59, 5))}),
        ("matmat", InvalidSpecError, {"out": _read_only((60, 5))}),
        ("matmat", InvalidSpecError, {"out": _DATA.data[:300].reshape(60, 5), "A": _DATA}),
        ("rmatvec", InvalidSpecError, {"x": np.ones(61)}),
        ("rmatvec", InvalidSpecError, {"x": np.ones(60, complex)}),
        ("rmatvec", InvalidSpecError, {"bounds": np.array([0, 60])}),
        ("rmatvec", InvalidSpecError, {"bounds": np.zeros(0, np.int64)}),
        ("rmatvec", InvalidSpecError, {"bounds": np.array([0, 20, 40, 60], np.int32)}),
        ("rmatvec", InvalidSpecError, {"partial": np.ones((2, 40))}),
        ("rmatvec", InvalidSpecError, {"partial": _read_only((3, 40))}),
        ("rmatvec", InvalidMatrixError, {"bounds": np.array([0, 20, 40, 61])}),
        ("rmatvec", InvalidMatrixError, {"bounds": np.array([0, 40, 20, 60])}),
        ("rmatvec", InvalidMatrixError, {"bounds": np.array([-1, 20, 40, 60])}),
        ("matvec_split", InvalidSpecError, {"x": np.ones(39)}),
        ("matvec_split", InvalidSpecError, {"carry": np.ones(5)}),
        ("matvec_split", InvalidSpecError, {"carry": np.ones(8)}),
        ("matvec_split", InvalidSpecError, {"carry": np.ones(6, "<f4")}),
        ("matvec_split", InvalidSpecError, {"carry": _read_only(6)}),
        ("matvec_split", InvalidSpecError, {"out": _read_only(60)}),
        ("matvec_split", InvalidSpecError, {"out": np.ones(59)}),
        ("matvec_split", InvalidSpecError, {"bounds": np.zeros((2, 1), np.int64)}),
        ("matvec_split", InvalidMatrixError, {"bounds": np.zeros((2, 4), np.int64)}),
        ("matvec_split", InvalidMatrixError, {"bounds": np.array([[0, 50, 20, 60]] * 2)}),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    implementation: str, name: str, kind: type[HugepoolError], changed: dict[str, Any]
) -> None:
    operands = _operands(name, _matrix())
    kernel = _kernel(name, implementation)
    with pytest.raises(kind):
        kernel(operands | changed, 0, _ranges(name, operands))
    with pytest.raises(InvalidSpecError):
        kernel(operands, 0, _ranges(name, operands) + 1)
    kernel(operands, 0, _ranges(name, operands))
    np.testing.assert_array_equal(_result(name, operands), _expected(name, operands))


@pytest.mark.parametrize("name", [*NAMES, "add_carries", "sum_parts"])
def test_what_is_bound_computes_what_the_kernel_does(name: str) -> None:
    first = "matvec_split" if name == "add_carries" else "rmatvec" if name == "sum_parts" else name
    operands = _operands(first, _matrix())
    if name != first:
        _kernel(first, "numba")(operands, 0, 3)
        operands["out"] = operands.get("out", np.zeros(40))
    kernel: Any = _kernel(name, "numba")
    kernel.prepare(operands)
    bound = kernel.bind(operands)
    outcome = bound.loop(*bound.arguments, 0, bound.rows)
    ended = outcome[0] if isinstance(outcome, tuple) else outcome
    assert ended == bound.succeeded
    result = operands["out"] if name == "sum_parts" else _result(first, operands)
    np.testing.assert_array_equal(result, _expected(first, operands))


@pytest.mark.parametrize("name", NAMES)
def test_prepare_writes_nothing(name: str) -> None:
    for implementation in kernels.available(name):
        operands = _operands(name, _matrix())
        kernels.resolve(name, implementation).prepare(operands)
        for role in {"out", "partial", "carry"} & operands.keys():
            assert (operands[role] == 77).all()
