"""The loops of the binned gather. Importing this module imports numba.

Blocks are counted in bits: element i of x lies in source block ``i >> source_bits``.
What the arrays hold is told by the module ``binned``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from hugepool.kernels.intrinsics import copy_line, prefetch, store_fence

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_LINE_BYTES = np.uint64(64)
_AHEAD_BYTES = np.uint64(512)
_MOST_SHARE = np.uint64(16)
"""Lines of the next source block asked for at once; more would only wait for each other."""


@intrinsic
def gather_line(
    typing_context: Any, target: Any, x: Any, first: Any, offsets: Any, place: Any
) -> Any:
    """Stream the line of elements ``x[first + offsets[place + j]]``, j = 0, 1, ..., to an address.

    A line is 64 bytes: 8 elements of 8 bytes, or 16 of 4. `target` must be a
    multiple of 64: a misaligned streaming store faults.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, x_value, base, offsets_value, start = arguments
        x_type, offsets_type = signature.args[1], signature.args[3]
        element = context.get_value_type(x_type.dtype)
        word = ir.IntType(64)
        x_data = context.make_array(x_type)(context, builder, x_value).data
        places = context.make_array(offsets_type)(context, builder, offsets_value).data
        count = 64 * 8 // element.width
        line = ir.VectorType(element, count)
        value = ir.Constant(line, ir.Undefined)
        for j in range(count):
            # Loads into registers, one vector store: going through memory would
            # stall on stores that are narrower than the load behind them.
            offset = builder.load(builder.gep(places, [builder.add(start, word(j))]))
            place = builder.add(base, builder.zext(offset, word))
            item = builder.load(builder.gep(x_data, [place]))
            value = builder.insert_element(value, item, ir.IntType(32)(j))
        store = builder.store(value, builder.inttoptr(to, line.as_pointer()), align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.uint64, x, types.uint64, offsets, types.uint64), generate


