"""Sums of several rows side by side, in the lanes of a vector. Importing this imports numba.

One lane is one row and adds its products in the order of its entries, each product
and each sum rounded on its own. So a row's sum is the same bit for bit as when it is
made alone; but the processor need not wait for one addition before the next row's.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_HALF = ir.IntType(32)
_STREAM_AHEAD = 256
"""Entries: how far ahead of a scattered product its own arrays are asked for."""


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _widened(builder: Any, value: Any, kind: Any) -> Any:
    """To the floats of the result; 16-bit integers are the bits of a bfloat16."""
    element = getattr(value.type, "element", value.type)
    if isinstance(element, ir.IntType):
        count = getattr(value.type, "count", 0)
        wide, single = (
            ir.VectorType(one, count) if count else one for one in (_HALF, ir.FloatType())
        )
        sixteen = ir.Constant(wide, [16] * count if count else 16)
        value = builder.bitcast(builder.shl(builder.zext(value, wide), sixteen), single)
    return value if value.type == kind else builder.fpext(value, kind)


def _asked(builder: Any, address: Any, *, keep: int) -> None:
    """Prefetch; `keep` 3 for every cache level, 0 for what is read once."""
    pointer = ir.IntType(8).as_pointer()
    function = builder.module.declare_intrinsic(
        "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, _HALF, _HALF, _HALF])
    )
    target = builder.bitcast(address, pointer)
    builder.call(function, [target, _HALF(0), _HALF(keep), _HALF(1)])


def _loaded(builder: Any, pointer: Any, lanes: int) -> Any:
    """A vector of consecutive elements, aligned as one element."""
    element = pointer.type.pointee
    width = {ir.FloatType: 4, ir.DoubleType: 8}.get(type(element), 2)
    kind = ir.VectorType(element, lanes)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=width)


def _summed(builder: Any, kind: Any, start: Any, stop: Any, step: int, product: Any) -> Any:
    """The vector of sums of ``product(k)``, k from start to stop, from 0.0 on."""
    zero = ir.Constant(kind, [0.0] * kind.count)
    before = builder.block
    loop = builder.append_basic_block("lanes")
    done = builder.append_basic_block("lanes.done")
    builder.cbranch(builder.icmp_unsigned("<", start, stop), loop, done)
    builder.position_at_end(loop)
    place = builder.phi(_WORD)
    total = builder.phi(kind)
    place.add_incoming(start, before)
    total.add_incoming(zero, before)
    added = builder.fadd(total, product(place))
    following = builder.add(place, _WORD(step))
    place.add_incoming(following, loop)
    total.add_incoming(added, loop)
    builder.cbranch(builder.icmp_unsigned("<", following, stop), loop, done)
    builder.position_at_end(done)
    result = builder.phi(kind)
    result.add_incoming(zero, before)
    result.add_incoming(added, loop)
    return result


def interleaved_sums(lanes: int, ahead: int) -> Any:
    """Make the intrinsic ``sums(out, columns, data, x, base, start, count)``.

    It gives a tuple of `lanes` sums in out's dtype: of lane j those of
    ``data[k] * x[base + columns[k]]``, ``k = start + j, start + j + lanes, ...``, `count`
    of them.

    Parameters
    ----------
    lanes
        Rows side by side.
    ahead
        Entries that x is asked for ahead of its use: `columns` must have so many more.
        0 for none.
    """

    @intrinsic
    def sums(
        typing_context: Any,
        out: Any,
        columns: Any,
        data: Any,
        x: Any,
        base: Any,
        start: Any,
        count: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.VectorType(context.get_value_type(signature.args[0].dtype), lanes)
            column_data, value_data, x_data = (
                _data(context, builder, signature.args[i], arguments[i]) for i in (1, 2, 3)
            )
            first, begin, number = arguments[4:]
            x_data = builder.gep(x_data, [first])

            def element(place: Any) -> Any:
                column = builder.load(builder.gep(column_data, [place]))
                return builder.gep(x_data, [builder.zext(column, _WORD)])

            def product(place: Any) -> Any:
                if ahead:
                    for j in range(lanes):
                        later = builder.add(place, _WORD(ahead + j))
                        _asked(builder, element(later), keep=3)
                    # Read once: kept out of the way of x in the caches.
                    later = builder.add(place, _WORD(_STREAM_AHEAD))
                    for stream in (column_data, value_data):
                        _asked(builder, builder.gep(stream, [later]), keep=0)
                reached = ir.Constant(ir.VectorType(x_data.type.pointee, lanes), ir.Undefined)
                for j in range(lanes):
                    item = builder.load(element(builder.add(place, _WORD(j))))
                    reached = builder.insert_element(reached, item, _HALF(j))
                values = _loaded(builder, builder.gep(value_data, [place]), lanes)
                return builder.fmul(
                    _widened(builder, values, kind), _widened(builder, reached, kind)
                )

            stop = builder.add(begin, builder.mul(number, _WORD(lanes)))
            total = _summed(builder, kind, begin, stop, lanes, product)
            items = [builder.extract_element(total, _HALF(j)) for j in range(lanes)]
            return context.make_tuple(builder, signature.return_type, items)

        word = types.uint64
        returned = types.UniTuple(out.dtype, lanes)
        return returned(out, columns, data, x, word, word, word), generate

    return sums


def diagonal_sums(lanes: int, ahead: int) -> Any:
    """Make the intrinsic ``store_sums(out, row, shift, place, first, count, data, x)``.

    It writes `lanes` elements of out from `row` on: the sums of
    ``data[row + j + place[first + k]] * x[row + j + shift[first + k]]``, k from 0 to `count`,
    for lane j.

    Parameters
    ----------
    lanes
        Rows side by side.
    ahead
        Elements that data is asked for ahead of its use: every k reads a stream of its own,
        more of them than processors notice by themselves.
    """

    @intrinsic
    def store_sums(
        typing_context: Any,
        out: Any,
        row: Any,
        shift: Any,
        place: Any,
        first: Any,
        count: Any,
        data: Any,
        x: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.VectorType(context.get_value_type(signature.args[0].dtype), lanes)
            out_data, shift_data, place_data, value_data, x_data = (
                _data(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 3, 6, 7)
            )
            here, begin, number = (arguments[i] for i in (1, 4, 5))
            x_data = builder.gep(x_data, [here])
            value_data = builder.gep(value_data, [here])

            def product(k: Any) -> Any:
                at = builder.add(begin, k)
                distance = builder.load(builder.gep(shift_data, [at]))
                start = builder.gep(value_data, [builder.load(builder.gep(place_data, [at]))])
                _asked(builder, builder.gep(start, [_WORD(ahead)]), keep=3)
                values = _widened(builder, _loaded(builder, start, lanes), kind)
                reached = _loaded(builder, builder.gep(x_data, [distance]), lanes)
                return builder.fmul(values, _widened(builder, reached, kind))

            total = _summed(builder, kind, _WORD(0), number, 1, product)
            target = builder.bitcast(builder.gep(out_data, [here]), kind.as_pointer())
            builder.store(total, target, align=signature.args[0].dtype.bitwidth // 8)
            return context.get_dummy_value()

        word = types.uint64
        return types.void(out, word, shift, place, word, word, data, x), generate

    return store_sums


def shifted_sums(lanes: int, *, shared: bool) -> Any:
    """Make the intrinsic ``store_sums(out, row, shift, first, count, data, place, x)``.

    It writes `lanes` elements of out from `row` on: the sums of
    ``value * x[row + j + shift[first + k]]``, k from 0 to `count`, for lane j. The value is
    ``data[place + k]`` if `shared` by all lanes, else ``data[place + k * lanes + j]``.
    """

    @intrinsic
    def store_sums(
        typing_context: Any,
        out: Any,
        row: Any,
        shift: Any,
        first: Any,
        count: Any,
        data: Any,
        place: Any,
        x: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            element = context.get_value_type(signature.args[0].dtype)
            kind = ir.VectorType(element, lanes)
            out_data, shift_data, value_data, x_data = (
                _data(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 5, 7)
            )
            here, begin, number, start = (arguments[i] for i in (1, 3, 4, 6))
            x_data = builder.gep(x_data, [here])

            def product(k: Any) -> Any:
                distance = builder.load(builder.gep(shift_data, [builder.add(begin, k)]))
                reached = _loaded(builder, builder.gep(x_data, [distance]), lanes)
                if shared:
                    one = builder.load(builder.gep(value_data, [builder.add(start, k)]))
                    one = _widened(builder, one, element)
                    values = ir.Constant(kind, ir.Undefined)
                    for j in range(lanes):
                        values = builder.insert_element(values, one, _HALF(j))
                else:
                    at = builder.add(start, builder.mul(k, _WORD(lanes)))
                    values = _loaded(builder, builder.gep(value_data, [at]), lanes)
                    values = _widened(builder, values, kind)
                return builder.fmul(values, _widened(builder, reached, kind))

            total = _summed(builder, kind, _WORD(0), number, 1, product)
            target = builder.bitcast(builder.gep(out_data, [here]), kind.as_pointer())
            builder.store(total, target, align=signature.args[0].dtype.bitwidth // 8)
            return context.get_dummy_value()

        word = types.uint64
        return types.void(out, word, shift, word, word, data, word, x), generate

    return store_sums
