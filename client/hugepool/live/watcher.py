"""Looking at a coordinator again and again, whatever becomes of it.

A look is one ``Stats``, one ``ListJobs`` while jobs are live, and the list of arrays; no
worker is asked anything. The list grows with the number of names, so it is asked for no
more often than that takes a small share of the coordinator's time.
"""

from __future__ import annotations

import time
from typing import TypeVar

from msgspec.structs import replace

from hugepool.channel import Channel
from hugepool.commands.listing import told
from hugepool.listener import probe
from hugepool.live.picture import (
    Picture,
    State,
    WorkerView,
    mounts_of,
    pools_of,
    totals_of,
    workers_of,
)
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    RequestTimeoutError,
)
from hugepool_common.messages import (
    ArrayInfo,
    Counted,
    JobInfo,
    JobsListed,
    List,
    Listed,
    ListJobs,
    Message,
    Stats,
)
from hugepool_common.pages import LiveHost
from hugepool_common.printable import printable

ANSWER_S = 0.8
"""A coordinator that has not answered after so long is called silent, and asked again."""

LISTING_SHARE = 20
"""A list of arrays that took t is not asked for again before this many t have passed."""

_R = TypeVar("_R", bound=Message)


class Watcher:
    """Takes pictures of one coordinator and this host.

    Parameters
    ----------
    address
        ``ipc://`` and the path of the coordinator's socket.

    Notes
    -----
    One thread at a time. The session is opened by the first look, and again after the
    coordinator was gone for so long that it could not be gone on with.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: Channel | None = None
        self._picture = Picture(printable(address), 0.0, "absent", "", time.time())
        self._before: tuple[Counted, float] | None = None
        self._arrays: tuple[ArrayInfo, ...] = ()
        self._list_again = 0.0

    def look(self) -> Picture:
        """Take a picture, within seconds; never fails for the coordinator's sake."""
        try:
            known = self._asked()
            state: State = "running"
            said = ""
        except HugepoolError as error:
            if not isinstance(error, RequestTimeoutError):
                self.close()
            known = replace(self._picture, workers=tuple(map(_at_rest, self._picture.workers)))
            state, said = self._found_by(error), printable(str(error))
        host = LiveHost()
        now = time.time()
        self._picture = replace(
            known,
            taken=now,
            state=state,
            said=said,
            since=self._picture.since if state == self._picture.state else now,
            pools=pools_of(host),
            mounts=mounts_of(host, [info.segment.path for info in self._arrays]),
        )
        return self._picture

    def close(self) -> None:
        """End the session; the next look opens another."""
        channel, self._channel = self._channel, None
        self._before = None
        self._list_again = 0.0
        if channel is not None:
            channel.close()

    def _asked(self) -> Picture:
        """The picture before, with what the coordinator tells now."""
        if self._channel is None:
            self._channel = Channel(self._address, client="hugepool top")
        counted = self._request(Stats(), Counted)
        told_at = time.monotonic()
        jobs = self._jobs() if counted.jobs_running else ()
        if told_at >= self._list_again:
            self._arrays = self._list()
            spent_s = time.monotonic() - told_at
            self._list_again = told_at + spent_s * LISTING_SHARE
        before, elapsed_s = None, 0.0
        if self._before is not None:
            before, elapsed_s = self._before[0], told_at - self._before[1]
        self._before = counted, told_at
        picture = replace(
            self._picture,
            totals=totals_of(counted),
            arrays=tuple(map(told, self._arrays)),
            workers=workers_of(counted, jobs, before, elapsed_s),
            jobs=jobs,
        )
        was = self._picture.totals
        if was and (was["instance"], was["pid"]) != (counted.instance, counted.pid):
            return replace(picture, restarts=picture.restarts + 1, restarted=time.time())
        return picture

    def _jobs(self) -> tuple[JobInfo, ...]:
        found: list[JobInfo] = []
        while True:
            page = self._request(ListJobs(found[-1].job if found else 0), JobsListed)
            found += page.jobs
            if not page.more:
                return tuple(found)

    def _list(self) -> tuple[ArrayInfo, ...]:
        found: list[ArrayInfo] = []
        while True:
            page = self._request(List(found[-1].spec.name if found else ""), Listed)
            found += page.arrays
            if not page.more:
                return tuple(found)

    def _request(self, message: Message, reply: type[_R]) -> _R:
        assert self._channel is not None
        return self._channel.request(message, reply, timeout_s=ANSWER_S)

    def _found_by(self, error: HugepoolError) -> State:
        """Whether anybody is there who does not answer."""
        if not isinstance(error, CoordinatorUnreachableError):
            try:
                probe(self._address)
                return "silent"
            except CoordinatorUnreachableError:
                pass
        return "absent"


def _at_rest(worker: WorkerView) -> WorkerView:
    """A worker of which nothing is heard: the rates of before are not those of now."""
    return replace(
        worker, parts_per_s=None, rate_bytes_per_s=None, tlb_misses_per_element=None, tlb_note=""
    )
