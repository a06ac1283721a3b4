"""Gathers against NumPy's own, and indices that lie."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hugepool import kernels
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError, MissingExtraError
from hugepool_common.spec import ITEM_SIZES
from support.extras import need

Array = np.ndarray[Any, Any]
STRICT = ("numba", "take")
INDEX_DTYPES = ("<i4", "<i8", "<u4", "<u8")


def _kernel(implementation: str) -> kernels.Kernel:
    if implementation == "numba":
        need("numba")
    return kernels.resolve("gather", implementation)


def _values(shape: tuple[int, ...], dtype: str) -> Array:
    count = int(np.prod(shape)) * ITEM_SIZES[dtype]
    raw = np.random.default_rng(5).integers(0, 2, count, dtype=np.uint8)
    if dtype != "|b1":
        raw = np.random.default_rng(5).integers(0, 256, count, dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


def _same_bits(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("implementation", [*STRICT, "fancy-store"])
@pytest.mark.parametrize("dtype", list(ITEM_SIZES))
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
def test_every_dtype_moves_bit_for_bit(implementation: str, dtype: str, index_dtype: str) -> None:
    x = _values((97,), dtype)
    idx = np.random.default_rng(1).integers(0, 97, 201).astype(index_dtype)
    out = np.zeros(201, dtype)
    work = _kernel(implementation)({"x": x, "idx": idx, "out": out}, 0, 201)
    assert _same_bits(out, x[idx])
    assert work == kernels.Work(201, 0, 201 * (idx.itemsize + 2 * x.itemsize))


@pytest.mark.parametrize("implementation", STRICT)
@pytest.mark.parametrize(
    ("x_shape", "idx_shape"),
    [
        ((1,), (1,)),
        ((1,), (0,)),
        ((0,), (0,)),
        ((0, 3), (0,)),
        ((5,), ()),
        ((50,), (4, 25)),
        ((50, 3), (40,)),
        ((50, 64), (40,)),
        ((50, 2, 3), (7, 5)),
        ((50, 0), (9,)),
    ],
)
def test_shapes(implementation: str, x_shape: tuple[int, ...], idx_shape: tuple[int, ...]) -> None:
    x = _values(x_shape, "<f4")
    idx = np.random.default_rng(2).integers(0, max(x_shape[0], 1), idx_shape)
    out = np.zeros(idx_shape + x_shape[1:], "<f4")
    rows = int(np.prod(idx_shape))
    _kernel(implementation)({"x": x, "idx": idx, "out": out}, 0, rows)
    assert _same_bits(out, np.asarray(x[idx]) if rows else out)


ROW_BYTES = (*range(10), 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129)


@pytest.mark.parametrize("nbytes", [10_000, 5 << 20])  # prefetched or not
@pytest.mark.parametrize("row_bytes", [*ROW_BYTES, 191, 192, 1000, 2048, 2049, 4096])
def test_rows_of_any_width(row_bytes: int, nbytes: int) -> None:
    rows = nbytes // max(row_bytes, 1)
    rng = np.random.default_rng(row_bytes)
    x = rng.integers(0, 256, (rows, row_bytes), dtype=np.uint8)
    idx = rng.integers(0, rows, 203)
    out = np.full((203, row_bytes), 7, np.uint8)
    _kernel("numba")({"x": x, "idx": idx, "out": out}, 5, 200)
    np.testing.assert_array_equal(out[5:200], x[idx[5:200]])
    assert (out[:5] == 7).all() and (out[200:] == 7).all()
    out[:] = 7
    for bad in (199, 150, 5):
        idx[bad] = rows
        with pytest.raises(IndexOutOfRangeError) as caught:
            _kernel("numba")({"x": x, "idx": idx, "out": out}, 5, 200)
        assert caught.value.position == bad
    assert (out[:5] == 7).all() and (out[199:] == 7).all()


@pytest.mark.parametrize("x_rows", [1000, 200_000])  # prefetched or not
@pytest.mark.parametrize("row_bytes", [32, 64, 96, 320, 4096])
@pytest.mark.parametrize("shift", [0, 1, 32])
def test_a_large_result_of_rows(row_bytes: int, x_rows: int, shift: int) -> None:
    x_rows = min(x_rows, (8 << 20) // row_bytes)
    rng = np.random.default_rng(row_bytes)
    x = rng.integers(0, 256, (x_rows, row_bytes), dtype=np.uint8)
    idx = rng.integers(0, x_rows, (20 << 20) // row_bytes, dtype=np.int32)
    raw = np.full(idx.size * row_bytes + 128, 7, np.uint8)
    begin = -raw.ctypes.data % 64 + shift
    out = raw[begin : begin + idx.size * row_bytes].reshape(idx.size, row_bytes)
    for start, stop in ((0, 1), (1, 77), (77, idx.size - 3)):
        _kernel("numba")({"x": x, "idx": idx, "out": out}, start, stop)
    assert np.array_equal(out[:-3], x[idx[:-3]])
    assert (out[-3:] == 7).all() and (raw[:begin] == 7).all()
    idx[70_000 if idx.size > 70_000 else 4000] = -1
    with pytest.raises(IndexOutOfRangeError):
        _kernel("numba")({"x": x, "idx": idx, "out": out}, 0, idx.size)


@pytest.mark.parametrize("implementation", [*STRICT, "fancy-store"])
@pytest.mark.parametrize("row_shape", [(), (3,)])
@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (7, 39), (7, 40), (5, 99), (99, 100), (100, 100)]
)
def test_rows_outside_the_range_are_untouched(
    implementation: str, row_shape: tuple[int, ...], start: int, stop: int
) -> None:
    x = np.arange(50 * int(np.prod(row_shape)), dtype=np.float64).reshape((50, *row_shape))
    idx = np.random.default_rng(3).integers(0, 50, 100)
    idx[:start] = -7  # a bad index of somebody else's rows is not ours to find
    idx[stop:] = 1 << 40
    out = np.full((100, *row_shape), -1.0)
    x.flags.writeable = False
    idx.flags.writeable = False
    _kernel(implementation)({"x": x, "idx": idx, "out": out}, start, stop)
    assert (out[start:stop] == x[idx[start:stop]]).all()
    assert (out[:start] == -1).all()
    assert (out[stop:] == -1).all()


def test_readonly_and_writable_inputs_share_one_specialisation() -> None:
    need("numba")
    from hugepool.kernels import gather

    kernel = _kernel("numba")
    x, idx, out = np.arange(9.0), np.arange(9), np.zeros(9)
    kernel({"x": x, "idx": idx, "out": out}, 0, 9)
    before = dict(gather._gather_elements._compiled)
    x.flags.writeable = False
    kernel({"x": x, "idx": idx, "out": out}, 0, 9)
    assert gather._gather_elements._compiled == before
    assert all(len(loop.signatures) == 1 for loop in before.values())  # type: ignore[attr-defined]


BORDERS = (0, 1, 31, 32, 33, 2047, 2048, 2049, 4095, 4096, 4999)


@pytest.mark.parametrize("implementation", STRICT)
@pytest.mark.parametrize("row_shape", [(), (5,)])
@pytest.mark.parametrize("position", BORDERS)
def test_first_bad_position_is_named(
    implementation: str, row_shape: tuple[int, ...], position: int
) -> None:
    x = np.ones((100, *row_shape))
    idx = np.random.default_rng(4).integers(0, 100, 5000)
    idx[position] = 100
    idx[position + 1 :: 7] = -3
    out = np.zeros((5000, *row_shape))
    with pytest.raises(IndexOutOfRangeError) as caught:
        _kernel(implementation)({"x": x, "idx": idx, "out": out}, 0, 5000)
    assert caught.value.position == position
    assert caught.value.had == "100"
    assert "100" in caught.value.needed
    assert not out[position:].any()


@pytest.mark.parametrize("implementation", STRICT)
@pytest.mark.parametrize(
    ("index_dtype", "value"),
    [
        ("<i4", -1),
        ("<i4", 10),
        ("<i4", -(2**31)),
        ("<i4", 2**31 - 1),
        ("<i8", -1),
        ("<i8", -(2**63)),
        ("<i8", 2**63 - 1),
        ("<i8", 2**32),
        ("<u4", 2**32 - 1),
        ("<u4", 2**31),
        ("<u8", 2**63),
        ("<u8", 2**64 - 1),
        ("<u8", 10),
    ],
)
def test_extreme_values_are_refused(implementation: str, index_dtype: str, value: int) -> None:
    idx = np.zeros(70, index_dtype)
    idx[69] = value
    for x in (np.ones(10), np.ones((10, 3))):
        out = np.zeros((70, *x.shape[1:]))
        with pytest.raises(IndexOutOfRangeError) as caught:
            _kernel(implementation)({"x": x, "idx": idx, "out": out}, 0, 70)
        assert (caught.value.position, caught.value.had) == (69, str(value))


@pytest.mark.parametrize("implementation", STRICT)
def test_a_negative_32_bit_index_is_refused_by_a_source_over_2_to_the_31(
    implementation: str,
) -> None:
    x = np.zeros(2**32 - 1, np.uint8)  # never touched, so never in memory
    idx = np.array([-2], np.int32)
    with pytest.raises(IndexOutOfRangeError):
        _kernel(implementation)({"x": x, "idx": idx, "out": np.zeros(1, np.uint8)}, 0, 1)


@pytest.mark.parametrize("implementation", STRICT)
def test_no_index_is_valid_for_an_empty_source(implementation: str) -> None:
    operands = {"x": np.ones(0), "idx": np.zeros(3, np.int64), "out": np.ones(3)}
    with pytest.raises(IndexOutOfRangeError) as caught:
        _kernel(implementation)(operands, 1, 3)
    assert caught.value.position == 1


def _refused(**changed: Any) -> dict[str, Any]:
    return {"x": np.ones(10), "idx": np.arange(10), "out": np.full(10, -1.0)} | changed


_SHARED = np.arange(20.0)
_READONLY = np.full(10, -1.0)
_READONLY.flags.writeable = False


@pytest.mark.parametrize("implementation", [*STRICT, "fancy"])
@pytest.mark.parametrize(
    "operands",
    [
        _refused(x=None),
        _refused(x=[1.0] * 10),
        _refused(x=np.ones(10, ">f8")),
        _refused(x=np.ones(10, object)),
        _refused(x=np.ones(20)[::2]),
        _refused(x=np.array(1.0)),
        _refused(x=np.ones(10, "<f4")),
        _refused(x=np.ones((10, 2))),
        _refused(idx=np.arange(10.0)),
        _refused(idx=np.arange(10, dtype=np.int16)),
        _refused(idx=np.arange(20)[::2]),
        _refused(idx=np.arange(9)),
        _refused(out=_READONLY),
        _refused(out=np.ones(20)[::2]),
        _refused(x=_SHARED[:10], out=_SHARED[5:15]),
        _refused(idx=np.arange(10), x=_SHARED[:10], out=_SHARED[9:19]),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    implementation: str, operands: dict[str, Any]
) -> None:
    before = [np.array(one, copy=True) for one in operands.values()]
    with pytest.raises(InvalidSpecError):
        _kernel(implementation)(operands, 0, 10)
    for one, kept in zip(operands.values(), before, strict=True):
        assert (np.asarray(one) == kept).all()


@pytest.mark.parametrize("implementation", [*STRICT, "fancy"])
@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 11), (11, 11)])
def test_row_ranges_that_do_not_fit_are_refused(implementation: str, start: int, stop: int) -> None:
    with pytest.raises(InvalidSpecError):
        _kernel(implementation)(_refused(), start, stop)


@pytest.mark.parametrize("implementation", STRICT)
def test_misaligned_values_are_gathered(implementation: str) -> None:
    raw = np.zeros(81, np.uint8)
    x = np.frombuffer(raw.data, "<f8", count=10, offset=1)
    raw[1:] = np.random.default_rng(0).integers(0, 255, 80, dtype=np.uint8)
    idx, out = np.arange(9, -1, -1), np.zeros(10)
    _kernel(implementation)({"x": x, "idx": idx, "out": out}, 0, 10)
    assert _same_bits(out, x[::-1])


def test_misaligned_indices_are_refused() -> None:
    idx = np.frombuffer(bytes(81), "<i8", count=10, offset=1)
    for implementation in kernels.available("gather"):
        with pytest.raises(InvalidSpecError, match="aligned"):
            kernels.resolve("gather", implementation)(_refused(idx=idx), 0, 10)


@pytest.mark.parametrize("implementation", STRICT)
def test_indices_that_change_meanwhile_do_not_fault(implementation: str) -> None:
    x = np.ones(1000)
    idx = np.zeros(200_000, np.int64)
    out = np.zeros(len(idx))
    kernel = _kernel(implementation)
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            idx[::3] = 1 << 62
            idx[::3] = 5

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(100):
            try:
                kernel({"x": x, "idx": idx, "out": out}, 0, len(idx))
            except IndexOutOfRangeError as error:
                assert error.had == str(1 << 62)
    finally:
        over.set()
        thread.join()
    assert set(np.unique(out)) <= {0.0, 1.0}


def test_fancy_drops_its_result() -> None:
    operands = _refused(idx=np.array([3, -1, 2]), out=np.full(3, -1.0))
    kernels.resolve("gather", "fancy")(operands, 0, 3)
    assert (operands["out"] == -1).all()


@pytest.mark.parametrize("implementation", ["fancy", "fancy-store"])
@pytest.mark.parametrize("value", [10, -11])
def test_fancy_names_the_position_too(implementation: str, value: int) -> None:
    idx = np.array([3, -1, 2, value, value])
    with pytest.raises(IndexOutOfRangeError) as caught:
        kernels.resolve("gather", implementation)(_refused(idx=idx, out=np.zeros(5)), 1, 5)
    assert (caught.value.position, caught.value.had) == (3, str(value))


def test_prepare_writes_nothing_and_refuses_like_a_call() -> None:
    for implementation in kernels.available("gather"):
        kernel = kernels.resolve("gather", implementation)
        operands = _refused()
        kernel.prepare(operands)
        assert (operands["out"] == -1).all()
        with pytest.raises(InvalidSpecError):
            kernel.prepare(_refused(out=np.zeros(3)))


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(InvalidSpecError, match=r"gather matvec .* random_lines"):
        kernels.resolve("scatter")
    with pytest.raises(InvalidSpecError, match="auto numba take fancy fancy-store"):
        kernels.resolve("gather", "fastest")
    with pytest.raises(InvalidSpecError):
        kernels.available("scatter")


def test_auto_takes_numba_where_it_is() -> None:
    need("numba")
    assert {kernels.resolve(name).implementation for name in kernels.names()} == {"numba"}


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    assert kernels.resolve("gather").implementation == "take"
    assert kernels.resolve("matvec").implementation == "numpy"
    assert kernels.resolve("triad").implementation == "numpy"
    assert kernels.available("gather") == ["take", "fancy", "fancy-store"]
    assert kernels.available("matvec") == ["numpy"]
    assert kernels.available("random_lines") == []
    for kernel, implementation in (
        ("gather", "numba"),
        ("matvec", "scipy"),
        ("random_lines", "auto"),
    ):
        with pytest.raises(MissingExtraError, match=r"hugepool\[compute\]"):
            kernels.resolve(kernel, implementation)


BOUNDS_CHECKED = """
import numpy as np
from hugepool import kernels
from hugepool.kernels import csr, gather_loops
from hugepool_common.errors import IndexOutOfRangeError
gather = kernels.resolve("gather", "numba")
gather_loops.FAR_BYTES = np.uint64(0)
for rows in (0, 1, 3, 31, 32, 33, 35, 36, 37, 2049):
    for x in (np.arange(9.0), *(np.arange(9.0 * width).reshape(9, width) for width in (3, 4, 99))):
        idx = np.random.default_rng(0).integers(0, 9, rows)
        out = np.zeros((rows, *x.shape[1:]))
        gather({"x": x, "idx": idx, "out": out}, 0, rows)
        assert (out == x[idx]).all()
