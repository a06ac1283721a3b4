"""Publishing under a name that others read: one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common.messages import Describe, Described, Detach, Detached
from support.coordination import Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


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
