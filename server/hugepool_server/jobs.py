"""Jobs, their parts, and the workers that run them.

A part is sent under an *epoch*, a number that only rises. When the worker that
has it goes, the part returns to the queue under the next epoch, so that a report
is taken once, from the worker that it was sent to, and from no other.

A job may end before its parts do: it failed elsewhere, was cancelled, or its
client is gone. A worker that is still at such a part cannot be interrupted and
may still write to the operands, so it stays busy until it reports, and no part
that uses a segment which it writes is sent out until then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import msgspec

from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError, NoWorkersError
from hugepool_common.messages import (
    CREW_KERNEL,
    JobDone,
    PartOperand,
    RunPart,
    SubmitJob,
    Timing,
    WorkerInfo,
)
from hugepool_server.leases import Asker, Session

MAX_LOSSES = 3
"""Workers that may die at one part before the part is blamed for it."""

MAX_CPU = 65_535
"""Largest CPU number of a worker."""

TIMINGS_KEPT = 32
"""Newest timings that are told by Stats."""

_CPUS_TOLD = 4096
_LABEL_BYTES = 64
_KERNEL_BYTES = 24
_NOTE_BYTES = 96


class PartState(Enum):
    """How far a part is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Part:
    """One row partition of a job: rows ``[row_start, row_stop)``."""

    number: int
    row_start: int
    row_stop: int
    state: PartState = PartState.PENDING
    epoch: int = 1
    losses: int = 0
    timing: Timing | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A kernel over row partitions, from its submission to its end."""

    number: int
    asker: Asker
    kernel: str
    implementation: str
    operands: tuple[PartOperand, ...]
    parts: tuple[Part, ...]
    standing: bool = False
    started_ns: int | None = None

    def __repr__(self) -> str:
        done = sum(part.state is PartState.DONE for part in self.parts)
        return f"<Job {self.number} {self.kernel}: {done} of {len(self.parts)} parts done>"

    @property
    def done(self) -> bool:
        """Whether every part is."""
        return all(part.state is PartState.DONE for part in self.parts)

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

    def is_named(self, job: int, part: int, epoch: int) -> bool:
        """Whether a report names this assignment."""
        return (job, part, epoch) == (self.job.number, self.part.number, self.epoch)


@dataclass(slots=True, eq=False)
class Worker:
    """A client process that runs parts, one at a time.

    Parameters
    ----------
    number
        Unique in its coordinator, from 1.
    session
        Its connection.
    cpus
        The CPUs that it says it runs on.
    running
        What it is at; None if idle.
    parts_done
        Parts that it finished, of jobs that were live then.
    """

    number: int
    session: Session
    cpus: tuple[int, ...]
    running: Assignment | None = None
    parts_done: int = 0


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
        label=_cut(timing.label, _LABEL_BYTES),
        implementation=_cut(timing.implementation, _LABEL_BYTES),
        tlb_note=_cut(timing.tlb_note, _NOTE_BYTES),
        **known,
    )


def _cut(text: str, limit_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")


class Jobs:
    """All live jobs and all workers.

    Parameters
    ----------
    max_jobs
        Most jobs queued or running at once.
    max_workers
        Most workers registered at once.
    first_number
        Jobs and workers are numbered from the next one.
    """

    def __init__(self, *, max_jobs: int, max_workers: int, first_number: int = 0) -> None:
        self._max_jobs = max_jobs
        self._max_workers = max_workers
        self._jobs: dict[int, Job] = {}
        self._workers: dict[int, Worker] = {}
        self._by_session: dict[int, Worker] = {}
        self._last_job = first_number
        self._last_worker = first_number
        self.done_count = 0
        self.failed_count = 0
        self.timings: deque[Timing] = deque(maxlen=TIMINGS_KEPT)

    def __repr__(self) -> str:
        busy = sum(worker.running is not None for worker in self._workers.values())
        return f"<Jobs: {len(self._jobs)} jobs, {busy} of {len(self._workers)} workers busy>"

    # Workers ------------------------------------------------------------------

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All workers by number."""
        return tuple(self._workers.values())

    @property
    def present(self) -> int:
        """Number of workers in no crew."""
        return sum(
            worker.running is None or worker.running.job.kernel != CREW_KERNEL
            for worker in self._workers.values()
        )

    def register(self, session: Session, cpus: tuple[int, ...]) -> Worker:
        """Make a session a worker; one that is a worker already only tells its CPUs anew.

        Raises
        ------
        InvalidSpecError
            A CPU number is out of range.
        NotEnoughMemoryError
            There are `max_workers` already.
        """
        if not all(0 <= cpu <= MAX_CPU for cpu in cpus):
            raise InvalidSpecError("a CPU number is out of range", needed=f"0 to {MAX_CPU}")
        worker = self._by_session.get(session.number)
        if worker is not None:
            worker.cpus = cpus
            return worker
        if len(self._workers) >= self._max_workers:
            raise NotEnoughMemoryError(
                "the coordinator has no room for another worker",
                needed=f"fewer than {self._max_workers} workers",
                had=str(len(self._workers)),
            )
        self._last_worker += 1
        worker = Worker(self._last_worker, session, cpus)
        self._workers[worker.number] = self._by_session[session.number] = worker
        return worker

    def worker_of(self, session: Session) -> Worker | None:
        """The worker that this session is, if it is one."""
        return self._by_session.get(session.number)

    def unregister(self, session: Session) -> None:
        """The session ends: if it is a worker, its part waits for another one."""
        worker = self._by_session.pop(session.number, None)
        if worker is None:
            return
        del self._workers[worker.number]
        if worker.running is not None:
            part = worker.running.part
            part.state = PartState.PENDING
            part.epoch += 1
            part.losses += 1

    def poisoned(self) -> list[tuple[Job, Part]]:
        """Live jobs with a part at which :data:`MAX_LOSSES` workers ended, and that part.

        Not standing ones: what lasts for days may well lose three workers.
        """
        found = []
        for job in self.live:
            if job.standing:
                continue
            part = next((part for part in job.parts if part.losses >= MAX_LOSSES), None)
            if part is not None:
                found.append((job, part))
        return found

    def describe_workers(self) -> tuple[WorkerInfo, ...]:
        """All workers; without their CPUs where those would pass a frame."""
        told = sum(len(worker.cpus) for worker in self.workers) <= _CPUS_TOLD
        return tuple(
            WorkerInfo(
                worker=worker.number,
                pid=worker.session.identity.pid,
                cpus=worker.cpus if told else (),
                busy=worker.running is not None,
                parts_done=worker.parts_done,
                kernel=_cut(worker.running.job.kernel, _KERNEL_BYTES) if worker.running else "",
            )
            for worker in self.workers
        )

    # Jobs ---------------------------------------------------------------------

    @property
    def live(self) -> tuple[Job, ...]:
        """All jobs queued or running, oldest first."""
        return tuple(self._jobs.values())

    def of_session(self, session: Session) -> list[Job]:
        """The live jobs that this session submitted."""
        return [job for job in self.live if job.asker.session is session]

    def uses(self, segment_id: int) -> bool:
        """Whether a live job reads or writes this segment."""
        return any(segment_id in job.segment_ids() for job in self.live)

    def writes(self, segment_id: int) -> bool:
        """Whether a live job writes this segment."""
        return any(segment_id in job.segment_ids(written=True) for job in self.live)

    def runs_on(self, session: Session, segment_id: int) -> bool:
        """Whether this session's worker is at a part, of a live job or not, with this segment."""
        worker = self._by_session.get(session.number)
        return (
            worker is not None
            and worker.running is not None
            and segment_id in worker.running.job.segment_ids()
        )

    def submit(self, request: SubmitJob, operands: tuple[PartOperand, ...], asker: Asker) -> Job:
        """Queue a job.

        Parameters
        ----------
        request
            Checked.
        operands
            Its operands, found and permitted.
        asker
            Where its result goes.

        Raises
        ------
        NoWorkersError
            No worker is registered.
        NotEnoughMemoryError
            There are `max_jobs` live ones already.
        """
        if not self._workers:
            raise no_workers()
        if len(self._jobs) >= self._max_jobs:
            raise NotEnoughMemoryError(
                "the coordinator has no room for another job",
                needed=f"fewer than {self._max_jobs} jobs",
                had=str(len(self._jobs)),
                remedy="wait for jobs under way",
            )
        self._last_job += 1
        bounds = pairwise(request.rows)
        parts = tuple(Part(number, *rows) for number, rows in enumerate(bounds))
        job = Job(
            self._last_job,
            asker,
            request.kernel,
            request.implementation,
            operands,
            parts,
            request.standing,
        )
        self._jobs[job.number] = job
        return job

    def assign(self, now_ns: int) -> list[tuple[Worker, RunPart]]:
        """Give pending parts to idle workers: the oldest job first, one part a worker."""
        idle = deque(
            worker
            for worker in self.workers
            if worker.running is None and worker.session.reachable
        )
        if not (idle and self._jobs):
            return []
        late = self._written_late()
        sent: list[tuple[Worker, RunPart]] = []
        for job in self.live:
            if late & job.segment_ids():
                continue
            for part in job.parts:
                if not idle:
                    return sent
                if part.state is PartState.PENDING:
                    sent.append(self._send(idle.popleft(), job, part, now_ns))
        return sent

    def take_report(self, session: Session, job: int, part: int, epoch: int) -> Assignment | None:
        """A worker reports a part: it is idle again.

        Returns
        -------
        Assignment or None
            What it was at; None where the report is stale: it is not from the worker
            that this part and epoch was sent to, or the job is over.
        """
        worker = self._by_session.get(session.number)
        if worker is None or worker.running is None:
            return None
        assignment = worker.running
        if not assignment.is_named(job, part, epoch):
            return None
        worker.running = None
        return assignment if job in self._jobs else None

    def part_done(self, assignment: Assignment, timing: Timing) -> None:
        """Note the result of a part whose report was taken, under what is known of it here."""
        part = assignment.part
        part.state = PartState.DONE
        part.timing = clipped(
            timing,
            worker=assignment.worker.number,
            pid=assignment.worker.session.identity.pid,
            part=part.number,
            row_start=part.row_start,
            row_stop=part.row_stop,
        )
        assignment.worker.parts_done += 1
        self.timings.append(part.timing)

    def finish(self, job: Job, *, failed: bool) -> None:
        """The job is over; reports of parts still under way are stale from here on."""
        del self._jobs[job.number]
        self.done_count += not failed
        self.failed_count += failed

    def _send(self, worker: Worker, job: Job, part: Part, now_ns: int) -> tuple[Worker, RunPart]:
        part.state = PartState.RUNNING
        worker.running = Assignment(worker, job, part, part.epoch)
        if job.started_ns is None:
            job.started_ns = now_ns
        notice = RunPart(
            job=job.number,
            part=part.number,
            epoch=part.epoch,
            kernel=job.kernel,
            implementation=job.implementation,
            operands=job.operands,
            row_start=part.row_start,
            row_stop=part.row_stop,
        )
        return worker, notice

    def _written_late(self) -> set[int]:
        """The segments that parts of ended jobs may still write."""
        late: set[int] = set()
        for worker in self.workers:
            if worker.running is not None and worker.running.job.number not in self._jobs:
                late |= worker.running.job.segment_ids(written=True)
        return late

    # Invariants ---------------------------------------------------------------

    def validate(self) -> None:
        """Assert what must hold between events."""
        assert len(self._jobs) <= self._max_jobs
        assert len(self._workers) <= self._max_workers
        assert self._workers.keys() == {worker.number for worker in self._by_session.values()}
        for number, worker in self._workers.items():
            assert worker.number == number <= self._last_worker
            assert self._by_session[worker.session.number] is worker
        at_work = [
            (worker.running.job.number, worker.running.part.number)
            for worker in self.workers
            if worker.running is not None
        ]
        assert len(set(at_work)) == len(at_work), "one part at two workers"
        for worker in self.workers:
            if worker.running is not None:
                assert worker.running.part.state is PartState.RUNNING
                assert worker.running.epoch == worker.running.part.epoch, "epoch moved under work"
        for number, job in self._jobs.items():
            assert job.number == number <= self._last_job
            assert job.parts and not job.done, "a finished job was kept"
            for part in job.parts:
                assert (part.state is PartState.RUNNING) == ((number, part.number) in at_work)
                assert (part.state is PartState.DONE) == (part.timing is not None)
                assert part.epoch >= 1


def no_workers() -> NoWorkersError:
    """The error of a job that nobody can run."""
    return NoWorkersError(
        "no worker is registered",
        needed="1 worker",
        had="0",
        remedy="start some: hugepool worker -n 2",
    )
