"""Contenders for one computation on the same data, timed in interleaved rounds."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from hugepool.bench.cases import Reference
from hugepool.bench.statistics import Speedup, Spread, paired_speedup, quantile
from hugepool.kernels import last_level_cache_bytes
from hugepool.timings import JobTimings
from hugepool_common.errors import HugepoolError, JobFailedError

Group = Literal["hugepool", "peer", "limit"]

OWN_PAGES = "own"
"""Page kind of a peer that copies its inputs to memory of its own."""

_FULL_CPU = 0.95
_TRIES = 3
_SHORT_NS = 20_000_000
_SETTLING_RUNS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    Parameters
    ----------
    wall_ns
        What counts. Peers: first start to last stop of their processes. A job of ours: the
        same between the kernels' reports. A crew's step, and whatever makes its own
        result: the whole call.
    call_ns
        The whole call as the caller sees it, the way to the workers and back included.
    cpu_share
        CPU time over wall time of the process that had the least of its CPU.
    workers
        Which took part.
    """

    wall_ns: int
    call_ns: int
    cpu_share: float = 1.0
    workers: frozenset[int] = frozenset()

    @property
    def disturbed(self) -> bool:
        """Whether a process lost its CPU to somebody else for a part that counts."""
        return self.cpu_share < _FULL_CPU

    @classmethod
    def of_job(cls, timings: JobTimings, call_ns: int, *, whole_call: bool = False) -> Sample:
        """From the reports of a job, or of all jobs of a planned run."""
        return cls(
            call_ns if whole_call else timings.wall_ns,
            call_ns,
            min((part.cpu_ns / max(1, part.wall_ns) for part in timings.parts), default=1.0),
            frozenset(part.worker for part in timings.parts),
        )


@dataclass(slots=True)
class Contender:
    """One way to compute it on one page kind with so many processes.

    Parameters
    ----------
    name, group, pages, workers
        Who it is. A ``limit`` measures the machine.
    result
        ``existing``: written to an array that is there; ``fresh``: a new one every time;
        empty for limits.
    run
        One run.
    store
        The same, after which the result is in `out`.
    out
        That array.
    reference
        What must be in it; None for limits.
    prepare_ns
        What had to be done once before.
    note
        For the table.
    """

    name: str
    group: Group
    pages: str
    workers: int
    result: str
    run: Callable[[], Sample]
    store: Callable[[], object] | None = None
    out: npt.NDArray[Any] | None = None
    reference: Reference | None = None
    prepare_ns: int = 0
    note: str = ""
    agreement: str = ""
    samples: list[Sample] = field(default_factory=list)

    def check(self) -> None:
        """Compute into a spoilt `out` and compare, before anything of it is timed.

        Raises
        ------
        JobFailedError
            The result is wrong.
        """
        if self.store is None or self.out is None or self.reference is None:
            return
        self.out.fill(np.nan)
        self.store()
        self.agreement = self.reference.check(self.out, str(self))

    def settle(self) -> Sample:
        """Run until only processes took part that had run this before.

        A first run maps operands, touches them and loads code.
        """
        seen: set[int] = set()
        for _ in range(_SETTLING_RUNS):
            sample = self.run()
            if sample.workers <= seen:
                break
            seen |= sample.workers
        return sample

    def undisturbed(self) -> Sample:
        """Run again while processes lose their CPUs; the last of three runs counts.

        Decided by CPU time alone, which does not know who is measured.
        """
        for _ in range(_TRIES):
            sample = self.run()
            if sample.wall_ns < _SHORT_NS:
                # Whoever ran before emptied the caches: what fits them is to be found there.
                sample = self.run()
            if not sample.disturbed:
                break
        return sample

    def __str__(self) -> str:
        return f"{self.name}, {self.pages}, {self.workers} process(es)"


class Entry(msgspec.Struct, frozen=True):
    """What is told of a contender.

    Parameters
    ----------
    samples_ns, call_ns
        Of every round: what counts, and the whole call.
    disturbed
        Rounds taken while a process had less than 95 % of its CPU, after three tries.
    p99_ns
        Of the samples; worth reading where there are hundreds.
    per_item_ns
        Of what counts, for each gather or stored entry.
    gb_per_s
        Compulsory bytes over the median time, 1e9 bytes per second.
    percent_of_stream
        Compulsory bytes in the fastest round, as a share of the best STREAM rate
        measured in the same rounds on the same pages with as many processes.
    percent_of_lines
        Items in the fastest round as a share of the rate of random lines measured so.
        Above 100 where less than a line is moved for each item.
    agreement
        How well the result agreed.
    """

    name: str
    group: Group
    pages: str
    workers: int
    result: str
    samples_ns: tuple[int, ...]
    call_ns: tuple[int, ...]
    disturbed: int
    p99_ns: float
    per_item_ns: Spread
    gb_per_s: float
    percent_of_stream: float | None
    percent_of_lines: float | None
    agreement: str
    prepare_ns: int
    note: str


class Ratio(msgspec.Struct, frozen=True):
    """Time of a peer over ours, round by round."""

    ours: str
    ours_pages: str
    peer: str
    peer_pages: str
    peer_result: str
    workers: int
    speedup: Speedup


class Scaling(msgspec.Struct, frozen=True):
    """Time with one process over the time with several, round by round."""

    name: str
    pages: str
    workers: int
    speedup: Speedup


