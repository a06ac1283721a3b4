"""The forms of a plan, as the phases that each consists of.

``direct``: the kernel over the index or the matrix itself, rows cut where one is longer
than a part. ``binned``: values are
sorted into bins, then put in order (gather and product). ``ordered``: columns in order
of their use, so that the part of x that is used most stays in a cache. ``repeated``: runs
of rows that are one another's copies, shifted, written down once. ``mirrored``: the same of a
symmetric matrix, half of its values kept. ``narrow``: columns in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from hugepool import partition, products
from hugepool.array import SharedArray, SharedObject
from hugepool.kernels import binned, binned_product, mirrored, narrow, ordered, repeated
from hugepool.kernels.base import PlanArrays
from hugepool.matrix import SharedMatrix
from hugepool.phases import Phase
from hugepool.plan_record import PlanSegment
from hugepool_common.spec import Member

DIRECT = "direct"
BINNED = "binned"
ORDERED = "ordered"
REPEATED = "repeated"
MIRRORED = "mirrored"
NARROW = "narrow"

Operands = Mapping[str, SharedObject]


def phases(operation: str, form: str, operands: Operands, parts: int) -> tuple[Phase, ...]:
    """What a run consists of.

    Parameters
    ----------
    operation
        ``gather``, ``matvec`` or ``rmatvec``.
    form
        One of those above.
    operands
        ``x`` and ``out``; ``plan``, the payload; ``A`` of a matrix's plan; and scratch by role,
        that of :func:`cut_scratch` for as many parts included.
    parts
        How many parts each phase is cut into.
    """
    return _PHASES[operation, form](operands, parts)


def cut_scratch(
    operation: str,
    form: str,
    operands: Operands,
    parts: int,
    make: Callable[[Sequence[Member]], dict[str, SharedArray]],
) -> dict[str, SharedArray]:
    """Scratch that a run in so many parts needs besides, ready for use; mostly none.

    Parameters
    ----------
    operation, form, operands, parts
        As for :func:`phases`.
    make
        Makes arrays.
    """
    if (operation, form) == ("rmatvec", DIRECT):
        return _rmatvec_scratch(operands, parts, make)
    if (operation, form) != ("matvec", DIRECT):
        return {}
    indptr = cast(SharedMatrix, operands["A"]).indptr
    if not products.pays_to_cut(indptr, partition.by_nnz(indptr, parts)):
        return {}
    dtype = cast(SharedArray, operands["out"]).spec.dtype
    made = make((Member("bounds", "<i8", 2 * (parts + 1)), Member("carry", dtype, 2 * parts)))
    made["bounds"].array[:] = np.concatenate(partition.merge_path(indptr, parts))
    return made


def _rmatvec_scratch(
    operands: Operands, parts: int, make: Callable[[Sequence[Member]], dict[str, SharedArray]]
) -> dict[str, SharedArray]:
    """The rows of each part, and a result for each if there are several."""
    matrix = cast(SharedMatrix, operands["A"])
    columns = matrix.shape[1]
    count = products.parts_of_transposed(matrix, parts)
    members = [Member("bounds", "<i8", count + 1)]
    if count > 1:
        dtype = cast(SharedArray, operands["out"]).spec.dtype
        members.append(Member("partial", dtype, count * columns))
    made = make(members)
    made["bounds"].array[:] = partition.by_nnz(matrix.indptr, count)
    return made


def _only(operands: Operands, *roles: str) -> dict[str, SharedObject]:
    return {role: operands[role] for role in roles}


def _arrays(operands: Operands) -> PlanArrays:
    return PlanArrays(cast(PlanSegment, operands["plan"]).arrays)


def _gather_direct(operands: Operands, parts: int) -> tuple[Phase, ...]:
    idx = cast(SharedArray, operands["plan"])
    rows = partition.by_rows(math.prod(idx.shape), parts)
    return (Phase("gather", {"x": operands["x"], "idx": idx, "out": operands["out"]}, rows),)


def _gather_binned(operands: Operands, parts: int) -> tuple[Phase, ...]:
    plan = _arrays(operands)
    return (
        Phase(
            "fill_bins",
            _only(operands, "plan", "x", "bins"),
            partition.by_nnz(binned.fill_work(plan), parts),
            frozenset({"bins"}),
        ),
        Phase(
            "empty_bins",
            _only(operands, "plan", "bins", "out"),
            partition.by_nnz(binned.empty_work(plan), parts),
        ),
    )


def _matvec_direct(operands: Operands, parts: int) -> tuple[Phase, ...]:
    if "bounds" in operands:
        return (
            Phase(
                "matvec_split",
                _only(operands, "A", "x", "bounds", "carry", "out"),
                tuple(range(parts + 1)),
                frozenset({"carry", "out"}),
            ),
            # A few additions: one participant does them all.
            Phase(
                "add_carries",
                _only(operands, "A", "bounds", "carry", "out"),
                (0, *[parts] * parts),
            ),
        )
    matrix = cast(SharedMatrix, operands["A"])
    rows = partition.by_nnz(matrix.indptr, parts)
    return (Phase("matvec", _only(operands, "A", "x", "out"), rows),)


def _matvec_binned(operands: Operands, parts: int) -> tuple[Phase, ...]:
    plan = _arrays(operands)
    return (
        Phase(
            "fill_products",
            _only(operands, "plan", "x", "bins"),
            partition.by_nnz(binned_product.fill_work(plan), parts),
            frozenset({"bins"}),
        ),
        Phase(
            "sum_bins",
            _only(operands, "plan", "bins", "out"),
            partition.by_nnz(binned_product.sum_work(plan), parts),
        ),
    )


def _matvec_ordered(operands: Operands, parts: int) -> tuple[Phase, ...]:
    plan = _arrays(operands)
    used = ordered.OrderedLayout.read(plan).used
    return (
        Phase(
            "order_x",
            _only(operands, "plan", "x", "permuted"),
            partition.by_rows(used, parts),
            frozenset({"permuted"}),
        ),
        Phase(
            "matvec_ordered",
            _only(operands, "plan", "permuted", "out"),
            partition.by_nnz(ordered.ordered_work(plan), parts),
        ),
    )


def _matvec_narrow(operands: Operands, parts: int) -> tuple[Phase, ...]:
    rows = partition.by_nnz(narrow.narrow_work(_arrays(operands)), parts)
    return (Phase("matvec_narrow", _only(operands, "plan", "x", "out"), rows),)


def _matvec_repeated(operands: Operands, parts: int) -> tuple[Phase, ...]:
    rows = partition.by_nnz(repeated.repeated_work(_arrays(operands)), parts)
    return (Phase("matvec_repeated", _only(operands, "plan", "x", "out"), rows),)


def _matvec_mirrored(operands: Operands, parts: int) -> tuple[Phase, ...]:
    rows = partition.by_nnz(mirrored.mirrored_work(_arrays(operands)), parts)
    return (Phase("matvec_mirrored", _only(operands, "plan", "x", "out"), rows),)


def _rmatvec_direct(operands: Operands, parts: int) -> tuple[Phase, ...]:
    bounds, out = cast(SharedArray, operands["bounds"]), cast(SharedArray, operands["out"])
    count = bounds.shape[0] - 1
    rows = tuple(min(part, count) for part in range(parts + 1))
    partial = operands.get("partial", out)
    product = {**_only(operands, "A", "x", "bounds"), "partial": partial}
    first = Phase("rmatvec", product, rows, frozenset({"partial"}))
    if partial is out:
        return (first,)
    columns = partition.by_rows(out.shape[0], parts)
    return first, Phase("sum_parts", {"partial": partial, "out": out}, columns)


_PHASES: dict[tuple[str, str], Callable[[Operands, int], tuple[Phase, ...]]] = {
    ("gather", DIRECT): _gather_direct,
    ("gather", BINNED): _gather_binned,
    ("matvec", DIRECT): _matvec_direct,
    ("matvec", BINNED): _matvec_binned,
    ("matvec", ORDERED): _matvec_ordered,
    ("matvec", REPEATED): _matvec_repeated,
    ("matvec", MIRRORED): _matvec_mirrored,
    ("matvec", NARROW): _matvec_narrow,
    ("rmatvec", DIRECT): _rmatvec_direct,
    ("rmatvec", BINNED): _matvec_binned,
}
