"""What the next coordinator makes of what the one before left: one short story a test."""

from __future__ import annotations

import msgspec
import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    Attach,
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
    List,
    Listed,
    Operand,
    Publish,
    Published,
    Request,
    Resume,
    Resumed,
    Seal,
    Sealed,
    Stats,
    SubmitJob,
    Welcome,
)
from hugepool_common.spec import ArraySpec
from hugepool_server.coordinator import Limits
from hugepool_server.events import Recovered, UnlinkSegment, WatchProcess
from hugepool_server.records import ArrayRecord, SessionRecord
from support.coordination import Bench, Client, array_spec, held


@pytest.fixture
def bench() -> Bench:
    return Bench()


def listed(client: Client) -> list[tuple[str, int]]:
    arrays = client.call(List(), Listed).arrays
    return [(info.spec.name, info.segment.segment_id) for info in arrays]


def change(bench: Bench, segment_id: int, **facts: object) -> None:
    """Have a manifest say something else."""
    bench.disk[segment_id] = msgspec.structs.replace(bench.disk[segment_id], **facts)


def kill_all(bench: Bench) -> None:
    """Every client dies with the coordinator."""
    bench.locked.clear()


# Arrays -----------------------------------------------------------------------


def test_nothing_left_is_nothing_recovered(bench: Bench) -> None:
    assert bench.restart() == []
    assert repr(bench.coordinator).startswith("<Coordinator f00d1: 0 sessions, 0 arrays")


def test_a_sealed_array_is_there_as_it_was(bench: Bench) -> None:
    client = bench.client()
    client.sealed("x")
    before = client.call(Describe("x"), Described).array
    kill_all(bench)
    assert bench.restart() == []
    after = bench.client().call(Describe("x"), Described).array
    assert after == msgspec.structs.replace(before, readers=0, created_ns=after.created_ns)
    assert after.created_ns == bench.disk[1].created_ns
    assert after.sealed and after.checksum


def test_an_unsealed_array_stays_with_its_owner(bench: Bench) -> None:
    client, dead = bench.client(), bench.client()
    mine = held(client.create("mine"), readonly=False)
    dead.create("theirs")
    bench.locked.discard(dead.session)
    bench.restart()
    assert bench.unlinked == [2]
    client.resume(mine)
    client.create("more")
    client.call(Goodbye(), GoodbyeSaid)
    assert sorted(bench.unlinked) == [1, 2, (1 << 32) + 1]


def test_an_array_whose_owner_did_not_live_to_see_it_sealed_is_gone(bench: Bench) -> None:
    client, dead = bench.client(), bench.client()
    dead.create("x")
    writer = held(client.attach("x", readonly=False), readonly=False)
    bench.locked.discard(dead.session)
    bench.restart()
    assert bench.unlinked == [1], "its pages do not wait for others to be heard of"
    assert client.resume(writer).gone == (1,)


@pytest.mark.parametrize("heard", [False, True])
def test_an_array_whose_owner_ends_before_others_are_heard_of_is_gone(
    bench: Bench, heard: bool
) -> None:
    owner, writer = bench.client(), bench.client()
    owner.create("x")
    lease = held(writer.attach("x", readonly=False), readonly=False)
    bench.restart()
    if heard:
        assert writer.resume(lease).gone == ()
    owner.exit()
    assert bench.unlinked == ([] if heard else [1]), "who came back writes on"
    if heard:
        sealing = writer.ask(Seal("x"))
        bench.finish_sealing()
        writer.reply(sealing, Sealed)
    else:
        assert writer.resume(lease).gone == (1,)


def test_an_unsealed_array_of_nobody_goes_at_once(bench: Bench) -> None:
    bench.client().create("x")
    kill_all(bench)
    (effect,) = bench.restart()
    assert isinstance(effect, UnlinkSegment)
    assert bench.disk == {}


