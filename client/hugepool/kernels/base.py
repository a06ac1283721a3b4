"""What every kernel takes and gives: operands in roles, a row range, the work that was done.

Operands are verified here, before any kernel writes: a wrong dtype, shape or
layout is refused with the role it has, never found out by a fault.
"""

from __future__ import annotations

import functools
import glob
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from hugepool_common.errors import InvalidMatrixError, InvalidSpecError
from hugepool_common.spec import INDEX_DTYPES, ITEM_SIZES

Array: TypeAlias = npt.NDArray[Any]

CACHE_LINE_BYTES = 64
_ASSUMED_CACHE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class CsrArrays:
    """A compressed-sparse-row matrix as its three arrays.

    Parameters
    ----------
    indptr
        int32 or int64, shape (rows + 1,): row i owns the entries ``indptr[i]`` to ``indptr[i+1]``.
    indices
        int32 or int64, shape (nnz,): the column of each entry.
    data
        Shape (nnz,): its value.
    shape
        (rows, columns).
    """

    indptr: Array
    indices: Array
    data: Array
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class PlanArrays:
    """A plan as the arrays of its segment.

    Parameters
    ----------
    arrays
        1-D, by role. One of them is ``head``, int64, shape (32,): the plan's numbers, of
        which the first says what form of plan it is.
    """

    arrays: Mapping[str, Array]


Operand: TypeAlias = "Array | CsrArrays | PlanArrays"
Operands: TypeAlias = Mapping[str, Operand]


@dataclass(frozen=True, slots=True)
class Work:
    """What one call did.

    Parameters
    ----------
    elements
        Rows gathered or written, elements copied, or lines read.
    nnz
        Matrix entries used; 0 for kernels without a matrix.
    nbytes
        Payload bytes that the call had to read and write (a random line counts whole).
    """

    elements: int
    nnz: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Bound:
    """A compiled loop with everything but a row range: checked once, called many times.

    Parameters
    ----------
    loop
        The :class:`~hugepool.kernels.compiler.CompiledLoop`.
    arguments
        Contiguous ndarrays and ints, all but ``row_start`` and ``row_stop``, which come last.
    rows
        Ranges lie in ``[0, rows)``.
    succeeded
        What the loop returns when all went well, or the first of what it returns; None
        for a loop that returns nothing.
    """

    loop: Any
    arguments: tuple[Any, ...]
    rows: int
    succeeded: int | None = None


