"""The peers: how others compute a gather or a sparse product on the very same arrays.

Each adapter has what its users write (``fresh``: a new result every time) or its best
form (``existing``: the result goes into an array that is there). All run on one thread;
the work is split between processes, as ours is, by rows. Nothing is imported before
:meth:`Peer.available` or :meth:`Peer.prepare`.
"""

from __future__ import annotations

import importlib
import os
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal, TypeAlias

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


@dataclass(frozen=True, slots=True)
class TransposedPart:
    """One process's share of ``A.T @ x``: the whole matrix, and the columns of its part."""

    matrix: ProductPart
    columns: slice


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
    one_process
        Whether it reaches all of the result, so that those of several would have to be added.
    """

    name: ClassVar[str]
    result: ClassVar[Result]
    modules: ClassVar[tuple[str, ...]] = ()
    own_memory: ClassVar[bool] = False
    one_process: ClassVar[bool] = False

    def available(self) -> str:
        """Why it cannot run here; empty if it can."""
        for module in self.modules:
            try:
                imported(module)
            except Exception as error:  # a broken installation may raise anything
                return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def prepare(self, part: Any) -> None:
        """Take the inputs. What this costs is told apart from the runs."""
        raise NotImplementedError

    def run(self, out: Array) -> Array:
        """Compute once and return the result, which is `out` if it is to be there."""
        raise NotImplementedError


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


def imported(module: str) -> Any:
    """A module of a peer, found wherever pip put what it needs."""
    if module.startswith("sparse_dot_mkl") and "MKL_RT" not in os.environ:
        # It looks for the library everywhere but where pip puts it.
        found = [file for file in metadata.files("mkl") or () if "libmkl_rt.so" in file.name]
        if found:
            os.environ["MKL_RT"] = str(found[0].locate())
    return importlib.import_module(module)


def torch_of_one_thread() -> Any:
    """PyTorch, told to use one thread."""
    torch = imported("torch")
    torch.set_num_threads(1)
    return torch


def tensor(torch: Any, array: Array) -> Any:
    """An array as PyTorch sees it, without a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of read-only arrays, which nobody writes to
        return torch.from_numpy(array)
