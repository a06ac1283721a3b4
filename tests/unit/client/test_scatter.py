"""Scatter-adds against ``numpy.add.at``, and operands that do not fit."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from hugepool import kernels
from hugepool.kernels.spmv import VALUE_CODES
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError
from support.extras import need

Array = np.ndarray[Any, Any]
ALL = ("numba", "numpy")


def _kernel(implementation: str) -> kernels.Kernel:
    if implementation == "numba":
        need("numba")
    return kernels.resolve("scatter_add", implementation)


def _operands(dtype: str = "<f8", idx_dtype: str = "<i8", count: int = 5000) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "idx": rng.integers(0, 700, count).astype(idx_dtype),
        "values": (rng.standard_normal(count) * 100).astype(dtype),
        "out": np.arange(700).astype(dtype),
    }


def _expected(operands: dict[str, Any]) -> Array:
    out: Array = operands["out"].copy()
    np.add.at(out, operands["idx"].astype(np.int64), operands["values"])
    return out


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("idx_dtype", ["<i4", "<i8", "<u4", "<u8"])
@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<f4", "<f8", "<c16"])
@pytest.mark.parametrize("bounds", [(0, 700), (0, 1, 350, 350, 700)])
def test_equal_to_numpy_bit_for_bit(
    implementation: str, idx_dtype: str, dtype: str, bounds: tuple[int, ...]
) -> None:
    assert dtype in VALUE_CODES
    operands = _operands(dtype, idx_dtype)
    expected = _expected(operands)
    for start, stop in itertools.pairwise(bounds):
        _kernel(implementation)(operands, start, stop)
    assert operands["out"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("parts", [1, 2])
def test_with_a_base_a_part_may_be_run_again(implementation: str, parts: int) -> None:
    operands = _operands()
    expected = _expected(operands)
    operands |= {"base": operands["out"], "out": np.full(700, np.nan)}
    for part in [*range(parts), *range(parts)]:
        _kernel(implementation)(operands, 700 * part // parts, 700 * (part + 1) // parts)
    assert operands["out"].tobytes() == expected.tobytes()
    assert operands["base"].tolist() == list(range(700))


@pytest.mark.parametrize("implementation", ALL)
def test_elements_outside_the_range_are_untouched(implementation: str) -> None:
    operands = _operands()
    expected = _expected(operands)
    _kernel(implementation)(operands, 100, 200)
    assert (operands["out"][100:200] == expected[100:200]).all()
    assert operands["out"][:100].tolist() == list(range(100))
    assert operands["out"][200:].tolist() == list(range(200, 700))


@pytest.mark.parametrize("implementation", ALL)
def test_indices_with_axes_and_none_at_all(implementation: str) -> None:
    out = np.zeros(4)
    idx = np.array([[0, 1], [1, 3]])
    _kernel(implementation)({"idx": idx, "values": np.ones((2, 2)), "out": out}, 0, 4)
    assert out.tolist() == [1, 2, 0, 1]
    _kernel(implementation)({"idx": np.array(2), "values": np.array(5.0), "out": out}, 0, 4)
    _kernel(implementation)({"idx": idx[:0], "values": np.ones((0, 2)), "out": out}, 0, 4)
    assert out.tolist() == [1, 2, 5, 1]
    empty: dict[str, Any] = {"idx": idx[:0], "values": np.ones((0, 2)), "out": np.zeros(0)}
    _kernel(implementation)(empty, 0, 0)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("position", [0, 1023, 1024, 4999])
@pytest.mark.parametrize("value", [700, -1, 2**62, -(2**63)])
@pytest.mark.parametrize("based", [False, True])
def test_the_first_bad_index_is_named_before_anything_is_written(
    implementation: str, position: int, value: int, based: bool
) -> None:
    operands = _operands()
    operands["idx"][position] = value
    operands["idx"][4999] = value
    if based:
        operands["base"] = np.ones(700)
    with pytest.raises(IndexOutOfRangeError) as caught:
        _kernel(implementation)(operands, 10, 20)
    assert caught.value.position == position
    assert caught.value.had == str(value)
    assert operands["out"].tolist() == list(range(700))


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("stop", [300, 700])
def test_an_index_that_changes_meanwhile_does_not_fault(implementation: str, stop: int) -> None:
    operands = _operands()
    kernel = _kernel(implementation)
    kernel.prepare(operands)
    over = threading.Event()
    good = operands["idx"].copy()

    def disturb() -> None:
        while not over.is_set():
            operands["idx"][::3] = 2**62
            operands["idx"][:] = good

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(300):
            try:
                kernel(operands, 0, stop)
            except IndexOutOfRangeError:
                pass
    finally:
        over.set()
        thread.join()


_SHARED = np.ones(5000)
_READONLY = np.ones(700)
_READONLY.flags.writeable = False


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(
    "changed",
    [
        {"idx": np.zeros(5000)},
        {"idx": np.zeros(4999, np.int64)},
        {"idx": np.zeros(5000, np.int16)},
        {"values": np.ones(5000, "<f4")},
        {"values": None},
        {"out": np.ones((700, 1))},
        {"out": np.ones(700, bool)},
        {"out": np.ones(1400)[::2]},
        {"out": _READONLY},
        {"values": _SHARED, "out": _SHARED[:700]},
        {"base": np.ones(701)},
        {"base": np.ones(700, "<f4")},
        {"base": _READONLY, "out": _READONLY},
    ],
)
def test_operands_that_do_not_fit_are_refused(implementation: str, changed: dict[str, Any]) -> None:
    operands = _operands()
    with pytest.raises(InvalidSpecError):
        _kernel(implementation)(operands | changed, 0, 700)
    with pytest.raises(InvalidSpecError):
        _kernel(implementation)(operands, 0, 701)
    assert operands["out"].tolist() == list(range(700))


@pytest.mark.parametrize("based", [False, True])
def test_what_is_bound_computes_what_the_kernel_does(based: bool) -> None:
    kernel: Any = _kernel("numba")
    operands = _operands()
    expected = _expected(operands)
    if based:
        operands |= {"base": operands["out"], "out": np.zeros(700)}
    kernel.prepare(operands)
    bound = kernel.bind(operands)
    assert bound.loop(*bound.arguments, 0, bound.rows)[0] == bound.succeeded
    assert operands["out"].tobytes() == expected.tobytes()
