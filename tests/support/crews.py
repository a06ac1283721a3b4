"""What crews are tested with: matrices and indices as plans of one phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from hugepool import partition
from hugepool.array import SharedArray
from hugepool.crew import Crew
from hugepool.matrix import SharedMatrix
from hugepool.phases import Phase
from hugepool.pool import Pool

Vector: TypeAlias = npt.NDArray[np.float64]


class Product:
    """``A @ x`` by rows."""

    def __init__(self, matrix: SharedMatrix) -> None:
        self._matrix = matrix

    def phases(self, x: SharedArray, out: SharedArray, parts: int) -> tuple[Phase, ...]:
        """One phase, cut into parts of equal work."""
        rows = partition.by_nnz(self._matrix.indptr, parts)
        return (Phase("matvec", {"A": self._matrix, "x": x, "out": out}, rows),)


class Gather:
    """``x[idx]``."""

    def __init__(self, idx: SharedArray, implementation: str = "auto") -> None:
        self._idx = idx
        self._implementation = implementation

    def phases(self, x: SharedArray, out: SharedArray, parts: int) -> tuple[Phase, ...]:
        """One phase, cut into parts of equally many rows."""
        operands = {"x": x, "idx": self._idx, "out": out}
        rows = partition.by_rows(self._idx.shape[0], parts)
        return (Phase("gather", operands, rows, implementation=self._implementation),)


@contextmanager
def crew_of(pool: Pool, workers: int, *, pin: bool = False) -> Iterator[Crew]:
    """A crew whose members are started before."""
    missing = workers - 1 - len(pool.stats().workers)
    if missing > 0:
        pool.start_workers(missing)
    with Crew(pool.address, workers=workers, pin=pin) as crew:
        yield crew


def dominant_matrix(rows: int) -> scipy.sparse.csr_array[Any]:
    """Positive with ones on its diagonal: power iterations converge to something."""
    sparse: Any = scipy.sparse
    random = sparse.random_array(
        (rows, rows), density=5 / rows, format="csr", rng=np.random.default_rng(1)
    )
    return sparse.csr_array(random + sparse.eye_array(rows, format="csr"))  # type: ignore[no-any-return]


def symmetric_grid(edge: int) -> scipy.sparse.csr_array[Any]:
    """A 5-point stencil of a square grid, with a value of its own for each pair of neighbours."""
    sparse: Any = scipy.sparse
    line = sparse.diags_array([1.0, 1.0], offsets=(0, 1), shape=(edge, edge))
    upper = sparse.triu(sparse.kronsum(line, line)).tocsr()
    upper.data = np.random.default_rng(6).random(upper.nnz)
    matrix = sparse.csr_array(upper + sparse.triu(upper, k=1).T)
    matrix.sort_indices()
    return matrix  # type: ignore[no-any-return]


def power_iterates(matrix: Any, x: Vector, steps: int) -> tuple[Vector, float]:
    """What ``iterate`` with an L2 norm is to give, and the last norm."""
    norm = 0.0
    for _ in range(steps):
        x = matrix @ x
        norm = float(np.linalg.norm(x))
        x = x / norm
    return x, norm
