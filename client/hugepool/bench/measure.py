"""Interleaved rounds: every cell once a round, page kinds side by side, in an order of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from hugepool.array import SharedArray, SharedObject
from hugepool.bench.cases import Reference
from hugepool.bench.operands import Placement
from hugepool.pool import Pool
from hugepool.timings import JobTimings
from hugepool_common.errors import JobFailedError
from hugepool_common.messages import View

Progress = Callable[[str], None]
"""Called with what was just measured."""

LIMIT = "limit"
"""Kernel name of cells that measure the machine and not a pattern."""

_SETTLING_RUNS = 8
_FULL_CPU = 0.95
_DISTURBED_RUNS = 3
_REPEATING_NS = 60_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a cell."""

    wall_ns: int
    mapped_bytes: int
    huge_bytes: int
    tlb_misses: int | None
    tlb_note: str
    cpu_share: float = 1.0
    """CPU time over wall time of the worker that had the least of its CPU."""

    @property
    def disturbed(self) -> bool:
        """Whether a worker lost its CPU to somebody else for a part that counts."""
        return self.cpu_share < _FULL_CPU

    @classmethod
    def of(cls, timings: JobTimings) -> Sample:
        """From the reports of a job's parts."""
        return cls(
            timings.wall_ns,
            timings.mapped_bytes,
            timings.huge_bytes,
            timings.tlb_misses,
            timings.tlb_note,
            min((part.cpu_ns / max(1, part.wall_ns) for part in timings.parts), default=1.0),
        )


@dataclass(slots=True)
class Patience:
    """How long a run may take up again what was disturbed: on a busy machine most of it is.

    Parameters
    ----------
    left_ns
        Time that is left for it.
    """

    left_ns: int = _REPEATING_NS

    @property
    def spent(self) -> bool:
        """Whether nothing is taken up again any more."""
        return self.left_ns <= 0

    def note(self, disturbed: int, samples: int) -> str:
        """What a run says of its disturbed samples; empty if it has none."""
        if not disturbed:
            return ""
        tries = f"after {_DISTURBED_RUNS} tries each"
        if self.spent:
            tries = (
                f"after up to {_DISTURBED_RUNS} tries each, none any more when "
                f"{_REPEATING_NS // 10**9} s had gone to trying again"
            )
        return (
            f"{disturbed} of {samples} samples were taken while other processes used the "
            f"workers' CPUs, {tries}"
        )


