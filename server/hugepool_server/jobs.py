"""Jobs, their parts, and the workers that run them.

A part is sent under an *epoch*, a number that only rises. When the worker that
has it goes, or is stopped for too long, the part returns to the queue under the next
epoch, so that a report is taken once, from the worker that it was sent to, and from no
other.

A worker may be at a part that is not its own any more: the job failed elsewhere, was
cancelled, or its client is gone; or the part was taken back from a stopped worker; or
the job was an earlier coordinator's. It cannot be interrupted and may still write to the
operands, so it stays busy until it reports, and till then nothing is sent out over what
it may write: no part of another job that uses such a segment, nor the part itself. Jobs
that wait for it longer than :class:`~hugepool_server.patience.Patience` allows fail, for
a stopped worker may never come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise

from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError, NoWorkersError
from hugepool_common.messages import (
    CREW_KERNEL,
    PartOperand,
    RunPart,
    SubmitJob,
    Timing,
    WorkerInfo,
)
from hugepool_server.leases import Asker, Session
from hugepool_server.parts import (
    Assignment,
    Job,
    Part,
    PartState,
    Unheard,
    Worker,
    clipped,
    cut,
)
from hugepool_server.patience import Patience, bars, in_the_way

MAX_LOSSES = 3
"""Workers that may die at one part before the part is blamed for it."""

MAX_CPU = 65_535
"""Largest CPU number of a worker."""

TIMINGS_KEPT = 32
"""Newest timings that are told by Stats."""

_CPUS_TOLD = 4096
_KERNEL_BYTES = 24


class Jobs:
    """All live jobs and all workers.

    Parameters
    ----------
    max_jobs
        Most jobs queued or running at once.
    max_workers
        Most workers registered at once.
    patience
        How long jobs wait for workers.
    first_number
        Numbers of jobs and workers begin after it.
    """

    def __init__(
        self, *, max_jobs: int, max_workers: int, patience: Patience, first_number: int
    ) -> None:
        self.patience = patience
        self._first_number = first_number
        self._max_jobs = max_jobs
        self._max_workers = max_workers
        self._jobs: dict[int, Job] = {}
        self._workers: dict[int, Worker] = {}
        self._by_session: dict[int, Worker] = {}
        self._unheard: dict[int, Unheard] = {}
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
        """Number of workers in no crew, but for idle ones that cannot be told of parts."""
        return sum(
            worker.session.takes_parts
            if worker.running is None
            else worker.running.job.kernel != CREW_KERNEL
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
        self._unheard.pop(session.number, None)  # who registers, even in vain, is at no part
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

    def inherit(self, sessions: Iterable[Session], written: Iterable[int]) -> None:
        """Reckon with the workers of an earlier coordinator.

        Parameters
        ----------
        sessions
            Theirs.
        written
            The segments that parts which nobody knows any more may write.
        """
        ids = frozenset(written)
        self._unheard = {session.number: Unheard(session, ids) for session in sessions}

    def worker_of(self, session: Session) -> Worker | None:
        """The worker that this session is, if it is one."""
        return self._by_session.get(session.number)

    def unregister(self, session: Session) -> None:
        """The session ends: if it is a worker, its part waits for another one."""
        self._unheard.pop(session.number, None)
        worker = self._by_session.pop(session.number, None)
        if worker is None:
            return
        del self._workers[worker.number]
        if worker.running is not None and not worker.running.stale:
            worker.running.part.losses += 1
            _take_back(worker.running)

    def lay_down(self, session: Session) -> None:
        """If the session is a worker, it is idle: of its part it did not hear, or was not heard."""
        worker = self._by_session.get(session.number)
        if worker is None or worker.running is None:
            return
        if not worker.running.stale:
            _take_back(worker.running)
        worker.running = worker.stopped_ns = None

    def unsent(self, session: Session, notice: RunPart) -> None:
        """A worker will not hear of a part that was to be sent to it: it is idle, or was before."""
        worker = self._by_session.get(session.number)
        running = worker.running if worker is not None else None
        if running is not None and running.is_named(notice.job, notice.part, notice.epoch):
            self.lay_down(session)

    def stopped(self, session: Session, now_ns: int) -> None:
        """The session's process was seen stopped; of interest if it is a busy worker."""
        worker = self._by_session.get(session.number)
        if worker is not None and worker.running is not None and worker.stopped_ns is None:
            worker.stopped_ns = now_ns

    def continued(self, session: Session) -> None:
        """The session's process runs again."""
        worker = self._by_session.get(session.number)
        if worker is not None:
            worker.stopped_ns = None

    def take_back_stopped(self, now_ns: int) -> None:
        """Take their parts from workers that have been stopped for too long."""
        for assignment in self.patience.spent_on(self.workers, now_ns):
            _take_back(assignment)

    def doomed(self) -> list[tuple[Job, Part]]:
        """Live jobs with a part that cannot be run again, and that part.

        Because :data:`MAX_LOSSES` workers ended at it, but not of a standing job: what
        lasts for days may well lose three workers. Or because one did not finish it, and
        it is to be run once.
        """
        found = []
        for job in self.live:
            for part in job.parts:
                too_many = part.losses >= MAX_LOSSES and not job.standing
                if too_many or (job.once and part.epoch > 1):
                    found.append((job, part))
                    break
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
                kernel=cut(worker.running.job.kernel, _KERNEL_BYTES) if worker.running else "",
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
            request.once or _writes_what_it_reads(operands),
            request.progress,
        )
        self._jobs[job.number] = job
        return job

    def assign(self, now_ns: int) -> list[tuple[Worker, RunPart]]:
        """Give pending parts to idle workers: the oldest job first, one part a worker."""
        idle = deque(
            worker
            for worker in self.workers
            if worker.running is None and worker.session.takes_parts
        )
        if not (idle and self._jobs):
            return []
        stale: list[Assignment | Unheard] = [
            w.running for w in self.workers if w.running is not None and w.running.stale
        ]
        stale += self._unheard.values()
        sent: list[tuple[Worker, RunPart]] = []
        for job in self.live:
            barring = [one for one in stale if bars(one, job)]
            own = [one.part for one in barring if isinstance(one, Assignment) and one.job is job]
            if len(own) < len(barring):
                continue
            for part in job.pending:
                if not idle:
                    return sent
                if part not in own:
                    sent.append(self._send(idle.popleft(), job, part, now_ns))
        return sent

    def look_for_waiting(self, now_ns: int) -> list[Job]:
        """See which jobs nobody can take up, after :meth:`assign`.

        Returns
        -------
        list of Job
            Those of them that have waited for too long.
        """
        self.patience.look_at(self.live, self.workers, self._unheard.values(), now_ns)
        return self.patience.over_for(self.live, now_ns)

    def in_the_way(self, job: Job) -> list[Session]:
        """The workers that a waiting job waits for; none if there are no workers."""
        return in_the_way(job, self.workers, self._unheard.values())

    @property
    def waiting(self) -> int:
        """Number of jobs that nobody can take up: they fail when patience ends."""
        return sum(job.waiting_ns is not None for job in self.live)

    @property
    def wake_ns(self) -> int | None:
        """When patience ends next; None while nothing is waited for."""
        return self.patience.wake_ns(self.live, self.workers)

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
        worker.running = worker.stopped_ns = None
        return None if assignment.stale else assignment

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
        job.over = True
        self.done_count += not failed
        self.failed_count += failed

    def _send(self, worker: Worker, job: Job, part: Part, now_ns: int) -> tuple[Worker, RunPart]:
        part.state = PartState.RUNNING
        job.waiting_ns = None
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

    # Invariants ---------------------------------------------------------------

    def validate(self) -> None:
        """Assert what must hold between events."""
        assert len(self._jobs) <= self._max_jobs
        assert len(self._workers) <= self._max_workers
        assert self._workers.keys() == {worker.number for worker in self._by_session.values()}
        for number, worker in self._workers.items():
            assert worker.number == number
            assert self._first_number < number <= self._last_worker
            assert self._by_session[worker.session.number] is worker
            assert worker.stopped_ns is None or worker.running is not None, "stopped at nothing"
        assert not self._unheard.keys() & self._by_session.keys(), "heard of"
        running = [worker.running for worker in self.workers if worker.running is not None]
        at_work = {one.part for one in running if not one.stale}
        assert len(at_work) == sum(not one.stale for one in running), "one part at two workers"
        for one in running:
            assert one.epoch <= one.part.epoch, "an epoch fell"
            assert one.part in one.job.parts
            barred = one.job.over or (one.stale and one.written)
            assert not (barred and one.part in at_work), "a part runs while it may be written"
        for number, job in self._jobs.items():
            assert job.number == number
            assert self._first_number < number <= self._last_job
            assert job.parts and not job.done and not job.over, "a finished job was kept"
            assert job.waiting_ns is None or not (job.running or job.standing)
            for part in job.parts:
                assert (part.state is PartState.RUNNING) == (part in at_work)
                assert (part.state is PartState.DONE) == (part.timing is not None)
                assert part.epoch > part.losses >= 0


def _take_back(assignment: Assignment) -> None:
    assignment.part.state = PartState.PENDING
    assignment.part.epoch += 1


def _writes_what_it_reads(operands: tuple[PartOperand, ...]) -> bool:
    """Whether a segment is written in one role and used in another.

    A part that was half done would then find what it wrote in place of what it was to read.
    """
    ids = [operand.segment.segment_id for operand in operands]
    return any(op.writable and ids.count(op.segment.segment_id) > 1 for op in operands)


def no_workers() -> NoWorkersError:
    """The error of a job that nobody can run."""
    return NoWorkersError(
        "no worker is registered",
        needed="1 worker",
        had="0",
        remedy="start some: hugepool worker -n 2",
    )
