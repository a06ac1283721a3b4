"""Requests about jobs: who may submit what, and what a worker's report means."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import get_args

from hugepool_common.errors import (
    InvalidSpecError,
    JobFailedError,
    NotPermittedError,
    NoWorkersError,
)
from hugepool_common.messages import (
    CREW_KERNEL,
    MAX_PARTS,
    PAGE_OF_JOBS,
    Failed,
    FewerWorkers,
    JobInfo,
    JobProgress,
    JobsListed,
    ListJobs,
    Message,
    Operand,
    PartAccepted,
    PartDone,
    PartFailed,
    PartOperand,
    RegisterWorker,
    ReportTiming,
    SubmitJob,
    TimingReported,
    View,
    WorkerRegistered,
    WorkersChanged,
)
from hugepool_common.spec import MAX_EXTENT
from hugepool_server.array_requests import check_writable, over_tcp
from hugepool_server.events import Tick, WorkerContinued, WorkerStopped
from hugepool_server.leases import Asker, Session
from hugepool_server.parts import Assignment, Job, Part, PartState, clipped
from hugepool_server.state import State

MAX_OPERANDS = 16
"""Most operands of a job: all of them go into one RunPart frame."""

_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class JobRequests:
    """Takes jobs and reports, and gives parts to workers."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._present = 0

    def settle(self, now_ns: int) -> None:
        """After every event: no idle worker while a part waits, no job that waits for ever."""
        jobs = self._state.jobs
        jobs.take_back_stopped(now_ns)
        for job, part in jobs.doomed():
            self.fail(job, Failed.from_error(_fatal(job, part)))
        for worker, notice in jobs.assign(now_ns):
            for operand in notice.operands:
                self._state.leases.hold(
                    worker.session, operand.segment.segment_id, readonly=not operand.writable
                )
            self._state.notify(worker.session, notice)
        for job in jobs.look_for_waiting(now_ns):
            self.fail(job, Failed.from_error(_waited_in_vain(job, jobs.in_the_way(job), now_ns)))
        present = jobs.present
        if present != self._present:
            self._present = present
            for session in self._state.leases.sessions:
                self.tell_of_workers(session)

    def tell_of_workers(self, session: Session) -> None:
        """What the session was told of the workers may hold no more; say so once."""
        if session.knows_workers and session.reachable:
            session.knows_workers = False
            self._state.notify(session, WorkersChanged())

    def fail(self, job: Job, error: Failed) -> None:
        """End a job that will not be done; its workers report in vain."""
        self._state.jobs.finish(job, failed=True)
        self._state.reply(job.asker, error)

    def register_worker(self, asker: Asker, request: RegisterWorker, now_ns: int) -> Message:
        """Make the session a worker."""
        return WorkerRegistered(self._state.jobs.register(asker.session, request.cpus).number)

    def submit_job(self, asker: Asker, request: SubmitJob, now_ns: int) -> Message | None:
        """Queue a job whose operands are there and permitted."""
        check_submission(request)
        lasting = request.standing or request.kernel == CREW_KERNEL
        if lasting and not asker.session.identity.is_local:
            raise over_tcp("a client over TCP can lead no crew, nor keep workers for itself")
        operands = tuple(self._found_operand(asker, operand) for operand in request.operands)
        if self._state.jobs.present < request.workers:
            return FewerWorkers(self._state.jobs.present)
        self._state.jobs.submit(request, operands, asker)
        return None

    def _found_operand(self, asker: Asker, operand: Operand) -> PartOperand:
        found = self._state.registry.find(operand.name, operand.segment_id)
        if operand.writable:
            check_writable(found)
            sessions = [lease.session for lease in self._state.leases.writers(found.segment_id)]
            if asker.session not in (found.owner, *sessions):
                raise NotPermittedError(
                    f"operand {operand.role} is not writable for this session",
                    where=found.name,
                    needed="a writable lease",
                    remedy="attach it with readonly=False first",
                )
        return PartOperand(
            operand.role, found.spec, found.segment, operand.writable, operand.view, found.sealed
        )

    def part_done(self, asker: Asker, request: PartDone, now_ns: int) -> Message:
        """Take a result; with the last one the job is done."""
        taken = self._taken(asker, request)
        if taken is None:
            return PartAccepted(stale=True)
        self._state.jobs.part_done(taken, request.timing)
        if taken.job.done:
            self._state.jobs.finish(taken.job, failed=False)
            self._state.reply(taken.job.asker, taken.job.result(now_ns))
        elif taken.job.progress:
            done = sum(part.state is PartState.DONE for part in taken.job.parts)
            self._state.reply(taken.job.asker, JobProgress(done, len(taken.job.parts)))
        return PartAccepted(stale=False)

    def part_failed(self, asker: Asker, request: PartFailed, now_ns: int) -> Message:
        """Take an error; it is the job's."""
        taken = self._taken(asker, request)
        if taken is None:
            return PartAccepted(stale=True)
        self.fail(taken.job, request.error)
        return PartAccepted(stale=False)

    def list_jobs(self, asker: Asker, request: ListJobs, now_ns: int) -> Message:
        """Tell a page of the live jobs."""
        found = [job for job in self._state.jobs.live if job.number > request.after]
        told = found[:PAGE_OF_JOBS]
        return JobsListed(tuple(map(self._described, told)), more=len(told) < len(found))

    def _described(self, job: Job) -> JobInfo:
        return JobInfo(
            job=job.number,
            kernel=job.kernel,
            implementation=job.implementation,
            pid=job.asker.session.identity.pid,
            parts=len(job.parts),
            parts_done=sum(part.state is PartState.DONE for part in job.parts),
            workers=tuple(
                worker.number
                for worker in self._state.jobs.workers
                if worker.running is not None
                and worker.running.job is job
                and not worker.running.stale
            ),
            waiting=job.waiting_ns is not None,
            standing=job.standing,
            started_ns=job.started_ns,
        )

    def report_timing(self, asker: Asker, request: ReportTiming, now_ns: int) -> Message:
        """Keep a user's own timing, under the process that it is known to come from."""
        worker = self._state.jobs.worker_of(asker.session)
        number = 0 if worker is None else worker.number
        timing = clipped(request.timing, pid=asker.session.identity.pid, worker=number)
        self._state.jobs.timings.append(timing)
        return TimingReported()

    def on_worker_stopped(self, event: WorkerStopped, now_ns: int) -> None:
        """Note since when a busy worker is stopped."""
        session = self._state.leases.of_number(event.session)
        if session is not None:
            self._state.jobs.stopped(session, now_ns)

    def on_worker_continued(self, event: WorkerContinued, now_ns: int) -> None:
        """Forget that it was stopped, and that it took nothing in."""
        session = self._state.leases.of_number(event.session)
        if session is not None and self._state.jobs.worker_of(session) is not None:
            self._state.jobs.continued(session)
            session.reachable = True

    def on_tick(self, event: Tick, now_ns: int) -> None:
        """Patience ended; :meth:`settle` sees to that."""

    def _taken(self, asker: Asker, report: PartDone | PartFailed) -> Assignment | None:
        return self._state.jobs.take_report(asker.session, report.job, report.part, report.epoch)


