from __future__ import annotations

import zlib
from typing import Any

import msgspec
import pytest

from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import ArraySpec, Fall, PageReport, Segment
from hugepool_server import records
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
WIDEST = (1 << 64) - 1


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
        {"segment": msgspec.structs.replace(SEGMENT, device=1 << 64)},
        {"segment": msgspec.structs.replace(SEGMENT, inode=-1)},
        {"segment": msgspec.structs.replace(SEGMENT, inode=1 << 64)},
        {"segment": msgspec.structs.replace(SEGMENT, owner_uid=-1)},
        {"segment": msgspec.structs.replace(SEGMENT, owner_uid=1 << 64)},
        {"segment": msgspec.structs.replace(SEGMENT, length=0)},
        {
            "spec": ArraySpec("x", (0,), "<f8"),  # nothing has a page too
            "segment": msgspec.structs.replace(SEGMENT, length=0),
        },
        {"segment": msgspec.structs.replace(SEGMENT, length=4097)},
        {"segment": msgspec.structs.replace(SEGMENT, length=(1 << 48) + 4096)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=0)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=4096 * 3, length=4096 * 3)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=2048)},
        {"segment": msgspec.structs.replace(SEGMENT, page_size=1 << 49, length=1 << 48)},
        {"pages": msgspec.structs.replace(PAGES, length=-1)},
        {"pages": msgspec.structs.replace(PAGES, huge_bytes=-1)},
        {"pages": msgspec.structs.replace(PAGES, present_bytes=-1)},
        {"creator": Identity(-1, 0, 0)},
        {"creator": Identity(1 << 32, 0, 0)},
        {"creator": Identity(0, 1 << 32, 0)},
        {"creator": Identity(0, 0, 0, session=7)},  # a local one is no session
        {"creator": OVER_TCP},  # of no session
        {"creator": Identity(0, 0, 0, "tcp", 7)},  # over TCP nobody is root
        {"creator": OVER_TCP.of_session(1 << 63)},
        {"owner": "../token"},
        {"created_ns": -1},
        {"created_ns": 1 << 63},
        {"generation": 0},
        {"generation": 1 << 63},
        {"generation": (2 << 32) + 1},  # more segments than there can have been
        {"checksum": "crc32-16M:0123456789abcdef"},  # of what is not sealed
        {"sealed": True, "checksum": "abc"},
        {"sealed": True, "checksum": "crc32-16M:0123456789abcdef\n"},
        {"sealed": True, "checksum": "z" * 20_000},
        {"segment": msgspec.structs.replace(SEGMENT, backing="b" * 65)},
        {"pages": msgspec.structs.replace(PAGES, backing="b" * 65)},
        {"pages": msgspec.structs.replace(PAGES, method="m" * 65)},
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


def test_the_highest_generation_of_one_coordinator_is_not_that_of_the_next() -> None:
    highest = array_record(sealed=True, generation=2 << 32)
    assert decode(ArrayRecord, encode(highest)) == highest
    following = msgspec.structs.replace(highest, generation=highest.generation + 1, epoch=2)
    assert decode(ArrayRecord, encode(following)) == following


@pytest.mark.parametrize(
    "record",
    [
        array_record(
            1,
            "/",
            created_ns=0,
            pages=PageReport("", 0, 0, 0, 0, ""),
            creator=Identity(0, 0, 0),
            owner="",
            boot_id="b",
        ),
        array_record(
            spec=ArraySpec("x", (512,), "<f8"),
            segment=Segment((1 << 63) - 1, "/x", WIDEST, WIDEST, WIDEST, 4096, 4096, ""),
            creator=Identity((1 << 32) - 1, (1 << 32) - 1, (1 << 32) - 1),
            created_ns=(1 << 63) - 1,
            generation=(1 << 63) - 1,
            sealed=True,
            checksum="crc32-16M:0123456789abcdef",
            boot_id="b" * 64,
            epoch=(1 << 31) - 1,
        ),
        array_record(segment=msgspec.structs.replace(SEGMENT, page_size=1 << 48, length=1 << 48)),
        array_record(
            segment=msgspec.structs.replace(SEGMENT, backing="b" * 64),
            pages=msgspec.structs.replace(PAGES, backing="b" * 64, method="m" * 64),
        ),
        session_record(1, identity=OVER_TCP.of_session(1), lease_ns=1),
        session_record(1, identity=Identity(0, 0, 0), start_ticks=0, client=""),
        session_record((1 << 63) - 1, start_ticks=(1 << 63) - 1),
        CoordinatorRecord(1, STORE, (), BOOT),
        CoordinatorRecord((1 << 31) - 1, STORE, ("/", "/x"), BOOT),
    ],
    ids=str,
)
def test_the_least_and_the_most_that_can_be_true_is_read(record: Any) -> None:
    assert decode(type(record), encode(record)) == record


