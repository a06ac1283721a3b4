"""Binned plans, built and run in one thread."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hugepool.kernels.base import CsrArrays, PlanArrays
from hugepool.kernels.binned import CountCells, EmptyBins, FillBins, FillCells
from hugepool.kernels.binned_layout import (
    GatherBlocks,
    GatherLayout,
    aligned_empty,
    gather_head,
)
from hugepool.kernels.binned_product import CountProducts, FillProducts, PlaceProducts, SumBins
from hugepool.kernels.binned_product_layout import ProductLayout
from hugepool.kernels.plan_parts import Stored

Array = np.ndarray[Any, Any]
Parts = Sequence[tuple[int, int]]


def allocate(layout: GatherLayout | ProductLayout) -> PlanArrays:
    """Arrays for a plan, each on a cache line, full of what no plan holds."""
    arrays = {}
    for role, code, count in layout.parts:
        arrays[role] = aligned_empty(count, code)
        arrays[role].view(np.uint8)[:] = 0xFF
    return PlanArrays(arrays)


def count_gather(idx: Array, blocks: GatherBlocks, parts: Parts | None = None) -> Array:
    counts = np.full(blocks.cells, 7, np.uint32)  # as a worker that died may have left it
    operands: dict[str, Any] = {"idx": idx, "head": gather_head(blocks), "counts": counts}
    for start, stop in parts or [(0, blocks.targets)]:
        CountCells()(operands, start, stop)
    return counts


def build_gather(idx: Array, blocks: GatherBlocks, parts: Parts | None = None) -> PlanArrays:
    """Count, number and fill, in these ranges; the plan is read-only then."""
    counts = count_gather(idx, blocks, parts)
    layout = GatherLayout.counted(blocks, counts)
    plan = allocate(layout)
    layout.begin(plan, counts)
    for start, stop in parts or [(0, blocks.targets)]:
        FillCells()({"idx": idx, "plan": plan}, start, stop)
    return _frozen(plan)


def gather(plan: PlanArrays, x: Array, out: Array) -> None:
    layout = GatherLayout.read(plan)
    bins = aligned_empty(layout.padded, f"u{x.itemsize}")
    FillBins()({"plan": plan, "x": x, "bins": bins}, 0, layout.blocks.cells)
    EmptyBins()({"plan": plan, "bins": bins, "out": out}, 0, layout.blocks.targets)


def stored_of(a: CsrArrays) -> Stored:
    """The matrix as it is, nothing rounded."""
    return Stored(*a.shape, a.nnz, a.data.itemsize, a.data.itemsize, rounded=False)


def count_product(a: CsrArrays, layout: ProductLayout, parts: Parts | None = None) -> Array:
    counts = np.full(layout.counts, 7, np.uint32)  # as a worker that died may have left it
    operands: dict[str, Any] = {"A": a, "head": layout.head(), "counts": counts}
    for start, stop in parts or [(0, layout.units)]:
        CountProducts()(operands, start, stop)
    return counts


def build_product(
    a: CsrArrays, layout: ProductLayout, *, longest: int | None = None, parts: Parts | None = None
) -> PlanArrays:
    """Count, number and place, in these ranges; the plan is read-only then."""
    counts = count_product(a, layout, parts)
    counted = layout.counted(counts, longest)
    plan = allocate(counted)
    counted.begin(plan, counts)
    for start, stop in parts or [(0, counted.units)]:
        PlaceProducts()({"A": a, "plan": plan}, start, stop)
    return _frozen(plan)


def multiply(
    plan: PlanArrays,
    x: Array,
    out: Array | None = None,
    parts: tuple[Parts, Parts] | None = None,
) -> Array:
    """Both phases, into fresh bins that are no numbers before."""
    layout = ProductLayout.read(plan)
    code = f"f{layout.item_bytes}"
    bins = aligned_empty(layout.values, code)
    bins[:] = np.nan
    if out is None:
        out = np.full(layout.target_elements, np.nan, code)
    fills, sums = parts or ([(0, layout.cells)], [(0, layout.targets)])
    for start, stop in fills:
        FillProducts()({"plan": plan, "x": x, "bins": bins}, start, stop)
    for start, stop in sums:
        SumBins()({"plan": plan, "bins": bins, "out": out}, start, stop)
    return out


def matrix_of(
    row: Array, column: Array, values: Array, shape: tuple[int, int], index_dtype: str = "<i4"
) -> CsrArrays:
    """CSR from triples, columns rising within a row, equal ones kept apart."""
    order = np.lexsort((column, row))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=shape[0])[: shape[0]])])
    columns = column[order].astype(index_dtype)
    return CsrArrays(indptr.astype(index_dtype), columns, values[order], shape)


def scipy_product(a: CsrArrays, x: Array, transposed: bool = False) -> Array:
    sparse = importlib.import_module("scipy.sparse")
    matrix = sparse.csr_array((a.data, a.indices, a.indptr), shape=a.shape)
    with np.errstate(all="ignore"):
        result: Array = (matrix.T if transposed else matrix) @ x
    return result


def _frozen(plan: PlanArrays) -> PlanArrays:
    for array in plan.arrays.values():
        array.flags.writeable = False
    return plan
