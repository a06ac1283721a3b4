"""The loops that run a binned product. Importing this module imports numba.

What the arrays hold is told by the module ``binned_product``. For unsigned
arithmetic see the loops of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hugepool.kernels.binned_loops import stream_out
from hugepool.kernels.intrinsics import prefetch, store_fence

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_LINE_BYTES = np.uint64(64)
_AHEAD_BYTES = np.uint64(256)
_MOST_SHARE = np.uint64(16)
"""Lines of the next source block asked for at once; more would only wait for each other."""


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _widened(builder: Any, value: Any, wanted: Any) -> Any:
    return value if value.type == wanted else builder.fpext(value, wanted)


@intrinsic
def stream_products(
    typing_context: Any,
    bins: Any,
    to: Any,
    x: Any,
    first: Any,
    src: Any,
    val: Any,
    place: Any,
    length: Any,
) -> Any:
    """Stream one line of sums of `length` products to ``bins[to:]``.

    With n elements in a line, lane j gets the sum over t of
    ``val[place + t * n + j] * x[first + src[place + t * n + j]]``, in that order. The
    address of ``bins[to]`` must be a multiple of 64: a misaligned streaming store faults.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bins_type, _, x_type, _, src_type, val_type, _, _ = signature.args
        bins_value, to_value, x_value, base, src_value, val_value, start, terms = arguments
        element = context.get_value_type(bins_type.dtype)
        word = ir.IntType(64)
        lanes = 64 * 8 // bins_type.dtype.bitwidth
        line = ir.VectorType(element, lanes)
        stored = ir.VectorType(context.get_value_type(val_type.dtype), lanes)
        x_data = _data(context, builder, x_type, x_value)
        offsets = _data(context, builder, src_type, src_value)
        values = _data(context, builder, val_type, val_value)
        target = builder.gep(_data(context, builder, bins_type, bins_value), [to_value])

        def products(at: Any) -> Any:
            gathered = ir.Constant(line, ir.Undefined)
            for j in range(lanes):
                offset = builder.load(builder.gep(offsets, [builder.add(at, word(j))]))
                index = builder.add(base, builder.zext(offset, word))
                item = builder.load(builder.gep(x_data, [index]))
                gathered = builder.insert_element(
                    gathered, _widened(builder, item, element), ir.IntType(32)(j)
                )
            pointer = builder.bitcast(builder.gep(values, [at]), stored.as_pointer())
            loaded = builder.load(pointer, align=val_type.dtype.bitwidth // 8)
            return builder.fmul(_widened(builder, loaded, line), gathered)

        total = cgutils.alloca_once_value(builder, products(start))
        with cgutils.for_range(builder, builder.sub(terms, word(1))) as loop:
            following = builder.mul(builder.add(loop.index, word(1)), word(lanes))
            more = products(builder.add(start, following))
            builder.store(builder.fadd(builder.load(total), more), total)
        store = builder.store(
            builder.load(total), builder.bitcast(target, line.as_pointer()), align=64
        )
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    word = types.uint64
    return types.void(bins, word, x, word, src, val, word, word), generate


@intrinsic
def add_line(typing_context: Any, lap: Any, shift: Any, dst: Any, bins: Any, place: Any) -> Any:
    """``lap[shift + dst[place + j]] += bins[place + j]`` for j over a line, in order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lap_type, _, dst_type, bins_type, _ = signature.args
        lap_value, base, dst_value, bins_value, start = arguments
        word = ir.IntType(64)
        sums = _data(context, builder, lap_type, lap_value)
        offsets = _data(context, builder, dst_type, dst_value)
        values = _data(context, builder, bins_type, bins_value)
        places = [builder.add(start, word(j)) for j in range(64 * 8 // bins_type.dtype.bitwidth)]
        # All loads before the first store, which might be to the same place for all LLVM knows.
        loaded = [
            (builder.load(builder.gep(offsets, [at])), builder.load(builder.gep(values, [at])))
            for at in places
        ]
        for offset, value in loaded:
            target = builder.gep(sums, [builder.add(base, builder.zext(offset, word))])
            builder.store(builder.fadd(builder.load(target), value), target)
        return context.get_dummy_value()

    return types.void(lap, types.uint64, dst, bins, types.uint64), generate


def fill_products(
    x: Any,
    src: Any,
    val: Any,
    cell: Any,
    home: Any,
    lines: Any,
    bins: Any,
    source_bits: int,
    targets: int,
    longest: int,
    row_start: int,
    row_stop: int,
) -> None:
    """Phase 1: write the products of some cells, summed by run, to their places in `bins`."""
    item = np.uint64(x.itemsize)
    lanes = _LINE_BYTES // np.uint64(bins.itemsize)
    width = _ONE << np.uint64(source_bits)
    stride = np.uint64(targets)
    most = np.uint64(longest)
    base = np.uint64(x.ctypes.data)
    values = np.uint64(val.ctypes.data)
    value_bytes = np.uint64(val.itemsize)
    last = np.uint64(row_stop)
    begin = np.uint64(row_start)
    while begin < last:
        block = begin // stride
        stop = min((block + _ONE) * stride, last)
        first = block * width
        # While this block is used, the next one of this range is fetched, a share with each line.
        ahead = min(first + width, np.uint64(len(x)))
        fetched = ahead if stop == last else min(ahead + width, np.uint64(len(x)))
        ahead = base + ahead * item
        fetched = base + fetched * item
        count = max((np.uint64(cell[stop]) - np.uint64(cell[begin])) // lanes, _ONE)
        share = ((fetched - ahead) // _LINE_BYTES + count) // count
        step = min(share, _MOST_SHARE) * _LINE_BYTES
        for q in range(begin, stop):
            k = np.uint64(cell[q])
            o = np.uint64(home[q])
            for c in range(most):
                length = c + _ONE
                for _ in range(np.uint64(lines[q * most + c])):
                    until = min(ahead + step * length, fetched)
                    while ahead < until:
                        prefetch(ahead)
                        ahead += _LINE_BYTES
                    prefetch(values + k * value_bytes + _AHEAD_BYTES)
                    stream_products(bins, o, x, first, src, val, k, length)
                    k += lanes * length
                    o += lanes
        begin = stop
    store_fence()


def sum_bins(
    bins: Any,
    dst: Any,
    edge: Any,
    lap: Any,
    out: Any,
    target_width: int,
    row_start: int,
    row_stop: int,
) -> None:
    """Phase 2: add the values of some target blocks up in `lap`, then stream them out."""
    item = np.uint64(out.itemsize)
    line = _LINE_BYTES // item
    width = np.uint64(target_width)
    source = np.uint64(bins.ctypes.data)
    target = np.uint64(out.ctypes.data)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        first = block * width
        count = min(width, np.uint64(len(out)) - first)
        # See empty_bins of the binned gather: lines of the scratch are lines of out.
        shift = (target + first * item) % _LINE_BYTES // item
        for i in range(np.uint64(len(lap))):
            lap[i] = 0
        k = np.uint64(edge[block])
        stop = np.uint64(edge[block + _ONE])
        while k < stop:
            prefetch(source + k * item + _AHEAD_BYTES)
            add_line(lap, shift, dst, bins, k)
            k += line
        stream_out(lap, shift, out, first, count)
    store_fence()