@intrinsic
def place_line(typing_context: Any, lap: Any, shift: Any, dst: Any, bins: Any, place: Any) -> Any:
    """``lap[shift + dst[place + j]] = bins[place + j]`` for j over a line, in order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lap_type, _, dst_type, bins_type, _ = signature.args
        lap_value, base, dst_value, bins_value, start = arguments
        word = ir.IntType(64)
        target = context.make_array(lap_type)(context, builder, lap_value).data
        offsets = context.make_array(dst_type)(context, builder, dst_value).data
        values = context.make_array(bins_type)(context, builder, bins_value).data
        places = [builder.add(start, word(j)) for j in range(64 * 8 // bins_type.dtype.bitwidth)]
        # All loads before the first store, which might be to the same place for all LLVM knows.
        loaded = [
            (builder.load(builder.gep(offsets, [at])), builder.load(builder.gep(values, [at])))
            for at in places
        ]
        for offset, value in loaded:
            to = builder.add(base, builder.zext(offset, word))
            builder.store(value, builder.gep(target, [to]))
        return context.get_dummy_value()

    return types.void(lap, types.uint64, dst, bins, types.uint64), generate


@register_jitable
def stream_out(lap: Any, shift: Any, out: Any, first: Any, count: Any) -> None:
    """Copy ``lap[shift : shift + count]`` to ``out[first:]``, whole lines past the caches.

    Both must stand alike in their lines: the addresses of ``lap[shift]`` and
    ``out[first]`` must have the same remainder by 64, and that of ``lap[0]`` none.
    """
    item = np.uint64(out.itemsize)
    line = _LINE_BYTES // item
    private = np.uint64(lap.ctypes.data)
    target = np.uint64(out.ctypes.data)
    i = _ZERO
    while i < count and (shift + i) % line != _ZERO:
        out[first + i] = lap[shift + i]
        i += _ONE
    while count - i >= line:
        copy_line(target + (first + i) * item, private + (shift + i) * item)
        i += line
    while i < count:
        out[first + i] = lap[shift + i]
        i += _ONE


def count_cells(
    idx: Any,
    rows: int,
    source_bits: int,
    target_bits: int,
    sources: int,
    counts: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any]:
    """Count the entries of each cell of some target blocks into `counts`, target-major.

    Returns (-1, 0), or the position of the first index outside ``[0, rows)`` and its
    value as uint64.
    """
    limit = np.uint64(rows)
    shift = np.uint64(source_bits)
    width = _ONE << np.uint64(target_bits)
    entries = np.uint64(len(idx))
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        cells = block * np.uint64(sources)
        # Zeroed here, for a worker that died half-way may have counted some already.
        for cell in range(cells, cells + np.uint64(sources)):
            counts[cell] = np.uint32(0)
        for i in range(block * width, min((block + _ONE) * width, entries)):
            row = np.uint64(idx[i])
            if row >= limit:
                return np.int64(i), row
            counts[cells + (row >> shift)] += np.uint32(1)
    return np.int64(-1), _ZERO


def fill_cells(
    idx: Any,
    rows: int,
    source_bits: int,
    target_bits: int,
    sources: int,
    targets: int,
    cell: Any,
    home: Any,
    src: Any,
    dst: Any,
    row_start: int,
    row_stop: int,
) -> Any:
    """Write the offsets of some target blocks into their cells and pad these.

    Returns -1, or the position of the first index that does not fit what was counted.
    """
    limit = np.uint64(rows)
    shift = np.uint64(source_bits)
    source_mask = (_ONE << shift) - _ONE
    width = _ONE << np.uint64(target_bits)
    entries = np.uint64(len(idx))
    blocks = np.uint64(sources)
    stride = np.uint64(targets)
    at_src = np.empty(sources, np.uint64)
    at_dst = np.empty(sources, np.uint64)
    stop_src = np.empty(sources, np.uint64)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        for s in range(blocks):
            q = s * stride + block
            at_src[s] = np.uint64(cell[q])
            stop_src[s] = np.uint64(cell[q + _ONE])
            at_dst[s] = np.uint64(home[q])
        first = block * width
        for i in range(first, min(first + width, entries)):
            row = np.uint64(idx[i])
            # An idx that somebody wrote to since the count must not lead outside.
            if row >= limit:
                return np.int64(i)
            source = row >> shift
            a = at_src[source]
            if a >= stop_src[source]:
                return np.int64(i)
            b = at_dst[source]
            src[a] = row & source_mask
            dst[b] = i - first
            at_src[source] = a + _ONE
            at_dst[source] = b + _ONE
        for s in range(blocks):
            a = at_src[s]
            if a == np.uint64(cell[s * stride + block]):
                if a != stop_src[s]:
                    return np.int64(first)
                continue
            b = at_dst[s]
            # A pad repeats the last entry: the same value is written twice.
            while a < stop_src[s]:
                src[a] = src[a - _ONE]
                dst[b] = dst[b - _ONE]
                a += _ONE
                b += _ONE
    return np.int64(-1)


def fill_bins(
    x: Any,
    src: Any,
    cell: Any,
    home: Any,
    bins: Any,
    source_bits: int,
    targets: int,
    row_start: int,
    row_stop: int,
) -> None:
    """Phase 1: copy the elements of some cells, source-major, to their places in `bins`."""
    item = np.uint64(x.itemsize)
    line = _LINE_BYTES // item
    width = _ONE << np.uint64(source_bits)
    stride = np.uint64(targets)
    base = np.uint64(x.ctypes.data)
    target = np.uint64(bins.ctypes.data)
    begin = np.uint64(row_start)
    last = np.uint64(row_stop)
    while begin < last:
        block = begin // stride
        end = min((block + _ONE) * stride, last)
        first = block * width
        # While this block is used, the next one of this range is fetched, a share with each line.
        ahead = min(first + width, np.uint64(len(x)))
        fetched = ahead if end == last else min(ahead + width, np.uint64(len(x)))
        ahead = base + ahead * item
        fetched = base + fetched * item
        lines = max((np.uint64(cell[end]) - np.uint64(cell[begin])) // line, _ONE)
        share = ((fetched - ahead) // _LINE_BYTES + lines) // lines
        step = min(share, _MOST_SHARE) * _LINE_BYTES
        for q in range(begin, end):
            k = np.uint64(cell[q])
            stop = np.uint64(cell[q + _ONE])
            to = target + np.uint64(home[q]) * item
            while k < stop:
                until = min(ahead + step, fetched)
                while ahead < until:
                    prefetch(ahead)
                    ahead += _LINE_BYTES
                gather_line(to, x, first, src, k)
                k += line
                to += _LINE_BYTES
        begin = end
    store_fence()


def empty_bins(
    bins: Any,
    dst: Any,
    edge: Any,
    lap: Any,
    out: Any,
    target_bits: int,
    row_start: int,
    row_stop: int,
) -> None:
    """Phase 2: put the elements of some target blocks into order in `lap`, then stream them out."""
    item = np.uint64(out.itemsize)
    line = _LINE_BYTES // item
    width = _ONE << np.uint64(target_bits)
    source = np.uint64(bins.ctypes.data)
    target = np.uint64(out.ctypes.data)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        first = block * width
        count = min(width, np.uint64(len(out)) - first)
        # The block stands in the scratch as it will stand in its lines of out, so
        # that whole lines are copied between aligned places whatever out's address.
        shift = (target + first * item) % _LINE_BYTES // item
        k = np.uint64(edge[block])
        stop = np.uint64(edge[block + _ONE])
        while k < stop:
            prefetch(source + k * item + _AHEAD_BYTES)
            place_line(lap, shift, dst, bins, k)
            k += line
        stream_out(lap, shift, out, first, count)
    store_fence()
