"""One life of a coordinator's process: it recovers, performs effects, and dies at any of them.

What the daemon does with sockets, threads, pidfds and files is done here on the
simulated machine, in the daemon's order: a segment is linked, then its manifest is
written, then the coordinator hears of it; a manifest is removed before its segment.
The process may be killed between any two of these steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import CreateArray, Failed, RunPart
from hugepool_common.spec import PageReport, Segment
from hugepool_server.coordinator import Coordinator
from hugepool_server.events import (
    CancelSegment,
    CheckToken,
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
    SegmentProgress,
    SegmentRefused,
    SegmentSealed,
    Send,
    Stop,
    TokenChecked,
    TokenMade,
    TokenRefused,
    UnlinkSegment,
    UnwatchProcess,
    WatchProcess,
)
from hugepool_server.records import ArrayRecord, SessionRecord
from simulation.machine import PAGE, File, Process, Token

if TYPE_CHECKING:
    from simulation.world import World

COORDINATOR_UID = 990
BOOT_ID = "f00dcafe"
TOKENS = "/run/hugepool/tokens/"
FULL_QUEUE = 6
"""Messages that the connection of a client that does not read takes before a send to it fails."""

Work = MakeSegment | SealSegment | PublishGeneration | PublishTogether


class Killed(Exception):
    """The coordinator's process is dead; nothing of it goes on."""


class Act:
    """A slow act on a thread, and how far it is."""

    __slots__ = ("cancelled", "effect", "file", "owner", "stage")

    def __init__(self, effect: Work, owner: str = "") -> None:
        self.effect = effect
        self.owner = owner
        self.stage = 0
        self.cancelled = False
        self.file: File | None = None

    def __repr__(self) -> str:
        return f"<Act {type(self.effect).__name__} {self.effect.token} at {self.stage}>"

    @property
    def segment_ids(self) -> tuple[int, ...]:
        """Of what it works on."""
        effect = self.effect
        if isinstance(effect, SealSegment):
            return (effect.segment.segment_id,)
        if isinstance(effect, PublishTogether):
            return tuple(one.segment_id for one in effect.publications)
        return (effect.segment_id,)


def refusal(code: ErrorCode, message: str) -> Failed:
    """An error of a thread."""
    return Failed(code, message, needed="luck", had="none")


