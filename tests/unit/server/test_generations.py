"""Publishing under a name that others read: one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    Attach,
    Attached,
    Counted,
    CreateArray,
    Describe,
    Described,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    DropSegment,
    Failed,
    List,
    Listed,
    Operand,
    Publish,
    Published,
    Request,
    Seal,
    Sealed,
    Stats,
    SubmitJob,
)
from hugepool_common.spec import ArraySpec, Member
from hugepool_server.events import (
    GenerationPublished,
    PublishGeneration,
    PublishRefused,
    StopRequested,
    UnlinkSegment,
)
from support.coordination import COORDINATOR_UID, REFUSAL, Bench, Client, array_spec, held


@pytest.fixture
def bench() -> Bench:
    return Bench()


def plan_spec(name: str, made_of: int) -> ArraySpec:
    return ArraySpec(
        name, (10, 10), "<f8", kind="plan", members=(Member("rows", "<i4", 5),), made_of=made_of
    )


def plan(client: Client, name: str, made_of: int) -> int:
    """Make and seal a plan, with no lease kept; returns its segment id."""
    correlation = client.ask(CreateArray(plan_spec(name, made_of)))
    client.bench.finish_making(name)
    (created,) = client.replies(correlation)
    client.ask(Seal(name))
    client.bench.finish_sealing()
    client.call(Detach(created.lease), Detached)  # type: ignore[attr-defined]
    return created.array.segment.segment_id  # type: ignore[attr-defined, no-any-return]


def names(client: Client) -> list[tuple[str, int, int]]:
    listed = client.call(List(), Listed).arrays
    return [(info.spec.name, info.generation, info.segment.segment_id) for info in listed]


# One step ---------------------------------------------------------------------


def test_the_first_under_a_name_takes_it(bench: Bench) -> None:
    client = bench.client()
    client.sealed("next")
    correlation = client.ask(Publish("x", "next"))
    assert bench.publishing == {3: PublishGeneration(3, 1, "x", 1)}
    assert names(client) == [("next", 1, 1)], "not before it is written"
    bench.finish_publishing()
    published = client.reply(correlation, Published).array
    assert (published.spec.name, published.generation, published.sealed) == ("x", 1, True)
    assert published.checksum
    assert names(client) == [("x", 1, 1)]
    client.create("next")


def test_readers_keep_the_generation_that_they_have(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    client.publish("x")
    old = reader.attach("x")
    new = client.publish("x").array
    assert (old.array.generation, new.generation) == (1, 2)
    assert bench.unlinked == []
    assert reader.attach("x").array.segment == new.segment
    assert client.call(Describe("x"), Described).array.generation == 2
    reader.call(Detach(old.lease), Detached)
    assert bench.unlinked == [], "its creator has a lease"
    client.exit()
    assert bench.unlinked == [old.array.segment.segment_id]


def test_a_handle_that_was_passed_on_finds_its_generation(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    old = client.publish("x").array.segment
    client.publish("x")
    found = reader.call(Attach("x", segment_id=old.segment_id), Attached)
    assert (found.array.segment, found.array.generation) == (old, 1)
    for number in list(mine(bench, client)):
        client.call(Detach(number), Detached)
    assert bench.unlinked == [], "it is held by who received it"
    refused = reader.refused(
        Attach("x", readonly=False, segment_id=old.segment_id), ErrorCode.ARRAY_SEALED
    )
    assert not bench.publishing and refused.where
    reader.call(Detach(found.lease), Detached)
    assert bench.unlinked == [old.segment_id]
    for gone in (old.segment_id, 999, -1):
        reader.refused(Attach("x", segment_id=gone), ErrorCode.SEGMENT_CHANGED)
        reader.refused(Attach("y", segment_id=gone), ErrorCode.ARRAY_NOT_FOUND)


def test_what_nobody_reads_goes_when_it_is_superseded(bench: Bench) -> None:
    client = bench.client()
    for number in (1, 2, 3):
        lease = client.publish("x")
        assert lease.array.generation == number
        for lease_number in list(mine(bench, client)):
            client.call(Detach(lease_number), Detached)
    assert bench.unlinked == [1, 2]


def mine(bench: Bench, client: Client) -> list[int]:
    session = bench.coordinator._state.leases.of_number(client.session)
    assert session is not None
    return list(session.leases)


def test_of_many_generations_those_that_are_read_are_kept(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    leases = []
    for _ in range(4):
        client.publish("x")
        leases.append(reader.attach("x"))
    client.exit()
    reader.call(Detach(leases[1].lease), Detached)
    assert bench.unlinked == [2]
    counted = reader.call(Stats(), Counted)
    assert (counted.arrays, counted.nbytes) == (1, 3 * 8000)
    reader.call(Detach(leases[3].lease), Detached)
    assert bench.unlinked == [2], "the newest stays without readers"


def test_a_worker_that_keeps_an_old_generation_mapped_lets_go_of_it(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.publish("x")
    job = client.submit(("x", "x"), rows=(0, 1))
    part = worker.part()
    client.publish("x")
    for number in mine(bench, client):
        client.call(Detach(number), Detached)
    assert bench.unlinked == [], "a job uses it"
    worker.done(part)
    assert client.replies(job)
    assert bench.unlinked == [1]
    assert worker.notices(DropSegment) == [DropSegment(1)]


def test_a_failed_publication_leaves_both_names(bench: Bench) -> None:
    client = bench.client()
    client.publish("x")
    client.sealed("next")
    before = names(client)
    correlation = client.ask(Publish("x", "next"))
    bench.refuse_publishing()
    assert client.reply(correlation, Failed) == REFUSAL
    assert names(client) == before
    assert client.call(Describe("x"), Described).array.generation == 1
    client.ask(Publish("x", "next"))
    bench.finish_publishing()
    assert client.call(Describe("x"), Described).array.generation == 2


@pytest.mark.parametrize("token", [1, 99])
def test_an_end_that_nobody_waits_for_changes_nothing(bench: Bench, token: int) -> None:
    bench.client().sealed("x")
    assert bench.handle(GenerationPublished(token)) == []
    assert bench.handle(PublishRefused(token, REFUSAL)) == []


# By handle --------------------------------------------------------------------


def test_a_handle_means_its_segment_whatever_its_name_is_now(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    old = client.publish("x").array.segment.segment_id
    new = client.publish("x").array.segment.segment_id
    for name, segment_id in (("x", old), ("x", new), ("next", new), ("next", old)):
        client.ask(SubmitJob("gather", (Operand("x", name, segment_id=segment_id),), (0, 1)))
        part = worker.part()
        assert part.operands[0].segment.segment_id == segment_id
        assert part.operands[0].sealed
        worker.done(part)
    assert client.call(Seal("x", old), Sealed).array.generation == 1
    client.refused(Publish("y", "x", old), ErrorCode.SEGMENT_CHANGED)


def test_a_handle_of_what_is_gone_is_told_so(bench: Bench) -> None:
    client = bench.client()
    client.publish("x")
    for number in mine(bench, client):
        client.call(Detach(number), Detached)
    client.publish("x")
    assert bench.unlinked == [1]
    client.refused(Seal("x", 1), ErrorCode.SEGMENT_CHANGED)
    client.refused(Seal("y", 1), ErrorCode.ARRAY_NOT_FOUND)


# What is refused --------------------------------------------------------------


def refused(bench: Bench, client: Client, request: Request, code: ErrorCode) -> Failed:
    before = names(client), dict(bench.disk)
    failed = client.refused(request, code)
    assert (names(client), bench.disk) == before
    return failed


def test_what_cannot_be_published(bench: Bench) -> None:
    client = bench.client()
    client.create("open")
    client.sealed("x")
    client.ask(CreateArray(array_spec("making")))
    refused(bench, client, Publish("x", "open"), ErrorCode.ARRAY_BUSY)
    refused(bench, client, Publish("x", "making"), ErrorCode.ARRAY_BUSY)
    refused(bench, client, Publish("x", "none"), ErrorCode.ARRAY_NOT_FOUND)
    refused(bench, client, Publish("x", "x"), ErrorCode.INVALID_SPEC)
    refused(bench, client, Publish("../x", "x"), ErrorCode.INVALID_SPEC)
    assert "pid" in refused(bench, client, Publish("open", "x"), ErrorCode.ARRAY_BUSY).had
    refused(bench, client, Publish("making", "x"), ErrorCode.ARRAY_BUSY)
    client.ask(Seal("open"))
    refused(bench, client, Publish("open", "x"), ErrorCode.ARRAY_BUSY)
    refused(bench, client, Publish("x", "open"), ErrorCode.ARRAY_BUSY)


@pytest.mark.parametrize(
    ("uid", "allowed"), [(1000, True), (0, True), (COORDINATOR_UID, True), (1001, False)]
)
def test_who_may_publish(bench: Bench, uid: int, allowed: bool) -> None:
    creator, client = bench.client(), bench.client(uid=uid)
    creator.sealed("x")
    creator.sealed("next")
    if allowed:
        client.ask(Publish("x", "next"))
        bench.finish_publishing()
        assert client.call(Describe("x"), Described).array.generation == 2
        return
    refused(bench, client, Publish("y", "next"), ErrorCode.NOT_PERMITTED)
    client.sealed("own")
    refused(bench, client, Publish("x", "own"), ErrorCode.NOT_PERMITTED)


def test_while_a_name_is_given_away_nobody_else_has_it(bench: Bench) -> None:
    client = bench.client()
    for name in ("x", "next", "other"):
        client.sealed(name)
    client.ask(Publish("x", "next"))
    client.ask(Publish("free", "other"))
    client.sealed("third")
    for request in (
        Publish("x", "third"),
        Publish("free", "third"),
        Publish("third", "next"),
        Publish("next", "third"),
        Publish("y", "x"),
        Destroy("x"),
        Destroy("next"),
        Seal("making"),
    ):
        code = ErrorCode.ARRAY_NOT_FOUND if request == Seal("making") else ErrorCode.ARRAY_BUSY
        refused(bench, client, request, code)
    for name in ("free", "x", "next"):
        refused(bench, client, CreateArray(array_spec(name)), ErrorCode.ARRAY_EXISTS)
    assert client.attach("x").array.segment.segment_id == 1
    assert client.attach("next").array.sealed
    client.refused(Attach("next", readonly=False), ErrorCode.ARRAY_SEALED)
    client.call(Seal("next"), Sealed)
    bench.finish_publishing()
    bench.finish_publishing()
    assert [(name, number) for name, _, number in names(client)] == [
        ("free", 3),
        ("third", 4),
        ("x", 2),
    ]


def test_a_source_whose_earlier_generations_are_read_stays(bench: Bench) -> None:
    client = bench.client()
    client.publish("x")
    client.publish("x")
    failed = refused(bench, client, Publish("y", "x"), ErrorCode.ARRAY_BUSY)
    assert "generation 1" in failed.had
    for number in mine(bench, client):
        client.call(Detach(number), Detached)
    client.ask(Publish("y", "x"))
    bench.finish_publishing()
    assert names(client) == [("y", 1, 2)]


def test_a_plan_does_not_replace_what_it_is_made_of(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    first = plan(client, "first", 1)
    plan(client, "second", first)
    for source in ("first", "second"):
        refused(bench, client, Publish("A", source), ErrorCode.INVALID_SPEC)
    refused(bench, client, Publish("first", "second"), ErrorCode.INVALID_SPEC)
    client.ask(Publish("second", "first"))
    bench.finish_publishing()
    assert names(client) == [("A", 1, 1), ("second", 2, first)]


# What goes with what ----------------------------------------------------------


def test_a_plan_goes_with_the_generation_that_it_was_made_of(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    client.publish("A")
    made_of = plan(client, "P", 1)
    lease = reader.attach("A")
    client.publish("A")
    client.exit()
    assert bench.unlinked == []
    reader.call(Detach(lease.lease), Detached)
    assert bench.unlinked == [1, made_of]


def test_generations_of_a_plan_that_lost_their_matrix_go_together(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.sealed("A")
    first = plan(client, "one", 1)
    client.ask(Publish("P", "one"))
    bench.finish_publishing()
    lease = client.attach("P")
    second = plan(client, "two", 1)
    client.ask(Publish("P", "two"))
    bench.finish_publishing()
    client.ask(SubmitJob("spmv", (Operand("plan", "one", segment_id=first),), (0, 1)))
    part = worker.part()
    client.call(Destroy("A"), Destroyed)
    assert bench.unlinked == [1], "a job uses the older one, and that would have the name"
    worker.done(part)
    assert bench.unlinked == [1, first, second]
    client.call(Detach(lease.lease), Detached)


def test_a_generation_that_was_made_later_and_published_earlier_goes_once(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    newest, oldest = plan(client, "one", 1), plan(client, "two", 1)
    for source in ("two", "one"):
        client.ask(Publish("P", source))
        bench.finish_publishing()
        client.attach("P")
    client.call(Destroy("A"), Destroyed)
    assert bench.unlinked == [1, oldest, newest]


def test_a_plan_that_lost_its_matrix_while_it_is_replaced_waits(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    old = plan(client, "P", 1)
    client.sealed("B")
    new = plan(client, "next", client.attach("B").array.segment.segment_id)
    client.ask(Publish("P", "next"))
    client.call(Destroy("A"), Destroyed)
    assert bench.unlinked == [1]
    bench.finish_publishing()
    assert bench.unlinked == [1, old]
    assert client.call(Describe("P"), Described).array.segment.segment_id == new


def test_destroying_a_name_destroys_its_generations_oldest_first(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    client.publish("x")
    client.publish("x")
    reader.attach("x")
    client.publish("x")
    assert client.call(Destroy("x"), Destroyed)
    assert bench.unlinked == [1, 2, 3]
    assert client.call(Stats(), Counted).nbytes == 0
    client.create("x")


def test_a_name_is_not_destroyed_while_a_job_uses_an_older_generation(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    client.publish("x")
    client.submit(("x", "x"), rows=(0, 1))
    client.publish("x")
    client.refused(Destroy("x"), ErrorCode.ARRAY_BUSY)
    worker.done(worker.part())
    client.call(Destroy("x"), Destroyed)


# Asked again, and the end -----------------------------------------------------


def test_a_publication_that_was_done_is_not_done_twice(bench: Bench) -> None:
    client, other = bench.client(), bench.client(uid=1001)
    client.publish("x")
    assert client.call(Publish("x", "next", 1), Published).array.generation == 1
    other.refused(Publish("x", "next", 1), ErrorCode.NOT_PERMITTED)
    client.publish("x")
    failed = client.refused(Publish("x", "next", 1), ErrorCode.SEGMENT_CHANGED)
    assert failed.had == "generation 1 of 2"
    assert bench.publishing == {}


def test_a_publication_under_way_is_joined(bench: Bench) -> None:
    client = bench.client()
    mine_ = held(client.sealed("next"))
    before, old = client.ask(Publish("x", "next")), client.peer
    client.resume(mine_)
    client.refused(Publish("y", "next"), ErrorCode.ARRAY_BUSY)
    asked = client.ask(Publish("x", "next"))
    client.refused(Publish("x", "next"), ErrorCode.ARRAY_BUSY)
    bench.finish_publishing()
    assert client.reply(asked, Published).array.generation == 1
    assert bench.replies[old, before] == []


@pytest.mark.parametrize("well", [True, False])
def test_a_publication_goes_on_without_its_asker(bench: Bench, well: bool) -> None:
    client, other = bench.client(), bench.client()
    client.sealed("next")
    client.ask(Publish("x", "next"))
    client.exit()
    if well:
        bench.finish_publishing()
    else:
        bench.refuse_publishing()
    assert [name for name, _, _ in names(other)] == ["x" if well else "next"]


def test_a_stop_waits_for_a_publication(bench: Bench) -> None:
    client = bench.client()
    client.sealed("next")
    correlation = client.ask(Publish("x", "next"))
    client.sealed("late")
    bench.stop()
    client.refused(Publish("y", "late"), ErrorCode.COORDINATOR_UNREACHABLE)
    assert bench.stops == 0
    bench.finish_publishing()
    client.reply(correlation, Published)
    assert bench.stops == 1


def test_a_second_signal_does_not_wait_for_a_publication(bench: Bench) -> None:
    client = bench.client()
    client.sealed("next")
    correlation = client.ask(Publish("x", "next"))
    bench.stop()
    effects = bench.handle(StopRequested("again"))
    assert client.reply(correlation, Failed).code == ErrorCode.COORDINATOR_UNREACHABLE
    assert not any(isinstance(effect, UnlinkSegment) for effect in effects)
    assert bench.stops == 1
