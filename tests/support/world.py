"""One durable coordinator with all that it may leave behind, on mounts of its own.

A :class:`World` starts and kills real processes, and audits what lies in the runtime
directory and on the mounts: segments against manifests, room on the file systems,
descriptors. It reads the files by itself, not by the code that is on trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import actors
from support.host import enter_private_mounts, lower_pool, raise_pool
from support.nursery import Child, Nursery, TooSlow

START_S = 60.0
ANSWER_S = 60.0
"""A client that says nothing for so long hangs."""

_SEGMENT = re.compile(r"[0-9a-f]{8,16}\.segment")
_MANIFEST = re.compile(r"[0-9a-f]{16}\.manifest")
_HEX = re.compile(r"[0-9a-f]{8,}")


class StartRefused(Exception):
    """A coordinator ended instead of listening."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"exit status {status}: {said}")
        self.status = status
        self.said = said


class Client:
    """An actor process."""

    def __init__(self, child: Child) -> None:
        self.child = child

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.child.alive

    def tell(self, verb: str, **arguments: Any) -> None:
        """Have it do something, without waiting."""
        self.child.say(json.dumps({"verb": verb, **arguments}))

    def answer(self, timeout_s: float = ANSWER_S) -> actors.Answer | None:
        """What came of it; None if the process died."""
        line = self.child.hear(timeout_s)
        return None if line is None else json.loads(line)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Have it do something that must succeed.

        Raises
        ------
        AssertionError
            It did not.
        """
        self.tell(verb, **arguments)
        found = self.answer()
        if found is None or "ok" not in found:
            raise AssertionError(f"{verb} {arguments} of {self.child!r}: {found}")
        return found["ok"]

    def close(self) -> None:
        """End its session and its process."""
        if self.alive:
            self.tell("close")
            self.answer()
            self.child.kill()
        self.child.forget()


@dataclass(frozen=True)
class Remains:
    """What lies on the disk of a world."""

    segments: frozenset[str] = frozenset()
    manifests: frozenset[str] = frozenset()
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path of the segment, what its manifest says."""
    tokens: frozenset[str] = frozenset()
    strays: frozenset[str] = frozenset()
    """Files that are none of these."""

    @property
    def orphans(self) -> set[str]:
        """Segments without a manifest, and manifests without a segment."""
        return set(self.segments ^ frozenset(self.described))


@dataclass(frozen=True)
class Room:
    """Free blocks of each mount."""

    blocks: tuple[int, ...]


