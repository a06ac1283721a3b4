"""What the coordinator answers and wants done, one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common import wire
from hugepool_common.errors import ErrorCode, InvalidSpecError
from hugepool_common.messages import (
    CREW_KERNEL,
    PAGE_OF_HOLDERS,
    PAGE_OF_JOBS,
    ArrayCreated,
    Attach,
    Attached,
    Bind,
    Cancel,
    Cancelled,
    CoordinatorStopping,
    Counted,
    CreateArray,
    CreateProgress,
    Describe,
    Described,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    DropSegment,
    Failed,
    FewerWorkers,
    Goodbye,
    GoodbyeSaid,
    Hello,
    JobDone,
    JobInfo,
    JobProgress,
    JobsListed,
    List,
    Listed,
    ListJobs,
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
    Shutdown,
    ShuttingDown,
    Stats,
    SubmitJob,
    Timing,
    TimingReported,
    Welcome,
    WorkerRegistered,
    WorkersChanged,
)
from hugepool_common.spec import MAX_MEMBERS, ArraySpec, Member
from hugepool_server.coordinator import Coordinator, Limits
from hugepool_server.events import (
    CancelSegment,
    MakeSegment,
    MakeToken,
    PeerUnreachable,
    ProcessExited,
    RequestReceived,
    SealRefused,
    SealSegment,
    SegmentMade,
    SegmentProgress,
    SegmentRefused,
    SegmentSealed,
    Send,
    Stop,
    StopRequested,
    TokenChecked,
    TokenMade,
    TroubleSeen,
    UnlinkSegment,
    UnwatchProcess,
    WatchProcess,
)
from hugepool_server.records import Identity
from support.coordination import (
    COORDINATOR_UID,
    REFUSAL,
    STEP_NS,
    Bench,
    Client,
    array_spec,
    segment_of,
)

TIMING = Timing("gather")
SOME_REQUESTS: list[Request] = [
    CreateArray(array_spec("y")),
    Attach("x"),
    Detach(1),
    Seal("x"),
    Destroy("x"),
    List(),
    Describe("x"),
    Stats(),
    RegisterWorker(),
    SubmitJob("gather", (), (0, 1)),
    PartDone(1, 0, 1, TIMING),
    PartFailed(1, 0, 1, REFUSAL),
    ReportTiming(TIMING),
    Shutdown(),
    Goodbye(),
    Cancel(1),
]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Sessions ---------------------------------------------------------------------


def test_hello_opens_a_session_and_watches_the_process(bench: Bench) -> None:
    client = bench.client(hello=False)
    event = RequestReceived(client.peer, client.identity, 7, Hello("me", "0.1"))
    effects = bench.handle(event)
    assert effects == [
        WatchProcess(1, client.identity.pid),
        MakeToken(1, client.identity, "me"),
    ]
    path = f"/run/tokens/{1:032x}"
    welcome = Welcome(1, "0.1", "f00d0", 1, token=path, durable=True)
    assert client.replies(7) == [welcome]
    assert bench.handle(event) == [Send(client.peer, 7, welcome)], "said twice: same session"


@pytest.mark.parametrize("request_", SOME_REQUESTS, ids=lambda request: type(request).__name__)
def test_hello_must_come_first(bench: Bench, request_: Request) -> None:
    bench.client().create("x")
    before = repr(bench.coordinator)
    bench.client(hello=False).refused(request_, ErrorCode.PROTOCOL)
    assert repr(bench.coordinator) == before


@pytest.mark.parametrize("request_", [Hello("me", "0.1"), *SOME_REQUESTS])
@pytest.mark.parametrize("change", ["uid", "pid"])
def test_a_session_belongs_to_one_process(bench: Bench, request_: Request, change: str) -> None:
    client = bench.client()
    client.create("x")
    before = repr(bench.coordinator)
    uid, gid, pid = client.identity.uid, client.identity.gid, client.identity.pid
    thief = Identity(uid + 1, gid, pid) if change == "uid" else Identity(uid, gid, pid + 1)
    correlation = client.ask(request_, identity=thief)
    assert client.reply(correlation, Failed).code == ErrorCode.NOT_PERMITTED
    assert repr(bench.coordinator) == before


def test_another_gid_is_the_same_process(bench: Bench) -> None:
    client = bench.client()
    same = Identity(client.identity.uid, 4242, client.identity.pid)
    assert client.reply(client.ask(Stats(), identity=same), Counted)


def test_sessions_are_limited() -> None:
    bench = Bench(Limits(max_sessions=1))
    first = bench.client()
    second = bench.client(hello=False)
    second.refused(Hello("me", "0.1"), ErrorCode.NOT_ENOUGH_MEMORY)
    first.call(Goodbye(), GoodbyeSaid)
    second.call(Hello("me", "0.1"), Welcome)


def test_goodbye_closes_everything(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.sealed("kept")
    client.create("lost")
    other.create("theirs")
    client.attach("theirs")
    client.call(Goodbye(), GoodbyeSaid)
    assert bench.watched == {other.session: other.identity.pid}
    assert bench.unlinked == [2]
    listed = other.call(List(), Listed)
    assert [(info.spec.name, info.readers) for info in listed.arrays] == [
        ("kept", 0),
        ("theirs", 1),
    ]
    client.refused(Stats(), ErrorCode.PROTOCOL)


def test_goodbye_answers_what_is_under_way(bench: Bench) -> None:
    client = bench.client()
    client.create("z")
    sealing = client.ask(Seal("z"))
    creating = client.ask(CreateArray(array_spec("x")))
    client.call(Goodbye(), GoodbyeSaid)
    for correlation in (creating, sealing):
        assert client.reply(correlation, Failed).code == ErrorCode.CANCELLED
    bench.finish_making("x", token=3)
    bench.finish_sealing()
    for correlation in (creating, sealing):
        client.reply(correlation, Failed)


def test_a_dead_process_is_not_answered(bench: Bench) -> None:
    client = bench.client()
    correlation = client.ask(CreateArray(array_spec("x")))
    effects = client.exit()
    assert effects == [CancelSegment(1), UnwatchProcess(1)]
    bench.refuse_making("x")
    assert client.replies(correlation) == []
    assert bench.handle(ProcessExited(1)) == [], "said twice"


def test_an_unreachable_client_keeps_what_it_has_until_it_dies(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.create("x")
    creating = client.ask(CreateArray(array_spec("y")))
    assert client.vanish() == []
    bench.finish_making("y")
    assert client.replies(creating) == [], "nothing is sent to it"
    described = other.call(Describe("y"), Described)
    assert described.reader_pids == (client.identity.pid,)
    client.call(Stats(), Counted)  # heard of again
    client.exit()
    assert sorted(bench.unlinked) == [1, 2]


def test_an_unknown_peer_may_vanish(bench: Bench) -> None:
    assert bench.handle(PeerUnreachable(b"nobody")) == []


# Creating ---------------------------------------------------------------------


def test_create_makes_a_segment_then_grants_a_writable_lease(bench: Bench) -> None:
    client = bench.client()
    request = CreateArray(array_spec("x"), "on", "2M", "hugetlbfs-2m")
    correlation = client.ask(request)
    act = MakeSegment(
        1, 1, request.spec, "on", "2M", "hugetlbfs-2m", client.identity, client.session
    )
    assert bench.making == {1: act}
    assert client.replies(correlation) == []
    bench.finish_making("x")
    created = client.reply(correlation, ArrayCreated)
    segment, pages = segment_of(act)
    assert (created.array.segment, created.array.pages) == (segment, pages)
    assert created.array.spec == request.spec
    assert created.array.created_ns == bench.now_ns
    assert (created.array.creator_pid, created.array.creator_uid) == (101, 1000)
    assert (created.array.sealed, created.array.readers) == (False, 1)


def test_progress_goes_to_the_creator_while_it_waits(bench: Bench) -> None:
    client = bench.client()
    correlation = client.ask(CreateArray(array_spec("x")))
    progress = SegmentProgress(1, 10, 100)
    assert bench.handle(progress) == [Send(client.peer, correlation, CreateProgress(10, 100))]
    assert bench.handle(SegmentProgress(9, 10, 100)) == []
    client.call(Cancel(correlation), Cancelled)
    assert bench.handle(progress) == []
    bench.refuse_making("x")
    assert bench.handle(progress) == []


def test_progress_of_a_dead_creator_is_dropped(bench: Bench) -> None:
    client = bench.client()
    client.ask(CreateArray(array_spec("x")))
    client.exit()
    assert bench.handle(SegmentProgress(1, 10, 100)) == []


def test_a_refused_segment_frees_the_name(bench: Bench) -> None:
    client = bench.client()
    correlation = client.ask(CreateArray(array_spec("x")))
    bench.refuse_making("x")
    assert client.reply(correlation, Failed) == REFUSAL
    client.create("x")


def test_a_taken_name_is_refused(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.ask(CreateArray(array_spec("x")))
    other.refused(CreateArray(array_spec("x")), ErrorCode.ARRAY_EXISTS)
    bench.finish_making("x")
    other.refused(CreateArray(array_spec("x")), ErrorCode.ARRAY_EXISTS)
    assert len(bench.making) == 0


@pytest.mark.parametrize(
    "spec",
    [
        ArraySpec("../x", (1,), "<f8"),
        ArraySpec("x", (-1,), "<f8"),
        ArraySpec("x", (1,), "|O"),
        ArraySpec("x", (1 << 48, 2), "<f8"),
    ],
)
def test_an_impossible_array_is_refused(bench: Bench, spec: ArraySpec) -> None:
    bench.client().refused(CreateArray(spec), ErrorCode.INVALID_SPEC)
    assert bench.making == {}


@pytest.mark.parametrize(
    "request_",
    [
        Attach("x"),
        Attach("x", readonly=False),
        Describe("x"),
        Seal("x"),
        Destroy("x"),
        SubmitJob("gather", (Operand("x", "x"),), (0, 1)),
    ],
)
def test_an_array_in_the_making_is_busy(bench: Bench, request_: Request) -> None:
    client = bench.client()
    bench.worker()
    client.ask(CreateArray(array_spec("x")))
    client.refused(request_, ErrorCode.ARRAY_BUSY)
    assert client.call(List(), Listed).arrays == ()


@pytest.mark.parametrize(
    "request_",
    [
        Attach("x"),
        Describe("x"),
        Seal("x"),
        Destroy("x"),
        SubmitJob("gather", (Operand("x", "x"),), (0, 1)),
    ],
)
def test_an_unknown_name_is_not_found(bench: Bench, request_: Request) -> None:
    bench.worker()
    bench.client().refused(request_, ErrorCode.ARRAY_NOT_FOUND)


def end_by_cancel(client: Client, correlation: int) -> None:
    assert client.call(Cancel(correlation), Cancelled).found


def end_by_goodbye(client: Client, correlation: int) -> None:
    client.call(Goodbye(), GoodbyeSaid)


def end_by_death(client: Client, correlation: int) -> None:
    client.exit()


ENDS = pytest.mark.parametrize("end", [end_by_cancel, end_by_goodbye, end_by_death])


@ENDS
@pytest.mark.parametrize("late", ["made", "refused"])
def test_a_creation_given_up_leaves_nothing(bench: Bench, end: object, late: str) -> None:
    assert callable(end)
    client, other = bench.client(), bench.client()
    correlation = client.ask(CreateArray(array_spec("x")))
    end(client, correlation)
    assert bench.cancelled == {1}
    token = other.ask(CreateArray(array_spec("x")))  # the name is free at once
    effects = bench.finish_making("x", token=1) if late == "made" else None
    if effects is None:
        del bench.making[1]
        bench.handle(SegmentRefused(1, REFUSAL))
    else:
        assert isinstance(effects[0], UnlinkSegment), "removed before anybody is told"
    assert bench.unlinked == ([1] if late == "made" else [])
    bench.finish_making("x")
    other.reply(token, ArrayCreated)
    if end is not end_by_death:
        assert client.reply(correlation, Failed).code == ErrorCode.CANCELLED


def test_cancelling_twice_cancels_once(bench: Bench) -> None:
    client = bench.client()
    correlation = client.ask(CreateArray(array_spec("x")))
    assert client.call(Cancel(correlation), Cancelled).found
    assert client.call(Cancel(correlation), Cancelled).found, "its answer is still to come"
    client.exit()
    bench.refuse_making("x")


def test_cancel_reaches_own_requests_under_way_only(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    correlation = client.ask(CreateArray(array_spec("x")))
    assert not other.call(Cancel(correlation), Cancelled).found
    assert not client.call(Cancel(correlation + 50), Cancelled).found
    bench.finish_making("x")
    assert not client.call(Cancel(correlation), Cancelled).found
    sealing = client.ask(Seal("x"))
    assert not client.call(Cancel(sealing), Cancelled).found
    bench.finish_sealing()
    client.reply(sealing, Sealed)


@pytest.mark.parametrize("token", [1, 99])
def test_an_outcome_that_nobody_waits_for_leaves_nothing(bench: Bench, token: int) -> None:
    client = bench.client()
    client.create("x")
    stray, pages = segment_of(
        MakeSegment(token, 55, array_spec("y"), "try", "auto", "", client.identity, 1)
    )
    bench.made.add(55)
    assert bench.handle(SegmentMade(token, stray, pages)) == [UnlinkSegment(stray)]
    assert bench.handle(SegmentRefused(token, REFUSAL)) == []
    assert bench.handle(SegmentSealed(token, stray)) == []
    assert bench.handle(SealRefused(token, REFUSAL)) == []
    assert not client.call(Describe("x"), Described).array.sealed


def test_arrays_are_limited() -> None:
    client = Bench(Limits(max_arrays=1)).client()
    client.create("x")
    client.refused(CreateArray(array_spec("y")), ErrorCode.NOT_ENOUGH_MEMORY)
    client.call(Destroy("x"), Destroyed)
    client.create("y")


# Attaching --------------------------------------------------------------------


def test_attach_and_detach(bench: Bench) -> None:
    creator, client = bench.client(), bench.client()
    creator.create("x")
    attached = client.attach("x")
    assert attached.array.readers == 2
    described = creator.call(Describe("x"), Described)
    assert described.reader_pids == (101, 102)
    client.call(Detach(attached.lease), Detached)
    assert creator.call(Describe("x"), Described).array.readers == 1


def test_a_lease_of_another_session_is_refused(bench: Bench) -> None:
    creator, client = bench.client(), bench.client()
    lease = creator.create("x").lease
    client.refused(Detach(lease), ErrorCode.NOT_PERMITTED)
    client.refused(Detach(lease + 1), ErrorCode.NOT_PERMITTED)
    assert creator.call(Describe("x"), Described).array.readers == 1


@pytest.mark.parametrize(
    ("uid", "allowed"), [(1000, True), (0, True), (COORDINATOR_UID, True), (1001, False)]
)
def test_who_may_write_and_destroy(bench: Bench, uid: int, allowed: bool) -> None:
    bench.client().create("x")
    client = bench.client(uid=uid)
    client.attach("x")
    if allowed:
        client.attach("x", readonly=False)
        client.call(Destroy("x"), Destroyed)
    else:
        client.refused(Attach("x", readonly=False), ErrorCode.NOT_PERMITTED)
        client.refused(Destroy("x"), ErrorCode.NOT_PERMITTED)


def test_a_sealed_array_is_attached_to_read_only(bench: Bench) -> None:
    client = bench.client()
    client.sealed("x")
    client.refused(Attach("x", readonly=False), ErrorCode.ARRAY_SEALED)
    assert client.attach("x").array.sealed


def test_leases_are_limited_and_a_creation_counts_as_one() -> None:
    bench = Bench(Limits(max_leases_per_session=2))
    client = bench.client()
    client.create("x")
    client.ask(CreateArray(array_spec("y")))
    client.refused(Attach("x"), ErrorCode.NOT_ENOUGH_MEMORY)
    client.refused(CreateArray(array_spec("z")), ErrorCode.NOT_ENOUGH_MEMORY)
    bench.finish_making("y")
    client.refused(Attach("x"), ErrorCode.NOT_ENOUGH_MEMORY)


def test_a_seal_under_way_will_be_no_lease() -> None:
    bench = Bench(Limits(max_leases_per_session=2))
    client = bench.client()
    client.create("x")
    client.ask(Seal("x"))
    client.attach("x")
    client.refused(Attach("x"), ErrorCode.NOT_ENOUGH_MEMORY)


# Sealing ----------------------------------------------------------------------


def test_seal_makes_own_leases_read_only(bench: Bench) -> None:
    client = bench.client()
    created = client.create("x")
    correlation = client.ask(Seal("x"))
    assert bench.sealing == {2: SealSegment(2, created.array.segment, created.array.spec)}
    assert client.replies(correlation) == []
    bench.finish_sealing()
    assert client.reply(correlation, Sealed).array.sealed
    assert client.call(Seal("x"), Sealed).array.sealed, "sealed already"
    client.call(Detach(created.lease), Detached)


def test_seal_is_for_the_creators_user(bench: Bench) -> None:
    bench.client().create("x")
    for uid in (0, COORDINATOR_UID, 1001):
        bench.client(uid=uid).refused(Seal("x"), ErrorCode.NOT_PERMITTED)
    assert bench.sealing == {}


def test_seal_by_another_session_of_the_user(bench: Bench) -> None:
    creator, other = bench.client(), bench.client()
    lease = creator.create("x").lease
    other.refused(Seal("x"), ErrorCode.ARRAY_BUSY)
    creator.call(Detach(lease), Detached)
    correlation = other.ask(Seal("x"))
    bench.finish_sealing()
    other.reply(correlation, Sealed)


def test_a_writer_elsewhere_forbids_sealing_and_is_named(bench: Bench) -> None:
    creator, writer, reader = bench.client(), bench.client(), bench.client()
    creator.create("x")
    reader.attach("x")
    lease = writer.attach("x", readonly=False).lease
    failed = creator.refused(Seal("x"), ErrorCode.ARRAY_BUSY)
    assert f"pid {writer.identity.pid}" in failed.had
    writer.call(Detach(lease), Detached)
    creator.ask(Seal("x"))
    assert len(bench.sealing) == 1


def test_while_sealing_readers_may_come_and_nobody_else(bench: Bench) -> None:
    creator, other = bench.client(), bench.client()
    bench.worker()
    creator.create("x")
    creator.ask(Seal("x"))
    assert not other.attach("x").array.sealed
    for request in (
        Attach("x", readonly=False),
        Seal("x"),
        Destroy("x"),
        SubmitJob("gather", (Operand("out", "x", True),), (0, 1)),
    ):
        creator.refused(request, ErrorCode.ARRAY_BUSY)
    bench.finish_sealing()
    assert other.call(Describe("x"), Described).array.sealed


def test_a_refused_seal_leaves_the_array_writable(bench: Bench) -> None:
    client = bench.client()
    client.create("x")
    correlation = client.ask(Seal("x"))
    bench.refuse_sealing()
    assert client.reply(correlation, Failed) == REFUSAL
    client.attach("x", readonly=False)
    client.ask(Seal("x"))
    bench.finish_sealing()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_creator_that_dies_while_sealing(bench: Bench, sealed: bool) -> None:
    client, other = bench.client(), bench.client()
    client.create("x")
    client.ask(Seal("x"))
    client.exit()
    assert bench.unlinked == []
    if sealed:
        bench.finish_sealing()
        assert other.call(Describe("x"), Described).array.sealed
    else:
        bench.refuse_sealing()
        assert bench.unlinked == [1]
        other.refused(Describe("x"), ErrorCode.ARRAY_NOT_FOUND)


# Destroying -------------------------------------------------------------------


def test_destroy_frees_the_name_at_once_and_leases_are_void(bench: Bench) -> None:
    creator, reader = bench.client(), bench.client()
    created = creator.create("x")
    lease = reader.attach("x").lease
    correlation = creator.ask(Destroy("x"))
    creator.reply(correlation, Destroyed)
    assert bench.unlinked == [1]
    creator.create("x")
    reader.call(Detach(lease), Detached)
    creator.call(Detach(created.lease), Detached)
    assert creator.call(Describe("x"), Described).array.readers == 1
    assert reader.notices(DropSegment) == [], "only workers are told"


def test_destroy_tells_the_workers_that_hold_it(bench: Bench) -> None:
    client, used, idle = bench.client(), bench.worker(), bench.worker()
    client.create("x")
    job = client.submit(("x", "x"), rows=(0, 1))
    client.refused(Destroy("x"), ErrorCode.ARRAY_BUSY)
    used.done(used.part())
    client.reply(job, JobDone)
    described = client.call(Describe("x"), Described)
    assert described.reader_pids == (client.identity.pid, used.identity.pid)
    client.call(Destroy("x"), Destroyed)
    assert used.notices(DropSegment) == [DropSegment(1)]
    assert idle.notices(DropSegment) == []


# A creator's end --------------------------------------------------------------


def test_an_unsealed_array_dies_with_its_creator_and_a_sealed_one_stays(bench: Bench) -> None:
    creator, reader = bench.client(), bench.client()
    creator.create("a")
    creator.sealed("b")
    reader.attach("a")
    creator.exit()
    assert bench.unlinked == [1]
    reader.refused(Describe("a"), ErrorCode.ARRAY_NOT_FOUND)
    assert reader.attach("b").array.sealed


@pytest.mark.parametrize("how", ["detach", "goodbye", "exit"])
def test_another_writer_keeps_an_unsealed_array(bench: Bench, how: str) -> None:
    creator, writer = bench.client(), bench.client()
    creator.create("x")
    lease = writer.attach("x", readonly=False).lease
    creator.exit()
    assert bench.unlinked == []
    match how:
        case "detach":
            writer.call(Detach(lease), Detached)
        case "goodbye":
            writer.call(Goodbye(), GoodbyeSaid)
        case "exit":
            writer.exit()
    assert bench.unlinked == [1]


def test_another_writer_may_seal_what_a_dead_creator_left(bench: Bench) -> None:
    creator, writer = bench.client(), bench.client()
    creator.create("x")
    lease = writer.attach("x", readonly=False).lease
    creator.exit()
    writer.ask(Seal("x"))
    bench.finish_sealing()
    writer.call(Detach(lease), Detached)
    writer.exit()
    assert bench.unlinked == []


def test_a_job_of_another_keeps_an_unsealed_array_until_it_ends(bench: Bench) -> None:
    creator, client, worker = bench.client(), bench.client(), bench.worker()
    creator.create("x")
    job = client.submit(("x", "x"), rows=(0, 1))
    creator.exit()
    assert bench.unlinked == []
    worker.done(worker.part())
    client.reply(job, JobDone)
    assert bench.unlinked == [1]
    assert worker.notices(DropSegment) == [DropSegment(1)]


def test_a_creators_own_job_keeps_nothing(bench: Bench) -> None:
    creator, worker = bench.client(), bench.worker()
    creator.create("x")
    job = creator.submit(("x", "x"), rows=(0, 1))
    creator.exit()
    assert creator.replies(job) == []
    assert bench.unlinked == [1]
    assert worker.reply(worker.done(worker.part()), PartAccepted).stale


# Plans ------------------------------------------------------------------------


def plan_spec(name: str, made_of: int = 0) -> ArraySpec:
    return ArraySpec(
        name, (9, 9), "<f8", "plan", members=(Member("head", "<i8", 32),), made_of=made_of
    )


def test_a_plan_goes_with_what_it_was_made_of(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.sealed("A")
    client.sealed("B")
    client.ask(CreateArray(plan_spec("P", 1)))
    bench.finish_making("P")
    client.ask(CreateArray(plan_spec("P.binned", 3)))
    bench.finish_making("P.binned")
    client.ask(CreateArray(plan_spec("Q", 2)))
    bench.finish_making("Q")
    job = client.submit(("plan", "P.binned"), rows=(0, 1))
    client.call(Destroy("A"), Destroyed)
    assert bench.unlinked == [1, 3], "what a job uses stays until the job's end"
    worker.done(worker.part())
    client.reply(job, JobDone)
    assert bench.unlinked == [1, 3, 4]
    client.call(Destroy("Q"), Destroyed)


def test_a_plan_that_was_being_made_goes_too(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    made = client.ask(CreateArray(plan_spec("P", 1)))
    client.call(Destroy("A"), Destroyed)
    bench.finish_making("P")
    client.reply(made, ArrayCreated)
    assert bench.unlinked == [1, 2]


def test_no_plan_is_made_of_what_is_gone(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    client.call(Destroy("A"), Destroyed)
    client.refused(CreateArray(plan_spec("P", 1)), ErrorCode.SEGMENT_CHANGED)
    client.refused(CreateArray(plan_spec("P", 2)), ErrorCode.SEGMENT_CHANGED)


# Listing and counting ---------------------------------------------------------


def test_list_is_paged_and_fits_a_frame(bench: Bench) -> None:
    client = bench.client()
    names = [f"{'n' * 120}{number:03}" for number in range(70)]
    members = tuple(Member(f"{'r' * 14}{k:02}", "<i8", 1 << 33) for k in range(MAX_MEMBERS))
    for number, name in enumerate(reversed(names)):
        if number % 3:
            client.ask(CreateArray(ArraySpec(name, (1 << 40,) * 2, "<f8", "plan", members=members)))
            bench.finish_making(name)
        else:
            client.create(name)
    told: list[str] = []
    more = True
    while more:
        page = client.call(List(told[-1] if told else ""), Listed)
        assert len(wire.encode(1, page)[2]) <= wire.MAX_BODY
        told += [info.spec.name for info in page.arrays]
        more = page.more
        assert len(told) <= 70
    assert told == names


def test_why_pages_are_not_huge_is_told_of_one_array_at_a_time(bench: Bench) -> None:
    client = bench.client()
    created = client.create("x").array
    assert len(created.pages.reasons) == 1
    (listed,) = client.call(List(), Listed).arrays
    assert listed.pages.reasons == ()
    assert client.call(Describe("x"), Described).array.pages == created.pages


def test_describe_tells_each_process_once(bench: Bench) -> None:
    client = bench.client()
    client.create("x")
    client.attach("x")
    twin = bench.client(pid=client.identity.pid)
    twin.attach("x")
    described = client.call(Describe("x"), Described)
    assert (described.array.readers, described.reader_pids) == (3, (101,))
    assert described.array.pages.reasons


def test_holders_are_told_in_order_a_page_at_a_time_to_who_asks(bench: Bench) -> None:
    owner = bench.client(name="o" * 100)
    owner.create("x")
    attached = [owner.attach("x").lease for _ in range(PAGE_OF_HOLDERS - 1)]
    assert owner.call(Describe("x"), Described).holders == ()

    first = owner.call(Describe("x", after=0), Described)
    assert [one.lease for one in first.holders[1:]] == attached
    assert not first.more
    maker = first.holders[0]
    assert (maker.pid, maker.uid) == (owner.identity.pid, owner.identity.uid)
    assert (maker.client, maker.readonly, maker.rows) == ("o" * 40, False, None)
    assert first.holders[1].readonly

    last = bench.client().attach("x").lease
    page = owner.call(Describe("x", after=0), Described)
    assert (page.holders, page.more) == (first.holders, True)
    page = owner.call(Describe("x", after=page.holders[-1].lease), Described)
    assert [one.lease for one in page.holders] == [last]
    assert not page.more


def test_stats_count(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.create("x", 1000)
    client.sealed("y")
    client.ask(CreateArray(array_spec("z")))
    for _ in range(2):
        client.submit(rows=(0, 1))
    worker.done(worker.part())
    counted = client.call(Stats(), Counted)
    assert (counted.instance, counted.pid, counted.version) == ("f00d0", 1, "0.1")
    assert (counted.sessions, counted.arrays) == (2, 2)
    assert (counted.nbytes, counted.length, counted.huge_bytes) == (16_000, 16_384, 0)
    assert (counted.jobs_running, counted.jobs_done, counted.jobs_failed) == (1, 1, 0)
    assert [(one.worker, one.busy, one.parts_done) for one in counted.workers] == [(1, True, 1)]
    assert counted.uptime_ns == bench.now_ns - 5_000_000


def test_trouble_is_told_as_long_as_it_is_there(bench: Bench) -> None:
    client = bench.client()
    assert client.call(Stats(), Counted).troubles == ()
    bench.handle(TroubleSeen(("the manifests are gone",)))
    assert client.call(Stats(), Counted).troubles == ("the manifests are gone",)
    bench.handle(TroubleSeen(()))
    assert client.call(Stats(), Counted).troubles == ()


def test_uptime_counts_from_the_first_event_unless_told() -> None:
    coordinator = Coordinator(instance="i", pid=1, uid=0, version="0")
    identity = Identity(0, 0, 5)
    coordinator.handle(RequestReceived(b"p", identity, 1, Hello("c", "0")), 1000)
    coordinator.handle(TokenMade(1, "/run/tokens/1"), 1000)
    coordinator.handle(RequestReceived(b"p", identity, 1, Bind()), 1000)
    coordinator.handle(TokenChecked(1, held=True), 1000)
    *_, send = coordinator.handle(RequestReceived(b"p", identity, 2, Stats()), 1700)
    assert isinstance(send, Send)
    assert isinstance(send.message, Counted)
    assert send.message.uptime_ns == 700


def test_jobs_are_listed_with_who_is_at_them(bench: Bench) -> None:
    client = bench.client()
    first, second = bench.worker(), bench.worker()
    submitted_ns = bench.now_ns
    client.submit(rows=(0, 1, 2, 3), kernel="spmv")
    client.submit(rows=(0, 1))
    (spmv, gather) = client.call(ListJobs(), JobsListed).jobs
    assert spmv == JobInfo(
        job=spmv.job,
        kernel="spmv",
        implementation="auto",
        pid=client.identity.pid,
        parts=3,
        parts_done=0,
        workers=(1, 2),
        waiting=False,
        standing=False,
        started_ns=spmv.started_ns,
    )
    assert spmv.started_ns is not None and submitted_ns < spmv.started_ns < bench.now_ns
    assert (gather.kernel, gather.parts, gather.workers, gather.started_ns) == (
        "gather",
        1,
        (),
        None,
    )
    first.done(first.part())
    assert [(one.parts_done, one.workers) for one in client.call(ListJobs(), JobsListed).jobs] == [
        *((1, (1, 2)), (0, ()))
    ]
    assert client.call(ListJobs(spmv.job), JobsListed).jobs[0].kernel == "gather"
    for worker in (first, second):
        worker.exit()
    assert [(one.workers, one.waiting) for one in client.call(ListJobs(), JobsListed).jobs] == [
        *(((), True), ((), True))
    ]


def test_many_jobs_are_listed_a_page_at_a_time(bench: Bench) -> None:
    client, _ = bench.client(), bench.worker()
    for _ in range(PAGE_OF_JOBS + 2):
        client.submit(rows=(0, 1))
    page = client.call(ListJobs(), JobsListed)
    assert (len(page.jobs), page.more) == (PAGE_OF_JOBS, True)
    rest = client.call(ListJobs(page.jobs[-1].job), JobsListed)
    assert (len(rest.jobs), rest.more) == (2, False)
    assert {one.job for one in page.jobs}.isdisjoint(one.job for one in rest.jobs)


def test_own_timings_are_kept_under_the_senders_pid(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    for number in range(40):
        client.call(ReportTiming(Timing("step", nnz=number, pid=1, worker=9)), TimingReported)
    worker.call(ReportTiming(Timing("idle")), TimingReported)
    timings = client.call(Stats(), Counted).timings
    assert [timing.nnz for timing in timings] == [*range(9, 40), 0]
    assert {timing.pid for timing in timings[:-1]} == {client.identity.pid}
    assert {timing.worker for timing in timings[:-1]} == {0}
    assert (timings[-1].worker, timings[-1].pid) == (1, worker.identity.pid)


def test_repr_tells_counts(bench: Bench) -> None:
    client = bench.client()
    bench.worker()
    client.create("x")
    client.submit(rows=(0, 1))
    client.ask(CreateArray(array_spec("y")))
    counts = "2 sessions, 1 arrays, 1 leases, 1 workers, 1 jobs, 1 acts"
    assert repr(bench.coordinator) == f"<Coordinator f00d0: {counts}>"
    bench.stop()
    assert repr(bench.coordinator).endswith("0 jobs, 1 acts, stopping>")


# Jobs -------------------------------------------------------------------------


def test_a_job_runs_on_distinct_workers_and_is_answered_at_its_end(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    x, out = client.create("x"), client.create("out")
    job = client.submit(("x", "x"), ("out", "out", True), rows=(0, 10, 25))
    sent_ns = bench.now_ns
    first, second = one.part(), two.part()
    assert (first.row_start, first.row_stop) == (0, 10)
    assert (second.row_start, second.row_stop) == (10, 25)
    assert [(op.role, op.segment, op.writable) for op in first.operands] == [
        ("x", x.array.segment, False),
        ("out", out.array.segment, True),
    ]
    assert first.operands[0].spec == x.array.spec
    assert not two.reply(two.done(second), PartAccepted).stale
    assert client.replies(job) == []
    assert not one.reply(one.done(first), PartAccepted).stale
    result = client.reply(job, JobDone)
    assert [timing.part for timing in result.timings] == [0, 1]
    assert [timing.pid for timing in result.timings] == [one.identity.pid, two.identity.pid]
    assert result.wall_ns == bench.now_ns - sent_ns == 2 * STEP_NS
    assert one.reply(one.done(first), PartAccepted).stale


def test_parts_may_outnumber_workers(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job = client.submit(rows=(0, 1, 2, 3))
    for number in range(3):
        part = worker.part()
        assert part.part == number
        worker.done(part)
    assert len(client.reply(job, JobDone).timings) == 3


def test_who_asked_for_it_hears_of_every_part_but_the_last(bench: Bench) -> None:
    client, other, worker = bench.client(), bench.client(), bench.worker()
    rows = (0, 1, 2, 3)
    job = client.ask(SubmitJob("gather", (), rows, progress=True))
    other.submit(rows=rows)
    for done in (1, 2):
        part = worker.part()
        report = PartDone(part.job, part.part, part.epoch, Timing("gather"))
        effects = bench.handle(RequestReceived(worker.peer, worker.identity, 900 + done, report))
        told = [effect for effect in effects if isinstance(effect, Send)]
        assert told[0] == Send(client.peer, job, JobProgress(done, 3)), "under the job's number"
    client.notices(JobProgress)
    worker.done(worker.part())
    assert client.notices(JobProgress) == [], "that it is done is told by its result"
    assert client.reply(job, JobDone)
    for _ in range(3):
        worker.done(worker.part())
    assert other.notices(JobProgress) == []


def test_a_job_needs_a_worker(bench: Bench) -> None:
    client = bench.client()
    failed = client.refused(SubmitJob("gather", (), (0, 1)), ErrorCode.NO_WORKERS)
    assert (failed.needed, failed.had) == ("1 worker", "0")
    assert "hugepool worker" in failed.remedy


def test_a_job_that_counts_on_more_workers_than_there_are_is_not_taken(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    before = repr(bench.coordinator)
    asked = client.call(SubmitJob("gather", (), (0, 1, 2), workers=2), FewerWorkers)
    assert asked.present == 1
    assert repr(bench.coordinator) == before
    assert worker.notices(RunPart) == []
    client.ask(SubmitJob("gather", (), (0, 1, 2), workers=1))
    worker.done(worker.part())  # busy workers are there too
    client.ask(SubmitJob("gather", (), (0, 1), workers=1))
    worker.exit()
    assert client.call(SubmitJob("gather", (), (0, 1), workers=1), FewerWorkers).present == 0


def test_members_of_a_crew_are_not_there_for_others(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.call(Stats(), Counted)
    crew = client.submit(rows=(0, 1), kernel=CREW_KERNEL)
    assert len(client.notices(WorkersChanged)) == 1
    assert client.call(SubmitJob("gather", (), (0, 1), workers=2), FewerWorkers).present == 1
    assert [worker.kernel for worker in client.call(Stats(), Counted).workers] == [CREW_KERNEL, ""]
    one.done(one.part())
    assert client.reply(crew, JobDone)
    assert len(client.notices(WorkersChanged)) == 1
    assert client.replies(client.ask(SubmitJob("gather", (), (0, 1), workers=2))) == []
    assert [len(worker.notices(RunPart)) for worker in (one, two)] == [1, 0]


def test_who_asked_for_the_workers_is_told_once_that_they_changed(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    assert client.call(Stats(), Counted).workers == ()
    worker = bench.worker()
    bench.worker()
    assert len(client.notices(WorkersChanged)) == 1, "until it asks again"
    assert other.notices(WorkersChanged) == [], "it never asked"
    assert len(client.call(Stats(), Counted).workers) == 2
    client.submit(rows=(0, 1))
    assert client.notices(WorkersChanged) == [], "as many as before"
    worker.exit()
    assert len(client.notices(WorkersChanged)) == 1


def test_the_first_worker_is_news_and_the_last_one_s_end_too(bench: Bench) -> None:
    client = bench.client()
    client.call(Stats(), Counted)
    worker = bench.worker()
    assert len(client.notices(WorkersChanged)) == 1
    client.call(Stats(), Counted)
    worker.exit()
    assert len(client.notices(WorkersChanged)) == 1


def test_who_could_not_be_told_of_the_workers_is_told_when_it_is_heard_again(
    bench: Bench,
) -> None:
    client = bench.client()
    client.call(Stats(), Counted)
    client.vanish()
    bench.worker()
    assert client.notices(WorkersChanged) == []
    client.ask(List())
    assert len(client.notices(WorkersChanged)) == 1
    client.vanish()  # and what was sent last may be lost
    client.ask(List())
    assert len(client.notices(WorkersChanged)) == 1
    client.ask(List())
    assert client.notices(WorkersChanged) == []


def test_a_bad_job_changes_nothing(bench: Bench) -> None:
    client = bench.client()
    bench.worker()
    client.create("x")
    before = repr(bench.coordinator)
    for operands, rows in (((), (1, 2)), ((Operand("a b", "x"),), (0, 1))):
        client.refused(SubmitJob("gather", operands, rows), ErrorCode.INVALID_SPEC)
    assert repr(bench.coordinator) == before


def test_what_a_job_may_write(bench: Bench) -> None:
    creator, other = bench.client(), bench.client()
    bench.worker()
    lease = creator.create("x").lease
    write = SubmitJob("gather", (Operand("out", "x", True),), (0, 1))
    other.refused(write, ErrorCode.NOT_PERMITTED)
    other.attach("x")
    other.refused(write, ErrorCode.NOT_PERMITTED)
    own = other.attach("x", readonly=False).lease
    assert other.replies(other.ask(write)) == [], "running"
    creator.call(Detach(lease), Detached)
    assert creator.replies(creator.ask(write)) == [], "its creator may without a lease"
    other.call(Detach(own), Detached)
    other.refused(write, ErrorCode.NOT_PERMITTED)
    creator.sealed("y")
    creator.refused(
        SubmitJob("gather", (Operand("out", "y", True),), (0, 1)), ErrorCode.ARRAY_SEALED
    )


def test_a_sealing_array_may_be_read(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.create("x")
    client.ask(Seal("x"))
    client.submit(("x", "x"), rows=(0, 1))
    bench.finish_sealing()
    worker.done(worker.part())


def test_a_part_that_fails_fails_the_job_with_its_own_words(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    job = client.submit()
    first, second = one.part(), two.part()
    error = Failed(ErrorCode.INDEX_OUT_OF_RANGE, "bad index", had="-5", position=17)
    assert not one.reply(one.failed(first, error), PartAccepted).stale
    assert client.reply(job, Failed) == error
    later = client.submit()
    assert one.part().job == 2
    assert two.notices(RunPart) == [], "still at the old job"
    assert two.reply(two.failed(second, error), PartAccepted).stale
    assert two.part().job == 2
    assert client.replies(later) == []
    assert client.call(Stats(), Counted).jobs_failed == 1


@pytest.mark.parametrize("how", ["exit", "goodbye"])
def test_a_workers_end_hands_its_part_to_another(bench: Bench, how: str) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("x")
    job = client.submit(("x", "x"))
    first, second = one.part(), two.part()
    match how:
        case "exit":
            one.exit()
        case "goodbye":
            one.call(Goodbye(), GoodbyeSaid)
    assert one.session not in bench.watched
    assert client.call(Describe("x"), Described).reader_pids == (101, two.identity.pid)
    one.refused(PartDone(first.job, first.part, first.epoch, TIMING), ErrorCode.PROTOCOL)
    two.done(second)
    again = two.part()
    assert (again.part, again.epoch) == (first.part, first.epoch + 1)
    two.done(again)
    assert [timing.pid for timing in client.reply(job, JobDone).timings] == [two.identity.pid] * 2


def test_a_worker_that_cannot_be_told_keeps_all_that_it_has_and_gets_no_more(
    bench: Bench,
) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("x")
    one.attach("x")
    job = client.submit(("x", "x"), rows=(0, 1, 2, 3, 4))
    first, second = one.part(), two.part()
    one.vanish()
    two.done(second)
    third = two.part()
    assert client.call(Describe("x"), Described).reader_pids == (101, 102, 103)
    two.vanish()
    assert not one.reply(one.done(first), PartAccepted).stale, "it is heard of again"
    fourth = one.part()
    one.done(fourth)
    assert not two.reply(two.done(third), PartAccepted).stale
    assert client.reply(job, JobDone)


def test_a_cancelled_job_is_answered_at_once(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    running, queued = client.submit(), client.submit()
    part = worker.part()
    for job in (queued, running):
        assert client.call(Cancel(job), Cancelled).found
        assert client.reply(job, Failed).code == ErrorCode.CANCELLED
        assert not client.call(Cancel(job), Cancelled).found
    assert worker.reply(worker.done(part), PartAccepted).stale
    assert worker.notices(RunPart) == []


def test_a_clients_end_cancels_its_jobs(bench: Bench) -> None:
    client, other, worker = bench.client(), bench.client(), bench.worker()
    client.submit()
    queued = other.submit(rows=(0, 1))
    part = worker.part()
    client.exit()
    assert worker.reply(worker.done(part), PartAccepted).stale
    worker.done(worker.part())
    other.reply(queued, JobDone)


def test_goodbye_answers_own_jobs(bench: Bench) -> None:
    client = bench.client()
    bench.worker()
    job = client.submit()
    client.call(Goodbye(), GoodbyeSaid)
    assert client.reply(job, Failed).code == ErrorCode.CANCELLED


def test_reports_of_strangers_are_stale(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job = client.submit(rows=(0, 1))
    part = worker.part()
    assert client.reply(client.done(part), PartAccepted).stale
    assert client.reply(client.failed(part, REFUSAL), PartAccepted).stale
    assert client.replies(job) == []


def test_registering_twice_is_one_worker(bench: Bench) -> None:
    worker = bench.worker()
    assert worker.call(RegisterWorker((2, 3)), WorkerRegistered).worker == 1
    (told,) = worker.call(Stats(), Counted).workers
    assert told.cpus == (2, 3)


def test_an_array_that_a_job_writes_is_not_sealed(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("out")
    job = client.submit(("out", "out", True))
    client.refused(Seal("out"), ErrorCode.ARRAY_BUSY)
    first, second = one.part(), two.part()
    client.call(Cancel(job), Cancelled)
    one.done(first)
    failed = client.refused(Seal("out"), ErrorCode.ARRAY_BUSY)
    assert f"pid {two.identity.pid}" in failed.had, "it may still write for the cancelled job"
    two.done(second)
    sealing = client.ask(Seal("out"))
    # Idle workers let go of their writable mappings first, or the kernel would refuse.
    assert one.notices(DropSegment) == two.notices(DropSegment) == [DropSegment(1)]
    assert client.call(Describe("out"), Described).array.readers == 1
    bench.finish_sealing()
    client.reply(sealing, Sealed)


def test_an_array_that_a_waiting_job_will_write_is_not_sealed(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.create("out")
    job = client.submit(("out", "out", True))
    worker.exit()
    failed = client.refused(Seal("out"), ErrorCode.ARRAY_BUSY)
    assert failed.had == "a job that writes it"
    client.call(Cancel(job), Cancelled)
    client.ask(Seal("out"))
    bench.finish_sealing()


def test_an_array_that_jobs_only_read_may_be_sealed(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.create("x")
    client.submit(("x", "x"), rows=(0, 1))
    client.ask(Seal("x"))
    bench.finish_sealing()
    assert worker.notices(DropSegment) == []
    worker.done(worker.part())


# The end ----------------------------------------------------------------------


def test_stop_drains(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.create("x")
    sealing = client.ask(Seal("x"))
    creating = client.ask(CreateArray(array_spec("y")))
    job = client.submit(rows=(0, 1))
    part = worker.part()
    bench.stop()
    for correlation in (creating, job):
        failed = client.reply(correlation, Failed)
        assert failed.code == ErrorCode.COORDINATOR_UNREACHABLE
        assert "SIGTERM" in failed.message
    assert bench.cancelled == {3}
    for session in (client, worker):
        assert session.notices(CoordinatorStopping) == [CoordinatorStopping()]
    assert worker.reply(worker.done(part), PartAccepted).stale
    assert bench.stops == 0
    bench.finish_making("y")
    assert bench.unlinked == [2]
    assert bench.stops == 0
    assert bench.finish_sealing()[-1] == Stop()
    client.reply(sealing, Sealed)
    bench.handle(StopRequested("again"))
    assert bench.stops == 1


@pytest.mark.parametrize(
    "request_",
    [
        CreateArray(array_spec("z")),
        Attach("x"),
        Seal("x"),
        RegisterWorker(),
        SubmitJob("gather", (), (0, 1)),
    ],
)
def test_a_draining_coordinator_refuses_new_work(bench: Bench, request_: Request) -> None:
    client, stranger = bench.client(), bench.client(hello=False)
    lease = client.create("x").lease
    client.ask(CreateArray(array_spec("y")))
    bench.stop()
    client.refused(request_, ErrorCode.COORDINATOR_UNREACHABLE)
    stranger.refused(Hello("me", "0.1"), ErrorCode.COORDINATOR_UNREACHABLE)
    client.call(Hello("me", "0.1"), Welcome)
    client.call(Describe("x"), Described)
    client.call(Detach(lease), Detached)
    client.call(Destroy("x"), Destroyed)
    client.call(Goodbye(), GoodbyeSaid)
    bench.refuse_making("y")
    assert bench.stops == 1


def test_an_idle_coordinator_stops_at_once(bench: Bench) -> None:
    assert not bench.coordinator.stopping
    assert bench.stop() == [Stop()]
    assert bench.coordinator.stopping


def test_a_second_signal_does_not_wait(bench: Bench) -> None:
    client = bench.client()
    client.create("x")
    sealing = client.ask(Seal("x"))
    creating = client.ask(CreateArray(array_spec("y")))
    bench.stop()
    assert bench.stops == 0
    assert bench.stop()[-1] == Stop()
    for correlation in (sealing, creating):
        assert client.reply(correlation, Failed).code == ErrorCode.COORDINATOR_UNREACHABLE
    bench.finish_making("y")  # too late, and still nothing is kept
    assert bench.unlinked == [2]
    bench.finish_sealing()
    assert bench.stops == 1


@pytest.mark.parametrize(("uid", "allowed"), [(0, True), (COORDINATOR_UID, True), (1000, False)])
def test_who_may_shut_down(bench: Bench, uid: int, allowed: bool) -> None:
    client = bench.client(uid=uid)
    if not allowed:
        refused = client.refused(Shutdown(), ErrorCode.NOT_PERMITTED)
        assert refused.needed == f"uid {COORDINATOR_UID} or 0"
        assert bench.stops == 0
        return
    client.ask(CreateArray(array_spec("y")))
    client.call(Shutdown(), ShuttingDown)
    client.call(Shutdown(), ShuttingDown)
    assert bench.stops == 0
    bench.refuse_making("y")
    assert bench.stops == 1


def test_the_answer_to_shutdown_leaves_before_the_end(bench: Bench) -> None:
    client = bench.client(uid=0)
    event = RequestReceived(client.peer, client.identity, 9, Shutdown())
    assert bench.handle(event) == [
        Send(client.peer, 9, ShuttingDown()),
        Send(client.peer, 0, CoordinatorStopping()),
        Stop(),
    ]


# Limits -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [({"max_sessions": 0}, "max_sessions is too small"), ({"max_workers": 513}, "at most 512")],
)
def test_impossible_limits_are_refused(change: dict[str, int], told: str) -> None:
    with pytest.raises(InvalidSpecError, match=told):
        Limits(**change)


def test_jobs_and_workers_are_limited() -> None:
    bench = Bench(Limits(max_jobs=1, max_workers=1))
    bench.worker()
    client = bench.client()
    client.refused(RegisterWorker(), ErrorCode.NOT_ENOUGH_MEMORY)
    client.submit()
    client.refused(SubmitJob("gather", (), (0, 1)), ErrorCode.NOT_ENOUGH_MEMORY)


def test_attached_info_is_of_the_segment(bench: Bench) -> None:
    client = bench.client()
    created = client.create("x")
    attached = client.call(Attach("x"), Attached)
    assert attached.array.segment == created.array.segment
    assert attached.lease > created.lease
