"""How much there may be, in all and of one user: one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode, InvalidSpecError
from hugepool_common.messages import (
    Cancel,
    Cancelled,
    Counted,
    CreateArray,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    Stats,
)
from hugepool_server.coordinator import Limits
from support.coordination import Bench, array_spec

TEN = Limits(max_bytes=80)


@pytest.mark.parametrize("limit", ["max_bytes", "max_bytes_per_user"])
def test_a_quota_is_kept_to_the_byte(limit: str) -> None:
    bench = Bench(Limits(**{limit: 80}))
    client = bench.client()
    client.create("a", 6)
    before = repr(bench.coordinator)
    failed = client.refused(CreateArray(array_spec("b", 5)), ErrorCode.QUOTA_EXCEEDED)
    assert (failed.needed, failed.had, failed.where) == ("40 B", "48 B of 80 B taken", "b")
    assert failed.remedy
    assert (repr(bench.coordinator), bench.making) == (before, {})
    client.create("b", 4)
    client.create("c", 0)
    client.refused(CreateArray(array_spec("d", 1)), ErrorCode.QUOTA_EXCEEDED)


def test_a_user_has_a_quota_of_its_own() -> None:
    bench = Bench(Limits(max_bytes=150, max_bytes_per_user=80))
    client, same, other = bench.client(), bench.client(), bench.client(uid=1001)
    client.create("a", 6)
    failed = same.refused(CreateArray(array_spec("b", 5)), ErrorCode.QUOTA_EXCEEDED)
    assert "uid 1000" in failed.message
    other.create("b", 10)
    failed = client.refused(CreateArray(array_spec("c", 4)), ErrorCode.QUOTA_EXCEEDED)
    assert "all arrays" in failed.message


def test_what_is_being_made_counts_until_it_is_known_to_be_gone() -> None:
    bench = Bench(TEN)
    client = bench.client()
    correlation = client.ask(CreateArray(array_spec("a", 10)))
    client.refused(CreateArray(array_spec("b", 1)), ErrorCode.QUOTA_EXCEEDED)
    assert client.call(Cancel(correlation), Cancelled).found
    client.refused(CreateArray(array_spec("b", 1)), ErrorCode.QUOTA_EXCEEDED)
    bench.refuse_making("a")
    refused = client.ask(CreateArray(array_spec("b", 10)))
    bench.refuse_making("b")
    assert client.reply(refused, Failed)
    client.create("c", 10)
    client.call(Destroy("c"), Destroyed)
    given_up = client.ask(CreateArray(array_spec("d", 10)))
    client.call(Cancel(given_up), Cancelled)
    bench.finish_making("d")
    client.create("e", 10)


def test_what_is_superseded_counts_as_long_as_it_is_kept() -> None:
    bench = Bench(Limits(max_bytes=3 * 8000))
    client = bench.client()
    reader = bench.client()
    client.publish("x")
    lease = reader.attach("x")
    client.publish("x")
    client.exit()
    client = bench.client()
    client.create("y")
    client.refused(CreateArray(array_spec("z")), ErrorCode.QUOTA_EXCEEDED)
    reader.call(Detach(lease.lease), Detached)
    client.create("z")


def test_what_is_lost_does_not_count() -> None:
    bench = Bench(TEN)
    client = bench.client()
    client.create("a", 10)
    bench.lost.add(1)
    bench.restart()
    client.resume()
    client.create("b", 10)
    client.call(Destroy("a"), Destroyed)
    client.refused(CreateArray(array_spec("c", 1)), ErrorCode.QUOTA_EXCEEDED)


def test_quotas_are_told() -> None:
    bench = Bench(Limits(max_bytes=5000, max_bytes_per_user=70), epoch=7)
    counted = bench.client().call(Stats(), Counted)
    assert (counted.quota_bytes, counted.user_quota_bytes) == (5000, 70)
    assert (counted.epoch, counted.lost) == (7, 0)
    assert Bench().client().call(Stats(), Counted).quota_bytes == 0


@pytest.mark.parametrize("limit", ["max_bytes", "max_bytes_per_user"])
def test_a_quota_below_nothing_is_refused(limit: str) -> None:
    with pytest.raises(InvalidSpecError, match=f"{limit} is too small .needed 0, had -1"):
        Limits(**{limit: -1})
