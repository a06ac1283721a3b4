"""Plans of small matrices in private memory, and matrices to make them from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from hugepool.kernels.base import CsrArrays, Operands, PlanArrays
from hugepool.kernels.mirrored import (
    CheckMirrored,
    FillMirrored,
    MatvecMirrored,
    survey_mirrored,
)
from hugepool.kernels.narrow import FillNarrow, MatvecNarrow, survey_narrow
from hugepool.kernels.ordered import FillOrdered, MatvecOrdered, OrderX, survey_ordered
from hugepool.kernels.plan_parts import Part
from hugepool.kernels.repeated import FillRepeated, MatvecRepeated, survey_repeated
from hugepool.kernels.rounding import Storage

Array: TypeAlias = np.ndarray[Any, Any]
Cut: TypeAlias = Callable[[int], Sequence[tuple[int, int]]]
"""Gives ranges that cover so many units once each."""

ODD = (0.0, -0.0, 1.0, -3.0, 0.1, 1e-40, 1e300, np.inf, -np.inf, np.nan)


def whole(units: int) -> Sequence[tuple[int, int]]:
    """One range."""
    return [(0, units)]


def cuts(draw: st.DataObject) -> Cut:
    """Ranges drawn by hypothesis, in any order."""

    def cut(units: int) -> Sequence[tuple[int, int]]:
        inner = draw.draw(st.lists(st.integers(0, units), max_size=4))
        return draw.draw(st.permutations(list(itertools.pairwise(sorted([0, *inner, units])))))

    return cut


def memory_for(parts: Sequence[Part]) -> PlanArrays:
    """Zeros for the parts of a plan."""
    return PlanArrays({role: np.zeros(count, code) for role, code, count in parts})


def build_narrow(a: CsrArrays, cut: Cut = whole, storage: Storage = "exact") -> PlanArrays | None:
    """A plan of the form ``narrow``; None if the matrix cannot have one."""
    layout = survey_narrow(a, storage)
    if isinstance(layout, str):
        return None
    plan = memory_for(layout.parts)
    layout.begin(plan)
    for start, stop in cut(layout.units):
        FillNarrow()({"A": a, "plan": plan}, start, stop)
    return plan


def run_narrow(plan: PlanArrays, x: Array, out: Array, cut: Cut = whole) -> None:
    """``A @ x`` into `out`."""
    operands: Operands = {"plan": plan, "x": x, "out": out}
    for start, stop in cut(MatvecNarrow().bind(operands).rows):
        MatvecNarrow()(operands, start, stop)


def build_repeated(a: CsrArrays, cut: Cut = whole, storage: Storage = "exact") -> PlanArrays | None:
    """A plan of the form ``repeated``; None if the matrix cannot have one."""
    survey = survey_repeated(a, storage)
    if isinstance(survey, str):
        return None
    plan = memory_for(survey.layout.parts)
    survey.begin(a, plan)
    for start, stop in cut(survey.layout.fill_units):
        FillRepeated()({"A": a, "plan": plan}, start, stop)
    return plan


def run_repeated(plan: PlanArrays, x: Array, out: Array, cut: Cut = whole) -> None:
    """``A @ x`` into `out`."""
    operands: Operands = {"plan": plan, "x": x, "out": out}
    for start, stop in cut(MatvecRepeated().bind(operands).rows):
        MatvecRepeated()(operands, start, stop)


def build_mirrored(a: CsrArrays, cut: Cut = whole, storage: Storage = "exact") -> PlanArrays | None:
    """A plan of the form ``mirrored``; None if the matrix cannot have one."""
    survey = survey_mirrored(a, storage)
    if isinstance(survey, str):
        return None
    plan = memory_for(survey.layout.parts)
    survey.begin(plan)
    for kernel in (FillMirrored(), CheckMirrored()):
        for start, stop in cut(survey.layout.units):
            kernel({"A": a, "plan": plan}, start, stop)
    return plan


def run_mirrored(plan: PlanArrays, x: Array, out: Array, cut: Cut = whole) -> None:
    """``A @ x`` into `out`."""
    operands: Operands = {"plan": plan, "x": x, "out": out}
    for start, stop in cut(MatvecMirrored().bind(operands).rows):
        MatvecMirrored()(operands, start, stop)


def build_ordered(a: CsrArrays, cut: Cut = whole, storage: Storage = "exact") -> PlanArrays:
    """A plan of the form ``ordered``."""
    layout, uses = survey_ordered(a, storage)
    plan, renumbered = memory_for(layout.parts), np.zeros(a.shape[1], np.uint32)
    layout.begin(a, uses, plan, renumbered)
    for start, stop in cut(layout.units):
        FillOrdered()({"A": a, "plan": plan, "renumbered": renumbered}, start, stop)
    return plan


def run_ordered(plan: PlanArrays, x: Array, out: Array, cut: Cut = whole) -> None:
    """``A @ x`` into `out`."""
    permuted = np.full(len(plan.arrays["order"]), np.nan, x.dtype)
    first: Operands = {"plan": plan, "x": x, "permuted": permuted}
    for start, stop in cut(len(permuted)):
        OrderX()(first, start, stop)
    second: Operands = {"plan": plan, "permuted": permuted, "out": out}
    for start, stop in cut(MatvecOrdered().bind(second).rows):
        MatvecOrdered()(second, start, stop)


@st.composite
def matrices(draw: st.DrawFn, *, spread: int = 60, numbers: str = "any") -> CsrArrays:
    """CSR with empty rows, columns in any order and more than once.

    Parameters
    ----------
    spread
        Columns of a row lie at most so far apart; the matrix may be much wider.
    numbers
        ``any`` values, infinities and NaN too; or ``tame``, of a size near 1.
    """
    columns = draw(st.sampled_from([0, 1, 2, 7, 40, 70_000, 200_000]))
    counts = draw(st.lists(st.integers(0, 12 if columns else 0), max_size=40))
    index = draw(st.sampled_from(["<i4", "<i8"]))
    lead = draw(st.integers(0, 3)) if columns else 0
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    indptr = (lead + np.concatenate([[0], np.cumsum(counts)])).astype(index)
    nnz = int(indptr[-1])
    last = max(columns - spread, 0)
    begins = np.minimum(last - last // 9 + np.arange(len(counts)) * 900, last)
    shift = rng.integers(0, max(min(spread, columns), 1), nnz - lead)
    indices = np.concatenate([np.zeros(lead), np.repeat(begins, counts) + shift]).astype(index)
    data = values(draw, rng, nnz, draw(st.sampled_from(["<f4", "<f8"])), numbers)
    return CsrArrays(indptr, indices, data, (len(counts), columns))


def blank(a: CsrArrays, x: Array) -> Array:
    """What a product is to be written over: nothing that any would give."""
    return np.full(a.shape[0], 7.0, np.result_type(a.data, x))


@st.composite
def banded(draw: st.DrawFn) -> CsrArrays:
    """Rows that repeat the row before, shifted by one; with breaks, values shared or not."""
    columns = draw(st.integers(50, 300))
    shared = draw(st.booleans())
    index, code = draw(st.sampled_from(["<i4", "<i8"])), draw(st.sampled_from(["<f4", "<f8"]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows: list[Array] = []
    data: list[Array] = []
    for _ in range(draw(st.integers(0, 4))):
        width = int(rng.integers(0, 9))
        length = int(rng.integers(1, 45))
        first = rng.integers(0, columns - length + 1, width)
        own = values(draw, rng, width * (1 if shared else length), code, "any")
        rows += [first + row for row in range(length)]
        data.append(np.tile(own, length) if shared else own)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(index)
    indices = np.concatenate([np.zeros(0, index), *rows]).astype(index)
    return CsrArrays(
        indptr, indices, np.concatenate([np.zeros(0, code), *data]), (len(rows), columns)
    )


@st.composite
def symmetric(draw: st.DrawFn, numbers: str = "any") -> CsrArrays:
    """Symmetric with entries on few diagonals, some of whose places are empty; values of its own.

    Columns of a row come in any order, but in the same for the rows of a run.
    """
    rows = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    index, code = draw(st.sampled_from(["<i4", "<i8"])), draw(st.sampled_from(["<f4", "<f8"]))
    lead = draw(st.integers(0, 3))
    period = draw(st.integers(9, 60))
    distances = draw(st.sets(st.integers(0, min(rows - 1, 70)), min_size=1, max_size=6))
    order = rng.permutation([*distances, *(-one for one in distances if one)])
    found: list[dict[int, Any]] = [{} for _ in range(rows)]
    for distance in distances:
        gap = rng.integers(0, period) if rng.random() < 0.5 else period
        own = values(draw, rng, rows, code, numbers)
        for row in range(rows - distance):
            if row % period != gap:
                found[row][distance] = found[row + distance][-distance] = own[row]
    kept = [[int(one) for one in order if one in row] for row in found]
    indptr = (lead + np.concatenate([[0], np.cumsum([len(row) for row in kept])])).astype(index)
    indices = [row + one for row, some in enumerate(kept) for one in some]
    data = [found[row][one] for row, some in enumerate(kept) for one in some]
    return CsrArrays(
        indptr,
        np.array([0] * lead + indices, index),
        np.array([0] * lead + data, code),
        (rows, rows),
    )


def values(
    draw: st.DrawFn, rng: np.random.Generator, count: int, code: str, numbers: str = "any"
) -> Array:
    """So many values or elements of x of one dtype."""
    kind = draw(st.sampled_from(["whole", "real"] + (["odd"] if numbers == "any" else [])))
    if kind == "odd":
        found = rng.choice(ODD, count)
    else:
        found = rng.integers(-9, 10, count) if kind == "whole" else rng.standard_normal(count)
    with np.errstate(over="ignore"):
        return found.astype(code)


@st.composite
def vectors(draw: st.DrawFn, length: int, numbers: str = "any") -> Array:
    """Something to multiply with."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return values(draw, rng, length, draw(st.sampled_from(["<f4", "<f8"])), numbers)


def scipy_product(a: CsrArrays, x: Array) -> Array:
    """What SciPy makes of the same rows."""
    import scipy.sparse as sparse

    first = int(a.indptr[0])
    parts = (a.data[first:], a.indices[first:], a.indptr - a.indptr[0])
    with np.errstate(all="ignore"):
        product: Array = sparse.csr_array(parts, shape=a.shape) @ x
    return product


def same_bits(first: Array, second: Array) -> bool:
    """Whether two results agree bit for bit, NaN being NaN."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    unit = f"u{first.itemsize}"
    both_nan = np.isnan(first) & np.isnan(second)
    return bool((both_nan | (first.view(unit) == second.view(unit))).all())