@dataclass(slots=True)
class Cell:
    """One kernel on one placement with so many workers, and what it took.

    Parameters
    ----------
    name
        Kernel as on the command line, or :data:`LIMIT`.
    kernel, implementation
        What the workers resolve.
    placement
        Where the operands are.
    operands
        Role to object.
    rows
        Partition bounds, one part a worker.
    writes
        Roles that are written.
    """

    name: str
    kernel: str
    implementation: str
    placement: Placement
    operands: dict[str, SharedObject]
    rows: tuple[int, ...]
    writes: tuple[str, ...] = ("out",)
    samples: list[Sample] = field(default_factory=list)
    agreement: str = ""
    nbytes: int = 0
    elements: int = 0
    _seen: set[int] = field(default_factory=set)

    @property
    def workers(self) -> int:
        """Worker processes that share the rows."""
        return len(self.rows) - 1

    def views(self, shared: Collection[str] = ()) -> dict[str, View]:
        """How the workers are to see each role that is not in `shared`."""
        return {role: self.placement.view for role in self.operands if role not in shared}

    def run(
        self, pool: Pool, *, implementation: str = "", shared: Collection[str] = ()
    ) -> JobTimings:
        """Run once.

        Parameters
        ----------
        implementation
            Another one than the cell's, to check its result.
        shared
            Roles to leave shared where the placement would copy them.
        """
        views = self.views(shared)
        timings = pool.run(
            self.kernel,
            self.operands,
            self.rows,
            implementation=implementation or self.implementation,
            views=views,
            # A heap copy is the worker's own scratch: nothing shared is written.
            writes=[role for role in self.writes if views.get(role, "shared") == "shared"],
        )
        self.nbytes, self.elements = timings.nbytes, timings.elements
        return timings

    def settled(self, pool: Pool) -> Sample:
        """Run until only workers took part that had run this cell before.

        A worker's first run of a cell maps and copies operands and loads code; it says
        nothing about the pages.

        Raises
        ------
        JobFailedError
            New workers keep turning up.
        """
        for _ in range(_SETTLING_RUNS):
            timings = self.run(pool)
            took_part = {part.worker for part in timings.parts}
            if took_part <= self._seen:
                return Sample.of(timings)
            self._seen |= took_part
        raise JobFailedError(
            f"the workers of {self} change with every run",
            needed=f"{self.workers} that stay",
            remedy="look for workers that die on the console",
        )

    def undisturbed(self, pool: Pool, patience: Patience) -> Sample:
        """Run again while workers lose their CPUs; the last run counts after three.

        Whether to run again is decided by CPU time and what is left of the patience, which
        do not know the pages.
        """
        sample = self.settled(pool)
        for _ in range(_DISTURBED_RUNS - 1):
            if not sample.disturbed or patience.spent:
                break
            began_ns = time.monotonic_ns()
            sample = self.settled(pool)
            patience.left_ns -= time.monotonic_ns() - began_ns
        return sample

    def least_huge(self) -> tuple[int, int]:
        """Huge and mapped bytes of the round with the smallest share."""
        worst = min(self.samples, key=lambda one: one.huge_bytes / max(1, one.mapped_bytes))
        return worst.huge_bytes, worst.mapped_bytes

    def __str__(self) -> str:
        return (
            f"{self.kernel} ({self.implementation}) on {self.placement.label}, "
            f"{self.workers} worker(s)"
        )


def warm_up(pool: Pool, cells: Sequence[Cell], progress: Progress) -> None:
    """Run every cell unmeasured until it is settled."""
    for cell in cells:
        cell.settled(pool)
        progress(f"warm-up: {cell}")


def verify(pool: Pool, cell: Cell, reference: Reference, where: str) -> None:
    """Compare a cell's result with the reference, before anything of it is timed.

    Raises
    ------
    JobFailedError
        The result is wrong; says where first.
    """
    out = cell.operands["out"]
    assert isinstance(out, SharedArray)
    np.copyto(out.array, reference.wrong_everywhere())
    # x[idx] drops its result when it is timed, and heap results are the workers' own.
    storing = "fancy-store" if cell.implementation == "fancy" else ""
    cell.run(pool, implementation=storing, shared=("out",))
    cell.agreement = reference.check(out.array, where)


def measure(
    pool: Pool, cells: Sequence[Cell], rounds: int, progress: Progress, patience: Patience
) -> None:
    """Run `rounds` rounds over all cells and append a sample to each cell a round."""
    for number in range(rounds):
        for cell in shuffled(cells, number):
            cell.samples.append(cell.undisturbed(pool, patience))
            progress(f"round {number + 1} of {rounds}: {cell}")


def shuffled(cells: Sequence[Cell], number: int) -> list[Cell]:
    """The order of a round, the same in every run.

    Cells that differ in their placement only stand side by side, so that a disturbance
    hits all page kinds. The groups, and the cells in each, are shuffled anew each round:
    turned by one a round, they would keep step with anything that comes back at regular
    times, and one cell would get all of it.
    """
    order = random.Random(number)
    groups: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in cells:
        key = (cell.name, cell.kernel, cell.implementation, cell.workers)
        groups.setdefault(key, []).append(cell)
    lists = list(groups.values())
    order.shuffle(lists)
    for group in lists:
        order.shuffle(group)
    return [cell for group in lists for cell in group]
