from __future__ import annotations

import zlib
from typing import Any

import msgspec
import pytest

from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import ArraySpec
from hugepool_server import records
from hugepool_server.records import (
    ArrayRecord,
    CoordinatorRecord,
    DamagedRecordError,
    Identity,
    SessionRecord,
    decode,
    encode,
)
from support.durable import BOOT, STORE, array_record, session_record

COORDINATOR = CoordinatorRecord(3, STORE, ("/dev/shm/hugepool-0-" + STORE,), BOOT)
ALL = [array_record(), session_record(), COORDINATOR]


def with_body(body: bytes, *, kind: str = "coordinator", number: int = records.FORMAT) -> bytes:
    """A record whose checksum is right, whatever it says."""
    return b"hugepool-%b %d %08x\n%b\n" % (kind.encode(), number, zlib.crc32(body), body)


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_what_is_written_is_read(record: Any) -> None:
    data = encode(record)
    assert decode(type(record), data) == record
    assert data.startswith(b"hugepool-")
    assert data.count(b"\n") == 2  # a person can read it: one line of facts, one of JSON


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_a_record_cut_short_or_prolonged_is_damaged(record: Any) -> None:
    data = encode(record)
    for length in range(len(data)):
        with pytest.raises(DamagedRecordError):
            decode(type(record), data[:length])
    for more in (b"\n", b" ", b"\0", data):
        with pytest.raises(DamagedRecordError):
            decode(type(record), data + more)


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_every_changed_bit_is_seen(record: Any) -> None:
    data = bytearray(encode(record))
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            with pytest.raises(DamagedRecordError):
                decode(type(record), bytes(data))
            data[position] ^= 1 << bit


def test_a_record_of_another_kind_or_format_is_refused() -> None:
    data = encode(COORDINATOR)
    with pytest.raises(DamagedRecordError, match=r"another \(needed array, had coordinator\)"):
        decode(ArrayRecord, data)
    body = data.split(b"\n")[1]
    with pytest.raises(DamagedRecordError, match=r"unknown format \(needed 1, had 2\)"):
        decode(CoordinatorRecord, with_body(body, number=2))
    with pytest.raises(DamagedRecordError, match="unknown format"):
        decode(CoordinatorRecord, data.replace(b" 1 ", b" 01 "))


@pytest.mark.parametrize(
    "change",
    [
        (b'{"epoch":3', b'{ "epoch":3'),
        (b'{"epoch":3', b'{"epoch":2,"epoch":3'),
        (b'{"epoch":3', b'{"more":1,"epoch":3'),
        (b'{"epoch":3,', b"{"),
        (b'"epoch":3', b'"epoch":"3"'),
        (b'"epoch":3', b'"epoch":3.0'),
        (b'"epoch":3', b'"epoch":true'),
        (b'"epoch":3', b'"epoch":0'),
        (b'"epoch":3', b'"epoch":2147483648'),
        (b'"epoch":3', b'"epoch":' + b"9" * 5000),
        (b"/dev/shm", b"dev/shm"),
        (b"/dev/shm", b"/dev\\u0000shm"),
        (b"/dev/shm", b"/dev\\ud800shm"),
        (b"/dev/shm", b"/dev\xffshm"),
        (STORE.encode(), b"0123456789ABCDEF"),
        (BOOT.encode(), b"../boot"),
        (BOOT.encode(), b""),
    ],
    ids=str,
)
def test_a_right_checksum_is_no_proof(change: tuple[bytes, bytes]) -> None:
    body = encode(COORDINATOR).split(b"\n")[1]
    assert decode(CoordinatorRecord, with_body(body)) == COORDINATOR
    changed = body.replace(*change)
    assert changed != body
    with pytest.raises(DamagedRecordError):
        decode(CoordinatorRecord, with_body(changed))


def test_what_is_no_json_or_far_too_long_is_damaged() -> None:
    for body in (b"", b"[", b"[" * 100_000, b"null", b"{}", b"\xff"):
        with pytest.raises(DamagedRecordError):
            decode(CoordinatorRecord, with_body(body))
    with pytest.raises(DamagedRecordError, match="too long"):
        decode(CoordinatorRecord, bytes(records.MAX_RECORD_BYTES + 1))


SEGMENT = array_record().segment
PAGES = array_record().pages


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": ArraySpec("../x", (8,), "<f8")},
        {"spec": ArraySpec("x", (-1,), "<f8")},
        {"spec": ArraySpec("x", (8,), "O")},
        {"spec": ArraySpec("x", (513,), "<f8")},  # more than the segment holds
        {"segment": msgspec.structs.replace(SEGMENT, segment_id=0)},
        {"segment": msgspec.structs.replace(SEGMENT, segment_id=1 << 63)},
        {"segment": msgspec.structs.replace(SEGMENT, path="x")},
        {"segment": msgspec.structs.replace(SEGMENT, path="/x\0y")},
        {"segment": msgspec.structs.replace(SEGMENT, device=-1)},
        {"segment": msgspec.structs.replace(SEGMENT, inode=1 << 64)},
        {"segment": msgspec.structs.replace(SEGMENT, owner_uid=-1)},
        {"segment": msgspec.structs.replace(SEGMENT, length=0)},
        {"segment": msgspec.structs.replace(SEGMENT, length=4097)},
        {"segment": msgspec.structs.replace(SEGMENT, length=1 << 60)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=0)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=4096 * 3, length=4096 * 3)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=2048)},
        {"pages": msgspec.structs.replace(PAGES, huge_bytes=-1)},
        {"creator": Identity(-1, 0, 0)},
        {"owner": "../token"},
        {"created_ns": -1},
        {"generation": 0},
        {"checksum": "abc"},  # of what is not sealed
        {"boot_id": "a b"},
        {"epoch": 0},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_true_is_neither_written_nor_read(
    changes: dict[str, Any],
) -> None:
    record = array_record(**changes)
    with pytest.raises(InvalidSpecError):
        encode(record)
    with pytest.raises(DamagedRecordError, match="cannot be true"):
        decode(ArrayRecord, with_body(msgspec.json.encode(record), kind="array"))


@pytest.mark.parametrize(
    "changes",
    [
        {"session": 0},
        {"token": "short"},
        {"identity": Identity(0, 0, 1 << 32)},
        {"start_ticks": -1},
        {"boot_id": ""},
    ],
    ids=str,
)
def test_a_session_that_cannot_be_is_neither_written_nor_read(changes: dict[str, Any]) -> None:
    record = session_record(**changes)
    with pytest.raises(InvalidSpecError):
        encode(record)
    with pytest.raises(DamagedRecordError, match="cannot be true"):
        decode(SessionRecord, with_body(msgspec.json.encode(record), kind="session"))


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(InvalidSpecError, match="surrogates"):
        encode(msgspec.structs.replace(COORDINATOR, directories=("/mnt/\udc80",)))
    with pytest.raises(InvalidSpecError, match="too long"):
        encode(session_record(client="x" * records.MAX_RECORD_BYTES))
