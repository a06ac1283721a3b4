"""``scatter_add``: ``out[idx[i]] += values[i]`` for every i, in order, as ``numpy.add.at`` does.

Operands: ``idx`` of any shape and a 32- or 64-bit integer dtype, ``values`` of the same
shape, ``out`` of one axis and the dtype of ``values``, and perhaps ``base``, like ``out``.
Ranges are elements of ``out``: every part reads all of ``idx`` and adds what belongs to
its elements, so that each has one writer and the result does not depend on the parts.

With ``base`` the result is ``base`` plus what is added. Only then may a part be run
again, as after the death of its worker: without ``base`` it would add twice, so that
a job without it fails when a worker dies.

Indices count from the start only: a negative one is out of range. A bad index is
found before anything is written; to the whole of ``out``, if idx does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    Operands,
    Work,
    check_length,
    check_rows,
    dense,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.gather import INDEX_CODES
from hugepool.kernels.spmv import VALUE_CODES
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError

_LOOPS = "hugepool.kernels.scatter_loops"
_scatter_add = CompiledLoop(_LOOPS, "scatter_add", outputs=("out",))
_scatter_to = CompiledLoop(_LOOPS, "scatter_to", outputs=("out",))
_BLOCK = 1 << 16
_NONE = -1


@dataclass(frozen=True, slots=True)
class _ScatterOperands:
    idx: Array
    values: Array
    out: Array
    base: Array | None

    def work(self, row_start: int, row_stop: int) -> Work:
        """What a part reads and writes, if idx leads to all elements alike."""
        rows = row_stop - row_start
        share = len(self.idx) * rows // max(len(self.out), 1)
        item = self.out.itemsize
        copied = 0 if self.base is None else rows
        return Work(rows, 0, self.idx.nbytes + (3 * share + 2 * copied) * item)


def _checked(operands: Operands) -> _ScatterOperands:
    idx = dense(operands, "idx", least_axes=0)
    values = dense(operands, "values", least_axes=0)
    out = vector(operands, "out", VALUE_CODES, writable=True)
    if values.shape != idx.shape:
        raise InvalidSpecError(
            "values and idx differ in shape",
            needed=str(idx.shape),
            had=str(values.shape),
            where="values",
        )
    flat = vector({"idx": idx.reshape(-1)}, "idx", INDEX_CODES)
    addends = vector({"values": values.reshape(-1)}, "values", (out.dtype.str,))
    base = None
    if "base" in operands:
        base = vector(operands, "base", (out.dtype.str,))
        check_length(base, "base", len(out))
        refuse_overlap(out, base=base)
    refuse_overlap(out, idx=idx, values=values)
    return _ScatterOperands(flat, addends, out, base)


def _refuse(position: int, value: int, count: int) -> NoReturn:
    raise IndexOutOfRangeError(
        f"index {value} at position {position} is out of range",
        needed=f"0 <= index < {count}",
        had=str(value),
        where="idx",
        position=position,
    )


class NumbaScatterAdd:
    """Compiled: picks a part's indices out of a block of them without a branch, then adds.

    Cannot fault even if another process writes to ``idx`` meanwhile.
    """

    name = "scatter_add"
    implementation = "numba"

    def bind(self, operands: Operands) -> Bound:
        """Check the operands and give the loop for their dtypes."""
        return _bound(_checked(operands))

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Add to the elements ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        bound = _bound(found)
        check_rows(row_start, row_stop, bound.rows)
        position, value = bound.loop(*bound.arguments, int(row_start), int(row_stop))
        if position != _NONE:
            signed = found.idx.dtype.kind == "i" and value >= 1 << 63
            _refuse(position, value - (1 << 64) if signed else value, len(found.out))
        return found.work(row_start, row_stop)


def _bound(found: _ScatterOperands) -> Bound:
    idx = found.idx
    if idx.itemsize == 8:
        idx = idx.view(np.uint64)  # a negative index becomes one that is out of range, too
    if found.base is None:
        return Bound(_scatter_add, (idx, found.values, found.out), len(found.out), _NONE)
    arguments = idx, found.values, found.base, found.out
    return Bound(_scatter_to, arguments, len(found.out), _NONE)


class NumpyScatterAdd:
    """``numpy.add.at`` on those indices of a block that lead to the part's elements.

    Cannot fault even if another process writes to ``idx`` meanwhile.
    """

    name = "scatter_add"
    implementation = "numpy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked(operands)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Add to the elements ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, len(found.out))
        for start in range(0, len(found.idx), _BLOCK):
            _refuse_outside(found, start)
        target = found.out[row_start:row_stop]
        if found.base is not None:
            target[:] = found.base[row_start:row_stop]
        for start in range(0, len(found.idx), _BLOCK):
            part = found.idx[start : start + _BLOCK].copy()
            own = np.flatnonzero((part >= row_start) & (part < row_stop))
            values = found.values[start : start + _BLOCK]
            with np.errstate(all="ignore"):
                np.add.at(target, part[own].astype(np.int64) - row_start, values[own])
        return found.work(row_start, row_stop)


def _refuse_outside(found: _ScatterOperands, start: int) -> None:
    part = found.idx[start : start + _BLOCK].copy()
    bad = (part < 0) | (part >= len(found.out))
    if bad.any():
        first = int(bad.argmax())
        _refuse(start + first, int(part[first]), len(found.out))
