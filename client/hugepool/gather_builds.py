"""The forms that a plan of an index could have, and how each is built."""

from __future__ import annotations

import math

from hugepool import forms, partition
from hugepool.array import SharedArray
from hugepool.builds import Build, BuildSession, predict_ns
from hugepool.kernels import available, last_level_cache_bytes
from hugepool.kernels.base import Array, PlanArrays, vector
from hugepool.kernels.binned_layout import ITEM_CODES, GatherBlocks, GatherLayout, gather_head
from hugepool.kernels.gather import INDEX_CODES
from hugepool.phases import Phase
from hugepool.plan_record import PlanSegment
from hugepool.trials import Built, Proposal
from hugepool_common.errors import IndexOutOfRangeError
from hugepool_common.spec import Member

_CHECK_BLOCK = 1 << 16
_BUILD_NS = 35
"""Processor time of bins per index, as it was seen on pages of 2 MiB."""


def gather_forms(
    session: BuildSession, record: PlanSegment, index: SharedArray, x: SharedArray, workers: int
) -> list[Proposal]:
    """What a planned gather could be, the direct form first.

    Parameters
    ----------
    session
        Builds.
    record
        Of the plan; payloads go with it.
    index, x
        What is gathered, and from where.
    workers
        That build and will run.
    """
    entries, rows = math.prod(index.shape), x.shape[0]
    build_cost_ns = _BUILD_NS * entries // workers
    refusal, unwise, predicted_ns, most_nbytes = "", "", 0, 0
    if x.dtype.itemsize not in ITEM_CODES:
        refusal = f"elements of {x.dtype.itemsize} bytes cannot be binned"
    elif "numba" not in available("gather"):
        refusal = "bins need numba"
    else:
        blocks = GatherBlocks.fitting(rows, entries, x.dtype.itemsize)
        most_nbytes = blocks.likely_nbytes
        if 4 * x.nbytes <= last_level_cache_bytes():
            unwise = f"x ({x.nbytes / 1e6:.1f} MB) fits a quarter of the last-level cache"
        elif not entries or blocks.sparse:
            unwise = f"{entries:,} indices are too few for {blocks.cells:,} pairs of blocks"
        else:
            moved = blocks.likely_padded * (blocks.offset_bytes + 2 * blocks.item_bytes)
            moved += (rows + entries) * blocks.item_bytes
            predicted_ns = predict_ns(moved, x.array, workers)
    return [
        Proposal(
            forms.DIRECT,
            lambda: _index(Build(session, record, forms.DIRECT, workers), index, rows),
        ),
        Proposal(
            forms.BINNED,
            lambda: _bins_of_gather(Build(session, record, forms.BINNED, workers), index, x),
            refusal,
            unwise,
            predicted_ns,
            build_cost_ns,
            most_nbytes,
        ),
    ]


def _index(build: Build, index: SharedArray, rows: int) -> Built:
    """A checked copy, uint32 if `rows` allows it, else uint64."""
    kept = build.array(index.shape, "<u4" if rows <= 1 << 32 else "<u8")
    with build.or_nothing(kept):
        with build.timed():
            flat = vector({"idx": index.array.reshape(-1)}, "idx", INDEX_CODES)
            target = kept.array.reshape(-1)
            for start in range(0, len(flat), _CHECK_BLOCK):
                # Copied before it is checked: another process may write to it meanwhile.
                block = flat[start : start + _CHECK_BLOCK].copy()
                if int(block.min()) < 0 or int(block.max()) >= rows:
                    _refuse_index(block, start, rows)
                target[start : start + len(block)] = block
            del target
        return build.done(kept)


def _refuse_index(block: Array, start: int, rows: int) -> None:
    first = int(((block < 0) | (block >= rows)).argmax())
    value, position = int(block[first]), start + first
    raise IndexOutOfRangeError(
        f"index {value} at position {position} is out of range",
        needed=f"0 <= index < {rows}",
        had=str(value),
        where="idx",
        position=position,
    )


def _bins_of_gather(build: Build, index: SharedArray, x: SharedArray) -> Built:
    entries = math.prod(index.shape)
    blocks = GatherBlocks.fitting(x.shape[0], entries, x.dtype.itemsize)
    rows = partition.by_rows(blocks.targets, build.workers)
    session = build.session
    head_words = gather_head(blocks)
    with (
        session._spare("head", head_words.shape, "<i8") as head,
        session._spare("counts", (blocks.cells,), "<u4") as counts,
    ):
        head.array[:] = head_words
        counting = {"idx": index, "head": head, "counts": counts}
        build.run(Phase("count_cells", counting, rows, frozenset({"counts"})))
        layout = GatherLayout.counted(blocks, counts.array)
        payload = build.payload(index.shape, x.spec.dtype, layout.parts)
        with build.or_nothing(payload):
            with build.timed():
                layout.begin(PlanArrays(payload.arrays), counts.array)
            filling = {"idx": index, "plan": payload}
            build.run(Phase("fill_cells", filling, rows, frozenset({"plan"})))
            return build.done(payload, Member("bins", x.spec.dtype, layout.padded))
