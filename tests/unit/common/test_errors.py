from __future__ import annotations

import pickle

import pytest

from hugepool_common import errors
from hugepool_common.errors import ERROR_KINDS, ErrorCode, HugepoolError, NotEnoughPagesError
from hugepool_common.messages import Failed


def test_every_code_has_a_class_of_its_own() -> None:
    assert set(ERROR_KINDS) == set(ErrorCode)
    for code, kind in ERROR_KINDS.items():
        assert kind.code == code
        assert issubclass(kind, HugepoolError)


@pytest.mark.parametrize("kind", ERROR_KINDS.values(), ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_facts_through_pickle_and_wire(kind: type[HugepoolError]) -> None:
    error = kind("it broke", needed="2", had="1", where="/dev/shm", remedy="buy one")
    for again in (pickle.loads(pickle.dumps(error)), Failed.from_error(error).to_error()):
        assert type(again) is kind
        assert str(again) == "it broke (needed 2, had 1, at /dev/shm); buy one"


def test_an_error_is_also_its_kin_of_the_standard_library() -> None:
    assert issubclass(NotEnoughPagesError, MemoryError)
    assert issubclass(errors.InvalidSpecError, ValueError)
    assert issubclass(errors.ArrayNotFoundError, KeyError)
    assert issubclass(errors.RequestTimeoutError, TimeoutError)


def test_facts_that_are_not_known_are_not_shown() -> None:
    assert str(HugepoolError("it broke")) == "it broke"
    assert str(HugepoolError("it broke", had="1")) == "it broke (had 1)"


def test_a_foreign_error_crosses_as_internal() -> None:
    failed = Failed.from_error(ZeroDivisionError("by zero"))
    assert failed.code == ErrorCode.INTERNAL
    assert "ZeroDivisionError: by zero" in str(failed.to_error())
    assert type(Failed(9999, "from a newer one").to_error()) is HugepoolError


def test_a_position_crosses_the_wire() -> None:
    error = errors.IndexOutOfRangeError("index 7 of 5")
    error.position = 3
    again = Failed.from_error(error).to_error()
    assert isinstance(again, errors.IndexOutOfRangeError)
    assert again.position == 3
