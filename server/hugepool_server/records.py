"""What a coordinator writes down so that the next one on its runtime directory can go on.

Three kinds of record, each in a file of its own in the runtime directory, as one line
of facts about the record and one of JSON::

    hugepool-<kind> <format> <CRC-32 of the JSON, 8 hex digits>
    {...}

They live as long as the memory that they speak of: on a tmpfs, and good for one boot
(``boot_id``). The CRC detects damage; it is no validation: what is read is checked as
if a stranger had sent it.

Numbers of sessions, leases, segments and jobs begin anew with every coordinator at
``epoch << 32``, so that none is ever given twice.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec

from hugepool_common.errors import HugepoolError, InvalidSpecError
from hugepool_common.messages import NOBODY
from hugepool_common.spec import MAX_EXTENT, ArraySpec, PageReport, Segment, is_checksum

EPOCH_SHIFT = 32
"""Numbers of one epoch: the lower 32 bits."""

FORMAT = 1
"""Raised when a reader of the format before could not read what is written now."""

MAX_RECORD_BYTES = 1 << 20
"""Longer ones are neither written nor read."""

MAX_ARRAY_BYTES = 32 << 10
"""The same of a manifest: what it says must fit a frame of the protocol."""

_NAME_LIMIT = 64
_NUMBERS = range(1 << 63)
_UNSIGNED = range(1 << 64)
_IDS = range(1 << 32)
_EPOCHS = range(1, 1 << (63 - EPOCH_SHIFT))
_HEADER = re.compile(rb"hugepool-([a-z]+) ([0-9]+) ([0-9a-f]{8})\n")
_BOOT = re.compile(r"[0-9A-Za-z-]{1,64}")
_STORE = re.compile(r"[0-9a-f]{16}")
_TOKEN = re.compile(r"[0-9a-f]{32}")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who a peer is, by the kernel's word, never by its own.

    Parameters
    ----------
    uid, gid, pid
        Of a local peer (``Peer-Address`` of its socket).
    kind
        ``tcp`` for a peer that is known by its connection alone: it is no user and no process
        of this machine, whatever it is.
    session
        Of such a peer the number of its session, which makes it somebody: itself; else 0.
    """

    uid: int
    gid: int
    pid: int
    kind: Literal["local", "tcp"] = "local"
    session: int = 0

    @property
    def is_local(self) -> bool:
        """Whether the kernel knows its process."""
        return self.kind == "local"

    @property
    def process(self) -> tuple[str, int, int]:
        """What may not change behind a session."""
        return self.kind, self.uid, self.pid

    @property
    def user(self) -> tuple[str, int, int]:
        """Equal for those who may do the same to an array."""
        return self.kind, self.uid, self.session

    @property
    def told_user(self) -> str:
        """The user, as an error tells it."""
        return f"uid {self.uid}" if self.is_local else self._told_remote

    @property
    def told_process(self) -> str:
        """The process, as an error tells it."""
        return f"pid {self.pid} of uid {self.uid}" if self.is_local else self._told_remote

    @property
    def told_pid(self) -> str:
        """The process, as an error tells it to those who know whose it is."""
        return f"pid {self.pid}" if self.is_local else self._told_remote

    @property
    def _told_remote(self) -> str:
        return "a client over TCP" + (f", session {self.session}" if self.session else "")

    def of_session(self, number: int) -> Identity:
        """Who it is once it has a session."""
        return self if self.is_local else msgspec.structs.replace(self, session=number)


OVER_TCP = Identity(NOBODY, NOBODY, 0, "tcp")
"""Every peer over TCP, until it has a session."""


class ArrayRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest of one named object.

    Parameters
    ----------
    spec, segment, pages
        As in ``ArrayInfo``; the name is the spec's.
    creator
        Who asked for it.
    owner
        Name of the token of the session that made it; what is unsealed goes with it.
    created_ns
        CLOCK_MONOTONIC, which one boot shares.
    generation
        Of several manifests with one name, the highest has it; the others were superseded.
    sealed, checksum
        Whether it is immutable, and the checksum of its payload.
    boot_id
        Of the kernel that held the memory.
    epoch
        Of the coordinator that wrote this.
    temporary
        Whether it goes with its owner even when it is sealed.
    """

    spec: ArraySpec
    segment: Segment
    pages: PageReport
    creator: Identity
    owner: str
    created_ns: int
    generation: int
    sealed: bool
    checksum: str
    boot_id: str
    epoch: int
    temporary: bool = False


class SessionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is written into the token of a session.

    Parameters
    ----------
    session
        Its number, kept by the next coordinator.
    token
        Name of the file: 32 hex digits.
    identity
        Its process.
    start_ticks
        When that process started, field 22 of ``/proc/<pid>/stat``; 0 if not to be seen.
    client
        What it calls itself.
    boot_id
        Of the kernel that the process ran on.
    lease_ns
        Of a session over TCP how long it lives without a sign of its client; 0 for a local one.
    """

    session: int
    token: str
    identity: Identity
    start_ticks: int
    client: str
    boot_id: str
    lease_ns: int = 0


class CoordinatorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What outlives the process of a coordinator of its own.

    Parameters
    ----------
    epoch
        Risen by one, and written, at every start before anything else is.
    store
        16 hex digits in the names of its segment directories.
    directories
        Absolute paths of the segment directories that it has made.
    boot_id
        Of the kernel.
    """

    epoch: int
    store: str
    directories: tuple[str, ...]
    boot_id: str


class DamagedRecordError(HugepoolError, ValueError):
    """A record that is not as it was written, or that says what cannot be."""


Record = TypeVar("Record", ArrayRecord, SessionRecord, CoordinatorRecord)

_KINDS: dict[type[Any], str] = {
    ArrayRecord: "array",
    SessionRecord: "session",
    CoordinatorRecord: "coordinator",
}


def encode(record: Record) -> bytes:
    """The bytes of a record's file.

    Raises
    ------
    InvalidSpecError
        Nobody could read it again: it says what cannot be, or is too long.
    """
    wrong = _CHECKS[type(record)](record)
    if wrong:
        raise InvalidSpecError(f"a record cannot be written: {wrong}")
    try:
        body = msgspec.json.encode(record)
    except UnicodeEncodeError as error:  # a path whose bytes are no UTF-8
        raise InvalidSpecError(f"a record cannot be written: {error}") from None
    data = b"hugepool-%b %d %08x\n%b\n" % (
        _KINDS[type(record)].encode(),
        FORMAT,
        zlib.crc32(body),
        body,
    )
    most_bytes = _most_bytes(type(record))
    if len(data) > most_bytes:
        raise InvalidSpecError(
            "a record cannot be written: it is too long",
            needed=f"at most {most_bytes} bytes",
            had=str(len(data)),
        )
    return data


def decode(kind: type[Record], data: bytes) -> Record:
    """The record in the bytes of a file.

    Raises
    ------
    DamagedRecordError
        It is cut short, changed, of another kind or of an unknown format, or says
        what cannot be.
    """
    if len(data) > _most_bytes(kind):
        raise DamagedRecordError("the record is too long", had=f"{len(data)} bytes")
    header = _HEADER.match(data)
    if header is None:
        raise DamagedRecordError("this is no record", had=repr(data[:40]))
    found, number, checksum = header[1].decode(), header[2].decode(), int(header[3], 16)
    if found != _KINDS[kind]:
        raise DamagedRecordError("the record is another", needed=_KINDS[kind], had=found)
    if number != str(FORMAT):
        raise DamagedRecordError(
            "the record has an unknown format", needed=str(FORMAT), had=number[:20]
        )
    body = data[header.end() : -1]
    if not data.endswith(b"\n") or zlib.crc32(body) != checksum:
        raise DamagedRecordError("the checksum of the record does not match")
    try:
        record = msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamagedRecordError(f"the record cannot be read: {str(error)[:300]}") from None
    wrong = _CHECKS[kind](record)
    if wrong:
        raise DamagedRecordError(f"the record cannot be true: {wrong}")
    # A key given twice, or spaces: readable, and not written by encode().
    if msgspec.json.encode(record) != body:
        raise DamagedRecordError("the record is not as it would be written")
    return record


# What is wrong with a record of each kind; empty if nothing is ------------------


def _wrong_array(record: ArrayRecord) -> str:
    segment = record.segment
    try:
        nbytes = record.spec.checked().nbytes
    except InvalidSpecError as error:
        return str(error)
    page = segment.page_size
    return _first(
        (segment.segment_id in _NUMBERS and segment.segment_id > 0, "its segment's number"),
        (_is_path(segment.path), "its path"),
        (segment.device in _UNSIGNED and segment.inode in _UNSIGNED, "its device or inode"),
        (segment.owner_uid in _UNSIGNED, "its owner's uid"),
        (page >= 4096 and page & (page - 1) == 0 and page <= MAX_EXTENT, "its page size"),
        (
            0 < segment.length <= MAX_EXTENT
            and segment.length >= nbytes
            and segment.length % max(page, 1) == 0,
            "its length",
        ),
        (
            min(record.pages.length, record.pages.huge_bytes, record.pages.present_bytes) >= 0,
            "its pages",
        ),
        (_is_identity(record.creator), "its creator"),
        (record.owner == "" or _TOKEN.fullmatch(record.owner), "its owner"),
        (record.created_ns in _NUMBERS, "when it was made"),
        (record.generation in _NUMBERS and record.generation > 0, "its generation"),
        # Each generation is a segment, of which an epoch has so many at most. So the next
        # coordinator can always give a higher one.
        (record.generation <= (record.epoch + 1) << EPOCH_SHIFT, "its generation"),
        (record.sealed or not record.checksum, "a checksum of what is not sealed"),
        (not record.checksum or is_checksum(record.checksum), "its checksum"),
        (max(len(segment.backing), len(record.pages.backing)) <= _NAME_LIMIT, "its backing"),
        (len(record.pages.method) <= _NAME_LIMIT, "how its pages were proved"),
        (_BOOT.fullmatch(record.boot_id), "its boot id"),
        (record.epoch in _EPOCHS, "its epoch"),
    )


def _most_bytes(kind: type[Any]) -> int:
    return MAX_ARRAY_BYTES if kind is ArrayRecord else MAX_RECORD_BYTES


def _wrong_session(record: SessionRecord) -> str:
    return _first(
        (record.session in _NUMBERS and record.session > 0, "its number"),
        (_TOKEN.fullmatch(record.token), "its token"),
        (_is_identity(record.identity), "its process"),
        (record.identity.is_local or record.identity.session == record.session, "whose it is"),
        (record.start_ticks in _NUMBERS, "when its process started"),
        (
            record.lease_ns in _NUMBERS and (record.lease_ns > 0) is not record.identity.is_local,
            "its lease",
        ),
        (_BOOT.fullmatch(record.boot_id), "its boot id"),
    )


def _wrong_coordinator(record: CoordinatorRecord) -> str:
    return _first(
        (record.epoch in _EPOCHS, "its epoch"),
        (_STORE.fullmatch(record.store), "its store"),
        (all(map(_is_path, record.directories)), "a directory"),
        (_BOOT.fullmatch(record.boot_id), "its boot id"),
    )


def _is_path(text: str) -> bool:
    return text.startswith("/") and "\0" not in text


def _is_identity(identity: Identity) -> bool:
    if not identity.is_local:
        return identity.session in _NUMBERS[1:] and identity == OVER_TCP.of_session(
            identity.session
        )
    in_range = all(number in _IDS for number in (identity.uid, identity.gid, identity.pid))
    return in_range and identity.session == 0


def _first(*checks: tuple[object, str]) -> str:
    return next((what for holds, what in checks if not holds), "")


_CHECKS: dict[type[Any], Callable[[Any], str]] = {
    ArrayRecord: _wrong_array,
    SessionRecord: _wrong_session,
    CoordinatorRecord: _wrong_coordinator,
}