class Kernel(Protocol):
    """A computation over operands in named roles, run on one row range at a time.

    Notes
    -----
    A kernel holds no operand after it returns, so mappings may be closed between
    calls. Several threads may call one kernel at once, on ranges that do not overlap.
    """

    @property
    def name(self) -> str:
        """The kernel, such as ``gather``."""

    @property
    def implementation(self) -> str:
        """Which code runs, such as ``numba``."""

    def prepare(self, operands: Operands) -> None:
        """Do what only a first call pays for: check the operands, compile for their dtypes."""

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Compute the rows ``[row_start, row_stop)``; nothing else of ``out`` is touched."""


def dense(operands: Operands, role: str, *, least_axes: int = 1, writable: bool = False) -> Array:
    """The C-contiguous array in a role, as a plain ndarray.

    Raises
    ------
    InvalidSpecError
        The role is empty, holds a matrix, or an array that is not C-contiguous,
        has no shareable dtype, has too few axes, or is read-only where it must be written.
    """
    array = operands.get(role)
    if array is None:
        raise InvalidSpecError(f"the kernel needs an operand {role}", had=" ".join(operands))
    if not isinstance(array, np.ndarray):
        raise InvalidSpecError("the operand must be an array", had=type(array).__name__, where=role)
    if array.dtype.str not in ITEM_SIZES:
        raise InvalidSpecError(
            f"dtype {array.dtype} cannot be computed on",
            needed=f"one of {' '.join(ITEM_SIZES)}",
            where=role,
        )
    if array.ndim < least_axes:
        raise InvalidSpecError(
            "the operand has too few axes",
            needed=f"at least {least_axes}",
            had=f"{array.ndim}",
            where=role,
        )
    if not array.flags.c_contiguous:
        raise InvalidSpecError(
            "the operand is not C-contiguous",
            had=f"strides {array.strides}",
            where=role,
            remedy="use numpy.ascontiguousarray",
        )
    if writable and not array.flags.writeable:
        raise InvalidSpecError("the operand is read-only", where=role)
    return array.view(np.ndarray)


def vector(
    operands: Operands, role: str, dtypes: Iterable[str], *, writable: bool = False
) -> Array:
    """The aligned 1-D array in a role, of one of `dtypes` (codes of ``numpy.dtype.str``).

    Raises
    ------
    InvalidSpecError
        It has another dtype or number of axes, is misaligned, or fails :func:`dense`.
    """
    array = dense(operands, role, writable=writable)
    wanted = tuple(dtypes)
    if array.dtype.str not in wanted:
        raise InvalidSpecError(
            "the operand has another dtype",
            needed=" or ".join(wanted),
            had=array.dtype.str,
            where=role,
        )
    if array.ndim != 1:
        raise InvalidSpecError(
            "the operand has the wrong number of axes", needed="1", had=str(array.ndim), where=role
        )
    if not array.flags.aligned:
        # Compiled code may use instructions that fault on a misaligned element.
        raise InvalidSpecError(
            "the operand is not aligned",
            needed=f"an address that is a multiple of {array.dtype.alignment}",
            where=role,
            remedy="copy the array",
        )
    return array


def matrix(operands: Operands, role: str, dtypes: Iterable[str]) -> CsrArrays:
    """The matrix in a role, its arrays' lengths and dtypes checked, not yet their contents.

    Raises
    ------
    InvalidSpecError
        The role is empty or holds no matrix, or an array has a wrong dtype or layout.
    InvalidMatrixError
        The lengths of the arrays contradict the shape or each other.
    """
    found = operands.get(role)
    if not isinstance(found, CsrArrays):
        raise InvalidSpecError(
            "the operand must be a CSR matrix", had=type(found).__name__, where=role
        )
    parts = {"indptr": found.indptr, "indices": found.indices, "data": found.data}
    indptr = vector(parts, "indptr", INDEX_DTYPES)
    indices = vector(parts, "indices", INDEX_DTYPES)
    data = vector(parts, "data", dtypes)
    rows, columns = (operator.index(extent) for extent in found.shape)
    if rows < 0 or columns < 0 or len(indptr) != rows + 1:
        raise InvalidMatrixError(
            "indptr does not fit the shape", needed=f"{rows + 1}", had=f"{len(indptr)}", where=role
        )
    if len(data) != len(indices):
        raise InvalidMatrixError(
            "data and indices differ in length",
            needed=f"{len(indices)}",
            had=f"{len(data)}",
            where=role,
        )
    return CsrArrays(indptr, indices, data, (rows, columns))


def check_rows(row_start: int, row_stop: int, rows: int) -> None:
    """Refuse a row range that is not inside ``[0, rows)``.

    Raises
    ------
    InvalidSpecError
        Not ``0 <= row_start <= row_stop <= rows``.
    """
    if not 0 <= operator.index(row_start) <= operator.index(row_stop) <= rows:
        raise InvalidSpecError(
            "the row range lies outside the operands",
            needed=f"0 <= start <= stop <= {rows}",
            had=f"[{row_start}, {row_stop})",
        )


def check_length(array: Array, role: str, needed: int) -> None:
    """Refuse an array whose first axis has another extent.

    Raises
    ------
    InvalidSpecError
        ``len(array) != needed``.
    """
    if len(array) != needed:
        raise InvalidSpecError(
            "the operand has the wrong length", needed=f"{needed}", had=f"{len(array)}", where=role
        )


def refuse_overlap(out: Array, **inputs: Array) -> None:
    """Refuse an output that shares memory with an input.

    Only addresses are compared: two mappings of one segment are not recognised.

    Raises
    ------
    InvalidSpecError
        The address ranges meet.
    """
    for role, array in inputs.items():
        if np.may_share_memory(out, array):
            raise InvalidSpecError(
                f"out overlaps {role}", where="out", remedy="write into an array of its own"
            )


@functools.lru_cache(maxsize=1)
def last_level_cache_bytes() -> int:
    """Size of the largest cache of CPU 0 in bytes; 32 MiB where the kernel does not tell."""
    found = [_ASSUMED_CACHE_BYTES]
    paths = glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size")
    for path in paths:
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
            scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]]
            found.append(int(text[:-1]) * scale)
        except (OSError, ValueError, KeyError, IndexError):
            continue  # a virtual machine may show a cache without its size
    return max(found[1:], default=found[0])
