"""The loops of the compiled product of a CSR matrix and several vectors. Importing imports numba.

Every element of the result is summed by itself in the order of the row's entries,
without fused multiply-add: the sums that SciPy makes, bit for bit. For unsigned
arithmetic see the loop of the gather.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from hugepool.kernels.csr import BAD_COLUMN, BAD_INDPTR, DONE

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_TWO = np.uint64(2)
_LINE_BYTES = 64
_MOST_LANES = np.uint64(32)
"""Elements of a row that are summed side by side: 8 registers of AVX2 if they have 8 bytes."""
_LINES_AHEAD = 32


@intrinsic(prefer_literal=True)
def sum_lanes(
    typing_context: Any,
    data: Any,
    indices: Any,
    start: Any,
    stop: Any,
    last_ahead: Any,
    columns: Any,
    source: Any,
    stride: Any,
    target: Any,
    lanes: Any,
) -> Any:
    """Sum one row's entries times `lanes` neighbouring elements of the rows of X they lead to.

    `source` is the address of these elements in X's first row and `stride` the bytes
    from row to row; the sums are written to the address `target`. Columns of entries
    up to `last_ahead` are read ahead of their turn. Returns `stop`, or the first entry
    whose column is not below `columns`; then nothing is written.
    """
    count = lanes.literal_value
    word, byte = ir.IntType(64), ir.IntType(8)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data_type, indices_type = signature.args[:2]
        values = context.make_array(data_type)(context, builder, arguments[0]).data
        places = context.make_array(indices_type)(context, builder, arguments[1]).data
        first, end, last_ahead_value, limit, base, step, to = arguments[2:9]
        element = context.get_value_type(data_type.dtype)
        item = context.get_abi_sizeof(element)
        vector = ir.VectorType(element, count)
        real = isinstance(element, (ir.FloatType, ir.DoubleType))
        add, multiply = (builder.fadd, builder.fmul) if real else (builder.add, builder.mul)
        ahead = max(4, _LINES_AHEAD * _LINE_BYTES // max(count * item, _LINE_BYTES))

        def column(at: Any) -> Any:
            index = builder.load(builder.gep(places, [at]))
            return index if index.type == word else builder.sext(index, word)

        def address(of_column: Any) -> Any:
            return builder.add(base, builder.mul(of_column, step))

        before = builder.basic_block
        head, body, asked, work, done, written, after = (
            builder.append_basic_block(f"lanes.{name}")
            for name in ("head", "body", "ahead", "work", "done", "written", "after")
        )
        builder.branch(head)
        builder.position_at_end(head)
        entry, total = builder.phi(word), builder.phi(vector)
        entry.add_incoming(first, before)
        total.add_incoming(ir.Constant(vector, None), before)
        builder.cbranch(builder.icmp_unsigned("<", entry, end), body, done)

        builder.position_at_end(body)
        place = column(entry)
        further = builder.add(entry, word(ahead))
        fits = builder.icmp_unsigned("<", place, limit)
        near = builder.icmp_unsigned("<=", further, last_ahead_value)
        # Both tests go the same way nearly always, and end in a branch each.
        checked = builder.append_basic_block("lanes.checked")
        builder.cbranch(fits, checked, done)
        builder.position_at_end(checked)
        builder.cbranch(near, asked, work)

        builder.position_at_end(asked)
        pointer = byte.as_pointer()
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer],
            ir.FunctionType(ir.VoidType(), [pointer] + [ir.IntType(32)] * 3),
        )
        line = address(column(further))
        for offset in range(0, count * item, _LINE_BYTES):
            wanted = builder.inttoptr(builder.add(line, word(offset)), pointer)
            builder.call(prefetch, [wanted, *(ir.IntType(32)(kind) for kind in (0, 3, 1))])
        builder.branch(work)

        builder.position_at_end(work)
        value = builder.load(builder.gep(values, [entry]))
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
        spread = builder.shuffle_vector(
            one,
            ir.Constant(vector, ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), count), None),
        )
        row = builder.load(builder.inttoptr(address(place), vector.as_pointer()), align=item)
        entry.add_incoming(builder.add(entry, word(1)), work)
        total.add_incoming(add(total, multiply(spread, row)), work)
        builder.branch(head)

        builder.position_at_end(done)
        builder.cbranch(builder.icmp_unsigned("<", entry, end), after, written)
        builder.position_at_end(written)
        builder.store(total, builder.inttoptr(to, vector.as_pointer()), align=item)
        builder.branch(after)
        builder.position_at_end(after)
        return entry

    numbers = (types.uint64,) * 7
    return types.uint64(data, indices, *numbers, lanes), generate


def matmat_lanes(
    indptr: Any,
    indices: Any,
    data: Any,
    x: Any,
    out: Any,
    columns: int,
    width: int,
    prefetching: int,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write ``A @ X`` for the rows ``[row_start, row_stop)`` to `out`; one dtype for all values.

    `x` and `out` are flat, with `width` elements to a row. Returns (DONE, 0, 0),
    (BAD_INDPTR, row, value) or (BAD_COLUMN, entry, value), the value as uint64.
    """
    limit = np.uint64(columns)
    across = np.uint64(width)
    nnz = np.uint64(min(len(indices), len(data)))
    item = np.uint64(x.itemsize)
    source = np.uint64(x.ctypes.data)
    target = np.uint64(out.ctypes.data)
    last_ahead = nnz - _ONE if prefetching != 0 and nnz > _ZERO else _ZERO
    first = np.uint64(row_start)
    start = np.uint64(indptr[first])
    if start > nnz:
        return BAD_INDPTR, np.int64(first), start
    for row in range(first, np.uint64(row_stop)):
        stop = np.uint64(indptr[row + _ONE])
        if stop < start or stop > nnz:
            return BAD_INDPTR, np.int64(row + _ONE), stop
        lane = _ZERO
        while lane < across:
            lanes = _fitting(across - lane, across)
            # The last lanes may overlap those before: sums made twice are the same.
            lane = min(lane, across - lanes)
            entry = _sum_lanes(
                data,
                indices,
                start,
                stop,
                last_ahead,
                limit,
                source + lane * item,
                across * item,
                target + (row * across + lane) * item,
                lanes,
            )
            if entry < stop:
                return BAD_COLUMN, np.int64(entry), np.uint64(indices[entry])
            lane += lanes
        start = stop
    return DONE, np.int64(0), _ZERO


