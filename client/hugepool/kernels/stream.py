"""``copy``, ``triad``, ``sum``, ``random_lines``: the limits that other kernels are held against.

All on float64. ``copy`` takes ``a`` and ``out``; ``triad`` takes ``a``, ``b`` and
``out`` and computes ``a + 3 * b``; ``sum`` takes ``a``; ``random_lines`` takes ``x``
and reads as many pseudo-random elements of it as there are rows in the range.
The last two return nothing, but write their sum to ``out[row_start]`` if they are
given an ``out``. Bytes are counted as by STREAM (McCalpin): 16 an element copied,
24 for a triad, 8 read; and 64 for each random line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Operands,
    Work,
    check_length,
    check_rows,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool_common.errors import InvalidSpecError

_FLOAT = ("<f8",)
_LOOPS = "hugepool.kernels.stream_loops"
_copy = CompiledLoop(_LOOPS, "copy", outputs=("out",))
_triad = CompiledLoop(_LOOPS, "triad", outputs=("out",))
_total = CompiledLoop(_LOOPS, "total")
_random_lines = CompiledLoop(_LOOPS, "random_lines")

_MOST_REACH = (1 << 32) - 1
_TRIAD_BLOCK = 1 << 14  # elements; three such blocks stay in a cache of 512 KiB

Compute = Callable[..., Any]


@dataclass(frozen=True)
class StreamKernel:
    """A pass over arrays of float64 of one length, element by element.

    Parameters
    ----------
    name, implementation
        Of the kernel.
    roles
        The arrays read.
    compute
        Called with these arrays, ``out`` if `writes`, and the row range.
    writes
        Whether there is an ``out`` of the same length; otherwise `compute` returns
        a sum, stored in an optional ``out``.
    """

    name: str
    implementation: str
    roles: tuple[str, ...]
    compute: Compute
    writes: bool

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile."""
        arrays = self._arrays(operands)
        if isinstance(self.compute, CompiledLoop):
            self.compute.prepare(*arrays, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Process the elements ``[row_start, row_stop)``."""
        arrays = self._arrays(operands)
        check_rows(row_start, row_stop, len(arrays[0]))
        result = self.compute(*arrays, int(row_start), int(row_stop))
        if not self.writes:
            _store_sum(operands, row_start, row_stop, result)
        elements = row_stop - row_start
        return Work(elements, 0, elements * 8 * len(arrays))

    def _arrays(self, operands: Operands) -> list[Array]:
        inputs = {role: vector(operands, role, _FLOAT) for role in self.roles}
        arrays = list(inputs.values())
        for role, array in inputs.items():
            check_length(array, role, len(arrays[0]))
        if self.writes:
            out = vector(operands, "out", _FLOAT, writable=True)
            check_length(out, "out", len(arrays[0]))
            refuse_overlap(out, **inputs)
            arrays.append(out)
        return arrays


def _store_sum(operands: Operands, row_start: int, row_stop: int, result: float) -> None:
    if "out" not in operands or row_start == row_stop:
        return
    out = vector(operands, "out", _FLOAT, writable=True)
    check_rows(row_start, row_start + 1, len(out))
    out[row_start] = result


@dataclass(frozen=True)
class RandomLines:
    """Reads of pseudo-random cache lines, as fast as this core can have them under way.

    Parameters
    ----------
    ahead
        Reads under way at once, a power of two; the best is among 16, 32 and 64.
    """

    ahead: int = 32

    def __post_init__(self) -> None:
        if self.ahead < 1 or self.ahead & (self.ahead - 1):
            raise InvalidSpecError(
                "ahead is no power of two", needed="such as 32", had=str(self.ahead)
            )

    @property
    def name(self) -> str:
        """``random_lines``."""
        return "random_lines"

    @property
    def implementation(self) -> str:
        """``numba``."""
        return "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile."""
        x = vector(operands, "x", _FLOAT)
        _random_lines.prepare(x, 0, self.ahead, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Read ``row_stop - row_start`` lines of the first 2**32 - 1 elements of ``x``."""
        x = vector(operands, "x", _FLOAT)
        check_rows(row_start, row_stop, 1 << 62)
        lines = row_stop - row_start
        if lines and not len(x):
            raise InvalidSpecError("x has no line to read", needed="1 element", had="0", where="x")
        reach = min(len(x), _MOST_REACH)
        if lines:
            result = _random_lines(x, reach, self.ahead, int(row_start), int(row_stop))
            _store_sum(operands, row_start, row_stop, result)
        return Work(lines, 0, lines * CACHE_LINE_BYTES)


def numba_copy() -> StreamKernel:
    """``copy`` by streaming stores, which do not read their target first."""
    return StreamKernel("copy", "numba", ("a",), _copy, True)


def numba_triad() -> StreamKernel:
    """``triad`` by plain stores."""
    return StreamKernel("triad", "numba", ("a", "b"), _triad, True)


def numba_sum() -> StreamKernel:
    """``sum`` with eight accumulators."""
    return StreamKernel("sum", "numba", ("a",), _total, False)


def numpy_copy() -> StreamKernel:
    """``copy`` by NumPy."""
    return StreamKernel("copy", "numpy", ("a",), _numpy_copy, True)


def numpy_triad() -> StreamKernel:
    """``triad`` by NumPy, in blocks that stay in the cache."""
    return StreamKernel("triad", "numpy", ("a", "b"), _numpy_triad, True)


def numpy_sum() -> StreamKernel:
    """``sum`` by NumPy."""
    return StreamKernel("sum", "numpy", ("a",), _numpy_sum, False)


def _numpy_copy(a: Array, out: Array, row_start: int, row_stop: int) -> None:
    out[row_start:row_stop] = a[row_start:row_stop]


def _numpy_triad(a: Array, b: Array, out: Array, row_start: int, row_stop: int) -> None:
    for start in range(row_start, row_stop, _TRIAD_BLOCK):
        part = slice(start, min(start + _TRIAD_BLOCK, row_stop))
        np.multiply(b[part], 3.0, out=out[part])
        np.add(out[part], a[part], out=out[part])


def _numpy_sum(a: Array, row_start: int, row_stop: int) -> float:
    return float(np.sum(a[row_start:row_stop]))
