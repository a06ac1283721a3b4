"""Calls of compiled loops without Python: an address, and a block of words to call it with.

A crew steps through its phases inside one compiled loop, so a kernel's loop must be
called by that loop and not by the interpreter. numba compiles a loop to a function of
machine words: where to put the result, where to put an error, then seven words for each
1-D array and one for each integer. These words are laid down once, in a
:class:`NativeCall`, and ``call_native`` of the crew's loops calls the function with them.

Nothing is compiled for this: it is the code that :class:`CompiledLoop` made and cached.
What numba says of the function's type is compared with the words before any call, so
another numba that passes arguments in another way is refused, not called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hugepool.kernels.base import Array, Bound, check_rows
from hugepool.kernels.compiler import CompiledLoop, _dtypes
from hugepool_common.errors import InvalidSpecError, UnsupportedPlatformError

FUNCTION = 0
CALL_WORDS = 1
CHECKS = 2
SUCCEEDED = 3
RESULT = 4
RESULT_WORDS = 8
ERROR = 12
FIRST = 14
"""Places in a block: what ``call_native`` reads. `FIRST` and on are the function's words."""

CALL_SIZES = (16, 32, 64, 128)
"""Numbers of words that a call passes; the next size up is taken and filled with zeros.

A function ignores arguments behind its own in the calling conventions of x86-64
(System V) and of AArch64, where whoever calls also clears the stack.
"""

_ARRAY_WORDS = ["i8*", "i8*", "i64", "i64", None, "i64", "i64"]
"""An array's: allocation, owner, elements, bytes each, data, extent, stride; None: any pointer."""


class NativeCall:
    """One loop on one range of rows, ready to be called by address.

    Parameters
    ----------
    bound
        The loop and its arguments; kept alive by this.
    row_start, row_stop
        The range.

    Attributes
    ----------
    address
        Of the block, for ``call_native``.

    Raises
    ------
    InvalidSpecError
        The range lies outside the operands, or the loop has more arguments than a call
        can pass.
    UnsupportedPlatformError
        This numba passes arguments in another way.
    """

    def __init__(self, bound: Bound, row_start: int, row_stop: int) -> None:
        check_rows(row_start, row_stop, bound.rows)
        arguments = (*bound.arguments, int(row_start), int(row_stop))
        compiled = compiled_for(bound.loop, arguments)
        self._kept = (bound, compiled)
        words: list[int] = []
        for argument in arguments:
            words += _words(argument)
        size = next((size for size in CALL_SIZES if size >= len(words) + 2), None)
        if size is None:
            raise InvalidSpecError(
                "the loop has too many arguments to be called by address",
                needed=f"at most {CALL_SIZES[-1] - 2} words",
                had=str(len(words)),
            )
        self._block = np.zeros(FIRST + size, np.int64)
        base = self._block.ctypes.data
        self.address: int = base
        # Unsigned, because addresses and uint64 share the words.
        block = self._block.view(np.uint64)
        block[FUNCTION] = _entry_point(compiled, arguments, bound.succeeded is not None)
        block[CALL_WORDS] = size
        if bound.succeeded is not None:
            block[CHECKS] = 1
            self._block[SUCCEEDED] = bound.succeeded
        block[FIRST] = base + 8 * RESULT
        block[FIRST + 1] = base + 8 * ERROR
        block[FIRST + 2 : FIRST + 2 + len(words)] = np.array(words, np.uint64)


def compiled_for(loop: CompiledLoop, arguments: tuple[Any, ...]) -> Any:
    """numba's function for the dtypes of these arguments, compiled now if it is not yet."""
    loop.prepare(*arguments)
    return loop._compiled[_dtypes(arguments)]


def _words(argument: Any) -> list[int]:
    if isinstance(argument, np.ndarray):
        array: Array = argument
        if array.ndim != 1 or not array.flags.c_contiguous:
            raise InvalidSpecError("a bound array must be contiguous, of one axis")
        # No allocation and no owner: numba counts references of neither then.
        return [0, 0, len(array), array.itemsize, array.ctypes.data, len(array), array.itemsize]
    return [int(argument) & ((1 << 64) - 1)]


def _entry_point(compiled: Any, arguments: tuple[Any, ...], checked: bool) -> int:
    (result,) = compiled.overloads.values()
    declared = result.fndesc
    context = result.target_context
    kind = context.call_conv.get_function_type(declared.restype, declared.argtypes)
    expected: list[str | None] = [None, None]
    for argument in arguments:
        expected += _ARRAY_WORDS if isinstance(argument, np.ndarray) else ["i64"]
    found = [str(word) for word in kind.args]
    fits = len(found) == len(expected) and all(
        word == wanted or (wanted is None and word.endswith("*"))
        for word, wanted in zip(found, expected, strict=True)
    )
    if not fits or str(kind.return_type) != "i32" or (checked and not _returns_word(result)):
        raise UnsupportedPlatformError(
            "this numba passes arguments in a way that is not known here",
            needed="an i32 function of words",
            had=str(kind)[:200],
            where=declared.qualname,
            remedy="install a numba version that this release was tested with",
        )
    address = result.library.get_pointer_to_function(declared.llvm_func_name)
    if not address:
        raise UnsupportedPlatformError(
            "the compiled loop has no address", where=declared.llvm_func_name
        )
    return int(address)


def _returns_word(result: Any) -> bool:
    """Whether the loop returns an integer of 64 bits, or a short tuple that begins with one."""
    returned = result.signature.return_type
    items = getattr(returned, "types", None) or [getattr(returned, "dtype", returned)]
    count = getattr(returned, "count", len(items))
    return getattr(items[0], "bitwidth", 0) == 64 and count <= RESULT_WORDS
