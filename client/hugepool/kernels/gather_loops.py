"""The loops of the compiled gather. Importing this module imports numba.

All index arithmetic is unsigned: with signed indices numba adds a test for
negative ones to every access. Constants are ``numpy.uint64`` because ``uint64``
with ``int64`` makes ``float64``.

Every index is read once into a register, checked and used from there, so that a
process that writes to idx meanwhile cannot make a loop fault. The test costs less
than checking a block ahead: it waits for nothing. Short rows go four at a time, with
one test: that leaves room for the prefetches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hugepool.kernels.intrinsics import prefetch, store_fence

AHEAD = np.uint64(32)
FAR_BYTES = np.uint64(4 << 20)
"""An x of more bytes is prefetched.

It is beyond the second-level cache then. In one of 32 MiB at the third level,
elements of 8 bytes took 1.1 times as long with prefetching up to 64 KiB, equally long
at 8 MiB, and 0.6 times as long from 12 MiB on.
"""

_AHEAD_BYTES = np.uint64(2048)
"""How far long rows are prefetched: of rows that are longer, the processor finds the next line."""

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_THREE = np.uint64(3)
_FOUR = np.uint64(4)
_LINE_BYTES = 64
_LINE = np.uint64(_LINE_BYTES)


@intrinsic(prefer_literal=True)
def _copy_block(typing_context: Any, target: Any, source: Any, width: Any) -> Any:
    """Copy a constant number of bytes, a power of two, between integer addresses.

    Where a call of ``memcpy`` takes several ns, this is one instruction or a few.
    """
    if not isinstance(width, types.IntegerLiteral):
        return None
    nbytes = width.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(8 * nbytes) if nbytes <= 8 else ir.VectorType(ir.IntType(64), nbytes // 8)
        to, origin = (builder.inttoptr(word, kind.as_pointer()) for word in arguments[:2])
        builder.store(builder.load(origin, align=1), to, align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, width), generate


@intrinsic(prefer_literal=True)
def _stream_block(typing_context: Any, target: Any, source: Any, width: Any) -> Any:
    """Copy a constant number of bytes as :func:`_copy_block`, past the caches on the way out.

    `target` must be a multiple of the width: a misaligned streaming store faults.
    """
    if not isinstance(width, types.IntegerLiteral):
        return None
    nbytes = width.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(64), nbytes // 8)
        to, origin = (builder.inttoptr(word, kind.as_pointer()) for word in arguments[:2])
        store = builder.store(builder.load(origin, align=1), to, align=nbytes)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, width), generate


def gather_elements(x: Any, idx: Any, out: Any, row_start: int, row_stop: int) -> tuple[Any, Any]:
    """Copy elements ``idx[row_start:row_stop]`` of `x` to the same elements of `out`.

    Returns (-1, 0), or the position of the first index outside ``[0, len(x))`` and
    its value as uint64; then `out` is written up to the element before it.
    """
    limit = np.uint64(len(x))
    base = np.uint64(x.ctypes.data)
    stride = np.uint64(x.itemsize)
    i = np.uint64(row_start)
    stop = np.uint64(row_stop)
    # Only the address may be garbage, never the place in idx that it is read
    # from: the last elements run without a prefetch.
    tail = stop - min(AHEAD + _FOUR, stop - i) if limit * stride > FAR_BYTES else i
    while stop - i >= _FOUR:
        if i < tail:
            for ahead in range(i + AHEAD, i + AHEAD + _FOUR):
                prefetch(base + np.uint64(idx[ahead]) * stride)
        r0 = np.uint64(idx[i])
        r1 = np.uint64(idx[i + _ONE])
        r2 = np.uint64(idx[i + _TWO])
        r3 = np.uint64(idx[i + _THREE])
        if r0 >= limit or r1 >= limit or r2 >= limit or r3 >= limit:
            break  # the loop below finds which
        for row in (r0, r1, r2, r3):
            out[i] = x[row]
            i += _ONE
    while i < stop:
        row = np.uint64(idx[i])
        if row >= limit:
            return np.int64(i), row
        out[i] = x[row]
        i += _ONE
    return np.int64(-1), _ZERO


def _gather_short(block: int, blocks: int) -> Any:
    """Make a loop for rows of one block of bytes, or of more than one and at most two.

    Two blocks overlap where the row is shorter than both.
    """

    def gather_short(
        x: Any, rows: int, row_bytes: int, idx: Any, out: Any, row_start: int, row_stop: int
    ) -> tuple[Any, Any]:
        limit = np.uint64(rows)
        source = np.uint64(x.ctypes.data)
        stride = np.uint64(block) if blocks == 1 else np.uint64(row_bytes)
        second = stride - np.uint64(block)
        i = np.uint64(row_start)
        stop = np.uint64(row_stop)
        target = np.uint64(out.ctypes.data) + i * stride
        tail = stop - min(AHEAD + _FOUR, stop - i) if limit * stride > FAR_BYTES else i
        while stop - i >= _FOUR:
            if i < tail:
                for ahead in range(i + AHEAD, i + AHEAD + _FOUR):
                    address = source + np.uint64(idx[ahead]) * stride
                    prefetch(address)
                    if blocks == 2:
                        prefetch(address + stride - _ONE)
                        if block == _LINE_BYTES:
                            prefetch(address + _LINE)
            r0 = np.uint64(idx[i])
            r1 = np.uint64(idx[i + _ONE])
            r2 = np.uint64(idx[i + _TWO])
            r3 = np.uint64(idx[i + _THREE])
            if r0 >= limit or r1 >= limit or r2 >= limit or r3 >= limit:
                break
            for row in (r0, r1, r2, r3):
                origin = source + row * stride
                _copy_block(target, origin, block)
                if blocks == 2:
                    _copy_block(target + second, origin + second, block)
                target += stride
            i += _FOUR
        while i < stop:
            row = np.uint64(idx[i])
            if row >= limit:
                return np.int64(i), row
            origin = source + row * stride
            _copy_block(target, origin, block)
            if blocks == 2:
                _copy_block(target + second, origin + second, block)
            target += stride
            i += _ONE
        return np.int64(-1), _ZERO

    return gather_short


# All of them take what gather_rows takes, and return what it returns.
gather_16 = _gather_short(16, 1)
gather_32 = _gather_short(32, 1)
gather_64 = _gather_short(64, 1)
gather_to_2 = _gather_short(1, 2)
gather_to_4 = _gather_short(2, 2)
gather_to_8 = _gather_short(4, 2)
gather_to_16 = _gather_short(8, 2)
gather_to_32 = _gather_short(16, 2)
gather_to_64 = _gather_short(32, 2)
gather_to_128 = _gather_short(64, 2)


def gather_rows(
    x: Any, rows: int, row_bytes: int, idx: Any, out: Any, row_start: int, row_stop: int
) -> tuple[Any, Any]:
    """Copy rows ``idx[row_start:row_stop]`` of `x` to the same rows of `out`, all of them bytes.

    Rows are of 64 bytes or more, or of none. Returns as :func:`gather_elements`, for
    indices outside ``[0, rows)``.
    """
    limit = np.uint64(rows)
    stride = np.uint64(row_bytes)
    source = np.uint64(x.ctypes.data)
    target = np.uint64(out.ctypes.data)
    start = np.uint64(row_start)
    stop = np.uint64(row_stop)
    ahead = _AHEAD_BYTES // max(stride, _ONE) if limit * stride > FAR_BYTES else _ZERO
    tail = stop - min(ahead, stop - start) if ahead > _ZERO else start
    last = stride - min(stride, _LINE)
    for i in range(start, stop):
        if i < tail:
            address = source + np.uint64(idx[i + ahead]) * stride
            for offset in range(_ZERO, stride, _LINE):
                prefetch(address + offset)
            prefetch(address + stride - _ONE)
        row = np.uint64(idx[i])
        if row >= limit:
            return np.int64(i), row
        to = target + i * stride
        origin = source + row * stride
        for offset in range(_ZERO, last, _LINE):
            _copy_block(to + offset, origin + offset, _LINE_BYTES)
        if stride >= _LINE:
            _copy_block(to + last, origin + last, _LINE_BYTES)
    return np.int64(-1), _ZERO


def _gather_streamed(block: int) -> Any:
    """Make a loop for rows of whole blocks that does not bring what it writes into the caches."""

    def gather_streamed(
        x: Any, rows: int, row_bytes: int, idx: Any, out: Any, row_start: int, row_stop: int
    ) -> tuple[Any, Any]:
        limit = np.uint64(rows)
        stride = np.uint64(row_bytes)
        source = np.uint64(x.ctypes.data)
        start = np.uint64(row_start)
        stop = np.uint64(row_stop)
        target = np.uint64(out.ctypes.data) + start * stride
        far = limit * stride > FAR_BYTES
        ahead = min(AHEAD, _AHEAD_BYTES // max(stride, _ONE)) if far else _ZERO
        tail = stop - min(ahead, stop - start) if ahead > _ZERO else start
        for i in range(start, stop):
            if i < tail:
                address = source + np.uint64(idx[i + ahead]) * stride
                for offset in range(_ZERO, stride, _LINE):
                    prefetch(address + offset)
                prefetch(address + stride - _ONE)
            row = np.uint64(idx[i])
            if row >= limit:
                store_fence()
                return np.int64(i), row
            origin = source + row * stride
            for offset in range(_ZERO, stride, np.uint64(block)):
                _stream_block(target + offset, origin + offset, block)
            target += stride
        store_fence()
        return np.int64(-1), _ZERO

    return gather_streamed


# They take and return the same. `out` must begin at a multiple of the block.
# Of use from rows of 64 bytes on: those of 16 to 40 took 1.2 to 1.9 times as long so.
stream_32 = _gather_streamed(32)
stream_64 = _gather_streamed(64)
