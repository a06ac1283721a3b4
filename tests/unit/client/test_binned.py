"""The binned gather moves every element once to its place, and trusts nothing it can check."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hugepool.kernels.base import PlanArrays
from hugepool.kernels.binned import (
    CountCells,
    EmptyBins,
    FillBins,
    FillCells,
    empty_work,
    fill_work,
)
from hugepool.kernels.binned_layout import (
    GatherBlocks,
    GatherLayout,
    aligned_empty,
    gather_head,
)
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError
from hugepool_common.spec import ITEM_SIZES
from support.binned import allocate, build_gather, count_gather, gather
from support.extras import need

Array = np.ndarray[Any, Any]
WIDE = [code for code, width in ITEM_SIZES.items() if width in (4, 8)]


@pytest.fixture(autouse=True)
def numba() -> None:
    need("numba")


def _bits(count: int, dtype: str) -> Array:
    raw = np.random.default_rng(5).integers(0, 256, count * ITEM_SIZES[dtype], dtype=np.uint8)
    return raw.view(dtype)


def _off(count: int, dtype: Any, offset: int) -> Array:
    """An array of -1 whose address is a line and `offset` elements, with 8 more behind it."""
    whole = aligned_empty(count + offset + 8, dtype)
    whole[:] = -1
    return whole


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("index_dtype", ["<i4", "<i8", "<u4", "<u8"])
def test_every_dtype_moves_bit_for_bit(dtype: str, index_dtype: str) -> None:
    x = _bits(1000, dtype)
    idx = np.random.default_rng(1).integers(0, 1000, 2222).astype(index_dtype)
    x.flags.writeable = idx.flags.writeable = False
    out = np.zeros(2222, dtype)
    gather(build_gather(idx, GatherBlocks(1000, 2222, x.itemsize, 6, 7)), x, out)
    assert out.tobytes() == x[idx].tobytes()


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize(("source_bits", "target_bits"), [(16, 16), (17, 16), (16, 17), (17, 18)])
def test_blocks_of_full_width(dtype: str, source_bits: int, target_bits: int) -> None:
    rows, entries = (1 << 18) + 3, (1 << 18) + 70_001
    x = np.arange(rows).astype(dtype)
    idx = np.random.default_rng(2).integers(0, rows, entries)
    idx[:4] = 0, rows - 1, (1 << 16) - 1, 1 << 16
    out = np.zeros(entries, dtype)
    blocks = GatherBlocks(rows, entries, x.itemsize, source_bits, target_bits)
    plan = build_gather(idx, blocks)
    assert plan.arrays["src"].itemsize == (2 if source_bits == 16 else 4)
    assert plan.arrays["dst"].itemsize == (2 if target_bits == 16 else 4)
    gather(plan, x, out)
    assert (out == x[idx]).all()


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("offset", range(0, 17, 3))
@pytest.mark.parametrize("entries", [1, 7, 16, 33, 500])
def test_an_out_at_any_address_is_written_and_nothing_beside_it(
    dtype: str, offset: int, entries: int
) -> None:
    x = np.arange(100).astype(dtype)
    idx = np.random.default_rng(3).integers(0, 100, entries)
    whole = _off(entries, dtype, offset)
    gather(
        build_gather(idx, GatherBlocks(100, entries, x.itemsize, 4, 5)),
        x,
        whole[offset : offset + entries],
    )
    assert (whole[offset : offset + entries] == x[idx]).all()
    assert (whole[:offset] == -1).all()
    assert (whole[offset + entries :] == -1).all()


def test_a_plan_is_what_its_description_says() -> None:
    idx = np.array([5, 0, 9, 1, 5, 8, 9, 0, 4, 3], np.int64)
    plan = build_gather(idx, GatherBlocks(10, 10, 8, 2, 3))
    layout, found = GatherLayout.read(plan), plan.arrays
    assert (layout.blocks.sources, layout.blocks.targets, layout.padded) == (3, 2, 40)
    # Cells of target block 0 hold positions 0 to 7; of block 1, positions 8 and 9.
    assert found["cell"].tolist() == [0, 8, 16, 24, 32, 40, 40]
    assert found["edge"].tolist() == [0, 24, 40]
    assert found["home"].tolist() == [0, 24, 8, 32, 16, 40]
    assert found["src"][:8].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert found["dst"][:8].tolist() == [1, 3, 7, 7, 7, 7, 7, 7]
    assert found["src"][16:24].tolist() == [1, 1, 1, 1, 1, 1, 1, 1]
    assert found["dst"][8:16].tolist() == [0, 4, 4, 4, 4, 4, 4, 4]
    assert layout.nbytes == sum(array.nbytes for array in found.values())
    assert layout.bins_nbytes == 320
    assert fill_work(plan).tolist() == found["cell"].tolist()
    assert empty_work(plan).tolist() == found["edge"].tolist()


@pytest.mark.parametrize("skew", [False, True])
def test_memory_is_announced_before_it_is_taken(skew: bool) -> None:
    rng = np.random.default_rng(4)
    idx = rng.integers(0, 1 << 14, 50_000) if not skew else np.zeros(50_000, np.int64)
    blocks = GatherBlocks(1 << 14, 50_000, 8, 8, 10)
    counts = count_gather(idx, blocks)
    announced = GatherLayout.counted(blocks, counts)
    built = build_gather(idx, blocks)
    assert announced == GatherLayout.read(built)
    assert announced.nbytes == sum(array.nbytes for array in built.arrays.values())
    assert announced.nbytes + announced.bins_nbytes + counts.nbytes <= blocks.most_nbytes
    if not skew:
        assert abs(blocks.likely_padded - announced.padded) < announced.padded / 20


@pytest.mark.parametrize("bounds", [(0, 1, 5), (0, 3, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_parts_of_a_build_make_the_serial_one(bounds: tuple[int, ...]) -> None:
    idx = np.random.default_rng(6).integers(0, 1000, 5 * 64 - 7)
    blocks = GatherBlocks(1000, len(idx), 8, 5, 6)
    serial = build_gather(idx, blocks)
    split = build_gather(idx, blocks, list(itertools.pairwise(bounds))[::-1])
    for role, array in serial.arrays.items():
        assert (array == split.arrays[role]).all(), role


def test_a_part_of_a_build_looks_only_at_its_own_indices() -> None:
    blocks = GatherBlocks(10, 30, 8, 2, 3)
    idx = np.full(30, 99)
    idx[8:16] = 3
    counts = count_gather(idx, blocks, [(1, 2)])
    assert counts.reshape(4, 3).tolist() == [[7, 7, 7], [8, 0, 0], [7, 7, 7], [7, 7, 7]]
    with pytest.raises(IndexOutOfRangeError) as caught:
        count_gather(idx, blocks, [(2, 4)])
    assert caught.value.position == 16


def test_an_index_of_any_shape_counts_flat() -> None:
    idx = np.random.default_rng(8).integers(0, 50, (4, 5, 6))
    plan = build_gather(idx, GatherBlocks(50, 120, 8, 3, 4))
    x, out = np.arange(50.0), np.zeros(120)
    gather(plan, x, out)
    assert (out == x[idx].ravel()).all()


@pytest.mark.parametrize(
    ("index_dtype", "value"),
    [
        ("<i4", -1),
        ("<i4", 100),
        ("<i4", -(2**31)),
        ("<i8", -1),
        ("<i8", -(2**63)),
        ("<i8", 2**63 - 1),
        ("<i8", 2**32),
        ("<u4", 2**32 - 1),
        ("<u8", 2**64 - 1),
        ("<u8", 2**63),
    ],
)
def test_the_first_bad_index_is_named(index_dtype: str, value: int) -> None:
    for position in (0, 63, 64, 127, 199):
        idx = np.zeros(200, index_dtype)
        idx[position:] = value
        with pytest.raises(IndexOutOfRangeError) as caught:
            build_gather(idx, GatherBlocks(100, 200, 8, 4, 6))
        assert (caught.value.position, caught.value.had) == (position, str(value))
        assert "100" in caught.value.needed


def test_an_index_that_changes_after_the_count_leads_nowhere() -> None:
    rng = np.random.default_rng(7)
    blocks = GatherBlocks(1000, 640, 8, 4, 5)

    def fill_with(idx: Array, counts: Array) -> None:
        layout = GatherLayout.counted(blocks, counts)
        plan = allocate(layout)
        layout.begin(plan, counts)
        FillCells()({"idx": idx, "plan": plan}, 0, blocks.targets)

    # 1005 lies in the last source block, but not in x.
    for value in (-1, 1 << 40, 3, 999, 1005):
        counts = count_gather(rng.integers(0, 1000, 640), blocks)
        with pytest.raises(InvalidSpecError, match="written to"):
            fill_with(np.full(640, value), counts)
    with pytest.raises(InvalidSpecError, match="near position 0"):
        fill_with(np.full(640, 1005), count_gather(np.full(640, 999), blocks))


@pytest.mark.parametrize(
    ("rows", "entries", "bits"),
    [
        (50_000_000, 50_000_000, (16, 15)),
        (500_000_000, 25_000_000, (19, 15)),
        (0, 0, (16, 15)),
        (1, 1, (16, 15)),
        (1_000_000_000, 50_000, (20, 15)),
        (1_000_000_000, 35_000, (20, 16)),
        (1_000_000_000, 10_000, (20, 15)),
    ],
)
def test_blocks_grow_until_cells_are_worth_it(
    rows: int, entries: int, bits: tuple[int, int]
) -> None:
    blocks = GatherBlocks.fitting(rows, entries, 8)
    assert (blocks.source_bits, blocks.target_bits) == bits
    assert blocks.sparse == (entries in (1, 10_000))


@pytest.mark.parametrize(
    "change", [{"item_bytes": 2}, {"rows": -1}, {"source_bits": 21}, {"target_bits": -1}]
)
def test_impossible_blocks_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(InvalidSpecError):
        replace(GatherBlocks(10, 10, 8), **change)


def test_operands_that_do_not_fit_are_refused() -> None:
    plan = build_gather(np.arange(100), GatherBlocks(100, 100, 8, 4, 5))
    layout = GatherLayout.read(plan)
    blocks = layout.blocks
    bins, x, out = aligned_empty(layout.padded, "u8"), np.ones(100), np.full(100, -1.0)
    bins[:] = 0
    sealed = out.copy()
    sealed.flags.writeable = False
    misplaced = aligned_empty(len(bins) + 1, "u8")[1:]
    lap = aligned_empty(blocks.lap_elements, "u8")

    def altered(role: str, array: Array) -> PlanArrays:
        return PlanArrays({**plan.arrays, role: array})

    head = plan.arrays["head"].copy()
    head[0] = 1
    plans = [
        altered("head", head),
        altered("head", head[:-1]),
        altered("src", plan.arrays["src"][:-1]),
        altered("src", plan.arrays["src"].astype(np.uint32)),
        altered("dst", plan.arrays["dst"][:-1]),
        altered("cell", plan.arrays["cell"][:-1]),
        altered("cell", np.zeros_like(plan.arrays["cell"])),
        altered("home", plan.arrays["home"][:-1]),
        altered("edge", plan.arrays["edge"][:-1]),
        PlanArrays({"head": plan.arrays["head"]}),
    ]
    fill: dict[str, Any] = {"plan": plan, "x": x, "bins": bins}
    empty: dict[str, Any] = {"plan": plan, "bins": bins, "out": out}
    fill_changes: list[dict[str, Any]] = [
        *({"plan": other} for other in plans),
        {"plan": x},
        {"x": np.ones(99)},
        {"x": np.ones(100, "f4")},
        {"bins": bins[:-8]},
        {"bins": misplaced},
        {"x": bins[:100].view("f8")},
    ]
    for fill_change in fill_changes:
        with pytest.raises(InvalidSpecError):
            FillBins()(fill | fill_change, 0, blocks.cells)
    empty_changes: list[dict[str, Any]] = [
        *({"plan": other} for other in plans),
        {"out": out[:-1]},
        {"out": out.astype("f4")},
        {"out": sealed},
        {"bins": misplaced},
        {"lap": lap[:-1]},
        {"lap": lap.view("f8")},
        {"out": bins[:100].view("f8")},
    ]
    for empty_change in empty_changes:
        with pytest.raises(InvalidSpecError):
            EmptyBins()(empty | empty_change, 0, blocks.targets)
    for kernel, operands, units in (
        (FillBins(), fill, blocks.cells),
        (EmptyBins(), empty, blocks.targets),
    ):
        kernel.prepare(operands)
        for start, stop in ((-1, 1), (2, 1), (0, units + 1)):
            with pytest.raises(InvalidSpecError):
                kernel(operands, start, stop)
    assert not bins.any()
    assert (out == -1).all()


def test_a_build_needs_the_index_and_the_counts_that_were_announced() -> None:
    blocks, idx = GatherBlocks(100, 100, 8, 4, 5), np.arange(100)
    counts = np.zeros(blocks.cells, np.uint32)
    good: dict[str, Any] = {"idx": idx, "head": gather_head(blocks), "counts": counts}
    for change in (
        {"idx": idx[1:]},
        {"idx": idx.astype("f8")},
        {"counts": counts[1:]},
        {"counts": counts.view("i4")},
        {"head": np.zeros(32, np.int64)},
    ):
        with pytest.raises(InvalidSpecError):
            CountCells()(good | change, 0, blocks.targets)
    with pytest.raises(InvalidSpecError):
        GatherLayout.counted(blocks, counts[1:])
    assert not counts.any()


def test_work_is_counted() -> None:
    plan = build_gather(np.arange(100)[::-1].copy(), GatherBlocks(100, 100, 8, 4, 5))
    layout = GatherLayout.read(plan)
    blocks, bins, out = layout.blocks, aligned_empty(layout.padded, "u8"), np.zeros(100)
    whole = FillBins()({"plan": plan, "x": np.ones(100), "bins": bins}, 0, blocks.cells)
    assert (whole.elements, whole.nbytes) == (layout.padded, 800 + layout.padded * 10)
    empty: dict[str, Any] = {"plan": plan, "bins": bins, "out": out}
    parts = [EmptyBins()(empty, d, d + 1) for d in range(blocks.targets)]
    assert sum(work.elements for work in parts) == 100
    assert sum(work.nbytes for work in parts) == 800 + layout.padded * 10


BOUNDS_CHECKED = """
import numpy as np
from hugepool.kernels.binned_layout import GatherBlocks
from support.binned import build_gather, gather
for rows, entries, dtype, bits in ((100, 999, "f8", (3, 4)), (99, 1000, "f4", (4, 7)),
                                   (1, 1, "f8", (0, 0)), (70000, 70001, "f4", (17, 16))):
    x = np.arange(rows).astype(dtype)
    idx = np.random.default_rng(0).integers(0, rows, entries)
    blocks = GatherBlocks(rows, entries, x.itemsize, *bits)
    plan = build_gather(idx, blocks)
    src, cell = plan.arrays["src"], plan.arrays["cell"]
    # gather_line is not covered by the check, so its reads are looked at here.
    for s in range(blocks.sources):
        part = src[cell[s * blocks.targets] : cell[(s + 1) * blocks.targets]]
        assert not len(part) or (s << bits[0]) + int(part.max()) < rows
    out = np.zeros(entries, dtype)
    gather(plan, x, out)
    assert (out == x[idx]).all()
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
