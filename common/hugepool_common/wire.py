"""Frames to messages and back: the only module that knows the codec.

A message is three frames, ``[version, correlation id, body]``: one byte, eight
bytes little-endian, and a msgpack map. Bytes are measured before they are
unpacked, unpacked under explicit limits, and converted to one frozen class;
behind this module there are only typed objects.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

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

_M = TypeVar("_M")


def encode(correlation: int, message: Message) -> list[bytes]:
    """The three frames of a message.

    Raises
    ------
    ProtocolError
        The body would pass 64 KiB.
    """
    body = msgpack.packb(msgspec.to_builtins(message), use_bin_type=True)
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
    return _decode(frames, Request)


def decode_from_coordinator(frames: Sequence[bytes]) -> tuple[int, FromCoordinator]:
    """Read what the coordinator sent; errors as :func:`decode_request`."""
    return _decode(frames, FromCoordinator)


def _decode(frames: Sequence[bytes], kind: Any) -> tuple[int, Any]:
    if len(frames) != 3:
        raise ProtocolError("a message is three frames", had=str(len(frames)))
    version, correlation, body = frames
    if len(version) != 1 or len(correlation) != _CORRELATION.size:
        raise ProtocolError("the first two frames are 1 and 8 bytes long")
    if version[0] != VERSION:
        raise ProtocolError("unknown protocol version", needed=str(VERSION), had=str(version[0]))
    if len(body) > MAX_BODY:
        raise ProtocolError("body too long", needed=f"at most {MAX_BODY}", had=str(len(body)))
    try:
        # Duplicate keys would be last-wins, so two readers could disagree; ext
        # types and trailing bytes are refused by the limits and by unpackb.
        loose = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_without_duplicates,
            max_str_len=_MAX_TEXT,
            max_bin_len=0,
            max_array_len=_MAX_ARRAY,
            max_map_len=_MAX_MAP,
            max_ext_len=0,
        )
        message = msgspec.convert(loose, kind)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {str(error)[:300]}") from None
    return int(_CORRELATION.unpack(correlation)[0]), message


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key in a map")
    return found