def _fatal(job: Job, part: Part) -> JobFailedError:
    where = f"rows {part.row_start} to {part.row_stop}"
    if job.once:
        return JobFailedError(
            f"a worker ended, or was stopped, within part {part.number} of job {job.number}, "
            "which cannot be run twice: it changes what it reads",
            had=f"an unknown share of {where} done",
            where=job.kernel,
            remedy="write what the job changes anew, then run it again",
        )
    return JobFailedError(
        f"every worker that ran part {part.number} of job {job.number} ended",
        had=f"{part.losses} workers lost at {where}",
        where=job.kernel,
        remedy="look at the workers' messages and at the memory limit they run under",
    )


def _waited_in_vain(job: Job, late: list[Session], now_ns: int) -> JobFailedError:
    """The error of a job that nobody took up in time."""
    assert job.waiting_ns is not None, job
    waited = f"waited {(now_ns - job.waiting_ns) / 1e9:.0f} s"
    if not late:
        return NoWorkersError(
            f"there is no worker that can be told of parts: job {job.number} {waited}",
            needed="1 worker",
            had="0",
            where=job.kernel,
            remedy="start some: hugepool worker -n 2",
        )
    pids = " ".join(str(session.identity.pid) for session in late)
    return JobFailedError(
        f"job {job.number} {waited} for workers that are stopped, or at a part from before the "
        "coordinator was restarted: they may still write where they stand",
        needed="that they report or end",
        had=f"pid {pids}",
        where=job.kernel,
        remedy=f"continue them (kill -CONT {pids}) or end them (kill -KILL {pids}); "
        "until then use none of the arrays that they write",
    )


def check_submission(request: SubmitJob) -> None:
    """Refuse a job that no worker could run, whatever its operands are.

    Raises
    ------
    InvalidSpecError
        A word is too long or odd, a role is named twice, a view does not exist or
        would lose what is written, or the rows are no partition.
    """
    for word in (request.kernel, request.implementation, *(op.role for op in request.operands)):
        if not _WORD.fullmatch(word):
            raise InvalidSpecError(
                f"{word[:80]!r} names no kernel, implementation or role",
                needed="1 to 64 of A-Z a-z 0-9 _ . : -",
            )
    if len(request.operands) > MAX_OPERANDS:
        raise InvalidSpecError(
            "too many operands", needed=f"at most {MAX_OPERANDS}", had=str(len(request.operands))
        )
    if len({op.role for op in request.operands}) < len(request.operands):
        raise InvalidSpecError("two operands have the same role", where=request.kernel)
    for op in request.operands:
        if op.view not in get_args(View):
            raise InvalidSpecError(
                f"operand {op.role} has no such view",
                needed=" or ".join(get_args(View)),
                had=str(op.view)[:80],
            )
        if op.writable and op.view != "shared":
            raise InvalidSpecError(
                f"operand {op.role} would be written in a private copy",
                had=op.view,
                remedy="use view shared for what a kernel writes",
            )
    _check_rows(request.rows)


def _check_rows(rows: tuple[int, ...]) -> None:
    if not 2 <= len(rows) <= MAX_PARTS + 1:
        raise InvalidSpecError(
            "wrong number of row bounds", needed=f"2 to {MAX_PARTS + 1}", had=str(len(rows))
        )
    if rows[0] != 0 or rows[-1] > MAX_EXTENT or any(a > b for a, b in pairwise(rows)):
        raise InvalidSpecError(
            "the row bounds are no partition", needed="0 first, none below the one before"
        )
