"""What the world knows to be true, held against what the coordinator does.

The ledger believes nothing that the coordinator says of itself. It sees the events,
the effects and the machine, and keeps its own account: who was answered, which leases
were promised, which arrays were acknowledged, which process is behind a session. What
contradicts the account is an AssertionError, and the end of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    Bound,
    CreateArray,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    Goodbye,
    JobDone,
    Notice,
    PartAccepted,
    PartDone,
    PartFailed,
    Publish,
    PublishAll,
    Published,
    PublishedAll,
    Renew,
    Renewed,
    Request,
    Resume,
    Resumed,
    RunPart,
    Seal,
    Sealed,
    SubmitJob,
    Welcome,
    WorkerRegistered,
)
from hugepool_server.events import (
    Effect,
    Event,
    GenerationPublished,
    MakeSegment,
    MakeToken,
    PeerUnreachable,
    ProcessExited,
    PublishGeneration,
    PublishTogether,
    Recovered,
    RequestReceived,
    SealSegment,
    SegmentMade,
    SegmentRefused,
    Send,
    TokenChecked,
    TokenMade,
    TokenRefused,
    UnlinkSegment,
    UnwatchProcess,
)
from hugepool_server.records import EPOCH_SHIFT, ArrayRecord, Identity, SessionRecord

if TYPE_CHECKING:
    from simulation.clients import Batch
    from simulation.life import Life
    from simulation.world import World

NOT_REPLIES = Notice.__args__


@dataclass(slots=True)
class Array:
    """One segment, from the wish to have it made to its last trace."""

    segment_id: int
    name: str
    nbytes: int
    uid: int
    made_of: int
    user: tuple[str, int, int]
    """Who may write to it, beside the coordinator's user and root."""
    owner: str
    """Name of its owner's token, which is what ownership hangs on across restarts."""
    acknowledged: bool = False
    sealed: str = ""
    temporary: bool = False
    superseded: bool = False
    abandoned: bool = False
    lost: bool = False
    gone: bool = False


@dataclass(slots=True)
class Session:
    """A session of the life under way."""

    number: int
    identity: Identity
    peer: bytes = b""
    bound: bool = False
    unconfirmed: set[int] = field(default_factory=set)
    """Leases that its client, heard from a new connection, has not told yet."""
    renewed: bool = False
    """It is heard from a new connection, and has not registered as a worker since."""
    working: tuple[int, int, int] | None = None
    lease_end_ns: int = 0
    """Of one over TCP, once its lease has begun."""

    @property
    def is_remote(self) -> bool:
        """Whether it is one over TCP."""
        return not self.identity.is_local


@dataclass(slots=True)
class Lease:
    """A lease of the life under way."""

    session: int
    segment_id: int
    rows: tuple[int, int] | None = None


@dataclass(slots=True)
class Job:
    """A job of the life under way."""

    parts: int
    epochs: dict[int, int] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)


