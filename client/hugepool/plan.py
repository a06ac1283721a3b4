"""``plan_gather``: an index array analysed once, then used many times.

A plan gathers directly, or through bins (``kernels.binned``), whichever is faster
on this machine for this index and this x. It measures instead of guessing: how long
the direct gather takes on a sample, how fast memory is copied, and, once bins are
built, both ways end to end in the caller's own runs, whose results are the same.
All times are processor time of the calling thread: kernels do not wait, so on an idle
machine it is the time that passes, and on a busy one it still compares the two ways.
"""

from __future__ import annotations

import math
import operator
import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hugepool.kernels import Operands, Work, resolve
from hugepool.kernels.base import (
    Array,
    check_length,
    dense,
    last_level_cache_bytes,
    refuse_overlap,
    vector,
)
from hugepool.kernels.binned import BinnedGather, compile_binned
from hugepool.kernels.binned_layout import (
    ITEM_CODES,
    GatherBlocks,
    aligned_empty,
    refuse_index,
)
from hugepool.kernels.compiler import import_numba
from hugepool.kernels.gather import INDEX_CODES
from hugepool.kernels.samples import copy_ns_per_byte, gather_ns_per_index
from hugepool_common.errors import (
    InvalidSpecError,
    MissingExtraError,
)
from hugepool_common.pages import read_host
from hugepool_common.spec import ITEM_SIZES

DIRECT = "direct"
BINNED = "binned"

