"""Objects that go with their client even when they are sealed: one short story a test."""

from __future__ import annotations

import msgspec
import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    CreateArray,
    Describe,
    Described,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Goodbye,
    GoodbyeSaid,
    Publish,
    Published,
    Seal,
    Sealed,
)
from support.coordination import Bench, Client, array_spec, held


@pytest.fixture
def bench() -> Bench:
    return Bench()


def temporary(client: Client, name: str = "t", *, seal: bool = True) -> ArrayCreated:
    """Create something temporary, and seal it."""
    correlation = client.ask(CreateArray(array_spec(name), temporary=True))
    client.bench.finish_making(name)
    if seal:
        client.ask(Seal(name))
        client.bench.finish_sealing()
    return client.reply(correlation, ArrayCreated)


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("end", ["exit", "goodbye"])
def test_what_is_temporary_goes_with_its_client(bench: Bench, seal: bool, end: str) -> None:
    client = bench.client()
    client.sealed("stays")
    lease = temporary(client, seal=seal)
    client.call(Detach(lease.lease), Detached)
    assert bench.unlinked == [], "as long as its client lives"
    assert bench.disk[2].temporary and not bench.disk[1].temporary
    if end == "exit":
        client.exit()
    else:
        client.call(Goodbye(), GoodbyeSaid)
    assert bench.unlinked == [2]


def test_another_reader_keeps_it_until_it_lets_go(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    temporary(client)
    lease = reader.attach("t")
    client.exit()
    assert reader.call(Describe("t"), Described).reader_pids == (reader.identity.pid,)
    reader.call(Detach(lease.lease), Detached)
    assert bench.unlinked == [1]


def test_a_job_keeps_it_until_it_ends(bench: Bench) -> None:
    client, other, worker = bench.client(), bench.client(), bench.worker()
    temporary(client)
    other.submit(("x", "t"), rows=(0, 1))
    client.exit()
    assert bench.unlinked == []
    worker.done(worker.part())
    assert bench.unlinked == [1]


def test_a_worker_alone_does_not_keep_it(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    temporary(client)
    client.submit(("x", "t"), rows=(0, 1))
    worker.done(worker.part())
    client.exit()
    assert bench.unlinked == [1]


def test_what_is_published_is_there_to_stay(bench: Bench) -> None:
    client = bench.client()
    temporary(client)
    correlation = client.ask(Publish("x", "t"))
    bench.finish_publishing()
    assert client.reply(correlation, Published).array.generation == 1
    assert not bench.disk[1].temporary
    client.exit()
    assert bench.unlinked == []
    bench.restart()
    assert bench.unlinked == []


@pytest.mark.parametrize("well", [True, False])
def test_a_client_that_dies_while_it_publishes(bench: Bench, well: bool) -> None:
    client = bench.client()
    temporary(client)
    client.ask(Publish("x", "t"))
    client.exit()
    assert bench.unlinked == [], "it is not known yet"
    if well:
        bench.finish_publishing()
    else:
        bench.refuse_publishing()
    assert bench.unlinked == ([] if well else [1])


def test_something_temporary_may_be_superseded(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    temporary(client, "x")
    lease = reader.attach("x")
    client.publish("x")
    client.exit()
    assert bench.unlinked == []
    reader.call(Detach(lease.lease), Detached)
    assert bench.unlinked == [1]


def test_its_name_may_be_given_away_while_it_goes(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    temporary(client, "x")
    other.sealed("next")
    other.ask(Publish("x", "next"))
    client.exit()
    assert bench.unlinked == [1]
    bench.finish_publishing()
    assert other.call(Describe("x"), Described).array.segment.segment_id == 2
    other.call(Destroy("x"), Destroyed)
    assert bench.unlinked == [1, 2]


# Across a restart -------------------------------------------------------------


def test_it_is_its_clients_after_a_restart(bench: Bench) -> None:
    client, idle = bench.client(), bench.client()
    lease = held(temporary(client))
    bench.restart()
    client.resume(lease)
    assert client.call(Seal("t"), Sealed).array.readers == 1
    client.exit()
    assert bench.unlinked == [], "another one may have it, and has not told"
    idle.resume()
    assert bench.unlinked == [1]


def test_it_goes_where_its_client_did_not_live_on(bench: Bench) -> None:
    client = bench.client()
    temporary(client)
    bench.locked.discard(client.session)
    bench.restart()
    assert bench.unlinked == [1]


def test_a_reader_of_before_keeps_it_after_a_restart(bench: Bench) -> None:
    client, reader = bench.client(), bench.client()
    temporary(client, "unsealed", seal=False)
    temporary(client)
    lease = held(reader.attach("t"))
    bench.locked.discard(client.session)
    bench.restart()
    assert bench.unlinked == [1], "what was not sealed is of use to nobody"
    assert reader.resume(lease).gone == ()
    assert bench.unlinked == [1]
    reader.call(Detach(lease.lease), Detached)
    assert bench.unlinked == [1, 2]


def test_what_is_lost_and_temporary_goes_with_its_client(bench: Bench) -> None:
    client = bench.client()
    temporary(client)
    bench.lost.add(1)
    bench.restart()
    client.resume()
    assert client.call(Describe("t"), Described).array.lost
    client.exit()
    assert bench.unlinked == [1]


def test_a_temporary_of_before_counts_as_made_now_and_nothing_else_does(bench: Bench) -> None:
    client = bench.client()
    client.ask(CreateArray(array_spec("t"), temporary=True))
    bench.write_made(min(bench.making))
    bench.restart()
    client.resume()
    client.refused(CreateArray(array_spec("t"), again=True), ErrorCode.ARRAY_EXISTS)
    asked = CreateArray(array_spec("t"), again=True, temporary=True)
    assert client.call(asked, ArrayCreated).array.segment.segment_id == 1


def test_a_manifest_of_before_there_were_temporaries_is_read() -> None:
    bench = Bench()
    bench.client().sealed("x")
    record = bench.disk[1]
    old = {key: value for key, value in msgspec.to_builtins(record).items() if key != "temporary"}
    assert msgspec.convert(old, type(record)) == record
