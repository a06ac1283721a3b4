"""A bench for the state machine: it stamps the time, feeds events and keeps what came of them.

The bench plays the daemon (which threads, sockets and files it would have) and
validates the coordinator after every event. It never answers a slow act by itself: a
test says when a segment is made, refused or sealed, in any order. Tokens it makes and
looks at by itself, right after the event that wanted it, unless told to wait.

It keeps what a daemon would have on its disk, so that :meth:`Bench.restart` can begin
the next coordinator with what the one before left at any moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    WORKER_CLIENT,
    ArrayCreated,
    Attach,
    Attached,
    Bind,
    Bound,
    CreateArray,
    CreateProgress,
    Failed,
    Held,
    Hello,
    JobProgress,
    Message,
    Notice,
    Operand,
    PartDone,
    PartFailed,
    Publish,
    Published,
    RegisterWorker,
    Request,
    Resume,
    Resumed,
    RunPart,
    Seal,
    SubmitJob,
    Timing,
    Welcome,
    WorkerRegistered,
)
from hugepool_common.spec import ArraySpec, Fall, PageReport, Segment
from hugepool_common.units import KIB, round_up
from hugepool_server.coordinator import Coordinator, Limits
from hugepool_server.events import (
    CancelSegment,
    CheckToken,
    Effect,
    Event,
    GenerationPublished,
    MakeSegment,
    MakeToken,
    PeerUnreachable,
    ProcessExited,
    PublishGeneration,
    PublishRefused,
    PublishTogether,
    Recovered,
    RequestReceived,
    SealRefused,
    SealSegment,
    SegmentMade,
    SegmentRefused,
    SegmentSealed,
    Send,
    Stop,
    StopRequested,
    Tick,
    TokenChecked,
    TokenMade,
    TokenRefused,
    UnlinkSegment,
    UnwatchProcess,
    WatchProcess,
)
from hugepool_server.records import OVER_TCP, ArrayRecord, Identity, SessionRecord

UID = 1000
COORDINATOR_UID = 990
START_NS = 5_000_000
STEP_NS = 1_000
BOOT_ID = "boot"
CHECKSUM = "crc32:00000000"

M = TypeVar("M", bound=Message)

REFUSAL = Failed(ErrorCode.NOT_ENOUGH_PAGES, "no pages", needed="1", had="0", remedy="sysctl")


def array_spec(name: str = "x", count: int = 1000) -> ArraySpec:
    """A dense f8 array of `count` elements."""
    return ArraySpec(name, (count,), "<f8")


class Bench:
    """One runtime directory, its coordinator, and all that is around it.

    Parameters
    ----------
    limits
        Of every coordinator.
    epoch
        Of the first coordinator.

    Attributes
    ----------
    automatic
        Whether tokens are made and looked at right after they are wanted; if not, a test
        ends `tokens_wanted` and `checks_wanted` itself.
    making, sealing, publishing, publishing_together
        Slow acts that were begun and not ended, by token.
    cancelled
        Tokens whose MakeSegment was told to stop.
    made, unlinked
        Segment ids that were ever there, and those that were removed.
    disk, tokens
        What is in the runtime directory: manifests by segment id, and tokens by session.
    lost
        Segment ids whose file somebody removed behind the coordinator's back.
    locked
        Sessions whose process holds the lock on its token.
    watched
        Sessions whose process is watched.
    stops
        How often the end of the loop was asked for.
    """

    def __init__(self, limits: Limits | None = None, *, epoch: int = 0) -> None:
        self.limits = limits
        self.epoch = epoch
        self.now_ns = START_NS
        self.automatic = True
        self.made: set[int] = set()
        self.unlinked: list[int] = []
        self.disk: dict[int, ArrayRecord] = {}
        self.tokens: dict[int, SessionRecord] = {}
        self.lost: set[int] = set()
        self.locked: set[int] = set()
        self.replies: dict[tuple[bytes, int], list[Message]] = defaultdict(list)
        self.notices: dict[bytes, list[Message]] = defaultdict(list)
        self._last_pid = 100
        self._last_token = 0
        self._begin()

    def _begin(self) -> None:
        self.coordinator = Coordinator(
            instance=f"f00d{self.epoch}",
            pid=1,
            uid=COORDINATOR_UID,
            version="0.1",
            started_ns=START_NS,
            limits=self.limits,
            durable=True,
            epoch=self.epoch,
        )
        self.making: dict[int, MakeSegment] = {}
        self.sealing: dict[int, SealSegment] = {}
        self.publishing: dict[int, PublishGeneration] = {}
        self.publishing_together: dict[int, PublishTogether] = {}
        self.tokens_wanted: list[MakeToken] = []
        self.checks_wanted: list[int] = []
        self.cancelled: set[int] = set()
        self.watched: dict[int, int] = {}
        self.stops = 0

    def handle(self, event: Event) -> list[Effect]:
        """Feed one event, keep its effects, and check every invariant.

        Returns
        -------
        list of Effect
            Of this event, not of what became of tokens after it.
        """
        self.now_ns += STEP_NS
        effects = self.coordinator.handle(event, self.now_ns)
        for effect in effects:
            self._take(effect)
        self.coordinator.validate()
        while self.automatic and (self.tokens_wanted or self.checks_wanted):
            if self.tokens_wanted:
                self.finish_token()
            else:
                self.finish_check()
        return effects

    def _take(self, effect: Effect) -> None:
        match effect:
            case Send(peer, correlation, message):
                if isinstance(message, Notice):
                    assert (correlation == 0) is not isinstance(
                        message, CreateProgress | JobProgress
                    )
                    self.notices[peer].append(message)
                else:
                    self.replies[peer, correlation].append(message)
            case MakeSegment():
                assert effect.token not in self.making
                assert effect.segment_id not in self.made, "a number was given twice"
                self.making[effect.token] = effect
            case CancelSegment(token):
                assert token in self.making and token not in self.cancelled
                self.cancelled.add(token)
            case SealSegment():
                assert effect.segment.segment_id not in self.unlinked
                self.sealing[effect.token] = effect
            case PublishGeneration():
                assert self.disk[effect.segment_id].sealed, "published what is not sealed"
                self.publishing[effect.token] = effect
            case PublishTogether():
                assert all(self.disk[one.segment_id].sealed for one in effect.publications)
                self.publishing_together[effect.token] = effect
            case UnlinkSegment(segment):
                assert segment.segment_id in self.made, "removed what never was"
                assert segment.segment_id not in self.unlinked, "removed twice"
                self.unlinked.append(segment.segment_id)
                self.disk.pop(segment.segment_id, None)
            case WatchProcess(session, pid):
                assert session not in self.watched
                self.watched[session] = pid
            case UnwatchProcess(session):
                self.watched.pop(session, None)
                self.tokens.pop(session, None)
                self.locked.discard(session)
            case MakeToken(session):
                assert session not in self.tokens, "a number was given twice"
                self.tokens_wanted.append(effect)
            case CheckToken(session):
                assert session in self.tokens and session not in self.checks_wanted
                self.checks_wanted.append(session)
            case Stop():
                self.stops += 1

    def client(
        self, *, uid: int = UID, pid: int | None = None, hello: bool = True, name: str = "test"
    ) -> Client:
        """A new peer, of a new process unless told whose, with its session bound."""
        self._last_pid += 1
        identity = Identity(uid, uid, self._last_pid if pid is None else pid)
        client = Client(self, b"peer%d" % self._last_pid, identity, name)
        if hello:
            client.open()
        return client

    def remote(self, *, hello: bool = True, name: str = "test") -> Client:
        """A new peer over TCP, with its session open."""
        self._last_pid += 1
        client = Client(self, b"remote%d" % self._last_pid, OVER_TCP, name)
        if hello:
            client.hello()
        return client

    def pass_time(self, ns: int) -> list[Effect]:
        """Nothing happens for so long."""
        self.now_ns += ns - STEP_NS
        return self.handle(Tick())

    def worker(self, *, uid: int = UID) -> Client:
        """A new client that is a registered worker."""
        worker = self.client(uid=uid, name=WORKER_CLIENT)
        worker.call(RegisterWorker(), WorkerRegistered)
        return worker

    # What threads answer ------------------------------------------------------

    def token_of(self, name: str) -> int:
        """Token of the newest MakeSegment under way for a name."""
        return max(token for token, act in self.making.items() if act.spec.name == name)

    def write_made(self, token: int) -> SegmentMade:
        """The segment and its manifest are there, and nobody was told."""
        act = self.making.pop(token)
        segment, pages = segment_of(act)
        self.made.add(act.segment_id)
        owner = self.tokens.get(act.session)
        self.disk[act.segment_id] = ArrayRecord(
            spec=act.spec,
            segment=segment,
            pages=pages,
            creator=act.creator,
            owner=owner.token if owner else "",
            created_ns=self.now_ns,
            generation=1,
            sealed=False,
            checksum="",
            boot_id=BOOT_ID,
            epoch=self.epoch,
            temporary=act.temporary,
        )
        return SegmentMade(token, segment, pages)

    def finish_making(self, name: str, *, token: int | None = None) -> list[Effect]:
        """The segment is there."""
        return self.handle(self.write_made(self.token_of(name) if token is None else token))

    def refuse_making(self, name: str, error: Failed = REFUSAL) -> list[Effect]:
        """There will be no segment."""
        token = self.token_of(name)
        del self.making[token]
        return self.handle(SegmentRefused(token, error))

    def write_sealed(self, token: int) -> SegmentSealed:
        """The manifest says that it is sealed, and nobody was told."""
        segment = self.sealing.pop(token).segment
        record = self.disk[segment.segment_id]
        self.disk[segment.segment_id] = msgspec.structs.replace(
            record, sealed=True, checksum=CHECKSUM
        )
        return SegmentSealed(token, segment, CHECKSUM)

    def finish_sealing(self) -> list[Effect]:
        """The oldest SealSegment ends well."""
        return self.handle(self.write_sealed(min(self.sealing)))

    def refuse_sealing(self, error: Failed = REFUSAL) -> list[Effect]:
        """The oldest SealSegment finds a writer."""
        token = min(self.sealing)
        del self.sealing[token]
        return self.handle(SealRefused(token, error))

    def write_published(self, token: int) -> GenerationPublished:
        """The manifest has the name, and nobody was told."""
        self._write_name(self.publishing.pop(token))
        return GenerationPublished(token)

    def write_published_together(self, token: int, count: int = -1) -> GenerationPublished:
        """All manifests have their names, or only the first `count`, and nobody was told."""
        act = self.publishing_together.pop(token)
        for one in act.publications if count < 0 else act.publications[:count]:
            self._write_name(one)
        return GenerationPublished(token)

    def _write_name(self, act: PublishGeneration) -> None:
        record = self.disk[act.segment_id]
        others = [one for one in self.disk.values() if one.spec.name == act.name]
        assert all(one.generation < act.generation for one in others if one.sealed)
        spec = msgspec.structs.replace(record.spec, name=act.name)
        self.disk[act.segment_id] = msgspec.structs.replace(
            record, spec=spec, generation=act.generation, temporary=False
        )

    def finish_publishing(self) -> list[Effect]:
        """The oldest PublishGeneration ends well."""
        return self.handle(self.write_published(min(self.publishing)))

    def finish_publishing_together(self) -> list[Effect]:
        """The oldest PublishTogether ends well."""
        return self.handle(self.write_published_together(min(self.publishing_together)))

    def refuse_publishing_together(self, error: Failed = REFUSAL) -> list[Effect]:
        """The oldest PublishTogether could not write."""
        token = min(self.publishing_together)
        del self.publishing_together[token]
        return self.handle(PublishRefused(token, error))

    def refuse_publishing(self, error: Failed = REFUSAL) -> list[Effect]:
        """The oldest PublishGeneration could not write."""
        token = min(self.publishing)
        del self.publishing[token]
        return self.handle(PublishRefused(token, error))

    def finish_token(self) -> list[Effect]:
        """The token wanted first is there."""
        wanted = self.tokens_wanted.pop(0)
        self._last_token += 1
        token = f"{self._last_token:032x}"
        self.tokens[wanted.session] = SessionRecord(
            session=wanted.session,
            token=token,
            identity=wanted.identity,
            start_ticks=1,
            client=wanted.client,
            boot_id=BOOT_ID,
            lease_ns=wanted.lease_ns,
        )
        return self.handle(TokenMade(wanted.session, f"/run/tokens/{token}"))

    def refuse_token(self, error: Failed = REFUSAL) -> list[Effect]:
        """The token wanted first cannot be made."""
        return self.handle(TokenRefused(self.tokens_wanted.pop(0).session, error))

    def finish_check(self) -> list[Effect]:
        """The token that was to be looked at first was looked at."""
        session = self.checks_wanted.pop(0)
        return self.handle(TokenChecked(session, session in self.locked))

    def stop(self) -> list[Effect]:
        """A signal."""
        return self.handle(StopRequested("SIGTERM"))

    # The next coordinator -----------------------------------------------------

    def restart(self) -> list[Effect]:
        """The coordinator is killed, and the next one begins with what is on the disk.

        A segment that was being made without a manifest yet is swept, and so is the token
        of a local process that does not hold its lock.
        """
        self.tokens = {
            n: record for n, record in self.tokens.items() if n in self.locked or record.lease_ns
        }
        self.epoch += 1
        self._begin()
        return self.handle(
            Recovered(
                arrays=tuple(self.disk.values()),
                lost=frozenset(self.lost & self.disk.keys()),
                sessions=tuple(self.tokens.values()),
            )
        )


class Client:
    """One process, and the peer of the bench that it is now.

    Attributes
    ----------
    token
        Name of its session's token, once it was told.
    """

    def __init__(self, bench: Bench, peer: bytes, identity: Identity, name: str = "test") -> None:
        self.bench = bench
        self.name = name
        self.peer = peer
        self.identity = identity
        self.token = ""
        self._connections = 1
        self._last_correlation = 0

    @property
    def session(self) -> int:
        """Number of its session, from the last Welcome."""
        welcomes = [
            reply
            for (peer, _), replies in self.bench.replies.items()
            for reply in replies
            if peer == self.peer and isinstance(reply, Welcome)
        ]
        return welcomes[-1].session

    def hello(self) -> Welcome:
        """Open a session, without binding it."""
        welcome = self.call(Hello(self.name, "0.1"), Welcome)
        self.token = welcome.token.rpartition("/")[2]
        return welcome

    def bind(self) -> Bound:
        """Lock the token and say so."""
        self.bench.locked.add(self.session)
        return self.call(Bind(), Bound)

    def open(self) -> Welcome:
        """Open a session and bind it."""
        welcome = self.hello()
        self.bind()
        return welcome

    def reconnect(self) -> None:
        """Be another peer from here on: its socket was renewed."""
        base = self.peer.partition(b".")[0]
        self.peer = b"%s.%d" % (base, self._connections)
        self._connections += 1

    def resume(self, *held: Held, more: bool = False) -> Resumed:
        """Reconnect, take the session up again, and tell what it holds."""
        self.reconnect()
        welcome = self.call(Hello(self.name, "0.1", self.token), Welcome)
        if not welcome.resumed:
            self.token = welcome.token.rpartition("/")[2]
            self.bind()
        return self.call(Resume(held, more), Resumed)

    def ask(self, request: Request, *, identity: Identity | None = None) -> int:
        """Send a request; returns its correlation id."""
        self._last_correlation += 1
        correlation = self._last_correlation
        event = RequestReceived(self.peer, identity or self.identity, correlation, request)
        self.bench.handle(event)
        return correlation

    def replies(self, correlation: int) -> list[Message]:
        """All replies to a request so far."""
        return self.bench.replies[self.peer, correlation]

    def reply(self, correlation: int, kind: type[M]) -> M:
        """The one reply to a request, of this kind."""
        (found,) = self.replies(correlation)
        assert isinstance(found, kind), found
        return found

    def call(self, request: Request, kind: type[M]) -> M:
        """Ask, and take the reply that comes at once."""
        return self.reply(self.ask(request), kind)

    def refused(self, request: Request, code: ErrorCode) -> Failed:
        """Ask, and take the error that comes at once."""
        failed = self.call(request, Failed)
        assert failed.code == code, failed
        return failed

    def notices(self, kind: type[M]) -> list[M]:
        """Take the notices of this kind that came since."""
        all_notices = self.bench.notices[self.peer]
        found = [notice for notice in all_notices if isinstance(notice, kind)]
        all_notices[:] = [notice for notice in all_notices if not isinstance(notice, kind)]
        return found

    def exit(self) -> list[Effect]:
        """Its process dies."""
        self.bench.locked.discard(self.session)
        return self.bench.handle(ProcessExited(self.session))

    def vanish(self) -> list[Effect]:
        """Sending to it fails."""
        return self.bench.handle(PeerUnreachable(self.peer))

    # Common doings ------------------------------------------------------------

    def create(self, name: str = "x", count: int = 1000) -> ArrayCreated:
        """Create a dense array and have it made."""
        correlation = self.ask(CreateArray(array_spec(name, count)))
        self.bench.finish_making(name)
        return self.reply(correlation, ArrayCreated)

    def sealed(self, name: str = "x") -> ArrayCreated:
        """Create an array and seal it."""
        created = self.create(name)
        self.ask(Seal(name))
        self.bench.finish_sealing()
        return created

    def publish(self, name: str, source: str = "next") -> Published:
        """Create an array, seal it, and publish it under a name."""
        self.sealed(source)
        correlation = self.ask(Publish(name, source))
        self.bench.finish_publishing()
        return self.reply(correlation, Published)

    def attach(
        self, name: str = "x", *, readonly: bool = True, rows: tuple[int, int] | None = None
    ) -> Attached:
        """Attach an array."""
        return self.call(Attach(name, readonly, rows), Attached)

    def submit(
        self,
        *operands: tuple[str, str] | tuple[str, str, bool],
        rows: Iterable[int] = (0, 10, 20),
        kernel: str = "gather",
    ) -> int:
        """Submit a job over (role, name, writable) operands; returns the correlation id."""
        return self.ask(
            SubmitJob(kernel, tuple(Operand(*operand) for operand in operands), tuple(rows))
        )

    def part(self) -> RunPart:
        """Take the one part that was sent to it."""
        (part,) = self.notices(RunPart)
        return part

    def done(self, part: RunPart) -> int:
        """Report a part done."""
        timing = Timing("gather", implementation="numba")
        return self.ask(PartDone(part.job, part.part, part.epoch, timing))

    def failed(self, part: RunPart, error: Failed) -> int:
        """Report a part failed."""
        return self.ask(PartFailed(part.job, part.part, part.epoch, error))


def segment_of(act: MakeSegment) -> tuple[Segment, PageReport]:
    """What a thread would have made."""
    length = max(round_up(act.spec.nbytes, 4 * KIB), 4 * KIB)
    segment = Segment(
        act.segment_id, f"/pool/{act.segment_id}", 1, act.segment_id, 0, length, 4 * KIB, "shm-4k"
    )
    falls = (Fall("hugetlbfs-2m", "mmap", 12, "no pages", "sysctl vm.nr_hugepages=1"),)
    return segment, PageReport("shm-4k", 4 * KIB, length, 0, length, "pagemap_scan", falls)


def held(reply: ArrayCreated | Attached, *, readonly: bool = True) -> Held:
    """What a client tells of a lease that it was granted before."""
    return Held(reply.lease, reply.array.segment.segment_id, readonly)
