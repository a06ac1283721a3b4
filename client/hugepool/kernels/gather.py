"""``gather``: ``out[i] = x[idx[i]]`` for a range of rows i.

Operands: ``x`` of shape (n, ...), ``idx`` of any shape and a 32- or 64-bit integer
dtype, ``out`` of shape ``idx.shape + x.shape[1:]`` and x's dtype. All C-contiguous.
With one axis a row of x is an element; with more, as in an embedding table, it is
everything behind the first axis. Rows of ``out``, and positions in ``idx``, are
counted over the flattened ``idx``.

Indices count from the start only: a negative one is out of range. On a bad index
``out`` may hold part of the rows; nothing outside the row range is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from hugepool.kernels.base import (
    CACHE_LINE_BYTES,
    Array,
    Bound,
    Operands,
    Work,
    check_rows,
    dense,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError

INDEX_CODES = ("<i4", "<i8", "<u4", "<u8")
"""Dtypes of ``idx``."""

_LOOPS = "hugepool.kernels.gather_loops"
_gather_elements = CompiledLoop(_LOOPS, "gather_elements", outputs=("out",))
_gather_rows = CompiledLoop(_LOOPS, "gather_rows", outputs=("out",))
_gather_exactly = {
    row_bytes: CompiledLoop(_LOOPS, f"gather_{row_bytes}", outputs=("out",))
    for row_bytes in (16, 32, 64)
}
_gather_up_to = {
    most: CompiledLoop(_LOOPS, f"gather_to_{most}", outputs=("out",))
    for most in (2, 4, 8, 16, 32, 64, 128)
}
"""By the longest row of each; it takes all that are longer than half of that."""
_stream = {block: CompiledLoop(_LOOPS, f"stream_{block}", outputs=("out",)) for block in (32, 64)}
STREAMED_BYTES = 16 << 20
"""A result of so many bytes is written past the caches, if its rows fill cache lines or halves.

It would hardly stay in a cache. Where x did, rows of 64 to 1024 bytes took 0.55 to 0.9 times
as long as with ``numpy.take``, instead of 0.9 to 1.3 times.
"""
_ALL_WELL = -1
"""What the loops return in place of the position of a bad index."""
_SEARCH_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class _GatherOperands:
    x: Array
    idx: Array
    out: Array

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.x.shape[1:]) * self.x.itemsize

    def work(self, row_start: int, row_stop: int) -> Work:
        """What gathering the range reads and writes."""
        rows = row_stop - row_start
        return Work(rows, 0, rows * (self.idx.itemsize + 2 * self.row_bytes))


def _checked(operands: Operands) -> _GatherOperands:
    x = dense(operands, "x")
    idx = dense(operands, "idx", least_axes=0)
    out = dense(operands, "out", least_axes=0, writable=True)
    needed = idx.shape + x.shape[1:]
    if out.dtype != x.dtype or out.shape != needed:
        raise InvalidSpecError(
            "out does not fit idx and the rows of x",
            needed=f"dtype {x.dtype}, shape {needed}",
            had=f"dtype {out.dtype}, shape {out.shape}",
            where="out",
        )
    refuse_overlap(out, x=x, idx=idx)
    flat = vector({"idx": idx.reshape(-1)}, "idx", INDEX_CODES)
    return _GatherOperands(x, flat, out.reshape(flat.shape + x.shape[1:]))


def _refuse(position: int, value: int, rows: int) -> NoReturn:
    raise IndexOutOfRangeError(
        f"index {value} at position {position} is out of range",
        needed=f"0 <= index < {rows}",
        had=str(value),
        where="idx",
        position=position,
    )


class NumbaGather:
    """Compiled: checks each index as it is used, prefetches where x is large, stores in order.

    Raises `IndexOutOfRangeError` for the first bad index, and cannot fault even if
    another process writes to ``idx`` meanwhile.
    """

    name = "gather"
    implementation = "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        return _bound(_checked(operands))

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Gather the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, len(found.idx))
        bound = _bound(found)
        position, value = bound.loop(*bound.arguments, int(row_start), int(row_stop))
        if position >= 0:
            signed = found.idx.dtype.kind == "i" and value >= 1 << 63
            _refuse(position, value - (1 << 64) if signed else value, len(found.x))
        return found.work(row_start, row_stop)


def _bound(found: _GatherOperands) -> Bound:
    """The loop for these operands and its arguments.

    A gather copies bits, whatever they mean: elements of one width share a loop.
    """
    idx = found.idx
    if idx.itemsize == 8:
        idx = idx.view(np.uint64)  # a negative index becomes one that is out of range, too
    flat_x, flat_out = found.x.reshape(-1), found.out.reshape(-1)
    aligned = flat_x.flags.aligned and flat_out.flags.aligned
    if aligned and found.row_bytes == found.x.itemsize <= 8:
        unit = f"u{found.row_bytes}"
        elements = (flat_x.view(unit), idx, flat_out.view(unit))
        return Bound(_gather_elements, elements, len(idx), _ALL_WELL)
    rows = len(found.x), found.row_bytes
    parts = (flat_x.view("u1"), *rows, idx, flat_out.view("u1"))
    return Bound(_row_loop(found.row_bytes, flat_out), parts, len(idx), _ALL_WELL)


def _row_loop(row_bytes: int, out: Array) -> CompiledLoop:
    if row_bytes >= CACHE_LINE_BYTES and out.nbytes >= STREAMED_BYTES:
        block = math.gcd(row_bytes, out.ctypes.data, CACHE_LINE_BYTES)
        if block in _stream:
            return _stream[block]
    if row_bytes in _gather_exactly:
        return _gather_exactly[row_bytes]
    if row_bytes == 0:
        return _gather_rows
    most = max(2, 1 << (row_bytes - 1).bit_length())
    return _gather_up_to.get(most, _gather_rows)


class TakeGather:
    """NumPy: one check of the whole range, then ``numpy.take`` straight into ``out``.

    The mode is ``clip`` because ``raise`` makes NumPy write to a buffer first. It also
    means that an index changed by another process after the check cannot fault.
    """

    name = "gather"
    implementation = "take"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked(operands)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Gather the rows ``[row_start, row_stop)`` of ``out``."""
        found = _checked(operands)
        check_rows(row_start, row_stop, len(found.idx))
        if row_start == row_stop:
            return found.work(row_start, row_stop)  # take refuses an empty x, even for no index
        part = found.idx[row_start:row_stop]
        if part.min() < 0 or part.max() >= len(found.x):
            _refuse_first(found, row_start, row_stop)
        if part.dtype == np.uint64:
            part = part.view(np.int64)  # take accepts no uint64
        np.take(found.x, part, axis=0, out=found.out[row_start:row_stop], mode="clip")
        return found.work(row_start, row_stop)


