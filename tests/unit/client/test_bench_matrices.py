"""Generated matrices against SciPy and against what defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hugepool.bench.matrices import (
    MATRIX_PATTERNS,
    CsrMatrix,
    kronecker,
    make_matrix,
    stencil,
    uniform,
)
from hugepool.formats import csr_source
from hugepool_common.errors import InvalidSpecError

sparse = pytest.importorskip("scipy.sparse")


def as_scipy(matrix: CsrMatrix) -> Any:
    return sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)


@pytest.mark.parametrize("pattern", MATRIX_PATTERNS)
def test_structure_is_canonical_and_shareable(pattern: str) -> None:
    matrix = make_matrix(pattern, 5_000, 20_000, 7)
    found = as_scipy(matrix)
    found.check_format(full_check=True)
    assert found.has_canonical_format
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    assert 0.5 * 20_000 < matrix.nnz < 1.5 * 20_000
    assert csr_source(matrix).indices is matrix.indices, "pool.put takes it without SciPy"


@pytest.mark.parametrize("pattern", ["uniform", "kronecker"])
def test_a_seed_decides_everything(pattern: str) -> None:
    first, again, other = (make_matrix(pattern, 500, 2_000, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.indices, again.indices)
    assert np.array_equal(first.data, again.data)
    assert not np.array_equal(first.indices[:500], other.indices[:500])


def test_uniform_spreads_columns_over_the_whole_width() -> None:
    matrix = uniform(columns=1_001, entries=80_000)
    assert matrix.shape == (10_000, 1_001)
    assert np.all(np.diff(matrix.indptr) == 8)
    counts = np.bincount(matrix.indices, minlength=1_001)
    assert counts.min() > 40
    assert counts.max() < 130


def test_uniform_narrower_than_a_row() -> None:
    matrix = uniform(columns=3, entries=9)
    assert matrix.shape == (3, 3)
    assert matrix.indices.tolist() == [0, 1, 2] * 3


def test_kronecker_is_skewed_and_permuted() -> None:
    matrix = kronecker(10)
    degrees = np.diff(matrix.indptr)
    assert matrix.shape == (1024, 1024)
    assert degrees.sum() == matrix.nnz <= 16 * 1024
    assert degrees.max() > 10 * degrees.mean(), "a power law has heavy vertices"
    heavy = np.argsort(degrees)[-16:]
    assert heavy.min() < 512 < heavy.max(), "heavy vertices must not be neighbours"


def test_kronecker_refuses_sizes_without_meaning() -> None:
    with pytest.raises(InvalidSpecError, match="scale"):
        kronecker(0)


@pytest.mark.parametrize("edge", [1, 2, 5])
def test_stencil_equals_a_kronecker_sum_of_lines(edge: int) -> None:
    line = sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(edge, edge))
    neighbours = sparse.kron(sparse.kron(line, line), line)
    expected = 27 * sparse.eye_array(edge**3) - neighbours
    assert np.array_equal(as_scipy(stencil(edge)).toarray(), expected.toarray())


def test_stencil_inside_has_27_points_and_sum_zero() -> None:
    matrix = stencil(4)
    inside = 1 * 16 + 1 * 4 + 1
    assert matrix.indptr[inside + 1] - matrix.indptr[inside] == 27
    assert (as_scipy(matrix) @ np.ones(64))[inside] == 0
    with pytest.raises(InvalidSpecError, match="cube"):
        stencil(0)


def test_unknown_pattern() -> None:
    with pytest.raises(InvalidSpecError, match="no matrix pattern"):
        make_matrix("band", 1, 1)
