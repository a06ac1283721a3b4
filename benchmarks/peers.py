"""The peers: how others compute a gather or a sparse product on the very same arrays.

Each adapter has what its users write (``fresh``: a new result every time) or its best
form (``existing``: the result goes into an array that is there). All run on one thread;
the work is split between processes, as ours is, by rows. Nothing is imported before
:meth:`Peer.available` or :meth:`Peer.prepare`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Result = Literal["existing", "fresh"]

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_THREADING_LAYER": "SEQUENTIAL",
}
"""Environment of a peer process: one thread in every library."""
HUGE_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
"""Ask for huge pages for what a library allocates itself: from malloc, and in PyTorch."""

_MANY_CALLS = 1000
_ANALYSIS_SHARE = 1 / 32
_NO_TRANSPOSE = 10


@dataclass(frozen=True, slots=True)
class GatherPart:
    """One process's share of ``x[idx]``."""

    x: Array
    idx: Array


@dataclass(frozen=True, slots=True)
class ProductPart:
    """One process's share of ``A @ x``: a block of rows whose indptr begins with 0."""

    indptr: Array
    indices: Array
    data: Array
    shape: tuple[int, int]
    x: Array

    @classmethod
    def of_rows(
        cls, indptr: Array, indices: Array, data: Array, columns: int, x: Array, rows: slice
    ) -> ProductPart:
        """Rows of a whole matrix: views, but for the row starts of a block not at the top."""
        starts = indptr[rows.start : rows.stop + 1]
        first, last = int(starts[0]), int(starts[-1])
        based = starts if first == 0 else starts - starts[0]
        return cls(
            based, indices[first:last], data[first:last], (rows.stop - rows.start, columns), x
        )


class Peer:
    """One way to compute one thing.

    Attributes
    ----------
    name
        In tables.
    result
        Where the result goes, see :data:`Result`.
    modules
        What must be importable.
    own_memory
        Whether it copies its inputs to memory of its own, so that our pages say nothing.
    """

    name: ClassVar[str]
    result: ClassVar[Result]
    modules: ClassVar[tuple[str, ...]] = ()
    own_memory: ClassVar[bool] = False

    def available(self) -> str:
        """Why it cannot run here; empty if it can."""
        for module in self.modules:
            try:
                _imported(module)
            except Exception as error:  # a broken installation may raise anything
                return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def prepare(self, part: Any) -> None:
        """Take the inputs. What this costs is told apart from the runs."""
        raise NotImplementedError

    def run(self, out: Array) -> Array:
        """Compute once and return the result, which is `out` if it is to be there."""
        raise NotImplementedError


class _Gather(Peer):
    def prepare(self, part: GatherPart) -> None:
        self._x, self._idx = part.x, part.idx


class NumpyFancy(_Gather):
    """``x[idx]``."""

    name, result = "numpy x[idx]", "fresh"

    def run(self, out: Array) -> Array:
        found: Array = self._x[self._idx]
        return found


class NumpyTake(_Gather):
    """``np.take(x, idx)``."""

    name, result = "numpy take", "fresh"

    def run(self, out: Array) -> Array:
        return np.take(self._x, self._idx)


class NumpyTakeClip(_Gather):
    """``np.take(x, idx, out=out, mode="clip")``: the only form that copies nothing twice."""

    name, result = "numpy take(clip, out)", "existing"

    def run(self, out: Array) -> Array:
        return np.take(self._x, self._idx, out=out, mode="clip")


class _TorchGather(Peer):
    modules = ("torch",)

    def prepare(self, part: GatherPart) -> None:
        self._torch = _torch()
        self._x, self._idx = _tensor(self._torch, part.x), _tensor(self._torch, part.idx)


class TorchIndexSelect(_TorchGather):
    """``torch.index_select(x, 0, idx, out=out)``."""

    name, result = "torch index_select(out)", "existing"

    def run(self, out: Array) -> Array:
        self._torch.index_select(self._x, 0, self._idx, out=_tensor(self._torch, out))
        return out


class TorchFancy(_TorchGather):
    """``x[idx]`` of tensors."""

    name, result = "torch x[idx]", "fresh"

    def run(self, out: Array) -> Array:
        found: Array = self._x[self._idx].numpy()
        return found


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
        self._kernel = _imported("scipy.sparse._sparsetools").csr_matvec
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
        self._multiply = _imported("sparse_dot_mkl").dot_product_mkl
        self._a, self._x = _scipy_matrix(part), part.x

    def run(self, out: Array) -> Array:
        found: Array = self._multiply(self._a, self._x)
        return found


class MklHandle(Peer):
    """``mkl_sparse_d_mv`` on a handle that is kept, into an existing array."""

    name, result = "mkl handle(y)", "existing"
    modules = ("scipy.sparse", "sparse_dot_mkl")

    def prepare(self, part: ProductPart) -> None:
        self._part, self._mkl = part, _imported("sparse_dot_mkl._mkl_interface")
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
        status = self._multiply(_NO_TRANSPOSE, 1.0, self._handle, self._description, x, 0.0, out)
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
        library = _imported("sparse_dot_mkl._mkl_interface._cfunctions")._libmkl
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
        self._torch = _torch()
        arrays = (part.indptr, part.indices, part.data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR tensors are called a beta
            self._a = self._torch.sparse_csr_tensor(
                *(_tensor(self._torch, array) for array in arrays),
                size=part.shape,
                check_invariants=False,
            )
        self._x = _tensor(self._torch, part.x)


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
        target = _tensor(self._torch, out)
        self._torch.addmv(target, self._a, self._x, beta=0, out=target)
        return out


class GraphBlasProduct(Peer):
    """``w << plus_times(A @ v)``: into a vector of GraphBLAS, which holds copies of all inputs."""

    name, result = "graphblas w << A @ v", "existing"
    modules = ("graphblas",)
    own_memory = True

    def prepare(self, part: ProductPart) -> None:
        self._blas = _imported("graphblas")
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


GATHER_PEERS: tuple[Callable[[], Peer], ...] = (
    NumpyFancy,
    NumpyTake,
    NumpyTakeClip,
    TorchFancy,
    TorchIndexSelect,
)
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


def find_peer(name: str) -> Peer:
    """A new adapter of that name.

    Raises
    ------
    KeyError
        There is none.
    """
    for kind in (*GATHER_PEERS, *PRODUCT_PEERS):
        peer = kind()
        if peer.name == name:
            return peer
    raise KeyError(name)


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    names = ("numpy", "scipy", "mkl", "sparse-dot-mkl", "torch", "python-graphblas", "ray")
    found = {}
    for name in (*names, "suitesparse-graphblas"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _imported(module: str) -> Any:
    if module.startswith("sparse_dot_mkl") and "MKL_RT" not in os.environ:
        # It looks for the library everywhere but where pip puts it.
        found = [file for file in metadata.files("mkl") or () if "libmkl_rt.so" in file.name]
        if found:
            os.environ["MKL_RT"] = str(found[0].locate())
    return importlib.import_module(module)


def _torch() -> Any:
    torch = _imported("torch")
    torch.set_num_threads(1)
    return torch


def _tensor(torch: Any, array: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of read-only arrays, which nobody writes to
        return torch.from_numpy(array)


def _scipy_matrix(part: ProductPart) -> Any:
    # Filled in by hand: the constructor may copy what is a small view of a large base.
    matrix = _imported("scipy.sparse").csr_array(part.shape, dtype=part.data.dtype)
    matrix.indptr, matrix.indices, matrix.data = part.indptr, part.indices, part.data
    return matrix