class Life:
    """The daemon around one coordinator.

    Attributes
    ----------
    acts
        On threads now.
    removals
        Files whose manifests are gone and which a thread will unlink.
    watches, tokens
        The process, or the pid that nobody had, and the token of each session.
    bound
        Sessions whose lock was seen to be held.
    late
        Answers about tokens that are still to be given.
    stopped
        Whether the coordinator has come to its own end.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine = world.machine
        self.ledger = world.ledger
        self.chance = world.chance
        self.acts: list[Act] = []
        self.removals: list[int] = []
        self.watches: dict[int, Process] = {}
        self.tokens: dict[int, Token] = {}
        self.bound: set[int] = set()
        self.late: list[Event] = []
        self.stopped = False
        self._pending: deque[Event] = deque()
        self._perform: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            MakeSegment: self._make,
            CancelSegment: self._cancel,
            SealSegment: self._seal,
            PublishGeneration: self._publish,
            PublishTogether: self._publish,
            UnlinkSegment: self._unlink,
            WatchProcess: self._watch,
            MakeToken: self._make_token,
            CheckToken: self._check_token,
            UnwatchProcess: self._unwatch,
            Stop: self._stop,
        }
        self.machine.epoch += 1
        self.epoch = self.machine.epoch
        self.core: Coordinator = world.make_coordinator(self.epoch)

    def recover(self) -> None:
        """Take over what an earlier life left.

        Raises
        ------
        Killed
            In the middle of it.
        """
        world, machine = self.world, self.machine
        world.burn()
        for segment_id in list(machine.files):
            if segment_id not in machine.manifests:
                machine.unlink_file(segment_id)
                world.burn()
            else:  # a seal that was killed took the permission to write from it
                machine.files[segment_id].readonly = machine.manifests[segment_id].sealed
        lost = frozenset(machine.manifests.keys() - machine.files.keys())
        sessions = []
        for name, token in list(machine.tokens.items()):
            record = token.record
            if record.lease_ns:  # nobody is there to be looked at
                sessions.append(record)
                self.tokens[record.session] = token
                continue
            process = machine.processes.get(record.identity.pid)
            if (
                process is not None
                and token.holder is process
                and process.start == record.start_ticks
            ):
                sessions.append(record)
                self.watches[record.session] = process
                self.tokens[record.session] = token
                self.bound.add(record.session)
            else:
                del machine.tokens[name]
                world.burn()
        arrays = tuple(machine.manifests.values())
        self.ledger.begin(self, arrays, sessions)
        if arrays or sessions or self.chance.one_in(2):
            self.handle(Recovered(arrays, lost, tuple(sessions)))

    def handle(self, event: Event) -> None:
        """Feed an event, and what comes of performing its effects.

        Raises
        ------
        Killed
            Before, between or after effects.
        """
        world, ledger, pending = self.world, self.ledger, self._pending
        pending.append(event)
        while pending:
            event = pending.popleft()
            world.steps += 1
            world.now_ns += 1_000
            if world.story is not None:
                world.tell(f"  > {event}")
            world.met[self._met(event)] += 1
            ledger.before(event)
            effects = self.core.handle(event, world.now_ns)
            if world.story is not None:
                for effect in effects:
                    world.tell(f"    < {effect}")
            self.core.validate()
            ledger.judge(event, effects)
            for effect in effects:
                if world.fuse >= 0:
                    world.burn()
                self._perform[type(effect)](effect)
            if self.stopped:
                return

    def _met(self, event: Event) -> tuple[str, str]:
        """What came, and what state it found: the pairs that a run has reached."""
        state = self.core._state
        kind: type = type(event)
        if isinstance(event, RequestReceived):
            kind = type(event.request)
            session = state.leases.of_peer(event.peer)
            found = session.state.value if session else "no session"
            name = getattr(event.request, "name", None)
            if name is None and kind is CreateArray:
                name = event.request.spec.name  # type: ignore[union-attr]
            if name is not None:
                named = state.registry.named(name)
                found += ", name " + (named.state.value if named else "free")
        elif (token := getattr(event, "token", None)) is not None:
            act = next((act for act in state.registry.acts if act.token == token), None)
            found = "nothing" if act is None else "abandoned" if act.abandoned else "awaited"
        elif (number := getattr(event, "session", None)) is not None:
            session = state.leases.of_number(number)
            found = session.state.value if session else "no session"
        elif isinstance(event, PeerUnreachable):
            session = state.leases.of_peer(event.peer)
            found = session.state.value if session else "no session"
        else:
            found = "any"
        return kind.__name__, found

    # Effects ------------------------------------------------------------------

    def _send(self, effect: Send) -> None:
        world, chance = self.world, self.chance
        connection = world.connections.get(effect.peer)
        if connection is None or not connection.open:
            if not chance.one_in(3):
                self._pending.append(PeerUnreachable(effect.peer, effect.message))
            return
        deaf = connection.process.stopped or connection.cut
        full = deaf and len(connection.down) >= FULL_QUEUE
        rarely = 40 if type(effect.message) is RunPart else 500
        if full or (world.faulty and chance.one_in(rarely)):
            world.fault("send failed")
            connection.broken = True
            self._pending.append(PeerUnreachable(effect.peer, effect.message))
            return
        entry = effect.correlation, effect.message
        if world.evil and world.faulty:
            match chance.pick(24):
                case 23:
                    world.fault("message dropped")
                    connection.broken = True
                    return
                case 22:
                    world.fault("message duplicated")
                    connection.down.append(entry)
                case 21:
                    world.fault("messages reordered")
                    connection.down.insert(chance.pick(len(connection.down) + 1), entry)
                    return
        connection.down.append(entry)

    def _make(self, effect: MakeSegment) -> None:
        token = self.tokens.get(effect.session)
        self.acts.append(Act(effect, token.name if token else ""))

    def _cancel(self, effect: CancelSegment) -> None:
        """From here on the segment has no manifest, however far it is."""
        for act in self.acts:
            if act.effect.token == effect.token:
                act.cancelled = True
                for segment_id in act.segment_ids:
                    self.machine.manifests.pop(segment_id, None)

    def _seal(self, effect: SealSegment) -> None:
        self.acts.append(Act(effect))

    def _publish(self, effect: PublishGeneration | PublishTogether) -> None:
        act = Act(effect)
        if self.chance.one_in(3):
            self.acts.append(act)  # as if it took its time
            return
        outcome = self._publishing(act, effect)
        if outcome is None:
            self.world.burn()
            outcome = self._publishing(act, effect)
            assert outcome is not None
        self._pending.append(outcome)

    def _unlink(self, effect: UnlinkSegment) -> None:
        segment_id = effect.segment.segment_id
        self.machine.manifests.pop(segment_id, None)
        self.ledger.unlinked(segment_id)
        if self.chance.one_in(2):
            self.removals.append(segment_id)
            return
        self.world.burn()
        self.machine.unlink_file(segment_id)

    def _watch(self, effect: WatchProcess) -> None:
        process = self.machine.processes.get(effect.pid)
        if effect.session in self.watches:
            return  # since recovery
        if process is None:
            self._pending.append(ProcessExited(effect.session))
        else:
            self.watches[effect.session] = process

    def _make_token(self, effect: MakeToken) -> None:
        world, machine = self.world, self.machine
        event: Event
        if world.faulty and self.chance.one_in(40):
            world.fault("token refused")
            event = TokenRefused(
                effect.session, refusal(ErrorCode.NOT_ENOUGH_MEMORY, "no descriptors")
            )
        else:
            process = machine.processes.get(effect.identity.pid)
            record = SessionRecord(
                session=effect.session,
                token=f"{world.next_number():032x}",
                identity=effect.identity,
                start_ticks=process.start if process else 0,
                client=effect.client,
                boot_id=BOOT_ID,
                lease_ns=effect.lease_ns,
            )
            token = machine.tokens[record.token] = Token(record.token, record)
            self.tokens[effect.session] = token
            event = TokenMade(effect.session, TOKENS + record.token)
        self._answer(event)

    def _check_token(self, effect: CheckToken) -> None:
        token = self.tokens.get(effect.session)
        process = self.watches.get(effect.session)
        held = (
            token is not None
            and token.holder is not None
            and token.holder.pid == token.record.identity.pid
            and process is not None
            and process.alive
        )
        if held:
            self.bound.add(effect.session)
        # At once, as the daemon does: what was seen of a lock is true when it is said.
        self._pending.append(TokenChecked(effect.session, held))

    def _answer(self, event: Event) -> None:
        if self.chance.one_in(3):
            self.late.append(event)
        else:
            self._pending.append(event)

    def _unwatch(self, effect: UnwatchProcess) -> None:
        self.watches.pop(effect.session, None)
        self.bound.discard(effect.session)
        token = self.tokens.pop(effect.session, None)
        if token is not None:
            del self.machine.tokens[token.name]

    def _stop(self, effect: Stop) -> None:
        """The end of the loop: what is on threads is waited for, then all is removed, or kept."""
        self.stopped = True
        machine = self.machine
        for act in self.acts:
            act.cancelled = True
            if isinstance(act.effect, MakeSegment) and act.stage == 1:
                machine.unlink_file(*act.segment_ids)
        self.acts.clear()
        for segment_id in self.removals:
            machine.unlink_file(segment_id)
        self.removals.clear()
        if not self.world.settings.keep:
            for segment_id in list(machine.manifests):
                del machine.manifests[segment_id]
                self.ledger.unlinked(segment_id)
            for segment_id in list(machine.files):
                machine.unlink_file(segment_id)
            machine.tokens.clear()
            for client in self.world.remotes:
                client.may_be_forgotten = True

    # Pidfds and locks ---------------------------------------------------------

    def see_exits(self) -> bool:
        """Report what the pidfds say, of one session; False if they are silent."""
        for session, process in self.watches.items():
            if not process.alive:
                self.handle(ProcessExited(session))
                return True
        return False

    def look_at_locks(self) -> bool:
        """Report one session that has let go of its lock; False if all hold theirs."""
        for session in self.watches:
            if session in self.bound and not self.holds_lock(session):
                self.handle(ProcessExited(session))
                return True
        return False

    def holds_lock(self, session: int) -> bool:
        """Whether a session's process holds its lock."""
        token = self.tokens[session]
        return token.holder is not None and token.holder.pid == token.record.identity.pid

    # Threads ------------------------------------------------------------------

    def advance(self, index: int) -> None:
        """Let a thread go one step further."""
        act = self.acts[index]
        effect = act.effect
        outcome: Event | None
        if isinstance(effect, MakeSegment):
            outcome = self._making(act, effect)
        elif isinstance(effect, SealSegment):
            outcome = self._sealing(act, effect)
        else:
            outcome = self._publishing(act, effect)
        if outcome is not None:
            if type(outcome) is not SegmentProgress:
                self.acts.remove(act)
            self.handle(outcome)
        elif self.world.fuse >= 0:
            self.world.burn()

    def remove(self) -> None:
        """Let the remover remove one file."""
        self.machine.unlink_file(self.removals.pop(0))
        self.world.burn()

    def _making(self, act: Act, effect: MakeSegment) -> Event | None:
        world, machine, chance = self.world, self.machine, self.chance
        if act.stage == 0:
            if act.cancelled and not chance.one_in(4):
                return SegmentRefused(effect.token, refusal(ErrorCode.CANCELLED, "cancelled"))
            if world.faulty and chance.one_in(16):
                world.fault("making failed")
                return SegmentRefused(effect.token, refusal(ErrorCode.NOT_ENOUGH_PAGES, "no pages"))
            if chance.one_in(8):
                return SegmentProgress(effect.token, 1, effect.spec.nbytes)
            pages = max(-(-effect.spec.nbytes // PAGE), 1)
            act.file = machine.make_file(effect.segment_id, pages)
            if act.file is None:
                return SegmentRefused(effect.token, refusal(ErrorCode.NOT_ENOUGH_MEMORY, "full"))
            act.stage = 1
            return None
        file = act.file
        assert file is not None
        segment, report = _described(effect.segment_id, file)
        if act.stage == 1:
            if act.cancelled:
                machine.unlink_file(effect.segment_id)
                return SegmentRefused(effect.token, refusal(ErrorCode.CANCELLED, "cancelled"))
            if world.faulty and chance.one_in(40):
                world.fault("manifest refused")
                machine.unlink_file(effect.segment_id)
                return SegmentRefused(
                    effect.token, refusal(ErrorCode.NOT_ENOUGH_MEMORY, "no room for the manifest")
                )
            record = ArrayRecord(
                spec=effect.spec,
                segment=segment,
                pages=report,
                creator=effect.creator,
                owner=act.owner,
                created_ns=world.now_ns,
                generation=1,
                sealed=False,
                checksum="",
                boot_id=BOOT_ID,
                epoch=self.epoch,
                temporary=effect.temporary,
            )
            machine.manifests[effect.segment_id] = record
            self.ledger.committed(record)
            act.stage = 2
            return None
        return SegmentMade(effect.token, segment, report)

    def _sealing(self, act: Act, effect: SealSegment) -> Event | None:
        world, machine, chance = self.world, self.machine, self.chance
        segment_id = effect.segment.segment_id
        if act.stage == 0:
            file = machine.files.get(segment_id)
            if file is None:
                return SealRefused(effect.token, refusal(ErrorCode.SEGMENT_CHANGED, "gone"))
            if any(process.mapped[file] for process in file.mappers):
                return SealRefused(effect.token, refusal(ErrorCode.ARRAY_BUSY, "a writer"))
            act.file = file
            file.readonly = True
            act.stage = 1
            return None
        assert act.file is not None
        if act.stage == 1:
            if world.faulty and chance.one_in(16):
                world.fault("seal failed")
                act.file.readonly = False
                return SealRefused(effect.token, refusal(ErrorCode.INVALID_MATRIX, "no matrix"))
            record = machine.manifests[segment_id]
            record = msgspec.structs.replace(record, sealed=True, checksum=act.file.checksum())
            machine.manifests[segment_id] = record
            self.ledger.committed(record)
            act.stage = 2
            return None
        record = machine.manifests[segment_id]
        return SegmentSealed(effect.token, effect.segment, record.checksum)

    def _publishing(self, act: Act, effect: PublishGeneration | PublishTogether) -> Event | None:
        world = self.world
        if act.stage == 0 and isinstance(effect, PublishTogether):
            act.stage = 1
            return self._publishing_together(effect)
        if act.stage == 0:
            assert isinstance(effect, PublishGeneration)
            if world.faulty and self.chance.one_in(16):
                world.fault("publish failed")
                return PublishRefused(
                    effect.token, refusal(ErrorCode.NOT_ENOUGH_MEMORY, "no room for the manifest")
                )
            self._rename(effect)
            act.stage = 1
            return None
        return GenerationPublished(effect.token)

    def _rename(self, effect: PublishGeneration) -> None:
        manifests = self.machine.manifests
        record = manifests[effect.segment_id]
        spec = msgspec.structs.replace(record.spec, name=effect.name)
        record = msgspec.structs.replace(
            record, spec=spec, generation=effect.generation, temporary=False
        )
        manifests[effect.segment_id] = record
        self.ledger.committed(record)

    def _publishing_together(self, effect: PublishTogether) -> Event | None:
        """One rename after another, each of them perhaps the last act of the process.

        A refusal may come after some of them, and then takes them back.
        """
        world, manifests = self.world, self.machine.manifests
        publications = effect.publications
        refused = world.faulty and self.chance.one_in(8)
        if refused:
            world.fault("step failed")
            publications = publications[: self.chance.pick(len(publications))]
        elif world.faulty and world.settings.kills and self.chance.one_in(8):
            world.fault("kill in a step")
            world.fuse = self.chance.pick(len(publications))
        before = [manifests[one.segment_id] for one in publications]
        for one in publications:
            self._rename(one)
            world.burn()
        if not refused:
            return None
        for record in before:
            manifests[record.segment.segment_id] = record
            self.ledger.taken_back(record)
            world.burn()
        return PublishRefused(
            effect.token, refusal(ErrorCode.NOT_ENOUGH_MEMORY, "no room for the manifests")
        )


def _described(segment_id: int, file: File) -> tuple[Segment, PageReport]:
    length = file.pages * PAGE
    path = f"/dev/shm/hugepool-990-f00d/{segment_id:016x}.segment"
    segment = Segment(segment_id, path, 1, file.inode, COORDINATOR_UID, length, PAGE, "shm-4k")
    return segment, PageReport("shm-4k", PAGE, length, 0, length, "smaps")
