"""Values as bfloat16, the upper half of a float32, in uint16. Importing this imports numba.

NumPy has no such dtype. One sign, eight bits of exponent as float32 has, and seven of the
significand: a rounded value is off by at most one part in 2**8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable

_ONE = np.uint64(1)
_DROPPED = np.uint64(45)
"""Bits of a float64's significand behind those that a bfloat16 has."""
_KEPT = np.uint64(0xFFFFFFFFFFFFFFFF << 45 & 0xFFFFFFFFFFFFFFFF)
_BELOW_HALF = np.uint64((1 << 44) - 1)
_NOT_A_NUMBER = np.uint16(0x7FC0)
_ROUNDING = np.float64(2.0**-8)
"""Half a unit in the last place, relative."""


@intrinsic
def bits_of(typing_context: Any, value: Any) -> Any:
    """Give the bits of a floating-point number as an integer."""
    result = types.uint32 if value == types.float32 else types.uint64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(result.bitwidth))

    return result(value), generate


@intrinsic
def of_bits(typing_context: Any, bits: Any) -> Any:
    """Give the floating-point number of some bits."""
    result = types.float32 if bits.bitwidth == 32 else types.float64
    kind = ir.FloatType() if bits.bitwidth == 32 else ir.DoubleType()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], kind)

    return result(bits), generate


@register_jitable
def rounded(value: Any) -> Any:
    """Round to the nearest bfloat16, ties to even; the bits of that, uint16.

    Rounded once, not to float32 first. NaN stays NaN. Of a value below the normal range
    digits may be cut off.
    """
    wide = np.float64(value)
    if wide != wide:
        return _NOT_A_NUMBER
    bits = bits_of(wide)
    bits = (bits + _BELOW_HALF + ((bits >> _DROPPED) & _ONE)) & _KEPT
    return np.uint16(bits_of(np.float32(of_bits(bits))) >> np.uint32(16))


@register_jitable
def widened(bits: Any) -> Any:
    """Give the float32 of the bits of a bfloat16."""
    return of_bits(np.uint32(np.uint32(bits) << np.uint32(16)))


def value_at(values: Any, place: Any) -> Any:
    """``values[place]`` as a number; in compiled code only."""
    raise NotImplementedError


def put_value(values: Any, place: Any, value: Any) -> Any:
    """``values[place] = value``, rounded if need be; in compiled code only."""
    raise NotImplementedError


@overload(value_at)
def _value_at(values: Any, place: Any) -> Any:
    if values.dtype == types.uint16:

        def widened_at(values: Any, place: Any) -> Any:
            return widened(values[place])

        return widened_at

    def at(values: Any, place: Any) -> Any:
        return values[place]

    return at


@overload(put_value)
def _put_value(values: Any, place: Any, value: Any) -> Any:
    if values.dtype == types.uint16:

        def put_rounded(values: Any, place: Any, value: Any) -> Any:
            values[place] = rounded(value)

        return put_rounded

    def put(values: Any, place: Any, value: Any) -> Any:
        values[place] = value

    return put


def holds_value(values: Any, place: Any, value: Any) -> Any:
    """Whether `value`, put to ``values[place]``, would change no bit; in compiled code only."""
    raise NotImplementedError


@overload(holds_value)
def _holds_value(values: Any, place: Any, value: Any) -> Any:
    if values.dtype == types.uint16:

        def holds_rounded(values: Any, place: Any, value: Any) -> Any:
            return values[place] == rounded(value)

        return holds_rounded
    kind = types.float32 if values.dtype == types.float32 else types.float64

    def holds(values: Any, place: Any, value: Any) -> Any:
        return bits_of(values[place]) == bits_of(kind(value))

    return holds


def survey_rounding(data: Any) -> Any:
    """What becomes of values as bfloat16: 0 none changes, 1 some are rounded, 2 one loses more."""
    changed = 0
    for place in range(len(data)):
        value = np.float64(data[place])
        kept = np.float64(widened(rounded(value)))
        if kept != value and value == value:
            # An overflow makes the difference infinite, so it fails too.
            if not abs(kept - value) <= _ROUNDING * abs(value):
                return 2
            changed = 1
    return changed
