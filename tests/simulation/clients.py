"""Clients and workers as the coordinator meets them: processes that follow the protocol.

A client opens a session, locks its token, binds, and asks for this and that. When its
coordinator has ended it reads what had arrived, connects to the next one, takes its
session up, tells its leases, and asks again what was under way. Some clients are
workers as well. What a client does next is drawn from the move under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    WORKER_CLIENT,
    ArrayCreated,
    ArrayInfo,
    Attach,
    Attached,
    Bind,
    Bound,
    Cancel,
    CoordinatorStopping,
    CreateArray,
    Describe,
    Destroy,
    Detach,
    DropSegment,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Held,
    Hello,
    List,
    Listed,
    Operand,
    PartDone,
    PartFailed,
    PublicationsTold,
    Publish,
    PublishAll,
    Published,
    PublishedAll,
    RegisterWorker,
    ReportTiming,
    Request,
    Resume,
    Resumed,
    RunPart,
    Seal,
    Stats,
    SubmitJob,
    Timing,
    Welcome,
    WorkerRegistered,
)
from hugepool_common.spec import ArraySpec, Member
from hugepool_server.records import Identity
from simulation.machine import PAGE, File, Process, Token
from simulation.network import Connection

if TYPE_CHECKING:
    from simulation.world import World

MOST_ASKED = 3
"""Requests of one client under way at once."""

MOST_TOGETHER = 3
"""Names that a client publishes in one step."""

LEASES_A_RESUME = 2
"""Few, so that most clients need several."""

TIMING = Timing("gather", implementation="numpy")
ERROR = Failed(ErrorCode.JOB_FAILED, "the kernel failed")


class At(Enum):
    """How far a client is with its session."""

    AWAY = "away"
    HELLO = "hello"
    LOCKING = "locking"
    BINDING = "binding"
    RESUMING = "resuming"
    READY = "ready"
    LEAVING = "leaving"
    GONE = "gone"


_ASKED_AT: dict[type, At] = {Hello: At.HELLO, Bind: At.BINDING, Resume: At.RESUMING}
"""Requests that a session's beginning hangs on, and where that is so."""

_ASKED_AGAIN = Attach | Seal | Publish | PublishAll | Destroy | List | Describe
"""Requests that are asked as they were when the connection that they were asked by is lost."""


