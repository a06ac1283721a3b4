"""The pool: a client's session with one coordinator, its arrays, its jobs and its children."""

from __future__ import annotations

import functools
import operator
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, Unpack

from hugepool import notebook
from hugepool.array import SharedObject
from hugepool.background import Background
from hugepool.channel import Channel
from hugepool.children import EmbeddedCoordinator
from hugepool.crew import PATIENCE_S, Crew, checked_size
from hugepool.crew_cpus import usable_cpus
from hugepool.job import Job
from hugepool.jobs import JobRunner
from hugepool.leased_file import VerifyReport, verify
from hugepool.plan import SharedPlan
from hugepool.planning import Planning
from hugepool.progress import Waiting
from hugepool.snapshot import SnapshotReport, restore_snapshot, write_snapshot
from hugepool.store import Policy, Progress
from hugepool_common.errors import HugepoolError, NotPermittedError
from hugepool_common.messages import (
    Counted,
    ReportTiming,
    Shutdown,
    ShuttingDown,
    Stats,
    Timing,
    TimingReported,
)
from hugepool_common.spec import HugePages, PageSize, check_label
from hugepool_common.units import format_bytes

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MAKING = frozenset({"create", "put", "load", "plan_gather", "plan_matvec", "plan_rmatvec"})
"""Calls of a pool whose result is known under a name from then on."""