class Ledger:
    """The account of one world.

    Attributes
    ----------
    arrays
        Every segment of which there is, or may be, anything left.
    names
        What each name must resolve to, in the life under way.
    owed
        What was asked and not answered, by peer and correlation id.
    batches
        What clients want to have published in one step, by its number.
    last_session, last_lease, last_segment, last_job
        Highest numbers given so far, over all lives.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine = world.machine
        self.arrays: dict[int, Array] = {}
        self.last_session = self.last_lease = self.last_segment = self.last_job = 0
        self.life: Life
        self.names: dict[str, int] = {}
        self.sessions: dict[int, Session] = {}
        self.by_peer: dict[bytes, Session] = {}
        self.leases: dict[int, Lease] = {}
        self.jobs: dict[int, Job] = {}
        self.owed: dict[tuple[bytes, int], list[RequestReceived]] = {}
        self.excused: set[bytes] = set()
        self.batches: dict[int, Batch] = {}
        self.bytes: Counter[int] = Counter()
        self._unlinked: set[int] = set()
        self._publications: dict[int, tuple[PublishGeneration, ...]] = {}
        self._published_now: tuple[PublishGeneration, ...] = ()
        self._makes: dict[int, MakeSegment] = {}
        self._going: set[int] = set()
        self._on_reply: dict[type, Callable[[Session, Any, Any], None]] = {
            ArrayCreated: self._created,
            Attached: self._attached,
            Detached: self._detached,
            Sealed: self._sealed,
            Published: self._published,
            PublishedAll: self._published_all,
            Destroyed: self._destroyed,
            Bound: self._bound,
            Resumed: self._resumed,
            JobDone: self._job_done,
            PartAccepted: self._part_accepted,
            WorkerRegistered: self._registered,
            Renewed: self._renewed,
        }

    # A new life ---------------------------------------------------------------

    def begin(
        self, life: Life, records: Sequence[ArrayRecord], sessions: Sequence[SessionRecord]
    ) -> None:
        """A coordinator has read what is there."""
        self.life = life
        for volatile in (
            self.names,
            self.sessions,
            self.by_peer,
            self.leases,
            self.jobs,
            self.owed,
            self.excused,
            self.bytes,
            self._unlinked,
            self._publications,
            self._makes,
        ):
            volatile.clear()
        assert life.epoch << EPOCH_SHIFT >= self.last_session, "epochs do not rise"
        for known in sessions:
            self.sessions[known.session] = Session(known.session, known.identity, bound=True)
        found = {record.segment.segment_id for record in records}
        for segment_id in [n for n, one in self.arrays.items() if one.gone or n not in found]:
            one = self.arrays.pop(segment_id)
            assert one.gone or not one.acknowledged, f"{one} was acknowledged and is not there"
            assert one.gone or not one.sealed, f"{one} was sealed and is not there"
        newest: dict[str, ArrayRecord] = {}
        for record in records:
            one = self.arrays[record.segment.segment_id]
            one.lost = record.segment.segment_id not in self.machine.files
            assert not one.lost or record.segment.segment_id in self.machine.stolen, (
                f"{one} has a manifest and no segment"
            )
            assert record.checksum == one.sealed, "a sealed checksum changed"
            written = record.spec.name, record.temporary
            assert written == (one.name, one.temporary), f"{one} is written down as {written}"
            if not one.superseded:
                rival = newest.get(one.name)
                if rival is None or self._rank(record) > self._rank(rival):
                    newest[one.name] = record
            if not one.lost:
                self.bytes[one.uid] += one.nbytes
        for name, record in newest.items():
            self.names[name] = record.segment.segment_id
            self.arrays[record.segment.segment_id].abandoned = False

    def _rank(self, record: ArrayRecord) -> tuple[bool, int, int]:
        """Of manifests with one name, the highest has it; nobody was told of an abandoned one."""
        number = record.segment.segment_id
        return not self.arrays[number].abandoned, record.generation, number

    # The machine says ---------------------------------------------------------

    def committed(self, record: ArrayRecord) -> None:
        """A manifest was written."""
        segment_id = record.segment.segment_id
        one = self.arrays[segment_id]
        assert not one.gone, "the manifest of what was removed was written again"
        assert not one.sealed or one.sealed == record.checksum, "a sealed checksum changed"
        one.sealed = record.checksum
        one.name = record.spec.name
        one.temporary = record.temporary
        for other_id, other in self.machine.manifests.items():
            if other_id != segment_id and other.spec.name == one.name:
                rival = self.arrays[other_id]
                if rival.abandoned or rival.superseded:
                    continue
                assert other.generation < record.generation or one.abandoned, (
                    f"{one} and {rival} have one name and one generation"
                )
                if not one.abandoned:
                    rival.superseded = True

    def taken_back(self, record: ArrayRecord) -> None:
        """A manifest was written as it was before: what it had superseded has the name again."""
        one = self.arrays[record.segment.segment_id]
        rivals = [
            (other.generation, number)
            for number, other in self.machine.manifests.items()
            if other.spec.name == one.name and number != one.segment_id
            if not self.arrays[number].abandoned
        ]
        if rivals:
            self.arrays[max(rivals)[1]].superseded = False
        one.name, one.temporary = record.spec.name, record.temporary

    def unlinked(self, segment_id: int) -> None:
        """A manifest was removed, and the segment will be."""
        one = self.arrays.get(segment_id)
        if one is not None:
            one.gone = True

    # An event -----------------------------------------------------------------

    def before(self, event: Event) -> None:
        """An event is about to be handled."""
        if type(event) is RequestReceived:
            self.owed.setdefault((event.peer, event.correlation), []).append(event)
        elif type(event) is PeerUnreachable:
            self.excused.add(event.peer)
            session = self.by_peer.get(event.peer)
            if session is not None and isinstance(event.unsent, RunPart):
                session.working = None  # it will not hear of it

    def judge(self, event: Event, effects: Sequence[Effect]) -> None:
        """An event was handled: hold its effects against what is known."""
        self._going = {
            effect.segment.segment_id for effect in effects if type(effect) is UnlinkSegment
        }
        self._published_now = ()
        kind = type(event)
        if kind is SegmentMade:
            self._end_making(event.token, made=True)  # type: ignore[union-attr]
        elif kind is SegmentRefused:
            self._end_making(event.token, made=False)  # type: ignore[union-attr]
        elif kind is GenerationPublished:
            self._end_publishing(event.token)  # type: ignore[union-attr]
        elif kind is TokenMade:
            self._lease_begins(self.sessions.get(event.session))  # type: ignore[union-attr]
        elif kind is Recovered:
            for session in self.sessions.values():
                self._lease_begins(session)
        for effect in effects:
            match effect:
                case Send():
                    self._sent(event, effect)
                case MakeSegment():
                    self._making(effect)
                case SealSegment():
                    self._check_alone(effect.segment.segment_id)
                case PublishGeneration():
                    self._begin_publishing(effect.token, (effect,))
                case PublishTogether():
                    self._publishing_together(event, effect)
                case UnlinkSegment():
                    self._unlinking(event, effect, effects)
                case MakeToken():
                    self._opened(event, effect)
                case UnwatchProcess():
                    self._closed(event, effect, effects)
                case _:
                    pass
        self._check_core()

    def _lease_begins(self, session: Session | None) -> None:
        if session is not None and session.is_remote:
            session.lease_end_ns = self.world.now_ns + self.world.limits.lease_ns

    def _check_core(self) -> None:
        state = self.life.core._state
        for one in self.sessions.values():
            if one.lease_end_ns:
                assert one.lease_end_ns > self.world.now_ns, f"{one} outlived its lease"
                wake_ns = self.life.core.wake_ns
                assert wake_ns is not None and wake_ns <= one.lease_end_ns, "it wakes too late"
        names = {one.name: one.segment_id for one in state.registry.published}
        assert names == self.names, f"names are {names}, not {self.names}"
        open_sessions = {session.number for session in state.leases.sessions}
        assert open_sessions == self.sessions.keys(), "sessions are not those that were opened"
        for number, lease in self.leases.items():
            session = state.leases.of_number(lease.session)
            assert session is not None and number in session.leases, f"lease {number} was taken"
        settings = self.world.settings
        if settings.max_bytes:
            assert self.bytes.total() <= settings.max_bytes, "the quota was passed"
        if settings.max_bytes_per_user:
            for uid, nbytes in self.bytes.items():
                assert nbytes <= settings.max_bytes_per_user, f"uid {uid} passed its quota"

    # Sessions -----------------------------------------------------------------

    def _opened(self, event: Event, effect: MakeToken) -> None:
        assert self.last_session < effect.session, "a session's number was given twice"
        assert effect.session > self.life.epoch << EPOCH_SHIFT
        self.last_session = effect.session
        session = Session(effect.session, effect.identity)
        self.sessions[effect.session] = session
        if isinstance(event, RequestReceived):
            whose = event.identity.of_session(effect.session)
            assert effect.identity == whose, "a session of somebody else"
            session.peer = event.peer
            self.by_peer[event.peer] = session

    def _closed(self, event: Event, effect: UnwatchProcess, effects: Sequence[Effect]) -> None:
        session = self.sessions.pop(effect.session, None)
        if session is None:
            late = isinstance(event, TokenMade) and event.session == effect.session
            assert late, "a session was closed twice"
            return
        self.by_peer.pop(session.peer, None)
        self.excused.add(session.peer)
        for number in [n for n, one in self.leases.items() if one.session == effect.session]:
            del self.leases[number]
        match event:
            case _ if session.lease_end_ns and self.world.now_ns >= session.lease_end_ns:
                right = True
                for client in self.world.remotes:
                    relied = client.session == session.number and client.relies
                    assert not relied, f"{client} still relied on its session"
            case ProcessExited() | TokenRefused():
                right = event.session == effect.session
            case TokenChecked():
                right = event.session == effect.session and not event.held
            case PeerUnreachable():
                # Of one that took the place of a session that was over, the peer is not known.
                right = not session.bound and session.peer in (b"", event.peer)
            case RequestReceived(request=Goodbye()):
                right = event.peer == session.peer and self._same(event.identity, session)
            case _:
                right = False
        assert right, f"session {effect.session} of a living process was closed at {event}"

    @staticmethod
    def _same(identity: Identity, session: Session) -> bool:
        return identity.process == session.identity.process

    def _welcomed(self, peer: bytes, message: Welcome) -> None:
        session = self.sessions[message.session]
        connection = self.world.connections.get(peer)
        if message.resumed:
            assert connection is None or self._same(connection.identity, session)
            token = self.life.tokens[message.session]
            if connection is not None and connection.process.alive:
                behind = connection.process
                if session.is_remote:
                    known = [one.former for one in self.world.remotes if one.process is behind]
                    assert known == [token.name], "a session was taken up by another"
                else:
                    assert token.holder is behind, "a session was taken up by another"
            self.by_peer.pop(session.peer, None)
            if session.peer != peer:
                self.excused.add(session.peer)
                session.renewed = True
                session.unconfirmed = {
                    number
                    for number, lease in self.leases.items()
                    if lease.session == session.number
                }
            session.bound = True
        if session.is_remote:
            assert message.lease_ns == self.world.limits.lease_ns
            session.bound = True
            self._lease_begins(session)
        session.peer = peer
        self.by_peer[peer] = session

    def _bound(self, session: Session, request: Request, message: Bound) -> None:
        connection = self.world.connections.get(session.peer)
        token = self.life.tokens[session.number]
        if connection is not None and connection.process.alive and not session.is_remote:
            assert token.holder is connection.process, "a session was bound to another's process"
        session.bound = True

    def _renewed(self, session: Session, request: Renew, message: Renewed) -> None:
        assert session.is_remote, "a local session has no lease"
        self._lease_begins(session)

    def _resumed(self, session: Session, request: Resume, message: Resumed) -> None:
        found = self.life.core._state.leases.of_number(session.number)
        assert found is not None
        for held in request.leases:
            session.unconfirmed.discard(held.lease)
            lease = found.leases.get(held.lease)
            if held.segment_id in message.gone:
                one = self.arrays.get(held.segment_id)
                there = one is not None and not one.gone and not one.lost
                there = there and held.segment_id in self.machine.manifests
                assert not there, f"{one} is there, and was told to be gone"
            elif lease is not None and lease.segment_id == held.segment_id:
                if held.lease not in self.leases:
                    assert held.lease <= self.last_lease, "a lease out of nothing"
                    self._check_grant(
                        session, held.segment_id, lease.readonly, held.lease, held.rows
                    )
            elif held.segment_id not in self._going:
                assert self.world.evil, f"{held} was told, and neither granted nor gone"
        if not request.more:
            for number in session.unconfirmed:
                self.leases.pop(number, None)
            session.unconfirmed.clear()

    # Replies ------------------------------------------------------------------

    def _sent(self, event: Event, effect: Send) -> None:
        message = effect.message
        if isinstance(message, NOT_REPLIES):
            if type(message) is RunPart:
                self._part_sent(effect.peer, message)
            return
        key = effect.peer, effect.correlation
        asked = self.owed.get(key)
        assert asked, f"{message} answers nothing that {effect.peer!r} asked, or not any more"
        # Of a message that came twice, the second may be refused before the first is done.
        asking = asked.pop(-1 if type(message) is Failed else 0)
        request = asking.request
        if not asked:
            del self.owed[key]
        if type(message) is Failed:
            assert message.code != ErrorCode.INTERNAL, message
            if isinstance(request, PublishAll):
                self._check_right_to_refuse(request, message.code)
            self.world.refused(request, message.code)
            return
        self.world.answered(request, message)
        if type(message) is Welcome:
            self._welcomed(effect.peer, message)
            return
        session = self.by_peer.get(effect.peer)
        handler = self._on_reply.get(type(message))
        if session is not None:
            assert self._same(asking.identity, session), f"{message} to another process"
        if handler is not None:
            assert session is not None, f"{message} to nobody"
            assert session.bound or type(message) is Bound, "served before it was bound"
            handler(session, request, message)

    def _created(self, session: Session, request: CreateArray, message: ArrayCreated) -> None:
        one = self.arrays[message.array.segment.segment_id]
        assert message.array.spec == request.spec
        assert one.owner == self._token_name(session.number), "another's array was given away"
        assert not one.sealed and not one.gone
        assert one.segment_id in self.machine.manifests, "acknowledged before it was written down"
        one.acknowledged = True
        self._grant(session, one.segment_id, False, message.lease)

    def _attached(self, session: Session, request: Attach, message: Attached) -> None:
        self._grant(
            session, message.array.segment.segment_id, request.readonly, message.lease, request.rows
        )
        one = self.arrays[message.array.segment.segment_id]
        assert self.names.get(request.name) == one.segment_id, "attached under another name"

    def _grant(
        self,
        session: Session,
        segment_id: int,
        readonly: bool,
        lease: int,
        rows: tuple[int, int] | None = None,
    ) -> None:
        assert lease > self.last_lease, "a lease's number was given twice"
        assert lease > self.life.epoch << EPOCH_SHIFT
        self.last_lease = lease
        self._check_grant(session, segment_id, readonly, lease, rows)

    def _check_grant(
        self,
        session: Session,
        segment_id: int,
        readonly: bool,
        lease: int,
        rows: tuple[int, int] | None,
    ) -> None:
        one = self.arrays[segment_id]
        assert not (one.gone or one.lost), f"a lease on {one}"
        if not readonly:
            under_way = any(segment_id in act.segment_ids for act in self.life.acts)
            assert not one.sealed or under_way, "a writable lease on a sealed array"
            who = session.identity
            assert who.user == one.user or who.uid in (0, self.life.core.uid), "may not write"
        assert rows is None or not session.is_remote, "rows of nobody"
        if rows is not None and not readonly:
            for other in self.leases.values():
                if other.segment_id == segment_id and other.session != session.number:
                    disjoint = other.rows is None or (
                        other.rows[1] <= rows[0] or rows[1] <= other.rows[0]
                    )
                    assert disjoint, f"rows {rows} are another's"
        else:
            rows = None
        self.leases[lease] = Lease(session.number, segment_id, rows)

    def _detached(self, session: Session, request: Detach, message: Detached) -> None:
        lease = self.leases.get(request.lease)
        if lease is not None:
            assert lease.session == session.number, "gave another's lease back"
            del self.leases[request.lease]

    def _sealed(self, session: Session, request: Seal, message: Sealed) -> None:
        one = self.arrays[message.array.segment.segment_id]
        record = self.machine.manifests[one.segment_id]
        assert record.sealed and message.array.sealed
        assert message.array.checksum == record.checksum == one.sealed
        one.acknowledged = True
        for lease in self.leases.values():
            if lease.segment_id == one.segment_id:
                lease.rows = None

    def _published(self, session: Session, request: Publish, message: Published) -> None:
        one = self.arrays[message.array.segment.segment_id]
        record = self.machine.manifests[one.segment_id]
        assert self.names[request.name] == one.segment_id
        if not any(one.segment_id in act.segment_ids for act in self.life.acts):
            assert record.spec.name == request.name == one.name
            assert record.generation == message.array.generation

    def _published_all(self, session: Session, request: PublishAll, message: PublishedAll) -> None:
        # What was done before a step began may have gone by its end; not what was done in it.
        done = [(one.name, one.segment_id) for one in self._published_now]
        for name, number in done or self.batches[request.batch].wanted:
            assert self.names.get(name) == number, f"{name!r} was not published with the others"
            record = self.machine.manifests[number]
            assert record.spec.name == name and not record.temporary, "and not written down"

    def _check_right_to_refuse(self, request: PublishAll, code: int) -> None:
        """A batch is refused for what is so, or for what may be so in a moment."""
        batch = self.batches[request.batch]
        left = self._left_of(batch)
        names = {name for name, _ in left}
        found = [self.arrays.get(number) for _, number in batch.wanted]
        match code:
            case ErrorCode.ARRAY_EXISTS:
                right = not batch.replace and not names.isdisjoint(self.names)
            case ErrorCode.SEGMENT_CHANGED:
                right = any(one is None or one.gone or one.lost or one.superseded for one in found)
            case ErrorCode.INVALID_SPEC:
                right = any(one and (one.made_of or one.name in names) for one in found)
            case _:
                right = True
        assert right, f"{batch} was refused: {ErrorCode(code).name}"

    def _destroyed(self, session: Session, request: Destroy, message: Destroyed) -> None:
        assert request.name not in self.names, "destroyed, and still there"

    # Segments -----------------------------------------------------------------

    def _making(self, effect: MakeSegment) -> None:
        assert self.last_segment < effect.segment_id, "a segment's number was given twice"
        assert effect.segment_id > self.life.epoch << EPOCH_SHIFT
        self.last_segment = effect.segment_id
        self._take_name(effect.spec.name)
        assert effect.spec.name not in self.names, "made under a name that is taken"
        self._makes[effect.token] = effect
        session = self.sessions[effect.session]
        assert self._same(effect.creator, session)
        self.arrays[effect.segment_id] = Array(
            effect.segment_id,
            effect.spec.name,
            effect.spec.nbytes,
            effect.creator.uid,
            effect.spec.made_of,
            effect.creator.user,
            self._token_name(effect.session),
        )
        self.bytes[effect.creator.uid] += effect.spec.nbytes

    def _take_name(self, name: str) -> None:
        """A name is taken anew: who was making an array under it has given it up."""
        for other in self._makes.values():
            if other.spec.name == name:
                self.arrays[other.segment_id].abandoned = True

    def _end_making(self, token: int, *, made: bool) -> None:
        effect = self._makes.pop(token)
        one = self.arrays[effect.segment_id]
        if made:
            if self.life.core._state.registry.of_segment(effect.segment_id) is not None:
                assert not one.abandoned, "two arrays were made under one name"
                self.names[one.name] = effect.segment_id
        else:
            del self.arrays[effect.segment_id]
            self.bytes[one.uid] -= one.nbytes

    def _begin_publishing(self, token: int, effects: tuple[PublishGeneration, ...]) -> None:
        for effect in effects:
            self._publishing(effect)
        assert token not in self._publications
        self._publications[token] = effects

    def _publishing(self, effect: PublishGeneration) -> None:
        self._check_alone(effect.segment_id)
        one = self.arrays[effect.segment_id]
        assert one.sealed, "what is not sealed was published"
        self._take_name(effect.name)
        for other in self.machine.manifests.values():
            number = other.segment.segment_id
            if (
                other.spec.name == effect.name
                and number != effect.segment_id
                and not self.arrays[number].abandoned
            ):
                assert other.generation < effect.generation, "generations do not rise"

    def _publishing_together(self, event: Event, effect: PublishTogether) -> None:
        assert isinstance(event, RequestReceived) and isinstance(event.request, PublishAll)
        batch = self.batches[event.request.batch]
        left = self._left_of(batch)
        begun = [(one.name, one.segment_id) for one in effect.publications]
        assert begun == left, f"{begun} were begun, where {left} were asked for"
        taken = [name for name, _ in left if name in self.names]
        assert batch.replace or not taken, f"{taken} are taken, and were not to be replaced"
        who = self.by_peer[event.peer].identity
        touched = [*(number for _, number in left), *(self.names[name] for name in taken)]
        for one in map(self.arrays.__getitem__, touched):
            assert who.user == one.user or who.uid in (0, self.life.core.uid), f"{one} is another's"
        self._begin_publishing(effect.token, effect.publications)

    def _left_of(self, batch: Batch) -> list[tuple[str, int]]:
        """What a coordinator that ended in the middle has not done of it."""
        return [(name, number) for name, number in batch.wanted if self.names.get(name) != number]

    def _end_publishing(self, token: int) -> None:
        self._published_now = self._publications.pop(token)
        for effect in self._published_now:
            for name in [name for name, one in self.names.items() if one == effect.segment_id]:
                del self.names[name]
            self.names[effect.name] = effect.segment_id

    def _check_alone(self, segment_id: int) -> None:
        assert not any(segment_id in act.segment_ids for act in self.life.acts), "two acts on one"
        assert segment_id not in self._unlinked, "an act on what was removed"

    def _unlinking(self, event: Event, effect: UnlinkSegment, effects: Sequence[Effect]) -> None:
        segment_id = effect.segment.segment_id
        one = self.arrays[segment_id]
        assert segment_id not in self._unlinked, f"{one} was removed twice"
        self._check_alone(segment_id)
        self._unlinked.add(segment_id)
        named = self.names.get(one.name) == segment_id
        reason = self._reason_to_unlink(event, one, named, effects)
        assert reason, f"{one} was removed at {event}"
        self.world.removed(reason)
        if named:
            del self.names[one.name]
        for number in [n for n, lease in self.leases.items() if lease.segment_id == segment_id]:
            del self.leases[number]
        if not one.lost:
            self.bytes[one.uid] -= one.nbytes

    def _reason_to_unlink(
        self, event: Event, one: Array, named: bool, effects: Sequence[Effect]
    ) -> str:
        """Why a segment may be removed now; empty if there is no reason."""
        if (
            isinstance(event, RequestReceived)
            and isinstance(event.request, Destroy)
            and event.request.name == one.name
            and named
            and any(isinstance(e, Send) and isinstance(e.message, Destroyed) for e in effects)
        ):
            return "destroyed"
        holder = self.names.get(one.name, 0)
        if one.superseded and holder in self._going and holder not in self._unlinked:
            return "older than what is removed"  # in this order, or it could have the name again
        if isinstance(event, SegmentMade) and not named:
            return "not wanted any more"
        if one.abandoned and not one.acknowledged:
            return "given up"
        if one.made_of and one.made_of not in self.life.core._state.registry._by_segment:
            return "what it was made of is gone"
        if not one.sealed and not self._lives(one.owner):
            return "its owner ended before it was sealed"
        leased = any(lease.segment_id == one.segment_id for lease in self.leases.values())
        if one.lost or not (leased or self.world.is_held(one.segment_id)):
            if one.temporary and not self._lives(one.owner):
                return "its owner ended, and it was temporary"
            if one.superseded and not named:
                return "superseded"
        return ""

    def _lives(self, token: str) -> bool:
        return any(self._token_name(number) == token for number in self.sessions)

    def _token_name(self, session: int) -> str:
        token = self.life.tokens.get(session)
        return token.name if token else ""

    # Jobs ---------------------------------------------------------------------

    def _part_sent(self, peer: bytes, message: RunPart) -> None:
        session = self.by_peer[peer]
        assert session.bound
        assert session.working is None, "a second part for a busy worker"
        job = self.jobs.get(message.job)
        if job is None:
            assert message.job > self.life.epoch << EPOCH_SHIFT, "an earlier life's number"
            self.last_job = max(self.last_job, message.job)
            job = self.jobs[message.job] = Job(0)
        assert message.epoch > job.epochs.get(message.part, 0), "a part's epoch does not rise"
        assert message.part not in job.done, "a part was sent that is done"
        job.epochs[message.part] = message.epoch
        session.working = message.job, message.part, message.epoch
        for operand in message.operands:
            one = self.arrays[operand.segment.segment_id]
            assert not (one.gone or one.lost), f"a part uses {one}"
        if not self.world.evil:
            self._check_alone_at(peer, message)

    def _check_alone_at(self, peer: bytes, message: RunPart) -> None:
        """Nobody else may still write what a part uses, but other parts of its own live job."""
        used = {operand.segment.segment_id for operand in message.operands}
        for part in self.world.parts_under_way(peer):
            written = {one.segment.segment_id for one in part.operands if one.writable}
            if part.job == message.job:
                again = part.part == message.part
                assert not (again and written), "a part is run by two that write"
            elif part.job not in self.life.core._state.jobs._jobs:
                assert not written & used, f"part {part.part} of job {part.job} may still write"

    def _registered(self, session: Session, request: Request, message: WorkerRegistered) -> None:
        assert not session.is_remote, "nobody's worker"
        if session.renewed:
            # It registers between parts: what it was sent before it does not do.
            session.renewed, session.working = False, None

    def _part_accepted(
        self, session: Session, request: PartDone | PartFailed, message: PartAccepted
    ) -> None:
        named = request.job, request.part, request.epoch
        if session.working == named:
            session.working = None
        else:
            assert message.stale, f"{named} was taken from who did not have it"
        if not message.stale and isinstance(request, PartDone):
            job = self.jobs[request.job]
            assert request.part not in job.done, "a part was acknowledged twice"
            job.done.add(request.part)

    def _job_done(self, session: Session, request: Request, message: JobDone) -> None:
        job = self.jobs.get(message.job)
        done = job.done if job else set()
        # The last part's own acknowledgement follows in the same effects.
        assert len(message.timings) - len(done) in (0, 1), "done with parts that are not"

    # The end ------------------------------------------------------------------

    def check_answered(self) -> None:
        """Nothing is under way: everybody who could be answered was."""
        for (peer, _), asked in self.owed.items():
            if peer in self.excused or peer not in self.world.connections:
                continue
            # A standing job that was submitted twice has nobody who would end the second.
            twice = self.world.evil and all(_is_standing(one.request) for one in asked)
            assert twice, f"{asked} wait for ever"


def _is_standing(request: Request) -> bool:
    return isinstance(request, SubmitJob) and request.standing
