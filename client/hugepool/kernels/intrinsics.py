"""What numba has no name for: prefetch, streaming copy of a line, store fence.

Importing this module imports numba; only the modules of loops do so. Addresses
are plain integers, because a prefetch may name any address: one that is not
mapped, or not even valid, is ignored by the processor (Intel SDM, PREFETCHh;
Arm ARM, PRFM).
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE_ELEMENTS = 8
"""Elements of 8 bytes in one cache line of 64 bytes."""

_LINE_ALIGNMENT = 64
_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an integer address, to be read soon, in every cache level."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer.type],
            ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word]),
        )
        for_read, all_levels, data_cache = word(0), word(3), word(1)
        builder.call(function, [pointer, for_read, all_levels, data_cache])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def copy_line(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy 64 bytes between integer addresses, past the caches on the way out.

    `target` must be a multiple of 64: a misaligned streaming store faults.
    `source` must be a multiple of 8.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # A vector: LLVM compiles a streaming store of one double to an instruction
        # that only AMD has, or drops the hint.
        line = ir.VectorType(ir.DoubleType(), LINE_ELEMENTS)
        to, origin = (builder.inttoptr(word, line.as_pointer()) for word in arguments)
        value = builder.load(origin, align=8)
        store = builder.store(value, to, align=_LINE_ALIGNMENT)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def store_fence(typing_context: Any) -> Any:
    """Order streaming stores before every later store, such as one that says "done"."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _X86:
            function = builder.module.declare_intrinsic(
                "llvm.x86.sse.sfence", (), ir.FunctionType(ir.VoidType(), [])
            )
            builder.call(function, [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
