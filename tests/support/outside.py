"""Everything outside the coordinator, and its own plain account of what it was promised.

Clients, workers, threads and the disk are the bench's. This keeps what must be true for
them: who was answered, what was acknowledged, which lease a live client may still count
on, which rows are whose, and which name must never come back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    CreateArray,
    DropSegment,
    Failed,
    Held,
    Message,
    Publish,
    PublishAll,
    Request,
    RunPart,
    Seal,
    Sealed,
    SubmitJob,
)
from hugepool_server.events import PublishGeneration, PublishTogether, SealSegment
from hugepool_server.records import ArrayRecord
from support.coordination import Bench, Client


def _segments(act: SealSegment | PublishGeneration | PublishTogether) -> set[int]:
    """What an act is about."""
    if isinstance(act, PublishTogether):
        return {one.segment_id for one in act.publications}
    return {act.segment.segment_id if isinstance(act, SealSegment) else act.segment_id}


@dataclass(slots=True)
class Told:
    """A lease that a client was granted and has not given back."""

    client: Client
    segment_id: int
    readonly: bool
    rows: tuple[int, int] | None = None


@dataclass(slots=True, eq=False)
class Outside:
    """The account.

    Parameters
    ----------
    bench
        The coordinator and its daemon.
    clients
        Live processes with a session, those in `cut` among them.
    cut
        Those that have not taken their session up since the coordinator was started.
    forgotten
        Those of them whose token is gone: the leases that each will claim.
    deaf
        Those that may have been granted a lease and not been told.
    ownerless
        Segments that go with their owner, which was gone when a coordinator began: they
        go at once.
    owners
        Who was told that a segment is its own.
    owed
        What was asked and not answered; a request of a connection that ended is owed nothing.
    """

    bench: Bench
    clients: list[Client] = field(default_factory=list)
    cut: set[Client] = field(default_factory=set)
    forgotten: dict[Client, dict[int, Told]] = field(default_factory=dict)
    deaf: set[Client] = field(default_factory=set)
    asked: dict[tuple[bytes, int], Request] = field(default_factory=dict)
    owed: dict[tuple[bytes, int], Client] = field(default_factory=dict)
    leases: dict[int, Told] = field(default_factory=dict)
    sealed: set[int] = field(default_factory=set)
    superseded: set[int] = field(default_factory=set)
    destroyed: set[int] = field(default_factory=set)
    temporary: set[int] = field(default_factory=set)
    ownerless: set[int] = field(default_factory=set)
    owners: dict[int, Client] = field(default_factory=dict)
    workers: set[Client] = field(default_factory=set)
    at_work: dict[Client, RunPart] = field(default_factory=dict)
    epochs: dict[tuple[int, int], int] = field(default_factory=dict)
    acknowledged: Counter[tuple[int, int]] = field(default_factory=Counter)

    # Asking and reading -------------------------------------------------------

    def ask(self, client: Client, request: Request) -> Message | None:
        """Send a request; returns the reply if it came at once."""
        correlation = client.ask(request)
        key = client.peer, correlation
        self.asked[key] = request
        self.owed[key] = client
        self.read()
        replies = self.bench.replies[key]
        return replies[0] if replies else None

    def read(self) -> None:
        """Take what the coordinator sent, and hold it against what was asked."""
        for key, client in list(self.owed.items()):
            if replies := self.bench.replies[key]:
                del self.owed[key]
                self._take_answer(client, self.asked[key], replies[0])
        for client in self.clients:
            self._take_notices(client)

    def _take_answer(self, client: Client, request: Request, reply: Message) -> None:
        match reply:
            case ArrayCreated() | Attached():
                segment_id = reply.array.segment.segment_id
                assert segment_id not in self.bench.unlinked
                assert reply.lease not in self.leases
                told = Told(client, segment_id, readonly=False)
                if isinstance(request, Attach):
                    told = Told(client, segment_id, request.readonly, request.rows)
                else:
                    self.owners[segment_id] = client
                self.leases[reply.lease] = told
            case Sealed():
                self.note_sealed(reply.array.segment.segment_id)
            case Failed():
                assert reply.code in list(ErrorCode)
                assert reply.code != ErrorCode.INTERNAL

    def _take_notices(self, client: Client) -> None:
        for dropped in client.notices(DropSegment):
            assert client in self.workers, "only workers keep segments unasked"
            assert dropped.segment_id in self.bench.made
        for part in client.notices(RunPart):
            assert client in self.workers
            assert client not in self.at_work, "a second part for a busy worker"
            assert part.epoch > self.epochs.get((part.job, part.part), 0)
            assert not self.acknowledged[part.job, part.part], "done already"
            for operand in part.operands:
                segment_id = operand.segment.segment_id
                assert segment_id not in self.bench.unlinked
                assert not (operand.writable and segment_id in self.sealed)
                assert segment_id not in self._written_late(part), "a torn operand"
            self.epochs[part.job, part.part] = part.epoch
            self.at_work[client] = part

    def _written_late(self, sent: RunPart) -> set[int]:
        """The segments that others may still write where this part is to be computed."""
        live = {
            (job.number, part.number): part.epoch
            for job in self.bench.coordinator._state.jobs.live
            for part in job.parts
        }
        return {
            operand.segment.segment_id
            for part in self.at_work.values()
            for operand in part.operands
            if operand.writable
            and live.get((part.job, part.part)) != part.epoch
            and (part.job != sent.job or part.part == sent.part)
        }

    # Who is there -------------------------------------------------------------

    @property
    def awake(self) -> list[Client]:
        """The clients that can ask."""
        return [client for client in self.clients if client not in self.cut]

    def forget(self, client: Client, *, answered: bool) -> None:
        """The client's session ended."""
        self.clients.remove(client)
        self.cut.discard(client)
        self.forgotten.pop(client, None)
        self.workers.discard(client)
        self.at_work.pop(client, None)
        self.leases = {n: told for n, told in self.leases.items() if told.client is not client}
        mine = self.requests_of(client)
        assert not (answered and mine), "a goodbye leaves nothing unanswered"
        self.void_requests(client)

    def requests_of(self, client: Client) -> list[Request]:
        """What it waits for."""
        return [self.asked[key] for key, asker in self.owed.items() if asker is client]

    def void_requests(self, client: Client) -> None:
        """Its connection ended: nothing is owed to that any more."""
        self.owed = {key: asker for key, asker in self.owed.items() if asker is not client}

    # What is held -------------------------------------------------------------

    def held_by(self, client: Client) -> dict[int, Told]:
        """The leases of a client by number."""
        return {number: told for number, told in self.leases.items() if told.client is client}

    def claims(self, client: Client) -> list[Held]:
        """What a client tells when it resumes."""
        told = self.forgotten.get(client) or self.held_by(client)
        return [
            Held(number, one.segment_id, one.readonly, one.rows)
            for number, one in sorted(told.items())
        ]

    def lose(self, client: Client, gone: tuple[int, ...]) -> None:
        """What a client told is not there any more."""
        told = self.forgotten.pop(client, None)
        if told is not None:
            self.leases |= told
        for number, one in self.held_by(client).items():
            if one.segment_id in gone:
                assert self.is_gone(one.segment_id), "a lease of the living was taken"
                del self.leases[number]
            else:
                assert not self.is_gone(one.segment_id), "a lease on nothing"

    def is_gone(self, segment_id: int) -> bool:
        """Whether there is nothing to map."""
        return segment_id in self.bench.unlinked or segment_id in self.bench.lost

    def writers(self, segment_id: int) -> set[Client]:
        """The clients that hold it writable."""
        return {
            told.client
            for told in self.leases.values()
            if told.segment_id == segment_id and not told.readonly
        }

    def note_sealed(self, segment_id: int) -> None:
        """It is immutable: every lease on it is a reader's."""
        self.sealed.add(segment_id)
        for told in [*self.leases.values(), *self._claimed()]:
            if told.segment_id == segment_id:
                told.readonly, told.rows = True, None

    def _claimed(self) -> list[Told]:
        return [told for claims in self.forgotten.values() for told in claims.values()]

    # What must hold -----------------------------------------------------------

    def check(self) -> None:
        """Assert all that the outside may count on, between events."""
        assert all(len(replies) <= 1 for replies in self.bench.replies.values()), "answered twice"
        for key in self.owed:
            slow = CreateArray | Seal | SubmitJob | Publish | PublishAll
            assert isinstance(self.asked[key], slow), self.asked[key]
        pids = {one.identity.pid for one in self.clients if one not in self.forgotten}
        assert set(self.bench.watched.values()) == pids, "a process is not watched"
        self._check_kept()
        self._check_names()
        self._check_leases()
        self._check_quota()

    def _check_kept(self) -> None:
        kept = set(self.kept())
        gone = set(self.bench.unlinked) | self.bench.lost
        assert self.bench.made == kept | gone, "a segment without a trace"
        assert not kept & gone
        assert self.bench.disk.keys() == self.bench.made - set(self.bench.unlinked)
        held = {told.segment_id for told in self.leases.values()}
        promised = self.sealed - self.superseded - self.temporary | self.sealed & held
        excused = self.destroyed | self.ownerless | self.bench.lost
        assert promised <= kept | excused, "a sealed array went"
        written = {told.segment_id for told in self.leases.values() if self._may_write(told)}
        assert written <= kept | excused, "a writer's array went"
        self._check_owned()

    def _may_write(self, told: Told) -> bool:
        """Whether it keeps an array: one not told again does as long as the owner lives."""
        heard = told.client not in self.cut or self.owners.get(told.segment_id) in self.clients
        return heard and not told.readonly

    def _check_owned(self) -> None:
        """What goes with its owner has one, or somebody who is at it."""
        state = self.bench.coordinator._state
        living = {token.token for token in self.bench.tokens.values()}
        acts: list[SealSegment | PublishGeneration | PublishTogether] = [
            *self.bench.sealing.values(),
            *self.bench.publishing.values(),
            *self.bench.publishing_together.values(),
        ]
        for number, record in self.bench.disk.items():
            if record.owner in living or (record.sealed and not record.temporary):
                continue
            at_it = any(
                told.segment_id == number and (record.sealed or not told.readonly)
                for told in self.leases.values()
            )
            unheard = state.leases.asked(number) if self.deaf else ()
            under_way = any(number in _segments(act) for act in acts)
            unseen = record.sealed and state.leases.resuming
            assert at_it or unheard or under_way or unseen or state.jobs.uses(number), (
                "it outlived its owner"
            )

    def _check_names(self) -> None:
        """Were the coordinator killed now, the next one would have the same names."""
        names = {
            found.name: found.segment_id
            for found in self.bench.coordinator._state.registry.published
        }
        best: dict[str, ArrayRecord] = {}
        for record in self.bench.disk.values():
            rival = best.setdefault(record.spec.name, record)
            if rival is not record and record.generation > rival.generation:
                best[record.spec.name] = record
        assert names == {name: record.segment.segment_id for name, record in best.items()}
        assert not set(names.values()) & self.superseded, "a name went back"
        assert not set(names.values()) & self.destroyed, "a destroyed array came back"

    def _check_leases(self) -> None:
        leases = self.bench.coordinator._state.leases
        deaf = {client.identity.pid for client in self.deaf}
        granted = [lease for segment_id in self.kept() for lease in leases.asked(segment_id)]
        counted = {lease.number for lease in granted}
        unheard = {lease.number for lease in granted if lease.session.identity.pid in deaf}
        mine = {
            number
            for number, told in self.leases.items()
            if told.client not in self.cut and not self.is_gone(told.segment_id)
        }
        assert counted - unheard <= mine <= counted, "leases are counted otherwise than told"
        declared = [told for told in self.leases.values() if told.rows is not None]
        for one in declared:
            for other in declared:
                if one.client is other.client or one.segment_id != other.segment_id:
                    continue
                assert one.rows is not None and other.rows is not None
                assert one.rows[1] <= other.rows[0] or other.rows[1] <= one.rows[0], "rows meet"

    def _check_quota(self) -> None:
        limits = self.bench.limits
        assert limits is not None
        nbytes: Counter[int] = Counter()
        for making in self.bench.making.values():
            nbytes[making.creator.uid] += making.spec.nbytes
        for number, record in self.bench.disk.items():
            if number not in self.bench.lost:
                nbytes[record.creator.uid] += record.spec.nbytes
        assert nbytes.total() <= limits.max_bytes
        assert max(nbytes.values(), default=0) <= limits.max_bytes_per_user

    def kept(self) -> list[int]:
        """The segments that the coordinator keeps, named or not."""
        return [found.segment_id for found in self.bench.coordinator._state.registry.kept]
