"""The kernels that measure memory do what they claim to measure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hugepool import kernels
from hugepool.kernels.stream import RandomLines
from hugepool_common.errors import InvalidSpecError
from support.extras import need

BOTH = ("numba", "numpy")


def _kernel(name: str, implementation: str) -> kernels.Kernel:
    if implementation == "numba":
        need("numba")
    return kernels.resolve(name, implementation)


def _operands(count: int, offset: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    return {
        "a": rng.random(count),
        "b": rng.random(count),
        "out": np.full(count + offset, -1.0)[offset:],
    }


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (0, 7), (0, 8), (3, 9), (1, 100), (0, 203)]
)
def test_copy_at_every_alignment(implementation: str, offset: int, start: int, stop: int) -> None:
    operands = _operands(203, offset)
    work = _kernel("copy", implementation)(operands, start, stop)
    assert (operands["out"][start:stop] == operands["a"][start:stop]).all()
    assert (operands["out"][:start] == -1).all()
    assert (operands["out"][stop:] == -1).all()
    assert work == kernels.Work(stop - start, 0, 16 * (stop - start))


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (5, 40_000), (0, 40_001)])
def test_triad(implementation: str, start: int, stop: int) -> None:
    operands = _operands(40_001)
    work = _kernel("triad", implementation)(operands, start, stop)
    expected = operands["a"] + 3 * operands["b"]
    assert (operands["out"][start:stop] == expected[start:stop]).all()
    assert (operands["out"][:start] == -1).all()
    assert (operands["out"][stop:] == -1).all()
    assert work == kernels.Work(stop - start, 0, 24 * (stop - start))


@pytest.mark.parametrize("implementation", BOTH)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (2, 9), (3, 11), (0, 1003)])
def test_sum_goes_to_the_first_row_of_its_part(implementation: str, start: int, stop: int) -> None:
    operands = _operands(1003)
    kernel = _kernel("sum", implementation)
    work = kernel(operands, start, stop)
    assert operands["out"][start] == pytest.approx(math.fsum(operands["a"][start:stop]), rel=1e-14)
    assert (np.delete(operands["out"], start) == -1).all()
    assert work == kernels.Work(stop - start, 0, 8 * (stop - start))
    del operands["out"]
    assert kernel(operands, start, stop) == work


@pytest.mark.parametrize("implementation", BOTH)
def test_inputs_may_be_readonly_and_empty(implementation: str) -> None:
    for count in (0, 5):
        operands = _operands(count)
        operands["a"].flags.writeable = False
        operands["b"].flags.writeable = False
        for name in ("copy", "triad", "sum"):
            _kernel(name, implementation)(operands, 0, count)


def _places(reach: int, ahead: int, start: int, lines: int) -> list[int]:
    """Where the generator leads, computed with Python's own integers."""
    multiplier, increment, word = 6364136223846793005, 1442695040888963407, (1 << 64) - 1
    state = ((start + 1) * multiplier + increment) & word
    found = []
    for _ in range(lines + ahead):
        state = (state * multiplier + increment) & word
        found.append(((state >> 32) * reach) >> 32)
    return found[:lines]


@pytest.mark.parametrize("ahead", [1, 16, 32, 64])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 1000), (123, 456)])
def test_random_lines_reads_the_places_of_its_generator(ahead: int, start: int, stop: int) -> None:
    need("numba")
    x = np.arange(5000.0)
    out = np.full(500, -1.0)
    work = RandomLines(ahead=ahead)({"x": x, "out": out}, start, stop)
    places = _places(5000, ahead, start, stop - start)
    assert out[start] == sum(places)
    assert (np.delete(out, start) == -1).all()
    assert work == kernels.Work(stop - start, 0, 64 * (stop - start))


def test_random_places_cover_the_array() -> None:
    places = _places(1000, 32, 0, 20_000)
    assert set(places) == set(range(1000))
    assert _places(1000, 32, 5, 100) != _places(1000, 32, 6, 100)


def test_random_lines_needs_no_out() -> None:
    need("numba")
    kernel = kernels.resolve("random_lines")
    x = np.ones(10)
    x.flags.writeable = False
    assert kernel({"x": x}, 3, 10**5).elements == 10**5 - 3
    assert kernel({"x": np.ones(0)}, 3, 3).elements == 0


@pytest.mark.parametrize(
    ("name", "changes", "rows"),
    [
        ("copy", {"a": None}, (0, 5)),
        ("copy", {"a": np.ones(4)}, (0, 4)),
        ("copy", {"a": np.ones(5, "<f4")}, (0, 5)),
        ("copy", {"out": np.ones(10)[::2]}, (0, 5)),
        ("copy", {"a": np.frombuffer(bytes(41), "<f8", 5, 1)}, (0, 5)),
        ("copy", {}, (0, 6)),
        ("copy", {}, (-1, 2)),
        ("triad", {"b": np.ones(6)}, (0, 5)),
        ("sum", {"out": np.ones(1)}, (1, 5)),
        ("sum", {"out": np.frombuffer(bytes(40))}, (1, 5)),
    ],
)
@pytest.mark.parametrize("implementation", BOTH)
def test_operands_that_do_not_fit_are_refused(
    name: str, changes: dict[str, Any], rows: tuple[int, int], implementation: str
) -> None:
    with pytest.raises(InvalidSpecError):
        _kernel(name, implementation)(_operands(5) | changes, *rows)


@pytest.mark.parametrize("implementation", BOTH)
def test_an_output_that_is_an_input_is_refused(implementation: str) -> None:
    operands = _operands(5)
    with pytest.raises(InvalidSpecError, match="overlaps"):
        _kernel("copy", implementation)(operands | {"out": operands["a"]}, 0, 5)
    with pytest.raises(InvalidSpecError, match="overlaps b"):
        _kernel("triad", implementation)(operands | {"out": operands["b"]}, 0, 5)


def test_random_lines_that_cannot_be_are_refused() -> None:
    need("numba")
    for ahead in (0, -1, 24):
        with pytest.raises(InvalidSpecError):
            RandomLines(ahead=ahead)
    with pytest.raises(InvalidSpecError):
        RandomLines()({"x": np.ones(0)}, 0, 1)
    with pytest.raises(InvalidSpecError):
        RandomLines()({"x": np.ones(5), "out": np.ones(3)}, 3, 5)


@pytest.mark.parametrize("name", ["copy", "triad", "sum", "random_lines"])
def test_prepare_writes_nothing(name: str) -> None:
    for implementation in kernels.available(name):
        operands = _operands(5) | {"x": np.ones(3)}
        kernels.resolve(name, implementation).prepare(operands)
        assert (operands["out"] == -1).all()


def test_the_largest_cache_is_a_plausible_one() -> None:
    assert 1 << 18 <= kernels.last_level_cache_bytes() <= 1 << 32
