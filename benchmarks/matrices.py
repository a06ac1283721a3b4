"""The matrices that the programs measure with: seeded, made by NumPy, built straight as CSR.

Columns rise within a row and none comes twice. Where a generator may draw an entry
twice (``kronecker``, ``depends``), the two are one entry: as SciPy would sum them, but
with one random value, so that the number of entries is that of the structure.
Values are float64 from [0, 1), but for the stencil; indices are int32 where they fit.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hugepool.bench import matrices as generators
from hugepool.bench.matrices import (
    EDGES_PER_VERTEX,
    ENTRIES_PER_ROW,
    KRONECKER_A,
    KRONECKER_B,
    KRONECKER_C,
    STENCIL_POINTS,
    CsrMatrix,
)

Array: TypeAlias = npt.NDArray[Any]

ENTRY_BYTES = 12
"""Of one stored entry: a float64 and an int32 column. What ``--size`` counts."""
GRAPH = Path(__file__).parent.parent / "tests" / "data" / "debian-depends.mtx.gz"
COLUMNS_PER_ROW = 5
"""Of the uniform matrix: it is wider than high, so that x is what does not fit the cache."""
DENSE_ROWS = 4
FAR_SHARE = 1 / 16
"""Share of the tiled graph's edges that lead to another copy."""

_BLOCK = 1 << 15


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a matrix.

    Parameters
    ----------
    make
        ``function(parameter, seed)``.
    parameter
        ``function(entries)``: the parameter that gives about as many stored entries.
    local
        Whether neighbouring rows use neighbouring columns, so that bandwidth is the
        limit and not the latency of random lines.
    """

    make: Callable[[int, int], CsrMatrix]
    parameter: Callable[[int], int]
    local: bool = False


def make_matrix(text: str, nbytes: int, seed: int = 0) -> tuple[CsrMatrix, bool]:
    """The matrix of a name such as ``uniform``, ``kronecker:22`` or ``stencil:128``.

    Parameters
    ----------
    text
        A name of :data:`RECIPES`, with a colon and its parameter if it is not to follow
        from `nbytes`: entries, scale (log2 of the vertices), edge of the cube, copies.
    nbytes
        About how many bytes the entries are to have, at 12 each.
    seed
        Of NumPy's PCG64.

    Returns
    -------
    matrix, local
        See :class:`Recipe`.

    Raises
    ------
    ValueError
        No such name or parameter.
    """
    name, _, parameter = text.partition(":")
    if name not in RECIPES:
        raise ValueError(f"{name!r} is no matrix; there are {' '.join(RECIPES)}")
    recipe = RECIPES[name]
    chosen = int(float(parameter)) if parameter else recipe.parameter(nbytes // ENTRY_BYTES)
    if chosen < 1:
        raise ValueError(f"{text!r}: the parameter must be positive")
    return recipe.make(chosen, seed), recipe.local


def uniform(entries: int, seed: int = 0) -> CsrMatrix:
    """Rows of 8 entries, one in each eighth of a width of five times the rows."""
    rows = max(1, entries // ENTRIES_PER_ROW)
    return generators.uniform(COLUMNS_PER_ROW * rows, entries, seed)


def kronecker(scale: int, seed: int = 0, *, permuted: bool = True) -> CsrMatrix:
    """A Graph500 Kronecker graph of ``2**scale`` vertices and 16 edges drawn for each.

    Parameters
    ----------
    scale
        1 to 31.
    permuted
        Whether the vertices are renumbered at random, as Graph500 demands. Without it
        the heavy ones are neighbours at the low end, and locality comes for nothing.
    """
    if not 1 <= scale <= 31:
        raise ValueError(f"scale {scale} is not within 1 to 31")
    vertices = 1 << scale
    generator = np.random.default_rng([seed, scale])
    labels = generator.permutation(vertices) if permuted else np.arange(vertices)
    keys = np.empty(vertices * EDGES_PER_VERTEX, np.int64)
    for start in range(0, len(keys), _BLOCK):  # blocks stay in cache over all levels
        block = keys[start : start + _BLOCK]
        rows, columns = _draw_edges(generator, scale, len(block))
        block[:] = (labels[rows] << scale) | labels[columns]
    return _of_keys(keys, vertices, scale, generator)


def _draw_edges(
    generator: np.random.Generator, scale: int, edges: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Both ends of a block of edges, a bit at a time from the highest."""
    rows, columns = np.zeros(edges, np.int64), np.zeros(edges, np.int64)
    for _ in range(scale):
        draw = generator.random(edges, dtype=np.float32)
        lower = draw >= KRONECKER_A + KRONECKER_B
        right = (draw >= KRONECKER_A) & ~lower | (draw >= KRONECKER_A + KRONECKER_B + KRONECKER_C)
        for ends, bit in ((rows, lower), (columns, right)):
            ends <<= 1
            ends |= bit
    return rows, columns


