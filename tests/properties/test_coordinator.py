"""Any order of requests, deaths, cancels and late outcomes leaves the coordinator whole.

The machine plays clients, workers and the threads that make and seal segments. It
keeps its own plain account of what must be true for the outside world: who was
answered, what was acknowledged, which lease a live client may still count on. The
coordinator's own invariants are validated by the bench after every event.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    Bind,
    Cancel,
    CreateArray,
    Describe,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    DropSegment,
    Failed,
    Goodbye,
    Hello,
    List,
    Message,
    Operand,
    PartAccepted,
    PartDone,
    PartFailed,
    RegisterWorker,
    ReportTiming,
    Request,
    RunPart,
    Seal,
    Sealed,
    Stats,
    SubmitJob,
    Timing,
    WorkerRegistered,
)
from hugepool_server.coordinator import Limits
from hugepool_server.events import (
    SealRefused,
    SegmentProgress,
    SegmentRefused,
    Send,
    Tick,
    WorkerContinued,
    WorkerStopped,
)
from support.coordination import REFUSAL, STEP_NS, Bench, Client, array_spec
from support.examples import examples

NAMES = st.sampled_from("ab")
CHOICE = st.integers(0, 1 << 16)
UIDS = st.sampled_from([1000, 1000, 1000, 1000, 1001, 0])
LIMITS = Limits(
    max_sessions=6,
    max_arrays=5,
    max_leases_per_session=4,
    max_jobs=4,
    max_workers=4,
    worker_patience_ns=12 * STEP_NS,
    stopped_patience_ns=6 * STEP_NS,
)


class World(RuleBasedStateMachine):
    """Everything outside the coordinator."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(LIMITS)
        self.clients: list[Client] = []
        self.asked: dict[tuple[bytes, int], Request] = {}
        self.owed: set[tuple[bytes, int]] = set()
        self.sealed_ids: set[int] = set()
        self.destroyed: set[int] = set()
        self.leases: dict[int, tuple[Client, int]] = {}
        self.writable: set[int] = set()
        self.epochs: dict[tuple[int, int], int] = {}
        self.at_work: dict[bytes, RunPart] = {}
        self.workers: set[bytes] = set()
        self.acknowledged: Counter[tuple[int, int]] = Counter()

    # Bookkeeping --------------------------------------------------------------

    def ask(self, client: Client, request: Request) -> Message | None:
        """Send a request; returns the reply if it came at once."""
        correlation = client.ask(request)
        key = client.peer, correlation
        self.asked[key] = request
        self.owed.add(key)
        self.read()
        replies = client.replies(correlation)
        return replies[0] if replies else None

    def read(self) -> None:
        """Take what the coordinator sent, and hold it against what was asked."""
        for key in list(self.owed):
            if replies := self.bench.replies[key]:
                self.owed.discard(key)
                self.check_answer(key, replies[0])
        for client in self.clients:
            for dropped in client.notices(DropSegment):
                assert client.peer in self.workers, "only workers keep segments unasked"
                assert dropped.segment_id in self.bench.made
            for part in client.notices(RunPart):
                assert client.peer in self.workers
                assert client.peer not in self.at_work, "a second part for a busy worker"
                assert part.epoch > self.epochs.get((part.job, part.part), 0)
                assert not self.acknowledged[part.job, part.part], "done already"
                for operand in part.operands:
                    segment_id = operand.segment.segment_id
                    assert segment_id not in self.bench.unlinked
                    assert not (operand.writable and segment_id in self.sealed_ids)
                    assert segment_id not in self.written_late(part), "a torn operand"
                self.epochs[part.job, part.part] = part.epoch
                self.at_work[client.peer] = part

    def check_answer(self, key: tuple[bytes, int], reply: Message) -> None:
        client = next(client for client in self.clients if client.peer == key[0])
        match reply:
            case ArrayCreated() | Attached():
                segment_id = reply.array.segment.segment_id
                assert segment_id not in self.bench.unlinked
                assert reply.lease not in self.leases
                self.leases[reply.lease] = client, segment_id
                request = self.asked[key]
                if not isinstance(request, Attach) or not request.readonly:
                    self.writable.add(reply.lease)
            case Sealed():
                self.sealed_ids.add(reply.array.segment.segment_id)
            case Failed():
                assert reply.code in list(ErrorCode)
                assert reply.code != ErrorCode.INTERNAL

    def forget(self, client: Client, *, answered: bool) -> None:
        """The client's session ended."""
        self.clients.remove(client)
        self.workers.discard(client.peer)
        self.at_work.pop(client.peer, None)
        self.leases = {
            number: (owner, segment_id)
            for number, (owner, segment_id) in self.leases.items()
            if owner is not client
        }
        mine = {key for key in self.owed if key[0] == client.peer}
        assert not (answered and mine), "a goodbye leaves nothing unanswered"
        self.owed -= mine

    def pick(self, choice: int) -> Client:
        return self.clients[choice % len(self.clients)]

    has_clients = precondition(lambda self: self.clients)

    def written_late(self, sent: RunPart) -> set[int]:
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

    def writers(self, segment_id: int) -> list[Client]:
        """The live clients that were granted a writable lease and did not give it back."""
        return [
            client
            for number, (client, leased) in self.leases.items()
            if leased == segment_id and number in self.writable
        ]

    # Sessions -----------------------------------------------------------------

    @initialize(workers=st.integers(1, 2), count=st.integers(0, 2))
    def begin(self, workers: int, count: int) -> None:
        for number in range(2 + workers):
            self.connect(uid=1000, worker=number >= 2)
        for name in "ab"[:count]:
            self.create(choice=0, name=name, count=1)
            self.end_making(0, "made")

    @precondition(lambda self: len(self.clients) < 6)
    @rule(uid=UIDS, worker=st.booleans())
    def connect(self, uid: int, worker: bool) -> None:
        client = self.bench.client(uid=uid, hello=False)
        self.clients.append(client)
        self.ask(client, Hello("me", "0"))
        self.bench.locked.add(client.session)
        self.ask(client, Bind())
        if worker:
            self.register(len(self.clients) - 1)

    @has_clients
    @rule(choice=CHOICE)
    def register(self, choice: int) -> None:
        client = self.pick(choice)
        # Known beforehand: parts may come with the answer.
        before = set(self.workers)
        self.workers.add(client.peer)
        if not isinstance(self.ask(client, RegisterWorker()), WorkerRegistered):
            self.workers = before

    @has_clients
    @rule(choice=CHOICE)
    def die(self, choice: int) -> None:
        client = self.pick(choice)
        for effect in client.exit():
            assert not isinstance(effect, Send) or effect.peer != client.peer
        self.forget(client, answered=False)
        self.read()

    @has_clients
    @rule(choice=CHOICE)
    def say_goodbye(self, choice: int) -> None:
        client = self.pick(choice)
        self.ask(client, Goodbye())
        self.forget(client, answered=True)
        self.read()

    @has_clients
    @rule(choice=CHOICE)
    def become_unreachable(self, choice: int) -> None:
        client = self.pick(choice)
        client.vanish()
        # What it asked may or may not be answered, depending on when it is heard of again.
        self.owed -= {key for key in self.owed if key[0] == client.peer}
        self.read()

    # Arrays -------------------------------------------------------------------

    @has_clients
    @rule(choice=CHOICE, name=NAMES, count=st.sampled_from([0, 1, 5000]))
    def create(self, choice: int, name: str, count: int) -> None:
        self.ask(self.pick(choice), CreateArray(array_spec(name, count)))

    @has_clients
    @rule(choice=CHOICE, name=NAMES, readonly=st.booleans())
    def attach(self, choice: int, name: str, readonly: bool) -> None:
        self.ask(self.pick(choice), Attach(name, readonly))

    @precondition(lambda self: self.leases)
    @rule(choice=CHOICE)
    def detach(self, choice: int) -> None:
        number = sorted(self.leases)[choice % len(self.leases)]
        client, _ = self.leases.pop(number)
        assert isinstance(self.ask(client, Detach(number)), Detached)

    @precondition(lambda self: self.leases and len(self.clients) > 1)
    @rule(choice=CHOICE, who=CHOICE)
    def detach_what_another_has(self, choice: int, who: int) -> None:
        number = sorted(self.leases)[choice % len(self.leases)]
        owner, segment_id = self.leases[number]
        thief = self.pick(who)
        if thief is not owner and segment_id not in self.bench.unlinked:
            assert isinstance(self.ask(thief, Detach(number)), Failed)

    @has_clients
    @rule(choice=CHOICE, name=NAMES)
    def seal(self, choice: int, name: str) -> None:
        client = self.pick(choice)
        before = set(self.bench.sealing)
        self.ask(client, Seal(name))
        for token in self.bench.sealing.keys() - before:
            segment_id = self.bench.sealing[token].segment.segment_id
            assert set(self.writers(segment_id)) <= {client}, "sealed under a writer"
            for part in self.at_work.values():
                for operand in part.operands:
                    assert not (operand.writable and operand.segment.segment_id == segment_id)

    @has_clients
    @rule(choice=CHOICE, name=NAMES)
    def destroy(self, choice: int, name: str) -> None:
        before = len(self.bench.unlinked)
        reply = self.ask(self.pick(choice), Destroy(name))
        assert len(self.bench.unlinked) - before == isinstance(reply, Destroyed)
        self.destroyed |= set(self.bench.unlinked[before:])

    @has_clients
    @rule(choice=CHOICE, name=NAMES, kind=st.sampled_from(["list", "stats", "timing", "describe"]))
    def look(self, choice: int, name: str, kind: str) -> None:
        requests: dict[str, Request] = {
            "list": List(),
            "stats": Stats(),
            "timing": ReportTiming(Timing("step")),
            "describe": Describe(name),
        }
        assert self.ask(self.pick(choice), requests[kind]) is not None

    @precondition(lambda self: self.asked)
    @rule(choice=CHOICE, guess=st.booleans())
    def cancel(self, choice: int, guess: bool) -> None:
        peer, correlation = sorted(self.owed or self.asked)[choice % len(self.owed or self.asked)]
        for client in self.clients:
            if client.peer == peer:
                assert self.ask(client, Cancel(correlation + guess)) is not None
                return

    # Threads ------------------------------------------------------------------

    @precondition(lambda self: self.bench.making)
    @rule(choice=CHOICE, outcome=st.sampled_from(["made", "made", "made", "refused", "progress"]))
    def end_making(self, choice: int, outcome: str) -> None:
        bench = self.bench
        token = sorted(bench.making)[choice % len(bench.making)]
        act = bench.making[token]
        match outcome:
            case "made":
                bench.finish_making(act.spec.name, token=token)
            case "refused":
                del bench.making[token]
                bench.handle(SegmentRefused(token, REFUSAL))
            case "progress":
                bench.handle(SegmentProgress(token, 1, 2))
        self.read()

    @precondition(lambda self: self.bench.sealing)
    @rule(choice=CHOICE, well=st.booleans())
    def end_sealing(self, choice: int, well: bool) -> None:
        bench = self.bench
        token = sorted(bench.sealing)[choice % len(bench.sealing)]
        if well:
            self.sealed_ids.add(bench.sealing[token].segment.segment_id)
            bench.handle(bench.write_sealed(token))
        else:
            del bench.sealing[token]
            bench.handle(SealRefused(token, REFUSAL))
        self.read()

    # Jobs ---------------------------------------------------------------------

    @has_clients
    @rule(choice=CHOICE, reads=NAMES, writes=st.none() | NAMES, parts=st.integers(0, 3))
    def submit(self, choice: int, reads: str, writes: str | None, parts: int) -> None:
        operands = [Operand("x", reads)]
        if writes is not None:
            operands.append(Operand("out", writes, True))
        request = SubmitJob("gather", tuple(operands), tuple(range(parts + 1)))
        self.ask(self.pick(choice), request)

    @precondition(lambda self: self.at_work)
    @rule(choice=CHOICE, well=st.sampled_from([True, True, True, False]))
    def report(self, choice: int, well: bool) -> None:
        peer = sorted(self.at_work)[choice % len(self.at_work)]
        worker = next(client for client in self.clients if client.peer == peer)
        part = self.at_work.pop(peer)
        reply = self.ask(worker, _report(part, well=well))
        assert isinstance(reply, PartAccepted)
        if not reply.stale and well:
            self.acknowledged[part.job, part.part] += 1
            assert self.acknowledged[part.job, part.part] == 1, "acknowledged twice"

    @has_clients
    @rule(choice=CHOICE, stopped=st.sampled_from([True, True, False]))
    def stop_or_continue(self, choice: int, stopped: bool) -> None:
        number = self.pick(choice).session
        self.bench.handle(WorkerStopped(number) if stopped else WorkerContinued(number))
        self.read()

    @precondition(lambda self: self.bench.coordinator.wake_ns is not None)
    @rule()
    def tick(self) -> None:
        due_ns = self.bench.coordinator.wake_ns
        assert due_ns is not None and due_ns > self.bench.now_ns
        self.bench.now_ns = due_ns
        self.bench.handle(Tick())
        self.read()

    @precondition(lambda self: self.clients and self.epochs)
    @rule(
        choice=CHOICE,
        which=CHOICE,
        epoch_off=st.integers(-2, 2),
        part_off=st.integers(-1, 1),
        well=st.booleans(),
    )
    def report_out_of_turn(
        self, choice: int, which: int, epoch_off: int, part_off: int, well: bool
    ) -> None:
        client = self.pick(choice)
        job, number = sorted(self.epochs)[which % len(self.epochs)]
        epoch = self.epochs[job, number] + epoch_off
        number += part_off
        sent = self.at_work.get(client.peer)
        if sent is not None and (sent.job, sent.part, sent.epoch) == (job, number, epoch):
            return
        part = RunPart(job, number, epoch, "gather", "auto", (), 0, 1)
        due_ns = self.bench.coordinator.wake_ns
        if due_ns is not None and due_ns <= self.bench.now_ns + STEP_NS:
            return  # patience would end at this very event
        before = repr(self.bench.coordinator)
        reply = self.ask(client, _report(part, well=well))
        assert reply == PartAccepted(stale=True)
        assert repr(self.bench.coordinator) == before

    # What must hold -----------------------------------------------------------

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        assert all(len(replies) <= 1 for replies in self.bench.replies.values())

    @invariant()
    def only_slow_requests_wait(self) -> None:
        for key in self.owed:
            assert isinstance(self.asked[key], CreateArray | Seal | SubmitJob), self.asked[key]

    @invariant()
    def sealed_arrays_and_leases_of_the_living_stay(self) -> None:
        listed = self.listed()
        for client, segment_id in self.leases.values():
            if segment_id in listed:
                assert client.identity.pid in listed[segment_id]
        for client, segment_id in self.leases.values():
            if self.writers(segment_id):
                assert segment_id in listed or segment_id in self.destroyed, client
        assert self.sealed_ids <= listed.keys() | self.destroyed

    @invariant()
    def every_segment_has_a_name_or_is_removed(self) -> None:
        assert self.bench.made == set(self.listed()) | set(self.bench.unlinked)
        assert not set(self.listed()) & set(self.bench.unlinked)

    @invariant()
    def every_session_is_watched(self) -> None:
        pids = {client.identity.pid for client in self.clients}
        assert set(self.bench.watched.values()) == pids

    def listed(self) -> dict[int, tuple[int, ...]]:
        """Segment ids and their readers, as the registry has them."""
        state = self.bench.coordinator._state
        return {
            found.segment_id: tuple(
                lease.session.identity.pid for lease in state.leases.on(found.segment_id)
            )
            for found in state.registry.published
        }

    def teardown(self) -> None:
        """Drain, then let everybody go: all is back where it began."""
        bench = self.bench
        bench.stop()
        self.read()
        while bench.making:
            self.end_making(0, "made")
        while bench.sealing:
            self.end_sealing(0, True)
        assert bench.stops == 1
        assert not self.owed, "a request was never answered"
        assert bench.made == set(self.listed()) | set(bench.unlinked)
        for client in list(self.clients):
            client.exit()
        state = bench.coordinator._state
        assert repr(state.leases) == "<Leases: 0 sessions, 0 leases>"
        assert repr(state.jobs) == "<Jobs: 0 jobs, 0 of 0 workers busy>"
        assert state.registry.acts == ()
        assert bench.watched == {}
        assert set(self.listed()) <= self.sealed_ids, "an unsealed array outlived its users"
        assert bench.stops == 1


def _report(part: RunPart, *, well: bool) -> PartDone | PartFailed:
    if well:
        return PartDone(part.job, part.part, part.epoch, Timing("gather"))
    return PartFailed(part.job, part.part, part.epoch, REFUSAL)


World.TestCase.settings = settings(
    max_examples=examples(100), stateful_step_count=60, deadline=None
)
TestCoordinator = World.TestCase
