"""No bytes from a socket get past :class:`ProtocolError`."""

from __future__ import annotations

import contextlib

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from hugepool_common import wire
from hugepool_common.errors import InvalidSpecError, ProtocolError
from hugepool_common.messages import CreateArray
from hugepool_common.spec import ArraySpec

HEAD = [bytes([wire.VERSION]), bytes(8)]
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_frames(frames: list[bytes]) -> None:
    for decode in (wire.decode_request, wire.decode_from_coordinator):
        with contextlib.suppress(ProtocolError):
            decode(frames)
    wire.correlation_of(frames)


@given(st.binary(max_size=2000))
def test_random_bodies(body: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_from_coordinator):
        with contextlib.suppress(ProtocolError):
            decode([*HEAD, body])


@given(st.integers(0, 255), st.dictionaries(st.text(max_size=10), JSON_LIKE, max_size=5))
def test_random_messages_of_any_number(number: int, fields: dict[str, object]) -> None:
    body = msgpack.packb({**fields, "m": number})
    for decode in (wire.decode_request, wire.decode_from_coordinator):
        with contextlib.suppress(ProtocolError):
            decode([*HEAD, body])


@given(st.data())
def test_a_message_with_flipped_bytes(data: st.DataObject) -> None:
    frames = wire.encode(1, CreateArray(ArraySpec("x", (3, 4), "<f8"), "on", "2M"))
    body = bytearray(frames[2])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        wire.decode_request([*frames[:2], bytes(body)])


SPECS = st.builds(
    ArraySpec,
    name=st.text(max_size=140),
    shape=st.lists(st.integers(-(2**63), 2**63), max_size=70).map(tuple),
    dtype=st.sampled_from(["<f8", "|u1", "<c16", "O", ""]),
    kind=st.sampled_from(["array", "csr"]),
    nnz=st.integers(-(2**63), 2**63),
    index_dtype=st.sampled_from(["", "<i4", "<i8", "<f8"]),
)


@given(SPECS)
def test_a_spec_is_refused_or_has_a_layout_within_its_bounds(spec: ArraySpec) -> None:
    try:
        spec.checked()
    except InvalidSpecError:
        return
    assert 0 <= spec.nbytes <= 3 * (1 << 48) + 8192
    for part in spec.parts:
        assert part.offset >= 0
        assert part.nbytes >= 0
