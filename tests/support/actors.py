"""A client process that does what it is told, a line of JSON at a time, and tells the outcome."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from msgspec import to_builtins

from hugepool.connection import connect
from hugepool.pool import Pool
from hugepool_common.errors import (
    ArrayLostError,
    ArrayNotFoundError,
    HugepoolError,
    SegmentChangedError,
)
from hugepool_common.messages import JobsListed, ListJobs
from support.payloads import content_of, payload

Answer = dict[str, Any]


class Actor:
    """A client with its handles; every public method is a request."""

    def __init__(self) -> None:
        self._address = ""
        self._pool: Pool | None = None
        self._handles: dict[str, Any] = {}

    @property
    def pool(self) -> Pool:
        """The session, opened anew if it is not open."""
        if self._pool is None:
            self._pool = connect(self._address)
        return self._pool

    def connect(self, address: str) -> None:
        """Open the session."""
        self._address = address
        self._pool = connect(address)

    def create(self, name: str, count: int, backing: str = "") -> None:
        """Make an array."""
        self._handles[name] = self.pool.create(name, count, "u8", backing=backing)

    def fill(self, name: str, content: int) -> None:
        """Write a content into an array that is held."""
        array = self._handles[name].array
        array[:] = payload(content, len(array))

    def seal(self, name: str) -> None:
        """Seal an array that is held."""
        self._handles[name].seal()

    def put(self, name: str, content: int, count: int, backing: str = "") -> None:
        """Make, fill and seal in one."""
        self._handles[name] = self.pool.put(name, payload(content, count), backing=backing)

    def publish(self, name: str, source: str) -> None:
        """Publish a sealed array that is held under another name."""
        self.pool.publish(name, self._handles[source])
        self._handles[name] = self._handles.pop(source)

    def snapshot(self, directory: str) -> None:
        """Save everything."""
        self.pool.snapshot(directory)

    def restore(self, directory: str, backing: str) -> None:
        """Publish what was saved over what has its names."""
        self.pool.restore(directory, replace=True, backing=backing)

    def attach(self, name: str) -> int | None:
        """Attach; the content that is seen."""
        handle = self.pool.attach(name)
        self._handles[f"{name} attached"] = handle
        return content_of(handle.array)

    def reread(self, name: str) -> int | None:
        """The content of an array that was attached."""
        return content_of(self._handles[f"{name} attached"].array)

    def detach(self, name: str) -> None:
        """Let go of a handle."""
        self._handles.pop(name).detach()

    def destroy(self, name: str) -> None:
        """Remove a name; a handle of it stays."""
        self.pool.destroy(name)

    def let_go(self) -> None:
        """Forget every handle."""
        while self._handles:
            _, handle = self._handles.popitem()
            with contextlib.suppress(HugepoolError):
                handle.detach()
        gc.collect()

    def stats(self) -> Answer:
        """Some totals."""
        found = self.pool.stats()
        return {"sessions": found.sessions, "arrays": found.arrays, "pid": found.pid}

    def jobs(self) -> Answer:
        """The first page of jobs, and the workers: what is told when something hangs."""
        found = self.pool._channel.request(ListJobs(), JobsListed)
        return {
            "jobs": [to_builtins(job) for job in found.jobs],
            "workers": [to_builtins(worker) for worker in self.pool.stats().workers],
        }

    def look(self) -> dict[str, Any]:
        """Every name: whether sealed or lost, and the content that a fresh attach sees."""
        found: dict[str, Any] = {}
        for info in self.pool.list():
            name = info.spec.name
            try:
                with self.pool.attach(name) as handle:
                    content = content_of(handle.array) if info.spec.kind == "array" else None
            except ArrayNotFoundError:
                continue  # went between list and attach
            except SegmentChangedError:
                if any(one.segment == info.segment for one in self.pool.list()):
                    raise
                continue  # went between attach and the opening of its file
            except ArrayLostError:
                content = None
            found[name] = {
                "sealed": info.sealed,
                "lost": info.lost,
                "content": content,
                "nbytes": info.spec.nbytes,
                "creator": info.creator_pid,
            }
        return found

    def clear(self, keep: Sequence[str] = ()) -> None:
        """Destroy every name but these."""
        for info in self.pool.list():
            if info.spec.name not in keep:
                with contextlib.suppress(ArrayNotFoundError):
                    self.pool.destroy(info.spec.name)

    def churn(self, first: int, count: int, huge_every: int) -> Answer:
        """Make, attach and destroy so many arrays; what this process holds afterwards."""
        for number in range(first, first + count):
            huge = huge_every and number % huge_every == 0
            backing, elements = ("hugetlbfs-2m", 1 << 18) if huge else ("shm-4k", 512)
            made = self.pool.create("churned", elements, "u8", backing=backing)
            made.array[0] = number
            with self.pool.attach("churned") as seen:
                assert int(seen.array[0]) == number
            made.detach()
            self.pool.destroy("churned")
        return {"rss": _own_memory(), "fds": len(os.listdir("/proc/self/fd")) - 1}

    def close(self) -> None:
        """End the session."""
        self.let_go()
        self.pool.close()
        self._pool = None


def _own_memory() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def answer_to(actor: Actor, request: dict[str, Any]) -> Answer:
    """Do one request; the result, or the error and whether it is one of hugepool's own."""
    verb = request.pop("verb")
    try:
        return {"ok": getattr(actor, verb)(**request)}
    except HugepoolError as error:
        return {"error": type(error).__name__, "ours": True, "text": str(error)}
    except BaseException as error:
        traceback.print_exc()
        return {"error": type(error).__name__, "ours": False, "text": str(error)}


def main() -> int:
    """Serve requests until stdin ends."""
    actor = Actor()
    for line in sys.stdin:
        print(json.dumps(answer_to(actor, json.loads(line))), flush=True)
    return 0
