"""Jobs: kernels run over row partitions by worker processes, some of them our own children."""

from __future__ import annotations

import operator
import os
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from hugepool import kernels
from hugepool.array import SharedObject
from hugepool.calls import Call
from hugepool.channel import Channel, closed_error
from hugepool.children import start_worker, stop_processes
from hugepool.progress import Waiting
from hugepool.timings import JobTimings
from hugepool_common.errors import InvalidSpecError, NoWorkersError, ProtocolError
from hugepool_common.messages import (
    CREW_KERNEL as CREW_KERNEL,
)
from hugepool_common.messages import (
    MAX_PARTS,
    Counted,
    FewerWorkers,
    JobDone,
    JobProgress,
    Message,
    Operand,
    Stats,
    SubmitJob,
    View,
    WorkerInfo,
)

WORKER_START_TIMEOUT_S = 120.0
RETURN_TIMEOUT_S = 2.0
"""How long workers may take to follow this process to a restarted coordinator."""

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class _Known:
    """How many workers there were, and after how many changes of that number."""

    count: int
    changes: int


class _Reliance(threading.local):
    """What the job that a thread submits next was cut for: so many workers, for a wish."""

    count = 0
    wanted: int | None = None


class _Told:
    """Counts the parts of one job for the call that the job is a step of."""

    def __init__(self, call: Call, parts: int) -> None:
        self._call = call
        self._before = call.parts_done
        self._parts = parts
        call.parts += parts

    def __call__(self, notice: Message) -> None:
        if isinstance(notice, JobProgress):
            self._call.parts_done = self._before + notice.done

    def all_done(self) -> None:
        self._call.parts_done = self._before + self._parts


