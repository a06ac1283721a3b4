"""Frames to messages and back: the only module that knows the codec.

A message is three frames, ``[version, correlation id, body]``: one byte, eight
bytes little-endian, and a msgpack map. Bytes are measured before they are
unpacked, unpacked under explicit limits, and converted to one frozen class;
behind this module there are only typed objects.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgpack
import msgspec

from hugepool_common.errors import ProtocolError
from hugepool_common.messages import FromCoordinator, Message, Request

VERSION = 1
MAX_BODY = 64 * 1024
"""Largest body in bytes; also ZMQ_MAXMSGSIZE of every socket."""

_CORRELATION = struct.Struct("<Q")
_MAX_ARRAY = 1024
_MAX_MAP = 64
_MAX_TEXT = 8192

_WRITER = msgspec.msgpack.Encoder()

_M = TypeVar("_M")


# Made when first used: each side reads one of them, and both take milliseconds of a start.
@functools.cache
def _request_reader() -> msgspec.msgpack.Decoder[Request]:
    return msgspec.msgpack.Decoder(Request)


@functools.cache
def _coordinator_reader() -> msgspec.msgpack.Decoder[FromCoordinator]:
    return msgspec.msgpack.Decoder(FromCoordinator)


def encode(correlation: int, message: Message) -> list[bytes]:
    """The three frames of a message.

    Raises
    ------
    ProtocolError
        The body would pass 64 KiB.
    """
    body = _WRITER.encode(message)
    if len(body) > MAX_BODY:
        raise ProtocolError(
            f"{type(message).__name__} is too long for one frame",
            needed=f"at most {MAX_BODY} bytes",
            had=f"{len(body)}",
        )
    return [bytes([VERSION]), _CORRELATION.pack(correlation), body]


def correlation_of(frames: Sequence[bytes]) -> int | None:
    """The correlation id if the frames have a readable one, to answer a bad message with."""
    if len(frames) >= 2 and len(frames[1]) == _CORRELATION.size:
        return int(_CORRELATION.unpack(frames[1])[0])
    return None


def decode_request(frames: Sequence[bytes]) -> tuple[int, Request]:
    """Read what a client sent.

    Raises
    ------
    ProtocolError
        Wrong number or size of frames, unknown version or message, malformed or
        over-long msgpack, unknown or missing field, wrong type.
    """
    return _decode(frames, _request_reader())


def decode_from_coordinator(frames: Sequence[bytes]) -> tuple[int, FromCoordinator]:
    """Read what the coordinator sent; errors as :func:`decode_request`."""
    return _decode(frames, _coordinator_reader())


def _decode(frames: Sequence[bytes], reader: msgspec.msgpack.Decoder[_M]) -> tuple[int, _M]:
    if len(frames) != 3:
        raise ProtocolError("a message is three frames", had=str(len(frames)))
    version, correlation, body = frames
    if len(version) != 1 or len(correlation) != _CORRELATION.size:
        raise ProtocolError("the first two frames are 1 and 8 bytes long")
    if version[0] != VERSION:
        raise ProtocolError("unknown protocol version", needed=str(VERSION), had=str(version[0]))
    if len(body) > MAX_BODY:
        raise ProtocolError("body too long", needed=f"at most {MAX_BODY}", had=str(len(body)))
    message = _as_we_write(body, reader)
    if message is None:
        message = _checked(body, reader)
    return int(_CORRELATION.unpack(correlation)[0]), message


def _as_we_write(body: bytes, reader: msgspec.msgpack.Decoder[_M]) -> _M | None:
    """The message of a body that is byte for byte what :func:`encode` makes of it; else None.

    Such a body has no key twice, no field left out and nothing after its end. Nearly
    all bodies are like this, and reading one costs a tenth of what :func:`_checked` does.
    """
    try:
        message = reader.decode(body)
        if _WRITER.encode(message) != body:
            return None
        if len(body) > _MAX_ARRAY:  # a shorter one has no room for a longer text or array
            _unpacked(body, None)
    except (ValueError, TypeError, RecursionError):
        return None
    return message


def _checked(body: bytes, reader: msgspec.msgpack.Decoder[_M]) -> _M:
    """The message of any body that is a right one, or what is wrong with it."""
    try:
        # Duplicate keys would be last-wins, so two readers could disagree; ext
        # types and trailing bytes are refused by the limits and by unpackb.
        message: _M = msgspec.convert(_unpacked(body, _without_duplicates), reader.type)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {str(error)[:300]}") from None
    return message


def _unpacked(
    body: bytes, pairs_hook: Callable[[list[tuple[str, object]]], dict[str, object]] | None
) -> object:
    return msgpack.unpackb(
        body,
        raw=False,
        strict_map_key=True,
        object_pairs_hook=pairs_hook,
        max_str_len=_MAX_TEXT,
        max_bin_len=0,
        max_array_len=_MAX_ARRAY,
        max_map_len=_MAX_MAP,
        max_ext_len=0,
    )


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key in a map")
    return found
