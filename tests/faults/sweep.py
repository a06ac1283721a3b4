"""Every system call of every operation killed and made to fail, in real processes.

The loop that SQLite is tested with: do the operation once to see its system calls,
then again and again with one more of them failing, until all have. After each point
a coordinator is started on what is left, and everything must be whole, or never have
been::

    python tests/faults/sweep.py --report sweep.json             # all of it, an hour
    python tests/faults/sweep.py --sample 150 --seed 7           # some of it
    python tests/faults/sweep.py --only 'create/shm-4k/coordinator:3/linkat:1/KILL'

With ``--compound`` the recovery after each kill is killed in its turn, at each of its
system calls, once for every kind of remains that a kill can leave.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.operations import HUGE_COUNT, OPERATIONS, Held, Operation, Scene, State
from support.faultpoints import KILL, faults_of
from support.nursery import Child, Nursery
from support.tracing import POOL, Call, Tracer, have_strace
from support.world import Client, StartRefused, TooSlow, World, eventually

QUIET_S = 0.03
"""What an operation still does after its reply is done by then, on a machine with nothing else to
do; where a call was not reached, the next attempt waits for ten times as long."""

SOON_S = 30.0
"""What is to be by then, however slow the machine."""

UNKNOWN = {"CoordinatorUnreachableError", "RequestTimeoutError"}
"""Errors that do not say whether the operation happened."""

ATTEMPTS = 3
"""A call that a run did not reach is tried again, and longer waited for."""

MEMORY = frozenset({"mmap", "munmap", "mprotect", "madvise"})
"""Of these many are the allocator's."""

RACES = 12
"""So often where chance says which thread makes a call, or the how many-th of its name it is."""


@dataclass(frozen=True)
class Point:
    """One fault."""

    operation: str
    backing: str
    target: str
    thread: int
    call: str
    when: int
    fault: str
    about: str = field(default="", compare=False)
    """The call as it was seen."""

    def __str__(self) -> str:
        place = f"{self.operation}/{self.backing}/{self.target}:{self.thread}"
        return f"{place}/{self.call}:{self.when}/{self.fault}"

    @property
    def inject(self) -> str:
        """As strace wants it."""
        what = "signal=KILL" if self.fault == KILL else f"error={self.fault}"
        return f"{self.call}:{what}:when={self.when}"


class Broken(Exception):
    """A promise was not kept at a point."""


