"""A service whose processes are killed and stopped by chance, cycle after cycle.

One coordinator, four workers, three clients that make, seal, publish, read, multiply
and destroy. In each cycle some of them are killed, stopped or asked to end in the middle; then all
that ended is started again and everything is counted: every acknowledged array whole,
nothing lost, nothing left over, every call ended with a right result or an error of
hugepool's own, nobody dead of a signal that was not ours::

    python tests/faults/kill_soak.py --cycles 10000 --seed 1 --report kill.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import soakers
from support.nursery import Child, Nursery, TooSlow
from support.world import Client, StartRefused, World, eventually, locks_of

WORKERS, CLIENTS, CALLS = 4, 3, 4
CALL_S = 240.0
"""What says nothing for so long hangs: a job may wait for workers for 30 s, a call for the next
coordinator for `PATIENCE_S`, and new workers for two minutes on a machine that does much else."""

SOON_S = 60.0
"""What is to be by then, however slow the machine; in general it is at once."""

PATIENCE_S = "60"
"""How long all wait for the next coordinator: it comes, but a slow machine may let it wait."""

SPARE_FDS = 8
"""Descriptors that a process may come to hold beside those of the first cycle, such as one for
each mount that is used."""

FDS_OF_A_SESSION = 3
"""Of a coordinator: a connection, a pidfd and a token."""

ABSENT, OPEN = "absent", "open"
"""What may be under a name beside a content."""

MADE = {"put", "create", "seal", "publish"}


class Broken(Exception):
    """A promise was not kept."""


@dataclass
class Ledger:
    """What may be found under each name, by what its only writer has told.

    A call that was begun and not ended, or that failed, may have happened or not.
    """

    possible: dict[str, set[int | str]] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    longest_ns: int = 0

    def hear(self, told: dict[str, Any]) -> None:
        """Note a line of a client."""
        if "begin" in told:
            call = told["begin"]
            for name, value in self._results(call):
                self.possible.setdefault(name, {ABSENT}).add(value)
                if call["verb"] == "put":  # one that fails halfway may find nobody to tell
                    self.possible[name].add(OPEN)
        elif "end" in told:
            call, outcome = told["end"], told["outcome"]
            self.outcomes[call["verb"], outcome.split(":")[0]] += 1
            self.longest_ns = max(self.longest_ns, told["ns"])
            if outcome.startswith("WRONG"):
                raise Broken(f"{call}: {outcome}")
            if outcome == "ok":
                for name, value in self._results(call):
                    self.possible[name] = {value}

    @staticmethod
    def _results(call: dict[str, Any]) -> list[tuple[str, int | str]]:
        verb, name, content = call["verb"], call["name"], call["content"]
        if verb == "put":
            return [(name, content)]
        if verb == "create":
            return [(name, OPEN)]
        if verb in ("seal", "publish"):
            gone = [(f"{name.split('-')[0]}-next", ABSENT)] if verb == "publish" else []
            return [(name, content), *gone]
        if verb in ("matvec", "gather"):
            return [(name, OPEN)]
        if verb == "destroy":
            return [(name, ABSENT)]
        return []

    def owner_died(self, number: int) -> None:
        """What its client had not sealed goes with it."""
        for name, values in self.possible.items():
            if name.startswith(f"c{number}-") and OPEN in values:
                values.discard(OPEN)
                values.add(ABSENT)

    def compare(self, found: dict[str, Any]) -> str:
        """What of it cannot be; empty if it all can. What was found is then known."""
        wrong = []
        for name in {*self.possible, *found}:
            values = self.possible.get(name, {ABSENT})
            there = found.get(name)
            value: int | str | None = ABSENT
            if there is not None:
                value = there["content"] if there["sealed"] else OPEN
                if there["lost"]:
                    wrong.append(f"{name} is lost")
                    continue
            if value not in values:
                wrong.append(f"{name} holds {value}, expected one of {sorted(map(str, values))}")
        if not wrong:
            for name in self.possible:
                there = found.get(name)
                self.possible[name] = {
                    ABSENT if there is None else there["content"] if there["sealed"] else OPEN
                }
        return "; ".join(wrong)


class KillSoak:
    """The service and its tormentor.

    Parameters
    ----------
    world
        Where the coordinator lives.
    seed
        Of all chance.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed
        self.ledger = Ledger()
        self._workers: list[Child] = []
        self._soakers: list[Child | None] = [None] * CLIENTS
        self._observer: Client | None = None
        self.killed: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """Asked to end by SIGTERM."""
        self.worker_ends: Counter[int] = Counter()
        self.gauges: list[dict[str, int]] = []
        self._limits: dict[str, int] = {}
        """Most descriptors of a process at rest, by what kind it is."""
        self._room = world.room()
        # Processes and not their pids: in thousands of cycles pids are used again.
        self._ours: WeakSet[Child] = WeakSet()
        """Those that we have killed."""
        self._asked: WeakSet[Child] = WeakSet()
        """Those that we have asked to end."""
        self.trail: deque[str] = deque(maxlen=400)
        """What happened lately, for whoever looks into a failure."""

    def begin(self) -> None:
        """Start all of them, and share what everybody reads."""
        self._world.start()
        self._observer = self._world.client("observer", HUGEPOOL_RECONNECT_S=PATIENCE_S)
        setter = self._world.nursery.spawn("setter", self._share)
        if setter.wait(SOON_S) != 0:
            raise Broken(f"the first client failed:\n{setter.tail()}")
        setter.forget()
        self._room = self._world.room()
        self._start_missing()

    def _share(self) -> None:
        from hugepool.connection import connect

        A, x = soakers.common_matrix()
        pool = connect(self._world.address)
        pool.put("A", A)
        pool.put("x", x)
        pool.close()

    def _start_missing(self) -> None:
        world = self._world
        coordinator = world.coordinator
        assert coordinator is not None
        if not coordinator.alive:  # one that was killed or asked to end has a successor by now
            raise Broken(f"{coordinator!r} ended by itself:\n{coordinator.tail()}")
        self._workers = [worker for worker in self._workers if self._lives(worker)]
        while len(self._workers) < WORKERS:
            self._workers.append(self._new_worker())
        for number in range(CLIENTS):
            child = self._soakers[number]
            if child is None or not self._lives(child):
                if child is not None:
                    self.ledger.owner_died(number)
                self._soakers[number] = world.nursery.spawn(
                    f"client{number}",
                    lambda number=number: soakers.main(number, world.address),  # type: ignore[misc]
                    environment={"HUGEPOOL_RECONNECT_S": PATIENCE_S},
                )

    def _new_worker(self) -> Child:
        environment = {"HUGEPOOL_RECONNECT_S": PATIENCE_S}
        return self._world.nursery.spawn("worker", self._work, environment=environment)

    def _work(self) -> int:
        from hugepool import worker

        return worker.main(["--address", self._world.address])

    def _lives(self, child: Child) -> bool:
        if child in self._ours:
            child.wait(SOON_S)  # it may still be at dying
        if child.alive:
            return True
        assert child.status is not None
        # A worker that has not begun to listen for SIGTERM dies of it.
        asked = child in self._asked and child.status == -signal.SIGTERM
        if child.status < 0 and child not in self._ours and not asked:
            raise Broken(f"{child!r} died of signal {-child.status}:\n{child.tail()}")
        if child.role == "worker" and child.status >= 0:
            self.worker_ends[child.status] += 1
        elif child.status >= 0:
            raise Broken(f"{child!r} ended by itself:\n{child.tail()}")
        child.forget()
        return False

    # One cycle ----------------------------------------------------------------

    def cycle(self, number: int) -> None:
        """Work, harm, repair, count.

        Raises
        ------
        Broken
            A promise was not kept.
        """
        rng = random.Random(self._seed * 1_000_003 + number)
        self.trail.append(f"cycle {number}")
        soaking = [child for child in self._soakers if child is not None]
        for child in soaking:
            child.say(json.dumps({"seed": rng.getrandbits(40), "calls": CALLS}))
        self._torment(rng)
        self._hear_out(soaking)
        self._start_missing()
        self._resume()
        self._count(number)

    def _resume(self) -> None:
        """Have every client speak: till then a coordinator does not know what it holds, and
        keeps what it may hold."""
        living = [child for child in self._soakers if child is not None and child.alive]
        for child in living:
            child.say(json.dumps({"seed": 0, "calls": 0}))
        self._hear_out(living)

    def _torment(self, rng: random.Random) -> None:
        """Kill and stop any subset, each at a moment of its own."""
        world = self._world
        everybody = [world.coordinator, *self._workers, *self._soakers]
        chance = rng.choice([0.1, 0.3, 0.6])
        plan: list[tuple[float, Child, int]] = []
        for child in everybody:
            if child is None or rng.random() > chance:
                continue
            at = rng.random() ** 2 * 0.06
            way = rng.random()
            if way < 0.5:
                plan.append((at, child, signal.SIGKILL))
            elif way < 0.6 and child.role in ("coordinator", "worker"):
                plan.append((at, child, signal.SIGTERM))
            else:
                plan.append((at, child, signal.SIGSTOP))
                plan.append((at + rng.random() * 0.05, child, signal.SIGCONT))
        began = time.monotonic()
        for at, child, number in sorted(plan, key=lambda one: one[0]):
            time.sleep(max(0.0, began + at - time.monotonic()))
            if number == signal.SIGTERM:
                self._asked.add(child)
                self.ended[child.role] += child.alive
            elif number == signal.SIGKILL:
                self._ours.add(child)
                self.killed[child.role.rstrip("012")] += child.alive
            elif number == signal.SIGSTOP:
                self.stopped[child.role.rstrip("012")] += child.alive
            child.signal(number)
            self.trail.append(f"{time.monotonic():.4f} {signal.Signals(number).name} to {child!r}")
        coordinator = world.coordinator
        if coordinator is not None and (coordinator in self._ours or coordinator in self._asked):
            # One that is stopped when it is killed dies all the same.
            status = coordinator.wait(SOON_S)
            if status not in (0, -signal.SIGKILL) or (status and coordinator not in self._ours):
                raise Broken(f"the coordinator ended with {status}:\n{coordinator.tail()}")
            time.sleep(rng.random() * 0.03)
            world.kill_coordinator()
            world.start()
            self.trail.append(f"{time.monotonic():.4f} started {world.coordinator!r}")
        # Without workers a job would wait for half a minute.
        self._start_workers()

    def _start_workers(self) -> None:
        ending = self._ours | self._asked
        eventually(lambda: not any(w.alive and w in ending for w in self._workers), SOON_S)
        self._workers = [worker for worker in self._workers if self._lives(worker)]
        while len(self._workers) < WORKERS:
            self._workers.append(self._new_worker())

    def _hear_out(self, soaking: list[Child]) -> None:
        """Read what every client tells until its batch is over, or it is dead."""
        waiting = list(soaking)
        deadline = time.monotonic() + CALL_S
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Broken(f"hangs: {waiting}, last log:\n{waiting[0].tail()}")
            ready = [child for child in waiting if child.has_spoken()]
            if not ready:
                select.select(waiting, [], [], left)
            for child in ready:
                try:
                    line = child.hear(SOON_S)
                except TooSlow as error:
                    raise Broken(str(error)) from None
                if line is None:
                    waiting.remove(child)
                    continue
                told = json.loads(line)
                self.trail.append(f"{child.role} {child.pid}: {line}")
                deadline = time.monotonic() + CALL_S
                if "done" in told:
                    waiting.remove(child)
                else:
                    self.ledger.hear(told)

    def _count(self, number: int) -> None:
        world = self._world
        observer = self._observer
        assert observer is not None and world.coordinator is not None
        wrong = "never looked"

        def right() -> bool:
            nonlocal wrong
            found = observer.ask("look")
            shared = [found.pop(name, {"lost": True}) for name in ("A", "x")]
            wrong = self.ledger.compare(found)
            if any(one["lost"] for one in shared):
                wrong += "what all share is lost"
            return not wrong

        if not eventually(right, SOON_S):
            raise Broken(wrong)
        remains = world.remains()

        def consistent() -> bool:
            nonlocal remains
            remains = world.remains()
            return not (remains.orphans or remains.strays)

        if not eventually(consistent, SOON_S):
            raise Broken(f"orphans {sorted(remains.orphans)}, strays {sorted(remains.strays)}")
        self._check_descriptors("the coordinator", self._beside_sessions)
        # Clients first: they have spoken, so they have all that one has at rest.
        living = [child.pid for child in self._soakers if child is not None and child.alive]
        living += [child.pid for child in self._workers if child.alive]
        for pid in living:
            # Who was not taken up again lets go of its former token when it has the new one.
            if not eventually(lambda pid=pid: locks_of(pid) <= 1, SOON_S):
                raise Broken(f"pid {pid} holds {locks_of(pid)} locks")
        held = [self._check_descriptors("a client", partial(descriptors_of, pid)) for pid in living]
        self.gauges.append(
            {
                "cycle": number,
                "coordinator_fds": world.descriptors(),
                "coordinator_rss": world.rss_bytes(world.coordinator.pid),
                "client_rss": max((world.rss_bytes(pid) for pid in living), default=0),
                "client_fds": max(held, default=0),
                "sessions": observer.ask("stats")["sessions"],
                "tokens": len(remains.tokens),
                "segments": len(remains.segments),
                "processes": strangers(os.getpid(), world.nursery),
            }
        )

    def _beside_sessions(self) -> int:
        """Descriptors of the coordinator that are no session's: clients may have hired workers."""
        assert self._observer is not None
        sessions = int(self._observer.ask("stats")["sessions"])
        return self._world.descriptors() - FDS_OF_A_SESSION * sessions

    def _check_descriptors(self, kind: str, count: Callable[[], int]) -> int:
        """What a process at rest has open: it may be about to open a session just now.

        Raises
        ------
        Broken
            It is more than processes of its kind had in the first cycle.
        """
        found = count()
        limit = self._limits.setdefault(kind, found + SPARE_FDS)

        def few() -> bool:
            nonlocal found
            found = count()
            return found <= limit

        if found > limit and not eventually(few, SOON_S):
            raise Broken(f"{kind} has {found} descriptors, and may have {limit}")
        return found

    def jobs(self) -> Any:
        """What the coordinator says of jobs and workers, for whoever looks into a failure."""
        try:
            return self._observer.ask("jobs") if self._observer is not None else None
        except (TooSlow, AssertionError, ValueError) as error:
            return repr(error)

    def finish(self) -> None:
        """Destroy everything: the mounts are as at the beginning."""
        world, observer = self._world, self._observer
        assert observer is not None
        for child in self._soakers:
            if child is not None:
                self._ours.add(child)
                child.kill()
        cleared: Any = None

        def clear() -> bool:
            nonlocal cleared
            observer.tell("clear", keep=["A", "x"])
            cleared = observer.answer()
            return cleared is not None and "ok" in cleared

        # A worker may be at a part of a job whose client was killed: what it uses is busy.
        if not eventually(clear, SOON_S):
            raise Broken(f"cannot be destroyed at the end: {cleared}")

        def clean() -> bool:
            return len(world.remains().segments) == 2 and world.room() == self._room

        if not eventually(clean, SOON_S):
            raise Broken(f"left at the end: {world.remains()}, room {world.room()} of {self._room}")