def stencil(edge: int, seed: int = 0) -> CsrMatrix:
    """The 27-point stencil on a cube: 26 on the diagonal, -1 for neighbours."""
    return generators.stencil(edge)


def varied_stencil(edge: int, seed: int = 0) -> CsrMatrix:
    """The same structure with values of its own at every place, as of a medium that varies."""
    made = generators.stencil(edge)
    values = np.random.default_rng([seed, edge]).random(len(made.data)) + 0.5
    return dataclasses.replace(made, data=values)


def symmetric_stencil(edge: int, seed: int = 0) -> CsrMatrix:
    """The same structure with a value of its own for every pair of neighbours, on both sides."""
    made = generators.stencil(edge)
    size = np.uint64(made.shape[0])
    rows = np.repeat(np.arange(made.shape[0], dtype=np.uint64), np.diff(made.indptr))
    columns = made.indices.astype(np.uint64)
    pair = np.minimum(rows, columns) * size + np.maximum(rows, columns) + np.uint64(seed)
    pair *= np.uint64(0x9E3779B97F4A7C15)
    pair ^= pair >> np.uint64(29)
    pair *= np.uint64(0xBF58476D1CE4E5B9)
    values = (pair >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 0.5
    return dataclasses.replace(made, data=values)


def arrow(rows: int, seed: int = 0) -> CsrMatrix:
    """A full first row, a full first column and the diagonal: ``3 * rows - 2`` entries."""
    generator = np.random.default_rng([seed, rows])
    counts = np.full(rows, 2, np.int64)
    counts[0] = rows
    indptr = _indptr(counts)
    nnz = int(indptr[-1])
    indices = np.empty(nnz, indptr.dtype)
    indices[:rows] = np.arange(rows)
    indices[rows::2] = 0
    indices[rows + 1 :: 2] = np.arange(1, rows)
    return CsrMatrix(indptr, indices, generator.random(nnz), (rows, rows))


def dense_rows(entries: int, seed: int = 0) -> CsrMatrix:
    """A square uniform matrix of 8 a row, of which four rows, evenly spread, are full.

    The full rows hold a third of all entries, so no cut between rows is fair to
    more than a few workers.
    """
    generator = np.random.default_rng([seed, entries])
    rows = max(2 * ENTRIES_PER_ROW, entries // (ENTRIES_PER_ROW + DENSE_ROWS))
    sparse = generators.uniform(rows, rows * ENTRIES_PER_ROW, seed)
    full = np.linspace(0, rows - 1, DENSE_ROWS).astype(np.int64)
    counts = np.diff(sparse.indptr).astype(np.int64)
    kept = np.repeat(~np.isin(np.arange(rows), full), counts)
    counts[full] = rows
    indptr = _indptr(counts)
    indices = np.empty(int(indptr[-1]), indptr.dtype)
    is_full = np.zeros(len(indices), bool)
    for row in full:
        is_full[indptr[row] : indptr[row + 1]] = True
        indices[indptr[row] : indptr[row + 1]] = np.arange(rows)
    indices[~is_full] = sparse.indices[kept]
    return CsrMatrix(indptr, indices, generator.random(len(indices)), (rows, rows))


def depends(copies: int, seed: int = 0, *, permuted: bool = False) -> CsrMatrix:
    """The dependency graph of Debian's packages, tiled: a real power law of any size.

    Parameters
    ----------
    copies
        Of the graph of 63,436 vertices and 299,188 edges. An edge in sixteen leads to the
        same vertex of another copy, so all degrees stay distributed as they were.
    permuted
        Whether the vertices are renumbered at random over all copies.
    """
    rows, columns, vertices = _read_graph()
    generator = np.random.default_rng([seed, copies])
    total, scale = vertices * copies, max(1, (vertices * copies - 1).bit_length())
    labels = generator.permutation(total) if permuted else np.arange(total)
    keys = np.empty(len(rows) * copies, np.int64)
    for copy in range(copies):
        far = generator.random(len(rows)) < FAR_SHARE
        target = np.where(far, generator.integers(0, copies, len(rows)), copy)
        ends = labels[target * vertices + columns]
        block = keys[copy * len(rows) : (copy + 1) * len(rows)]
        block[:] = (labels[copy * vertices + rows] << scale) | ends
    return _of_keys(keys, total, scale, generator)


def _read_graph() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Rows, columns (from 0) and number of vertices of the graph's coordinate file."""
    with gzip.open(GRAPH, "rt", encoding="ascii") as file:
        size = next(line for line in file if not line.startswith("%"))
        ends = np.loadtxt(file, dtype=np.int64, usecols=(0, 1)) - 1
    return ends[:, 0], ends[:, 1], int(size.split()[0])


def _of_keys(
    keys: npt.NDArray[np.int64], vertices: int, scale: int, generator: np.random.Generator
) -> CsrMatrix:
    """A square matrix of ``row << scale | column`` keys in any order; equal ones are one entry."""
    keys.sort()
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
    counts = np.bincount(keys >> scale, minlength=vertices)
    indptr = _indptr(counts)
    keys &= (1 << scale) - 1
    return CsrMatrix(
        indptr, keys.astype(indptr.dtype), generator.random(len(keys)), (vertices, vertices)
    )


def _indptr(counts: Array) -> Array:
    """Row starts of a square matrix; int32 if rows and entries allow it."""
    nnz = int(counts.sum())
    indptr = np.zeros(len(counts) + 1, np.int32 if max(nnz, len(counts)) < 2**31 else np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr


def _copies(entries: int) -> int:
    return max(1, round(entries / 299_188))


def _scale(entries: int) -> int:
    return max(1, round(math.log2(max(2, entries) / EDGES_PER_VERTEX)))


RECIPES: dict[str, Recipe] = {
    "uniform": Recipe(uniform, lambda entries: max(1, entries)),
    "kronecker": Recipe(kronecker, _scale),
    "kronecker-unpermuted": Recipe(
        lambda scale, seed: kronecker(scale, seed, permuted=False), _scale
    ),
    "stencil": Recipe(
        stencil, lambda entries: max(1, round(math.cbrt(entries / STENCIL_POINTS))), local=True
    ),
    "stencil-varied": Recipe(
        varied_stencil,
        lambda entries: max(1, round(math.cbrt(entries / STENCIL_POINTS))),
        local=True,
    ),
    "stencil-symmetric": Recipe(
        symmetric_stencil,
        lambda entries: max(1, round(math.cbrt(entries / STENCIL_POINTS))),
        local=True,
    ),
    "arrow": Recipe(arrow, lambda entries: max(1, entries // 3), local=True),
    "dense-rows": Recipe(dense_rows, lambda entries: max(1, entries)),
    "depends": Recipe(depends, _copies, local=True),
    "depends-permuted": Recipe(lambda copies, seed: depends(copies, seed, permuted=True), _copies),
}
"""Name on the command line to recipe."""
