"""One moment of a coordinator and its host, as the terminal, the page and ``--json`` show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from hugepool_common.messages import Counted, JobInfo, Timing, WorkerInfo
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host
from hugepool_common.printable import printable
from hugepool_common.units import page_size_name

State = Literal["running", "silent", "absent"]
"""The coordinator answers; it is there and does not; or nobody listens at its address."""

_SHARED_MEMORY = "/dev/shm"


class WorkerView(msgspec.Struct, frozen=True):
    """A worker, and how fast it is.

    Parameters
    ----------
    worker, pid, cpus, busy, kernel, parts_done
        As :class:`~hugepool_common.messages.WorkerInfo` has them.
    job
        Number of the job that it is at; None if it is idle or at one that is over.
    parts_per_s
        Parts that it finished per second, between this look and the one before; None at
        the first.
    rate_bytes_per_s
        Payload bytes that its newest run read and wrote, by that run's time; None while
        it does nothing, and in a crew, whose steps are not reported.
    tlb_misses_per_element
        dTLB read misses of that run by its elements, or by its matrix entries; None where
        they are not counted.
    tlb_note
        Why they are not.
    """

    worker: int
    pid: int
    cpus: tuple[int, ...]
    busy: bool
    kernel: str
    parts_done: int
    job: int | None = None
    parts_per_s: float | None = None
    rate_bytes_per_s: float | None = None
    tlb_misses_per_element: float | None = None
    tlb_note: str = ""


class PoolView(msgspec.Struct, frozen=True):
    """The kernel's huge pages of one size."""

    page_size: int
    total_bytes: int
    taken_bytes: int
    """In use, or promised to a file."""

    @property
    def name(self) -> str:
        """As people call it: ``pool 2M``."""
        return f"pool {page_size_name(self.page_size)}"


class MountView(msgspec.Struct, frozen=True):
    """A place where arrays are, or could be."""

    path: str
    kind: Literal["hugetlbfs", "tmpfs"]
    huge: str
    """Of tmpfs, its option ``huge=``; else empty."""
    total_bytes: int
    taken_bytes: int

    @property
    def name(self) -> str:
        """As people call it: its path."""
        return self.path


class Picture(msgspec.Struct, frozen=True):
    """Everything that is shown, as of one look.

    Parameters
    ----------
    address
        The coordinator's.
    taken
        When, in seconds since 1970.
    state
        How the coordinator was found. Unless it is ``running``, `totals`, `arrays`, `workers`
        and `jobs` are the last that were known.
    said
        Why it does not answer; empty if it does.
    since
        Since when it has been in that state, in seconds since 1970, as far as was looked.
    restarts
        How often another coordinator was found in the place of the one before.
    restarted
        When that was last, in seconds since 1970; None if it never was.
    totals
        :class:`~hugepool_common.messages.Counted` without workers and timings; empty if there
        never was an answer.
    arrays
        As ``hugepool ls --json`` tells them, by name.
    workers, jobs
        By number.
    pools, mounts
        Of this host, where this process sees it.
    """

    address: str
    taken: float
    state: State
    said: str
    since: float
    restarts: int = 0
    restarted: float | None = None
    totals: dict[str, Any] = {}
    arrays: tuple[dict[str, Any], ...] = ()
    workers: tuple[WorkerView, ...] = ()
    jobs: tuple[JobInfo, ...] = ()
    pools: tuple[PoolView, ...] = ()
    mounts: tuple[MountView, ...] = ()

    def same_as(self, other: Picture | None) -> bool:
        """Whether nothing but clocks has moved."""
        return other is not None and self._without_clocks() == other._without_clocks()

    def _without_clocks(self) -> Picture:
        return msgspec.structs.replace(self, taken=0.0, totals=self.totals | {"uptime_ns": 0})


def totals_of(counted: Counted) -> dict[str, Any]:
    """The counts alone."""
    facts = msgspec.structs.asdict(counted)
    return {key: value for key, value in facts.items() if key not in ("workers", "timings")}


def workers_of(
    counted: Counted, jobs: Sequence[JobInfo], before: Counted | None, elapsed_s: float
) -> tuple[WorkerView, ...]:
    """The workers, with their rates.

    Parameters
    ----------
    counted, jobs
        As the coordinator tells them now.
    before
        What it told `elapsed_s` seconds ago; None at the first look.
    """
    newest = {one.worker: one for one in counted.timings if one.nbytes and one.wall_ns}
    at_job = {worker: job.job for job in jobs for worker in job.workers}
    earlier = {one.worker: one.parts_done for one in before.workers} if before else {}
    return tuple(
        _worker(
            one,
            newest.get(one.worker),
            at_job.get(one.worker),
            None if before is None else one.parts_done - earlier.get(one.worker, 0),
            elapsed_s,
        )
        for one in counted.workers
    )


def _worker(
    info: WorkerInfo, newest: Timing | None, job: int | None, parts: int | None, elapsed_s: float
) -> WorkerView:
    view = WorkerView(
        worker=info.worker,
        pid=info.pid,
        cpus=info.cpus,
        busy=info.busy,
        kernel=info.kernel,
        parts_done=info.parts_done,
        job=job,
        parts_per_s=None if parts is None or elapsed_s <= 0 else round(parts / elapsed_s, 3),
    )
    # An old report says nothing of a worker that is idle, or at something else by now.
    if newest is None or not (newest.label.startswith(info.kernel) if info.busy else parts):
        return view
    elements = newest.nnz or newest.elements
    counts = newest.tlb_misses is not None and elements
    return msgspec.structs.replace(
        view,
        rate_bytes_per_s=round(newest.nbytes / newest.wall_ns * 1e9),
        tlb_misses_per_element=(newest.tlb_misses or 0) / elements if counts else None,
        tlb_note=newest.tlb_note,
    )


def pools_of(host: Host) -> tuple[PoolView, ...]:
    """The pools that have pages, or may have some when asked."""
    return tuple(
        PoolView(
            pool.page_size,
            pool.total_pages * pool.page_size,
            (pool.total_pages - max(0, pool.free_pages - pool.reserved_pages)) * pool.page_size,
        )
        for pool in host.pools
        if pool.total_pages
    )


def mounts_of(host: Host, paths: Sequence[str]) -> tuple[MountView, ...]:
    """Mounts with a limit that hold one of these files, or are made for shared memory."""
    found = [*map(_mount, host.hugetlbfs_mounts), *map(_mount, host.tmpfs_mounts)]
    return tuple(
        mount
        for mount in sorted(found, key=lambda mount: mount.path)
        if mount.total_bytes
        and (
            mount.kind == "hugetlbfs"
            or mount.path == _SHARED_MEMORY
            or mount.huge in ("always", "within_size")
            or any(path.startswith(mount.path.rstrip("/") + "/") for path in paths)
        )
    )


def _mount(mount: HugetlbfsMount | TmpfsMount) -> MountView:
    total, available = mount.limit_bytes or 0, mount.available_bytes or 0
    path = printable(mount.path)  # which may be no UTF-8, and then no JSON
    if isinstance(mount, TmpfsMount):
        return MountView(path, "tmpfs", mount.huge, total, total - available)
    return MountView(path, "hugetlbfs", "", total, total - available)
