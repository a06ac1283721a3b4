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

import msgspec

from hugepool_common.spec import ArraySpec, PageReport, Segment

EPOCH_SHIFT = 32
"""Numbers of one epoch: the lower 32 bits."""


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a peer is, by the kernel's word (``Peer-Address``), never by its own."""

    uid: int
    gid: int
    pid: int


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


class SessionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    """

    session: int
    token: str
    identity: Identity
    start_ticks: int
    client: str
    boot_id: str


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
