"""How sessions begin, go on at another connection, and end: one short story a test."""

from __future__ import annotations

import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    Bind,
    Bound,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Hello,
    Request,
    Resume,
    Resumed,
    Stats,
    Welcome,
)
from hugepool_server.events import UnwatchProcess
from support.coordination import REFUSAL, Bench, held


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Beginning --------------------------------------------------------------------


def test_a_session_begins_when_its_process_was_seen_to_hold_the_lock(bench: Bench) -> None:
    client = bench.client(hello=False)
    welcome = client.hello()
    assert welcome.token and not welcome.resumed and welcome.durable
    client.refused(Stats(), ErrorCode.PROTOCOL)
    assert client.bind() == Bound()
    client.call(Bind(), Bound)
    client.create("x")


def test_who_does_not_hold_the_lock_has_no_session(bench: Bench) -> None:
    client = bench.client(hello=False)
    client.hello()
    client.refused(Bind(), ErrorCode.NOT_PERMITTED)
    assert bench.watched == {} and bench.tokens == {}
    client.refused(Bind(), ErrorCode.PROTOCOL)


def test_without_a_token_there_is_no_session(bench: Bench) -> None:
    bench.automatic = False
    client = bench.client(hello=False)
    correlation = client.ask(Hello("test", "0.1"))
    assert client.replies(correlation) == []
    effects = bench.refuse_token()
    assert client.reply(correlation, Failed) == REFUSAL
    assert effects[-1] == UnwatchProcess(1)


# Going on ---------------------------------------------------------------------


def test_a_client_goes_on_with_the_next_coordinator(bench: Bench) -> None:
    client = bench.client()
    lease = client.create("x")
    number = client.session
    bench.restart()
    assert bench.watched == {number: client.identity.pid}
    assert client.resume(held(lease, readonly=False)) == Resumed(())
    assert client.session == number
    assert client.attach("x").array.readers == 2


def test_another_process_does_not_take_a_session_up(bench: Bench) -> None:
    client, thief = bench.client(), bench.client(hello=False)
    bench.restart()
    thief.refused(Hello("test", "0.1", client.token), ErrorCode.NOT_PERMITTED)


def test_a_client_whose_connection_was_renewed_keeps_what_it_tells(bench: Bench) -> None:
    client = bench.client()
    lease = client.create("x")
    client.attach("x")  # the reply is lost
    old = client.peer
    assert client.resume(held(lease, readonly=False)) == Resumed(())
    assert client.attach("x").array.readers == 2
    new, client.peer = client.peer, old
    client.refused(Stats(), ErrorCode.PROTOCOL)
    client.peer = new
    client.call(Goodbye(), GoodbyeSaid)
    assert bench.unlinked == [1]


@pytest.mark.parametrize("request_", [Resume(()), Resume((), more=True)])
def test_who_has_nothing_to_resume_is_told_so(bench: Bench, request_: Request) -> None:
    bench.client().refused(request_, ErrorCode.PROTOCOL)


def test_an_unknown_token_gets_a_new_session(bench: Bench) -> None:
    client = bench.client(hello=False)
    welcome = client.call(Hello("test", "0.1", "f" * 32), Welcome)
    assert not welcome.resumed and welcome.token
