"""Writers of one array that declare which rows are theirs: one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    CreateArray,
    Detach,
    Detached,
    Held,
    Hello,
    Resume,
    Resumed,
    Seal,
    Sealed,
    Welcome,
)
from hugepool_common.spec import ArraySpec, Member
from support.coordination import Bench, Client, held


@pytest.fixture
def bench() -> Bench:
    return Bench()


def with_rows(lease: Attached, rows: tuple[int, int]) -> Held:
    return Held(lease.lease, lease.array.segment.segment_id, readonly=False, rows=rows)


def test_writers_of_disjoint_rows_meet(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.create("x", 100)
    client.attach(readonly=False, rows=(0, 50))
    other.attach(readonly=False, rows=(50, 100))
    assert client.attach(readonly=False, rows=(0, 50)).array.readers == 4, "its own again"
    assert client.attach(readonly=False, rows=(20, 30)).array.readers == 5
    other.attach(readonly=False)  # undeclared writers are as ever
    other.attach(rows=None)


@pytest.mark.parametrize("rows", [(0, 41), (59, 60), (40, 60), (45, 50), (0, 100)])
def test_rows_that_another_declared_are_refused(bench: Bench, rows: tuple[int, int]) -> None:
    client, other = bench.client(), bench.client()
    client.create("x", 100)
    lease = client.attach(readonly=False, rows=(40, 60))
    before = repr(bench.coordinator)
    failed = other.refused(Attach("x", readonly=False, rows=rows), ErrorCode.ARRAY_BUSY)
    assert failed.needed == f"rows {rows[0]} to {rows[1]}"
    assert failed.had == f"rows 40 to 60 of pid {client.identity.pid}"
    assert repr(bench.coordinator) == before
    client.call(Detach(lease.lease), Detached)
    other.attach(readonly=False, rows=rows)


def test_what_is_wrong_with_rows_is_told(bench: Bench) -> None:
    client = bench.client()
    make(client, ArraySpec("x", (100, 7), "<f8"))
    failed = client.refused(Attach("x", readonly=False, rows=(90, 101)), ErrorCode.INVALID_SPEC)
    assert (failed.needed, failed.had) == ("0 <= start < stop <= 100", "90 to 101")
    huge = Attach("x", readonly=False, rows=(0, 10**99))
    assert client.refused(huge, ErrorCode.INVALID_SPEC).had == "0 to 1" + "0" * 74


def test_rows_end_with_their_writer(bench: Bench) -> None:
    client, other, third = bench.client(), bench.client(), bench.client()
    client.create("x", 100)
    other.attach(readonly=False, rows=(0, 100))
    third.refused(Attach("x", readonly=False, rows=(0, 1)), ErrorCode.ARRAY_BUSY)
    other.exit()
    third.attach(readonly=False, rows=(0, 1))


def test_rows_of_different_arrays_are_different(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    client.create("x", 100)
    client.create("y", 100)
    client.attach("x", readonly=False, rows=(0, 100))
    other.attach("y", readonly=False, rows=(0, 100))


@pytest.mark.parametrize("rows", [(0, 0), (5, 4), (-1, 5), (0, 101), (100, 101), (0, 1 << 70)])
def test_rows_that_are_not_there_are_refused(bench: Bench, rows: tuple[int, int]) -> None:
    client = bench.client()
    client.create("x", 100)
    failed = client.refused(Attach("x", readonly=False, rows=rows), ErrorCode.INVALID_SPEC)
    assert failed.needed == "0 <= start < stop <= 100" and len(failed.had) <= 80


def make(client: Client, spec: ArraySpec) -> ArrayCreated:
    correlation = client.ask(CreateArray(spec))
    client.bench.finish_making(spec.name)
    return client.reply(correlation, ArrayCreated)


@pytest.mark.parametrize(
    "spec",
    [
        ArraySpec("x", (), "<f8"),
        ArraySpec("x", (10, 10), "<f8", kind="csr", nnz=5, index_dtype="<i4"),
        ArraySpec("x", (10, 10), "<f8", kind="plan", members=(Member("rows", "<i4", 5),)),
    ],
)
def test_only_an_array_has_rows(bench: Bench, spec: ArraySpec) -> None:
    client = bench.client()
    make(client, spec)
    client.refused(Attach("x", readonly=False, rows=(0, 1)), ErrorCode.INVALID_SPEC)
    client.attach(readonly=False)


def test_rows_are_those_of_the_first_axis(bench: Bench) -> None:
    client = bench.client()
    make(client, ArraySpec("x", (4, 50, 2), "<f8"))
    client.attach(readonly=False, rows=(0, 4))
    client.refused(Attach("x", readonly=False, rows=(0, 5)), ErrorCode.INVALID_SPEC)


def test_readers_and_strangers_declare_nothing(bench: Bench) -> None:
    client, stranger = bench.client(), bench.client(uid=1001)
    client.create("x", 100)
    client.refused(Attach("x", rows=(0, 1)), ErrorCode.INVALID_SPEC)
    stranger.refused(Attach("x", readonly=False, rows=(0, 1)), ErrorCode.NOT_PERMITTED)
    client.ask(Seal("x"))
    client.refused(Attach("x", readonly=False, rows=(0, 1)), ErrorCode.ARRAY_BUSY)
    bench.finish_sealing()
    client.refused(Attach("x", readonly=False, rows=(0, 1)), ErrorCode.ARRAY_SEALED)


def test_a_seal_ends_what_its_writer_declared(bench: Bench) -> None:
    client = bench.client()
    client.create("x", 100)
    client.attach(readonly=False, rows=(0, 10))
    correlation = client.ask(Seal("x"))
    bench.finish_sealing()
    assert client.reply(correlation, Sealed).array.readers == 2


# Across a restart -------------------------------------------------------------


def test_rows_are_a_writers_again_when_it_has_told_them(bench: Bench) -> None:
    client, other = bench.client(), bench.client()
    owner = held(client.create("x", 100), readonly=False)
    lease = other.attach(readonly=False, rows=(0, 50))
    bench.restart()
    client.resume(owner)
    failed = client.refused(Attach("x", readonly=False, rows=(50, 60)), ErrorCode.ARRAY_BUSY)
    assert f"pid {other.identity.pid}" in failed.had, "it may have had any rows"
    client.attach(readonly=False)
    client.create("new", 100)
    client.attach("new", readonly=False, rows=(0, 100))
    other.resume(with_rows(lease, (0, 50)))
    client.attach(readonly=False, rows=(50, 60))
    client.refused(Attach("x", readonly=False, rows=(49, 60)), ErrorCode.ARRAY_BUSY)


def test_who_is_the_last_to_tell_may_declare_while_it_tells(bench: Bench) -> None:
    client = bench.client()
    owner = held(client.create("x", 100), readonly=False)
    bench.restart()
    client.resume(owner, more=True)
    client.attach(readonly=False, rows=(0, 100))


@pytest.mark.parametrize(
    ("rows", "code"),
    [((0, 101), ErrorCode.INVALID_SPEC), ((49, 51), ErrorCode.ARRAY_BUSY)],
)
def test_rows_are_checked_when_they_are_told(
    bench: Bench, rows: tuple[int, int], code: ErrorCode
) -> None:
    client, other = bench.client(), bench.client()
    owner = held(client.create("x", 100), readonly=False)
    mine = client.attach(readonly=False, rows=(50, 100))
    theirs = other.attach(readonly=False, rows=(0, 50))
    bench.restart()
    client.resume(owner, with_rows(mine, (50, 100)))
    other.reconnect()
    other.call(Hello("test", "0.1", other.token), Welcome)
    before = repr(bench.coordinator)
    other.refused(Resume((with_rows(theirs, rows),)), code)
    assert repr(bench.coordinator) == before
    other.call(Resume((with_rows(theirs, (0, 50)),)), Resumed)


def test_a_reader_tells_no_rows(bench: Bench) -> None:
    client = bench.client()
    client.create("x", 100)
    lease = client.attach()
    bench.restart()
    client.reconnect()
    client.call(Hello("test", "0.1", client.token), Welcome)
    told = Held(lease.lease, 1, readonly=True, rows=(0, 1))
    client.refused(Resume((told,)), ErrorCode.INVALID_SPEC)
