"""The processes that peers run in: one per CPU, pinned, on arrays of ours that they attach.

The leader tells all of them to start at one moment that lies a little ahead, so that
no time of theirs is spent on getting the word: a run lasts from the first start to
the last stop, and the way there and back is not counted. (Ours is.)
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

import hugepool
from gather_peers import GATHER_PEERS
from peers import HUGE_HEAP, ONE_THREAD, GatherPart, Peer, ProductPart, TransposedPart
from product_peers import PRODUCT_PEERS, TRANSPOSED_PEERS, GraphBlasProduct

LEAD_NS = 2_000_000
"""How far ahead the common start lies; longer than a message takes."""

Operation = Literal["gather", "matvec", "rmatvec"]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process computes, in names that it can attach.

    Parameters
    ----------
    kind
        ``gather``, ``matvec`` or ``rmatvec``.
    names
        Role (``x``, ``idx``, ``A``, ``out``) to the name of a shared object.
    rows
        Of the result.
    """

    kind: Operation
    names: Mapping[str, str]
    rows: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What it cost to prepare, and how the inputs are mapped."""

    elapsed_ns: int
    mapped_bytes: int
    huge_bytes: int


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of one process, on the common clock."""

    started_ns: int
    stopped_ns: int
    cpu_ns: int


class PeerFailed(Exception):
    """A peer refused or failed; the text says what it said."""


class PeerProcesses:
    """One process on each of `cpus`, ended with the ``with`` block.

    Parameters
    ----------
    address
        Of the coordinator.
    cpus
        One for each process.
    """

    def __init__(self, address: str, cpus: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        kept = {name: os.environ.get(name) for name in ONE_THREAD | HUGE_HEAP}
        os.environ.update(ONE_THREAD | HUGE_HEAP)  # malloc reads its own before main()
        try:
            for cpu in cpus:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, address, cpu), daemon=True)
                process.start()
                theirs.close()
                self._ends.append(ours)
                self._processes.append(process)
        finally:
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def available(self, peer: str) -> str:
        """Why a peer cannot run here; empty if it can."""
        return str(self._ask(("available", peer), 1)[0])

    def prepare(self, key: str, peer: str, shares: Sequence[Share]) -> Prepared:
        """Have the first processes take a share each.

        Raises
        ------
        PeerFailed
            One could not.
        """
        for end, share in zip(self._ends, shares, strict=False):
            end.send(("prepare", key, peer, share))
        done: list[Prepared] = self._replies(len(shares))
        return Prepared(
            max(one.elapsed_ns for one in done),
            sum(one.mapped_bytes for one in done),
            sum(one.huge_bytes for one in done),
        )

    def run(self, key: str, processes: int) -> list[Ran]:
        """Have the first processes run what they prepared, all from one moment on."""
        return self._ask(("run", key, time.monotonic_ns() + LEAD_NS), processes)

    def store(self, key: str, processes: int) -> None:
        """The same, and copy the result to ``out`` if it is not there, for it to be checked."""
        self._ask(("store", key), processes)

    def drop(self, key: str, processes: int) -> None:
        """Forget what was prepared."""
        self._ask(("drop", key), processes)

    def detach(self) -> None:
        """Forget everything and unmap all arrays."""
        self._ask(("detach",), len(self._ends))

    def _ask(self, words: tuple[Any, ...], processes: int) -> list[Any]:
        for end in self._ends[:processes]:
            end.send(words)
        return self._replies(processes)

    def _replies(self, processes: int) -> list[Any]:
        replies: list[Any] = []
        failed = ""
        for number, end in enumerate(self._ends[:processes]):
            try:
                state, reply = end.recv()
            except EOFError:
                process = self._processes[number]
                process.join(1)
                raise PeerFailed(f"its process ended with status {process.exitcode}") from None
            failed = failed or (reply if state == "failed" else "")
            replies.append(reply)
        if failed:
            raise PeerFailed(failed)
        return replies

    def close(self) -> None:
        """End the processes: each ends with its pipe."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find_peer(name: str) -> Peer:
    """A new adapter of that name.

    Raises
    ------
    KeyError
        There is none.
    """
    for kind in (*GATHER_PEERS, *PRODUCT_PEERS, *TRANSPOSED_PEERS):
        peer = kind()
        if peer.name == name:
            return peer
    raise KeyError(name)


class _Served:
    """What one peer process holds."""

    def __init__(self, pool: hugepool.Pool) -> None:
        self._pool = pool
        self._attached: dict[tuple[str, bool], Any] = {}
        self._peers: dict[str, tuple[Peer, Any]] = {}

    def available(self, peer: str) -> str:
        return find_peer(peer).available()

    def prepare(self, key: str, name: str, share: Share) -> Prepared:
        objects = {
            role: self._attach(shared, role != "out") for role, shared in share.names.items()
        }
        start, stop = share.rows
        x = objects["x"].array
        part: GatherPart | ProductPart | TransposedPart
        if share.kind == "gather":
            part = GatherPart(x, objects["idx"].array[start:stop])
        else:
            a = objects["A"]
            rows = slice(start, stop)
            if share.kind == "matvec":
                part = ProductPart.of_rows(a.indptr, a.indices, a.data, a.shape[1], x, rows)
            else:
                part = TransposedPart(ProductPart(a.indptr, a.indices, a.data, a.shape, x), rows)
        peer = find_peer(name)
        started_ns = time.monotonic_ns()
        peer.prepare(part)
        elapsed_ns = time.monotonic_ns() - started_ns
        self._peers[key] = peer, objects["out"].array[start:stop]
        reports = [one.prove() for one in objects.values()]
        return Prepared(
            elapsed_ns,
            sum(report.length for report in reports),
            sum(report.huge_bytes for report in reports),
        )

    def run(self, key: str, start_ns: int) -> Ran:
        peer, out = self._peers[key]
        while time.monotonic_ns() < start_ns:
            pass
        cpu_ns, started_ns = time.process_time_ns(), time.monotonic_ns()
        result = peer.run(out)
        ran = Ran(started_ns, time.monotonic_ns(), time.process_time_ns() - cpu_ns)
        del result  # to give its memory back is not counted
        return ran

    def store(self, key: str) -> None:
        peer, out = self._peers[key]
        result = peer.run(out)
        if isinstance(peer, GraphBlasProduct):
            result = peer.dense()
        if result is not out:
            np.copyto(out, result)

    def drop(self, key: str) -> None:
        self._peers.pop(key, None)

    def detach(self) -> None:
        self._peers.clear()
        for shared in self._attached.values():
            shared.detach()
        self._attached.clear()

    def _attach(self, name: str, readonly: bool) -> Any:
        if (name, readonly) not in self._attached:
            self._attached[name, readonly] = self._pool.attach(name, readonly=readonly)
        return self._attached[name, readonly]


def _serve(end: Connection, address: str, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    with hugepool.connect(address) as pool:
        served = _Served(pool)
        while True:
            try:
                verb, *arguments = end.recv()
            except (EOFError, KeyboardInterrupt):
                return
            try:
                end.send(("done", getattr(served, verb)(*arguments)))
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                end.send(("failed", f"{type(error).__name__}: {error} ({last.name})"))