class Missing(msgspec.Struct, frozen=True):
    """What was not measured, and why."""

    name: str
    reason: str
    pages: str = ""
    workers: int = 0

    def __str__(self) -> str:
        where = f" on {self.pages}" if self.pages else ""
        where += f" with {self.workers}" if self.workers else ""
        return f"{self.name}{where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Work:
    """What one run computes, for rates.

    Parameters
    ----------
    items, unit
        Gathers or stored entries.
    nbytes
        Bytes that must be moved through a cold cache at least.
    x_nbytes
        Of the vector that is reached at random.
    lines
        Random lines that one run of the limit of that name reads.
    stream_nbytes
        Bytes that one run of each STREAM limit moves, by name.
    """

    items: int
    unit: str
    nbytes: int
    x_nbytes: int
    lines: int
    stream_nbytes: dict[str, int]


def progress(text: str) -> None:
    """One line on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def verified(contenders: Sequence[Contender], missing: list[Missing]) -> list[Contender]:
    """Those whose results are right. A peer that is not is left out; one of ours ends the run.

    Raises
    ------
    JobFailedError
        A result of ours is wrong.
    """
    kept = []
    for contender in contenders:
        try:
            contender.check()
        except JobFailedError as error:
            if contender.group != "peer":
                raise
            missing.append(_missing(contender, str(error)))
            continue
        except HugepoolError as error:
            missing.append(_missing(contender, str(error)))
            continue
        kept.append(contender)
    return kept


def measure(contenders: Sequence[Contender], rounds: int) -> None:
    """Warm up, then run every contender once a round and keep its samples."""
    for contender in contenders:
        contender.settle()
    progress(f"warm: {len(contenders)} contenders")
    for number in range(rounds):
        for contender in _shuffled(contenders, number):
            contender.samples.append(contender.undisturbed())
        progress(f"round {number + 1} of {rounds}")


def _shuffled(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of a round: page kinds side by side, all else in an order of its own.

    A disturbance lasts longer than a run, so those that are compared most stand together;
    an order that is new each time keeps step with nothing periodic.
    """
    order = random.Random(number)
    groups: dict[tuple[str, int], list[Contender]] = {}
    for contender in contenders:
        groups.setdefault((contender.name, contender.workers), []).append(contender)
    lists = list(groups.values())
    order.shuffle(lists)
    for group in lists:
        order.shuffle(group)
    return [contender for group in lists for contender in group]


def entries(contenders: Sequence[Contender], work: Work) -> list[Entry]:
    """Summarise what was measured."""
    return [
        _entry(contender, work, _limits(contender, contenders, work)) for contender in contenders
    ]


def _limits(
    contender: Contender, contenders: Sequence[Contender], work: Work
) -> tuple[float | None, float | None]:
    """Best STREAM rate in bytes per ns, and ns per random line, for the same pages and workers.

    None where what is computed on fits the cache, which these limits do not know.
    """
    near = [
        one
        for one in contenders
        if one.group == "limit" and (one.pages, one.workers) == (contender.pages, contender.workers)
    ]
    best = {one.name: min(sample.wall_ns for sample in one.samples) for one in near}
    rates = [
        work.stream_nbytes[name] / ns for name, ns in best.items() if name in work.stream_nbytes
    ]
    lines = [ns / work.lines for name, ns in best.items() if name not in work.stream_nbytes]
    cache = last_level_cache_bytes()
    return (
        max(rates, default=None) if work.nbytes > 2 * cache else None,
        min(lines, default=None) if work.x_nbytes > cache else None,
    )


def _entry(contender: Contender, work: Work, limits: tuple[float | None, float | None]) -> Entry:
    walls = tuple(sample.wall_ns for sample in contender.samples)
    items, nbytes = work.items, work.nbytes
    if contender.group == "limit":
        items = work.lines
        nbytes = work.stream_nbytes.get(contender.name, 64 * work.lines)
    rate, line_ns = limits if contender.group != "limit" else (None, None)
    fastest = min(walls)
    return Entry(
        contender.name,
        contender.group,
        contender.pages,
        contender.workers,
        contender.result,
        walls,
        tuple(sample.call_ns for sample in contender.samples),
        sum(sample.disturbed for sample in contender.samples),
        quantile(sorted(walls), 0.99),
        Spread.of([wall / max(1, items) for wall in walls]),
        nbytes / statistics.median(walls),
        None if rate is None else 100 * nbytes / fastest / rate,
        None if line_ns is None else 100 * line_ns * items / fastest,
        contender.agreement,
        contender.prepare_ns,
        contender.note,
    )


def ratios(found: Sequence[Entry]) -> list[Ratio]:
    """Every contender of ours against every peer with as many processes.

    On the same pages; ours on 2M also against peers on 4K; a peer with memory of its
    own against all.
    """
    made = []
    for ours in found:
        for peer in found:
            fits = peer.pages in (ours.pages, OWN_PAGES) or (ours.pages, peer.pages) == ("2M", "4K")
            if (ours.group, peer.group) != ("hugepool", "peer") or ours.workers != peer.workers:
                continue
            if fits:
                made.append(
                    Ratio(
                        ours.name,
                        ours.pages,
                        peer.name,
                        peer.pages,
                        peer.result,
                        ours.workers,
                        paired_speedup(peer.samples_ns, ours.samples_ns),
                    )
                )
    return made


def scalings(found: Sequence[Entry]) -> list[Scaling]:
    """How each contender, and each limit, gains from more processes."""
    single = {(one.name, one.pages): one for one in found if one.workers == 1}
    return [
        Scaling(
            one.name,
            one.pages,
            one.workers,
            paired_speedup(single[one.name, one.pages].samples_ns, one.samples_ns),
        )
        for one in found
        if one.workers > 1 and (one.name, one.pages) in single
    ]


def _missing(contender: Contender, reason: str) -> Missing:
    return Missing(contender.name, reason, contender.pages, contender.workers)
