"""The worker process: takes parts of jobs, runs kernels on mapped operands, reports timings.

Operands stay mapped between jobs, so a repeated job pays no mmap; the coordinator
says when a segment was destroyed and must be let go.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence

from hugepool import crew_member, kernels
from hugepool.channel import Channel
from hugepool.counters import TlbCounter
from hugepool.operands import HeldOperands
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    InvalidSpecError,
    JobFailedError,
)
from hugepool_common.messages import (
    WORKER_CLIENT,
    CoordinatorStopping,
    DropSegment,
    Failed,
    PartDone,
    PartFailed,
    RegisterWorker,
    RunPart,
    Timing,
    WorkerRegistered,
)

log = logging.getLogger("hugepool.worker")

_CPU_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class Worker:
    """A registered worker.

    Parameters
    ----------
    address
        Of the coordinator.
    cpus
        CPUs to pin this process to; empty leaves it where it is.
    parent_pid
        End with this process; None for a worker of its own right.

    Raises
    ------
    CoordinatorUnreachableError
        Nobody answers at the address.
    OSError
        A CPU does not exist or is not allowed to us.
    """

    def __init__(
        self, address: str, *, cpus: Sequence[int] = (), parent_pid: int | None = None
    ) -> None:
        if cpus:
            os.sched_setaffinity(0, cpus)
        self._channel = Channel(address, client=WORKER_CLIENT)
        self._tlb = TlbCounter()
        self._operands = HeldOperands(self._channel.check_owner)
        self._parent_fd = -1 if parent_pid is None else os.pidfd_open(parent_pid)
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._cpus = tuple(cpus)
        self._register()

    def _register(self) -> None:
        """Offer this process to the coordinator of the moment."""
        request = RegisterWorker(self._cpus)
        self.number = self._channel.request(request, WorkerRegistered).worker
        # Counted now: asked of one that ended, it was asked again, and the next one answered.
        self._reunions = self._channel.reunions

    def stop(self) -> None:
        """End :meth:`run` after the part under way. May be called from a signal handler."""
        os.write(self._stop_writer, b".")

    def run(self) -> bool:
        """Serve parts until the coordinator or the parent ends, or :meth:`stop`.

        A coordinator that is restarted soon enough is served on; the part under way when
        the former one ended is reported to nobody.

        Returns
        -------
        bool
            Whether the end was in order: False if the coordinator went without a word.
        """
        watch = self._watched
        try:
            while True:
                notice = self._channel.next_notice(None, watch=watch)
                match notice:
                    case RunPart():
                        report = self._done(notice)
                        if report is not None and self._reunions == self._channel.reunions:
                            self._channel.post(report)
                    case DropSegment():
                        self._operands.drop(notice.segment_id)
                    case CoordinatorStopping():
                        return True
                    case None if select.select(watch, [], [], 0)[0]:
                        return True
                if self._reunions != self._channel.reunions:
                    self._return()
        except CoordinatorUnreachableError as error:
            log.error("%s", error)
            return False
        finally:
            self.close()

    def _return(self) -> None:
        """Be a worker of the coordinator that was started in place of ours."""
        # It does not know what we map, and so will not say when to let go of it.
        self._operands.drop_all()
        self._register()
        log.warning("the coordinator was restarted; worker %d goes on with it", self.number)

    @property
    def _watched(self) -> list[int]:
        """What ends this worker when it becomes readable."""
        return [self._stop_reader] + ([self._parent_fd] if self._parent_fd >= 0 else [])

    def close(self) -> None:
        """Leave: the coordinator hands our part, if any, to another worker."""
        self._channel.close()
        self._operands.clear()

    def _done(self, part: RunPart) -> PartDone | PartFailed | None:
        """What to report; nothing of a part that another worker is to take up."""
        try:
            timing = self._timed(part)
        except crew_member.MembershipEnded:
            return None
        except Exception as error:
            if not isinstance(error, HugepoolError):
                log.exception("part %d of job %d failed", part.part, part.job)
                error = JobFailedError(
                    f"{part.kernel} failed: {type(error).__name__}: {error}",
                    where=f"rows {part.row_start} to {part.row_stop}, worker pid {os.getpid()}",
                    remedy="look at the worker's message on its stderr",
                )
            return PartFailed(part.job, part.part, part.epoch, Failed.from_error(error))
        return PartDone(part.job, part.part, part.epoch, timing)

    def _timed(self, part: RunPart) -> Timing:
        kernel = self._kernel(part)
        held = {operand.role: self._operands.hold(operand) for operand in part.operands}
        operands = {role: one.operand for role, one in held.items()}
        kernel.prepare(operands)  # compiling is no part of the run
        with self._tlb:
            cpu_ns = time.thread_time_ns()
            started_ns = time.monotonic_ns()
            work = kernel(operands, part.row_start, part.row_stop)
            wall_ns = time.monotonic_ns() - started_ns
            cpu_ns = time.thread_time_ns() - cpu_ns
        return Timing(
            part.kernel,
            implementation=kernel.implementation,
            worker=self.number,
            pid=os.getpid(),
            part=part.part,
            row_start=part.row_start,
            row_stop=part.row_stop,
            elements=work.elements,
            nnz=work.nnz,
            started_ns=started_ns,
            wall_ns=wall_ns,
            cpu_ns=cpu_ns,
            nbytes=work.nbytes,
            mapped_bytes=sum(one.mapped_bytes for one in held.values()),
            huge_bytes=sum(one.huge_bytes for one in held.values()),
            tlb_misses=self._tlb.misses,
            tlb_note=self._tlb.note,
        )

    def _kernel(self, part: RunPart) -> kernels.Kernel:
        if part.kernel == crew_member.KERNEL:
            return crew_member.Membership(self._channel, self._watched)
        return kernels.resolve(part.kernel, part.implementation)


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as ``0-3,8``, all of which this process may run on.

    Raises
    ------
    InvalidSpecError
        The text is no such list, or names a CPU that is not there for us.
    """
    allowed = os.sched_getaffinity(0)
    cpus: list[int] = []
    for piece in text.split(","):
        match = _CPU_RANGE.fullmatch(piece.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InvalidSpecError(f"{text!r} is not a list of CPUs such as 0-3 or 0,2")
        if not {first, last} <= allowed:
            raise InvalidSpecError(
                f"{text!r} names a CPU that is not there for us",
                needed=f"of {','.join(map(str, sorted(allowed)))}",
                had=piece.strip(),
            )
        cpus += (cpu for cpu in range(first, last + 1) if cpu in allowed)
    return tuple(cpus)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker process: what ``hugepool worker`` starts ``-n`` of."""
    parser = argparse.ArgumentParser(prog="python -m hugepool.worker")
    parser.add_argument("--address", required=True)
    parser.add_argument("--cpus", type=parse_cpus, default=())
    parser.add_argument("--parent", type=int)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="hugepool worker: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes on what it decides
    try:
        worker = Worker(chosen.address, cpus=chosen.cpus, parent_pid=chosen.parent)
    except ProcessLookupError:
        return 0  # the parent is gone already
    except CoordinatorUnreachableError as error:
        log.error("%s", error)
        return 3
    except (HugepoolError, OSError) as error:
        log.error("%s", error)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    return 0 if worker.run() else 3


if __name__ == "__main__":
    sys.exit(main())
