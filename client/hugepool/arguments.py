"""Shapes, dtypes and rows as callers give them, checked and in the words of the protocol."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import ITEM_SIZES, check_dtype


def rows_range(rows: Any, readonly: bool) -> tuple[int, int]:
    """Rows ``[start, stop)`` that a writer declares, as two ints.

    Raises
    ------
    InvalidSpecError
        They are no range, or the caller does not write.
    """
    try:
        start, stop = map(operator.index, rows)
    except (TypeError, ValueError):
        start, stop = -1, -1
    if not 0 <= start <= stop < 1 << 63:
        raise InvalidSpecError(f"rows={rows!r} is no range", needed="(start, stop)")
    if readonly:
        raise InvalidSpecError("only a writer declares rows", remedy="pass readonly=False")
    return start, stop


def extents_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """A shape as Python ints; only true integers pass, NumPy's included.

    Raises
    ------
    InvalidSpecError
        It is neither an int nor a sequence.
    """
    try:
        extents = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    except TypeError:
        raise InvalidSpecError(f"shape {shape!r} is not an int or a sequence of ints") from None
    return tuple(int(extent) if isinstance(extent, np.integer) else extent for extent in extents)


def dtype_code(dtype: Any) -> str:
    """The code of a dtype that can be shared.

    Raises
    ------
    InvalidSpecError
        It is none.
    """
    if isinstance(dtype, str) and dtype in ITEM_SIZES:
        return dtype
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise InvalidSpecError(f"{dtype!r} is not a dtype") from None
    try:
        return check_dtype(found.str)
    except InvalidSpecError as error:
        remedy = _shareable(found)
        raise InvalidSpecError(error.message, needed=error.needed, remedy=remedy) from None


def _shareable(dtype: np.dtype[Any]) -> str:
    """How the values of a dtype that cannot be shared may be shared all the same."""
    if dtype.names:
        return f"share each field by itself, such as array[{dtype.names[0]!r}]"
    if dtype.kind in "mM":
        return "share the integers behind it: array.view('i8')"
    native = dtype.newbyteorder("<")
    if native.str in ITEM_SIZES:
        return f"share a copy in this machine's byte order: array.astype('{native.str}')"
    if dtype.kind in "fc":
        return f"share a narrower copy: array.astype('{'<f8' if dtype.kind == 'f' else '<c16'}')"
    return ""