def test_what_was_found_instead_is_told_cut() -> None:
    with pytest.raises(DamagedRecordError) as caught:
        decode(ArrayRecord, b"x" * 99)
    assert caught.value.had == repr(b"x" * 40)
    with pytest.raises(DamagedRecordError) as caught:
        decode(CoordinatorRecord, with_body(b"{}", number=int("7" * 99)))
    assert caught.value.had == "7" * 20
    body = encode(COORDINATOR).split(b"\n")[1]
    with pytest.raises(DamagedRecordError) as caught:
        decode(CoordinatorRecord, with_body(b'{"%b":1,' % (b"k" * 999) + body[1:]))
    assert len(str(caught.value)) == len("the record cannot be read: ") + 300


@pytest.mark.parametrize(
    "changes",
    [
        {"session": 0},
        {"session": 1 << 63},
        {"token": "short"},
        {"identity": Identity(0, 0, 1 << 32)},
        {"start_ticks": -1},
        {"start_ticks": 1 << 63},
        {"boot_id": ""},
        {"boot_id": "b" * 65},
        {"lease_ns": 1},  # of a local one
        {"identity": OVER_TCP.of_session((1 << 32) + 1)},  # without a lease
        {"identity": OVER_TCP.of_session((1 << 32) + 2), "lease_ns": 1},  # of another session
        {"identity": OVER_TCP.of_session((1 << 32) + 1), "lease_ns": 1 << 63},
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
    fall = Fall("r", "c", 0, "x" * records.MAX_ARRAY_BYTES)
    endless = array_record(pages=msgspec.structs.replace(PAGES, reasons=(fall,)))
    with pytest.raises(InvalidSpecError, match="too long"):
        encode(endless)
    with pytest.raises(DamagedRecordError, match="too long"):
        decode(ArrayRecord, with_body(msgspec.json.encode(endless), kind="array"))
    with pytest.raises(InvalidSpecError, match="too long"):
        encode(session_record(client="x" * records.MAX_RECORD_BYTES))


def test_a_record_is_at_most_a_mebibyte() -> None:
    room = (1 << 20) - len(encode(session_record(client="")))
    longest = session_record(client="x" * room)
    assert decode(SessionRecord, encode(longest)) == longest
    with pytest.raises(InvalidSpecError, match="at most 1048576 bytes, had 1048577"):
        encode(session_record(client="x" * (room + 1)))


def test_a_manifest_is_at_most_what_a_message_can_carry() -> None:
    def of(text: int) -> ArrayRecord:
        fall = Fall("r", "c", 0, "x" * text)
        return array_record(pages=msgspec.structs.replace(PAGES, reasons=(fall,)))

    room = (32 << 10) - len(encode(of(0)))
    assert decode(ArrayRecord, encode(of(room))) == of(room)
    with pytest.raises(InvalidSpecError, match="at most 32768 bytes, had 32769"):
        encode(of(room + 1))


def test_who_comes_over_tcp_is_kept_as_that() -> None:
    who = OVER_TCP.of_session((1 << 32) + 1)
    session, array = session_record(identity=who, lease_ns=10), array_record(creator=who)
    assert decode(SessionRecord, encode(session)) == session
    assert decode(ArrayRecord, encode(array)) == array
    assert b'"kind":"tcp"' in encode(array)


def test_a_local_record_says_nothing_of_it() -> None:
    """So that what was written before there was TCP is read, and is as it would be written."""
    assert b"lease_ns" not in encode(session_record())
    who = b'{"uid":1000,"gid":100,"pid":4242}'
    assert who in encode(session_record()) and who in encode(array_record())
