"""What is under way when a coordinator ends, and what becomes of it."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from hugepool.holdings import Claim, Doomed
from hugepool.ledger import Ledger
from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    ArrayCreated,
    Attach,
    Attached,
    Cancel,
    Cancelled,
    CoordinatorStopping,
    Counted,
    CreateArray,
    CreateProgress,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    DropSegment,
    Failed,
    Held,
    List,
    Listed,
    Message,
    Operand,
    Publish,
    PublishAll,
    RunPart,
    Seal,
    Sealed,
    Stats,
    SubmitJob,
    WorkersChanged,
)
from support.messages import SPEC, info

NOTHING = Listed((), more=False)

POSTED = 100
"""The number of the first thing that :func:`sent` sends."""


def held(ledger: Ledger) -> list[Held]:
    return [held for page in ledger.holdings.pages() for held in page.leases]


def sent(ledger: Ledger) -> list[Message]:
    """What the next request takes along."""
    messages: list[Message] = []
    while (message := ledger.next_abandoned()) is not None:
        messages.append(message)
        ledger.sent_abandoned(POSTED + len(messages), message)
    return messages


def test_a_reply_stays_until_its_request_is_forgotten() -> None:
    ledger = Ledger()
    ledger.begin(1, List())
    assert ledger.reply(1) is None
    ledger.note(1, NOTHING)
    assert ledger.reply(1) is NOTHING
    ledger.forget(1)
    assert ledger.reply(1) is None


def test_a_reply_to_nothing_that_is_wanted_is_dropped() -> None:
    ledger = Ledger()
    ledger.note(9, NOTHING)
    ledger.note(9, Attached(1, info(1)))
    assert ledger.reply(9) is None
    assert held(ledger) == []


def test_what_is_granted_is_held_before_anybody_looks_at_the_reply() -> None:
    ledger = Ledger()
    ledger.begin(1, Attach("x"))
    ledger.note(1, Attached(4, info(2)))
    assert held(ledger) == [Held(4, 2, readonly=True)]


def test_what_a_request_that_was_given_up_is_granted_goes_back() -> None:
    ledger = Ledger()
    ledger.begin(1, Attach("x"))
    ledger.disown(1)
    ledger.note(1, Attached(4, info(2)))  # while it is being cancelled
    ledger.forget(1)
    ledger.begin(2, CreateArray(SPEC))
    ledger.disown(2)
    ledger.forget(2)
    ledger.note(2, ArrayCreated(5, info(3)))  # after that
    assert sent(ledger) == [Detach(4), Destroy("x", 3)]
    assert held(ledger) == []


def test_notices_of_a_request_are_not_those_of_the_session() -> None:
    ledger = Ledger()
    ledger.note(3, CreateProgress(1, 2))
    ledger.note(0, DropSegment(8))
    ledger.note(0, WorkersChanged())
    assert list(ledger.notices) == [DropSegment(8)]
    assert ledger.workers_changes == 1


def test_requests_under_way_are_asked_of_the_next_coordinator() -> None:
    ledger = Ledger()
    ledger.begin(1, Stats())
    ledger.begin(2, CreateArray(SPEC))
    ledger.begin(3, List())
    ledger.note(3, NOTHING)
    assert ledger.ask_again() == [(1, Stats()), (2, CreateArray(SPEC, again=True))]
    assert [ledger.was_repeated(number) for number in (1, 2, 3)] == [True, True, False]
    assert ledger.reply(3) is NOTHING
    ledger.note(2, ArrayCreated(1 << 32, info(1)))
    assert isinstance(ledger.reply(2), ArrayCreated)
    ledger.forget(2)
    assert not ledger.was_repeated(2)


def test_a_coordinator_that_ends_again_is_followed_again() -> None:
    ledger = Ledger()
    ledger.begin(1, CreateArray(SPEC))
    first, second = ledger.ask_again(), ledger.ask_again()
    assert first == second == [(1, CreateArray(SPEC, again=True))]


def test_a_job_under_way_is_interrupted_and_not_run_twice() -> None:
    ledger = Ledger()
    ledger.begin(1, SubmitJob("gather", (), (0, 10)))
    assert ledger.ask_again() == []
    reply = ledger.reply(1)
    assert isinstance(reply, Failed)
    assert reply.code == ErrorCode.JOB_INTERRUPTED
    assert "submit it again" in reply.remedy


def test_what_only_the_last_coordinator_could_do_is_settled() -> None:
    ledger = Ledger()
    ledger.begin(1, Detach(3))
    ledger.begin(2, Cancel(1))
    assert ledger.ask_again() == []
    assert ledger.reply(2) == Cancelled(found=False)


def test_an_array_whose_making_was_left_open_is_asked_for_as_such() -> None:
    ledger = Ledger()
    ledger.begin(1, CreateArray(SPEC))
    ledger.forget(1, ended=True)  # an interrupt, while nobody was there
    assert ledger.begin(2, CreateArray(SPEC)) == CreateArray(SPEC, again=True)
    ledger.note(2, ArrayCreated(1, info(1)))
    ledger.forget(2)
    assert ledger.begin(3, CreateArray(SPEC)) == CreateArray(SPEC)


def test_an_array_whose_making_was_cancelled_is_not_uncertain() -> None:
    ledger = Ledger()
    ledger.begin(1, CreateArray(SPEC))
    ledger.forget(1)
    assert ledger.begin(2, CreateArray(SPEC)) == CreateArray(SPEC)


def test_leases_that_nobody_holds_any_more_are_not_told() -> None:
    ledger = Ledger()
    for lease in (1, 2):
        ledger.begin(lease, Attach("x"))
        ledger.note(lease, Attached(lease, info(lease)))
        ledger.forget(lease)
    ledger.abandoned.extend([ledger.holdings.claim(1), Detach(9), Destroy("y")])
    ledger.settle_abandoned()
    assert held(ledger) == [Held(2, 2, readonly=True)]
    assert sent(ledger) == [Destroy("y")]


def test_a_handle_that_was_forgotten_gives_its_lease_back_once() -> None:
    ledger = Ledger()
    ledger.begin(1, Attach("x"))
    ledger.note(1, Attached(1, info(1)))
    claim = ledger.holdings.claim(1)
    ledger.abandoned.extend([claim, claim])
    assert sent(ledger) == [Detach(1)]
    assert held(ledger) == []


def test_what_was_abandoned_and_not_answered_is_told_to_the_next_coordinator() -> None:
    """It was sent to one whose end nobody had noticed yet."""
    ledger = Ledger()
    ledger.abandoned.extend([Destroy("x", 1), Destroy("y", 2), Detach(3), Destroy("z", 4)])
    assert len(sent(ledger)) == 4
    ledger.note(POSTED + 1, Destroyed())
    ledger.abandoned.append(Destroy("later", 5))
    for _ in range(2):  # it may end again before the session goes on
        ledger.settle_abandoned()
    assert sent(ledger) == [Destroy("y", 2), Destroy("z", 4), Destroy("later", 5)]


def test_what_the_last_coordinator_wanted_is_void() -> None:
    ledger = Ledger()
    part = RunPart(1, 0, 1, "gather", "auto", (), 0, 10)
    for notice in (part, DropSegment(4), CoordinatorStopping(), DropSegment(5)):
        ledger.note(0, notice)
    assert ledger.stopping
    ledger.disown(17)
    ledger.begin_anew()
    assert list(ledger.notices) == [DropSegment(4), DropSegment(5)]
    assert not ledger.stopping
    assert ledger.workers_changes == 1
    ledger.note(17, ArrayCreated(1, info(1)))  # a number says nothing of another coordinator's
    assert not ledger.abandoned


def test_what_is_asked_again_while_it_is_given_up_goes_back() -> None:
    ledger = Ledger()
    ledger.begin(1, CreateArray(SPEC))
    ledger.disown(1)
    ledger.ask_again()
    ledger.begin_anew()
    ledger.note(1, ArrayCreated(5, info(3)))
    ledger.forget(1)
    assert sent(ledger) == [Destroy("x", 3)]
    assert held(ledger) == []


def test_a_seal_noted_makes_the_lease_one_for_reading() -> None:
    ledger = Ledger()
    ledger.begin(1, CreateArray(SPEC))
    ledger.note(1, ArrayCreated(1, info(1)))
    ledger.begin(2, Seal("x"))
    ledger.note(2, Sealed(info(1)))
    assert held(ledger) == [Held(1, 1, readonly=True)]


def test_a_count_is_a_reply_like_any_other() -> None:
    ledger = Ledger()
    ledger.begin(1, Stats())
    counted = Counted("i", 1, "0", 0, 0, 0, 0, 0, 0, 0, 0, 0, (), ())
    ledger.note(1, counted)
    assert ledger.reply(1) is counted


def test_another_coordinator_is_not_told_to_destroy_by_the_numbers_of_the_last_one() -> None:
    ledger = Ledger()
    ledger.abandoned.extend([Destroy("x", 3), Destroy("out-7"), Detach(4)])
    ledger.forget_segments()
    assert sent(ledger) == [Destroy("out-7"), Detach(4)]


def test_another_coordinator_is_not_asked_by_the_numbers_of_the_last_one() -> None:
    operand = Operand("x", "x", segment_id=3)
    done = [Destroy("x", 3), Detach(4)]
    lost = [
        *(Attach("x", segment_id=3), Seal("x", 3), Publish("y", "x", 3)),
        PublishAll(("x", "y"), (3, 4)),
    ]
    job = SubmitJob("gather", (operand,), (0, 10))
    again = [Destroy("x"), Attach("x"), Seal("x"), Stats()]
    ledger = Ledger()
    requests: list[Message] = [*done, *lost, job, *again]
    for number, request in enumerate(requests):
        ledger.begin(number, request)
    ledger.holdings.lose_all()
    ledger.forget_segments()
    assert [request for _, request in ledger.ask_again()] == again
    replies = [ledger.reply(number) for number in range(len(requests))]
    assert replies[:2] == [Destroyed(), Detached()]
    codes = [reply.code for reply in replies if isinstance(reply, Failed)]
    assert codes == [ErrorCode.ARRAY_LOST] * 4 + [ErrorCode.JOB_INTERRUPTED]
    assert replies[-4:] == [None] * 4


def test_what_is_asked_by_the_numbers_of_another_era_is_answered_and_not_sent() -> None:
    ledger = Ledger()
    era = ledger.holdings.era
    ledger.begin(1, Destroy("x", 3))
    assert not ledger.answer_former(1, era)
    ledger.holdings.lose_all()
    assert ledger.answer_former(1, era)
    assert ledger.reply(1) == Destroyed()
    job = SubmitJob("gather", (Operand("x", "x", segment_id=3),), (0, 10))
    ledger.begin(2, job)  # it had nobody to be sent to
    assert ledger.answer_former(2, era)
    ledger.begin(3, CreateArray(SPEC))
    assert not ledger.answer_former(3, era)
    assert ledger.reply(3) is None


def test_what_a_handle_of_another_era_is_to_take_along_is_not_destroyed() -> None:
    ledger = Ledger()
    for lease in (1, 2):
        ledger.begin(lease, Attach("x"))
        ledger.note(lease, Attached(lease, info(3)))
        ledger.forget(lease)
    former = [ledger.holdings.claim(1), ledger.holdings.claim(2)]
    ledger.abandoned.append(Doomed(Destroy("x", 3), former[0]))
    assert sent(ledger) == [Destroy("x", 3)]
    ledger.holdings.let_go(former[1])  # detached, and still to be destroyed
    ledger.abandoned.append(Doomed(Destroy("y", 3), former[0]))
    ledger.settle_abandoned()
    ledger.holdings.lose_all()
    ledger.forget_segments()
    ledger.abandoned.extend(Doomed(Destroy("x", 3), claim) for claim in former)
    assert sent(ledger) == []


def test_what_was_granted_in_another_era_is_not_given_back() -> None:
    """Ctrl-C, after a thread's reply came and another thread found another coordinator."""
    ledger = Ledger()
    for _ in range(2):
        ledger.begin(1, CreateArray(SPEC))
        ledger.note(1, ArrayCreated(5, info(3)))
        ledger.holdings.lose_all()
        ledger.forget_segments()
        ledger.disown(1)
        ledger.forget(1)
    assert sent(ledger) == []


