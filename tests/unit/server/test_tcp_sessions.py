"""Sessions over TCP: leases that run out, what they may not do, and how they go on."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    NOBODY,
    ArrayCreated,
    Attach,
    Bind,
    Bound,
    Counted,
    CreateArray,
    Describe,
    Described,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Held,
    Hello,
    JobDone,
    JobProgress,
    List,
    Listed,
    Operand,
    Publish,
    RegisterWorker,
    Renew,
    Renewed,
    Request,
    Resume,
    Resumed,
    Seal,
    Sealed,
    Shutdown,
    Stats,
    SubmitJob,
    Welcome,
)
from hugepool_server.coordinator import Limits
from hugepool_server.events import (
    MakeToken,
    ProcessExited,
    Send,
    UnwatchProcess,
    WatchProcess,
)
from hugepool_server.records import OVER_TCP, Identity
from support.coordination import STEP_NS, UID, Bench, Client, array_spec, held

LEASE_NS = 5_000_000_000
MARGIN_NS = 1_000_000


@pytest.fixture
def bench() -> Bench:
    return Bench(Limits(lease_ns=LEASE_NS))


def sessions(bench: Bench) -> int:
    return len(bench.coordinator._state.leases.sessions)


def names(client: Client) -> list[str]:
    return [info.spec.name for info in client.call(List(), Listed).arrays]


# Beginning --------------------------------------------------------------------


def test_a_session_begins_with_hello_alone_and_is_told_its_lease(bench: Bench) -> None:
    remote = bench.remote(hello=False)
    bench.automatic = False
    correlation = remote.ask(Hello("far", "0.1"))
    (wanted,) = bench.tokens_wanted
    assert wanted == MakeToken(
        wanted.session, Identity(NOBODY, NOBODY, 0, "tcp", wanted.session), "far", LEASE_NS
    )
    assert not bench.watched, "there is no process to be watched"
    bench.finish_token()
    welcome = remote.reply(correlation, Welcome)
    assert (welcome.lease_ns, welcome.resumed) == (LEASE_NS, False)
    assert welcome.token == bench.tokens[welcome.session].token, "its name, not its path"
    assert names(remote) == []


def test_a_local_session_has_no_lease(bench: Bench) -> None:
    client = bench.client()
    assert client.call(Hello("test", "0.1"), Welcome).lease_ns == 0
    assert bench.coordinator.wake_ns is None
    failed = client.refused(Renew(), ErrorCode.PROTOCOL)
    assert "no lease" in failed.message and str(client.identity.pid) in failed.had


def test_nothing_is_served_before_there_is_a_token(bench: Bench) -> None:
    bench.automatic = False
    remote = bench.remote(hello=False)
    first = remote.ask(Hello("far", "0.1"))
    remote.refused(List(), ErrorCode.PROTOCOL)
    second = remote.ask(Hello("far", "0.1"))
    assert bench.coordinator.wake_ns is None, "its lease has not begun"
    bench.finish_token()
    assert remote.reply(first, Welcome) == remote.reply(second, Welcome)
    assert remote.call(Bind(), Bound) == Bound(), "there is nothing to lock, and no harm in it"


def test_without_a_token_there_is_no_session(bench: Bench) -> None:
    bench.automatic = False
    remote = bench.remote(hello=False)
    correlation = remote.ask(Hello("far", "0.1"))
    bench.refuse_token()
    assert remote.reply(correlation, Failed).code == ErrorCode.NOT_ENOUGH_PAGES
    assert sessions(bench) == 0


def test_a_token_that_comes_when_the_coordinator_stops_begins_a_lease_all_the_same(
    bench: Bench,
) -> None:
    bench.automatic = False
    maker = bench.client(hello=False)
    bench.automatic = True
    maker.open()
    maker.ask(CreateArray(array_spec()))
    bench.automatic = False
    remote = bench.remote(hello=False)
    remote.ask(Hello("far", "0.1"))
    bench.stop()
    bench.finish_token()
    bench.pass_time(LEASE_NS)
    assert sessions(bench) == 1


def test_no_two_are_the_same_and_none_is_anybody_here(bench: Bench) -> None:
    one, other = bench.remote(), bench.remote()
    first, second = (
        bench.coordinator._state.leases.of_number(client.session).identity  # type: ignore[union-attr]
        for client in (one, other)
    )
    assert first.user != second.user
    assert first.user != Identity(NOBODY, NOBODY, 0).user
    assert first.process != Identity(NOBODY, NOBODY, 0).process
    assert (first.told_user, OVER_TCP.told_user) == (
        f"a client over TCP, session {one.session}",
        "a client over TCP",
    )
    assert repr(bench.coordinator._state.leases.of_peer(one.peer)).startswith(
        f"<Session {one.session} of a client over TCP: 0 leases"
    )


# The lease --------------------------------------------------------------------


def test_a_session_that_is_not_renewed_ends_with_its_lease_and_not_before(bench: Bench) -> None:
    remote = bench.remote()
    began_ns = bench.now_ns
    assert bench.coordinator.wake_ns == began_ns + LEASE_NS
    bench.pass_time(LEASE_NS - MARGIN_NS)
    assert sessions(bench) == 1
    effects = bench.pass_time(MARGIN_NS)
    assert effects == [UnwatchProcess(1)]
    assert sessions(bench) == 0 and bench.coordinator.wake_ns is None
    remote.refused(List(), ErrorCode.LEASE_EXPIRED)


def test_a_renewal_begins_the_lease_anew(bench: Bench) -> None:
    remote = bench.remote()
    for _ in range(3):
        bench.pass_time(LEASE_NS - MARGIN_NS)
        assert remote.call(Renew(), Renewed) == Renewed()
        assert bench.coordinator.wake_ns == bench.now_ns + LEASE_NS
    bench.pass_time(LEASE_NS)
    assert sessions(bench) == 0


def test_other_requests_do_not_for_the_client_does_not_count_from_them(bench: Bench) -> None:
    remote = bench.remote()
    ends_ns = bench.coordinator.wake_ns
    bench.pass_time(LEASE_NS // 2)
    names(remote)
    assert bench.coordinator.wake_ns == ends_ns


def test_a_renewal_that_comes_too_late_finds_no_session(bench: Bench) -> None:
    """Also where nothing else happened since: the clock alone decides."""
    remote = bench.remote()
    bench.now_ns += LEASE_NS - STEP_NS
    failed = remote.refused(Renew(), ErrorCode.LEASE_EXPIRED)
    assert "connect() again" in failed.remedy
    assert sessions(bench) == 0


def test_the_end_of_a_lease_gives_everything_back_and_says_nothing(bench: Bench) -> None:
    local, remote, worker = bench.client(), bench.remote(), bench.worker()
    local.sealed("x")
    remote.attach("x")
    remote.create("mine")
    remote.sealed("kept")
    making = remote.ask(CreateArray(array_spec("making")))
    job = remote.submit(("x", "x"))
    part = worker.part()
    effects = bench.pass_time(LEASE_NS)
    assert not [effect for effect in effects if isinstance(effect, Send)]
    assert names(local) == ["kept", "x"]
    worker.done(part)
    bench.finish_making("making", token=min(bench.making))
    assert names(local) == ["kept", "x"]
    assert not remote.replies(making) and not remote.replies(job)
    assert local.call(Stats(), Counted).jobs_failed == 1
    # Its creator's lease, and the worker's until it is told to let go.
    assert local.call(Describe("x"), Described).array.readers == 2


def test_each_session_has_its_own_lease(bench: Bench) -> None:
    early, late = bench.remote(), bench.remote()
    bench.pass_time(LEASE_NS // 2)
    early.call(Renew(), Renewed)
    bench.pass_time(LEASE_NS // 2)
    assert names(early) == []
    late.refused(List(), ErrorCode.LEASE_EXPIRED)


def test_the_coordinator_wakes_for_what_is_due_first(bench: Bench) -> None:
    local, worker = bench.client(), bench.worker()
    local.sealed("x")
    local.submit(("x", "x"))
    worker.exit()
    patience_ns = bench.coordinator.wake_ns
    assert patience_ns is not None
    bench.remote()
    assert bench.coordinator.wake_ns == bench.now_ns + LEASE_NS < patience_ns
    bench.pass_time(LEASE_NS)
    assert bench.coordinator.wake_ns == patience_ns


def test_a_peer_that_does_not_read_keeps_its_lease(bench: Bench) -> None:
    remote = bench.remote()
    remote.vanish()
    assert sessions(bench) == 1
    remote.call(Renew(), Renewed)


def test_goodbye_ends_it_at_once(bench: Bench) -> None:
    remote = bench.remote()
    remote.call(Goodbye(), GoodbyeSaid)
    assert sessions(bench) == 0 and bench.coordinator.wake_ns is None


# What it may do ---------------------------------------------------------------


def test_it_looks_at_everything_and_reads_what_others_made(bench: Bench) -> None:
    local, remote = bench.client(), bench.remote()
    local.create("open")
    local.sealed("x")
    assert names(remote) == ["open", "x"]
    assert remote.call(Stats(), Counted).arrays == 2
    attached = remote.attach("x")
    (holder,) = remote.call(Describe("x", 0), Described).holders[1:]
    assert (holder.uid, holder.pid) == (NOBODY, 0)
    remote.call(Detach(attached.lease), Detached)


def test_its_own_arrays_are_its_own(bench: Bench) -> None:
    remote = bench.remote()
    created = remote.create("mine")
    assert bench.disk[created.array.segment.segment_id].creator.session == remote.session
    remote.attach("mine", readonly=False)
    remote.ask(Seal("mine"))
    bench.finish_sealing()
    remote.publish("mine", "next")
    remote.call(Destroy("mine"), Destroyed)
    assert names(remote) == []


@pytest.mark.parametrize("of_a_remote", [False, True], ids=["a local", "a remote"])
def test_what_others_made_is_not_its_own(bench: Bench, of_a_remote: bool) -> None:
    other = bench.remote() if of_a_remote else bench.client(uid=UID)
    other.create("open")
    other.sealed("x")
    remote = bench.remote()
    remote.sealed("mine")
    asked: list[Request] = [
        Attach("open", readonly=False),
        Seal("open"),
        Destroy("open"),
        Destroy("x"),
        Publish("stolen", "x"),
        Publish("x", "mine"),
    ]
    for request in asked:
        failed = remote.refused(request, ErrorCode.NOT_PERMITTED)
        assert "session" in failed.had and failed.needed != failed.had
        assert "ipc://" in failed.remedy
    assert names(remote) == ["mine", "open", "x"]


def test_its_user_here_and_root_may_put_its_arrays_away(bench: Bench) -> None:
    remote = bench.remote()
    remote.sealed("a")
    remote.sealed("b")
    bench.pass_time(LEASE_NS)
    stranger = bench.client(uid=UID)
    failed = stranger.refused(Destroy("a"), ErrorCode.NOT_PERMITTED)
    assert failed.had == f"uid {UID}"
    assert "as that user" in failed.remedy and "ipc://" not in failed.remedy
    bench.client(uid=0).call(Destroy("a"), Destroyed)
    bench.client(uid=bench.coordinator.uid).call(Destroy("b"), Destroyed)


def test_it_is_no_worker_leads_no_crew_and_stops_nobody(bench: Bench) -> None:
    bench.client().sealed("x")
    remote = bench.remote()
    standing = SubmitJob("crew", (Operand("x", "x"),), (0, 1), standing=True)
    member = SubmitJob("crew", (Operand("x", "x"),), (0, 1))
    for request in (RegisterWorker(), standing, member, Shutdown()):
        remote.refused(request, ErrorCode.NOT_PERMITTED)
    assert remote.call(Stats(), Counted).workers == ()


def test_it_declares_no_rows_not_even_of_its_own_array(bench: Bench) -> None:
    remote = bench.remote()
    created = remote.create("mine")
    asked = Attach("mine", readonly=False, rows=(0, 10))
    assert "rows" in remote.refused(asked, ErrorCode.NOT_PERMITTED).message
    bench.restart()
    remote.reconnect()
    remote.call(Hello("test", "0.1", remote.token), Welcome)
    segment_id = created.array.segment.segment_id
    told = Resume((Held(created.lease, segment_id, False, (0, 10)),))
    remote.refused(told, ErrorCode.NOT_PERMITTED)


def test_its_jobs_run_on_local_workers(bench: Bench) -> None:
    worker, remote = bench.worker(), bench.remote()
    bench.client().sealed("x")
    remote.create("out")
    job = remote.submit(("x", "x"), ("out", "out", True), rows=(0, 10))
    worker.done(worker.part())
    assert len(remote.reply(job, JobDone).timings) == 1
    bench.client(uid=0).create("others")
    refused = remote.submit(("x", "x"), ("out", "others", True), rows=(0, 10))
    assert remote.reply(refused, Failed).code == ErrorCode.NOT_PERMITTED


def test_it_is_told_how_far_its_job_is(bench: Bench) -> None:
    worker, remote = bench.worker(), bench.remote()
    bench.client().sealed("x")
    wanted = SubmitJob("gather", (Operand("x", "x"),), (0, 10, 20), progress=True)
    job = remote.ask(wanted)
    worker.done(worker.part())
    assert remote.notices(JobProgress) == [JobProgress(1, 2)]
    worker.done(worker.part())
    assert remote.reply(job, JobDone) and not remote.notices(JobProgress)


def test_they_leave_room_for_local_sessions() -> None:
    bench = Bench(Limits(max_sessions=4))
    bench.client()  # of which there may be more than half
    for _ in range(2):
        bench.remote()
    late = bench.remote(hello=False)
    failed = late.refused(Hello("far", "0.1"), ErrorCode.NOT_ENOUGH_MEMORY)
    assert "over TCP" in failed.message and (failed.needed, failed.had) == (
        "fewer than 2 sessions",
        "2",
    )
    bench.client()
    assert Bench(Limits(max_sessions=1)).remote().session == 1
    small = Bench(Limits(max_sessions=2))
    small.remote()
    small.remote(hello=False).refused(Hello("far", "0.1"), ErrorCode.NOT_ENOUGH_MEMORY)


def test_all_of_them_share_one_quota() -> None:
    bench = Bench(Limits(max_bytes_per_user=12_000))
    bench.remote().create("a")
    assert (
        "quota"
        in bench.remote().refused(CreateArray(array_spec("b")), ErrorCode.QUOTA_EXCEEDED).message
    )
    bench.client().create("b")


def test_others_are_told_of_it_as_what_it_is() -> None:
    bench = Bench(Limits(max_bytes_per_user=20_000))
    remote, client = bench.remote(), bench.client(uid=0)
    who = f"a client over TCP, session {remote.session}"
    making = remote.ask(CreateArray(array_spec("x")))
    assert client.refused(Attach("x"), ErrorCode.ARRAY_BUSY).had == f"creation by {who}"
    bench.finish_making("x")
    remote.reply(making, ArrayCreated)
    taken = client.refused(CreateArray(array_spec("x")), ErrorCode.ARRAY_EXISTS)
    assert taken.message == f"the name is taken by what {who} made"
    client.create("next")
    client.sealed("new")
    unsealed = client.refused(Publish("x", "new"), ErrorCode.ARRAY_BUSY)
    assert unsealed.had == f"an array that {who} is still at"
    quota = remote.refused(CreateArray(array_spec("z", 10_000)), ErrorCode.QUOTA_EXCEEDED)
    assert quota.message == "the array would pass the quota of the arrays of clients over TCP"
    attached = remote.attach("new")
    assert client.call(Describe("new"), Described).reader_pids == (client.identity.pid,)
    bench.restart()
    remote.reconnect()
    remote.call(Hello("test", "0.1", remote.token), Welcome)
    client.resume()
    late = client.refused(Attach("x", readonly=False, rows=(0, 5)), ErrorCode.ARRAY_BUSY)
    assert late.had == f"clients that have not told their rows: {who}"
    remote.call(Resume((held(attached),)), Resumed)


# Going on ---------------------------------------------------------------------


def test_it_goes_on_at_another_connection_by_its_secret_name(bench: Bench) -> None:
    bench.client().sealed("x")
    remote = bench.remote()
    number, attached = remote.session, remote.attach("x")
    former = remote.peer
    bench.pass_time(LEASE_NS - MARGIN_NS)
    remote.reconnect()
    welcome = remote.call(Hello("test", "0.1", remote.token), Welcome)
    assert (welcome.session, welcome.resumed, welcome.lease_ns) == (number, True, LEASE_NS)
    assert bench.coordinator.wake_ns == bench.now_ns + LEASE_NS
    assert remote.call(Resume((held(attached),)), Resumed) == Resumed(())
    remote.peer = former
    remote.refused(List(), ErrorCode.LEASE_EXPIRED)


def test_a_second_hello_at_its_connection_renews_it(bench: Bench) -> None:
    remote = bench.remote()
    bench.pass_time(LEASE_NS // 2)
    welcome = remote.call(Hello("test", "0.1"), Welcome)
    assert (welcome.session, welcome.token) == (remote.session, remote.token)
    assert bench.coordinator.wake_ns == bench.now_ns + LEASE_NS


def test_a_name_that_nobody_has_opens_no_session(bench: Bench) -> None:
    """A client that was away for too long must hear it, not go on with nothing."""
    remote = bench.remote(hello=False)
    remote.refused(Hello("test", "0.1", "f" * 32), ErrorCode.LEASE_EXPIRED)
    assert sessions(bench) == 0
    assert remote.hello().resumed is False


def test_what_comes_back_too_late_opens_no_session(bench: Bench) -> None:
    remote = bench.remote()
    bench.pass_time(LEASE_NS)
    remote.reconnect()
    remote.refused(Hello("test", "0.1", remote.token), ErrorCode.LEASE_EXPIRED)
    assert sessions(bench) == 0


def test_its_name_is_good_for_nobody_here_and_theirs_not_for_it(bench: Bench) -> None:
    local, remote = bench.client(), bench.remote()
    thief = bench.client(hello=False)
    failed = thief.refused(Hello("thief", "0.1", remote.token), ErrorCode.NOT_PERMITTED)
    assert "TCP" in failed.needed
    far = bench.remote(hello=False)
    failed = far.refused(Hello("far", "0.1", local.token), ErrorCode.NOT_PERMITTED)
    assert failed.had == "a client over TCP"
    bench.locked.add(remote.session)  # whatever somebody does to that file
    thief.refused(Hello("thief", "0.1", remote.token), ErrorCode.NOT_PERMITTED)


def test_a_routing_id_of_the_other_kind_speaks_for_nobody(bench: Bench) -> None:
    local, remote = bench.client(), bench.remote()
    for client, identity in ((local, OVER_TCP), (remote, local.identity)):
        correlation = client.ask(List(), identity=identity)
        assert client.reply(correlation, Failed).code == ErrorCode.NOT_PERMITTED


def test_one_session_a_connection(bench: Bench) -> None:
    one, other = bench.remote(), bench.remote()
    one.refused(Hello("test", "0.1", other.token), ErrorCode.PROTOCOL)


# The next coordinator ---------------------------------------------------------


def test_a_restart_begins_its_lease_anew(bench: Bench) -> None:
    local, remote = bench.client(), bench.remote()
    local.sealed("x")
    attached, created = remote.attach("x"), remote.create("mine")
    number = remote.session
    bench.pass_time(LEASE_NS - MARGIN_NS)
    effects = bench.restart()
    assert effects == [WatchProcess(local.session, local.identity.pid)]
    assert bench.coordinator.wake_ns == bench.now_ns + LEASE_NS
    bench.pass_time(LEASE_NS - MARGIN_NS)
    told = (held(attached), held(created, readonly=False))
    assert remote.resume(*told) == Resumed(())
    assert remote.session == number
    remote.ask(Seal("mine"))
    bench.finish_sealing()
    assert names(remote) == ["mine", "x"]


def test_after_a_restart_it_ends_with_its_lease_if_it_does_not_come_back(bench: Bench) -> None:
    remote = bench.remote()
    remote.create("mine")
    bench.restart()
    bench.pass_time(LEASE_NS - MARGIN_NS)
    watcher = bench.client()
    assert names(watcher) == ["mine"]
    bench.pass_time(MARGIN_NS)
    assert names(watcher) == []
    assert len(bench.tokens) == 1
    remote.reconnect()
    remote.refused(Hello("test", "0.1", remote.token), ErrorCode.LEASE_EXPIRED)


def test_the_lease_that_was_told_holds_at_the_next_coordinator_too(bench: Bench) -> None:
    """Else one with a shorter setting would end what its client counts on."""
    remote = bench.remote()
    bench.limits = Limits(lease_ns=1_000_000_000)
    bench.restart()
    bench.pass_time(LEASE_NS - MARGIN_NS)
    remote.reconnect()
    assert remote.call(Hello("test", "0.1", remote.token), Welcome).lease_ns == LEASE_NS
    assert bench.remote().call(Hello("test", "0.1"), Welcome).lease_ns == 1_000_000_000


def test_one_that_calls_itself_a_worker_is_waited_for_by_nobody(bench: Bench) -> None:
    owner = bench.client()
    owner.create("out")
    bench.remote(name="worker")
    worker = bench.worker()
    bench.restart()
    owner.resume(Held(1 + (0 << 32), 1, readonly=False))
    worker.resume()
    worker.ask(RegisterWorker())
    correlation = owner.submit(("out", "out", True), rows=(0, 10))
    assert worker.part().part == 0
    assert not owner.replies(correlation)


def test_seals_under_way_are_told_to_who_asks_again(bench: Bench) -> None:
    remote = bench.remote()
    created = remote.create("mine")
    remote.ask(Seal("mine"))
    remote.resume(held(created, readonly=False))
    again = remote.ask(Seal("mine"))
    bench.finish_sealing()
    assert remote.reply(again, Sealed).array.sealed


def test_an_exit_that_is_told_of_it_is_none_of_a_process(bench: Bench) -> None:
    """No daemon says so; if one did, the session would be over as any other."""
    remote = bench.remote()
    bench.handle(ProcessExited(remote.session))
    assert sessions(bench) == 0 and bench.coordinator.wake_ns is None