class Sweep:
    """The processes, and what was found.

    Parameters
    ----------
    world
        Where the coordinator lives.
    verbose
        Tell every point.
    """

    def __init__(self, world: World, *, verbose: bool = False) -> None:
        self._world = world
        self._verbose = verbose
        self._actor: Client | None = None
        self._reader: Client | None = None
        self._warm: tuple[str, str] | None = None
        self._trace = world.place / "trace"
        self._descriptors = 0
        self._primed = False
        self._quiet_s = QUIET_S
        self._room = world.room()
        self.outcomes: Counter[tuple[str, str, str, str, str]] = Counter()
        self.shapes: dict[tuple[str, str], dict[str, Point]] = {}
        self.failures: list[dict[str, str]] = []
        self.unreached: list[str] = []
        self.fired = 0
        self.tried: dict[str, tuple[int, int]] = {}
        """How many of how many, by kind of faults."""

    # Processes ----------------------------------------------------------------

    def _processes(self) -> tuple[Client, Client]:
        """A coordinator and two clients that live and are connected."""
        world = self._world
        if world.coordinator is None or not world.coordinator.alive:
            self._restarted()
        for role in ("_actor", "_reader"):
            client: Client | None = getattr(self, role)
            if client is None or not client.alive:
                if client is not None:
                    client.child.forget()
                setattr(self, role, world.client(role.strip("_")))
                self._warm = None
        assert self._actor is not None and self._reader is not None
        return self._actor, self._reader

    def _scene(self, operation: Operation, backing: str) -> Scene:
        """Processes that have done this operation before, and no other, and hold nothing.

        So the coordinator's threads were made in the same order as when it was learned.
        """
        if not self._primed:
            self._prime()
        if self._warm not in (None, (operation.name, backing)):
            self._restarted()
        scene = Scene(self._world, *self._processes(), backing)
        if self._warm is None:
            self._do(operation, scene)
            self._clear()
            if operation.name == "adopt":  # the actor was killed
                scene = Scene(self._world, *self._processes(), backing)
            self._warm = (operation.name, backing)
        return scene

    def _restarted(self) -> None:
        """A coordinator that has done nothing yet.

        Raises
        ------
        Broken
            None starts on what is left.
        """
        self._warm = None
        self._world.kill_coordinator()
        try:
            self._world.start()
        except StartRefused as refusal:
            raise Broken(f"no coordinator starts on what is left: {refusal}") from None

    def _do(self, operation: Operation, scene: Scene) -> None:
        """Prepare and do it, unharmed."""
        operation.prepare(scene)
        hatched = operation.begin(scene)
        if hatched is not None:
            hatched.say("go")
            self._world.await_listening(hatched)
        else:
            answer = scene.actor.answer()
            assert answer is not None and "ok" in answer, (operation.name, answer)

    def abandon(self) -> None:
        """Kill everything, for a point that broke must not break the next one."""
        for client in (self._actor, self._reader):
            if client is not None and client.alive:
                client.child.kill()
        self._actor = self._reader = None
        self._world.kill_coordinator()
        self._world.wipe()
        self._warm = None
        self._primed = False

    def _clear(self, patience_s: float = SOON_S) -> None:
        """Destroy everything and let go; nothing is left, in the coordinator that lives."""
        actor, reader = self._processes()
        for client in (actor, reader):
            client.ask("let_go")
            client.ask("stats")  # carries what garbage collection gave back
        reader.ask("clear")
        world = self._world

        def clean() -> bool:
            found = world.remains()
            return not (found.segments or found.manifests) and world.room() == self._room

        if not eventually(clean, patience_s):
            found = world.remains()
            raise Broken(
                f"left after everything was destroyed: {sorted(found.segments)} "
                f"{sorted(found.manifests)}, room {world.room()} of {self._room}"
            )

    # Learning -----------------------------------------------------------------

    def learn(self, operation: Operation, backing: str, target: str) -> list[Call]:
        """The system calls of one process during an operation that nothing disturbs."""
        self._restarted()
        scene = self._scene(operation, backing)
        operation.prepare(scene)
        hatched, tracer = self._traced(operation, scene, target, None, "")
        if hatched is not None:
            self._world.await_listening(hatched)
        else:
            answer = scene.actor.answer()
            assert answer is not None and "ok" in answer, answer
        time.sleep(QUIET_S)
        tracer.stop()
        self._clear()
        self._note_descriptors()
        self._restarted()
        self._clear()
        self._note_descriptors()
        return tracer.calls()

    def _note_descriptors(self) -> None:
        self._descriptors = max(self._descriptors, self._world.descriptors())

    def _prime(self) -> None:
        """Have a segment directory on every mount: each costs every start its calls from then on,
        and a descriptor. A point is only tried with what it was learned with.
        """
        actor, _ = self._processes()
        for backing in sorted({one for operation in OPERATIONS for one in operation.backings}):
            actor.ask("create", name="first", count=HUGE_COUNT, backing=backing)
            actor.ask("destroy", name="first")
        self._clear()
        self._restarted()
        self._primed = True

    def points(self, operation: Operation, backing: str) -> list[Point]:
        """Every fault of every call, KILL first."""
        found = []
        for target in operation.targets:
            calls = self.learn(operation, backing, target)
            seen: set[tuple[int, str, int]] = set()
            for call in calls:
                # Threads made in the window are traced all together.
                if (call.thread, call.name, call.when) in seen:
                    continue
                seen.add((call.thread, call.name, call.when))
                found += [
                    Point(
                        operation.name,
                        backing,
                        target,
                        call.thread,
                        call.name,
                        call.when,
                        fault,
                        call.text[:160],
                    )
                    for fault in faults_of(call)
                ]
        return found

    def _traced(
        self, operation: Operation, scene: Scene, target: str, thread: int | None, inject: str
    ) -> tuple[Child | None, Tracer]:
        """Attach, then begin the operation; a new coordinator is attached before it begins."""
        if operation.name == "adopt":
            hatched = operation.begin(scene)
            assert hatched is not None
            tracer = Tracer(hatched, self._trace, thread=thread, inject=inject)
            hatched.say("go")
            return hatched, tracer
        child = self._world.coordinator if target == "coordinator" else scene.actor.child
        assert child is not None
        tracer = Tracer(child, self._trace, thread=thread, inject=inject)
        operation.begin(scene)
        return None, tracer

    # One point ----------------------------------------------------------------

    def run(self, point: Point, *, restart: bool = True, recovery: str = "") -> str:
        """Try a fault.

        Parameters
        ----------
        point
            Where.
        restart
            Kill the coordinator afterwards too, and look at what the next one finds.
        recovery
            What to inject into the start that follows the kill of a coordinator.

        Returns
        -------
        str
            What came of it; empty if the call was not reached.

        Raises
        ------
        Broken
            A promise was not kept.
        """
        operation = next(one for one in OPERATIONS if one.name == point.operation)
        scene = self._scene(operation, point.backing)
        operation.prepare(scene)
        thread = point.thread if point.thread >= 0 else None
        hatched, tracer = self._traced(operation, scene, point.target, thread, point.inject)
        target = hatched or (
            self._world.coordinator if point.target == "coordinator" else scene.actor.child
        )
        assert target is not None
        try:
            outcome = self._watch(point, scene, target, hatched, tracer, recovery)
        except Broken:
            tracer.stop()
            if _hit_elsewhere(point, tracer):
                self.abandon()
                return ""
            raise
        finally:
            tracer.stop()
        if _hit_elsewhere(point, tracer):
            self.abandon()
            return ""
        outcome = self._late(point, target, outcome, recovery)
        fired = self._has_fired(point, target, tracer)
        if outcome == "refused to start":
            self._restarted()
        self._judge(point, operation, scene, outcome, restart=restart or hatched is not None)
        self._settle(point)
        return outcome if fired else ""

    def _watch(
        self,
        point: Point,
        scene: Scene,
        target: Child,
        hatched: Child | None,
        tracer: Tracer,
        recovery: str,
    ) -> str:
        """Wait for the end of the operation, starting what was killed again."""
        if hatched is not None:
            try:
                self._world.await_listening(hatched)
            except StartRefused as refusal:
                if refusal.status == -9 and point.fault == KILL:
                    self._restart(point, recovery)
                    return "killed"
                if refusal.status < 0 or "Traceback" in refusal.said:
                    raise Broken(f"the coordinator ended badly: {refusal}") from None
                return "refused to start"
            self._await_fire(point, target, tracer)
            if not target.alive:
                self._restart(point, recovery)
                return "killed"
            return "started"
        eventually(lambda: scene.actor.child.has_spoken() or not target.alive, SOON_S)
        self._await_fire(point, target, tracer)
        told = ""
        if not target.alive:
            if target.status != -9 or point.fault != KILL:
                raise Broken(f"{target!r} died:\n{target.tail()}")
            told = "killed, "
            if target is self._world.coordinator:
                self._restart(point, recovery)
        try:
            answer = scene.actor.answer()
        except TooSlow as error:
            raise Broken(f"{error}\n{scene.actor.child.tail()}") from None
        if answer is None:
            if scene.actor.child.status != -9 or target is not scene.actor.child:
                raise Broken(f"{scene.actor.child!r} died:\n{scene.actor.child.tail()}")
            return "killed"
        if "ok" in answer:
            return told + "done"
        if not answer["ours"]:
            raise Broken(
                f"the client got {answer['error']}: {answer['text']}\n{scene.actor.child.tail()}"
            )
        return told + str(answer["error"])

    def _late(self, point: Point, target: Child, outcome: str, recovery: str) -> str:
        """What came of it, where a coordinator was killed after it was looked at last."""
        if target.alive or target.status != -9 or target is not self._world.coordinator:
            return outcome
        self._restart(point, recovery)
        return "killed" if outcome == "started" else f"killed, {outcome}"

    def _restart(self, point: Point, recovery: str) -> None:
        """The next coordinator, after one that was killed."""
        shapes = self.shapes.setdefault((point.operation, point.backing), {})
        shapes.setdefault(self._world.shape_of_remains(), point)
        self._world.kill_coordinator()
        if recovery:
            hatched = self._world.hatch(gate=True)
            tracer = Tracer(hatched, self._trace.with_name("second"), thread=0, inject=recovery)
            hatched.say("go")
            try:
                self._world.await_listening(hatched)
            except StartRefused as refusal:
                if refusal.status != -9:
                    raise Broken(f"the second start ended badly: {refusal}") from None
            tracer.stop()
            self._second_fired = not hatched.alive
        self._restarted()

    _second_fired = False

    def _await_fire(self, point: Point, target: Child, tracer: Tracer) -> None:
        if point.fault == KILL:
            eventually(lambda: not target.alive, self._quiet_s)
        else:
            eventually(lambda: self._has_fired(point, target, tracer), self._quiet_s)

    @staticmethod
    def _has_fired(point: Point, target: Child, tracer: Tracer) -> bool:
        if point.fault == KILL:
            return target.status == -9
        return any("(INJECTED)" in line for line in tracer.lines())

    # What must hold -----------------------------------------------------------

    def _judge(
        self, point: Point, operation: Operation, scene: Scene, outcome: str, *, restart: bool
    ) -> None:
        before, after = operation.before(), operation.after()
        actor_died = not scene.actor.alive
        if actor_died:
            before, after = _without(before, "actor"), _without(after, "actor")
        allowed = [before, after]
        if outcome.endswith("done"):
            allowed = [after]
        elif point.target == "coordinator" and point.fault != KILL and outcome not in UNKNOWN:
            allowed = [before]  # it refused, so it must not have happened
        self._expect(scene, allowed, f"{outcome}, then")
        for name, content in scene.seen.items():
            if scene.reader.ask("reread", name=name) != content:
                raise Broken(f"the reader of {name} reads something else now")
        if not restart:
            return
        if point.fault != KILL:
            # What could not be removed is tried again every second.
            eventually(lambda: self._names_on_disk() <= set(scene.reader.ask("look")), SOON_S)
        self._restarted()
        self._expect(scene, allowed, f"{outcome}, and after another start")
        found = self._world.remains()

        def consistent() -> bool:
            nonlocal found
            found = self._world.remains()
            return not (found.orphans or found.strays)

        # What goes with a dead owner has its manifest removed first, and its pages by a thread.
        if not eventually(consistent, SOON_S):
            raise Broken(f"after a start: {sorted(found.orphans)} {sorted(found.strays)}")

    def _names_on_disk(self) -> set[str]:
        return {record["spec"]["name"] for record in self._world.remains().described.values()}

    def _expect(self, scene: Scene, allowed: list[State], when: str) -> None:
        """What the reader finds is one of some states, soon: the dead are noticed a bit later."""
        found: dict[str, Any] = {}

        def fits() -> bool:
            nonlocal found
            found = scene.reader.ask("look")
            return any(_is(found, state, scene.count * 8) for state in allowed)

        if not eventually(fits, SOON_S):
            raise Broken(f"{when} found {found}, expected one of {allowed}")

    def _settle(self, point: Point) -> None:
        """Everything destroyed, nothing is left."""
        kept = ""
        try:
            self._clear(SOON_S if point.fault == KILL else 5.0)
        except Broken as leak:
            if point.fault == KILL:
                raise
            # An unlink that fails leaves a file; the next start removes it.
            kept = str(leak)
            self._restarted()
            self._clear()
        limit = self._descriptors
        if not kept and not eventually(lambda: self._world.descriptors() <= limit, SOON_S):
            raise Broken(f"{self._world.descriptors()} descriptors, {limit} before")

    # Many points --------------------------------------------------------------

    def try_point(self, point: Point, *, restart: bool = True, recovery: str = "") -> str:
        """Try a fault, some times if need be, and note what came of it."""
        outcome = ""
        for attempt, place in enumerate(_places(point)):
            self._quiet_s = QUIET_S * (10**attempt if attempt < ATTEMPTS else 10)
            try:
                outcome = self.run(place, restart=restart, recovery=recovery)
            except Broken as broken:
                self._failed(place, recovery, str(broken))
                return "FAILED"
            except (AssertionError, TooSlow, StartRefused, OSError) as error:
                self._failed(place, recovery, f"{type(error).__name__}: {error}")
                return "FAILED"
            if outcome:
                break
        if not outcome:
            self.unreached.append(str(point))
            return ""
        self.fired += 1
        kind = KILL if point.fault == KILL else "error"
        if recovery:
            kind = "KILL twice" if self._second_fired else "KILL, then not reached"
        self.outcomes[point.operation, point.backing, point.target, kind, outcome] += 1
        if self._verbose:
            print(f"{point} {recovery}: {outcome}", file=sys.stderr)
        return outcome

    def _failed(self, point: Point, recovery: str, reason: str) -> None:
        coordinator = self._world.coordinator
        log = coordinator.tail() if coordinator is not None else ""
        self.failures.append(
            {"point": str(point), "recovery": recovery, "call": point.about, "reason": reason}
            | {"log": log}
        )
        print(f"FAILED {point} {recovery}\n    {point.about}\n    {reason}", file=sys.stderr)
        self.abandon()

    def recovery_calls(self, point: Point) -> list[Call]:
        """The main thread's calls of the start that follows a kill."""
        operation = next(one for one in OPERATIONS if one.name == point.operation)
        scene = self._scene(operation, point.backing)
        operation.prepare(scene)
        thread = point.thread if point.thread >= 0 else None
        hatched, tracer = self._traced(operation, scene, point.target, thread, point.inject)
        target = hatched or self._world.coordinator
        assert target is not None
        eventually(lambda: not target.alive, 10)
        tracer.stop()
        self._world.kill_coordinator()
        hatched = self._world.hatch(gate=True)
        tracer = Tracer(hatched, self._trace)
        hatched.say("go")
        self._world.await_listening(hatched)
        tracer.stop()
        if point.operation != "adopt":
            scene.actor.answer()
        self._warm = None
        self._clear()
        return [call for call in tracer.calls() if call.thread == 0]


