"""Shared words between processes: ordered loads and stores, pauses, sleeping and waking.

Importing this module imports numba. Addresses are plain integers, multiples of 8.
Loads acquire and stores release, as in C11, so that what was written before a store is
seen after a load that sees it. ``full_fence`` orders a store before a later load, which
neither does.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_MACHINE = platform.machine()
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221}
_SCHED_YIELD = {"x86_64": 24, "aarch64": 124, "riscv64": 124, "ppc64le": 158}
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # not the private ones: the sleepers are other processes
_EVERYBODY = (1 << 31) - 1

_WORD = ir.IntType(64)
_HALF = ir.IntType(32)


def _pointer(builder: Any, address: Any, kind: Any = _WORD) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load(typing_context: Any, address: Any) -> Any:
    """The int64 at an address, acquired."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address, released."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def raise_to(typing_context: Any, address: Any, value: Any) -> Any:
    """Make the int64 at an address the greater of itself and `value`, in one step."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("max", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def add_to(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, in one step; returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def full_fence(typing_context: Any) -> Any:
    """Order everything before against everything after."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the processor that this is a waiting loop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _MACHINE == "x86_64":
            name, operands = "llvm.x86.sse2.pause", []
        elif _MACHINE == "aarch64":
            name, operands = "llvm.aarch64.isb", [_HALF(15)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        builder.call(builder.module.declare_intrinsic(name, (), kind), operands)
        return context.get_dummy_value()

    return types.void(), generate


def _system_call(builder: Any, *arguments: Any) -> Any:
    """libc's ``syscall``, declared by name so that compiled code can be cached."""
    module = builder.module
    function = module.globals.get("syscall")
    if function is None:
        function = ir.Function(module, ir.FunctionType(_WORD, [_WORD], var_arg=True), "syscall")
    return builder.call(function, list(arguments))


@intrinsic
def sleep_on(typing_context: Any, address: Any, seen: Any, timeout: Any) -> Any:
    """Sleep while the low half of the word at `address` is that of `seen`.

    `timeout` is the address of two int64, seconds and nanoseconds. May return early:
    whoever sleeps looks again at what it waits for. Returns what the kernel did, -1 for a
    time-out and all else that is no wake-up.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, seen, timeout = arguments
        half = builder.zext(builder.trunc(seen, _HALF), _WORD)
        number, operation, zero = _WORD(_FUTEX[_MACHINE]), _WORD(_FUTEX_WAIT), _WORD(0)
        return _system_call(builder, number, address, operation, half, timeout, zero, zero)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def wake_all(typing_context: Any, address: Any) -> Any:
    """Wake everybody who sleeps on the word at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, operation, zero = _WORD(_FUTEX[_MACHINE]), _WORD(_FUTEX_WAKE), _WORD(0)
        count = _WORD(_EVERYBODY)
        return _system_call(builder, number, arguments[0], operation, count, zero, zero, zero)

    return types.int64(types.int64), generate


@intrinsic
def yield_cpu(typing_context: Any) -> Any:
    """Let another runnable process have this CPU."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _system_call(builder, _WORD(_SCHED_YIELD[_MACHINE]))

    return types.int64(), generate


def _caller(words: int) -> Any:
    """An intrinsic that calls a function by address with so many 64-bit arguments."""

    @intrinsic
    def call(typing_context: Any, function: Any, first: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(_HALF, [_WORD] * words)
            function = builder.inttoptr(arguments[0], kind.as_pointer())
            base = _pointer(builder, arguments[1])
            loaded = [builder.load(builder.gep(base, [_WORD(k)])) for k in range(words)]
            return builder.sext(builder.call(function, loaded), _WORD)

        return types.int64(types.int64, types.int64), generate

    return call


call_with_16 = _caller(16)
call_with_32 = _caller(32)
call_with_64 = _caller(64)
call_with_128 = _caller(128)
