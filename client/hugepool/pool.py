"""The pool: a client's session with one coordinator, its arrays, its jobs and its children."""

from __future__ import annotations

import operator
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from hugepool.channel import Channel
from hugepool.children import EmbeddedCoordinator
from hugepool.jobs import JobRunner
from hugepool.planning import Planning
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
    One request is under way at a time: threads that share a pool wait for each
    other. A forked child must call :func:`hugepool.connect` for itself.
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
        self._finalizer = weakref.finalize(
            self, _end, os.getpid(), channel, self._jobs, coordinator
        )

    @property
    def address(self) -> str:
        """Where other processes connect to the same arrays."""
        return self._channel.address

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._channel.closed

    def close(self) -> None:
        """End the session, the workers it started, and its private coordinator if it has one.

        What is mapped stays mapped; unsealed arrays of this session are destroyed.
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

    def __repr__(self) -> str:
        return f"<Pool {self.address}{' closed' if self.closed else ''}>"

    def stats(self) -> Counted:
        """Totals, workers and the newest timings of the coordinator."""
        return self._channel.request(Stats(), Counted)

    def shutdown(self) -> None:
        """Ask the coordinator to drain and end; its arrays go with it."""
        self._channel.request(Shutdown(), ShuttingDown)

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


def _end(
    owner_pid: int, channel: Channel, jobs: JobRunner, coordinator: EmbeddedCoordinator | None
) -> None:
    """Close everything of a pool; in a forked child nothing of it is ours to end."""
    if os.getpid() != owner_pid:
        return
    jobs.stop()
    channel.close()
    if coordinator is not None:
        coordinator.stop()