def test_a_number_that_another_thread_disowns_at_a_reunion_stays_disowned() -> None:
    ledger = Ledger()
    disowned = ledger._unwanted
    ledger.begin(1, Attach("x"))
    ledger.disown(1)
    ledger.disown(2)
    ledger.begin_anew()
    assert disowned is ledger._unwanted, "else what is added to it meanwhile is lost"
    assert disowned == {1}


# While others do something ------------------------------------------------------


def test_what_is_abandoned_as_another_coordinator_takes_over_is_kept() -> None:
    """By the collector, say, or by another thread: it may run at any allocation."""
    ledger = Ledger()

    class Meeting(Destroy, frozen=True):
        def __getattribute__(self, name: str) -> Any:
            if name == "segment_id":
                ledger.abandoned.append(Detach(7))
            return super().__getattribute__(name)

    ledger.abandoned.extend([Meeting("x", 3), Detach(4)])
    ledger.forget_segments()
    assert sent(ledger) == [Detach(7), Detach(4)]


def test_a_notice_that_comes_as_the_ones_before_are_taken_is_taken_next() -> None:
    ledger = Ledger()
    ledger.begin(1, CreateArray(SPEC))
    first, second = CreateProgress(1, 2), CreateProgress(2, 2)
    taken: list[Message] = []

    class Met(dict[int, Any]):
        def setdefault(self, number: int, nothing: Any = None) -> Any:
            found = super().setdefault(number, nothing)
            taken.extend(ledger.take_told(1))  # by its thread, before the second one is added
            return found

    ledger.note(1, first)
    ledger._told = Met(ledger._told)
    ledger.note(1, second)
    taken.extend(ledger.take_told(1))
    assert taken == [first, second]
    ledger.forget(1)
    assert ledger.take_told(1) == []


