"""Jobs with some workers registered, and no coordinator around them."""

from __future__ import annotations

from hugepool_common.messages import PartOperand, SubmitJob, Timing
from hugepool_common.spec import ArraySpec, Segment
from hugepool_server.jobs import Jobs
from hugepool_server.leases import Asker, Session
from hugepool_server.parts import Job
from hugepool_server.patience import Patience
from hugepool_server.records import Identity

CLIENT = Session(1, b"client", Identity(1000, 1000, 10), "test")
REPORT = Timing("gather", implementation="numba", wall_ns=5, worker=99, part=99, row_stop=99)
PATIENCE = Patience(worker_ns=3000, stopped_ns=100)


def session(number: int) -> Session:
    """A session that is to be a worker."""
    return Session(number, b"worker%d" % number, Identity(1000, 1000, 100 + number), "worker")


def operand(segment_id: int, *, writable: bool = False, role: str = "") -> PartOperand:
    """An operand of a part, in the role ``x`` or ``out`` unless told which."""
    spec = ArraySpec(f"a{segment_id}", (1000,), "<f8")
    segment = Segment(segment_id, f"/pool/{segment_id}", 1, segment_id, 0, 8192, 4096, "shm-4k")
    role = role or ("out" if writable else "x")
    return PartOperand(role, spec, segment, writable, "shared", not writable)


class Crowd:
    """Jobs with some workers registered; worker k is the one of number k, from 1."""

    def __init__(
        self, workers: int, *, max_jobs: int = 9, max_workers: int = 9, first_number: int = 0
    ) -> None:
        self.all = Jobs(
            max_jobs=max_jobs,
            max_workers=max_workers,
            patience=PATIENCE,
            first_number=first_number,
        )
        self.sessions = [session(number) for number in range(2, 2 + workers)]
        self.workers = [self.all.register(one, ()) for one in self.sessions]

    def submit(
        self, parts: int, *operands: PartOperand, standing: bool = False, once: bool = False
    ) -> Job:
        """A job of so many parts."""
        rows = tuple(range(parts + 1))
        request = SubmitJob("gather", (), rows, standing=standing, once=once)
        return self.all.submit(request, operands, Asker(CLIENT, 1))

    def assign(self, now_ns: int = 1000) -> list[tuple[int, int, int, int]]:
        """(worker, job, part, epoch) of what was sent."""
        sent = self.all.assign(now_ns)
        self.all.validate()
        return [(w.number, run.job, run.part, run.epoch) for w, run in sent]

    def settle(self, now_ns: int) -> list[tuple[int, int, int, int]]:
        """What is done after every event, but that nobody is told: as :meth:`assign`."""
        self.all.take_back_stopped(now_ns)
        for job, _ in self.all.doomed():
            self.all.finish(job, failed=True)
        sent = self.assign(now_ns)
        for job in self.all.look_for_waiting(now_ns):
            self.all.finish(job, failed=True)
        self.all.validate()
        return sent

    def stop(self, worker: int, now_ns: int) -> list[tuple[int, int, int, int]]:
        """A worker is seen stopped."""
        self.all.stopped(self.sessions[worker - 1], now_ns)
        return self.settle(now_ns)

    def go_on(self, worker: int, now_ns: int) -> list[tuple[int, int, int, int]]:
        """A worker is seen running again."""
        self.all.continued(self.sessions[worker - 1])
        return self.settle(now_ns)

    def end(self, worker: int) -> None:
        """A worker's session ends."""
        self.all.unregister(self.sessions[worker - 1])
        self.all.validate()

    def report(self, worker: int, job: int, part: int, epoch: int = 1) -> bool:
        """Report a part done; whether it was taken."""
        taken = self.all.take_report(self.sessions[worker - 1], job, part, epoch)
        if taken is not None:
            self.all.part_done(taken, REPORT)
            if taken.job.done:
                self.all.finish(taken.job, failed=False)
        self.all.validate()
        return taken is not None
