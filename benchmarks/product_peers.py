"""How SciPy, MKL, PyTorch and GraphBLAS multiply with a CSR matrix, and with its transpose."""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from peers import (
    Array,
    Peer,
    ProductPart,
    TransposedPart,
    imported,
    tensor,
    torch_of_one_thread,
)

_MANY_CALLS = 1000
_ANALYSIS_SHARE = 1 / 32
_NO_TRANSPOSE, _TRANSPOSE = 10, 11


class ScipyProduct(Peer):
    """``A @ x``."""

    name, result = "scipy A @ x", "fresh"
    modules = ("scipy.sparse",)

    def prepare(self, part: ProductPart) -> None:
        self._a, self._x = _scipy_matrix(part), part.x

    def run(self, out: Array) -> Array:
        found: Array = self._a @ self._x
        return found


class ScipyKernel(Peer):
    """SciPy's compiled loop, which adds to an existing array: that is cleared first."""

    name, result = "scipy csr_matvec(y)", "existing"
    modules = ("scipy.sparse._sparsetools",)

    def prepare(self, part: ProductPart) -> None:
        self._kernel = imported("scipy.sparse._sparsetools").csr_matvec
        self._arguments = (*part.shape, part.indptr, part.indices, part.data, part.x)

    def run(self, out: Array) -> Array:
        out.fill(0.0)
        self._kernel(*self._arguments, out)
        return out


class MklProduct(Peer):
    """``dot_product_mkl(A, x)`` of sparse_dot_mkl."""

    name, result = "mkl dot_product_mkl", "fresh"
    modules = ("scipy.sparse", "sparse_dot_mkl")

    def prepare(self, part: ProductPart) -> None:
        self._multiply = imported("sparse_dot_mkl").dot_product_mkl
        self._a, self._x = _scipy_matrix(part), part.x

    def run(self, out: Array) -> Array:
        found: Array = self._multiply(self._a, self._x)
        return found


class MklHandle(Peer):
    """``mkl_sparse_d_mv`` on a handle that is kept, into an existing array."""

    name, result = "mkl handle(y)", "existing"
    modules = ("scipy.sparse", "sparse_dot_mkl")
    operation: ClassVar[int] = _NO_TRANSPOSE

    def prepare(self, part: ProductPart) -> None:
        self._part, self._mkl = part, imported("sparse_dot_mkl._mkl_interface")
        self._multiply = self._mkl.MKL._mkl_sparse_d_mv
        self._description = self._mkl.matrix_descr()
        self._handle = self._new_handle(part)

    def _new_handle(self, part: ProductPart) -> Any:
        handle, double, _ = self._mkl._create_mkl_sparse(_scipy_matrix(part))
        if not double:
            raise TypeError(f"float64 is needed, not {part.data.dtype}")
        return handle

    def run(self, out: Array) -> Array:
        x = self._part.x
        status = self._multiply(self.operation, 1.0, self._handle, self._description, x, 0.0, out)
        if status:
            raise RuntimeError(f"mkl_sparse_d_mv returned {status}")
        return out


class MklOptimised(MklHandle):
    """The same after MKL's analysis, which may reorder and copy the matrix.

    The analysis may take tens of products. It is tried on a slice of the
    rows first, and refused where the whole is expected to take more than a minute.
    """

    name = "mkl optimised(y)"
    longest_s: ClassVar[float] = 60.0

    def prepare(self, part: ProductPart) -> None:
        super().prepare(part)
        rows = int(part.shape[0] * _ANALYSIS_SHARE)
        if rows:
            some = ProductPart.of_rows(
                part.indptr, part.indices, part.data, part.shape[1], part.x, slice(0, rows)
            )
            handle = self._new_handle(some)
            started = time.perf_counter()
            self._analyse(handle)
            expected_s = (time.perf_counter() - started) / _ANALYSIS_SHARE
            self._mkl._destroy_mkl_handle(handle)
            if expected_s > self.longest_s:
                raise TimeoutError(f"MKL's analysis would take about {expected_s:.0f} s")
        self._analyse(self._handle)

    def _analyse(self, handle: Any) -> None:
        library = imported("sparse_dot_mkl._mkl_interface._cfunctions")._libmkl
        pointer, number = ctypes.c_void_p, ctypes.c_int
        library.mkl_sparse_set_mv_hint.argtypes = [
            *(pointer, number, self._mkl.matrix_descr, number)
        ]
        library.mkl_sparse_optimize.argtypes = [pointer]
        library.mkl_sparse_set_mv_hint(handle, _NO_TRANSPOSE, self._description, _MANY_CALLS)
        status = library.mkl_sparse_optimize(handle)
        if status:
            raise RuntimeError(f"mkl_sparse_optimize returned {status}")


