"""Several objects published in one step: all of them or none."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    CreateArray,
    Destroy,
    Destroyed,
    Failed,
    List,
    Listed,
    PublicationsTold,
    Publish,
    PublishAll,
    Published,
    PublishedAll,
    Seal,
)
from hugepool_common.spec import ArraySpec, Member
from hugepool_server.coordinator import Limits
from hugepool_server.events import PublishGeneration, PublishTogether
from support.coordination import COORDINATOR_UID, REFUSAL, Bench, Client, array_spec, held


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def client(bench: Bench) -> Client:
    return bench.client()


def temporary(client: Client, name: str) -> int:
    """A sealed object that goes with its client; its segment id."""
    client.ask(CreateArray(array_spec(name), temporary=True))
    client.bench.finish_making(name)
    client.ask(Seal(name))
    client.bench.finish_sealing()
    return next(one for found, _, one in names(client) if found == name)


def names(client: Client) -> list[tuple[str, int, int]]:
    listed = client.call(List(), Listed).arrays
    return [(info.spec.name, info.generation, info.segment.segment_id) for info in listed]


def batch(*wanted: tuple[str, int], replace: bool = False) -> PublishAll:
    return PublishAll(
        tuple(name for name, _ in wanted), tuple(one for _, one in wanted), replace=replace
    )


# The step ---------------------------------------------------------------------


def test_all_names_change_in_one_step(bench: Bench, client: Client) -> None:
    client.publish("a")
    client.publish("a")
    new = [temporary(client, f"t{number}") for number in range(3)]
    before = names(client)
    correlation = client.ask(batch(("a", new[0]), ("b", new[1]), ("c", new[2]), replace=True))
    (effect,) = bench.publishing_together.values()
    assert [(one.segment_id, one.name, one.generation) for one in effect.publications] == [
        (new[0], "a", 3),
        (new[1], "b", 1),
        (new[2], "c", 1),
    ]
    assert names(client) == before, "not before it is written"
    assert client.replies(correlation) == []
    bench.finish_publishing_together()
    assert client.replies(correlation) == [PublishedAll()], "answered once"
    assert names(client) == [("a", 3, new[0]), ("b", 1, new[1]), ("c", 1, new[2])]
    client.exit()
    assert len(names(bench.client())) == 3, "they are there to stay"


def test_one_by_itself(bench: Bench, client: Client) -> None:
    new = temporary(client, "t")
    correlation = client.ask(batch(("a", new)))
    bench.finish_publishing_together()
    client.reply(correlation, PublishedAll)
    assert names(client) == [("a", 1, new)]


def test_none_at_all(client: Client) -> None:
    client.call(batch(), PublishedAll)


def test_a_failed_step_leaves_all_names(bench: Bench, client: Client) -> None:
    client.publish("a")
    new = [temporary(client, name) for name in ("t", "u")]
    before = names(client)
    correlation = client.ask(batch(("a", new[0]), ("b", new[1]), replace=True))
    bench.refuse_publishing_together()
    assert client.replies(correlation) == [REFUSAL]
    assert names(client) == before
    client.exit()
    assert [name for name, _, _ in names(bench.client())] == ["a"], "what is temporary goes"


def test_a_lost_object_is_replaced_and_goes(bench: Bench, client: Client) -> None:
    mine = held(client.sealed("a"))
    bench.lost.add(1)
    bench.restart()
    client.resume(mine)
    new = temporary(client, "t")
    client.ask(batch(("a", new), replace=True))
    bench.finish_publishing_together()
    assert names(client) == [("a", 2, new)]
    assert bench.unlinked == [1]


# What is refused, whole -------------------------------------------------------


def refused(client: Client, request: PublishAll, code: ErrorCode) -> Failed:
    before = names(client)
    failed = client.refused(request, code)
    assert client.bench.publishing_together == {}
    assert names(client) == before
    return failed


def test_names_that_are_taken(bench: Bench, client: Client) -> None:
    client.sealed("a")
    new = [temporary(client, name) for name in ("t", "u")]
    failed = refused(client, batch(("b", new[0]), ("a", new[1])), ErrorCode.ARRAY_EXISTS)
    assert failed.where == "a"
    client.ask(CreateArray(array_spec("c")))
    refused(client, batch(("b", new[0]), ("c", new[1]), replace=True), ErrorCode.ARRAY_BUSY)
    refused(client, batch(("b", new[0]), ("c", new[1])), ErrorCode.ARRAY_BUSY)
    bench.finish_making("c")
    failed = refused(
        client, batch(("b", new[0]), ("c", new[1]), replace=True), ErrorCode.ARRAY_BUSY
    )
    assert failed.where == "c" and "not sealed" in failed.message


def test_what_is_gone_or_open(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u")]
    client.create("open")
    opened = names(client)[0][2]
    client.call(Destroy("u"), Destroyed)
    failed = refused(client, batch(("a", new[0]), ("b", new[1])), ErrorCode.SEGMENT_CHANGED)
    assert failed.where == "b"
    refused(client, batch(("a", new[0]), ("b", opened)), ErrorCode.ARRAY_BUSY)
    refused(client, batch(("a", new[0]), ("b", 99)), ErrorCode.SEGMENT_CHANGED)


def test_batches_that_contradict_themselves(client: Client) -> None:
    first, second = (temporary(client, name) for name in ("t", "u"))
    invalid = ErrorCode.INVALID_SPEC
    refused(client, batch(("a", first), ("a", second)), invalid)
    refused(client, batch(("a", first), ("b", first)), invalid)
    refused(client, batch(("u", first), ("a", second)), invalid)
    refused(client, batch(("../a", first)), invalid)
    refused(client, PublishAll(("a", "b"), (first,)), invalid)


def test_another_users_arrays(bench: Bench, client: Client) -> None:
    stranger = bench.client(uid=1001)
    stranger.sealed("theirs")
    mine, theirs = temporary(client, "t"), temporary(stranger, "u")
    denied = ErrorCode.NOT_PERMITTED
    refused(client, batch(("a", mine), ("b", theirs)), denied)
    refused(client, batch(("theirs", mine), replace=True), denied)
    root = bench.client(uid=COORDINATOR_UID)
    root.ask(batch(("theirs", mine), ("b", theirs), replace=True))
    bench.finish_publishing_together()
    assert [name for name, _, _ in names(root)] == ["b", "theirs"]


def test_a_plan_does_not_replace_what_it_is_made_of(bench: Bench, client: Client) -> None:
    client.sealed("a")
    spec = ArraySpec("p", (10,), "<f8", kind="plan", members=(Member("m", "<i4", 5),), made_of=1)
    client.ask(CreateArray(spec))
    bench.finish_making("p")
    client.ask(Seal("p"))
    bench.finish_sealing()
    new = temporary(client, "t")
    refused(client, batch(("b", new), ("a", 2), replace=True), ErrorCode.INVALID_SPEC)


def test_names_that_are_being_given_away(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u", "v")]
    correlation = client.ask(batch(("a", new[0]), ("b", new[1])))
    busy = ErrorCode.ARRAY_BUSY
    for request in (batch(("b", new[2])), batch(("c", new[2]), ("d", new[1]))):
        client.refused(request, busy)
    client.refused(batch(("a", new[0]), ("b", new[1])), busy)  # its asker waits already
    client.refused(Destroy("u"), busy)
    client.refused(Publish("b", "v"), busy)
    client.refused(CreateArray(array_spec("b")), ErrorCode.ARRAY_EXISTS)
    bench.finish_publishing_together()
    client.reply(correlation, PublishedAll)
    single = client.ask(Publish("c", "v"))
    client.refused(batch(("c", new[2])), busy)
    bench.finish_publishing()
    client.reply(single, Published)


# Asked again, and the end -----------------------------------------------------


def test_what_was_done_is_not_done_twice(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u")]
    request = batch(("a", new[0]), ("b", new[1]))
    client.ask(request)
    bench.finish_publishing_together()
    client.call(request, PublishedAll)
    bench.client(uid=1001).refused(request, ErrorCode.NOT_PERMITTED)
    client.publish("a")
    client.refused(request, ErrorCode.SEGMENT_CHANGED)


def test_a_step_under_way_is_joined(bench: Bench, client: Client) -> None:
    leases = [held(client.sealed(name)) for name in ("t", "u")]
    new = [lease.segment_id for lease in leases]
    request = batch(("a", new[0]), ("b", new[1]))
    before, old = client.ask(request), client.peer
    client.resume(*leases)
    client.refused(batch(("a", new[0])), ErrorCode.ARRAY_BUSY)
    client.refused(Publish("a", "t", new[0]), ErrorCode.ARRAY_BUSY)
    client.refused(Publish("b", "u", new[1]), ErrorCode.ARRAY_BUSY)
    asked = client.ask(request)
    assert client.replies(asked) == []
    client.refused(request, ErrorCode.ARRAY_BUSY)
    bench.finish_publishing_together()
    client.reply(asked, PublishedAll)
    assert bench.replies[old, before] == []


@pytest.mark.parametrize("well", [True, False])
def test_a_step_goes_on_without_its_asker(bench: Bench, client: Client, well: bool) -> None:
    new = [temporary(client, name) for name in ("t", "u")]
    client.ask(batch(("a", new[0]), ("b", new[1])))
    client.exit()
    if well:
        bench.finish_publishing_together()
    else:
        bench.refuse_publishing_together()
    assert [name for name, _, _ in names(bench.client())] == (["a", "b"] if well else [])


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_coordinator_that_ends_in_the_middle_is_followed_by_one_that_ends_it(
    bench: Bench, client: Client, written: int
) -> None:
    client.publish("a")
    leases = [held(client.sealed(name)) for name in ("t", "u")]
    new = [lease.segment_id for lease in leases]
    request = batch(("a", new[0]), ("b", new[1]), replace=True)
    client.ask(request)
    bench.write_published_together(min(bench.publishing_together), written)
    bench.restart()
    client.resume(*leases)
    asked = client.ask(request)
    if written < 2:
        (effect,) = bench.publishing_together.values()
        assert len(effect.publications) == 2 - written
        bench.finish_publishing_together()
    client.reply(asked, PublishedAll)
    assert names(client) == [("a", 2, new[0]), ("b", 1, new[1])]


def test_a_stop_waits_for_a_step_and_begins_none(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u", "v")]
    correlation = client.ask(batch(("a", new[0]), ("b", new[1])))
    bench.stop()
    client.refused(batch(("c", new[2])), ErrorCode.COORDINATOR_UNREACHABLE)
    assert bench.stops == 0
    bench.finish_publishing_together()
    client.reply(correlation, PublishedAll)
    assert bench.stops == 1


# In several messages ----------------------------------------------------------


def page(before: int, *wanted: tuple[str, int], more: bool = True, number: int = 7) -> PublishAll:
    told = batch(*wanted)
    return PublishAll(told.names, told.segment_ids, batch=number, before=before, more=more)


def test_a_batch_of_several_messages(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u", "v")]
    assert client.call(page(0, ("a", new[0])), PublicationsTold).count == 1
    assert client.call(page(1, ("b", new[1])), PublicationsTold).count == 2
    assert len(names(client)) == 3 and bench.publishing_together == {}
    correlation = client.ask(page(2, ("c", new[2]), more=False))
    assert bench.publishing_together == {
        7: PublishTogether(
            7,
            (
                PublishGeneration(7, new[0], "a", 1),
                PublishGeneration(8, new[1], "b", 1),
                PublishGeneration(9, new[2], "c", 1),
            ),
        )
    }
    bench.finish_publishing_together()
    client.reply(correlation, PublishedAll)


def test_what_is_no_name_is_not_kept_for_the_last_message(client: Client) -> None:
    client.refused(page(0, ("/" * 8000, 1)), ErrorCode.INVALID_SPEC)
    assert client.call(page(1, ("b", 2)), PublicationsTold).count == 0


def test_a_message_that_follows_on_nothing_begins_nothing(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u", "v")]
    last = page(1, ("b", new[1]), more=False)
    for other in (
        page(0, ("a", new[0]), number=8),  # another batch
        page(0, ("a", new[0]), ("c", new[2])),  # its answer was lost
    ):
        client.ask(other)
        assert client.call(last, PublicationsTold).count == 0
        assert bench.publishing_together == {}
    assert client.call(page(0, ("a", new[0])), PublicationsTold).count == 1
    other_client = bench.client()
    assert other_client.call(last, PublicationsTold).count == 0, "a batch is its session's own"
    client.ask(last)
    assert bench.publishing_together
    bench.finish_publishing_together()
    assert client.call(last, PublicationsTold).count == 0, "asked again: from the first on"
    client.call(page(0, ("a", new[0]), ("b", new[1]), more=False), PublishedAll)


def test_nothing_follows_on_a_batch_that_was_to_begin_anew(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u")]
    client.call(page(0, ("a", new[0])), PublicationsTold)
    assert client.call(page(2, ("c", 99)), PublicationsTold).count == 0
    assert client.call(page(1, ("b", new[1]), more=False), PublicationsTold).count == 0
    assert bench.publishing_together == {}


def test_nothing_follows_on_a_batch_that_is_done(bench: Bench, client: Client) -> None:
    new = [temporary(client, name) for name in ("t", "u")]
    client.ask(page(0, ("a", new[0]), more=False))
    bench.finish_publishing_together()
    assert client.call(page(1, ("b", new[1]), more=False), PublicationsTold).count == 0
    assert bench.publishing_together == {}


def test_a_batch_may_be_begun_anew(bench: Bench, client: Client) -> None:
    new = temporary(client, "t")
    assert client.call(page(0, ("wrong", new)), PublicationsTold).count == 1
    client.ask(page(0, ("a", new), more=False))
    bench.finish_publishing_together()
    assert names(client) == [("a", 1, new)]


def test_a_batch_is_not_longer_than_there_can_be_arrays() -> None:
    bench = Bench(Limits(max_arrays=3))
    client = bench.client()
    client.call(page(0, *(("a", 1),) * 3), PublicationsTold)
    client.refused(page(3, ("b", 1)), ErrorCode.INVALID_SPEC)
    assert client.call(page(4, ("b", 1)), PublicationsTold).count == 0, "it is to begin anew"


# Destroy by segment -----------------------------------------------------------


def test_only_the_segment_that_is_meant_is_destroyed(bench: Bench, client: Client) -> None:
    client.sealed("a")
    client.call(Destroy("a", 1), Destroyed)
    client.sealed("a")
    assert client.refused(Destroy("a", 1), ErrorCode.SEGMENT_CHANGED).where == "a"
    new = temporary(client, "t")
    client.ask(batch(("b", new)))
    bench.finish_publishing_together()
    client.refused(Destroy("t", new), ErrorCode.ARRAY_NOT_FOUND)
    assert [name for name, _, _ in names(client)] == ["a", "b"]
