"""A bench for the state machine: it stamps the time, feeds events and keeps what came of them.

The bench plays the daemon (which threads and sockets it would have) and validates
the coordinator after every event. It never answers a slow act by itself: a test
says when a segment is made, refused or sealed, in any order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    CreateArray,
    CreateProgress,
    Failed,
    Hello,
    Message,
    Notice,
    Operand,
    PartDone,
    PartFailed,
    RegisterWorker,
    Request,
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
    Effect,
    Event,
    Identity,
    MakeSegment,
    PeerUnreachable,
    ProcessExited,
    RequestReceived,
    SealRefused,
    SealSegment,
    SegmentMade,
    SegmentRefused,
    SegmentSealed,
    Send,
    Stop,
    StopRequested,
    UnlinkSegment,
    UnwatchProcess,
    WatchProcess,
)

UID = 1000
COORDINATOR_UID = 990
START_NS = 5_000_000
STEP_NS = 1_000

M = TypeVar("M", bound=Message)

REFUSAL = Failed(ErrorCode.NOT_ENOUGH_PAGES, "no pages", needed="1", had="0", remedy="sysctl")


def array_spec(name: str = "x", count: int = 1000) -> ArraySpec:
    """A dense f8 array of `count` elements."""
    return ArraySpec(name, (count,), "<f8")


class Bench:
    """One coordinator and all that is around it.

    Attributes
    ----------
    making, sealing
        Slow acts that were begun and not ended, by token.
    cancelled
        Tokens whose MakeSegment was told to stop.
    made, unlinked
        Segment ids that were ever published, and those that were removed.
    watched
        Sessions whose process is watched.
    stops
        How often the end of the loop was asked for.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.coordinator = Coordinator(
            instance="f00d",
            pid=1,
            uid=COORDINATOR_UID,
            version="0.1",
            started_ns=START_NS,
            limits=limits,
        )
        self.now_ns = START_NS
        self.making: dict[int, MakeSegment] = {}
        self.sealing: dict[int, SealSegment] = {}
        self.cancelled: set[int] = set()
        self.made: set[int] = set()
        self.unlinked: list[int] = []
        self.watched: dict[int, int] = {}
        self.stops = 0
        self.replies: dict[tuple[bytes, int], list[Message]] = defaultdict(list)
        self.notices: dict[bytes, list[Message]] = defaultdict(list)
        self._last_pid = 100

    def handle(self, event: Event) -> list[Effect]:
        """Feed one event, keep its effects, and check every invariant."""
        self.now_ns += STEP_NS
        effects = self.coordinator.handle(event, self.now_ns)
        for effect in effects:
            self._take(effect)
        self.coordinator.validate()
        return effects

    def _take(self, effect: Effect) -> None:
        match effect:
            case Send(peer, correlation, message):
                if isinstance(message, Notice):
                    assert (correlation == 0) is not isinstance(message, CreateProgress)
                    self.notices[peer].append(message)
                else:
                    self.replies[peer, correlation].append(message)
            case MakeSegment():
                assert effect.token not in self.making
                self.making[effect.token] = effect
            case CancelSegment(token):
                assert token in self.making and token not in self.cancelled
                self.cancelled.add(token)
            case SealSegment():
                assert effect.segment.segment_id not in self.unlinked
                self.sealing[effect.token] = effect
            case UnlinkSegment(segment):
                assert segment.segment_id in self.made, "removed what never was"
                assert segment.segment_id not in self.unlinked, "removed twice"
                self.unlinked.append(segment.segment_id)
            case WatchProcess(session, pid):
                assert session not in self.watched
                self.watched[session] = pid
            case UnwatchProcess(session):
                del self.watched[session]
            case Stop():
                self.stops += 1

    def client(self, *, uid: int = UID, pid: int | None = None, hello: bool = True) -> Client:
        """A new peer, of a new process unless told whose, with its session open."""
        self._last_pid += 1
        identity = Identity(uid, uid, self._last_pid if pid is None else pid)
        client = Client(self, b"peer%d" % self._last_pid, identity)
        if hello:
            client.call(Hello("test", "0.1"), Welcome)
        return client

    def worker(self, *, uid: int = UID) -> Client:
        """A new client that is a registered worker."""
        worker = self.client(uid=uid)
        worker.call(RegisterWorker(), WorkerRegistered)
        return worker

    # What threads answer ------------------------------------------------------

    def token_of(self, name: str) -> int:
        """Token of the newest MakeSegment under way for a name."""
        return max(token for token, act in self.making.items() if act.spec.name == name)

    def finish_making(self, name: str, *, token: int | None = None) -> list[Effect]:
        """The segment is there."""
        token = self.token_of(name) if token is None else token
        act = self.making.pop(token)
        self.made.add(act.segment_id)
        return self.handle(SegmentMade(token, *segment_of(act)))

    def refuse_making(self, name: str, error: Failed = REFUSAL) -> list[Effect]:
        """There will be no segment."""
        token = self.token_of(name)
        del self.making[token]
        return self.handle(SegmentRefused(token, error))

    def finish_sealing(self) -> list[Effect]:
        """The oldest SealSegment ends well."""
        token = min(self.sealing)
        return self.handle(SegmentSealed(token, self.sealing.pop(token).segment))

    def refuse_sealing(self, error: Failed = REFUSAL) -> list[Effect]:
        """The oldest SealSegment finds a writer."""
        token = min(self.sealing)
        del self.sealing[token]
        return self.handle(SealRefused(token, error))

    def stop(self) -> list[Effect]:
        """A signal."""
        return self.handle(StopRequested("SIGTERM"))


class Client:
    """One peer of the bench."""

    def __init__(self, bench: Bench, peer: bytes, identity: Identity) -> None:
        self.bench = bench
        self.peer = peer
        self.identity = identity
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

    def sealed(self, name: str = "x") -> None:
        """Create an array and seal it."""
        self.create(name)
        self.ask(Seal(name))
        self.bench.finish_sealing()

    def attach(self, name: str = "x", *, readonly: bool = True) -> Attached:
        """Attach an array."""
        return self.call(Attach(name, readonly), Attached)

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
