"""How sessions begin, go on at another connection, and end: one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Bind,
    Bound,
    Cancel,
    Cancelled,
    Counted,
    CreateArray,
    Describe,
    Described,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    FewerWorkers,
    Goodbye,
    GoodbyeSaid,
    Held,
    Hello,
    JobDone,
    PartAccepted,
    RegisterWorker,
    Request,
    Resume,
    Resumed,
    RunPart,
    Seal,
    Sealed,
    Stats,
    SubmitJob,
    Welcome,
    WorkerRegistered,
)
from hugepool_common.spec import ArraySpec
from hugepool_server.coordinator import Limits
from hugepool_server.events import (
    PeerUnreachable,
    ProcessExited,
    Send,
    Stop,
    TokenChecked,
    TokenMade,
    TokenRefused,
    UnwatchProcess,
    WorkerContinued,
)
from support.coordination import REFUSAL, Bench, Client, array_spec, held

HELLO = Hello("test", "0.1")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def greet_again(client: Client) -> int:
    """Reconnect and ask for the session of before; returns the correlation id."""
    client.reconnect()
    return client.ask(Hello("test", "0.1", client.token))


# Beginning --------------------------------------------------------------------


def test_a_session_begins_when_its_process_was_seen_to_hold_the_lock(bench: Bench) -> None:
    client = bench.client(hello=False)
    welcome = client.hello()
    assert welcome.token and not welcome.resumed and welcome.durable
    client.refused(Stats(), ErrorCode.PROTOCOL)
    assert client.bind() == Bound()
    client.call(Bind(), Bound)
    client.create("x")


@pytest.mark.parametrize("request_", [Stats(), Attach("x"), Destroy("x"), Resume(())])
def test_nothing_is_done_for_a_session_that_is_not_bound(bench: Bench, request_: Request) -> None:
    bench.client().create("x")
    client = bench.client(hello=False)
    client.hello()
    before = repr(bench.coordinator)
    client.refused(request_, ErrorCode.PROTOCOL)
    assert repr(bench.coordinator) == before
    client.call(Goodbye(), GoodbyeSaid)


def test_who_does_not_hold_the_lock_has_no_session(bench: Bench) -> None:
    client = bench.client(hello=False)
    client.hello()
    refused = client.refused(Bind(), ErrorCode.NOT_PERMITTED)
    assert f"pid {client.identity.pid}" in refused.needed
    assert bench.watched == {} and bench.tokens == {}
    client.refused(Bind(), ErrorCode.PROTOCOL)


def test_without_a_token_there_is_no_session(bench: Bench) -> None:
    bench.automatic = False
    client = bench.client(hello=False)
    asked = [client.ask(HELLO), client.ask(HELLO)]
    assert [client.replies(correlation) for correlation in asked] == [[], []]
    effects = bench.refuse_token()
    assert [client.reply(correlation, Failed) for correlation in asked] == [REFUSAL] * 2
    assert effects[-1] == UnwatchProcess(1)
    assert bench.handle(TokenRefused(1, REFUSAL)) == []


def test_every_hello_is_answered_when_the_token_is_there(bench: Bench) -> None:
    bench.automatic = False
    client = bench.client(hello=False)
    asked = [client.ask(HELLO), client.ask(HELLO)]
    client.refused(Bind(), ErrorCode.PROTOCOL)
    bench.finish_token()
    first, second = (client.reply(correlation, Welcome) for correlation in asked)
    assert first == second
    assert bench.handle(TokenMade(1, "/run/tokens/other")) == [], "told twice"
    assert bench.handle(TokenRefused(1, REFUSAL)) == []


def test_every_bind_is_answered_by_one_look_at_the_lock(bench: Bench) -> None:
    client = bench.client(hello=False)
    client.hello()
    bench.automatic = False
    bench.locked.add(client.session)
    asked = [client.ask(Bind()), client.ask(Bind())]
    assert bench.checks_wanted == [1]
    bench.finish_check()
    assert [client.reply(correlation, Bound) for correlation in asked] == [Bound()] * 2
    assert bench.handle(TokenChecked(1, held=False)) == [], "nobody asked for it"
    client.call(Stats(), Counted)


def test_a_look_at_a_token_that_is_not_there_says_nothing(bench: Bench) -> None:
    bench.automatic = False
    bench.client(hello=False).ask(HELLO)
    for number in (1, 2):
        assert bench.handle(TokenChecked(number, held=False)) == []


@pytest.mark.parametrize("end", ["goodbye", "exit", "vanish"])
def test_a_session_may_end_before_its_token_is_there(bench: Bench, end: str) -> None:
    bench.automatic = False
    client = bench.client(hello=False)
    hello = client.ask(HELLO)
    match end:
        case "goodbye":
            client.call(Goodbye(), GoodbyeSaid)
            assert client.reply(hello, Failed).code == ErrorCode.CANCELLED
        case "exit":
            assert bench.handle(ProcessExited(1)) == [UnwatchProcess(1)]
        case "vanish":
            assert bench.handle(PeerUnreachable(client.peer)) == [UnwatchProcess(1)]
    assert bench.finish_token() == [UnwatchProcess(1)], "the token that came late goes"
    assert bench.tokens == {}


def test_a_client_that_vanishes_unbound_holds_nothing_and_goes(bench: Bench) -> None:
    client = bench.client(hello=False)
    client.hello()
    assert client.vanish() == [UnwatchProcess(1)]
    client.refused(Bind(), ErrorCode.PROTOCOL)


def test_a_stop_answers_who_waits_for_a_token(bench: Bench) -> None:
    waiting, binding = bench.client(hello=False), bench.client(hello=False)
    binding.hello()
    bench.client().ask(CreateArray(array_spec("y")))
    bench.automatic = False
    hello, bind = waiting.ask(HELLO), binding.ask(Bind())
    bench.stop()
    for client, correlation in ((waiting, hello), (binding, bind)):
        assert client.reply(correlation, Failed).code == ErrorCode.COORDINATOR_UNREACHABLE
    bench.finish_token()
    bench.finish_check()
    assert bench.refuse_making("y") == [Stop()]


# Going on with the next coordinator -------------------------------------------


def test_a_client_goes_on_with_the_next_coordinator(bench: Bench) -> None:
    client = bench.client()
    lease = client.create("x")
    number = client.session
    bench.restart()
    assert bench.watched == {number: client.identity.pid}
    client.reconnect()
    welcome = client.call(Hello("test", "0.1", client.token), Welcome)
    assert (welcome.session, welcome.resumed, welcome.instance) == (number, True, "f00d1")
    mine = held(lease, readonly=False)
    assert client.call(Resume((mine,)), Resumed) == Resumed(())
    described = client.call(Describe("x"), Described)
    assert described.reader_pids == (client.identity.pid,)
    client.call(Detach(lease.lease), Detached)
    assert client.call(Describe("x"), Described).array.readers == 0


def test_holders_keep_their_order_in_whatever_order_they_come_back(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.sealed()
    mine, theirs = client.attach(), other.attach()
    bench.restart()
    other.resume(held(theirs))
    client.resume(held(mine))
    told = client.call(Describe("x", after=0), Described).holders
    assert [one.lease for one in told] == [mine.lease, theirs.lease]
    assert [one.pid for one in told] == [client.identity.pid, other.identity.pid]


def test_numbers_go_on_above_those_of_before(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    lease = client.create("x")
    client.submit()
    before = worker.part().job
    bench.restart()
    client.resume(held(lease, readonly=False))
    worker.resume()
    registered = worker.call(RegisterWorker(), WorkerRegistered)
    created = client.create("y")
    client.submit()
    after = worker.part().job
    other = bench.client()
    for old, new in (
        (lease.lease, created.lease),
        (lease.array.segment.segment_id, created.array.segment.segment_id),
        (client.session, other.session),
        (before, after),
        (1, registered.worker),
    ):
        assert old < 1 << 32 < new


def test_a_session_sleeps_until_its_client_is_heard_of(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.create("x")
    bench.restart()
    assert len(bench.coordinator._state.leases.resuming) == 2
    other.resume()
    assert other.call(Stats(), Counted).sessions == 2
    old, client.peer = client.peer, b""
    client.refused(Stats(), ErrorCode.PROTOCOL)
    client.peer = old
    assert bench.handle(ProcessExited(client.session))[0] == UnwatchProcess(client.session)
    assert bench.unlinked == [1], "its unsealed array goes with it"


@pytest.mark.parametrize("change", ["uid", "pid"])
def test_another_process_does_not_take_a_session_up(bench: Bench, change: str) -> None:
    client = bench.client()
    thief = bench.client(
        hello=False,
        uid=client.identity.uid + (change == "uid"),
        pid=client.identity.pid + (change == "pid"),
    )
    for restart in (False, True):
        if restart:
            bench.restart()
        thief.refused(Hello("test", "0.1", client.token), ErrorCode.NOT_PERMITTED)
    assert client.resume() == Resumed(())


def test_a_process_that_let_go_of_its_lock_begins_anew(bench: Bench) -> None:
    client = bench.client()
    client.create("x")
    bench.restart()
    bench.locked.clear()
    number = client.session
    client.reconnect()
    welcome = client.call(Hello("test", "0.1", client.token), Welcome)
    assert not welcome.resumed and welcome.session > number
    assert bench.watched == {welcome.session: client.identity.pid}
    bench.locked.add(welcome.session)
    client.call(Bind(), Bound)
    assert bench.unlinked == [1], "its unsealed array went with the session"
    assert client.call(Resume((Held(1, 1, readonly=False),)), Resumed) == Resumed((1,))


def test_an_unknown_token_gets_a_new_session_that_may_tell_its_leases(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    mine = held(client.sealed("x"))
    reader = other.attach("x")
    bench.locked.discard(client.session)
    bench.restart()
    other.resume(held(reader))
    assert client.resume(mine) == Resumed(())
    assert client.session > 1 << 32
    assert other.call(Describe("x"), Described).array.readers == 2


def test_leases_are_told_a_page_at_a_time(bench: Bench) -> None:
    client = bench.client()
    first, second = client.sealed("x"), client.sealed("y")
    bench.restart()
    client.resume(held(first), more=True)
    client.call(Resume((held(second),)), Resumed)
    client.refused(Resume(()), ErrorCode.PROTOCOL)
    assert client.call(Describe("y"), Described).array.readers == 1


def test_a_page_told_twice_counts_once(bench: Bench) -> None:
    client = bench.client()
    mine = held(client.sealed("x"))
    bench.restart()
    client.resume(mine, more=True)
    client.call(Resume((mine,)), Resumed)
    assert client.call(Describe("x"), Described).array.readers == 1


def test_what_is_gone_is_told(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    gone, lost, kept = (held(client.sealed(name)) for name in ("gone", "lost", "kept"))
    other.create("theirs")
    unsealed = held(client.attach("theirs"))
    bench.lost.add(lost.segment_id)
    bench.locked.discard(other.session)
    bench.restart()
    root = bench.client(uid=0)
    root.call(Destroy("gone"), Destroyed)
    never = Held(40, 40, readonly=True)
    told = client.resume(gone, lost, kept, unsealed, never, gone)
    assert told == Resumed((gone.segment_id, lost.segment_id, unsealed.segment_id, 40))
    assert bench.unlinked == [unsealed.segment_id, gone.segment_id]
    assert client.call(Describe("kept"), Described).array.readers == 1


def test_who_has_nothing_to_resume_is_told_so(bench: Bench) -> None:
    client = bench.client()
    client.refused(Resume(()), ErrorCode.PROTOCOL)
    client.resume()
    client.refused(Resume((), more=True), ErrorCode.PROTOCOL)


def tell(bench: Bench, client: Client, told: Held, code: ErrorCode) -> Failed:
    """Resume with a lease that is refused, and leaves all as it was."""
    client.reply(greet_again(client), Welcome)
    before = repr(bench.coordinator)
    failed = client.refused(Resume((told,)), code)
    assert repr(bench.coordinator) == before
    return failed


def test_a_lease_of_another_is_not_granted_again(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    mine, theirs = held(client.sealed("x")), held(other.sealed("y"))
    bench.restart()
    other.resume(theirs)
    failed = tell(bench, client, Held(theirs.lease, 1, readonly=True), ErrorCode.NOT_PERMITTED)
    assert failed.had == f"lease {theirs.lease}"
    client.call(Resume((mine,), more=True), Resumed)
    client.refused(Resume((Held(mine.lease, 2, readonly=True),)), ErrorCode.NOT_PERMITTED)


def test_what_is_told_after_a_lease_that_is_known_is_checked_too(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    mine, theirs = held(client.sealed("x")), held(other.sealed("y"))
    client.reply(greet_again(client), Welcome)
    before = repr(bench.coordinator)
    client.refused(Resume((mine, theirs)), ErrorCode.NOT_PERMITTED)
    assert repr(bench.coordinator) == before
    assert client.call(Resume((mine,)), Resumed) == Resumed(())


@pytest.mark.parametrize("number", [-1, 0, (1 << 32) + 1, 1 << 60])
def test_a_number_that_was_never_given_is_refused(bench: Bench, number: int) -> None:
    client = bench.client()
    client.sealed("x")
    bench.restart()
    tell(bench, client, Held(number, 1, readonly=True), ErrorCode.NOT_PERMITTED)


def test_a_number_told_for_two_leases_is_refused(bench: Bench) -> None:
    client = bench.client()
    one, two = held(client.sealed("x")), held(client.sealed("y"))
    bench.restart()
    client.reply(greet_again(client), Welcome)
    twice = Resume((one, Held(one.lease, two.segment_id, readonly=True)))
    client.refused(twice, ErrorCode.PROTOCOL)


def test_a_workers_lease_is_not_granted_again_by_its_number(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.create("x")
    client.submit(("x", "x"))
    worker.part()
    session = bench.coordinator._state.leases.of_number(worker.session)
    assert session is not None
    (lease,) = session.held.values()
    tell(bench, worker, Held(lease.number, 1, readonly=True), ErrorCode.NOT_PERMITTED)


def test_who_may_not_write_does_not_come_to_it_by_resuming(bench: Bench) -> None:
    client, reader = bench.client(), bench.client(uid=1001)
    client.create("x")
    lease = reader.attach("x")
    bench.restart()
    tell(bench, reader, held(lease, readonly=False), ErrorCode.NOT_PERMITTED)
    assert reader.call(Resume((held(lease),)), Resumed) == Resumed(())


def test_what_was_sealed_meanwhile_is_held_read_only(bench: Bench) -> None:
    client = bench.client()
    lease = client.create("x")
    client.ask(Seal("x"))
    bench.write_sealed(min(bench.sealing))
    bench.restart()
    rows = Held(lease.lease, 1, readonly=False, rows=(0, 10))
    assert client.resume(rows) == Resumed(())
    assert client.call(Seal("x"), Sealed).array.sealed


def test_leases_of_a_session_are_limited_in_all() -> None:
    bench = Bench(Limits(max_leases_per_session=2))
    client = bench.client()
    leases = [held(client.sealed("x")), held(client.attach("x"))]
    bench.restart()
    client.reply(greet_again(client), Welcome)
    too_many = (*leases, Held(1 << 20, 1, readonly=True))
    client.refused(Resume(too_many), ErrorCode.NOT_ENOUGH_MEMORY)
    client.call(Resume(tuple(leases)), Resumed)


def test_more_sessions_than_may_open_may_go_on() -> None:
    bench = Bench()
    clients = [bench.client() for _ in range(3)]
    bench.limits = Limits(max_sessions=1)
    bench.restart()
    for client in clients:
        client.resume()
    bench.client(hello=False).refused(HELLO, ErrorCode.NOT_ENOUGH_MEMORY)


# Going on with the same coordinator -------------------------------------------


def test_a_client_whose_connection_was_renewed_keeps_what_it_tells(bench: Bench) -> None:
    client = bench.client()
    lease = client.create("x")
    client.attach("x")  # the reply is lost
    old = client.peer
    assert client.resume(held(lease, readonly=False)) == Resumed(())
    assert client.call(Describe("x"), Described).array.readers == 1
    new, client.peer = client.peer, old
    client.refused(Stats(), ErrorCode.PROTOCOL)
    client.peer = new
    client.call(Goodbye(), GoodbyeSaid)
    assert bench.unlinked == [1]


def test_a_lease_granted_before_the_last_page_is_no_lease_of_before(bench: Bench) -> None:
    client = bench.client()
    client.create("x")
    client.resume(more=True)
    attached = client.attach("x")
    client.call(Resume(()), Resumed)
    assert client.call(Describe("x"), Described).array.readers == 1
    client.call(Detach(attached.lease), Detached)
    assert client.call(Describe("x"), Described).array.readers == 0


def test_a_lease_that_ends_while_resuming_ends_once(bench: Bench) -> None:
    client = bench.client()
    given_back, destroyed = client.create("x"), client.create("y")
    client.resume(more=True)
    client.call(Detach(given_back.lease), Detached)
    client.call(Destroy("y"), Destroyed)
    gone = client.call(Resume((held(destroyed, readonly=False),)), Resumed)
    assert gone == Resumed((destroyed.array.segment.segment_id,))
    assert client.call(Describe("x"), Described).array.readers == 0


def test_only_the_last_connection_is_the_clients(bench: Bench) -> None:
    client = bench.client()
    bench.automatic = False
    first = greet_again(client)
    early = client.peer
    second = greet_again(client)
    (check,) = bench.checks_wanted
    assert check == client_session(bench)
    bench.finish_check()
    assert client.reply(second, Welcome).resumed
    assert isinstance(bench.replies[early, first][0], Welcome)
    client.call(Stats(), Counted)
    client.peer = early
    client.refused(Stats(), ErrorCode.PROTOCOL)


def client_session(bench: Bench) -> int:
    (session,) = bench.coordinator._state.leases.sessions
    return session.number


def test_a_greeting_said_twice_at_the_new_connection_is_answered_twice(bench: Bench) -> None:
    client = bench.client()
    lease = client.create("x")
    bench.automatic = False
    first = greet_again(client)
    second = client.ask(Hello("test", "0.1", client.token))
    bench.finish_check()
    third = client.ask(Hello("test", "0.1", client.token))
    for correlation in (first, second, third):
        assert client.reply(correlation, Welcome).resumed
    client.call(Resume((held(lease, readonly=False),)), Resumed)


def test_a_connection_has_one_session(bench: Bench) -> None:
    client = bench.client()
    other = bench.client(pid=client.identity.pid)
    other.refused(Hello("test", "0.1", client.token), ErrorCode.PROTOCOL)
    bench.automatic = False
    third = bench.client(pid=client.identity.pid, hello=False)
    waiting = third.ask(Hello("test", "0.1", client.token))
    fresh = third.ask(HELLO)
    bench.finish_check()
    assert third.reply(waiting, Failed).code == ErrorCode.PROTOCOL
    bench.finish_token()
    assert not third.reply(fresh, Welcome).resumed
    client.call(Stats(), Counted)


def test_a_session_not_bound_yet_may_be_taken_up(bench: Bench) -> None:
    client = bench.client(hello=False)
    client.hello()
    bench.locked.add(client.session)
    bench.automatic = False
    bind, old = client.ask(Bind()), client.peer
    hello = greet_again(client)
    bench.finish_check()
    assert bench.replies[old, bind] == [Bound()]
    assert client.reply(hello, Welcome).resumed
    client.call(Resume(()), Resumed)


def test_a_session_that_ends_while_its_lock_is_looked_at(bench: Bench) -> None:
    client = bench.client()
    bench.automatic = False
    correlation = greet_again(client)
    bench.handle(ProcessExited(client_session(bench)))
    assert client.reply(correlation, Failed).code == ErrorCode.CANCELLED
    bench.checks_wanted.clear()
    assert bench.handle(TokenChecked(1, held=True)) == []


def test_of_two_hellos_that_found_no_lock_each_gets_its_session(bench: Bench) -> None:
    client = bench.client()
    bench.locked.clear()
    bench.automatic = False
    first, early = greet_again(client), client.peer
    again = client.ask(Hello("test", "0.1", client.token))
    second = greet_again(client)
    bench.finish_check()
    assert len(bench.tokens_wanted) == 2
    bench.finish_token()
    bench.finish_token()
    welcomes = [*bench.replies[early, first], *bench.replies[early, again]]
    one, same = welcomes
    assert one == same
    assert client.reply(second, Welcome) != one


def test_a_hello_that_found_no_lock_is_refused_where_there_is_no_room() -> None:
    bench = Bench(Limits(max_sessions=1))
    client = bench.client()
    bench.locked.clear()
    bench.automatic = False
    first, early = greet_again(client), client.peer
    second = greet_again(client)
    bench.finish_check()
    bench.finish_token()
    assert isinstance(bench.replies[early, first][0], Welcome)
    assert client.reply(second, Failed).code == ErrorCode.NOT_ENOUGH_MEMORY


def test_no_session_is_taken_up_or_opened_while_stopping(bench: Bench) -> None:
    client = bench.client()
    client.ask(CreateArray(array_spec("y")))
    bench.stop()
    correlation = greet_again(client)
    assert client.reply(correlation, Failed).code == ErrorCode.COORDINATOR_UNREACHABLE


def test_jobs_do_not_go_on_at_another_connection(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job, old = client.submit(), client.peer
    part = worker.part()
    client.resume()
    assert bench.replies[old, job] == []
    assert worker.reply(worker.done(part), PartAccepted).stale
    assert client.call(Stats(), Counted).jobs_failed == 1


def test_a_worker_that_registers_at_a_new_connection_is_at_nothing(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job = client.submit(rows=(0, 1))
    lost = worker.part()
    worker.resume()
    assert worker.notices(RunPart) == [], "it may still be at it"
    worker.call(RegisterWorker(), WorkerRegistered)
    again = worker.part()
    assert (again.part, again.epoch) == (lost.part, lost.epoch + 1)
    assert worker.reply(worker.done(lost), PartAccepted).stale
    worker.call(RegisterWorker(), WorkerRegistered)
    assert not worker.reply(worker.done(again), PartAccepted).stale
    assert client.replies(job) != []


def test_no_loss_is_counted_for_a_connection(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job = client.submit(rows=(0, 1))
    for _ in range(5):
        worker.part()
        worker.resume()
        worker.call(RegisterWorker(), WorkerRegistered)
    worker.done(worker.part())
    client.reply(job, JobDone)


def test_a_report_of_an_ended_job_that_was_lost_leaves_the_worker_idle(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    first = client.submit(rows=(0, 1))
    worker.part()
    client.call(Cancel(first), Cancelled)
    second = client.submit(rows=(0, 1))
    worker.resume()
    worker.call(RegisterWorker(), WorkerRegistered)
    worker.done(worker.part())
    client.reply(second, JobDone)


def test_a_worker_at_a_new_connection_gets_no_part_before_it_registers(bench: Bench) -> None:
    """Its registration, already on its way, would take from it what it was just sent."""
    client, worker = bench.client(), bench.worker()
    worker.resume()
    job = client.submit(rows=(0, 1))
    assert worker.notices(RunPart) == []
    assert client.call(Stats(), Counted).jobs_waiting == 1
    worker.call(RegisterWorker(), WorkerRegistered)
    worker.done(worker.part())
    assert client.reply(job, JobDone)


def test_a_worker_that_runs_again_is_told_of_parts(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    worker.vanish()
    client.submit(rows=(0, 1))
    assert worker.notices(RunPart) == []
    assert client.call(Stats(), Counted).jobs_waiting == 1
    bench.handle(WorkerContinued(client.session))
    assert worker.notices(RunPart) == []
    bench.handle(WorkerContinued(worker.session))
    worker.part()


def test_a_job_that_counts_on_workers_that_cannot_be_told_is_not_taken(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    worker.vanish()
    asked = client.call(SubmitJob("gather", (), (0, 1), workers=1), FewerWorkers)
    assert asked.present == 0


# Asked again ------------------------------------------------------------------


def test_a_creation_of_before_counts_as_made_now(bench: Bench) -> None:
    client = bench.client()
    client.ask(CreateArray(array_spec("x")))
    bench.write_made(min(bench.making))
    bench.restart()
    client.resume()
    created = client.call(CreateArray(array_spec("x"), again=True), ArrayCreated)
    assert created.array.segment.segment_id == 1
    assert created.lease > 1 << 32
    client.refused(CreateArray(array_spec("x"), again=True), ErrorCode.ARRAY_EXISTS)


def test_a_creation_under_way_is_joined(bench: Bench) -> None:
    client = bench.client()
    before, old = client.ask(CreateArray(array_spec("x"))), client.peer
    client.resume()
    asked = client.ask(CreateArray(array_spec("x"), again=True))
    client.refused(CreateArray(array_spec("x"), again=True), ErrorCode.ARRAY_EXISTS)
    bench.finish_making("x")
    assert client.reply(asked, ArrayCreated).array.readers == 1
    assert bench.replies[old, before] == []


def test_a_creation_that_was_given_up_is_made_anew(bench: Bench) -> None:
    client = bench.client()
    before, old = client.ask(CreateArray(array_spec("x"))), client.peer
    client.call(Cancel(before), Cancelled)
    client.resume()
    asked = client.ask(CreateArray(array_spec("x"), again=True))
    bench.finish_making("x", token=1)
    bench.finish_making("x")
    assert client.reply(asked, ArrayCreated).array.segment.segment_id == 2
    assert bench.replies[old, before] == bench.replies[client.peer, before] == []


def test_a_creation_that_is_not_asked_for_again_stays_its_makers(bench: Bench) -> None:
    client = bench.client()
    client.ask(CreateArray(array_spec("x")))
    client.resume()
    effects = bench.finish_making("x")
    assert not any(isinstance(effect, Send) for effect in effects)
    assert client.call(Describe("x"), Described).array.readers == 0
    assert client.call(CreateArray(array_spec("x"), again=True), ArrayCreated).array.readers == 1


def test_a_creation_nobody_asked_for_again_ends_with_its_session(bench: Bench) -> None:
    client = bench.client()
    client.ask(CreateArray(array_spec("x")))
    client.resume()
    client.exit()
    assert bench.cancelled == {1}
    bench.finish_making("x")
    assert bench.unlinked == [1]


@pytest.mark.parametrize(
    "spec",
    [array_spec("x", 5), ArraySpec("x", (1000,), "<i8"), array_spec("theirs"), array_spec("done")],
)
def test_what_is_not_the_same_is_not_made_again(bench: Bench, spec: ArraySpec) -> None:
    client, other = bench.client(), bench.client()
    other.create("theirs")
    lease = client.create("x")
    client.call(Detach(lease.lease), Detached)
    done = client.sealed("done")
    client.call(Detach(done.lease), Detached)
    client.refused(CreateArray(spec, again=True), ErrorCode.ARRAY_EXISTS)


def test_what_is_not_there_is_made(bench: Bench) -> None:
    client = bench.client()
    asked = client.ask(CreateArray(array_spec("x"), again=True))
    bench.finish_making("x")
    assert client.reply(asked, ArrayCreated)


def test_a_seal_under_way_is_joined(bench: Bench) -> None:
    client = bench.client()
    mine = held(client.create("x"), readonly=False)
    before, old = client.ask(Seal("x")), client.peer
    client.resume(mine)
    asked = client.ask(Seal("x"))
    client.refused(Seal("x"), ErrorCode.ARRAY_BUSY)
    bench.finish_sealing()
    assert client.reply(asked, Sealed).array.sealed
    assert bench.replies[old, before] == []
