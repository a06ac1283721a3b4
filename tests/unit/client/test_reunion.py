"""For how long a restarted coordinator is waited for, and what the end of one settles."""

from __future__ import annotations

import pytest

from hugepool import reunion
from hugepool_common.errors import ArrayBusyError, ArrayNotFoundError, InvalidSpecError
from hugepool_common.messages import (
    Attach,
    Destroy,
    Destroyed,
    Detach,
    Detached,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Seal,
    Shutdown,
    ShuttingDown,
    Stats,
    SubmitJob,
)

NOT_FOUND = Failed.from_error(ArrayNotFoundError("no such array"))
BUSY = Failed.from_error(ArrayBusyError("in use"))


@pytest.mark.parametrize(("text", "seconds"), [("", 10.0), ("0", 0.0), ("2.5", 2.5)])
def test_the_patience_is_the_user_s(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv(reunion.RECONNECT_VARIABLE, text)
    assert reunion.reconnect_patience_s() == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_what_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(reunion.RECONNECT_VARIABLE, text)
    with pytest.raises(InvalidSpecError, match=reunion.RECONNECT_VARIABLE):
        reunion.reconnect_patience_s()


def test_a_coordinator_that_ended_in_order_is_not_waited_for() -> None:
    assert reunion.Absence(3600.0, in_order=True).over
    assert not reunion.Absence(3600.0, in_order=False).over
    assert reunion.Absence(0.0, in_order=False).over


def test_the_end_of_a_coordinator_settles_what_concerned_it_alone() -> None:
    assert reunion.settled_by_end(Detach(1)) == Detached()
    assert reunion.settled_by_end(Goodbye()) == GoodbyeSaid()
    assert reunion.settled_by_end(Shutdown()) == ShuttingDown()
    for request in (Attach("x"), Seal("x"), Stats(), SubmitJob("gather", (), (0, 1))):
        assert reunion.settled_by_end(request) is None


def test_only_a_job_is_not_asked_a_second_time() -> None:
    assert reunion.refused_by_end(SubmitJob("gather", (), (0, 1))) is not None
    for request in (Attach("x"), Seal("x"), Stats(), Destroy("x")):
        assert reunion.refused_by_end(request) is None
        assert reunion.second_asking(request) is request


def test_a_name_that_is_gone_at_the_second_asking_was_destroyed_at_the_first() -> None:
    assert reunion.second_answer(Destroy("x"), NOT_FOUND) == Destroyed()
    assert reunion.second_answer(Destroy("x"), BUSY) is BUSY
    assert reunion.second_answer(Attach("x"), NOT_FOUND) is NOT_FOUND
