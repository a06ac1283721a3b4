"""The whole simulated world: moves that nobody plans, and a calm end.

A world is what its settings are and which moves are made. Each move lets one thing
happen: a message arrives, a client does something, a thread goes a step further, a
lock is looked at, time passes, something breaks. After every event that the
coordinator handles it validates itself, and the ledger holds its effects against
what the world knows. At the end nothing breaks any more: everybody is served, leaves,
and all that was taken must have been given back.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    Bind,
    Destroy,
    Failed,
    Hello,
    List,
    Message,
    Request,
    Resume,
    RunPart,
)
from hugepool_server.coordinator import Coordinator, Limits
from hugepool_server.events import (
    RequestReceived,
    StopRequested,
    Tick,
    WorkerContinued,
    WorkerStopped,
)
from hugepool_server.records import Identity
from simulation.chance import Chance
from simulation.clients import MOST_TOGETHER, At, Client
from simulation.ledger import Ledger
from simulation.life import COORDINATOR_UID, Killed, Life
from simulation.machine import PAGE, Machine, Process
from simulation.network import Connection, lose_tail
from simulation.remotes import RemoteClient

SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
BEGIN_NS = 50 * HOUR_NS
LEASE_NS = 16 * SECOND_NS
"""Of clients over TCP: short enough to run out where time passes unseen."""

NAMES = ("a", "b", "c", "d")
MORE_NAMES = ("e", "f")
"""Where several are published in one step: few of those would find all their names free to take."""

MOST_CALM_MOVES = 30_000
"""After so many moves without faults everything must have come to rest."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a world is like.

    Parameters
    ----------
    seed
        Of its moves.
    moves
        How many are made before its calm end.
    clients, workers
        How many of each.
    names
        How many names they fight for.
    pages
        Of the machine.
    max_bytes, max_bytes_per_user
        Quotas; 0 for none.
    evil
        The network drops, duplicates and reorders, and clients lie.
    keep
        A coordinator that is stopped in order leaves everything to the next one.
    faults
        How many of 1000 moves break something.
    kills
        Whether the coordinator's process is killed.
    remotes
        How many clients over TCP there are besides.
    batches
        Clients also publish several temporaries in one step.
    """

    seed: int
    moves: int = 2000
    clients: int = 4
    workers: int = 1
    names: int = 3
    pages: int = 24
    max_bytes: int = 0
    max_bytes_per_user: int = 0
    evil: bool = False
    keep: bool = True
    faults: int = 20
    kills: bool = True
    remotes: int = 0
    batches: bool = False


def settings_of(seed: int, *, moves: int = 2000) -> Settings:
    """The settings that follow from a seed."""
    source = random.Random(f"settings {seed}")
    clients = source.randint(1, 6)
    quota = source.choice((0, 0, 6, 12)) * PAGE
    return Settings(
        seed=seed,
        moves=moves,
        clients=clients,
        workers=source.randint(0, min(clients, 3)),
        names=source.randint(1, len(NAMES)),
        pages=source.choice((6, 12, 24, 64)),
        max_bytes=quota,
        max_bytes_per_user=source.choice((0, 0, 4, 8)) * PAGE,
        evil=source.random() < 0.2,
        keep=source.random() < 0.5,
        faults=source.choice((2, 5, 15, 40)),
        kills=source.random() < 0.9,
        remotes=_remotes_of(seed),
        batches=_has_batches(seed),
    )


def _remotes_of(seed: int) -> int:
    """Three worlds of eight have clients over TCP; none of those that failed before there were any.

    So what those did, and all others without, they do again.
    """
    if seed % 8 not in (2, 3, 6):
        return 0
    return random.Random(f"remotes {seed}").randint(1, 3)


def _has_batches(seed: int) -> bool:
    """In two worlds of seven; as with clients over TCP, in none of those that failed before."""
    return seed % 7 in (0, 1)


class World:
    """One run.

    Parameters
    ----------
    settings
        What it is like.
    story
        Where to write down what happens; None is faster.

    Attributes
    ----------
    steps
        Events that a coordinator handled.
    lives
        Coordinators that were started.
    fuse
        Acts until the coordinator's process is killed; negative if it is not going to be.
    faulty
        Whether anything breaks now.
    faults_seen, outcomes, removals
        What broke, what requests were answered with, and why segments were removed.
    """

    def __init__(self, settings: Settings, story: list[str] | None = None) -> None:
        self.settings = settings
        self.story = story
        self.chance = Chance()
        self.evil = settings.evil
        self.faulty = True
        self.machine = Machine(settings.pages, 2 * (settings.clients + settings.remotes) + 2)
        self.ledger = Ledger(self)
        self.names = NAMES[: settings.names] + (MORE_NAMES if settings.batches else ())
        self.limits = Limits(
            max_sessions=max(2, settings.clients + settings.seed % 5 - 1) + settings.remotes,
            max_arrays=3 + settings.seed % 4 + (2 * MOST_TOGETHER if settings.batches else 0),
            max_leases_per_session=6,
            max_jobs=3,
            max_workers=2,
            max_bytes=settings.max_bytes,
            max_bytes_per_user=settings.max_bytes_per_user,
            lease_ns=LEASE_NS,
        )
        self.now_ns = BEGIN_NS
        self.steps = 0
        self.lives = 0
        self.fuse = -1
        self.up = False
        self.life: Life
        self.connections: dict[bytes, Connection] = {}
        self.adrift: list[Connection] = []
        self.faults_seen: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.removals: Counter[str] = Counter()
        self.met: Counter[tuple[str, str]] = Counter()
        self._numbers = 0
        self.clients = [
            Client(self, number, uid=(1000, 1000, 1001, 0)[number % 4], is_worker=is_worker)
            for number, is_worker in (
                (n, n >= settings.clients - settings.workers) for n in range(settings.clients)
            )
        ]
        self.remotes = [
            RemoteClient(self, settings.clients + number) for number in range(settings.remotes)
        ]
        self.clients += self.remotes
        self._moves = self._dealt()
        self._faults = self._dealt_faults()

    def _dealt(self) -> list[Callable[[], bool]]:
        moves: list[tuple[int, Callable[[], bool]]] = [
            (620, self._move_client),
            (200, self._move_thread),
            (30, self._move_token),
            (25, self._see_exit),
            (10, self._look_at_locks),
            (25, self._pass_time),
            (8, self._tell_of_stopped),
        ]
        moves += [(8, self._continue_client), (30, self._start_coordinator)]
        if self.settings.remotes:
            moves += [(12, self._mend_link)]
        return [move for weight, move in moves for _ in range(weight)]

    def _dealt_faults(self) -> list[Callable[[], bool]]:
        faults: list[tuple[int, Callable[[], bool]]] = [
            (8, self._kill_client),
            (4, self._stop_client),
            (1, self._exec_client),
            (2, self._remove_segment),
            (2, self._reconnect),
            (1, self._jump),
            (8 if self.settings.kills else 0, self._kill_coordinator),
            (1, self._stop_coordinator),
        ]
        if self.settings.remotes:
            faults += [(8, self._cut_link)]
        return [fault for weight, fault in faults for _ in range(weight)]

    # The run ------------------------------------------------------------------

    def run(self, moves: Iterable[int]) -> None:
        """Make the moves, then come to rest.

        Raises
        ------
        AssertionError
            Something is not as it must be.
        """
        chance, faults = self.chance, self.settings.faults
        for bits in moves:
            chance.bits = bits
            breaks = chance.pick(1000) < faults
            self._make(chance.of(self._faults if breaks else self._moves))
        self.come_to_rest()

    def _make(self, move: Callable[[], bool]) -> bool:
        try:
            return move()
        except Killed:
            self._dead()
            return True

    def make_coordinator(self, epoch: int) -> Coordinator:
        """The state machine of a new process."""
        self.lives += 1
        return Coordinator(
            instance=f"{self.lives:016x}",
            pid=10_000 + self.lives,
            uid=COORDINATOR_UID,
            version="0.1",
            started_ns=self.now_ns,
            limits=self.limits,
            epoch=epoch,
            durable=True,
        )

    def burn(self) -> None:
        """One act of the coordinator's process more; it may be its last.

        Raises
        ------
        Killed
            It was.
        """
        if self.fuse >= 0:
            self.fuse -= 1
            if self.fuse < 0:
                raise Killed

    def next_number(self) -> int:
        """A number for a name that is not used twice."""
        self._numbers += 1
        return self._numbers

    # Connections --------------------------------------------------------------

    def connect(self, process: Process, identity: Identity) -> Connection:
        """A new connection to the coordinator."""
        peer = b"%d" % self.next_number()
        connection = Connection(peer, identity, self.lives, process)
        self.connections[peer] = connection
        return connection

    def close(self, connection: Connection, keep: int) -> None:
        """The client's end goes; the first `keep` messages of it are on their way."""
        connection.open = False
        connection.down.clear()
        arrives = connection.life == self.lives and self.up and not connection.cut
        lose_tail(connection.up, keep if arrives else 0)
        if connection.up:
            self.adrift.append(connection)
        self.connections.pop(connection.peer, None)

    def arrive(self, connection: Connection) -> bool:
        """The oldest message of a connection reaches the coordinator; False if it cannot."""
        if not self.up or connection.life != self.lives or connection.cut:
            return False
        chance = self.chance
        place = 0
        if self.evil and self.faulty:
            match chance.pick(24):
                case 23:
                    self.fault("message dropped")
                    connection.up.popleft()
                    connection.broken = True
                    return True
                case 22:
                    self.fault("message duplicated")
                    connection.up.append(connection.up[0])
                case 21:
                    self.fault("messages reordered")
                    place = chance.pick(len(connection.up))
        correlation, request = connection.up[place]
        del connection.up[place]
        identity = connection.identity
        if self.evil and self.faulty and chance.one_in(60):
            self.fault("message of another process")
            other = chance.of(self.clients).identity()
            # Which socket it came by nobody can change.
            identity = other if other.is_local == identity.is_local else identity
            connection.broken = True  # what is answered, if at all, is not this request
        self.life.handle(RequestReceived(connection.peer, identity, correlation, request))
        self._look_whether_stopped()
        return True

    # Moves --------------------------------------------------------------------

    def _move_client(self) -> bool:
        """Let a client do something, or the next one that can."""
        chance, clients = self.chance, self.clients
        count = len(clients)
        first, order = chance.pick(count), chance.pick(4)
        for number in range(first, first + count):
            client = clients[number % count]
            if client.process.stopped:
                moved = client.send()  # it was on its way
            elif order == 0:
                moved = client.act() or client.read() or client.send()
            elif order == 1:
                moved = client.read() or client.send() or client.act()
            else:
                moved = client.send() or client.read() or client.act()
            if moved:
                if order < 3 and not client.process.stopped:
                    client.read()
                    client.send()
                return True
        return False

    def _move_thread(self) -> bool:
        if not self.up:
            return False
        life = self.life
        if life.removals and (not life.acts or self.chance.one_in(4)):
            life.remove()
            return True
        if life.acts:
            life.advance(self.chance.pick(len(life.acts)))
            self._look_whether_stopped()
            return True
        return self._move_adrift() or (self.faulty and self._move_client())

    def _move_adrift(self) -> bool:
        while self.adrift:
            connection = self.adrift[0]
            if connection.life == self.lives and connection.up:
                return self.arrive(connection)
            self.adrift.pop(0)
        return False

    def _move_token(self) -> bool:
        if not self.up or not self.life.late:
            return self._move_adrift()
        self.life.handle(self.life.late.pop(self.chance.pick(len(self.life.late))))
        return True

    def _see_exit(self) -> bool:
        return self.up and self.life.see_exits()

    def _look_at_locks(self) -> bool:
        return self.up and self.life.look_at_locks()

    def _pass_time(self) -> bool:
        chance = self.chance
        wake_ns = self.life.core.wake_ns if self.up else None
        match chance.pick(4):
            case 0 if wake_ns is not None:
                self.now_ns = max(self.now_ns, wake_ns)
            case 1:
                self.now_ns += (1 + chance.pick(20)) * SECOND_NS
            case _:
                self.now_ns += (1 + chance.pick(1000)) * 1_000_000
        if not self.up:
            return False
        if (wake_ns is not None and self.now_ns >= wake_ns) or chance.one_in(8):
            self.life.handle(Tick())
            return True
        return False

    def _tell_of_stopped(self) -> bool:
        if not self.up or not self.life.watches:
            return False
        session = self.chance.of(list(self.life.watches))
        stopped = self.life.watches[session].stopped
        self.life.handle(WorkerStopped(session) if stopped else WorkerContinued(session))
        return True

    # Faults -------------------------------------------------------------------

    def fault(self, kind: str) -> None:
        """Something breaks."""
        self.faults_seen[kind] += 1
        if self.story is not None:
            self.tell(f"! {kind}")

    def _living(self) -> Client | None:
        living = [one for one in self.clients if one.process.alive and one.at is not At.GONE]
        return self.chance.of(living) if living else None

    def _kill_client(self) -> bool:
        client = self._living()
        if client is not None:
            self.fault("worker killed" if client.is_worker else "client killed")
            client.die(self.chance.pick(4))
        return client is not None

    def _stop_client(self) -> bool:
        client = self._living()
        if client is not None:
            self.fault("worker stopped" if client.is_worker else "client stopped")
            client.process.stopped = True
        return client is not None

    def _continue_client(self) -> bool:
        stopped = [one for one in self.clients if one.process.stopped]
        if stopped:
            self.chance.of(stopped).process.stopped = False
        return bool(stopped)

    def _exec_client(self) -> bool:
        client = self._living()
        if client is not None:
            self.fault("client replaced by exec")
            client.exec()
        return client is not None

    def _reconnect(self) -> bool:
        client = self._living()
        if client is None or client.at is not At.READY:
            return False
        self.fault("connection lost")
        client.lose_connection(self.chance.pick(3))
        return True

    def _cut_link(self) -> bool:
        connection = self.chance.of(self.remotes).connection
        if connection is None or connection.cut:
            return False
        self.fault("link cut")
        connection.cut = True
        return True

    def _mend_link(self) -> bool:
        connection = self.chance.of(self.remotes).connection
        if connection is None or not connection.cut:
            return False
        connection.cut = False  # what was sent meanwhile arrives late
        return True

    def _remove_segment(self) -> bool:
        files = list(self.machine.files)
        if not files:
            return False
        segment_id = self.chance.of(files)
        self.fault("segment removed from outside")
        self.machine.unlink_file(segment_id)
        self.machine.stolen.add(segment_id)
        return True

    def _jump(self) -> bool:
        self.fault("clock jumped")
        self.now_ns += (1 + self.chance.pick(100)) * HOUR_NS
        return True

    def _kill_coordinator(self) -> bool:
        if not self.up:
            return False
        self.fuse = self.chance.pick(12)
        if self.fuse > 8:
            self._dead()
        return True

    def _dead(self) -> None:
        self.fault("coordinator killed")
        self._down()

    def _down(self) -> None:
        self.up = False
        self.fuse = -1
        self.adrift.clear()
        chance = self.chance
        for connection in self.connections.values():
            lose_tail(connection.up, 0)
            lose_tail(connection.down, chance.pick(len(connection.down) + 1))
            if self.story is not None:
                self.tell(f"{connection} has {len(connection.down)} messages left")

    def _stop_coordinator(self) -> bool:
        if not self.up:
            return False
        self.fault("coordinator stopped in order")
        self.life.handle(StopRequested("SIGTERM"))
        self._look_whether_stopped()
        return True

    def _look_whether_stopped(self) -> None:
        if self.life.stopped and self.up:
            self._down()

    def _start_coordinator(self) -> bool:
        if self.up:
            return False
        self.up = True
        if self.faulty and self.settings.kills and self.chance.one_in(4):
            self.fault("kill in recovery")
            self.fuse = self.chance.pick(8)
        if self.story is not None:
            self.tell(f"coordinator {self.lives + 1} starts")
        self.life = Life(self)
        self.life.recover()
        return True

    # The end ------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Let nothing break any more, finish everything, and let everybody go.

        Raises
        ------
        AssertionError
            Somebody waits for ever, or something is left.
        """
        self.chance.bits = 0
        self.faulty = False
        self.fuse = -1
        for client in self.clients:
            client.quiet = True
            client.process.stopped = False
            if client.connection is not None:
                client.connection.cut = False
        self._told: set[int] = set()
        self._settle()
        self.ledger.check_answered()
        for client in self.clients:
            assert not client.asked, f"{client} waits for ever: {client.asked}"
            assert client.at in (At.READY, At.GONE), f"{client} got stuck"
        for number, client in enumerate(self.clients):
            if number % 2:
                client.die(0)
            else:
                client.leave()
        self._settle()
        self._check_only_sealed_is_left()
        self._remove_all()
        self._check_nothing_is_left()

    def _settle(self) -> None:
        for _ in range(MOST_CALM_MOVES):
            if not (self._make(self._calm_move) or self._make(self._calm_patience)):
                return
        raise AssertionError("it does not come to rest")

    def _calm_move(self) -> bool:
        if not self.up:
            return self._start_coordinator()
        for client in self.clients:
            if client.send() or client.read() or client.act():
                return True
        return (
            self._move_thread()
            or self._move_token()
            or self._see_exit()
            or self._look_at_locks()
            or self._tell_continued()
        )

    def _tell_continued(self) -> bool:
        for session in list(self.life.watches):
            before = self.steps
            if session not in self._told:
                self._told.add(session)
                self.life.handle(WorkerContinued(session))
                return self.steps > before
        return False

    def _calm_patience(self) -> bool:
        """Nothing happens: time passes, and clients give up on what was not answered."""
        wake_ns = self.life.core._state.jobs.wake_ns  # leases are renewed without end
        if wake_ns is not None:
            self.now_ns = max(self.now_ns + 1, wake_ns)
            self.life.handle(Tick())
            return True
        for client in self.clients:
            connection = client.connection
            if connection is not None and connection.broken and (client.asked or self.evil):
                client.lose_connection(0)
                return True
        if self._is_left_by_remotes():
            self.now_ns += LEASE_NS // 8
            self.life.handle(Tick())
            return True
        return False

    def _is_left_by_remotes(self) -> bool:
        """Whether a session over TCP is open that nobody goes on with."""
        used = {client.session for client in self.remotes if client.relies}
        open_ones = self.ledger.sessions.values()
        return any(one.is_remote and one.number not in used for one in open_ones)

    def _check_only_sealed_is_left(self) -> None:
        machine = self.machine
        assert not machine.tokens, f"tokens left: {machine.tokens}"
        for segment_id, record in machine.manifests.items():
            one = self.ledger.arrays[segment_id]
            assert record.sealed and not record.temporary, f"{one} was left"
            assert not one.superseded, f"{one} was left without a name"
        assert machine.files.keys() <= machine.manifests.keys(), "segments without a manifest"

    def _remove_all(self) -> None:
        cleaner = self.clients[0]
        cleaner.uid = 0
        cleaner.die(0)
        cleaner.sit_down()
        cleaner.quiet = True
        self._settle()
        assert cleaner.at is At.READY, f"{cleaner} cannot connect"
        cleaner.ask(List())
        self._settle()
        for name in cleaner.found:
            cleaner.ask(Destroy(name))
        self._settle()
        cleaner.leave()
        self._settle()

    def _check_nothing_is_left(self) -> None:
        machine = self.machine
        assert not machine.manifests and not machine.files, "arrays left"
        assert not machine.tokens, "tokens left"
        for client in self.clients:
            if client.process.alive:
                client.die(0)
        machine.check_pages()
        assert machine.free == machine.pages, "pages left"
        state = repr(self.life.core)
        assert "0 sessions, 0 arrays, 0 leases, 0 workers, 0 jobs, 0 acts" in state, state

    # Accounts -----------------------------------------------------------------

    def is_held(self, segment_id: int) -> bool:
        """Whether a living client counts on a lease on a segment."""
        return any(
            one.segment_id == segment_id
            for client in self.clients
            if client.relies
            for one in client.held.values()
        )

    def parts_under_way(self, peer: bytes) -> Iterator[RunPart]:
        """What living workers are at, or were told to do; all but the one at a peer."""
        for client in self.clients:
            connection = client.connection
            if client.at is At.LEAVING:
                continue
            if client.process.alive and (connection is None or connection.peer != peer):
                yield from client.parts
                if connection is not None:
                    for _, message in connection.down:
                        if isinstance(message, RunPart):
                            yield message

    def check_refusal(self, client: Client, request: Request, failed: Failed) -> None:
        """A session may be refused for want of room, or at the coordinator's end; no more."""
        if self.evil:
            return
        if isinstance(request, Hello):
            allowed = {ErrorCode.NOT_ENOUGH_MEMORY, ErrorCode.COORDINATOR_UNREACHABLE}
            if not client.relies:
                allowed.add(ErrorCode.LEASE_EXPIRED)
        elif isinstance(request, Bind | Resume):
            allowed = {ErrorCode.COORDINATOR_UNREACHABLE}
        assert failed.code in allowed, f"{client}: {request} was refused: {failed}"

    def count(self, request: Request, outcome: Message | str) -> None:
        """What came of a request, as its client sees it."""
        word = outcome if isinstance(outcome, str) else type(outcome).__name__
        self.outcomes[type(request).__name__, word] += 1

    def answered(self, request: Request, message: Message) -> None:
        """The coordinator gave a reply."""

    def refused(self, request: Request, code: int) -> None:
        """The coordinator refused a request."""
        self.outcomes[type(request).__name__, ErrorCode(code).name] += 1

    def removed(self, reason: str) -> None:
        """A segment was removed, and rightly so."""
        self.removals[reason] += 1

    def tell(self, line: str) -> None:
        """Write down what happens."""
        assert self.story is not None
        self.story.append(f"{self.steps:>6} {line}")

    def digest(self) -> str:
        """Of the story: the same for the same settings and moves."""
        assert self.story is not None
        return hashlib.blake2b("\n".join(self.story).encode(), digest_size=16).hexdigest()
