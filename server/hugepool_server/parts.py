"""Jobs, the parts they consist of, and the workers that are at them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from hugepool_common.messages import JobDone, PartOperand, Timing
from hugepool_server.leases import Asker, Session

_LABEL_BYTES = 64
_NOTE_BYTES = 96


class PartState(Enum):
    """How far a part is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Part:
    """One row partition of a job: rows ``[row_start, row_stop)``.

    Parameters
    ----------
    number, row_start, row_stop
        Which.
    state
        How far it is.
    epoch
        Rises whenever the part is taken from a worker: it is sent out under its epoch,
        and only a report of that epoch counts.
    losses
        Workers that ended while they were at it.
    timing
        Its result.
    """

    number: int
    row_start: int
    row_stop: int
    state: PartState = PartState.PENDING
    epoch: int = 1
    losses: int = 0
    timing: Timing | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A kernel over row partitions, from its submission to its end.

    Parameters
    ----------
    number, asker, kernel, implementation, operands, parts, standing
        As submitted.
    once
        Whether no part of it may be run a second time.
    progress
        Whether its submitter is told of each part done.
    started_ns
        When its first part was sent.
    waiting_ns
        Since when nobody can take up a part of it; None if that is not so.
    over
        Whether it is done or has failed.
    """

    number: int
    asker: Asker
    kernel: str
    implementation: str
    operands: tuple[PartOperand, ...]
    parts: tuple[Part, ...]
    standing: bool
    once: bool
    progress: bool = False
    started_ns: int | None = None
    waiting_ns: int | None = None
    over: bool = False

    def __repr__(self) -> str:
        done = sum(part.state is PartState.DONE for part in self.parts)
        return f"<Job {self.number} {self.kernel}: {done} of {len(self.parts)} parts done>"

    @property
    def done(self) -> bool:
        """Whether every part is."""
        return all(part.state is PartState.DONE for part in self.parts)

    @property
    def running(self) -> bool:
        """Whether a worker is at one of its parts."""
        return any(part.state is PartState.RUNNING for part in self.parts)

    @property
    def pending(self) -> list[Part]:
        """The parts that wait for a worker."""
        return [part for part in self.parts if part.state is PartState.PENDING]

    def segment_ids(self, *, written: bool = False) -> set[int]:
        """The segments that it uses, or only those that it writes."""
        return {op.segment.segment_id for op in self.operands if op.writable or not written}

    def result(self, now_ns: int) -> JobDone:
        """The reply to its submitter, when it is done."""
        timings = tuple(part.timing for part in self.parts if part.timing is not None)
        assert self.started_ns is not None, self
        return JobDone(self.number, timings, now_ns - self.started_ns)


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """A part in the hands of a worker, under the epoch that it was sent with."""

    worker: Worker
    job: Job
    part: Part
    epoch: int

    @property
    def stale(self) -> bool:
        """Whether its report will be refused: the part was taken back, or the job is over."""
        return self.job.over or self.epoch != self.part.epoch

    @property
    def written(self) -> set[int]:
        """The segments that the worker may write until it reports or ends."""
        return self.job.segment_ids(written=True)

    def is_named(self, job: int, part: int, epoch: int) -> bool:
        """Whether a report names this assignment."""
        return (job, part, epoch) == (self.job.number, self.part.number, self.epoch)


@dataclass(slots=True, eq=False)
class Worker:
    """A client process that runs parts, one at a time.

    Parameters
    ----------
    number
        Unique in its coordinator.
    session
        Its connection.
    cpus
        The CPUs that it says it runs on.
    running
        What it is at; None if idle.
    stopped_ns
        When its process was first seen stopped at that; None if it runs.
    parts_done
        Parts that it finished, of jobs that were live then.
    """

    number: int
    session: Session
    cpus: tuple[int, ...]
    running: Assignment | None = None
    stopped_ns: int | None = None
    parts_done: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Unheard:
    """A worker of an earlier coordinator, which may be at a part that nobody knows any more.

    Parameters
    ----------
    session
        Its session, which was taken over.
    written
        The segments that it may write until it registers again or ends.
    """

    session: Session
    written: frozenset[int]


def clipped(timing: Timing, **known: int) -> Timing:
    """A report as it is kept: short enough that 128 fit a frame.

    Parameters
    ----------
    timing
        As a client sent it.
    known
        Fields that the coordinator knows itself, in place of what the client says.
    """
    return msgspec.structs.replace(
        timing,
        label=cut(timing.label, _LABEL_BYTES),
        implementation=cut(timing.implementation, _LABEL_BYTES),
        tlb_note=cut(timing.tlb_note, _NOTE_BYTES),
        **known,
    )


def cut(text: str, limit_bytes: int) -> str:
    """As much of a text as fits, in whole characters."""
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")