class World:
    """A place for one coordinator; a context manager.

    Parameters
    ----------
    place
        An empty directory.
    nursery
        Where processes come from.
    huge_bytes
        Size of the hugetlbfs mount; 0 for none.
    shm_bytes
        Size of the tmpfs over ``/dev/shm``.
    options
        Of ``hugepoold``.
    """

    def __init__(
        self,
        place: Path,
        nursery: Nursery,
        *,
        huge_bytes: int = 32 << 20,
        shm_bytes: int = 256 << 20,
        options: tuple[str, ...] = (),
    ) -> None:
        self.place = place
        self.run = place / "run"
        self.nursery = nursery
        self.address = f"ipc://{self.run}/hugepool.sock"
        self.coordinator: Child | None = None
        self._options = options
        self._mounts: list[Path] = []
        if not enter_private_mounts():
            raise SystemExit("needs root: the coordinator gets mounts of its own")
        self._mount("tmpfs", f"size={shm_bytes},mode=1777", Path("/dev/shm"))
        self._pools: list[tuple[int, int]] = []
        if huge_bytes:
            self._pools.append(raise_pool(huge_bytes >> 21))
            # Claimed for as long as it is mounted: others may resize the pool, and use it up.
            limits = f"pagesize=2M,size={huge_bytes},min_size={huge_bytes}"
            self._mount("hugetlbfs", limits, place / "huge")
        self._environment = {"HUGEPOOL_MOUNT": str(self._mounts[-1]), "HUGEPOOL_LOG": "info"}

    def _mount(self, kind: str, options: str, path: Path) -> None:
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", kind, "-o", options, "none", str(path)], check=True)
        self._mounts.append(path)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes and unmount."""
        self.nursery.close()
        for path in reversed(self._mounts):
            subprocess.run(["umount", "-l", str(path)], check=True)
        for before, made in reversed(self._pools):
            lower_pool(before, made)

    # Processes ----------------------------------------------------------------

    def hatch(self, *, gate: bool = False) -> Child:
        """Fork a coordinator, without waiting for it to listen."""
        command = ["hugepoold", "--runtime-dir", str(self.run), *self._options]

        def run() -> None:
            from hugepool_server import cli

            sys.argv = command
            cli.main()

        self.coordinator = self.nursery.spawn(
            "coordinator", run, environment=self._environment, gate=gate
        )
        return self.coordinator

    def start(self) -> Child:
        """Start the coordinator and wait until it listens.

        Raises
        ------
        StartRefused
            It ended.
        """
        return self.await_listening(self.hatch())

    def await_listening(self, child: Child) -> Child:
        """Wait for the address that a coordinator prints."""
        line = child.hear(START_S)
        if line is None:
            status = child.wait(START_S)
            child.forget()
            raise StartRefused(status, child.tail())
        assert line == self.address, line
        return child

    def kill_coordinator(self) -> None:
        """SIGKILL it, if it lives."""
        if self.coordinator is not None:
            self.coordinator.kill()
            self.coordinator.forget()
            self.coordinator = None

    def leave_remains(self) -> None:
        """A segment without a manifest, as a kill between the two leaves it."""
        for path in sorted(self.remains().segments)[:1]:
            (Path(path).parent / f"{(1 << 63) + 1:016x}.segment").touch(0o600)

    def wipe(self) -> None:
        """Remove all that is left, so that something broken does not break what follows."""
        for place in (self.run, *(one for mount in self._mounts for one in mount.iterdir())):
            shutil.rmtree(place, ignore_errors=True)

    def client(self, role: str = "client", **environment: str) -> Client:
        """A connected client, with more in its environment."""
        environment = self._environment | environment
        made = Client(self.nursery.spawn(role, actors.main, environment=environment))
        made.ask("connect", address=self.address)
        return made

    # Gauges -------------------------------------------------------------------

    def remains(self) -> Remains:
        """What lies in the runtime directory and on the mounts now."""
        segments: set[str] = set()
        manifests: set[str] = set()
        tokens: set[str] = set()
        strays: set[str] = set()
        described: dict[str, dict[str, Any]] = {}
        for mount in self._mounts:
            for directory in mount.iterdir():
                if not directory.name.startswith("hugepool-"):
                    strays.add(str(directory))
                    continue
                for name in _names(directory):
                    path = str(directory / name)
                    if _SEGMENT.fullmatch(name):
                        segments.add(path)
                    elif not name.startswith("owner:"):
                        strays.add(path)
        for name in _names(self.run / "arrays"):
            manifest = self.run / "arrays" / name
            if not _MANIFEST.fullmatch(name):
                strays.add(str(manifest))
                continue
            with contextlib.suppress(FileNotFoundError):
                record = json.loads(manifest.read_bytes().split(b"\n", 1)[1])
                manifests.add(name)
                described[record["segment"]["path"]] = record
        tokens.update(_names(self.run / "tokens"))
        known = {"arrays", "tokens", "quarantine", "coordinator", "hugepool.sock"}
        strays.update(str(self.run / name) for name in _names(self.run) if name not in known)
        return Remains(
            frozenset(segments),
            frozenset(manifests),
            described,
            frozenset(tokens),
            frozenset(strays),
        )

    def shape_of_remains(self) -> str:
        """What lies there with numbers and names taken out: equal for states of one kind."""
        lines: list[str] = []
        for directory, _, names in os.walk(self.run):
            lines += (
                _HEX.sub("#", os.path.relpath(os.path.join(directory, name), self.run))
                for name in names
            )
        for record in self.remains().described.values():
            facts = (record["spec"]["name"], record["sealed"], record["generation"])
            there = os.path.exists(record["segment"]["path"])
            lines.append(f"manifest of {facts}, segment {'there' if there else 'gone'}")
        for path in self.remains().segments:
            with contextlib.suppress(OSError):
                status = os.stat(path)
                lines.append(f"segment {status.st_mode:o} {status.st_size}")
        return "\n".join(sorted(lines))

    def room(self) -> Room:
        """Free blocks; a page that is promised is not free."""
        return Room(tuple(os.statvfs(path).f_bfree for path in self._mounts))

    def descriptors(self) -> int:
        """Open descriptors of the coordinator."""
        assert self.coordinator is not None
        return len(os.listdir(f"/proc/{self.coordinator.pid}/fd"))

    def rss_bytes(self, pid: int) -> int:
        """Resident memory of a process that is its own: no mapped segment."""
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0


def locks_of(pid: int) -> int:
    """Entries in ``/proc/locks`` that a process holds."""
    count = 0
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        count += len(fields) > 4 and fields[4] == str(pid)
    return count


def eventually(holds: Any, seconds: float = 30.0) -> bool:
    """Whether something comes true soon."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


__all__ = [
    "ANSWER_S",
    "Client",
    "Remains",
    "Room",
    "StartRefused",
    "TooSlow",
    "World",
    "eventually",
    "locks_of",
]