csr.last_level_cache_bytes = lambda: 0
csr._FEWEST_ENTRIES = 0
matvec = kernels.resolve("matvec", "numba")
A = np.random.default_rng(1).random((200, 9000))
columns = np.random.default_rng(1).permuted(np.tile(np.arange(9000), (200, 1)), axis=1)[:, :37]
data = np.random.default_rng(2).random(200 * 37)
matrix = kernels.CsrArrays(np.arange(0, 200 * 37 + 1, 37), columns.ravel(), data, (200, 9000))
x, out = np.random.default_rng(3).random(9000), np.zeros(200)
operands = {"A": matrix, "x": x, "out": out}
assert csr.pays_to_prefetch(matrix, 8)
matvec(operands, 0, 200)
assert np.allclose(out, (data.reshape(200, 37) * x[columns]).sum(axis=1))
matrix.indices[-1] = 9000
try:
    matvec(operands, 0, 200)
except IndexOutOfRangeError as error:
    assert error.position == 200 * 37 - 1
else:
    raise AssertionError("not refused")
a, o = np.arange(100.0), np.zeros(100)
for name in ("copy", "triad", "sum"):
    kernels.resolve(name, "numba")({"a": a, "b": a, "out": o}, 3, 100)
kernels.resolve("random_lines")({"x": a}, 0, 1000)
print("done")
"""


@pytest.mark.timeout(1000)
def test_no_loop_leaves_its_arrays_when_numba_checks_bounds(tmp_path: Path) -> None:
    need("numba")
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", BOUNDS_CHECKED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.stdout == "done\n", child.stderr
