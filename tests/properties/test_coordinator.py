"""Any order of requests, deaths, restarts, cancels and late outcomes leaves the coordinator whole.

The machine plays clients, workers, and the threads that make, seal and publish
segments; it kills the coordinator between any two events, with what was under way
written down or not. What must be true for the outside is kept in ``support.outside``;
the coordinator's own invariants are validated by the bench after every event.
"""

from __future__ import annotations

import msgspec
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
    WORKER_CLIENT,
    Attach,
    Bind,
    Bound,
    Cancel,
    CreateArray,
    Describe,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    Goodbye,
    Hello,
    List,
    ListJobs,
    Operand,
    PartAccepted,
    PartDone,
    PartFailed,
    PublicationsTold,
    Publish,
    PublishAll,
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
from hugepool_server.coordinator import Limits
from hugepool_server.events import (
    PublishGeneration,
    PublishRefused,
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
from support.outside import Outside

NAMES = st.sampled_from("ab")
LOOKS = ["list", "jobs", "stats", "timing", "describe"]
CHOICE = st.integers(0, 1 << 16)
UIDS = st.sampled_from([1000, 1000, 1000, 1000, 1001, 0])
COUNTS = st.sampled_from([0, 10, 10, 5000])
ROWS = st.none() | st.sampled_from([(0, 5), (5, 10), (4, 6), (0, 10), (0, 11)])
LIMITS = Limits(
    max_sessions=6,
    max_arrays=8,
    max_bytes=100_000,
    max_bytes_per_user=60_000,
    max_leases_per_session=4,
    max_jobs=4,
    max_workers=4,
    worker_patience_ns=12 * STEP_NS,
    stopped_patience_ns=6 * STEP_NS,
)


class World(RuleBasedStateMachine):
    """Everything outside the coordinator, in motion."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(LIMITS)
        self.out = Outside(self.bench)

    def pick(self, choice: int) -> Client:
        return self.out.awake[choice % len(self.out.awake)]

    has_clients = precondition(lambda self: self.out.awake)

    # Sessions -----------------------------------------------------------------

    @initialize(workers=st.integers(1, 2), count=st.integers(0, 2))
    def begin(self, workers: int, count: int) -> None:
        for number in range(2 + workers):
            self.connect(uid=1000, worker=number >= 2, refused="")
        for name in "ab"[:count]:
            self.create(choice=0, name=name, count=10)
            self.end_making(0, "made")

    @precondition(lambda self: len(self.out.clients) < 6)
    @rule(
        uid=UIDS,
        worker=st.booleans(),
        refused=st.sampled_from(["", "", "", "token", "lock", "gone"]),
    )
    def connect(self, uid: int, worker: bool, refused: str) -> None:
        name = WORKER_CLIENT if worker else "me"
        client = self.bench.client(uid=uid, hello=False, name=name)
        before = set(self.bench.watched)
        self.bench.automatic = refused != "token"
        hello = client.ask(Hello(name, "0"))
        if refused == "token":
            self.bench.refuse_token()
            self.bench.automatic = True
            assert client.reply(hello, Failed) == REFUSAL
        elif refused == "lock":
            client.refused(Bind(), ErrorCode.NOT_PERMITTED)
        elif refused == "gone":
            client.vanish()
        else:
            client.token = client.reply(hello, Welcome).token.rpartition("/")[2]
            client.bind()
            self.out.clients.append(client)
            if worker:
                self.register(client)
            return
        self.out.read()
        assert set(self.bench.watched) == before, "a session of nobody"

    def register(self, client: Client) -> None:
        out = self.out
        # Known beforehand: parts may come with the answer.
        workers, part = set(out.workers), out.at_work.pop(client, None)
        out.workers.add(client)
        if not isinstance(out.ask(client, RegisterWorker()), WorkerRegistered):
            out.workers = workers
            if part is not None:
                out.at_work[client] = part

    @precondition(lambda self: any(self.idle_worker(one) for one in self.out.awake))
    @rule(choice=CHOICE)
    def register_again(self, choice: int) -> None:
        idle = [client for client in self.out.awake if self.idle_worker(client)]
        self.register(idle[choice % len(idle)])

    def idle_worker(self, client: Client) -> bool:
        return client.name == WORKER_CLIENT and client not in self.out.at_work

    @precondition(lambda self: self.out.clients)
    @rule(choice=CHOICE)
    def die(self, choice: int) -> None:
        client = self.out.clients[choice % len(self.out.clients)]
        if client not in self.out.forgotten:
            for effect in client.exit():
                assert not isinstance(effect, Send) or effect.peer != client.peer
        self.out.forget(client, answered=False)
        self.out.read()

    @has_clients
    @rule(choice=CHOICE)
    def say_goodbye(self, choice: int) -> None:
        client = self.pick(choice)
        self.out.at_work.pop(client, None)  # it gave up
        self.out.ask(client, Goodbye())
        self.out.forget(client, answered=True)
        self.out.read()

    @has_clients
    @rule(choice=CHOICE)
    def become_unreachable(self, choice: int) -> None:
        client = self.pick(choice)
        client.vanish()
        # What it asked may or may not be answered, depending on when it is heard of again.
        self.out.void_requests(client)
        self.out.deaf.add(client)
        self.out.read()

    @has_clients
    @rule(choice=CHOICE, loses=st.booleans(), more=st.booleans(), again=st.booleans())
    def renew_connection(self, choice: int, loses: bool, more: bool, again: bool) -> None:
        self.take_up(self.pick(choice), loses=loses, more=more, again=again)

    @precondition(lambda self: self.out.cut)
    @rule(choice=CHOICE, more=st.booleans(), again=st.booleans())
    def resume(self, choice: int, more: bool, again: bool) -> None:
        cut = sorted(self.out.cut, key=lambda client: client.identity.pid)
        self.take_up(cut[choice % len(cut)], loses=False, more=more, again=again)

    def take_up(self, client: Client, *, loses: bool, more: bool, again: bool) -> None:
        """Be heard from another connection, and tell what is held."""
        out, bench = self.out, self.bench
        pending = out.requests_of(client)
        out.void_requests(client)
        mine = sorted(out.held_by(client))
        if loses and mine:
            del out.leases[mine[-1]]  # the reply that granted it was lost
        elsewhere = client in out.forgotten
        claims = out.claims(client)
        client.reconnect()
        welcome = client.call(Hello(client.name, "0", client.token), Welcome)
        assert welcome.resumed is not elsewhere
        if elsewhere:
            client.token = welcome.token.rpartition("/")[2]
            bench.locked.add(client.session)
            client.call(Bind(), Bound)
        out.cut.discard(client)
        half = len(claims) // 2 if more else 0
        gone: tuple[int, ...] = ()
        if more:
            gone += client.call(Resume(tuple(claims[:half]), more=True), Resumed).gone
        gone += client.call(Resume(tuple(claims[half:])), Resumed).gone
        out.lose(client, gone)
        out.deaf.discard(client)
        out.read()
        if client.name == WORKER_CLIENT:
            out.at_work.pop(client, None)
            self.register(client)
        for request in pending if again else []:
            if isinstance(request, CreateArray):
                once_more = msgspec.structs.replace(request, again=True)
                self.ask_to_create(client, once_more)
            elif isinstance(request, Seal | Publish | PublishAll):
                out.ask(client, request)

    # The coordinator dies -----------------------------------------------------

    @rule(
        written=st.integers(0, 255),
        dead=st.none() | CHOICE,
        forgotten=st.none() | CHOICE,
        lost=st.none() | st.none() | CHOICE,
    )
    def restart(
        self, written: int, dead: int | None, forgotten: int | None, lost: int | None
    ) -> None:
        out, bench = self.out, self.bench
        for token in [*bench.making, *bench.sealing, *bench.publishing]:
            if written >> token % 8 & 1:
                self.write(token)
        for token, step in list(bench.publishing_together.items()):
            # Of several names it may have written some: the one case where it is not all or none.
            count = written % (len(step.publications) + 1)
            for act in step.publications[:count]:
                self.note_published(act)
            bench.write_published_together(token, count)
        if dead is not None and out.clients:
            client = out.clients[dead % len(out.clients)]
            bench.locked.discard(client.session)
            out.forget(client, answered=False)
        if forgotten is not None and out.clients:
            client = out.clients[forgotten % len(out.clients)]
            bench.locked.discard(client.session)
            out.forgotten.setdefault(client, {}).update(out.held_by(client))
            for number, told in out.forgotten[client].items():
                told.rows = None
                out.leases.pop(number, None)
        living = {bench.tokens[number].token for number in bench.locked}
        for number, record in bench.disk.items():
            if (record.temporary or not record.sealed) and record.owner not in living:
                out.ownerless.add(number)
        if lost is not None and bench.disk:
            bench.lost.add(sorted(bench.disk)[lost % len(bench.disk)])
        out.cut = set(out.clients)
        out.workers.clear()
        out.owed = {key: client for key, client in out.owed.items() if client in out.clients}
        waiting = dict(out.owed)
        out.owed.clear()
        bench.restart()
        out.owed = waiting
        out.read()

    def write(self, token: int) -> None:
        """An act of a thread is done, and its coordinator does not live to see it."""
        bench = self.bench
        if token in bench.making:
            bench.write_made(token)
        elif token in bench.sealing:
            self.out.note_sealed(bench.sealing[token].segment.segment_id)
            bench.write_sealed(token)
        else:
            self.note_published(bench.publishing[token])
            bench.write_published(token)

    def note_published(self, act: PublishGeneration) -> None:
        """What had the name is superseded, or was lost and goes."""
        for record in self.bench.disk.values():
            if record.spec.name == act.name:
                self.out.superseded.add(record.segment.segment_id)
        self.out.temporary.discard(act.segment_id)

    # Arrays -------------------------------------------------------------------

    @has_clients
    @rule(choice=CHOICE, name=NAMES, count=COUNTS, temporary=st.booleans())
    def create(self, choice: int, name: str, count: int, temporary: bool = False) -> None:
        self.ask_to_create(
            self.pick(choice), CreateArray(array_spec(name, count), temporary=temporary)
        )

    def ask_to_create(self, client: Client, request: CreateArray) -> None:
        begun = set(self.bench.making)
        self.out.ask(client, request)
        for token in self.bench.making.keys() - begun:
            if request.temporary:
                self.out.temporary.add(self.bench.making[token].segment_id)

    @has_clients
    @rule(choice=CHOICE, name=NAMES, readonly=st.booleans(), rows=ROWS)
    def attach(self, choice: int, name: str, readonly: bool, rows: tuple[int, int] | None) -> None:
        self.out.ask(self.pick(choice), Attach(name, readonly, rows))

    @precondition(lambda self: self.out.leases)
    @rule(choice=CHOICE)
    def detach(self, choice: int) -> None:
        number = sorted(self.out.leases)[choice % len(self.out.leases)]
        client = self.out.leases[number].client
        if client not in self.out.cut:
            del self.out.leases[number]
            assert isinstance(self.out.ask(client, Detach(number)), Detached)

    @precondition(lambda self: self.out.leases and len(self.out.awake) > 1)
    @rule(choice=CHOICE, who=CHOICE)
    def detach_what_another_has(self, choice: int, who: int) -> None:
        number = sorted(self.out.leases)[choice % len(self.out.leases)]
        told, thief = self.out.leases[number], self.pick(who)
        if not (told.client in (thief, *self.out.cut) or self.out.is_gone(told.segment_id)):
            assert isinstance(self.out.ask(thief, Detach(number)), Failed)

    @has_clients
    @rule(choice=CHOICE, name=NAMES)
    def seal(self, choice: int, name: str) -> None:
        client = self.pick(choice)
        before = set(self.bench.sealing)
        self.out.ask(client, Seal(name))
        for token in self.bench.sealing.keys() - before:
            segment_id = self.bench.sealing[token].segment.segment_id
            seen = self.out.writers(segment_id) - self.out.cut
            assert seen <= {client}, "sealed under a writer"
            for worker, part in self.out.at_work.items():
                for operand in part.operands:
                    written = operand.writable and operand.segment.segment_id == segment_id
                    assert not (written and worker in self.out.workers)

    @has_clients
    @rule(choice=CHOICE, name=NAMES, source=NAMES)
    def publish(self, choice: int, name: str, source: str) -> None:
        before = set(self.bench.publishing)
        self.out.ask(self.pick(choice), Publish(name, source))
        for token in self.bench.publishing.keys() - before:
            assert self.bench.publishing[token].segment_id in self.out.sealed

    @has_clients
    @rule(
        choice=CHOICE,
        name=NAMES,
        reader=st.none() | CHOICE,
        steps=st.integers(1, 5),
        temporary=st.booleans(),
    )
    def publish_anew(
        self, choice: int, name: str, reader: int | None, steps: int, temporary: bool
    ) -> None:
        """What a client does to bring something new out, or the first steps of it."""
        client, bench, out = self.pick(choice), self.bench, self.out
        source = f"{name}{len(bench.made)}"
        if reader is not None:
            out.ask(self.pick(reader), Attach(name))
        begun = set(bench.making)
        self.ask_to_create(client, CreateArray(array_spec(source, 10), temporary=temporary))
        for token in bench.making.keys() - begun:
            bench.finish_making(source, token=token)
            out.read()
        begun = set(bench.sealing)
        if steps > 1:
            out.ask(client, Seal(source))
        for token in bench.sealing.keys() - begun if steps > 2 else ():
            self.end_sealing(sorted(bench.sealing).index(token), True)
        begun = set(bench.publishing)
        if steps > 3:
            out.ask(client, Publish(name, source))
        for token in bench.publishing.keys() - begun if steps > 4 else ():
            self.end_publishing(sorted(bench.publishing).index(token), True)

    @has_clients
    @rule(
        choice=CHOICE,
        aims=st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
        replace=st.booleans(),
        stops=st.lists(st.integers(0, 3), max_size=2),
        end=st.sampled_from([None, True, True, False]),
    )
    def publish_together(
        self, choice: int, aims: list[str], replace: bool, stops: list[int], end: bool | None
    ) -> None:
        """Put temporaries and publish them in one step, told in one message or several.

        `stops` are where messages end; they may leave names out, or tell some twice.
        """
        client, bench, out = self.pick(choice), self.bench, self.out
        wanted = [
            (name, segment_id)
            for name in aims
            if (segment_id := self.put_temporary(client)) is not None
        ]
        begun, before = set(bench.publishing_together), self.names()
        told, reply = 0, None
        for stop in [*stops, len(wanted)]:
            request = _page(wanted, told, stop, replace=replace)
            reply = out.ask(client, request)
            if not isinstance(reply, PublicationsTold):
                break
            assert reply.count in (0, told + len(request.names))
            told = reply.count
        assert self.names() == before, "not before it is written"
        new = bench.publishing_together.keys() - begun
        assert len(new) == (reply is None), "a step was begun and refused, or neither"
        for token in new:
            step = bench.publishing_together[token]
            assert [(act.name, act.segment_id) for act in step.publications] == wanted
            assert replace or before.keys().isdisjoint(dict(wanted)), "a name was taken"
            if end is not None:
                self.end_publishing_together(sorted(bench.publishing_together).index(token), end)

    def put_temporary(self, client: Client) -> int | None:
        """A sealed object that goes with its client, unless there is no room for it."""
        bench = self.bench
        name, begun = f"t{len(bench.made)}", set(bench.making)
        self.ask_to_create(client, CreateArray(array_spec(name, 10), temporary=True))
        for token in bench.making.keys() - begun:
            segment_id = bench.making[token].segment_id
            bench.finish_making(name, token=token)
            self.out.read()
            begun = set(bench.sealing)
            self.out.ask(client, Seal(name))
            for sealing in bench.sealing.keys() - begun:
                self.end_sealing(sorted(bench.sealing).index(sealing), True)
                return segment_id
        return None

    def names(self) -> dict[str, int]:
        """What each name means to everybody."""
        registry = self.bench.coordinator._state.registry
        return {found.name: found.segment_id for found in registry.published}

    @has_clients
    @rule(choice=CHOICE, name=NAMES)
    def destroy(self, choice: int, name: str) -> None:
        before = len(self.bench.unlinked)
        reply = self.out.ask(self.pick(choice), Destroy(name))
        removed = self.bench.unlinked[before:]
        assert bool(removed) is isinstance(reply, Destroyed)
        self.out.destroyed |= set(removed)
        self.out.check()

    @has_clients
    @rule(choice=CHOICE, name=NAMES, kind=st.sampled_from(LOOKS))
    def look(self, choice: int, name: str, kind: str) -> None:
        requests: dict[str, Request] = {
            "list": List(),
            "jobs": ListJobs(),
            "stats": Stats(),
            "timing": ReportTiming(Timing("step")),
            "describe": Describe(name),
        }
        assert self.out.ask(self.pick(choice), requests[kind]) is not None

    @precondition(lambda self: self.out.asked)
    @rule(choice=CHOICE, guess=st.booleans())
    def cancel(self, choice: int, guess: bool) -> None:
        some = sorted(self.out.owed or self.out.asked)
        peer, correlation = some[choice % len(some)]
        for client in self.out.awake:
            if client.peer == peer:
                assert self.out.ask(client, Cancel(correlation + guess)) is not None
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
        self.out.read()

    @precondition(lambda self: self.bench.sealing)
    @rule(choice=CHOICE, well=st.booleans())
    def end_sealing(self, choice: int, well: bool) -> None:
        bench = self.bench
        token = sorted(bench.sealing)[choice % len(bench.sealing)]
        if well:
            self.out.note_sealed(bench.sealing[token].segment.segment_id)
            bench.handle(bench.write_sealed(token))
        else:
            del bench.sealing[token]
            bench.handle(SealRefused(token, REFUSAL))
        self.out.read()

    @precondition(lambda self: self.bench.publishing)
    @rule(choice=CHOICE, well=st.sampled_from([True, True, False]))
    def end_publishing(self, choice: int, well: bool) -> None:
        bench = self.bench
        token = sorted(bench.publishing)[choice % len(bench.publishing)]
        if well:
            self.note_published(bench.publishing[token])
            bench.handle(bench.write_published(token))
        else:
            del bench.publishing[token]
            bench.handle(PublishRefused(token, REFUSAL))
        self.out.read()

    @precondition(lambda self: self.bench.publishing_together)
    @rule(choice=CHOICE, well=st.sampled_from([True, True, False]))
    def end_publishing_together(self, choice: int, well: bool) -> None:
        bench, before = self.bench, self.names()
        token = sorted(bench.publishing_together)[choice % len(bench.publishing_together)]
        acts = bench.publishing_together[token].publications
        if well:
            for act in acts:
                self.note_published(act)
            bench.handle(bench.write_published_together(token))
        else:
            del bench.publishing_together[token]
            bench.handle(PublishRefused(token, REFUSAL))
        self.out.read()
        after = self.names()
        for act in acts:
            assert after.get(act.name) == (act.segment_id if well else before.get(act.name))

    # Jobs ---------------------------------------------------------------------

    @has_clients
    @rule(choice=CHOICE, reads=NAMES, writes=st.none() | NAMES, parts=st.integers(0, 3))
    def submit(self, choice: int, reads: str, writes: str | None, parts: int) -> None:
        operands = [Operand("x", reads)]
        if writes is not None:
            operands.append(Operand("out", writes, True))
        request = SubmitJob("gather", tuple(operands), tuple(range(parts + 1)))
        self.out.ask(self.pick(choice), request)

    @precondition(lambda self: any(one not in self.out.cut for one in self.out.at_work))
    @rule(choice=CHOICE, well=st.sampled_from([True, True, True, False]))
    def report(self, choice: int, well: bool) -> None:
        busy = [client for client in self.out.awake if client in self.out.at_work]
        worker = busy[choice % len(busy)]
        part = self.out.at_work.pop(worker)
        reply = self.out.ask(worker, _report(part, well=well))
        assert isinstance(reply, PartAccepted)
        if not reply.stale and well:
            self.out.acknowledged[part.job, part.part] += 1
            assert self.out.acknowledged[part.job, part.part] == 1, "acknowledged twice"

    @has_clients
    @rule(choice=CHOICE, stopped=st.sampled_from([True, True, False]))
    def stop_or_continue(self, choice: int, stopped: bool) -> None:
        number = self.pick(choice).session
        self.bench.handle(WorkerStopped(number) if stopped else WorkerContinued(number))
        self.out.read()

    @precondition(lambda self: self.bench.coordinator.wake_ns is not None)
    @rule()
    def tick(self) -> None:
        due_ns = self.bench.coordinator.wake_ns
        assert due_ns is not None and due_ns > self.bench.now_ns
        self.bench.now_ns = due_ns
        self.bench.handle(Tick())
        self.out.read()

    @precondition(lambda self: self.out.awake and self.out.epochs)
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
        job, number = sorted(self.out.epochs)[which % len(self.out.epochs)]
        epoch = self.out.epochs[job, number] + epoch_off
        number += part_off
        sent = self.out.at_work.get(client)
        if sent is not None and (sent.job, sent.part, sent.epoch) == (job, number, epoch):
            return
        part = RunPart(job, number, epoch, "gather", "auto", (), 0, 1)
        due_ns = self.bench.coordinator.wake_ns
        if due_ns is not None and due_ns <= self.bench.now_ns + STEP_NS:
            return  # patience would end at this very event
        self.out.ask(client, List())  # it is heard of, and gets what waited for that
        sent = self.out.at_work.get(client)
        if sent is not None and (sent.job, sent.part, sent.epoch) == (job, number, epoch):
            return
        before = repr(self.bench.coordinator)
        reply = self.out.ask(client, _report(part, well=well))
        assert reply == PartAccepted(stale=True)
        assert repr(self.bench.coordinator) == before

    # What must hold -----------------------------------------------------------

    @invariant()
    def the_outside_may_count_on_what_it_was_told(self) -> None:
        self.out.check()

    def teardown(self) -> None:
        """Drain, then let everybody go: all is back where it began."""
        bench, out = self.bench, self.out
        for client in out.cut:
            out.void_requests(client)
        bench.stop()
        out.read()
        while bench.making:
            self.end_making(0, "made")
        while bench.sealing:
            self.end_sealing(0, True)
        while bench.publishing:
            self.end_publishing(0, True)
        while bench.publishing_together:
            self.end_publishing_together(0, True)
        assert bench.stops == 1
        assert not out.owed, "a request was never answered"
        out.check()
        for client in list(out.clients):
            self.die(out.clients.index(client))
        state = bench.coordinator._state
        assert repr(state.leases) == "<Leases: 0 sessions, 0 leases>"
        assert repr(state.jobs) == "<Jobs: 0 jobs, 0 of 0 workers busy>"
        assert state.registry.acts == ()
        assert not bench.watched
        assert not bench.tokens
        lasting = out.sealed - out.superseded - out.temporary
        assert set(out.kept()) <= lasting, "something outlived its users"
        assert bench.stops == 1


def _page(wanted: list[tuple[str, int]], told: int, stop: int, *, replace: bool) -> PublishAll:
    """What a client tells of a batch in one message."""
    page = wanted[told:stop]
    return PublishAll(
        tuple(name for name, _ in page),
        tuple(segment_id for _, segment_id in page),
        replace=replace,
        batch=wanted[0][1] if wanted else 0,
        before=told,
        more=stop < len(wanted),
    )


def _report(part: RunPart, *, well: bool) -> PartDone | PartFailed:
    if well:
        return PartDone(part.job, part.part, part.epoch, Timing("gather"))
    return PartFailed(part.job, part.part, part.epoch, REFUSAL)


World.TestCase.settings = settings(
    max_examples=examples(100), stateful_step_count=60, deadline=None
)
TestCoordinator = World.TestCase