def _places(point: Point) -> Iterator[Point]:
    """Where the call may be, most likely place first.

    Which thread of a pool does what is chance, and when a thread needs more memory. libzmq wakes
    its threads by writes of its own: whether by one or by two of them is chance too.
    """
    if point.thread == POOL or point.thread < 0 or point.call in MEMORY:
        yield from itertools.repeat(point, RACES)
        return
    yield from itertools.repeat(point, ATTEMPTS)
    if point.call == "write" and point.fault != KILL:
        for distance in range(1, 1 + RACES // 2):
            for when in (point.when + distance, point.when - distance):
                if when > 0:
                    yield dataclasses.replace(point, when=when)


def _hit_elsewhere(point: Point, tracer: Tracer) -> bool:
    """Whether an error went to libzmq's own descriptors and was meant for another: threads race."""
    if point.fault == KILL or _is_queue(point.about):
        return False
    return any("(INJECTED)" in line and _is_queue(line) for line in tracer.lines())


def _is_queue(line: str) -> bool:
    """Whether the first argument of a call, as strace shows it, is no file."""
    first = line.split(",")[0]
    return any(kind in first for kind in ("anon_inode", "socket:", "pipe:"))


def _without(state: State, owner: str) -> State:
    return {name: held for name, held in state.items() if held.owner != owner}


def _is(found: dict[str, Any], state: State, nbytes: int) -> bool:
    return set(found) == set(state) and all(
        _fits(found[name], held, nbytes) for name, held in state.items()
    )


def _fits(found: dict[str, Any], held: Held, nbytes: int) -> bool:
    if found["lost"] or found["nbytes"] != nbytes:
        return False
    if held.content is None:
        return not found["sealed"]
    return bool(found["sealed"]) and found["content"] == held.content


# The program ------------------------------------------------------------------


def sampled(points: list[Point], count: int, rng: random.Random) -> list[Point]:
    """The first kill of every call of every operation, then others by chance."""
    first: dict[tuple[str, str], Point] = {}
    for point in points:
        if point.fault == KILL:
            first.setdefault((point.operation, point.call), point)
    chosen = list(first.values())
    if len(chosen) > count:
        return rng.sample(chosen, count)
    others = [point for point in points if point not in set(chosen)]
    return chosen + rng.sample(others, min(len(others), count - len(chosen)))


def compounds(sweep: Sweep, limit: int | None, rng: random.Random) -> Iterator[tuple[Point, str]]:
    """Every kind of remains, with a kill at every call of the start that finds them."""
    found = []
    for shapes in list(sweep.shapes.values()):
        for point in list(shapes.values()):
            with contextlib.suppress(AssertionError, Broken, TooSlow, StartRefused):
                found += [
                    (point, f"{call.name}:signal=KILL:when={call.when}")
                    for call in sweep.recovery_calls(point)
                ]
                continue
            sweep.abandon()
    if limit is not None and len(found) > limit:
        found = rng.sample(found, limit)
    yield from found


def summary(sweep: Sweep) -> str:
    """A table of what was done and what came of it."""
    lines = [f"{'operation':<10} {'process':<12} {'fault':<24} {'points':>6}  outcomes"]
    rows: dict[tuple[str, str, str], Counter[str]] = {}
    for (operation, _, target, kind, outcome), count in sorted(sweep.outcomes.items()):
        rows.setdefault((operation, target, kind), Counter())[outcome] += count
    for (operation, target, kind), outcomes in rows.items():
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        lines.append(f"{operation:<10} {target:<12} {kind:<24} {outcomes.total():>6}  {told}")
    kinds = sum(len(shapes) for shapes in sweep.shapes.values())
    tried = ", ".join(f"{done} of {there} {what}" for what, (done, there) in sweep.tried.items())
    lines.append(
        f"{tried} tried, {sweep.fired} fired, "
        f"{len(sweep.unreached)} not reached, {len(sweep.failures)} failed; "
        f"{kinds} kinds of remains after a kill of the coordinator"
    )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--report", "--json", type=Path, help="write everything here, as JSON")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--sample", "--cycles", type=int, help="so many points instead of all")
    parser.add_argument("--operation", action="append", help="only this one; may be repeated")
    parser.add_argument("--only", help="one point, as a failure names it")
    parser.add_argument("--recovery", default="", help="with --only: inject this into the start")
    parser.add_argument(
        "--compound", type=int, metavar="N", help="then N double faults; 0: all, tens of thousands"
    )
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep; 0 if every promise was kept."""
    chosen = parse(arguments)
    missing = have_strace()
    if missing:
        print(missing, file=sys.stderr)
        return 77
    import hugepool_server.cli
    import hugepool_server.daemon  # noqa: F401  forked, not imported, by every coordinator

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hps-") as place:
        root = Path(place)
        (root / "logs").mkdir()
        with World(root, Nursery(root / "logs")) as world:
            return _sweep(chosen, world, began)


def _sweep(chosen: argparse.Namespace, world: World, began: float) -> int:
    sweep = Sweep(world, verbose=chosen.verbose)
    rng = random.Random(chosen.seed)
    learned: Counter[tuple[str, str]] = Counter()
    points: list[Point] = []
    for operation in OPERATIONS:
        wanted = chosen.only.split("/")[0] if chosen.only else None
        if wanted not in (None, operation.name):
            continue
        if chosen.operation and operation.name not in chosen.operation:
            continue
        for backing in operation.backings:
            found = sweep.points(operation, backing)
            learned[operation.name, backing] = len(found)
            points += found
    if chosen.only:
        points = [point for point in points if str(point) == chosen.only]
    elif chosen.sample is not None:
        points = sampled(points, chosen.sample, rng)
    told = functools.partial(_tell, chosen, sweep, learned, began)
    asked_to_end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked_to_end.set())
    done = 0
    for done, point in enumerate(points, 1):
        restart = point.fault == KILL or chosen.sample is not None or bool(chosen.only)
        sweep.try_point(point, restart=restart, recovery=chosen.recovery)
        if not restart:
            sweep.try_point(point, restart=True)
        _progress("points", done, len(points), began)
        if asked_to_end.is_set():
            break
    sweep.tried["points"] = done, len(points)
    if chosen.compound is not None and not asked_to_end.is_set():
        told()  # what follows may last for hours
        pairs = list(compounds(sweep, chosen.compound or None, rng))
        for done, (point, recovery) in enumerate(pairs, 1):
            sweep.try_point(point, restart=False, recovery=recovery)
            _progress("double faults", done, len(pairs), began)
            if asked_to_end.is_set():
                break
        sweep.tried["double faults"] = done, len(pairs)
    told()
    print(summary(sweep))
    return 1 if sweep.failures or asked_to_end.is_set() else 0


def _tell(
    chosen: argparse.Namespace, sweep: Sweep, learned: Counter[tuple[str, str]], began: float
) -> None:
    """Write the report of what was done so far."""
    if not chosen.report:
        return
    report = {
        "seed": chosen.seed,
        "seconds": round(time.monotonic() - began, 1),
        "tried": sweep.tried,
        "points": {"/".join(key): count for key, count in learned.items()},
        "fired": sweep.fired,
        "outcomes": {" ".join(key): count for key, count in sweep.outcomes.items()},
        "unreached": sweep.unreached,
        "failures": sweep.failures,
        "remains": {"/".join(key): list(found) for key, found in sweep.shapes.items()},
        "summary": summary(sweep).splitlines(),
    }
    chosen.report.write_text(json.dumps(report, indent=1))


def _progress(what: str, done: int, total: int, began: float) -> None:
    if sys.stderr.isatty() or done % 500 == 0 or done == total:
        seconds = time.monotonic() - began
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        print(f"{what} {done}/{total} {seconds:.0f} s", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