def test_a_plan_goes_with_its_matrix_however_long_that_is_gone(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    client.sealed("P")
    change(bench, 2, spec=msgspec.structs.replace(array_spec("P"), made_of=1))
    bench.restart()
    assert bench.unlinked == []
    client.resume()
    client.call(Destroy("A"), Destroyed)
    assert bench.unlinked == [1, 2]


def test_a_plan_whose_matrix_is_not_there_is_not_there(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    client.sealed("P")
    change(bench, 2, spec=msgspec.structs.replace(array_spec("P"), made_of=1))
    del bench.disk[1]
    bench.restart()
    assert bench.unlinked == [2]


def test_a_coordinator_may_die_again_and_again(bench: Bench) -> None:
    client = bench.client()
    mine = held(client.create("x"), readonly=False)
    other = held(client.sealed("y"))
    for _ in range(3):
        bench.restart()
        assert listed(bench.client()) == [("x", 1), ("y", 2)]
    client.resume(mine, other)
    assert client.call(Describe("x"), Described).reader_pids == (client.identity.pid,)


# Lost -------------------------------------------------------------------------


LOST: list[Request] = [
    Attach("x"),
    Attach("x", readonly=False),
    Seal("x"),
    Seal("y", 1),
    Publish("y", "x"),
    SubmitJob("gather", (Operand("x", "x"),), (0, 1)),
]


def lose(bench: Bench) -> Client:
    """Restart with x, of one lease, lost; returns the client that had it."""
    client = bench.client()
    mine = held(client.sealed("x"))
    bench.lost.add(1)
    bench.restart()
    assert client.resume(mine).gone == (1,)
    return client


@pytest.mark.parametrize("request_", LOST, ids=lambda request: type(request).__name__)
def test_what_is_lost_keeps_its_name_and_no_more(bench: Bench, request_: Request) -> None:
    client = lose(bench)
    bench.worker()
    failed = client.refused(request_, ErrorCode.ARRAY_LOST)
    assert failed.where == "/pool/1" and "destroy" in failed.remedy
    client.refused(CreateArray(array_spec("x")), ErrorCode.ARRAY_EXISTS)
    client.refused(CreateArray(array_spec("x"), again=True), ErrorCode.ARRAY_EXISTS)


def test_what_is_lost_is_shown(bench: Bench) -> None:
    client = lose(bench)
    info = client.call(Describe("x"), Described).array
    assert info.lost and info.sealed and info.readers == 0
    assert client.call(List(), Listed).arrays[0].lost
    counted = client.call(Stats(), Counted)
    assert (counted.arrays, counted.lost, counted.nbytes) == (0, 1, 0)


def test_what_is_lost_may_be_destroyed(bench: Bench) -> None:
    client = lose(bench)
    bench.client(uid=1001).refused(Destroy("x"), ErrorCode.NOT_PERMITTED)
    client.call(Destroy("x"), Destroyed)
    assert bench.disk == {}
    client.create("x")


def test_what_is_lost_may_be_replaced(bench: Bench) -> None:
    bench.client()  # that is not heard of again
    client = lose(bench)
    assert client.publish("x").array.generation == 2
    assert bench.unlinked == [1]
    assert not client.call(Describe("x"), Described).array.lost


def test_what_is_made_of_something_lost_stays_and_nothing_new_is(bench: Bench) -> None:
    client = bench.client()
    client.sealed("A")
    client.sealed("P")
    change(bench, 2, spec=msgspec.structs.replace(array_spec("P"), made_of=1))
    bench.lost.add(1)
    bench.restart()
    client.resume()
    client.attach("P")
    spec = msgspec.structs.replace(array_spec("Q"), made_of=1)
    client.refused(CreateArray(spec), ErrorCode.SEGMENT_CHANGED)
    client.call(Destroy("A"), Destroyed)
    assert bench.unlinked == [1, 2]


def test_an_unsealed_array_that_is_lost_goes_with_its_owner(bench: Bench) -> None:
    client = bench.client()
    client.create("x")
    bench.lost.add(1)
    bench.restart()
    client.resume()
    info = client.call(Describe("x"), Described).array
    assert info.lost and not info.sealed
    client.exit()
    assert bench.unlinked == [1]


def test_a_segment_too_short_for_its_array_is_lost(bench: Bench) -> None:
    client = bench.client()
    created = client.sealed("x")
    change(bench, 1, segment=msgspec.structs.replace(created.array.segment, length=7999))
    bench.restart()
    assert client.resume(held(created)).gone == (1,)
    client.refused(Attach("x"), ErrorCode.ARRAY_LOST)


def test_a_segment_as_long_as_its_array_is_not_lost(bench: Bench) -> None:
    client = bench.client()
    created = client.sealed("x")
    change(bench, 1, segment=msgspec.structs.replace(created.array.segment, length=8000))
    bench.restart()
    assert client.resume(held(created)).gone == ()
    assert client.attach("x").array.segment.length == 8000


# Generations ------------------------------------------------------------------


def two_generations(bench: Bench) -> tuple[Client, Held]:
    """A reader of generation 1, and its lease; generation 2 is segment 2."""
    client, reader = bench.client(), bench.client()
    client.publish("x")
    lease = reader.attach("x")
    client.publish("x")
    bench.locked.discard(client.session)
    return reader, held(lease)


def test_the_highest_generation_has_the_name(bench: Bench) -> None:
    reader, _ = two_generations(bench)
    bench.restart()
    other = bench.client()
    assert listed(other) == [("x", 2)]
    assert other.call(Describe("x"), Described).array.generation == 2
    assert bench.unlinked == [], "who reads the other has not told yet"
    reader.resume()
    assert bench.unlinked == [1]


def test_a_superseded_generation_stays_for_who_resumes_it(bench: Bench) -> None:
    reader, lease = two_generations(bench)
    bench.restart()
    reader.reconnect()
    reader.call(Hello("test", "0.1", reader.token), Welcome)
    client = bench.client()
    client.publish("x")
    assert client.call(Describe("x"), Described).array.generation == 3
    assert bench.unlinked == []
    reader.call(Resume((lease,)), Resumed)
    assert bench.unlinked == [2]
    reader.call(Detach(lease.lease), Detached)
    assert bench.unlinked == [2, 1]


def test_a_superseded_generation_goes_with_the_last_that_might_have_it(bench: Bench) -> None:
    reader, _ = two_generations(bench)
    bench.restart()
    reader.exit()
    assert bench.unlinked == [1]


def test_a_superseded_generation_that_is_lost_goes_at_once(bench: Bench) -> None:
    bench.client().sealed("before")
    client = bench.client()
    client.publish("x")
    client.attach("x")
    client.publish("x")
    bench.client().sealed("y")
    bench.lost.add(2)
    bench.restart()
    assert bench.unlinked == [2]
    assert listed(bench.client()) == [("before", 1), ("x", 3), ("y", 4)]


def test_a_lost_generation_keeps_the_name_from_those_before(bench: Bench) -> None:
    reader, lease = two_generations(bench)
    bench.lost.add(2)
    bench.restart()
    assert reader.resume(lease).gone == ()
    reader.refused(Attach("x"), ErrorCode.ARRAY_LOST)
    assert reader.call(Describe("x"), Described).array.lost
    reader.call(Destroy("x"), Destroyed)
    assert bench.unlinked == [1, 2]


def test_a_publication_is_done_when_it_is_written(bench: Bench) -> None:
    client = bench.client()
    client.sealed("x")
    client.sealed("next")
    client.ask(Publish("x", "next"))
    bench.write_published(min(bench.publishing))
    bench.restart()
    client.resume()
    assert bench.unlinked == [1]
    assert listed(client) == [("x", 2)]
    assert client.call(Publish("x", "next", 2), Published).array.generation == 2


@pytest.mark.parametrize("later_first", [False, True])
def test_of_two_makers_of_one_name_the_later_has_it(bench: Bench, later_first: bool) -> None:
    client, other = bench.client(), bench.client()
    client.ask(CreateArray(array_spec("x")))
    first = min(bench.making)
    client.call(Goodbye(), GoodbyeSaid)
    other.ask(CreateArray(array_spec("x")))
    for token in sorted([first, max(bench.making)], reverse=later_first):
        bench.write_made(token)
    bench.restart()
    assert bench.unlinked == [1]
    other.resume()
    assert listed(other) == [("x", 2)]


def test_what_was_given_up_does_not_take_the_name_of_what_was_published(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.sealed("next")
    other.ask(CreateArray(array_spec("x")))
    late = min(bench.making)
    other.call(Goodbye(), GoodbyeSaid)
    client.ask(Publish("x", "next"))
    bench.finish_publishing()
    bench.write_made(late)
    bench.restart()
    assert bench.unlinked == [2]
    assert listed(bench.client()) == [("x", 1)]


# What no coordinator wrote ----------------------------------------------------


def nonsense(record: ArrayRecord) -> list[ArrayRecord]:
    """Manifests with a right CRC that are wrong."""
    replace = msgspec.structs.replace
    spec, segment = record.spec, record.segment
    return [
        replace(record, spec=replace(spec, name="../x")),
        replace(record, spec=replace(spec, shape=(-1,))),
        replace(record, spec=replace(spec, dtype="|O")),
        replace(record, spec=replace(spec, shape=(1 << 48, 2))),
        replace(record, spec=ArraySpec("m", (2, 2), "<f8", kind="csr", nnz=-1, index_dtype="<i4")),
        replace(record, spec=replace(spec, made_of=2)),
        replace(record, spec=replace(spec, made_of=-1)),
        replace(record, segment=replace(segment, segment_id=0)),
        replace(record, segment=replace(segment, segment_id=-7)),
        replace(record, segment=replace(segment, segment_id=(1 << 32) + 1)),
        replace(record, segment=replace(segment, segment_id=1)),
        replace(record, generation=0),
        replace(record, generation=-1),
        replace(record, generation=2, sealed=False, checksum=""),
        replace(record, sealed=False),
        replace(record, spec=replace(spec, name="x")),
    ]


@pytest.mark.parametrize("which", range(16))
def test_a_manifest_that_no_coordinator_wrote_is_passed_over(bench: Bench, which: int) -> None:
    client = bench.client()
    client.sealed("x")
    client.sealed("bad")
    client.sealed("z")
    bench.disk[2] = nonsense(bench.disk[2])[which]
    kill_all(bench)
    assert bench.restart() == [], "its file stays for a person to look at"
    assert listed(bench.client()) == [("x", 1), ("z", 3)]


def test_sessions_that_no_coordinator_wrote_are_passed_over(bench: Bench) -> None:
    client = bench.client()
    good = bench.tokens[client.session]
    replace = msgspec.structs.replace
    bad = [
        replace(good, session=0),
        replace(good, session=(1 << 32) + 1),
        replace(good, session=7, token="../../etc/passwd"),
        replace(good, session=8, token="F" * 32),
        replace(good, session=9),
        replace(good, token="a" * 32),
    ]
    fresh = Bench(epoch=1)
    effects = fresh.handle(Recovered((), frozenset(), (good, *bad)))
    assert effects == [WatchProcess(good.session, client.identity.pid)]


def test_what_a_client_called_itself_is_cut(bench: Bench) -> None:
    client = bench.client()
    record: SessionRecord = bench.tokens[client.session]
    fresh = Bench(epoch=1)
    long = msgspec.structs.replace(record, client="x" * 8000)
    fresh.handle(Recovered((), frozenset(), (long,)))
    (session,) = fresh.coordinator._state.leases.sessions
    assert len(session.client) == 200


# Limits -----------------------------------------------------------------------


def test_what_was_there_counts_and_is_not_refused() -> None:
    bench = Bench()
    client = bench.client()
    for name in "abc":
        client.sealed(name)
    bench.limits = Limits(max_arrays=2, max_bytes=100, max_bytes_per_user=50)
    bench.restart()
    client.resume()
    client.refused(CreateArray(array_spec("d", 1)), ErrorCode.QUOTA_EXCEEDED)
    for name in "abc":
        client.call(Destroy(name), Destroyed)
    client.create("d", 1)


def test_arrays_are_limited_by_those_that_were_there() -> None:
    bench = Bench()
    bench.client().sealed("a")
    bench.limits = Limits(max_arrays=1)
    bench.restart()
    assert bench.client().call(CreateArray(array_spec("d", 1)), Failed).code == (
        ErrorCode.NOT_ENOUGH_MEMORY
    )
