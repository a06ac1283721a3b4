"""How long jobs wait: for workers that are not there, and for workers that are stopped.

A worker whose process is stopped (SIGSTOP, Ctrl-Z, a debugger) may go on at any time
where it stood, in the middle of a loop that writes. What it writes cannot be taken back,
and until it is through nobody can know that the rows are right: kernels write sums
that are not complete yet, and two that add to the same rows would add twice. So a part
that writes is never run by another worker while the one that has it may still
write; its job waits until that one reports or ends, and fails when this takes too long.

The same holds for the workers of an earlier coordinator, which compute on for a while
what that one had told them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from hugepool_server.leases import Session
from hugepool_server.parts import Assignment, Job, Unheard, Worker


@dataclass(frozen=True, slots=True)
class Patience:
    """What is waited for, and for how long.

    Parameters
    ----------
    worker_ns
        For somebody who can take up a part of a job, before the job fails.
    stopped_ns
        For a stopped worker to go on, before its part is taken back.
    """

    worker_ns: int
    stopped_ns: int

    def spent_on(self, workers: Iterable[Worker], now_ns: int) -> list[Assignment]:
        """What is to be taken back from workers that have been stopped for too long.

        Not from those in a crew: its leader watches them.
        """
        return [
            worker.running
            for worker in workers
            if worker.running is not None
            and worker.stopped_ns is not None
            and now_ns - worker.stopped_ns >= self.stopped_ns
            and _may_be_taken_back(worker.running)
        ]

    def look_at(
        self,
        jobs: Iterable[Job],
        workers: Collection[Worker],
        unheard: Collection[Unheard],
        now_ns: int,
    ) -> None:
        """Note which jobs wait, from when on, and which do not any more."""
        stuck = _stuck(workers)
        able = any(
            worker.session.takes_parts if worker.running is None else worker not in stuck
            for worker in workers
        )
        for job in jobs:
            if not _waits(job, stuck, unheard, able):
                job.waiting_ns = None
            elif job.waiting_ns is None:
                job.waiting_ns = now_ns

    def over_for(self, jobs: Iterable[Job], now_ns: int) -> list[Job]:
        """The jobs that have waited for too long."""
        return [
            job
            for job in jobs
            if job.waiting_ns is not None and now_ns - job.waiting_ns >= self.worker_ns
        ]

    def wake_ns(self, jobs: Iterable[Job], workers: Iterable[Worker]) -> int | None:
        """When one of these ends next; None while nothing is waited for."""
        ends = [job.waiting_ns + self.worker_ns for job in jobs if job.waiting_ns is not None]
        ends += [
            worker.stopped_ns + self.stopped_ns
            for worker in workers
            if worker.stopped_ns is not None
            and worker.running is not None
            and _may_be_taken_back(worker.running)
        ]
        return min(ends, default=None)


def in_the_way(
    job: Job, workers: Collection[Worker], unheard: Collection[Unheard]
) -> list[Session]:
    """Whom a waiting job waits for: those that may write what it uses, or else all of them."""
    stuck = _stuck(workers)
    barring = [worker.session for worker in stuck if worker.running and bars(worker.running, job)]
    barring += [one.session for one in unheard if bars(one, job)]
    return barring or [worker.session for worker in stuck]


def bars(stale: Assignment | Unheard, job: Job) -> bool:
    """Whether what a worker may still write keeps a job, or a part of its own one, waiting."""
    if isinstance(stale, Assignment) and stale.job is job:
        return bool(stale.written)
    return not stale.written.isdisjoint(job.segment_ids())


def _may_be_taken_back(running: Assignment) -> bool:
    return not running.stale and not running.job.standing


def _stuck(workers: Iterable[Worker]) -> list[Worker]:
    """Those of whom nothing is to be expected: stopped, at what is no longer theirs to do."""
    return [
        worker
        for worker in workers
        if worker.running is not None and worker.running.stale and worker.stopped_ns is not None
    ]


def _waits(job: Job, stuck: Sequence[Worker], unheard: Collection[Unheard], able: bool) -> bool:
    if job.standing or job.running:
        return False
    if not able or any(bars(one, job) for one in unheard):
        return True
    barring = [w.running for w in stuck if w.running is not None and bars(w.running, job)]
    if any(stale.job is not job for stale in barring):
        return True
    own = [stale.part for stale in barring]
    return all(part in own for part in job.pending)
