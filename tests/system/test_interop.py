"""Other libraries over our mapping: no copy, and none can outlive it.

Each case proves two things: the address that the library works on lies inside the mapping
that the kernel lists for our file, and while the library has it, the mapping is not let go.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hugepool
from support.extras import need, sparse
from support.handed_over import inside, span
from support.host import require

ROWS = 400_000


@pytest.fixture(scope="module")
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_arrays_left(pool: hugepool.Pool) -> Iterator[None]:
    yield
    for info in pool.list():
        pool.destroy(info.spec.name)


@pytest.fixture
def open_array(pool: hugepool.Pool) -> hugepool.SharedArray:
    """0, 1, 2, ... as float64, still writable."""
    made = pool.create("x", ROWS)
    made.array[:] = np.arange(ROWS)
    return made


@pytest.fixture
def sealed_array(open_array: hugepool.SharedArray) -> hugepool.SharedArray:
    """The same, read-only."""
    return open_array.seal()


def module(name: str) -> Any:
    """A library, or the test is skipped."""
    need(name)
    return importlib.import_module(name)


def check_view(
    handle: Any, take: Callable[[Any], Any], address: Callable[[Any], int], nbytes: int
) -> None:
    """What `take` makes of a handle lies in its mapping, and keeps that from being let go."""
    taken = take(handle)
    begin = address(taken)
    assert inside(handle, begin, begin + nbytes)
    gc.collect()
    with pytest.raises(hugepool.ArrayBusyError):
        handle.detach()
    del taken
    gc.collect()
    handle.detach()


# NumPy, DLPack and memoryview --------------------------------------------------


@pytest.mark.parametrize(
    "take",
    [
        lambda x: x.array,
        np.asarray,
        lambda x: np.array(x, copy=None),
        lambda x: np.asarray(x, dtype="f8", copy=False),
        lambda x: x[:],
        lambda x: np.frombuffer(x.array),
    ],
)
def test_numpy(sealed_array: hugepool.SharedArray, take: Callable[[Any], Any]) -> None:
    assert not take(sealed_array).flags.writeable
    check_view(sealed_array, take, lambda a: int(a.ctypes.data), ROWS * 8)


def test_numpy_copies_when_it_must_and_never_when_told_not_to(
    sealed_array: hugepool.SharedArray,
) -> None:
    for copied in (np.array(sealed_array), np.asarray(sealed_array, dtype="f4")):
        assert not inside(sealed_array, *span(copied))
        assert copied.flags.writeable
    with pytest.raises(ValueError, match="copy"):
        np.asarray(sealed_array, dtype="f4", copy=False)


def test_dlpack_of_numpy(sealed_array: hugepool.SharedArray) -> None:
    assert sealed_array.__dlpack_device__() == (1, 0)
    assert not np.from_dlpack(sealed_array).flags.writeable
    check_view(sealed_array, np.from_dlpack, lambda a: int(a.ctypes.data), ROWS * 8)


def test_dlpack_of_an_open_array_is_writable(open_array: hugepool.SharedArray) -> None:
    view = np.from_dlpack(open_array)
    view[5] = -1.0
    assert open_array.array[5] == -1.0


def test_dlpack_that_cannot_say_read_only_is_refused(
    sealed_array: hugepool.SharedArray,
) -> None:
    with pytest.raises(BufferError, match="readonly"):
        sealed_array.__dlpack__()  # as a consumer of before version 1.0 asks
    with pytest.raises(BufferError, match="readonly"):
        sealed_array.__dlpack__(max_version=(0, 8))


def test_a_dlpack_capsule_that_nobody_took_lets_go(sealed_array: hugepool.SharedArray) -> None:
    capsule = sealed_array.__dlpack__(max_version=(1, 0))
    with pytest.raises(hugepool.ArrayBusyError):
        sealed_array.detach()
    del capsule
    sealed_array.detach()


def test_rows_are_handed_out_as_rows(pool: hugepool.Pool) -> None:
    pool.create("wide", (100, 3))
    rows = pool.attach("wide", readonly=False, rows=(10, 20))
    assert np.asarray(rows).shape == np.from_dlpack(rows).shape == (10, 3)
    assert inside(rows, *span(np.asarray(rows)))


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "f2", "i4", "f4", "u8", "f8", "c8", "c16"])
def test_every_dtype_through_buffer_and_dlpack(pool: hugepool.Pool, dtype: str) -> None:
    value = np.ones((3, 5), dtype)
    x = pool.put("typed", value)
    for again in (np.asarray(x), np.from_dlpack(x), np.asarray(memoryview(x.array))):
        assert again.dtype == value.dtype
        np.testing.assert_array_equal(again, value)


def address_of_buffer(view: memoryview) -> int:
    return int(np.frombuffer(view, "u1").ctypes.data)


def test_memoryview(sealed_array: hugepool.SharedArray) -> None:
    view = sealed_array.array.data
    assert view.readonly
    assert (view.format, view.shape) == ("d", (ROWS,))
    del view
    check_view(sealed_array, lambda x: x.array.data, address_of_buffer, ROWS * 8)


def test_memoryview_of_the_handle_itself(sealed_array: hugepool.SharedArray) -> None:
    require("python312", sys.version_info >= (3, 12), "classes have no __buffer__ before 3.12")
    view: Any = memoryview(sealed_array)
    assert view.readonly
    del view
    check_view(sealed_array, memoryview, address_of_buffer, ROWS * 8)


# SciPy ---------------------------------------------------------------------------


def test_scipy_csr_array(pool: hugepool.Pool) -> None:
    source = sparse().random_array((2000, 2000), density=0.05, format="csr", rng=1)
    A = pool.put("A", source)
    matrix = A.as_scipy()
    for part in (matrix.indptr, matrix.indices, matrix.data):
        assert inside(A, *span(part))
    assert (matrix != source).nnz == 0
    del matrix, part
    check_view(A, lambda A: A.as_scipy(), lambda m: int(m.data.ctypes.data), source.nnz * 8)


# torch ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["from_numpy", "from_dlpack", "asarray"])
def test_torch(open_array: hugepool.SharedArray, way: str) -> None:
    torch = module("torch")
    make = getattr(torch, way)
    tensor = make(open_array.array if way == "from_numpy" else open_array)
    tensor[7] = -7.0
    assert open_array.array[7] == -7.0
    del tensor
    check_view(
        open_array,
        lambda x: make(x.array if way == "from_numpy" else x),
        lambda t: int(t.data_ptr()),
        ROWS * 8,
    )


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("way", ["from_numpy", "from_dlpack"])
def test_torch_reads_what_is_sealed(sealed_array: hugepool.SharedArray, way: str) -> None:
    torch = module("torch")
    make = getattr(torch, way)
    tensor = make(sealed_array.array if way == "from_numpy" else sealed_array)
    assert float(tensor[[1, 5, 7]].sum()) == 13.0
    assert inside(sealed_array, tensor.data_ptr(), tensor.data_ptr() + ROWS * 8)


# Arrow, pandas, polars ------------------------------------------------------------


def arrow_address(values: Any) -> int:
    return int(values.buffers()[1].address)


@pytest.mark.parametrize("way", ["handle", "array"])
def test_pyarrow_array(sealed_array: hugepool.SharedArray, way: str) -> None:
    arrow = module("pyarrow")
    check_view(
        sealed_array,
        lambda x: arrow.array(x if way == "handle" else x.array),
        arrow_address,
        ROWS * 8,
    )


def test_pyarrow_buffer(sealed_array: hugepool.SharedArray) -> None:
    arrow = module("pyarrow")
    assert not arrow.py_buffer(sealed_array.array).is_mutable
    check_view(
        sealed_array,
        lambda x: arrow.py_buffer(x.array),
        lambda buffer: int(buffer.address),
        ROWS * 8,
    )


def test_pyarrow_table(sealed_array: hugepool.SharedArray) -> None:
    arrow = module("pyarrow")
    check_view(
        sealed_array,
        lambda x: arrow.table({"x": arrow.array(x)}),
        lambda table: arrow_address(table["x"].chunk(0)),
        ROWS * 8,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda pandas, x: pandas.Series(x.array, copy=False),
        lambda pandas, x: pandas.DataFrame({"x": x.array}, copy=False)["x"],
    ],
    ids=["series", "column"],
)
def test_pandas(sealed_array: hugepool.SharedArray, make: Callable[[Any, Any], Any]) -> None:
    pandas = module("pandas")
    check_view(
        sealed_array,
        lambda x: make(pandas, x),
        lambda series: int(series.to_numpy().ctypes.data),
        ROWS * 8,
    )


def test_pandas_frame_of_two_axes(pool: hugepool.Pool) -> None:
    pandas = module("pandas")
    x = pool.put("wide", np.arange(12.0).reshape(4, 3))
    frame = pandas.DataFrame(x.array, columns=list("abc"), copy=False)
    assert inside(x, *span(frame.to_numpy()))
    assert frame["b"].tolist() == [1.0, 4.0, 7.0, 10.0]


@pytest.mark.parametrize("way", ["numpy", "arrow", "frame"])
def test_polars(sealed_array: hugepool.SharedArray, way: str) -> None:
    polars = module("polars")

    def make(x: Any) -> Any:
        if way == "numpy":
            return polars.Series("x", x.array)
        column = polars.from_arrow(module("pyarrow").array(x))
        return column if way == "arrow" else polars.DataFrame({"x": column})["x"]

    def address(series: Any) -> int:
        return int(series.to_numpy(allow_copy=False).ctypes.data)

    assert make(sealed_array).sum() == ROWS * (ROWS - 1) / 2
    check_view(sealed_array, make, address, ROWS * 8)
