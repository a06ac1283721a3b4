"""Where contenders meet: one coordinator, its workers, a session per page kind, and the peers.

Everybody is pinned: worker ``k``, peer process ``k`` and member ``k`` of a crew share a
CPU, and only those who are measured run; the others sleep.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import hugepool
from contest import OWN_PAGES, Contender, Missing, Sample, Work, progress
from hugepool import kernels, partition
from hugepool.array import SharedArray, SharedObject
from hugepool.bench.cases import Reference
from hugepool.kernels import last_level_cache_bytes
from hugepool_common.errors import HugepoolError
from hugepool_common.pages import read_host
from hugepool_common.units import format_bytes
from options import Options
from peers import Peer
from processes import Operation, PeerFailed, PeerProcesses, Share

_POLICIES: dict[str, dict[str, Any]] = {
    "2M": {"huge_pages": "on", "page_size": "2M"},
    "4K": {"huge_pages": "off", "page_size": "4K"},
}
_MOST_LINES = 10_000_000
_ADDED = "what several processes compute of it would have to be added"
_SPARE = 0.8
"""Share of the free memory that a run may take."""
STREAM_BYTES = {"copy": 16, "triad": 24}
"""STREAM's count for each element."""


class Setting:
    """Everything that a contest needs; a context manager.

    Parameters
    ----------
    options
        Workers and page kinds.
    workers
        Whether workers, crews and peer processes are wanted.

    Attributes
    ----------
    pools
        Page kind to a session whose arrays and plans are on it.
    crews
        Page kind and number of workers, the caller included, to a crew; empty if there
        are none here.
    peers
        Processes of the peers.
    cpus
        That of each worker and peer process.
    backings
        Page kind to the backing that it turned out to be.
    missing
        What cannot be measured.
    """

    def __init__(self, options: Options, *, workers: bool = True) -> None:
        self._options = options
        self._wanted = workers
        self._stack = ExitStack()
        self._numbers = itertools.count(1)
        self.pools: dict[str, hugepool.Pool] = {}
        self.crews: dict[tuple[str, int], Any] = {}
        self.cpus: list[int] = []
        self.backings: dict[str, str] = {}
        self.missing: list[Missing] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        options = self._options
        self._allowed = sorted(os.sched_getaffinity(0))
        self._stack.callback(os.sched_setaffinity, 0, self._allowed)
        self.main = self._stack.enter_context(hugepool.connect("embedded"))
        for pages in options.pages:
            session = hugepool.connect(self.main.address, **_POLICIES[pages])
            self.pools[pages] = self._stack.enter_context(session)
            self._try_pages(pages)
        if not self.pools:
            raise SystemExit("; ".join(map(str, self.missing)))
        if self._wanted:
            self._start_workers()

    def _start_workers(self) -> None:
        count = max(self._options.workers)
        self.cpus = [self._allowed[number % len(self._allowed)] for number in range(count)]
        self.peers = self._stack.enter_context(PeerProcesses(self.main.address, self.cpus))
        # A crew's members must not be among the workers that take jobs: they come first.
        for pages in self.pools:
            for workers in self._options.workers:
                self._start_crew(pages, workers)
        self.main.start_workers(count, cpus=self.cpus)
        if self.crews:
            os.sched_setaffinity(0, self._allowed[:1])
        progress(f"{count} worker(s) and peer process(es) on CPUs {self.cpus}")

    @contextmanager
    def unpinned(self) -> Iterator[None]:
        """Let the processes that are started meanwhile choose among all CPUs."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._allowed)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def _try_pages(self, pages: str) -> None:
        try:
            with self.pools[pages].create("trial", 1 << 20, "f8") as trial:
                self.backings[pages] = trial.pages.backing
            self.pools[pages].destroy("trial")
        except HugepoolError as error:
            self.missing.append(Missing(f"{pages} pages", str(error)))
            del self.pools[pages]

    def _start_crew(self, pages: str, workers: int) -> None:
        try:
            if workers > 1:
                self.main.start_workers(workers - 1)
            crew = self.pools[pages].crew(workers=workers, pin=workers <= len(self._allowed))
            self.crews[pages, workers] = self._stack.enter_context(crew)
        except HugepoolError as error:
            self.missing.append(Missing("crew", str(error), pages, workers))

    def check_room(self, nbytes: int) -> None:
        """Refuse a contest that does not fit into memory, before anything of it is made.

        Raises
        ------
        SystemExit
            With what is needed and had.
        """
        host = read_host()
        room = int(_SPARE * host.memory_headroom_bytes)
        room += sum(pool.available_bytes for pool in host.pools)
        if nbytes > room:
            raise SystemExit(
                f"about {format_bytes(nbytes)} are needed and {format_bytes(room)} may be taken: "
                "use a smaller --size, or --pages 2M"
            )

    # Arrays ---------------------------------------------------------------------

    def array(self, pages: str, role: str, length: int, dtype: str = "f8") -> SharedArray:
        """A new array of zeros on a page kind."""
        return self.pools[pages].create(self.name(role), length, dtype)

    def name(self, role: str) -> str:
        """A name that nothing has."""
        return f"{role}-{next(self._numbers)}"

    def drop(self, objects: Sequence[SharedObject]) -> None:
        """Unmap and destroy; the peers unmap first."""
        self.peers.detach()
        for one in objects:
            name = one.name
            one.detach()
            self.main.destroy(name)

    # Contenders -----------------------------------------------------------------

    def peer_contenders(
        self,
        kinds: Sequence[Callable[[], Peer]],
        kind: Operation,
        objects: Mapping[str, Mapping[str, SharedObject]],
        bounds: Callable[[int], Sequence[int]],
        reference: Reference,
    ) -> list[Contender]:
        """Every peer that is here, on every page kind, with every number of processes.

        Parameters
        ----------
        kinds
            Of :data:`gather_peers.GATHER_PEERS`, or of those in ``product_peers``.
        kind
            What they compute.
        objects
            Page kind to roles to objects.
        bounds
            Number of processes to partition bounds.
        reference
            What must come out.
        """
        made = []
        for peer in (kind() for kind in kinds):
            if not self._options.wants(peer.name):
                continue
            reason = self.peers.available(peer.name)
            if reason:
                self.missing.append(Missing(peer.name, reason))
                continue
            progress(f"preparing {peer.name}")
            for pages in list(objects)[: 1 if peer.own_memory else None]:
                for workers in self._options.workers:
                    rows = bounds(workers)
                    label = OWN_PAGES if peer.own_memory else pages
                    if peer.one_process and workers > 1:
                        self.missing.append(Missing(peer.name, _ADDED, label, workers))
                        continue
                    try:
                        contender = self._peer(peer, kind, label, objects[pages], rows, reference)
                    except PeerFailed as error:
                        self.missing.append(Missing(peer.name, str(error), label, workers))
                        continue
                    made.append(contender)
        return made

    def _peer(
        self,
        peer: Peer,
        kind: Operation,
        pages: str,
        objects: Mapping[str, SharedObject],
        rows: Sequence[int],
        reference: Reference,
    ) -> Contender:
        workers = len(rows) - 1
        key = f"{peer.name}/{pages}/{workers}"
        names = {role: one.name for role, one in objects.items()}
        shares = [Share(kind, names, (rows[k], rows[k + 1])) for k in range(workers)]
        prepared = self.peers.prepare(key, peer.name, shares)
        share = prepared.huge_bytes / max(1, prepared.mapped_bytes)

        def run() -> Sample:
            ran = self.peers.run(key, workers)
            wall_ns = max(one.stopped_ns for one in ran) - min(one.started_ns for one in ran)
            shares = [one.cpu_ns / max(1, one.stopped_ns - one.started_ns) for one in ran]
            return Sample(wall_ns, wall_ns, min(shares))

        out = objects["out"]
        assert isinstance(out, SharedArray)
        return Contender(
            peer.name,
            "peer",
            pages,
            workers,
            peer.result,
            run,
            lambda: self.peers.store(key, workers),
            out.array,
            reference,
            prepared.elapsed_ns,
            "copies its inputs" if peer.own_memory else f"{100 * share:.0f} % huge",
        )

    def limit_contenders(
        self, objects: Mapping[str, Mapping[str, SharedObject]], nbytes: int
    ) -> tuple[list[Contender], list[SharedObject], Work]:
        """STREAM copy and triad, and random lines of x, on every page kind.

        Parameters
        ----------
        objects
            Page kind to roles to objects; ``x`` is among them.
        nbytes
            What the contest moves: smaller contests need no long streams.

        Returns
        -------
        contenders, made, work
            What to destroy afterwards, and a :class:`contest.Work` of nothing but limits.
        """
        x_elements = max(next(iter(objects.values()))["x"].shape[0], 1)
        length = stream_elements(nbytes)
        lines = min(_MOST_LINES, max(x_elements, 1 << 14))
        found: list[Contender] = []
        made: list[SharedObject] = []
        for pages, roles in objects.items():
            streams = {role: self.array(pages, role, length) for role in ("a", "b", "out")}
            for value, role in enumerate(streams):
                streams[role].array.fill(value)
            made += streams.values()
            for workers in self._options.workers:
                rows = partition.by_rows(length, workers)
                copy = {role: streams[role] for role in ("a", "out")}
                found.append(self._limit("copy", pages, copy, rows, ("out",)))
                found.append(self._limit("triad", pages, streams, rows, ("out",)))
                if kernels.available("random_lines"):
                    reads = partition.by_rows(lines, workers)
                    found.append(self._limit("random_lines", pages, {"x": roles["x"]}, reads, ()))
        streamed = {name: count * length for name, count in STREAM_BYTES.items()}
        return found, made, Work(0, "", 0, 0, lines, streamed)

    def _limit(
        self,
        kernel: str,
        pages: str,
        operands: Mapping[str, SharedObject],
        rows: Sequence[int],
        writes: Sequence[str],
    ) -> Contender:
        implementation = kernels.available(kernel)[0]

        def run() -> Sample:
            timings = self.pools[pages].run(
                kernel, operands, rows, implementation=implementation, writes=writes
            )
            return Sample.of_job(timings, timings.wall_ns)

        return Contender(kernel, "limit", pages, len(rows) - 1, "", run, note=implementation)


def stream_elements(nbytes: int) -> int:
    """Length of the arrays streamed over: eight times the last-level cache, or what will do."""
    return min(last_level_cache_bytes(), max(nbytes // 8, 1 << 17))


def stream_nbytes(nbytes: int) -> int:
    """Bytes of all of them on one page kind."""
    return 3 * 8 * stream_elements(nbytes)