def _refuse_first(found: _GatherOperands, row_start: int, row_stop: int) -> None:
    rows = len(found.x)
    for start in range(row_start, row_stop, _SEARCH_BLOCK):
        block = found.idx[start : min(start + _SEARCH_BLOCK, row_stop)].copy()
        bad = (block < 0) | (block >= rows)
        if bad.any():
            first = int(bad.argmax())
            _refuse(start + first, int(block[first]), rows)


@dataclass(frozen=True)
class FancyGather:
    """NumPy as its users write it, ``x[idx]``, to compare with.

    The result is a fresh array, as it is for those users, and it is dropped:
    ``out`` keeps what it had, unless `store` is set (implementation ``fancy-store``),
    which then copies the result there. NumPy's rules hold: a negative index counts
    from the end. The check of bounds is NumPy's own.
    """

    store: bool = False

    @property
    def name(self) -> str:
        """``gather``."""
        return "gather"

    @property
    def implementation(self) -> str:
        """``fancy``, or ``fancy-store``."""
        return "fancy-store" if self.store else "fancy"

    def prepare(self, operands: Operands) -> None:
        """Check the operands."""
        _checked(operands)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Gather the rows ``[row_start, row_stop)`` into a fresh array."""
        found = _checked(operands)
        check_rows(row_start, row_stop, len(found.idx))
        part = found.idx[row_start:row_stop]
        try:
            result = found.x[part]
        except IndexError:
            _refuse_wrapped(found, row_start, row_stop)
            raise
        if self.store:
            found.out[row_start:row_stop] = result
        return found.work(row_start, row_stop)


def _refuse_wrapped(found: _GatherOperands, row_start: int, row_stop: int) -> None:
    rows = len(found.x)
    part = found.idx[row_start:row_stop].copy()
    bad = part >= rows if part.dtype.kind == "u" else (part < -rows) | (part >= rows)
    if bad.any():
        first = int(bad.argmax())
        _refuse(row_start + first, int(part[first]), rows)