@register_jitable
def _fitting(left: Any, across: Any) -> Any:
    """How many elements to sum at once: those that are left or some more, if a row has so many."""
    lanes = _ONE
    while lanes < left and lanes < _MOST_LANES:
        lanes *= _TWO
    return lanes if lanes <= across else lanes // _TWO


@register_jitable
def _sum_lanes(
    data: Any,
    indices: Any,
    start: Any,
    stop: Any,
    last_ahead: Any,
    columns: Any,
    source: Any,
    stride: Any,
    target: Any,
    lanes: Any,
) -> Any:
    """:func:`sum_lanes` for a number of lanes known only now: a power of two up to 32."""
    a, n, s, t, u = data, indices, start, stop, last_ahead
    if lanes == np.uint64(32):
        return sum_lanes(a, n, s, t, u, columns, source, stride, target, 32)
    if lanes == np.uint64(16):
        return sum_lanes(a, n, s, t, u, columns, source, stride, target, 16)
    if lanes == np.uint64(8):
        return sum_lanes(a, n, s, t, u, columns, source, stride, target, 8)
    if lanes == np.uint64(4):
        return sum_lanes(a, n, s, t, u, columns, source, stride, target, 4)
    if lanes == np.uint64(2):
        return sum_lanes(a, n, s, t, u, columns, source, stride, target, 2)
    return sum_lanes(a, n, s, t, u, columns, source, stride, target, 1)


def matmat(
    indptr: Any,
    indices: Any,
    data: Any,
    x: Any,
    out: Any,
    columns: int,
    width: int,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """The same for any dtypes, each product in the common one of its factors."""
    limit = np.uint64(columns)
    across = np.uint64(width)
    nnz = np.uint64(min(len(indices), len(data)))
    first = np.uint64(row_start)
    start = np.uint64(indptr[first])
    if start > nnz:
        return BAD_INDPTR, np.int64(first), start
    for row in range(first, np.uint64(row_stop)):
        stop = np.uint64(indptr[row + _ONE])
        if stop < start or stop > nnz:
            return BAD_INDPTR, np.int64(row + _ONE), stop
        target = row * across
        for lane in range(across):
            out[target + lane] = out.dtype.type(0)
        for entry in range(start, stop):
            column = np.uint64(indices[entry])
            if column >= limit:
                return BAD_COLUMN, np.int64(entry), column
            value = data[entry]
            for lane in range(across):
                out[target + lane] += value * x[column * across + lane]
        start = stop
    return DONE, np.int64(0), _ZERO