@dataclass(slots=True)
class Holding:
    """A lease as its client knows it."""

    segment_id: int
    name: str
    readonly: bool
    rows: tuple[int, int] | None
    mine: bool
    sealed: bool
    file: File | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a client wants to have published in one step.

    Parameters
    ----------
    number
        No other batch of the world has it.
    wanted
        Names, and the segments that are to have them.
    replace
        Whether the names may be taken.
    """

    number: int
    wanted: tuple[tuple[str, int], ...]
    replace: bool

    def page(self, told: int, count: int) -> PublishAll:
        """The message that tells the next `count` of it."""
        page = self.wanted[told : told + count]
        return PublishAll(
            tuple(name for name, _ in page),
            tuple(segment_id for _, segment_id in page),
            self.replace,
            batch=self.number,
            before=told,
            more=told + count < len(self.wanted),
        )


_specs: dict[tuple[str, int, int], ArraySpec] = {}


def spec_of(name: str, pages: int, made_of: int = 0) -> ArraySpec:
    """An array of so many pages, or a plan that was made of a segment."""
    key = name, pages, made_of
    spec = _specs.get(key)
    if spec is None:
        count = pages * PAGE // 8
        if made_of:
            members = (Member("order", "<f8", count),)
            return ArraySpec(name, (count,), "<f8", kind="plan", members=members, made_of=made_of)
        spec = _specs[key] = ArraySpec(name, (count,), "<f8")
    return spec


class Client:
    """One client after another in the same seat: when one dies, another process sits down.

    Attributes
    ----------
    asked
        Requests under way, by correlation id.
    again
        Requests of before the coordinator's end, that are to be asked anew.
    held
        Leases by number.
    goes_on
        Whether it told its last Hello that it had a session before.
    former
        Token that it does not hold any more, and asks for all the same.
    put
        Names of the temporaries that it publishes in one step.
    batch
        What it publishes in one step, while it waits for that.
    parts
        Parts that its worker was told to run, the first of them under way.
    quiet
        Asks for nothing new; the run comes to its end.
    """

    def __init__(self, world: World, number: int, *, uid: int, is_worker: bool) -> None:
        self.world = world
        self.chance = world.chance
        self.number = number
        self.uid = uid
        self.is_worker = is_worker
        self.put = tuple(f"t{number}.{one}" for one in range(MOST_TOGETHER))
        self.quiet = False
        self.correlation = 0
        self._on: dict[type, Callable[[Any, Request | None], None]] = {
            Welcome: self._on_welcome,
            Bound: self._on_bound,
            Resumed: self._on_resumed,
            ArrayCreated: self._on_granted,
            Attached: self._on_granted,
            Published: self._on_published,
            PublicationsTold: self._on_told,
            PublishedAll: self._on_published_all,
            WorkerRegistered: self._on_registered,
            GoodbyeSaid: self._on_goodbye,
            RunPart: self._on_part,
            DropSegment: self._on_drop,
            CoordinatorStopping: self._on_stopping,
            Listed: self._on_listed,
            Failed: self._on_failed,
        }
        verbs: list[tuple[int, Callable[[], None]]] = [
            (14, self._create),
            (18, self._attach),
            (12, self._detach),
            (14, self._seal),
            (16, self._publish),
            (5, self._destroy),
            (8, self._submit),
            (2, self._cancel),
            (5, self._look),
            (3, self._write),
            (1, self._leave),
            (2 if world.evil else 0, self._lie),
        ]
        if world.settings.batches:
            verbs += [(40, self._prepare), (4, self._publish_all)]
        self._verbs = [verb for weight, verb in verbs for _ in range(weight)]
        self.process: Process
        self.sit_down()

    def __repr__(self) -> str:
        return f"<Client {self.number} {self.process!r} {self.at.value}>"

    @property
    def relies(self) -> bool:
        """Whether it lives, or may: what it holds must be there."""
        return True

    def sit_down(self) -> None:
        """Begin anew, as another process."""
        self.process = self.world.machine.spawn(self.uid)
        self._know_nothing()

    def _know_nothing(self) -> None:
        self.at = At.AWAY
        self.connection: Connection | None = None
        self.token: Token | None = None
        self.session = 0
        self.goes_on = False
        self.former = ""
        self.registered = False
        self.asked: dict[int, Request] = {}
        self.again: list[Request] = []
        self.cancelled: set[int] = set()
        self.held: dict[int, Holding] = {}
        self.batch: Batch | None = None
        self.parts: deque[RunPart] = deque()
        self.to_resume: list[Held] = []
        self.found: list[str] = []

    # What may happen to it ----------------------------------------------------

    def die(self, keep: int) -> None:
        """SIGKILL; of what it sent, the first `keep` messages are on their way."""
        if self.process.alive:
            self.world.machine.kill(self.process)
        self.disconnect(keep)
        self.at = At.GONE
        self.held.clear()
        self.asked.clear()
        self.again.clear()
        self.parts.clear()

    def disconnect(self, keep: int) -> None:
        """Let go of the connection."""
        if self.connection is not None:
            self.world.close(self.connection, keep)
            self.connection = None

    def lose_connection(self, keep: int) -> None:
        """The coordinator, or the way to it, ended: settle what was under way, or ask again."""
        self.disconnect(keep)
        for request in self.asked.values():
            if isinstance(request, CreateArray):
                self.again.append(replace(request, again=True))
            elif isinstance(request, _ASKED_AGAIN):
                self.again.append(request)
            else:
                self.world.count(request, "ended by the coordinator's end")
        self.asked.clear()
        self.registered = False
        if self.at is At.LEAVING:
            self._gone()
        else:
            self.at = At.AWAY

    # Moves --------------------------------------------------------------------

    def send(self) -> bool:
        """Let the oldest message that it sent arrive."""
        connection = self.connection
        if connection is None or not connection.up:
            return False
        return self.world.arrive(connection)

    def read(self) -> bool:
        """Take the next message of the coordinator."""
        connection = self.connection
        if connection is None or not connection.down:
            return False
        correlation, message = connection.down.popleft()
        if self.world.story is not None:
            self.world.tell(f"{self!r} reads {correlation}: {message}")
        request = self.asked.get(correlation) if correlation else None
        handler = self._on.get(type(message))
        if request is not None and type(message).__name__ != "CreateProgress":
            del self.asked[correlation]
            self.world.count(request, message)
        if handler is not None:
            handler(message, request)
        return True

    def act(self) -> bool:
        """Do something of its own accord; False if there is nothing to be done."""
        at = self.at
        if self.connection is not None and self.connection.life != self.world.lives:
            if self.connection.down and not self.chance.one_in(2):
                return self.read()
            self.lose_connection(0)
            return True
        # That it is broken it does not know; but what it asked is not answered.
        broken = self.connection is not None and self.connection.broken
        if broken and (self.asked or self.world.evil) and self.chance.one_in(16):
            self.lose_connection(0)
            return True
        if at is At.READY:
            return self._act_ready()
        if at is At.AWAY:
            return self._connect()
        if at is At.LOCKING:
            return self._lock()
        if at is At.GONE and not self.quiet:
            self.sit_down()
            return True
        return False

    def _act_ready(self) -> bool:
        if self.again:
            self.ask(self.again.pop(0))
            return True
        if self.is_worker:
            # A part that overtook the answer to the registration waits for that, as in the worker.
            looks = self.parts and (self.quiet or self.chance.one_in(3))
            if looks and not self._asks(RegisterWorker):
                self._finish_part()
                return True
            if not (self.registered or self.parts or self._asks(RegisterWorker)):
                self._register()
                return True
        if self.quiet:
            return self._end_standing()
        if len(self.asked) >= MOST_ASKED:
            return False
        self.chance.of(self._verbs)()
        return True

    # Sessions -----------------------------------------------------------------

    def ask(self, request: Request) -> None:
        """Send a request."""
        assert self.connection is not None
        self.correlation += 1
        self.asked[self.correlation] = request
        self.connection.up.append((self.correlation, request))
        if self.world.story is not None:
            self.world.tell(f"{self!r} asks {self.correlation}: {request}")

    def _asks(self, kind: type) -> bool:
        return any(type(request) is kind for request in self.asked.values())

    def _connect(self) -> bool:
        if not self.world.up:
            return False
        self.connection = self.world.connect(self.process, self.identity())
        self.at = At.HELLO
        resume = self.token.name if self.token else self.former
        self.goes_on = bool(resume)
        kind = WORKER_CLIENT if self.is_worker else "client"
        self.ask(Hello(kind, "0.1", resume))
        return True

    def _on_welcome(self, message: Welcome, request: Request | None) -> None:
        if self.at is not At.HELLO or request is None:
            return
        self.session = message.session
        if message.resumed:
            self._resume()
            return
        # Whatever is locked before this is of no use any more.
        if self.token is not None:
            self.token.holder = None
        name = message.token.rpartition("/")[2]
        self.token = self.world.machine.tokens.get(name)
        self.at = At.LOCKING
        if self.token is None:
            self._begin_again()

    def _lock(self) -> bool:
        assert self.token is not None
        assert self.token.holder is None, "a token was given to two processes"
        self.token.holder = self.process
        self.at = At.BINDING
        if self.world.evil and self.chance.one_in(4):
            self.ask(Attach(self._name()))  # before it may
        self.ask(Bind())
        return True

    def _on_bound(self, message: Bound, request: Request | None) -> None:
        if self.at is not At.BINDING or request is None:
            return
        if self.goes_on:
            self._resume()
        else:
            self.at = At.READY

    def _resume(self) -> None:
        self.at = At.RESUMING
        self.to_resume = [
            Held(number, one.segment_id, one.readonly, one.rows)
            for number, one in self.held.items()
        ]
        self._tell_leases()

    def _tell_leases(self) -> None:
        told = self.to_resume[:LEASES_A_RESUME]
        del self.to_resume[:LEASES_A_RESUME]
        self.ask(Resume(tuple(told), more=bool(self.to_resume)))

    def _on_resumed(self, message: Resumed, request: Request | None) -> None:
        if request is None:
            return  # it came twice, and was taken in
        gone = set(message.gone)
        for number, one in list(self.held.items()):
            if one.segment_id in gone:
                self._forget(number)
        if self.at is At.RESUMING:
            if self.to_resume:
                self._tell_leases()
            else:
                self.at = At.READY

    def _begin_again(self) -> None:
        """The session could not be opened: connect once more."""
        self.disconnect(0)
        self.asked.clear()
        self.registered = False
        self.at = At.AWAY

    def _leave(self) -> None:
        self.held.clear()
        self.parts.clear()
        self._unmap_all()
        self.ask(Goodbye())
        self.at = At.LEAVING

    def leave(self) -> None:
        """Say goodbye, at the end of the run."""
        if self.at is At.READY:
            self._leave()

    def _on_goodbye(self, message: GoodbyeSaid, request: Request | None) -> None:
        if self.at is At.LEAVING:
            self._gone()

    def _gone(self) -> None:
        """The session is over; the process may open another one, or end."""
        self.disconnect(0)
        self.registered = False
        self.asked.clear()
        self.again.clear()
        if self.token is not None:
            self.token.holder = None
            self.token = None
        if self.quiet or self.chance.one_in(2):
            self.die(0)
        else:
            self.at = At.AWAY

    def exec(self) -> None:
        """The process goes on as another program, which knows nothing of all this."""
        former = self.token
        self._unmap_all()
        if former is not None:
            former.holder = None
        self.disconnect(self.chance.pick(3))
        self._know_nothing()
        if self.world.evil and former is not None:
            self.former = former.name  # it was written down somewhere

    def _unmap_all(self) -> None:
        for file in list(self.process.mapped):
            self.world.machine.unmap(self.process, file)

    # What it asks for ---------------------------------------------------------

    def _name(self) -> str:
        return self.chance.of(self.world.names)

    def _holding(self, wanted: Callable[[Holding], bool]) -> tuple[int, Holding] | None:
        found = [(number, one) for number, one in self.held.items() if wanted(one)]
        return self.chance.of(found) if found else None

    def _create(self) -> None:
        made_of = 0
        if self.chance.one_in(6):
            source = self._holding(lambda one: True)
            made_of = source[1].segment_id if source else 0
        spec = spec_of(self._name(), 1 + self.chance.pick(3), made_of)
        self.ask(CreateArray(spec, temporary=self.chance.one_in(4)))

    def _attach(self) -> None:
        readonly = not self.chance.one_in(3)
        rows = None
        if not readonly and self.chance.one_in(2):
            start = self.chance.pick(4)
            rows = start, start + 1 + self.chance.pick(3)
        self.ask(Attach(self._name(), readonly, rows))

    def _detach(self) -> None:
        numbers = [number for number, one in self.held.items() if one.name not in self.put]
        if numbers:
            number = self.chance.of(numbers)
            self._forget(number)
            self.ask(Detach(number))

    def _seal(self) -> None:
        found = self._holding(lambda one: one.mine and not one.sealed)
        if found is None:
            return
        one = found[1]
        self._write_no_more(one.segment_id)
        self.ask(Seal(one.name, one.segment_id if self.chance.one_in(2) else 0))

    def _write_no_more(self, segment_id: int) -> None:
        for one in self.held.values():
            if one.segment_id == segment_id:
                one.sealed = True
                if one.file in self.process.mapped:
                    self.process.mapped[one.file] = False

    def _publish(self) -> None:
        found = self._holding(lambda one: one.sealed)
        if found is None:
            return
        one, target = found[1], self._name()
        if target != one.name or self.chance.one_in(8):
            segment_id = one.segment_id if self.chance.one_in(2) else 0
            self.ask(Publish(target, one.name, segment_id))

    def _prepare(self) -> None:
        """Go on with what is to be published in one step: make a temporary, seal it, publish."""
        mine = [one for one in self.held.values() if one.name in self.put]
        left = [name for name in self.put if name not in {one.name for one in mine}]
        opened = [one for one in mine if not one.sealed]
        if len(mine) - len(opened) > 1 and not (left and self.chance.one_in(2)):
            self._publish_all()
        elif opened:
            self._write_no_more(opened[0].segment_id)
            self.ask(Seal(opened[0].name, opened[0].segment_id))
        elif left:
            self.ask(CreateArray(spec_of(left[0], 1), temporary=True))

    def _publish_all(self) -> None:
        sources = {one.segment_id: one.name for one in self.held.values() if one.sealed}
        if self.batch is not None or not sources:
            return
        chance = self.chance
        first, names = chance.pick(len(self.world.names)), self.world.names
        targets = (names[first:] + names[:first])[: 2 + chance.pick(MOST_TOGETHER - 1)]
        left = [one for one, name in sources.items() if name not in targets]
        wanted = tuple(zip(targets, left, strict=False))
        if len(wanted) > 1 or (wanted and chance.one_in(4)):
            self.batch = Batch(self.world.next_number(), wanted, chance.one_in(2))
            self.world.ledger.batches[self.batch.number] = self.batch
            self._tell_batch(0)

    def _tell_batch(self, told: int) -> None:
        assert self.batch is not None
        count = 1 + self.chance.pick(len(self.batch.wanted) - told)
        self.ask(self.batch.page(told, count))

    def _destroy(self) -> None:
        self.ask(Destroy(self._name()))

    def _submit(self) -> None:
        operands = [Operand("x", self._name())]
        written = self._holding(lambda one: not one.readonly)
        if written is not None and self.chance.one_in(2):
            operands.append(Operand("out", written[1].name, True))
        self.ask(
            SubmitJob(
                "gather",
                tuple(operands),
                tuple(range(2 + self.chance.pick(3))),
                workers=self.chance.pick(3) if self.chance.one_in(6) else 0,
                standing=self.chance.one_in(12),
            )
        )

    def _cancel(self) -> None:
        slow = [n for n, one in self.asked.items() if isinstance(one, CreateArray | SubmitJob)]
        if slow:
            self.ask(Cancel(self.chance.of(slow)))

    def _end_standing(self) -> bool:
        """A standing job waits for workers for ever: it is for its submitter to end it."""
        for number, request in self.asked.items():
            standing = isinstance(request, SubmitJob) and request.standing
            if standing and number not in self.cancelled:
                self.cancelled.add(number)
                self.ask(Cancel(number))
                return True
        return False

    def _look(self) -> None:
        match self.chance.pick(4):
            case 0:
                self.ask(List())
            case 1:
                self.ask(Describe(self._name()))
            case 2:
                self.ask(Stats())
            case 3:
                self.ask(ReportTiming(TIMING))

    def _write(self) -> None:
        for file, writable in self.process.mapped.items():
            if writable:
                file.version += 1

    def _guess(self) -> str:
        """Somebody's token, but for those that are secret: 128 bits are not guessed."""
        tokens = self.world.machine.tokens
        name = self.chance.of(list(tokens)) if tokens else "f00d"
        secret = name in tokens and not tokens[name].record.identity.is_local
        return "f00d" if secret and name != self.former else name

    def _lie(self) -> None:
        """Say what is not so."""
        chance = self.chance
        lease = self.world.ledger.last_lease - chance.pick(6)
        segment_id = self.world.ledger.last_segment - chance.pick(6)
        match chance.pick(7):
            case 0 if lease not in self.held:
                self.ask(Detach(lease))
            case 1:
                self.ask(Resume((Held(max(lease, 1), max(segment_id, 1), chance.one_in(2)),)))
            case 2:
                self.ask(PartDone(self.world.ledger.last_job - chance.pick(2), 0, 1, TIMING))
            case 3:
                self.ask(Bind())
            case 4:
                self.ask(Hello("liar", "0.1", self._guess()))
            case 5:
                self.ask(Seal(self._name(), max(segment_id, 0)))
            case 6:
                self.ask(Cancel(chance.pick(50)))

    # What it is told ----------------------------------------------------------

    def _on_granted(self, message: ArrayCreated | Attached, request: Request | None) -> None:
        if request is None or self.at is At.LEAVING:
            return  # not, or no more, of interest: the session's end gives it back
        info: ArrayInfo = message.array
        readonly, rows = True, None
        if isinstance(request, Attach):
            readonly, rows = request.readonly, request.rows
        elif isinstance(request, CreateArray):
            readonly = False
        segment_id = info.segment.segment_id
        file = self.world.machine.files.get(segment_id)
        if file is None or file.inode != info.segment.inode or (file.readonly and not readonly):
            # Destroyed, or sealed, before it could be opened.
            self.ask(Detach(message.lease))
            return
        mine = info.creator_uid == self.uid
        self.held[message.lease] = Holding(
            segment_id, info.spec.name, readonly, rows, mine, info.sealed, file
        )
        self.world.machine.map(self.process, file, writable=not readonly)

    def _forget(self, number: int) -> None:
        """Unmap what a lease was on, unless another one, or a part, still needs it."""
        one = self.held.pop(number)
        file = one.file
        if file is None or file not in self.process.mapped:
            return
        needed = {one.segment.segment_id for part in self.parts for one in part.operands}
        if file.segment_id not in needed:
            self._let_go(file)

    def _let_go(self, file: File) -> None:
        """Unmap a file, or map it only as its leases allow."""
        held = [one for one in self.held.values() if one.file is file]
        if not held:
            self.world.machine.unmap(self.process, file)
        else:
            writable = any(not one.readonly and not one.sealed for one in held)
            self.process.mapped[file] = writable

    def _on_published(self, message: Published, request: Request | None) -> None:
        segment_id = message.array.segment.segment_id
        for one in self.held.values():
            if one.segment_id == segment_id:
                one.name = message.array.spec.name

    def _is_of_batch(self, request: Request | None) -> bool:
        number = request.batch if isinstance(request, PublishAll) else 0
        return self.batch is not None and self.batch.number == number

    def _on_told(self, message: PublicationsTold, request: Request | None) -> None:
        if self._is_of_batch(request) and self.at is At.READY:
            self._tell_batch(message.count)

    def _on_published_all(self, message: PublishedAll, request: Request | None) -> None:
        if self.batch is None or not self._is_of_batch(request):
            return
        names = {segment_id: name for name, segment_id in self.batch.wanted}
        for one in self.held.values():
            one.name = names.get(one.segment_id, one.name)
        self.batch = None

    def _on_registered(self, message: WorkerRegistered, request: Request | None) -> None:
        self.registered = True

    def _on_part(self, message: RunPart, request: Request | None) -> None:
        if self.at is At.LEAVING:
            return  # it came too late
        self.parts.append(message)
        for operand in message.operands:
            file = self.world.machine.files.get(operand.segment.segment_id)
            if file is not None and not (file.readonly and operand.writable):
                self.world.machine.map(self.process, file, writable=operand.writable)

    def _register(self) -> None:
        """Between parts; nobody will say when to let go of what was mapped for a former one."""
        for file in list(self.process.mapped):
            self._let_go(file)
        self.ask(RegisterWorker())

    def _finish_part(self) -> None:
        part = self.parts.popleft()
        if not self.registered:
            return  # it was begun for a coordinator, or over a connection, that is no more
        if self.chance.one_in(12):
            self.ask(PartFailed(part.job, part.part, part.epoch, ERROR))
        else:
            self.ask(PartDone(part.job, part.part, part.epoch, TIMING))

    def _on_drop(self, message: DropSegment, request: Request | None) -> None:
        for file in list(self.process.mapped):
            if file.segment_id == message.segment_id:
                self._let_go(file)

    def _on_stopping(self, message: CoordinatorStopping, request: Request | None) -> None:
        if self.is_worker and self.chance.one_in(2):
            self.die(0)

    def _on_listed(self, message: Listed, request: Request | None) -> None:
        self.found = [info.spec.name for info in message.arrays]

    def _on_failed(self, message: Failed, request: Request | None) -> None:
        if self.at is _ASKED_AT.get(type(request)):
            assert request is not None
            self.world.check_refusal(self, request, message)
            self._begin_again()
            if self.quiet:
                self.die(0)
        elif isinstance(request, Goodbye):
            self._on_goodbye(GoodbyeSaid(), request)  # there is no such session any more
        elif self._is_of_batch(request):
            self.batch = None
        elif isinstance(request, RegisterWorker):
            self.registered = True  # as far as it can be: there are enough of them

    def identity(self) -> Identity:
        """Who it is, by the kernel's word."""
        return Identity(self.process.uid, self.process.uid, self.process.pid)
