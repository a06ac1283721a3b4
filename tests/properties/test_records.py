"""A record is read as it was written, or not at all."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hugepool_common.spec import ITEM_SIZES, ArraySpec, Fall, PageReport, Segment
from hugepool_server.records import (
    OVER_TCP,
    ArrayRecord,
    CoordinatorRecord,
    DamagedRecordError,
    Identity,
    SessionRecord,
    decode,
    encode,
)

KINDS = (ArrayRecord, SessionRecord, CoordinatorRecord)
NUMBERS = st.integers(1, (1 << 63) - 1)
HEX = "0123456789abcdef"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40).map(
    "/".__add__
)
BOOTS = st.uuids().map(str)
EPOCHS = st.integers(1, (1 << 31) - 1)
TOKENS = st.text(HEX, min_size=32, max_size=32)
CHECKSUMS = st.from_regex(r"(crc32-16M:[0-9a-f]{16})?", fullmatch=True)
IDENTITIES = st.builds(Identity, *[st.integers(0, (1 << 32) - 1)] * 3)
SPECS = st.builds(
    ArraySpec,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    shape=st.lists(st.integers(0, 7), max_size=4).map(tuple),
    dtype=st.sampled_from(sorted(ITEM_SIZES)),
    made_of=NUMBERS | st.just(0),
)


@st.composite
def manifests(draw: st.DrawFn) -> ArrayRecord:
    spec = draw(SPECS)
    page = 1 << draw(st.integers(12, 30))
    length = -(-max(spec.nbytes, 1) // page) * page
    device, inode, uid = (draw(st.integers(0, (1 << 64) - 1)) for _ in range(3))
    segment = Segment(draw(NUMBERS), draw(PATHS), device, inode, uid, length, page, draw(TEXT))
    falls = st.builds(Fall, TEXT, TEXT, st.integers(0, 200), TEXT, TEXT)
    pages = PageReport(
        "shm-4k", page, length, 0, length, "smaps", draw(st.lists(falls, max_size=3).map(tuple))
    )
    sealed = draw(st.booleans())
    epoch = draw(EPOCHS)
    return ArrayRecord(
        spec=spec,
        segment=segment,
        pages=pages,
        creator=draw(IDENTITIES | NUMBERS.map(OVER_TCP.of_session)),
        owner=draw(TOKENS | st.just("")),
        created_ns=draw(NUMBERS),
        generation=draw(st.integers(1, min((epoch + 1) << 32, (1 << 63) - 1))),
        sealed=sealed,
        checksum=draw(CHECKSUMS) if sealed else "",
        boot_id=draw(BOOTS),
        epoch=epoch,
        temporary=draw(st.booleans()),
    )


def _over_tcp(number: int, token: str, client: str, boot: str, lease_ns: int) -> SessionRecord:
    return SessionRecord(number, token, OVER_TCP.of_session(number), 0, client, boot, lease_ns)


RECORDS = (
    manifests()
    | st.builds(SessionRecord, NUMBERS, TOKENS, IDENTITIES, NUMBERS, TEXT, BOOTS)
    | st.builds(_over_tcp, NUMBERS, TOKENS, TEXT, BOOTS, NUMBERS)
    | st.builds(
        CoordinatorRecord,
        EPOCHS,
        st.text(HEX, min_size=16, max_size=16),
        st.lists(PATHS, max_size=3).map(tuple),
        BOOTS,
    )
)


@given(RECORDS)
def test_what_is_written_is_read(record: Any) -> None:
    assert decode(type(record), encode(record)) == record


@given(RECORDS, st.data())
def test_changed_bytes_are_seen(record: Any, data: st.DataObject) -> None:
    body = bytearray(encode(record))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(type(record), bytes(body)) == record
    except DamagedRecordError:
        pass


@given(RECORDS, st.data())
def test_a_record_cut_and_joined_anew_is_seen(record: Any, data: st.DataObject) -> None:
    body = encode(record)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(body))] * 2)))
    for changed in (body[:start] + body[stop:], body[:stop] + body[start:]):
        try:
            assert decode(type(record), changed) == record
        except DamagedRecordError:
            assert changed != body


@given(RECORDS, st.sampled_from(KINDS))
def test_a_record_is_of_its_kind_only(record: Any, kind: type[Any]) -> None:
    if kind is not type(record):
        try:
            decode(kind, encode(record))
        except DamagedRecordError:
            return
        raise AssertionError("a record was taken for another")


@given(st.binary(max_size=300), st.sampled_from(KINDS))
def test_any_bytes_are_refused(data: bytes, kind: type[Any]) -> None:
    for start in (b"", b"hugepool-", b"hugepool-array 1 00000000\n"):
        try:
            decode(kind, start + data)
        except DamagedRecordError:
            continue
        raise AssertionError("noise was taken for a record")