_CHECK_BLOCK = 1 << 16
_BUILD_NS_PER_INDEX = 20
"""Expected before a build: 6 to 40 were seen for random indices on pages of 2 MiB."""
_SLOWER_THAN_COPY = 1.5
"""The two phases reach about two thirds of the bandwidth of a plain copy."""
_TRIAL = (BINNED, DIRECT, BINNED)
"""Runs after a build. The first is not timed: it is the first to touch its arrays."""
_MOST_MEMORY = 0.8


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a plan does and why.

    Parameters
    ----------
    choice
        ``direct`` or ``binned``: what the next run does, unless a trial is under way.
    settled
        False while later runs may still change it.
    reason
        Why, in one sentence.
    rows, entries
        Elements of x, and of the index.
    runs
        Runs so far.
    nbytes
        Bytes held: the index, and, if built, layout, bins and scratch.
    build_ns
        Processor time of the build; 0 if there was none.
    direct_ns, binned_ns
        The fastest whole run each way, processor time; None if none was measured.
    predicted_direct_ns, predicted_binned_ns
        The same from the sample, before a build; None if none was taken.
    break_even
        Runs after which the build is paid for; None if it never is or is not known.
    """

    choice: str
    settled: bool
    reason: str
    rows: int
    entries: int
    runs: int
    nbytes: int
    build_ns: int
    direct_ns: int | None
    binned_ns: int | None
    predicted_direct_ns: int | None
    predicted_binned_ns: int | None
    break_even: int | None

    def __str__(self) -> str:
        lines = [
            f"gather of {self.entries:,} from {self.rows:,}: {self.choice}"
            + ("" if self.settled else " (not settled)"),
            f"  why: {self.reason}",
            f"  holds {self.nbytes / 1e6:,.1f} MB",
        ]
        for way, measured, predicted in (
            (DIRECT, self.direct_ns, self.predicted_direct_ns),
            (BINNED, self.binned_ns, self.predicted_binned_ns),
        ):
            times = [
                f"{word} {ns / 1e6:,.2f} ms ({ns / max(self.entries, 1):.2f} ns each)"
                for word, ns in (("measured", measured), ("predicted", predicted))
                if ns is not None
            ]
            if times:
                lines.append(f"  {way}: {', '.join(times)}")
        if self.build_ns:
            even = "never" if self.break_even is None else f"after {self.break_even} runs"
            lines.append(f"  built in {self.build_ns / 1e6:,.1f} ms; paid for {even}")
        return "\n".join(lines)


def plan_gather(
    idx: Array, rows: int, *, dtype: npt.DTypeLike, uses: int | None = None
) -> GatherPlan:
    """Check an index once and plan gathers with it.

    Parameters
    ----------
    idx
        Integers of 32 or 64 bits, any shape, C-contiguous, each in ``[0, rows)``. It
        is copied: later writes to it change nothing.
    rows
        Elements of the 1-D arrays to gather from.
    dtype
        Their dtype. Only elements of 4 and 8 bytes can go through bins.
    uses
        How many runs there will be, if known. If not, bins are built once the time
        they would have saved so far has reached the time to build them.

    Raises
    ------
    IndexOutOfRangeError
        An index is negative or not below `rows`; the first one is named.
    InvalidSpecError
        `idx` has another dtype or layout, or `rows`, `dtype` or `uses` makes no sense.
    """
    return GatherPlan(idx, rows, dtype=dtype, uses=uses)


class GatherPlan:
    """Gathers ``x[idx]`` for one ``idx``; made by :func:`plan_gather`.

    One run at a time: a second thread waits for the first.
    """

    def __init__(
        self, idx: Array, rows: int, *, dtype: npt.DTypeLike, uses: int | None = None
    ) -> None:
        self._rows = _count("rows", rows, 0)
        self._uses = None if uses is None else _count("uses", uses, 1)
        self._dtype = np.dtype(dtype)
        if self._dtype.str not in ITEM_SIZES:
            raise InvalidSpecError(
                f"dtype {self._dtype} cannot be gathered", needed=f"one of {' '.join(ITEM_SIZES)}"
            )
        checked = dense({"idx": idx}, "idx", least_axes=0)
        self._shape = checked.shape
        self._idx = _compact(checked, self._rows)
        self._lock = threading.Lock()
        self._direct = resolve("gather")
        self._bins: BinnedGather | None = None
        self._trial: list[str] = []
        self._predicted: tuple[int, int] | None = None
        self._measured: dict[str, int] = {}
        self._runs = 0
        self._lost_ns = 0
        self._build_ns = 0
        refusal = self._never_bins()
        self._settled = refusal is not None
        self._reason = refusal or "nothing measured before the first run"

    @property
    def nbytes(self) -> int:
        """Bytes held: the index, and, if built, layout, bins and scratch."""
        return self._idx.nbytes + (self._bins.nbytes if self._bins else 0)

    def run(self, x: Array, out: Array) -> Work:
        """Write ``x[idx]`` to `out`, bit for bit.

        Parameters
        ----------
        x
            1-D, of the plan's length and dtype, C-contiguous, aligned.
        out
            The same dtype, the shape of the index, C-contiguous, aligned, writable,
            apart from `x`.

        Raises
        ------
        InvalidSpecError
            An array does not fit; nothing is written then.
        """
        source, target = self._checked(x, out)
        with self._lock:
            self._consider(source)
            way = self._trial[0] if self._trial else (BINNED if self._bins else DIRECT)
            started_ns = time.thread_time_ns()
            work = self._run(way, source, target)
            self._record(way, time.thread_time_ns() - started_ns)
            return work

    def build(self) -> None:
        """Build the bins now, whatever is predicted. The runs that follow still decide.

        Raises
        ------
        InvalidSpecError
            Elements are not of 4 or 8 bytes.
        MissingExtraError
            numba is not installed.
        NotEnoughMemoryError
            The bins do not fit into the memory that is free.
        """
        import_numba()
        with self._lock:
            if self._bins is None:
                self._build("asked for")

    def describe(self) -> PlanReport:
        """What was chosen and why, what it holds, and what was measured."""
        with self._lock:
            direct, binned = (self._measured.get(way) for way in (DIRECT, BINNED))
            predicted_direct, predicted_binned = self._predicted or (None, None)
            return PlanReport(
                choice=BINNED if self._bins else DIRECT,
                settled=self._settled,
                reason=self._reason,
                rows=self._rows,
                entries=len(self._idx),
                runs=self._runs,
                nbytes=self.nbytes,
                build_ns=self._build_ns,
                direct_ns=direct,
                binned_ns=binned,
                predicted_direct_ns=predicted_direct,
                predicted_binned_ns=predicted_binned,
                break_even=_break_even(self._build_ns, direct, binned),
            )

    def _checked(self, x: Array, out: Array) -> tuple[Array, Array]:
        operands: Operands = {"x": x, "out": out}
        source = vector(operands, "x", (self._dtype.str,))
        check_length(source, "x", self._rows)
        target = dense(operands, "out", least_axes=0, writable=True)
        if target.shape != self._shape:
            raise InvalidSpecError(
                "out has another shape than the index",
                needed=str(self._shape),
                had=str(target.shape),
                where="out",
            )
        flat = vector({"out": target.reshape(-1)}, "out", (self._dtype.str,), writable=True)
        refuse_overlap(flat, x=source)
        return source, flat

    def _never_bins(self) -> str | None:
        """Why bins are out of the question, if they are."""
        nbytes, entries = self._rows * self._dtype.itemsize, len(self._idx)
        if self._dtype.itemsize not in ITEM_CODES:
            return f"elements of {self._dtype.itemsize} bytes cannot be binned"
        if 2 * nbytes <= last_level_cache_bytes():
            return f"x ({nbytes / 1e6:.1f} MB) fits half of the last-level cache"
        blocks = GatherBlocks.fitting(self._rows, entries, self._dtype.itemsize)
        if not entries or blocks.sparse:
            return f"{entries:,} indices are too few for {blocks.cells:,} pairs of blocks"
        if self._direct.implementation != "numba":
            return "bins need numba"
        room = _free_bytes()
        if blocks.likely_nbytes > room:
            return f"bins need {blocks.likely_nbytes / 1e6:,.0f} MB of {room / 1e6:,.0f} MB free"
        return None

    def _consider(self, x: Array) -> None:
        """Predict on the first run; build when that pays."""
        if self._settled or self._bins is not None:
            return
        if self._predicted is None:
            self._predicted = self._predict(x)
        direct_ns, binned_ns = self._predicted
        cost_ns = _BUILD_NS_PER_INDEX * len(self._idx)
        gain_ns = direct_ns - binned_ns
        if gain_ns <= 0:
            self._settle("a sample predicts no gain from bins")
        elif self._uses is None:
            self._reason = "bins are built once the time lost without them reaches their cost"
            if self._lost_ns >= cost_ns:
                self._try_build("the time lost without them reached their cost")
        elif (self._uses - self._runs) * gain_ns > cost_ns:
            self._try_build(f"{self._uses} uses are predicted to pay for them")
        else:
            self._settle(f"{self._uses} uses are predicted not to pay for bins")

    def _try_build(self, reason: str) -> None:
        try:
            self._build(reason)
        except (MemoryError, MissingExtraError) as error:
            self._settle(f"bins were not built: {error}")

    def _build(self, reason: str) -> None:
        blocks = GatherBlocks.fitting(self._rows, len(self._idx), self._dtype.itemsize)
        compile_binned(blocks, self._idx.dtype)
        started_ns = time.thread_time_ns()
        self._bins = BinnedGather.built(self._idx, blocks, _free_bytes())
        self._build_ns = time.thread_time_ns() - started_ns
        self._trial = list(_TRIAL)
        self._settled = False
        self._reason = f"bins were built ({reason}); the next runs compare both ways"

    def _settle(self, reason: str) -> None:
        self._settled = True
        self._reason = reason

    def _run(self, way: str, x: Array, out: Array) -> Work:
        if way == BINNED and self._bins is not None:
            return self._bins(x, out)
        return self._direct({"x": x, "idx": self._idx, "out": out}, 0, len(self._idx))

    def _record(self, way: str, elapsed_ns: int) -> None:
        self._runs += 1
        first_of_trial = len(self._trial) == len(_TRIAL)
        self._trial = self._trial[1:]
        if not first_of_trial:
            fastest = self._measured.get(way, elapsed_ns)
            self._measured[way] = min(fastest, elapsed_ns)
        if self._bins is None and self._predicted is not None:
            self._lost_ns += max(0, elapsed_ns - self._predicted[1])
        if self._bins is not None and not self._trial and not self._settled:
            self._keep_the_faster()

    def _keep_the_faster(self) -> None:
        direct_ns, binned_ns = (self._measured.get(way) for way in (DIRECT, BINNED))
        if direct_ns is None or binned_ns is None:
            self._trial = list(_TRIAL)  # an interrupt between build and trial lost it
        elif binned_ns < direct_ns:
            self._settle(f"binned was measured {direct_ns / binned_ns:.2f} times as fast as direct")
        else:
            self._settle(f"direct was measured {binned_ns / direct_ns:.2f} times as fast as binned")
            self._bins = None

    def _predict(self, x: Array) -> tuple[int, int]:
        """Time of a run each way: direct from a sample, binned from its bytes and a copy."""
        direct_ns = gather_ns_per_index(self._direct, x, self._idx) * len(self._idx)
        blocks = GatherBlocks.fitting(self._rows, len(self._idx), x.itemsize)
        moved = blocks.likely_padded * (blocks.offset_bytes + 2 * x.itemsize)
        nbytes = moved + (blocks.rows + blocks.entries) * x.itemsize
        return int(direct_ns), int(nbytes * copy_ns_per_byte(x) * _SLOWER_THAN_COPY)


def _count(name: str, value: int, least: int) -> int:
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise InvalidSpecError(
            f"{name} is no such count", needed=f"{least} or more", had=f"{value}"
        )
    return found


def _compact(idx: Array, rows: int) -> Array:
    """A flat, checked, read-only copy, uint32 if `rows` allows it, else uint64."""
    flat = vector({"idx": idx.reshape(-1)}, "idx", INDEX_CODES)
    kept = aligned_empty(len(flat), np.uint32 if rows <= 1 << 32 else np.uint64)
    for start in range(0, len(flat), _CHECK_BLOCK):
        # Copied before it is checked: another process may write to idx meanwhile.
        block = flat[start : start + _CHECK_BLOCK].copy()
        if int(block.min()) < 0 or int(block.max()) >= rows:
            first = int(((block < 0) | (block >= rows)).argmax())
            value, position = int(block[first]), start + first
            refuse_index(position, value, rows)
        kept[start : start + len(block)] = block
    kept.flags.writeable = False
    return kept


def _break_even(build_ns: int, direct_ns: int | None, binned_ns: int | None) -> int | None:
    if not build_ns or direct_ns is None or binned_ns is None or binned_ns >= direct_ns:
        return None
    return math.ceil(build_ns / (direct_ns - binned_ns))


def _free_bytes() -> int:
    """What this process may take without driving others, or itself, out of memory."""
    host = read_host()
    room = host.memory_available_bytes
    if host.memory_limit is not None:
        room = min(room, host.memory_limit.headroom_bytes)
    return int(room * _MOST_MEMORY)