def test_what_a_signal_s_handler_has_sent_too_takes_nothing_else_along() -> None:
    """The handler makes a request of its own, just after the first one was sent."""
    ledger = Ledger()
    ledger.abandoned.append(Detach(1))
    message = ledger.next_abandoned()
    assert message is not None
    assert sent(ledger) == [Detach(1)]
    ledger.sent_abandoned(1, message)
    ledger.abandoned.append(Detach(1))
    message = ledger.next_abandoned()
    assert message is not None
    assert sent(ledger) == [Detach(1)]
    ledger.abandoned.append(Detach(2))
    ledger.sent_abandoned(2, message)
    assert sent(ledger) == [Detach(2)]


def test_ctrl_c_as_a_lease_is_given_back_leaves_it_to_be_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = Ledger()
    ledger.begin(1, Attach("x"))
    ledger.note(1, Attached(5, info(1)))
    ledger.abandoned.append(ledger.holdings.claim(5))
    let_go = ledger.holdings.let_go

    def interrupted(claim: Claim) -> bool:
        monkeypatch.setattr(ledger.holdings, "let_go", let_go)
        signal.raise_signal(signal.SIGINT)
        return let_go(claim)

    monkeypatch.setattr(ledger.holdings, "let_go", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.next_abandoned()
    assert sent(ledger) == [Detach(5)]
