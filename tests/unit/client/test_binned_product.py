"""The binned product sums what SciPy sums, builds in parts, and trusts nothing it can check."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hugepool.kernels.base import CsrArrays, PlanArrays
from hugepool.kernels.binned_layout import aligned_empty
from hugepool.kernels.binned_product import (
    CountProducts,
    FillProducts,
    PlaceProducts,
    SumBins,
    build_entries,
    fill_work,
    sum_work,
)
from hugepool.kernels.binned_product_layout import ProductLayout
from hugepool.kernels.plan_parts import Stored
from hugepool_common.errors import IndexOutOfRangeError, InvalidMatrixError, InvalidSpecError
from support.binned import (
    allocate,
    build_product,
    count_product,
    matrix_of,
    multiply,
    scipy_product,
    stored_of,
)
from support.extras import need

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def numba() -> None:
    need("numba")
    need("scipy")


def _skewed(rows: int, columns: int, entries: int, dtype: str = "f8", seed: int = 0) -> CsrArrays:
    """Most entries in few rows and columns, so that runs are long."""
    rng = np.random.default_rng(seed)
    row = np.minimum(rng.zipf(1.5, entries) - 1, rows - 1)
    column = np.minimum(rng.zipf(1.4, entries) - 1, columns - 1)
    return matrix_of(row, column, rng.standard_normal(entries).astype(dtype), (rows, columns))


def _uniform(rows: int, columns: int, entries: int, dtype: str = "f8", seed: int = 0) -> CsrArrays:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(entries).astype(dtype)
    places = (rng.integers(0, rows, entries), rng.integers(0, columns, entries))
    return matrix_of(*places, values, (rows, columns))


def _layout(
    a: CsrArrays, bits: tuple[int, int] = (5, 6), item: int = 8, transposed: bool = False
) -> ProductLayout:
    return ProductLayout(stored_of(a), item, transposed, *bits)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_without_combining_the_product_is_scipys_bit_for_bit(dtype: str, transposed: bool) -> None:
    a = _uniform(1000, 777, 9000, dtype)
    x = np.random.default_rng(1).standard_normal(a.shape[not transposed]).astype(dtype)
    layout = _layout(a, item=x.itemsize, transposed=transposed)
    plan = build_product(a, layout, longest=1)
    assert multiply(plan, x).tobytes() == scipy_product(a, x, transposed).tobytes()


@pytest.mark.parametrize("bits", [(15, 15), (16, 16), (17, 16), (16, 17)])
def test_blocks_of_full_width(bits: tuple[int, int]) -> None:
    a = _uniform(200_003, 150_001, 400_000)
    x = np.random.default_rng(1).standard_normal(a.shape[1])
    plan = build_product(a, _layout(a, bits), longest=1)
    assert plan.arrays["src"].itemsize == (2 if bits[0] <= 16 else 4)
    assert plan.arrays["dst"].itemsize == (2 if bits[1] <= 16 else 4)
    assert multiply(plan, x).tobytes() == scipy_product(a, x).tobytes()


def test_a_plan_is_what_its_description_says() -> None:
    # Rows 0 and 1 have runs of 3 and 2 in source block 0; row 1 also one entry in block 1.
    a = CsrArrays(
        np.array([0, 3, 6], np.int32),
        np.array([1, 2, 4, 0, 3, 33], np.int32),
        np.arange(1.0, 7.0),
        (2, 40),
    )
    plan = build_product(a, _layout(a, (5, 5)), longest=8)
    layout = ProductLayout.read(plan)
    assert (layout.sources, layout.targets, layout.longest) == (2, 1, 8)
    assert (layout.entries, layout.values) == (16 + 24 + 8, 24)
    found = plan.arrays
    assert found["cell"].tolist() == [0, 40, 48]
    assert found["home"].tolist() == [0, 16]
    assert found["edge"].tolist() == [0, 24]
    assert found["lines"].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    # The line of pairs, first entries then second ones; then that of triples.
    first_places = found["val"][[0, 8, 16, 24, 32, 40]]
    assert first_places.tolist() == [4, 5, 1, 2, 3, 6]
    assert np.count_nonzero(found["val"]) == 6
    assert found["src"][[0, 8, 16, 24, 32, 40]].tolist() == [0, 3, 1, 2, 4, 1]
    outside = layout.target_width
    assert found["dst"].tolist() == [1, *[outside] * 7, 0, *[outside] * 7, 1, *[outside] * 7]


def test_runs_longer_than_eight_are_cut() -> None:
    a = matrix_of(np.zeros(29, np.int64), np.arange(29), np.ones(29), (1, 29))
    plan = build_product(a, _layout(a), longest=8)
    layout = ProductLayout.read(plan)
    assert plan.arrays["lines"].tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert layout.values == 16
    assert multiply(plan, np.ones(29)).tolist() == [29.0]


def test_runs_are_combined_only_where_that_spares_traffic() -> None:
    skewed, uniform = _skewed(500, 500, 60_000), _uniform(5000, 5000, 60_000)
    assert ProductLayout.read(build_product(skewed, _layout(skewed, (8, 8)))).longest == 8
    assert ProductLayout.read(build_product(uniform, _layout(uniform, (8, 8)))).longest == 1


@pytest.mark.parametrize("longest", [1, 8])
@pytest.mark.parametrize("offset", [0, 1, 3, 7, 8])
def test_an_out_at_any_address_is_written_and_nothing_beside_it(longest: int, offset: int) -> None:
    a = _skewed(150, 90, 3000)
    x = np.random.default_rng(1).standard_normal(90)
    plan = build_product(a, _layout(a), longest=longest)
    whole = aligned_empty(150 + 32, "f8")
    whole[:] = -1
    multiply(plan, x, whole[offset : offset + 150])
    np.testing.assert_allclose(whole[offset : offset + 150], scipy_product(a, x), rtol=1e-12)
    assert (whole[:offset] == -1).all()
    assert (whole[offset + 150 :] == -1).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("longest", [1, 8])
def test_what_is_not_finite_reaches_only_rows_that_use_it(longest: int, bad: float) -> None:
    # Every element of x that padding could multiply is bad; row 3 uses one, the others none.
    columns = np.array([1, 33, 65, 0, 2])
    a = matrix_of(np.array([0, 1, 2, 3, 4]), columns, np.ones(5), (6, 96))
    x = np.ones(96)
    x[[0, 31, 32, 63, 64, 95]] = bad
    result = multiply(build_product(a, _layout(a), longest=longest), x)
    assert result.tobytes() == np.array([1, 1, 1, bad, 1, 0], np.float64).tobytes()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (40, 70)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_without_entries_gives_zeros(shape: tuple[int, int], transposed: bool) -> None:
    nothing = np.zeros(0, np.int64)
    a = matrix_of(nothing, nothing, np.zeros(0), shape)
    plan = build_product(a, _layout(a, transposed=transposed))
    out = np.full(shape[transposed], 7.0)
    multiply(plan, np.full(shape[not transposed], np.nan), out)
    assert not out.any()


@pytest.mark.parametrize(
    ("data_dtype", "x_dtype", "stored_bytes", "item"),
    [("f4", "f8", 4, 8), ("f8", "f4", 8, 8), ("f8", "f8", 4, 8), ("f4", "f4", 4, 4)],
)
def test_values_x_and_result_may_differ_in_width(
    data_dtype: str, x_dtype: str, stored_bytes: int, item: int
) -> None:
    a = _uniform(300, 400, 5000)
    # Values that float32 holds exactly lose nothing in it.
    a = replace(a, data=a.data.astype("f4").astype(data_dtype))
    x = np.random.default_rng(1).standard_normal(400).astype(x_dtype)
    stored = replace(stored_of(a), stored_bytes=stored_bytes)
    plan = build_product(a, ProductLayout(stored, item, False, 6, 6), longest=1)
    result = multiply(plan, x)
    assert result.dtype.itemsize == item
    assert result.tobytes() == scipy_product(a, x).tobytes()


@pytest.mark.parametrize(("longest", "transposed"), [(1, False), (8, False), (1, True)])
def test_parts_of_a_build_make_the_serial_one(longest: int, transposed: bool) -> None:
    a = _skewed(700, 300, 9000)
    layout = _layout(a, transposed=transposed)
    serial = build_product(a, layout, longest=longest)
    bounds = sorted({0, 1, 2, 5, layout.units})
    parts = list(itertools.pairwise(bounds))[::-1]
    split = build_product(a, layout, longest=longest, parts=parts)
    for role, array in serial.arrays.items():
        assert (array == split.arrays[role]).all(), role


def test_a_row_is_summed_by_source_block() -> None:
    a = CsrArrays(
        np.array([0, 5], np.int64),
        np.array([40, 3, 41, 3, 2], np.int64),
        np.array([1e16, 1.0, -1e16, 1.0, 3.0]),
        (1, 64),
    )
    for longest in (1, 8):
        plan = build_product(a, _layout(a), longest=longest)
        assert multiply(plan, np.ones(64)).tolist() == [(1.0 + 1.0 + 3.0 + 1e16) - 1e16]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("value", [-1, 50, 2**31 - 1, -(2**31)])
def test_the_first_bad_column_is_named(value: int, transposed: bool) -> None:
    a = _uniform(300, 50, 4000)
    for position in (0, 1999, 3999):
        columns = a.indices.copy()
        columns[position:] = value
        with pytest.raises(IndexOutOfRangeError) as caught:
            build_product(replace(a, indices=columns), _layout(a, transposed=transposed))
        assert (caught.value.position, caught.value.had) == (position, str(value))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("row", "value"), [(0, -1), (5, 4001), (299, 0), (300, 4001), (300, -7)])
def test_an_indptr_that_lies_is_refused(row: int, value: int, transposed: bool) -> None:
    a = _uniform(300, 50, 4000)
    indptr = a.indptr.copy()
    indptr[row] = value
    with pytest.raises(InvalidMatrixError, match=r"indptr\[\d+\]"):
        build_product(replace(a, indptr=indptr), _layout(a, transposed=transposed))


@pytest.mark.parametrize(("longest", "transposed"), [(1, False), (8, False), (1, True)])
def test_a_matrix_that_changes_after_the_count_leads_nowhere(
    longest: int, transposed: bool
) -> None:
    a = _uniform(300, 200, 4000)
    counts = count_product(a, _layout(a, transposed=transposed))
    layout = _layout(a, transposed=transposed).counted(counts, longest)
    fewer = a.indptr.copy()
    fewer[1:] = 0
    for changed in (
        replace(a, indices=np.full_like(a.indices, 199)),
        replace(a, indices=np.full_like(a.indices, 0)),
        replace(a, indices=np.full_like(a.indices, -1)),
        replace(a, indices=np.full_like(a.indices, 1 << 30)),
        replace(a, indptr=fewer),
        replace(a, indptr=a.indptr[::-1].copy()),
        replace(a, indptr=a.indptr + 4000),
    ):
        plan = allocate(layout)
        layout.begin(plan, counts)
        with pytest.raises((InvalidSpecError, InvalidMatrixError, IndexOutOfRangeError)):
            PlaceProducts()({"A": changed, "plan": plan}, 0, layout.units)


def test_blocks_grow_until_cells_are_worth_it() -> None:
    def bits(rows: int, columns: int, nnz: int, item: int = 8) -> tuple[int, int]:
        layout = ProductLayout.fitting(Stored(rows, columns, nnz, item, item, False), item)
        return layout.source_bits, layout.target_bits

    assert bits(10_000_000, 50_000_000, 80_000_000) == (15, 15)
    assert bits(10_000_000, 50_000_000, 80_000_000, 4) == (16, 16)
    assert bits(10_000_000, 500_000_000, 80_000_000) == (16, 16)
    assert bits(10_000_000, 2_000_000_000, 80_000_000) == (17, 16)
    assert bits(0, 0, 0) == (15, 15)
    sparse = Stored(10_000, 1_000_000_000, 100, 8, 8, False)
    assert ProductLayout.fitting(sparse, 8).sparse


def test_memory_is_announced_before_it_is_taken() -> None:
    a = _uniform(5000, 5000, 100_000)
    layout = _layout(a, (7, 7))
    built = build_product(a, layout, longest=1)
    known = ProductLayout.read(built)
    assert known.nbytes == sum(array.nbytes for array in built.arrays.values())
    assert abs(layout.likely.nbytes - known.nbytes) < known.nbytes / 20
    assert abs(layout.likely.bins_nbytes - known.bins_nbytes) < known.bins_nbytes / 20


@pytest.mark.parametrize("longest", [1, 8, None])
def test_numbering_takes_no_more_memory_than_announced(longest: int | None) -> None:
    a = _skewed(20_000, 20_000, 100_000)
    layout = _layout(a, (7, 7))
    counts = count_product(a, layout)
    plan = allocate(layout.counted(counts, longest))
    tracemalloc.start()
    try:
        layout.counted(counts, longest).begin(plan, counts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < peak + counts.nbytes <= layout.build_nbytes + (1 << 16)


def test_work_to_cut_by_ends_with_all_of_it() -> None:
    a = _skewed(700, 300, 9000)
    plan = build_product(a, _layout(a))
    layout = ProductLayout.read(plan)
    for work, units, total in (
        (build_entries(layout, a), layout.units, a.nnz),
        (fill_work(plan), layout.cells, layout.entries),
        (sum_work(plan), layout.targets, layout.values + 700),
    ):
        assert len(work) == units + 1
        assert (work[0], work[-1]) == (0, total)
        assert (np.diff(work) >= 0).all()


def test_operands_that_do_not_fit_are_refused() -> None:
    a = _uniform(100, 90, 1000)
    plan = build_product(a, _layout(a))
    layout = ProductLayout.read(plan)
    bins, x, out = aligned_empty(layout.values, "f8"), np.ones(90), np.full(100, -1.0)
    bins[:] = 0
    sealed = out.copy()
    sealed.flags.writeable = False
    misplaced = aligned_empty(len(bins) + 1, "f8")[1:]
    lap = aligned_empty(layout.lap_elements, "f8")

    def altered(role: str, array: Array) -> PlanArrays:
        return PlanArrays({**plan.arrays, role: array})

    head = plan.arrays["head"].copy()
    head[0] = 1
    plans = [
        altered("head", head),
        altered("head", head[:-1]),
        altered("src", plan.arrays["src"][:-1]),
        altered("dst", plan.arrays["dst"].astype("u4")),
        altered("cell", plan.arrays["cell"][:-1]),
        altered("cell", np.zeros_like(plan.arrays["cell"])),
        altered("lines", plan.arrays["lines"][:-1]),
        PlanArrays({"head": plan.arrays["head"]}),
    ]
    fill: dict[str, Any] = {"plan": plan, "x": x, "bins": bins}
    total: dict[str, Any] = {"plan": plan, "bins": bins, "out": out}
    fill_changes: list[dict[str, Any]] = [
        *({"plan": other} for other in plans),
        {"plan": x},
        {"x": np.ones(89)},
        {"x": np.ones(90, "i8")},
        {"x": bins[:90]},
        {"bins": bins[:-8]},
        {"bins": bins.view("u8")},
        {"bins": misplaced},
    ]
    for fill_change in fill_changes:
        with pytest.raises(InvalidSpecError):
            FillProducts()(fill | fill_change, 0, layout.cells)
    sum_changes: list[dict[str, Any]] = [
        *({"plan": other} for other in plans),
        {"out": out[:-1]},
        {"out": out.astype("f4")},
        {"out": sealed},
        {"out": bins[:100]},
        {"bins": misplaced},
        {"lap": lap[:-1]},
        {"lap": lap.view("u8")},
    ]
    for sum_change in sum_changes:
        with pytest.raises(InvalidSpecError):
            SumBins()(total | sum_change, 0, layout.targets)
    for kernel, operands, units in (
        (FillProducts(), fill, layout.cells),
        (SumBins(), total, layout.targets),
    ):
        kernel.prepare(operands)
        for start, stop in ((-1, 1), (2, 1), (0, units + 1)):
            with pytest.raises(InvalidSpecError):
                kernel(operands, start, stop)
    assert not bins.any()
    assert (out == -1).all()


def test_a_plan_of_narrow_results_refuses_a_wider_x() -> None:
    a = _uniform(100, 90, 1000, "f4")
    plan = build_product(a, _layout(a, item=4))
    bins = aligned_empty(ProductLayout.read(plan).values, "f4")
    with pytest.raises(InvalidSpecError, match="another dtype"):
        FillProducts()({"plan": plan, "x": np.ones(90), "bins": bins}, 0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"item_bytes": 2},
        {"item_bytes": 4},
        {"source_bits": 21},
        {"target_bits": 2},
        {"longest": 3},
        {"transposed": True, "longest": 8},
        {"values": -1},
    ],
)
def test_impossible_layouts_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError):
        replace(_layout(_uniform(10, 10, 20)), **change)


def test_a_build_needs_the_matrix_and_the_counts_that_were_announced() -> None:
    a, other = _uniform(100, 90, 1000), _uniform(100, 91, 1000)
    layout = _layout(a)
    counts = np.zeros(layout.counts, "u4")
    good: dict[str, Any] = {"A": a, "head": layout.head(), "counts": counts}
    for change in ({"A": other}, {"counts": counts[1:]}, {"head": layout.head()[1:]}):
        with pytest.raises(InvalidSpecError):
            CountProducts()(good | change, 0, layout.units)
    with pytest.raises(InvalidSpecError):
        layout.counted(counts[1:])
    work = CountProducts()(good, 0, layout.units)
    assert (work.elements, work.nnz) == (100, 1000)


def test_work_is_counted() -> None:
    a = _uniform(1000, 500, 9000)
    plan = build_product(a, _layout(a), longest=1)
    layout = ProductLayout.read(plan)
    bins, out = aligned_empty(layout.values, "f8"), np.zeros(1000)
    filled = FillProducts()({"plan": plan, "x": np.ones(500), "bins": bins}, 0, layout.cells)
    assert (filled.elements, filled.nbytes) == (layout.entries, 4000 + layout.entries * 18)
    parts = [
        SumBins()({"plan": plan, "bins": bins, "out": out}, d, d + 1) for d in range(layout.targets)
    ]
    assert sum(work.elements for work in parts) == 1000
    assert sum(work.nbytes for work in parts) == layout.values * 10 + 8000


BOUNDS_CHECKED = """
import numpy as np
from hugepool.kernels.binned_product_layout import ProductLayout
from support.binned import build_product, matrix_of, multiply, scipy_product, stored_of
rng = np.random.default_rng(0)
for rows, columns, entries, dtype, bits in (
    (100, 99, 999, "f8", (5, 5)), (3, 99, 999, "f8", (5, 6)), (99, 100, 1000, "f4", (6, 7)),
    (1, 1, 1, "f8", (5, 5)), (70000, 140001, 200000, "f4", (17, 16)),
):
    values = rng.standard_normal(entries).astype(dtype)
    places = rng.integers(0, rows, entries), rng.integers(0, columns, entries)
    a = matrix_of(*places, values, (rows, columns))
    for longest, transposed in ((1, False), (8, False), (1, True)):
        x = rng.standard_normal(a.shape[not transposed]).astype(dtype)
        layout = ProductLayout(stored_of(a), x.itemsize, transposed, *bits)
        plan = build_product(a, layout, longest=longest)
        layout = ProductLayout.read(plan)
        # The lines are not covered by the check, so what they reach is looked at here.
        src, dst, cell, edge = (plan.arrays[role] for role in ("src", "dst", "cell", "edge"))
        for s in range(layout.sources):
            part = src[cell[s * layout.targets] : cell[(s + 1) * layout.targets]]
            assert not len(part) or s * layout.source_width + int(part.max()) < len(x)
        for d in range(layout.targets):
            part = dst[edge[d] : edge[d + 1]]
            real = part[part != layout.target_width].astype(np.int64)
            assert not len(real) or d * layout.target_width + real.max() < layout.target_elements
        np.testing.assert_allclose(
            multiply(plan, x), scipy_product(a, x, transposed), rtol=1e-3, atol=1e-3
        )
print("done")
"""


@pytest.mark.timeout(1000)
def test_no_loop_leaves_its_arrays_when_numba_checks_bounds(tmp_path: Path) -> None:
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    child = subprocess.run(
        [sys.executable, "-c", BOUNDS_CHECKED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.stdout == "done\n", child.stderr