class Pool(Planning):
    """A session with a coordinator. Made by :func:`hugepool.connect`; a context manager.

    Parameters
    ----------
    channel
        The open session.
    coordinator
        The private coordinator that ends with this pool, if there is one.
    huge_pages
        ``try`` falls to 4 KiB pages with the reasons recorded, ``on`` fails
        instead, ``off`` asks for 4 KiB.
    page_size
        ``auto``, ``4K``, ``2M`` or ``1G``.

    Notes
    -----
    Threads may share a pool. A forked child must call :func:`hugepool.connect` for itself.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        coordinator: EmbeddedCoordinator | None = None,
        huge_pages: HugePages = "try",
        page_size: PageSize = "auto",
    ) -> None:
        super().__init__(channel, huge_pages, page_size)
        self._owner_pid = os.getpid()
        self._background = Background(channel)
        self._finalizer = weakref.finalize(
            self, _end, os.getpid(), channel, self._background, self._jobs, coordinator
        )

    @property
    def address(self) -> str:
        """Where other processes connect to the same arrays."""
        return self._channel.address

    @property
    def background(self) -> Background:
        """The threads that make the calls of jobs, and of :mod:`hugepool.aio`."""
        return self._background

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._channel.closed

    def close(self) -> None:
        """End the session, the workers it started, and its private coordinator if it has one.

        What is mapped stays mapped; unsealed arrays of this session are destroyed, and jobs
        that are not done are cancelled.
        """
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            f"a pool is a session of this process: send pool.address ({self.address!r}) and "
            "connect to it there, or send handles, which connect by themselves"
        )

    def __repr__(self) -> str:
        return f"<Pool {self.address}{' closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {"address": self.address}
        if self.closed or os.getpid() != self._owner_pid:
            return notebook.table("Pool", rows | {"state": "closed"})
        counted = self.stats()
        huge = 100 * counted.huge_bytes / counted.length if counted.length else 0.0
        rows["arrays"] = f"{counted.arrays}, {format_bytes(counted.nbytes)}"
        rows["pages"] = f"{format_bytes(counted.length)}, {huge:.4g} % huge"
        rows["workers"] = len(counted.workers)
        rows["jobs running"] = counted.jobs_running
        return notebook.table("Pool", rows)

    def submit(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Job[_T]:
        """Begin a call of this pool, and return at once with a job to wait for.

        Parameters
        ----------
        call
            A method of this pool, or of a plan or handle of it: ``pool.gather``, ``plan.run``.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        Job
            A :class:`concurrent.futures.Future` of what the call returns.

        Raises
        ------
        DetachedError
            The pool is closed, or this is a forked child. Everything that the call itself
            raises, the job's ``result()`` does.

        Examples
        --------
        >>> job = pool.submit(pool.matvec, A, x, workers=2)  # doctest: +SKIP
        >>> job.progress(), job.done()  # doctest: +SKIP
        >>> y = job.result()  # doctest: +SKIP

        Notes
        -----
        The call is made in a thread of its own. Several may be under way at once; the
        coordinator gives workers to the oldest job first.
        """
        name = getattr(call, "__name__", type(call).__name__)
        making = name in _MAKING and getattr(call, "__self__", None) is self
        undo = self.undo_making if making else _leave
        return Job(self._background, name, functools.partial(call, *args, **kwargs), undo)

    def undo_making(self, made: SharedObject | SharedPlan) -> None:
        """Remove what was just made under a name, for whom nobody waits any more."""
        try:
            made.detach()
            self.discard(made if isinstance(made, SharedObject) else made.record)
        except HugepoolError:
            pass  # somebody looks at it, or there is nobody to be told: the session's end does it

    def stats(self) -> Counted:
        """Totals, workers and the newest timings of the coordinator."""
        return self._channel.request(Stats(), Counted)

    def shutdown(self) -> None:
        """Ask the coordinator to drain and end; its arrays go with it."""
        self._channel.request(Shutdown(), ShuttingDown)

    def crew(
        self, workers: int | None = None, *, pin: bool = False, patience_s: float = PATIENCE_S
    ) -> Crew:
        """Workers that repeat planned steps together; a step costs microseconds.

        Parameters
        ----------
        workers
            How many take part; **the calling process is one of them**, and missing ones are
            started. Default: one per CPU that this process may use.
        pin
            Keep each participant, and so the calling thread, on a CPU of its own.
        patience_s
            Seconds without progress after which a worker is taken for hung, and killed.

        Returns
        -------
        Crew
            A context manager; see :class:`hugepool.crew.Crew`.

        Raises
        ------
        InvalidSpecError
            `workers` is no count that a crew can have.
        NoWorkersError
            They could not be started, or are busy for two minutes.
        NotPermittedError
            This session is one over TCP.
        MissingExtraError
            numba is not installed.

        Examples
        --------
        >>> with pool.crew(workers=2) as crew:  # doctest: +SKIP
        ...     step = crew.prepare(plan, x, out)
        ...     for _ in range(1000):
        ...         step()
        """
        if self._channel.over_tcp:
            raise NotPermittedError(
                "a client over TCP can be no member of a crew, nor lead one",
                where=self.address,
                remedy="connect to the coordinator's ipc:// address, in its runtime directory",
            )
        count = usable_cpus() if workers is None else checked_size(workers)
        self._jobs.await_return()
        idle = sum(not worker.busy for worker in self.stats().workers)
        if count - 1 > idle:
            self._jobs.start(count - 1 - idle)
        return Crew(
            self.address,
            workers=count,
            pin=pin,
            patience_s=patience_s,
            huge_pages=self._huge_pages,
            page_size=self._page_size,
        )

    def verify(self, name: str, *, progress: Progress | None = None) -> VerifyReport:
        """Read a sealed object, and compare it with the checksum that it was sealed with.

        Parameters
        ----------
        name
            Of an array, matrix or plan.
        progress
            Called with bytes done and bytes in all.

        Raises
        ------
        ChecksumError
            Its bytes have changed since.
        InvalidSpecError
            It is not sealed.
        ArrayNotFoundError, ArrayLostError
            There is no such name, or nothing under it any more.
        """
        with Waiting(f"reading {name}") as waiting:
            return verify(self._channel, name, progress or waiting.update)

    def snapshot(
        self,
        directory: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> SnapshotReport:
        """Save sealed arrays and matrices to a disk, from where :meth:`restore` brings them back.

        Whatever happens meanwhile, a power failure included, `directory` holds the
        snapshot of before or the new one, whole. The one before is removed when the new
        one is on the disk, so there must be room for both.

        Parameters
        ----------
        directory
            Of snapshots only; made if it is not there.
        names
            What to save. Default: all that is sealed, but for temporaries, which go with
            their clients. What is not sealed, and plans, are skipped, and the report says so.
        progress
            Called with bytes done and bytes in all.

        Raises
        ------
        SnapshotError
            The directory cannot be written, has no room, or another process works in it. Or
            the snapshot of before stays because it may have the only copy: of an object that
            is lost now, whatever was named, or of everything, because nothing is here to save.
        ChecksumError
            An object is not what was sealed; the snapshot of before stays.
        InvalidSpecError
            A name that was asked for stands for something that cannot be saved.
        """
        return write_snapshot(self, self._channel, directory, names, progress)

    def restore(
        self,
        directory: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        *,
        replace: bool = False,
        **policy: Unpack[Policy],
    ) -> SnapshotReport:
        """Make what a snapshot holds, with its checksums verified: all of it, or nothing.

        Parameters
        ----------
        directory
            As it was given to :meth:`snapshot`.
        names
            What to restore. Default: all.
        replace
            Publish over names that are taken; else they are refused: those that are taken
            at the beginning before anything is made.
        **policy
            As of :meth:`create`.

        Raises
        ------
        SnapshotError
            There is no snapshot, or its files are not what was written.
        ArrayExistsError
            A name is taken.
        ArrayBusyError
            What has a name is not sealed, so it cannot be replaced.
        ArrayNotFoundError
            The snapshot has no object of a name that was asked for.
        NotEnoughMemoryError
            It does not fit.

        Notes
        -----
        Everything is made under names of the form ``NAME.new-...``, which go with this
        process; when all is there and verified, it has its names in one step.
        """
        return restore_snapshot(self, self._channel, directory, names, replace, policy)

    @contextmanager
    def timed(self, label: str, items: int = 0) -> Iterator[None]:
        """Report the time of a block to the coordinator.

        Parameters
        ----------
        label
            Name of the step.
        items
            How many things it worked on, for a rate.
        """
        check_label(label, items)
        started_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        yield
        self._channel.request(
            ReportTiming(
                Timing(
                    label,
                    pid=os.getpid(),
                    elements=operator.index(items),
                    started_ns=started_ns,
                    wall_ns=time.monotonic_ns() - started_ns,
                    cpu_ns=time.thread_time_ns() - cpu_ns,
                )
            ),
            TimingReported,
        )


def _leave(result: object) -> None:
    """What was done stays done."""


def _end(
    owner_pid: int,
    channel: Channel,
    background: Background,
    jobs: JobRunner,
    coordinator: EmbeddedCoordinator | None,
) -> None:
    """Close everything of a pool; in a forked child nothing of it is ours to end."""
    if os.getpid() != owner_pid:
        return
    with ExitStack() as rest:  # each is done, whatever interrupts those before it
        if coordinator is not None:
            rest.callback(coordinator.stop)
        rest.callback(channel.close)
        rest.callback(jobs.stop)
        background.stop()
