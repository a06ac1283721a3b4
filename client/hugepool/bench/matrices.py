"""Sparse matrices to measure with: uniform, Graph500 Kronecker and the 27-point stencil."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from hugepool_common.errors import InvalidSpecError

Array: TypeAlias = npt.NDArray[Any]

ENTRIES_PER_ROW = 8
"""Of the uniform matrix."""
EDGES_PER_VERTEX = 16
"""Of the Kronecker graph, before double edges are merged; Graph500's edge factor."""
STENCIL_POINTS = 27
# Graph500's initiator probabilities; D is what is left to 1
KRONECKER_A, KRONECKER_B, KRONECKER_C = 0.57, 0.19, 0.19

_MAX_SCALE = 31
_BLOCK = 1 << 15


@dataclass(frozen=True, slots=True)
class CsrMatrix:
    """A CSR matrix as plain arrays, accepted by ``pool.put`` without SciPy.

    Parameters
    ----------
    indptr, indices
        int32 where the matrix allows, else int64; columns rise within a row, none twice.
    data
        float64.
    shape
        (rows, columns).
    """

    indptr: Array
    indices: Array
    data: Array
    shape: tuple[int, int]
    format: ClassVar[str] = "csr"

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Payload of the three arrays in bytes."""
        return int(self.indptr.nbytes + self.indices.nbytes + self.data.nbytes)

    def tocsr(self) -> Self:
        """Itself."""
        return self


def uniform(columns: int, entries: int, seed: int = 0) -> CsrMatrix:
    """Rows of 8 entries whose columns are spread evenly over the whole width.

    Entry j of a row is drawn from the j-th eighth of the columns, so the columns of a
    row rise and none comes twice, without sorting.

    Parameters
    ----------
    columns
        Width, and length of x.
    entries
        About how many stored entries; rounded down to full rows, at least one row.
    seed
        Of NumPy's PCG64.
    """
    per_row = max(1, min(ENTRIES_PER_ROW, columns))
    rows = max(1, entries // per_row)
    generator = np.random.default_rng(seed)
    index_dtype = _index_dtype(rows, columns, rows * per_row)
    edges = [columns * part // per_row for part in range(per_row + 1)]
    indices = np.empty((rows, per_row), index_dtype)
    for part in range(per_row):
        indices[:, part] = generator.integers(edges[part], edges[part + 1], size=rows)
    indptr = np.arange(0, (rows + 1) * per_row, per_row, dtype=index_dtype)
    return CsrMatrix(indptr, indices.reshape(-1), generator.random(rows * per_row), (rows, columns))


def kronecker(scale: int, edges_per_vertex: int = EDGES_PER_VERTEX, seed: int = 0) -> CsrMatrix:
    """A Graph500 Kronecker graph: ``2**scale`` vertices, permuted, double edges merged.

    Parameters
    ----------
    scale
        log2 of the number of vertices, 1 to 31.
    edges_per_vertex
        Edges drawn per vertex.
    seed
        Of NumPy's PCG64.

    Raises
    ------
    InvalidSpecError
        `scale` out of range.
    """
    if not 1 <= scale <= _MAX_SCALE:
        raise InvalidSpecError(
            "scale out of range", needed=f"1 to {_MAX_SCALE}", had=str(scale), where="kronecker"
        )
    vertices = 1 << scale
    edges = vertices * edges_per_vertex
    generator = np.random.default_rng(seed)
    rows = np.empty(edges, np.int64)
    columns = np.empty(edges, np.int64)
    for start in range(0, edges, _BLOCK):  # blocks stay in cache over all levels
        stop = min(start + _BLOCK, edges)
        _draw_edges(generator, scale, rows[start:stop], columns[start:stop])
    # Without this the heavy vertices are neighbours and locality comes for nothing.
    labels = generator.permutation(vertices)
    keys = (labels[rows] << scale) | labels[columns]
    keys.sort()
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
    counts = np.bincount(keys >> scale, minlength=vertices)
    index_dtype = _index_dtype(vertices, vertices, len(keys))
    indptr = np.zeros(vertices + 1, index_dtype)
    np.cumsum(counts, out=indptr[1:])
    indices = (keys & (vertices - 1)).astype(index_dtype)
    return CsrMatrix(indptr, indices, generator.random(len(keys)), (vertices, vertices))


def _draw_edges(generator: np.random.Generator, scale: int, rows: Array, columns: Array) -> None:
    """Fill both ends of a block of edges, a bit at a time from the highest."""
    rows[:] = 0
    columns[:] = 0
    for _ in range(scale):
        draw = generator.random(len(rows), dtype=np.float32)
        lower = draw >= KRONECKER_A + KRONECKER_B
        right = (draw >= KRONECKER_A) & ~lower | (draw >= KRONECKER_A + KRONECKER_B + KRONECKER_C)
        for ends, bit in ((rows, lower), (columns, right)):
            ends <<= 1
            ends |= bit


def stencil(edge: int) -> CsrMatrix:
    """The 27-point stencil on a cube of ``edge**3`` points: 26 on the diagonal, -1 for neighbours.

    Parameters
    ----------
    edge
        Points along one side, at least 1.
    """
    if edge < 1:
        raise InvalidSpecError("the cube needs a point", needed="edge >= 1", had=str(edge))
    points = edge**3
    index_dtype = _index_dtype(points, points, points * STENCIL_POINTS)
    # The inside of every axis: neighbour offsets -1, 0, 1 that stay in the cube.
    offsets = np.arange(-1, 2, dtype=index_dtype)
    along = np.arange(edge, dtype=index_dtype)[:, None] + offsets
    inside = (along >= 0) & (along < edge)
    # A plane at a time keeps the temporaries small beside the result.
    plane_columns = along[:, None, :, None] * edge + along[None, :, None, :]
    plane_inside = inside[:, None, :, None] & inside[None, :, None, :]
    parts, counts = [], []
    for level in range(edge):
        columns = plane_columns[:, :, None] + along[level][:, None, None] * (edge * edge)
        mask = plane_inside[:, :, None] & inside[level][:, None, None]
        parts.append(columns[np.broadcast_to(mask, columns.shape)])
        counts.append(mask.reshape(edge * edge, -1).sum(axis=1))
    indices = np.concatenate(parts)
    indptr = np.zeros(points + 1, index_dtype)
    np.cumsum(np.concatenate(counts), out=indptr[1:])
    data = np.full(len(indices), -1.0)
    row_of_entry = np.repeat(np.arange(points, dtype=index_dtype), np.diff(indptr))
    data[indices == row_of_entry] = 26.0
    return CsrMatrix(indptr, indices, data, (points, points))


def make_matrix(pattern: str, elements: int, entries: int, seed: int = 0) -> CsrMatrix:
    """A matrix of about `entries` stored entries.

    Parameters
    ----------
    pattern
        One of :data:`MATRIX_PATTERNS`. ``uniform`` is `elements` wide; the two others are
        square and their width follows from `entries`.

    Raises
    ------
    InvalidSpecError
        Unknown pattern.
    """
    if pattern not in MATRIX_PATTERNS:
        raise InvalidSpecError(
            f"{pattern!r} is no matrix pattern", needed=" or ".join(MATRIX_PATTERNS)
        )
    return MATRIX_PATTERNS[pattern](elements, entries, seed)


def planned_size(pattern: str, elements: int, entries: int) -> tuple[int, int, int]:
    """Rows, columns and stored entries that :func:`make_matrix` will give.

    Of ``kronecker`` the entries are those before double edges are merged.
    """
    if pattern == "uniform":
        per_row = max(1, min(ENTRIES_PER_ROW, elements))
        rows = max(1, entries // per_row)
        return rows, elements, rows * per_row
    if pattern == "kronecker":
        vertices = 1 << _scale_for(entries)
        return vertices, vertices, vertices * EDGES_PER_VERTEX
    edge = _edge_for(entries)
    return edge**3, edge**3, (3 * edge - 2) ** 3


def _scale_for(entries: int) -> int:
    return max(1, (entries // EDGES_PER_VERTEX).bit_length() - 1)


def _edge_for(entries: int) -> int:
    return max(1, round(math.cbrt(entries / STENCIL_POINTS)))


def _kronecker_of(elements: int, entries: int, seed: int) -> CsrMatrix:
    return kronecker(_scale_for(entries), seed=seed)


def _stencil_of(elements: int, entries: int, seed: int) -> CsrMatrix:
    return stencil(_edge_for(entries))


MATRIX_PATTERNS: dict[str, Callable[[int, int, int], CsrMatrix]] = {
    "uniform": uniform,
    "kronecker": _kronecker_of,
    "stencil": _stencil_of,
}
"""Pattern name to ``function(elements, entries, seed)``."""


def _index_dtype(rows: int, columns: int, nnz: int) -> Any:
    return np.int32 if max(rows, columns, nnz) < 2**31 else np.int64
