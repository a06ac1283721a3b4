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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import soakers
from support.nursery import Child, Nursery, TooSlow
from support.world import Client, StartRefused, World, eventually, locks_of

WORKERS, CLIENTS, CALLS = 4, 3, 4
CALL_S = 20.0
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
        self._room = world.room()
        self._ours: set[int] = set()
        """Pids that we have killed."""
        self._asked: set[int] = set()
        """Pids that we have asked to end."""
        self.trail: deque[str] = deque(maxlen=400)
        """What happened lately, for whoever looks into a failure."""

    def begin(self) -> None:
        """Start all of them, and share what everybody reads."""
        self._world.start()
        self._observer = self._world.client("observer")
        setter = self._world.nursery.spawn("setter", self._share)
        if setter.wait(60) != 0:
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
        if world.coordinator is None or not world.coordinator.alive:
            world.kill_coordinator()
            world.start()
        self._workers = [worker for worker in self._workers if self._lives(worker)]
        while len(self._workers) < WORKERS:
            self._workers.append(world.nursery.spawn("worker", self._work))
        for number in range(CLIENTS):
            child = self._soakers[number]
            if child is None or not self._lives(child):
                if child is not None:
                    self.ledger.owner_died(number)
                self._soakers[number] = world.nursery.spawn(
                    f"client{number}",
                    lambda number=number: soakers.main(number, world.address),  # type: ignore[misc]
                )

    def _work(self) -> int:
        from hugepool import worker

        return worker.main(["--address", self._world.address])

    def _lives(self, child: Child) -> bool:
        if child.pid in self._ours:
            child.wait(10)  # it may still be at dying
        if child.alive:
            return True
        assert child.status is not None
        if child.status < 0 and child.pid not in self._ours:
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
                self._asked.add(child.pid)
                self.ended[child.role] += child.alive
            elif number == signal.SIGKILL:
                self._ours.add(child.pid)
                self.killed[child.role.rstrip("012")] += child.alive
            elif number == signal.SIGSTOP:
                self.stopped[child.role.rstrip("012")] += child.alive
            child.signal(number)
            self.trail.append(f"{time.monotonic():.4f} {signal.Signals(number).name} to {child!r}")
        coordinator = world.coordinator
        if coordinator is not None and coordinator.pid in self._ours | self._asked:
            # One that is stopped when it is killed dies all the same.
            status = coordinator.wait(10)
            if status not in (0, -signal.SIGKILL) or (status and coordinator.pid not in self._ours):
                raise Broken(f"the coordinator ended with {status}:\n{coordinator.tail()}")
            time.sleep(rng.random() * 0.03)
            world.kill_coordinator()
            world.start()
            self.trail.append(f"{time.monotonic():.4f} started {world.coordinator!r}")
        # Without workers a job would wait for half a minute.
        self._start_workers()

    def _start_workers(self) -> None:
        ending = self._ours | self._asked
        eventually(lambda: not any(w.alive and w.pid in ending for w in self._workers), 5)
        self._workers = [worker for worker in self._workers if self._lives(worker)]
        while len(self._workers) < WORKERS:
            self._workers.append(self._world.nursery.spawn("worker", self._work))

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
                    line = child.hear(5)
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

        if not eventually(right, 3.0):
            raise Broken(wrong)
        remains = world.remains()

        def consistent() -> bool:
            nonlocal remains
            remains = world.remains()
            return not (remains.orphans or remains.strays)

        if not eventually(consistent, 3.0):
            raise Broken(f"orphans {sorted(remains.orphans)}, strays {sorted(remains.strays)}")
        sessions = observer.ask("stats")["sessions"]
        living = [child.pid for child in self._workers if child.alive]
        living += [child.pid for child in self._soakers if child is not None and child.alive]
        for pid in living:
            if locks_of(pid) > 1:
                raise Broken(f"pid {pid} holds {locks_of(pid)} locks")
        self.gauges.append(
            {
                "cycle": number,
                "coordinator_fds": world.descriptors(),
                "coordinator_rss": world.rss_bytes(world.coordinator.pid),
                "client_rss": max((world.rss_bytes(pid) for pid in living), default=0),
                "client_fds": max((descriptors_of(pid) for pid in living), default=0),
                "sessions": sessions,
                "tokens": len(remains.tokens),
                "segments": len(remains.segments),
                "processes": strangers(os.getpid(), world.nursery),
            }
        )

    def finish(self) -> None:
        """Destroy everything: the mounts are as at the beginning."""
        world, observer = self._world, self._observer
        assert observer is not None
        for child in self._soakers:
            if child is not None:
                self._ours.add(child.pid)
                child.kill()
        for name in observer.ask("look"):
            if name not in ("A", "x"):
                observer.ask("destroy", name=name)

        def clean() -> bool:
            return len(world.remains().segments) == 2 and world.room() == self._room

        if not eventually(clean, 5.0):
            raise Broken(f"left at the end: {world.remains()}, room {world.room()} of {self._room}")
        first, last = self._bounds("coordinator_fds")
        if last > first + 8:
            raise Broken(f"descriptors of the coordinator grew from {first} to {last}")
        first, last = self._bounds("client_fds")
        if last > first + 8:
            raise Broken(f"descriptors of a client grew from {first} to {last}")

    def _bounds(self, gauge: str) -> tuple[int, int]:
        """The largest value in the first quarter and in the last one."""
        values = [one[gauge] for one in self.gauges]
        quarter = max(1, len(values) // 4)
        return max(values[:quarter]), max(values[-quarter:])


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
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
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
