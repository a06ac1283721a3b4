"""Row partitions cover all rows, in order, in equal shares of work."""

from __future__ import annotations

import numpy as np
import pytest

from hugepool.partition import ROW_COST, by_nnz, by_rows, excess, merge_path
from hugepool_common.errors import InvalidMatrixError, InvalidSpecError


def _indptr(counts: list[int], dtype: str = "<i4") -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(dtype)


@pytest.mark.parametrize(
    ("rows", "parts", "bounds"),
    [
        (10, 1, (0, 10)),
        (10, 2, (0, 5, 10)),
        (10, 3, (0, 3, 6, 10)),
        (2, 4, (0, 0, 1, 1, 2)),
        (0, 3, (0, 0, 0, 0)),
        (1 << 48, 2, (0, 1 << 47, 1 << 48)),
    ],
)
def test_by_rows(rows: int, parts: int, bounds: tuple[int, ...]) -> None:
    assert by_rows(rows, parts) == bounds


@pytest.mark.parametrize(
    ("counts", "parts", "bounds"),
    [
        ([5] * 10, 2, (0, 5, 10)),
        ([0] * 10, 2, (0, 5, 10)),
        ([100, 0, 0, 0], 2, (0, 1, 4)),
        ([0, 0, 0, 100], 2, (0, 3, 4)),
        ([30, 30, 30], 3, (0, 1, 2, 3)),
        ([7], 3, (0, 0, 1, 1)),
        ([], 2, (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("dtype", ["<i4", "<i8"])
def test_by_nnz(counts: list[int], parts: int, bounds: tuple[int, ...], dtype: str) -> None:
    assert by_nnz(_indptr(counts, dtype), parts) == bounds


def test_shares_differ_by_less_than_the_largest_row() -> None:
    counts = np.random.default_rng(0).zipf(1.5, 5000).clip(max=400)
    indptr = _indptr(counts.tolist())
    bounds = np.array(by_nnz(indptr, 7))
    shares = np.diff(indptr[bounds]) + ROW_COST * np.diff(bounds)
    assert shares.max() - shares.min() <= 400 + ROW_COST


def test_bounds_are_plain_ints() -> None:
    assert {type(bound) for bound in by_nnz(_indptr([3, 4, 5]), 2)} == {int}


def test_an_indptr_of_part_of_a_matrix_need_not_begin_with_zero() -> None:
    indptr = _indptr([5] * 10)
    assert by_nnz(indptr + 1000, 2) == by_nnz(indptr, 2)


def test_sums_near_the_end_of_32_bits_do_not_wrap() -> None:
    indptr = np.array([0, 2**31 - 2, 2**31 - 1], np.int32)
    assert by_nnz(indptr, 2) == (0, 1, 2)


@pytest.mark.parametrize(("rows", "parts"), [(-1, 1), (1, 0), (1, -1)])
def test_partitions_that_cannot_be_are_refused(rows: int, parts: int) -> None:
    with pytest.raises(InvalidSpecError):
        by_rows(rows, parts)


def test_what_is_no_indptr_is_refused() -> None:
    with pytest.raises(InvalidSpecError):
        by_nnz(_indptr([1]), 0)
    for wrong in (np.zeros(0, np.int32), np.zeros((2, 2), np.int32), np.zeros(3)):
        with pytest.raises(InvalidMatrixError):
            by_nnz(wrong, 2)


@pytest.mark.parametrize(
    ("counts", "parts", "rows", "entries"),
    [
        ([5] * 10, 2, (0, 5, 10), (0, 25, 50)),
        ([98], 2, (0, 1, 1), (0, 50, 98)),
        ([98], 4, (0, 1, 1, 1, 1), (0, 25, 50, 75, 98)),
        ([10, 80, 10], 2, (0, 2, 3), (0, 51, 100)),
        ([0, 0, 0, 0], 2, (0, 2, 4), (0, 0, 0)),
        ([], 3, (0, 0, 0, 0), (0, 0, 0, 0)),
        ([1], 3, (0, 1, 1, 1), (0, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", ["<i4", "<i8"])
def test_merge_path(
    counts: list[int], parts: int, rows: tuple[int, ...], entries: tuple[int, ...], dtype: str
) -> None:
    assert merge_path(_indptr(counts, dtype), parts) == (rows, entries)


def test_what_has_no_merge_path_is_refused() -> None:
    with pytest.raises(InvalidSpecError):
        merge_path(_indptr([1]), 0)
    with pytest.raises(InvalidMatrixError):
        merge_path(np.zeros(3), 2)


@pytest.mark.parametrize(
    ("counts", "bounds", "expected"),
    [
        ([98, 98], (0, 1, 2), (1.0, 0)),
        ([298, 98], (0, 1, 2), (1.5, 100)),
        ([], (0, 0, 0), (1.0, 0)),
    ],
)
def test_excess(counts: list[int], bounds: tuple[int, ...], expected: tuple[float, int]) -> None:
    assert excess(_indptr(counts), bounds) == expected
