"""Cases: one pattern with its inputs, its row partition, and how its result is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hugepool import partition
from hugepool.bench import matrices, patterns
from hugepool.bench.matrices import CsrMatrix
from hugepool.bench.options import FILE_PATTERN, BenchOptions
from hugepool_common.errors import JobFailedError

Array: TypeAlias = npt.NDArray[Any]
LimitKind = Literal["lines", "stream"]

LINE_BYTES = 64
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Case:
    """One pattern, ready to be copied to every backing.

    Parameters
    ----------
    pattern
        ``random`` and so on, or ``file``.
    kernel
        ``gather`` or ``matvec``.
    title
        What is computed, in words.
    limit
        Which limit of the machine the pattern is compared with.
    x_elements
        Length of x.
    idx
        Indices of a gather.
    matrix
        Matrix of a product.
    stream_elements
        Length of the arrays of the bandwidth limit.
    moved_bytes
        Bytes that one run must move through a cold cache, for the bandwidth limit.
    seed
        Of x.
    """

    pattern: str
    kernel: str
    title: str
    limit: LimitKind
    x_elements: int
    idx: Array | None
    matrix: CsrMatrix | None
    stream_elements: int
    moved_bytes: int
    seed: int

    @property
    def unit(self) -> str:
        """What one item is: a ``gather`` or a stored entry, ``nnz``."""
        return "gather" if self.kernel == "gather" else "nnz"

    @property
    def items(self) -> int:
        """Gathers or stored entries of one run."""
        if self.idx is not None:
            return len(self.idx)
        assert self.matrix is not None
        return self.matrix.nnz

    @property
    def out_elements(self) -> int:
        """Length of the result."""
        return self.items if self.matrix is None else self.matrix.shape[0]

    @property
    def input_bytes(self) -> int:
        """Payload of x, indices or matrix, and result."""
        structure = self.idx.nbytes if self.idx is not None else 0
        if self.matrix is not None:
            structure = self.matrix.nbytes
        return 8 * self.x_elements + structure + 8 * self.out_elements

    def rows(self, workers: int) -> tuple[int, ...]:
        """Partition bounds for so many workers."""
        if self.matrix is not None:
            return partition.by_nnz(self.matrix.indptr, workers)
        return partition.by_rows(self.out_elements, workers)

    def fill_x(self, x: Array) -> None:
        """Write the values of x: the same in every backing."""
        np.random.default_rng([self.seed, self.x_elements]).random(out=x)


def build_case(pattern: str, options: BenchOptions) -> Case:
    """Make the indices or the matrix of a generated pattern."""
    if pattern in patterns.GATHER_PATTERNS:
        return _gather_case(pattern, options)
    matrix = matrices.make_matrix(pattern, options.elements, options.entries, options.seed)
    return matrix_case(pattern, matrix, options, f"{pattern} matrix")


def matrix_case(pattern: str, matrix: CsrMatrix, options: BenchOptions, title: str) -> Case:
    """The product of a matrix with a random x."""
    rows, columns = matrix.shape
    local = pattern in ("stencil", FILE_PATTERN)
    return Case(
        pattern,
        "matvec",
        f"{title}, {rows:,} x {columns:,}, {matrix.nnz:,} stored entries",
        "stream" if local else "lines",
        columns,
        None,
        matrix,
        options.gathers,
        matrix.nbytes + 8 * columns + 8 * rows,
        options.seed,
    )


def _gather_case(pattern: str, options: BenchOptions) -> Case:
    elements, gathers = options.elements, options.gathers
    step = {"stride": patterns.STRIDE, "sequential": 1}.get(pattern)
    moved_bytes = gathers * (min(LINE_BYTES, 8 * (step or patterns.STRIDE)) + 16)
    return Case(
        pattern,
        "gather",
        f"{pattern} gather of {gathers:,} from {elements:,} float64",
        "stream" if step else "lines",
        elements,
        patterns.make_indices(pattern, elements, gathers, options.seed),
        None,
        gathers,
        moved_bytes,
        options.seed,
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """The right result of a case, and the error that another order of summation may make.

    Parameters
    ----------
    expected
        What NumPy or SciPy computes.
    bound
        Largest error allowed per element, or None where every bit must agree.
    source
        Which code computed it.
    """

    expected: Array
    bound: Array | None
    source: str

    def check(self, out: Array, where: str) -> str:
        """Compare a result; say how well it agrees.

        Returns
        -------
        str
            ``bit for bit``, or the largest share of the bound that was used.

        Raises
        ------
        JobFailedError
            The result is wrong; says where first.
        """
        bad = first_difference(out, self.expected)
        if bad is None:
            return "bit for bit"
        if self.bound is not None:
            same = _same(out, self.expected)
            with np.errstate(invalid="ignore", over="ignore"):  # of NaN and infinity
                error = np.where(same, 0.0, np.abs(out - self.expected))
            # NaN is outside, and no rounding leads to or from infinity.
            outside = ~(same | (error <= self.bound) & np.isfinite(self.expected))
            outside |= ~same & ~np.isfinite(out)
            if not outside.any():
                share = float(np.max(error / np.where(self.bound > 0, self.bound, 1.0)))
                return f"within {share:.2g} of the rounding bound"
            bad = int(outside.argmax())
        raise JobFailedError(
            f"the result differs from {self.source}",
            needed=f"{float(self.expected[bad])!r} at {bad}",
            had=f"{float(out[bad])!r}",
            where=where,
        )

    def wrong_everywhere(self) -> Array:
        """Values of which none is right, to fill a result with before it is computed."""
        return np.where(np.isnan(self.expected), 0.0, np.nan)


def first_difference(left: Array, right: Array) -> int | None:
    """Position of the first elements that differ, or None; NaN is the same as NaN."""
    if left.shape != right.shape:
        return 0
    for start in range(0, len(left), _CHUNK):
        differs = ~_same(left[start : start + _CHUNK], right[start : start + _CHUNK])
        if differs.any():
            return start + int(differs.argmax())
    return None


def _same(left: Array, right: Array) -> Array:
    same: Array = (left == right) | (np.isnan(left) & np.isnan(right))
    return same


def reference_of(case: Case, x: Array) -> Reference:
    """Compute a case's result in this process with NumPy's ``x[idx]`` or SciPy's ``A @ x``.

    Without SciPy the product is NumPy's, in NumPy's order of summation.
    """
    if case.idx is not None:
        return Reference(x[case.idx], None, "NumPy's x[idx]")
    assert case.matrix is not None
    multiply, source = _product(case.matrix)
    with np.errstate(invalid="ignore", over="ignore"):  # a matrix may hold NaN and infinity
        expected = multiply(case.matrix.data, x)
        # Two sums of k rounded products differ by at most 2 k eps of the sum of magnitudes.
        entries = np.diff(case.matrix.indptr)
        magnitude = multiply(np.abs(case.matrix.data), np.abs(x))
        bound = 2 * np.maximum(entries, 1) * np.finfo(np.float64).eps * magnitude
    return Reference(expected, bound, source)


def _product(matrix: CsrMatrix) -> tuple[Callable[[Array, Array], Array], str]:
    try:
        import scipy.sparse
    except ImportError:
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))

        def by_numpy(data: Array, x: Array) -> Array:
            products = data * x[matrix.indices]
            return np.bincount(rows, products, minlength=matrix.shape[0])

        return by_numpy, "NumPy's sums"

    def by_scipy(data: Array, x: Array) -> Array:
        product: Array = (
            scipy.sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape) @ x
        )
        return product

    return by_scipy, "SciPy's A @ x"
