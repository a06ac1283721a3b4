"""Whatever the index and the blocks, a binned gather is x[idx], or names the first bad index."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hugepool.kernels.binned import EmptyBins, FillBins
from hugepool.kernels.binned_layout import GatherBlocks, GatherLayout, aligned_empty
from hugepool_common.errors import IndexOutOfRangeError
from support.binned import build_gather
from support.examples import examples
from support.extras import need

Array = np.ndarray[Any, Any]
quick = settings(deadline=None, max_examples=examples(150))


@pytest.fixture(autouse=True, scope="module")
def numba() -> None:
    need("numba")


@st.composite
def indices(draw: st.DrawFn) -> tuple[int, Array]:
    """An index array into so many rows: uniform, skewed to few rows, or in order."""
    rows = draw(st.integers(1, 300))
    entries = draw(st.integers(0, 700))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["uniform", "skewed", "ordered", "one"]))
    if kind == "uniform":
        idx = rng.integers(0, rows, entries)
    elif kind == "skewed":
        idx = np.minimum(rng.zipf(1.3, entries) - 1, rows - 1)
    elif kind == "ordered":
        idx = np.arange(entries) % rows
    else:
        idx = np.full(entries, draw(st.sampled_from([0, rows - 1])))
    return rows, idx.astype(draw(st.sampled_from(["<i4", "<i8", "<u4", "<u8"])))


@st.composite
def cuts(draw: st.DrawFn, blocks: int) -> list[tuple[int, int]]:
    """Ranges that cover all blocks once, in any order."""
    inner = draw(st.lists(st.integers(0, blocks), max_size=5))
    return draw(st.permutations(list(itertools.pairwise(sorted([0, *inner, blocks])))))


bits = st.integers(0, 9)
widths = st.sampled_from(["<u4", "<u8"])


@given(given_index=indices(), source_bits=bits, target_bits=bits, dtype=widths, data=st.data())
@quick
def test_phases_and_builds_in_parts_are_the_whole(
    given_index: tuple[int, Array],
    source_bits: int,
    target_bits: int,
    dtype: str,
    data: st.DataObject,
) -> None:
    rows, idx = given_index
    blocks = GatherBlocks(rows, len(idx), np.dtype(dtype).itemsize, source_bits, target_bits)
    serial = build_gather(idx, blocks)
    plan = build_gather(idx, blocks, data.draw(cuts(blocks.targets)))
    layout = GatherLayout.read(plan)
    assert layout.nbytes + layout.bins_nbytes <= blocks.most_nbytes
    for role, array in serial.arrays.items():
        assert (array == plan.arrays[role]).all(), role

    x = np.random.default_rng(3).integers(1, 1 << 31, rows).astype(dtype)
    x.flags.writeable = False
    spare = data.draw(st.integers(0, 9))
    bins = aligned_empty(layout.padded + spare, dtype)
    bins[layout.padded :] = 7
    offset = data.draw(st.integers(0, 16))
    whole = aligned_empty(len(idx) + 32, dtype)
    whole[:] = 0
    out = whole[offset : offset + len(idx)]
    for start, stop in data.draw(cuts(blocks.cells)):
        FillBins()({"plan": plan, "x": x, "bins": bins}, start, stop)
    assert (bins[layout.padded :] == 7).all()
    targets: dict[str, Any] = {"plan": plan, "bins": bins, "out": out}
    first, *others = data.draw(cuts(blocks.targets))
    EmptyBins()(targets, *first)
    low, high = (min(bound << target_bits, len(idx)) for bound in first)
    assert (out[low:high] == x[idx[low:high]]).all()
    assert not whole[: offset + low].any()
    assert not whole[offset + high :].any()
    for start, stop in others:
        EmptyBins()(targets, start, stop)
    assert (out == x[idx]).all()
    assert np.count_nonzero(whole) == len(idx)


@given(given_index=indices(), faults=st.lists(st.integers(0, 699), min_size=1), data=st.data())
@quick
def test_the_first_bad_index_is_named_wherever_it_is(
    given_index: tuple[int, Array], faults: list[int], data: st.DataObject
) -> None:
    rows, idx = given_index
    faults = [place for place in faults if place < len(idx)]
    span = np.iinfo(idx.dtype)
    for place in faults:
        idx[place] = data.draw(
            st.one_of(st.integers(rows, span.max), st.integers(span.min, -1))
            if span.min < 0
            else st.integers(rows, span.max)
        )
    blocks = GatherBlocks(rows, len(idx), 8, 4, 5)
    if not faults:
        build_gather(idx, blocks)
        return
    with pytest.raises(IndexOutOfRangeError) as caught:
        build_gather(idx, blocks)
    assert caught.value.position == min(faults)
    assert caught.value.had == str(idx[min(faults)])
