"""The CPUID instruction, which Python has no other way to without a compiler.

Importing this module imports numba; it is for x86-64 only.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# numba itself needs no parser of assembly, and LLVM aborts the process without one.
llvmlite.binding.initialize_native_asmparser()


@intrinsic
def _store_cpuid(typing_context: Any, target: Any, leaf: Any, subleaf: Any) -> Any:
    """Store the four registers at an integer address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.LiteralStructType([word] * 4), [word, word])
        registers = "={eax},={ebx},={ecx},={edx},{eax},{ecx}"
        found = builder.asm(kind, "cpuid", registers, arguments[1:], side_effect=True)
        pointer = builder.inttoptr(arguments[0], word.as_pointer())
        for place in range(4):
            value = builder.extract_value(found, place)
            builder.store(value, builder.gep(pointer, [word(place)]))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint32, types.uint32), generate


@njit  # type: ignore[untyped-decorator,unused-ignore]
def _cpuid(target: Any, leaf: Any, subleaf: Any) -> None:
    _store_cpuid(target.ctypes.data, leaf, subleaf)


def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX and EDX of CPUID on whichever CPU this runs on."""
    registers = np.zeros(4, np.uint32)
    _cpuid(registers, np.uint32(leaf), np.uint32(subleaf))
    first, second, third, fourth = (int(word) for word in registers)
    return first, second, third, fourth