class JobRunner:
    """Submits jobs, and starts the workers that they lack.

    Parameters
    ----------
    channel
        The client's session.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: list[subprocess.Popen[bytes]] = []
        self._known: _Known | None = None
        self._reunions = channel.reunions
        self._reliance = _Reliance()
        self._starting = threading.RLock()
        self._hiring = threading.RLock()  # never held for long, and may be met by a finalizer
        self._stopped = False

    def run(
        self,
        kernel: str,
        operands: Mapping[str, SharedObject | str],
        rows: Sequence[int],
        *,
        implementation: str = "auto",
        writes: Collection[str] = ("out",),
        views: Mapping[str, View] | None = None,
    ) -> JobTimings:
        """Run a kernel once over the partition `rows` and wait for its timings.

        Parameters
        ----------
        kernel, implementation
            As :func:`hugepool.kernels.resolve` knows them.
        operands
            Role to handle or name.
        rows
            Partition bounds: part ``k`` is ``[rows[k], rows[k + 1])`` and goes to a worker
            of its own as long as there are idle ones.
        writes
            Roles that the kernel writes.
        views
            Role to ``shared`` (default), ``heap`` or ``private``.

        Raises
        ------
        NoWorkersError
            No worker is registered, or the last one died and none came within 30 s.
        JobInterruptedError
            The coordinator was restarted meanwhile; what is written may be so in part.
        JobFailedError
            Too many workers died at one part; or one did and the kernel adds to what the
            output held; or a worker has been stopped for 40 s.
        IndexOutOfRangeError, InvalidMatrixError, InvalidSpecError
            What a worker's kernel refused.
        """
        views = views or {}
        described = tuple(
            _described(role, operand, role in writes, views.get(role, "shared"))
            for role, operand in operands.items()
        )
        bounds = tuple(int(bound) for bound in rows)
        # To ask how many workers there are before every job would take as long as a small
        # job: so it is counted on what was told, and the coordinator checks that.
        workers, self._reliance.count = min(self._reliance.count, len(bounds) - 1), 0
        once = kernels.adds_in_place(kernel, operands)
        call = self._channel.call
        job = SubmitJob(
            kernel,
            described,
            bounds,
            implementation,
            workers=workers,
            once=once,
            progress=call is not None,
        )
        told = None if call is None else _Told(call, len(bounds) - 1)
        with Waiting(f"running {kernel} in {len(bounds) - 1} part(s)"):
            answer = self._answer(job, told)
            if isinstance(answer, FewerWorkers):
                self._known = None
                self.worker_count(self._reliance.wanted)
                self._reliance.count = 0
                job = replace(job, workers=0)
                answer = self._channel.request(job, Message, on_notice=told)
        if not isinstance(answer, JobDone):
            raise ProtocolError(f"unexpected reply {type(answer).__name__} to a job")
        if told is not None:
            told.all_done()
        return JobTimings.of(answer)

    def worker_count(self, wanted: int | None) -> int:
        """Make sure that `wanted` workers are there, or any at all; say how many to use.

        With None: all that are there, else one per CPU of this process is started. Members
        of a crew are not there for others.

        Raises
        ------
        InvalidSpecError
            `wanted` is not positive.
        NoWorkersError
            They could not be started.
        """
        self._channel.check_usable()  # before the lock, which a fork may have copied while held
        wanted = operator.index(wanted) if isinstance(wanted, np.integer) else wanted
        if wanted is not None and (type(wanted) is not int or not 1 <= wanted <= MAX_PARTS):
            raise InvalidSpecError(
                "workers must be an int", needed=f"1 to {MAX_PARTS}", had=repr(wanted)
            )
        self._reliance.count, self._reliance.wanted = 0, wanted
        with self._starting:  # two threads that lack the same worker start it once
            registered = self._registered()
            if wanted is None:
                wanted = min(registered or len(os.sched_getaffinity(0)), MAX_PARTS)
            if registered < wanted:
                self.start(wanted - registered)
        self._reliance.count = wanted
        return wanted

    def start(self, count: int, cpus: Sequence[int] | None = None) -> None:
        """Start worker children of this process and wait until they are registered.

        Parameters
        ----------
        count
            How many more.
        cpus
            Pin worker ``k`` to ``cpus[k % len(cpus)]``; None leaves them to the kernel.

        Raises
        ------
        NoWorkersError
            One ended, or took longer than two minutes to start; or this session is one over TCP,
            where no worker can be.
        DetachedError
            The pool is closed, perhaps just now.
        """
        self._channel.check_usable()  # as above
        if self._channel.over_tcp:
            raise NoWorkersError(
                "too few workers are there, and a client over TCP can start none",
                needed=f"{count} more",
                where=self._channel.address,
                remedy="on the coordinator's machine: hugepool worker -n 2",
            )
        with self._starting, Waiting(f"starting {count} worker(s)"):
            wanted = self._registered() + count
            with self._hiring:
                self._children[:] = [child for child in self._children if child.poll() is None]
            started = [
                self._hire(() if not cpus else (cpus[number % len(cpus)],))
                for number in range(count)
            ]
            self._wait_registered(wanted, started)

    def _hire(self, pinned: tuple[int, ...]) -> subprocess.Popen[bytes]:
        """Start a worker that :meth:`stop` ends, whenever another thread calls it."""
        with self._hiring:
            if not self._stopped:
                child = start_worker(self._channel.address, cpus=pinned)
                self._children.append(child)
            if not self._stopped:
                return child
        self.stop()  # once more: it was called in the middle, by a finalizer in this thread
        raise closed_error()

    def stop(self) -> None:
        """End the workers that this process started; it starts no others from here on."""
        with self._hiring:
            self._stopped = True
            children = list(self._children)
            self._children.clear()
        stop_processes(children)

    def _wait_registered(self, wanted: int, started: list[subprocess.Popen[bytes]]) -> None:
        pids = {child.pid for child in started}
        deadline = time.monotonic() + WORKER_START_TIMEOUT_S
        while True:
            workers = self._channel.request(Stats(), Counted).workers
            # By pid, for others may end meanwhile; by number, for a coordinator in
            # another pid namespace knows ours by other pids.
            if pids <= {worker.pid for worker in workers} or _outside(workers) >= wanted:
                return
            ended = [child for child in started if child.poll() is not None]
            if self._stopped:  # looked at after the children: it is set before they are ended
                raise closed_error()
            if ended or time.monotonic() > deadline:
                raise NoWorkersError(
                    "a worker process did not start",
                    needed=f"{wanted} registered",
                    had=f"{len(workers)}"
                    + (f", one ended with status {ended[0].returncode}" if ended else ""),
                    remedy="look at its message on stderr",
                )
            time.sleep(_POLL_S)

    def _answer(self, job: SubmitJob, told: _Told | None) -> Message:
        try:
            return self._channel.request(job, Message, on_notice=told)
        except NoWorkersError:
            if self._reunions == self._channel.reunions:
                raise
        self.await_return()
        return self._channel.request(job, Message, on_notice=told)

    def await_return(self) -> None:
        """After a restart of the coordinator, let the workers that there were come back first."""
        self._channel.take_in()
        if self._reunions != self._channel.reunions:
            with self._starting:
                self._await_return()

    def _await_return(self) -> None:
        if self._reunions == self._channel.reunions:
            return  # another thread has waited
        self._reunions = self._channel.reunions
        before = 1 if self._known is None else self._known.count
        before = max(before, sum(child.poll() is None for child in self._children))
        deadline = time.monotonic() + RETURN_TIMEOUT_S
        with Waiting("waiting for the workers to come back"):
            while time.monotonic() < deadline:
                if _outside(self._channel.request(Stats(), Counted).workers) >= before:
                    return
                time.sleep(_POLL_S)

    def _registered(self) -> int:
        """How many workers are in no crew; asked for where that may have changed."""
        self.await_return()
        known = self._known
        changes = self._channel.workers_changes  # before asking: a later change counts anew
        if known is None or known.changes != changes:
            workers = self._channel.request(Stats(), Counted).workers
            known = self._known = _Known(_outside(workers), changes)
        return known.count


def _outside(workers: Sequence[WorkerInfo]) -> int:
    """How many are in no crew."""
    return sum(worker.kernel != CREW_KERNEL for worker in workers)


def _described(role: str, operand: SharedObject | str, writable: bool, view: View) -> Operand:
    if isinstance(operand, SharedObject):
        operand.check_known()
        return Operand(role, operand.name, writable, view, operand.info.segment.segment_id)
    if not isinstance(operand, str):
        raise InvalidSpecError(
            f"operand {role} is neither a handle nor a name",
            had=type(operand).__name__,
            remedy="share it with pool.put first",
        )
    return Operand(role, operand, writable, view)