class _TorchProductBase(Peer):
    modules = ("torch",)

    def prepare(self, part: ProductPart) -> None:
        self._torch = torch_of_one_thread()
        arrays = (part.indptr, part.indices, part.data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR tensors are called a beta
            self._a = self._torch.sparse_csr_tensor(
                *(tensor(self._torch, array) for array in arrays),
                size=part.shape,
                check_invariants=False,
            )
        self._x = tensor(self._torch, part.x)


class TorchProduct(_TorchProductBase):
    """``torch.mv(A, x)``; PyTorch calls MKL for it where it was built with it."""

    name, result = "torch mv", "fresh"

    def run(self, out: Array) -> Array:
        found: Array = self._torch.mv(self._a, self._x).numpy()
        return found


class TorchProductOut(_TorchProductBase):
    """``torch.addmv(y, A, x, beta=0, out=y)``."""

    name, result = "torch addmv(out)", "existing"

    def run(self, out: Array) -> Array:
        target = tensor(self._torch, out)
        self._torch.addmv(target, self._a, self._x, beta=0, out=target)
        return out


class GraphBlasProduct(Peer):
    """``w << plus_times(A @ v)``: into a vector of GraphBLAS, which holds copies of all inputs."""

    name, result = "graphblas w << A @ v", "existing"
    modules = ("graphblas",)
    own_memory = True

    def prepare(self, part: ProductPart) -> None:
        self._blas = imported("graphblas")
        self._blas.ss.config["nthreads"] = 1
        self._a = self._blas.Matrix.ss.import_csr(
            nrows=part.shape[0],
            ncols=part.shape[1],
            indptr=part.indptr.astype(np.uint64),
            col_indices=part.indices.astype(np.uint64),
            values=part.data.copy(),
            sorted_cols=True,
        )
        self._x = self._blas.Vector.from_dense(part.x)
        self._result = self._blas.Vector(float, size=part.shape[0])

    def run(self, out: Array) -> Array:
        self._result << self._blas.semiring.plus_times(self._a @ self._x)
        self._result.wait()
        return out

    def dense(self) -> Array:
        """The result as an array: empty rows are absent from the vector, and 0 here."""
        found: Array = self._result.to_dense(fill_value=0.0)
        return found


class ScipyTransposed(Peer):
    """``A.T @ x``: a view as CSC, whose columns are A's rows."""

    name, result = "scipy A.T @ x", "fresh"
    modules = ("scipy.sparse",)
    one_process = True

    def prepare(self, part: TransposedPart) -> None:
        self._a, self._x = _scipy_matrix(part.matrix), part.matrix.x

    def run(self, out: Array) -> Array:
        found: Array = self._a.T @ self._x
        return found


class ScipyTransposedKernel(Peer):
    """SciPy's compiled loop over those columns, which adds to an existing array."""

    name, result = "scipy csc_matvec(y)", "existing"
    modules = ("scipy.sparse._sparsetools",)
    one_process = True

    def prepare(self, part: TransposedPart) -> None:
        a = part.matrix
        self._kernel = imported("scipy.sparse._sparsetools").csc_matvec
        self._arguments = (*reversed(a.shape), a.indptr, a.indices, a.data, a.x)

    def run(self, out: Array) -> Array:
        out.fill(0.0)
        self._kernel(*self._arguments, out)
        return out


class MklTransposedHandle(MklHandle):
    """``mkl_sparse_d_mv`` with the transpose as its operation, on a handle that is kept."""

    name = "mkl handle(A.T, y)"
    one_process = True
    operation = _TRANSPOSE

    def prepare(self, part: Any) -> None:
        super().prepare(part.matrix)


class GraphBlasTransposed(GraphBlasProduct):
    """``w << plus_times(A.T @ v)``."""

    name = "graphblas w << A.T @ v"
    one_process = True

    def prepare(self, part: Any) -> None:
        super().prepare(part.matrix)
        self._result = self._blas.Vector(float, size=part.matrix.shape[1])

    def run(self, out: Array) -> Array:
        self._result << self._blas.semiring.plus_times(self._a.T @ self._x)
        self._result.wait()
        return out


class ScipyKeptTranspose(ScipyProduct):
    """``kept @ x`` with ``kept = A.T.tocsr()``: a second matrix, for who has the memory."""

    name = "scipy kept A.T.tocsr() @ x"
    own_memory = True

    def prepare(self, part: Any) -> None:
        super().prepare(_kept_transpose(part))


class MklKeptTranspose(MklHandle):
    """MKL's handle of such a second matrix."""

    name = "mkl handle(kept A.T.tocsr(), y)"
    own_memory = True

    def prepare(self, part: Any) -> None:
        super().prepare(_kept_transpose(part))


def _kept_transpose(part: TransposedPart) -> ProductPart:
    kept = _scipy_matrix(part.matrix).T.tocsr()
    rows, x = part.columns, part.matrix.x
    return ProductPart.of_rows(kept.indptr, kept.indices, kept.data, len(x), x, rows)


PRODUCT_PEERS: tuple[Callable[[], Peer], ...] = (
    ScipyProduct,
    ScipyKernel,
    MklProduct,
    MklHandle,
    MklOptimised,
    TorchProduct,
    TorchProductOut,
    GraphBlasProduct,
)
TRANSPOSED_PEERS: tuple[Callable[[], Peer], ...] = (
    ScipyTransposed,
    ScipyTransposedKernel,
    ScipyKeptTranspose,
    MklTransposedHandle,
    MklKeptTranspose,
    GraphBlasTransposed,
)


def _scipy_matrix(part: ProductPart) -> Any:
    # Filled in by hand: the constructor may copy what is a small view of a large base.
    matrix = imported("scipy.sparse").csr_array(part.shape, dtype=part.data.dtype)
    matrix.indptr, matrix.indices, matrix.data = part.indptr, part.indices, part.data
    return matrix
