from __future__ import annotations

import typing

import msgpack
import pytest

from hugepool_common import wire
from hugepool_common.errors import ProtocolError
from hugepool_common.messages import (
    Attach,
    CreateArray,
    FromCoordinator,
    List,
    Message,
    Request,
    SubmitJob,
    TimingReported,
    Welcome,
)
from hugepool_common.spec import ArraySpec

HEAD = [bytes([wire.VERSION]), (7).to_bytes(8, "little")]


def test_a_message_comes_back_as_it_was() -> None:
    request = CreateArray(ArraySpec("x", (3, 4), "<f8"), "on", "2M")
    assert wire.decode_request(wire.encode(2**64 - 1, request)) == (2**64 - 1, request)


def test_the_bytes_of_a_message() -> None:
    """What another version of hugepool reads."""
    assert wire.encode(7, List("x")) == [
        b"\x01",
        b"\x07" + bytes(7),
        b"\x82\xa1m\x08\xa5after\xa1x",
    ]


def test_numbers_of_messages_are_unique_and_in_their_range() -> None:
    numbers: dict[int, type] = {}
    for kinds, low, high in ((Request, 1, 99), (FromCoordinator, 100, 299)):
        for kind in typing.get_args(kinds):
            number = kind.__struct_config__.tag
            assert low <= number <= high, kind
            assert number not in numbers, (kind, numbers[number])
            numbers[number] = kind


def test_the_sides_do_not_read_each_others_messages() -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(wire.encode(1, TimingReported()))
    with pytest.raises(ProtocolError):
        wire.decode_from_coordinator(wire.encode(1, List()))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        HEAD,
        [*HEAD, b"", b""],
        [b"", HEAD[1], b"\x80"],
        [HEAD[0], b"1234567", b"\x80"],
        [bytes([wire.VERSION + 1]), HEAD[1], msgpack.packb({"m": 8})],
        [*HEAD, b""],
        [*HEAD, b"\x80"],
        [*HEAD, b"\xc1"],
        [*HEAD, msgpack.packb({"m": 8}) + b"\xc0"],
        [*HEAD, msgpack.packb({"m": 99})],
        [*HEAD, msgpack.packb({"m": "8"})],
        [*HEAD, msgpack.packb({"m": 8, "extra": 1})],
        [*HEAD, msgpack.packb({"m": 8, "after": 1})],
        [*HEAD, msgpack.packb({"m": 3})],
        [*HEAD, msgpack.packb({1: 2})],
        [*HEAD, msgpack.packb({"m": 8, "after": msgpack.ExtType(1, b"x")})],
        [*HEAD, b"\x82\xa1m\x08\xa1m\x08"],
        [*HEAD, b"\xdd\xff\xff\xff\xff"],
        [*HEAD, b"\xdf\xff\xff\xff\xff"],
        [*HEAD, b"\x91" * 60000],
        [*HEAD, b"\x00" * (wire.MAX_BODY + 1)],
    ],
)
def test_bad_frames_are_typed_errors(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(frames)


def test_a_body_has_a_longest_length() -> None:
    assert wire.MAX_BODY == 65536
    with pytest.raises(ProtocolError, match="malformed"):
        wire.decode_request([*HEAD, bytes(wire.MAX_BODY)])
    with pytest.raises(ProtocolError, match="body too long"):
        wire.decode_request([*HEAD, bytes(wire.MAX_BODY + 1)])
    room = wire.MAX_BODY - len(wire.encode(1, Attach("x" * 60_000))[2])
    longest = wire.encode(1, Attach("x" * (60_000 + room)))
    assert len(longest[2]) == wire.MAX_BODY
    with pytest.raises(ProtocolError, match="too long for one frame"):
        wire.encode(1, Attach("x" * (60_001 + room)))


def test_a_message_written_otherwise_is_the_same_message() -> None:
    for body in (
        msgpack.packb({"m": 8, "after": "x"}),
        msgpack.packb({"after": "x", "m": 8}),
        b"\x82\xa1m\xcd\x00\x08\xa5after\xd9\x01x",  # in longer forms than needed
    ):
        assert wire.decode_request([*HEAD, body]) == (7, List("x"))
    assert wire.decode_request([*HEAD, msgpack.packb({"m": 8})]) == (7, List())  # a field left out


def test_a_key_that_comes_twice_is_refused_also_where_the_rest_is_right() -> None:
    for twice in (b"\xa5after\xa1x\xa5after\xa1x", b"\xa5after\xa1x\xa5after\xa1y"):
        with pytest.raises(ProtocolError, match="duplicate"):
            wire.decode_request([*HEAD, b"\x83\xa1m\x08" + twice])


def test_texts_and_arrays_have_a_longest_length() -> None:
    longest = [Attach("x" * 8192), SubmitJob("k", (), (0,) * 1024)]
    for request in longest:
        assert wire.decode_request(wire.encode(7, request)) == (7, request)
    for request in (Attach("x" * 8193), SubmitJob("k", (), (0,) * 1025)):
        with pytest.raises(ProtocolError, match="malformed"):
            wire.decode_request(wire.encode(7, request))
    reply = Welcome(1, "v" * 8193, "i", 2)
    with pytest.raises(ProtocolError, match="malformed"):
        wire.decode_from_coordinator(wire.encode(7, reply))


def test_the_correlation_of_a_bad_message_can_be_read() -> None:
    assert wire.correlation_of([*HEAD, b"\xc1"]) == 7
    assert wire.correlation_of(HEAD) == 7
    assert wire.correlation_of(HEAD[:1]) is None
    assert wire.correlation_of([b"", b"123"]) is None


def test_a_message_too_long_for_a_frame_is_refused_by_its_sender() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        wire.encode(1, Attach("x" * wire.MAX_BODY))


def test_messages_cannot_be_changed() -> None:
    message: Message = Attach("x")
    with pytest.raises(AttributeError):
        message.name = "y"  # type: ignore[attr-defined]