def descriptors_of(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def strangers(harness: int, nursery: Nursery) -> int:
    """Processes of our children's sessions that are none of our children: workers of clients."""
    known = {child.pid for child in nursery.children}
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in known:
            try:
                stat = Path(f"/proc/{entry}/stat").read_bytes()  # names are any bytes
                fields = stat.rsplit(b")", 1)[1].split()
            except OSError:
                continue
            count += int(fields[1]) in known
    return count


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", "--json", type=Path, help="write everything here, as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; 0 if every promise was kept."""
    chosen = parse(arguments)
    import hugepool_server.cli
    import hugepool_server.daemon  # noqa: F401  forked, not imported, by every process

    soakers.warm_kernels()
    began = time.monotonic()
    failure: dict[str, Any] | None = None
    done = 0
    with tempfile.TemporaryDirectory(prefix="hpk-") as place:
        root = Path(place)
        (root / "logs").mkdir()
        with World(root, Nursery(root / "logs"), huge_bytes=64 << 20, options=("--keep",)) as world:
            soak = KillSoak(world, chosen.seed)
            try:
                soak.begin()
                for done in range(1, chosen.cycles + 1):
                    soak.cycle(done)
                    _progress(done, chosen.cycles, began, soak)
                soak.finish()
            except (Broken, TooSlow, StartRefused, AssertionError) as broken:
                log = world.coordinator.tail() if world.coordinator is not None else ""
                failure = {"cycle": done, "seed": chosen.seed, "reason": str(broken), "log": log}
                failure["trail"] = list(soak.trail)
                failure["jobs"] = soak.jobs()
                failure["stacks"] = {repr(c): c.stacks() for c in world.nursery.children if c.alive}
                print(f"FAILED in cycle {done} of seed {chosen.seed}: {broken}", file=sys.stderr)
                print(f"end of the coordinator's log:\n{log}", file=sys.stderr)
    report = {
        "cycles": done,
        "seed": chosen.seed,
        "seconds": round(time.monotonic() - began, 1),
        "failure": failure,
        "killed": dict(soak.killed),
        "stopped": dict(soak.stopped),
        "asked_to_end": dict(soak.ended),
        "workers_that_ended": dict(soak.worker_ends),
        "longest_call_s": round(soak.ledger.longest_ns / 1e9, 3),
        "calls": {" ".join(key): count for key, count in sorted(soak.ledger.outcomes.items())},
        "gauges": soak.gauges[:: max(1, len(soak.gauges) // 500)],
    }
    if chosen.report:
        chosen.report.write_text(json.dumps(report, indent=1))
    shown = {key: value for key, value in report.items() if key not in ("gauges", "calls")}
    if failure:
        shown["failure"] = failure["reason"]
    print(json.dumps(shown, indent=1))
    return 1 if failure else 0


def _progress(done: int, total: int, began: float, soak: KillSoak) -> None:
    if sys.stderr.isatty() or done % 100 == 0 or done == total:
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        seconds = time.monotonic() - began
        print(
            f"cycle {done}/{total} {seconds:.0f} s, {soak.killed.total()} killed, "
            f"{soak.ledger.outcomes.total()} calls",
            end=end,
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
