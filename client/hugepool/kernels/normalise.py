"""``block_norms_*`` and ``scale_blocks_*``: norms of a vector, and its quotient by its norm.

``block_norms_l2`` (``_l1``, ``_max``) takes ``out``, a vector, and writes what each block of
4096 elements adds to the norm to ``partials``, float64. ``scale_blocks_l2`` (``_l1``,
``_max``) takes ``out``, all ``partials`` and writes ``out / norm`` to ``x``; it writes
nothing and fails where the norm is 0 or not finite. ``scale_blocks_none`` copies ``out`` to
``x``. Rows are blocks. Vectors are float32 or float64.

Blocks are summed in their order, whoever asks, so the result is the same for every
partition. The L2 norm is the root of a plain sum of squares, which overflows above 1e154.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    Operands,
    Work,
    check_length,
    check_rows,
    refuse_overlap,
    vector,
)
from hugepool.kernels.compiler import CompiledLoop
from hugepool_common.errors import InvalidSpecError, JobFailedError

BLOCK = 4096
"""Elements of a block."""

KINDS = {"l2": 0, "l1": 1, "max": 2}
"""Norms, and their numbers in the loops."""

_NONE = 3
_CODES = ("<f4", "<f8")
_LOOPS = "hugepool.kernels.normalise_loops"
_block_norms = CompiledLoop(_LOOPS, "block_norms", outputs=("partials",))
_scale_blocks = CompiledLoop(_LOOPS, "scale_blocks", outputs=("x",))
_total_norm = CompiledLoop(_LOOPS, "total_norm")


def checked_kind(normalise: str | None) -> str | None:
    """A name of a norm, or None.

    Raises
    ------
    InvalidSpecError
        There is no such norm.
    """
    if normalise is None or (type(normalise) is str and normalise in KINDS):
        return normalise
    raise InvalidSpecError(
        f"no norm {normalise!r}"[:100], needed=f"one of {' '.join(KINDS)}, or None"
    )


def check_vector(dtype: str, shape: tuple[int, ...]) -> None:
    """Refuse what has no norm here.

    Raises
    ------
    InvalidSpecError
        It is no vector of float32 or float64.
    """
    if dtype not in _CODES or len(shape) != 1:
        raise InvalidSpecError(
            "only vectors of floats can be iterated",
            needed=f"1 axis, {' or '.join(_CODES)}",
            had=f"{len(shape)} axes, {dtype}",
            where="x",
        )


def blocks_of(elements: int) -> int:
    """How many blocks a vector has."""
    return -(-elements // BLOCK)


def norm_of(partials: Array, kind: str) -> float:
    """The norm that these partials give, as ``scale_blocks`` computes it."""
    return float(_total_norm(np.ascontiguousarray(partials), KINDS[kind], 0, 0))


@dataclass(frozen=True)
class BlockNorms:
    """Each block's share of a norm. Operands: ``out``, read, and ``partials``, written."""

    kind: str

    @property
    def name(self) -> str:
        """``block_norms_`` and the kind."""
        return f"block_norms_{self.kind}"

    @property
    def implementation(self) -> str:
        """``numba``."""
        return "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        out = vector(operands, "out", _CODES)
        blocks = blocks_of(len(out))
        partials = _partials(operands, blocks, writable=True)
        refuse_overlap(partials, vector=out)
        return Bound(_block_norms, (out, partials, KINDS[self.kind]), blocks)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Reduce the blocks ``[row_start, row_stop)``."""
        bound = self.bind(operands)
        check_rows(row_start, row_stop, bound.rows)
        bound.loop(*bound.arguments, int(row_start), int(row_stop))
        out: Array = bound.arguments[0]
        return Work(row_stop - row_start, 0, _elements(out, row_start, row_stop) * out.itemsize)


@dataclass(frozen=True)
class ScaleBlocks:
    """``x = out / norm``, block by block. Operands: ``out``, ``partials``, and ``x``, written."""

    kind: str

    @property
    def name(self) -> str:
        """``scale_blocks_`` and the kind."""
        return f"scale_blocks_{self.kind}"

    @property
    def implementation(self) -> str:
        """``numba``."""
        return "numba"

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def bind(self, operands: Operands) -> Bound:
        """Check the operands once."""
        out = vector(operands, "out", _CODES)
        x = vector(operands, "x", (out.dtype.str,), writable=True)
        check_length(x, "x", len(out))
        blocks = blocks_of(len(out))
        partials = _partials(operands, blocks)
        refuse_overlap(x, vector=out, partials=partials)
        kind = KINDS.get(self.kind, _NONE)
        return Bound(_scale_blocks, (out, partials, x, kind), blocks, succeeded=0)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Write the blocks ``[row_start, row_stop)`` of ``x``.

        Raises
        ------
        JobFailedError
            The norm is 0, infinite or not a number; nothing is written.
        """
        bound = self.bind(operands)
        check_rows(row_start, row_stop, bound.rows)
        if bound.loop(*bound.arguments, int(row_start), int(row_stop)):
            norm = norm_of(bound.arguments[1], self.kind)
            raise JobFailedError(
                f"a vector whose {self.kind} norm is {norm} cannot be normalised",
                needed="a norm that is finite and not 0",
                had=str(norm),
                where="out",
            )
        out: Array = bound.arguments[0]
        elements = _elements(out, row_start, row_stop)
        return Work(row_stop - row_start, 0, 2 * elements * out.itemsize)


def _partials(operands: Operands, blocks: int, *, writable: bool = False) -> Array:
    partials = vector(operands, "partials", ("<f8",), writable=writable)
    if len(partials) < blocks:
        check_length(partials, "partials", blocks)
    return partials[:blocks]


def _elements(out: Array, row_start: int, row_stop: int) -> int:
    return min(row_stop * BLOCK, len(out)) - min(row_start * BLOCK, len(out))


def kernels() -> dict[str, Any]:
    """Name to maker, of all kernels of this module."""
    made: dict[str, Any] = {}
    for kind in KINDS:
        made[f"block_norms_{kind}"] = lambda kind=kind: BlockNorms(kind)
    for kind in (*KINDS, "none"):
        made[f"scale_blocks_{kind}"] = lambda kind=kind: ScaleBlocks(kind)
    return made
