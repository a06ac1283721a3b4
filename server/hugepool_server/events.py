"""What can happen to the coordinator, and what it can want done.

:class:`~hugepool_server.coordinator.Coordinator` turns events into effects;
``daemon.py`` makes events of sockets, threads, pidfds and signals, and performs
effects. A *token* ties the end of a slow act to the effect that began it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hugepool_common.messages import Failed, Message, Request
from hugepool_common.spec import ArraySpec, HugePages, PageReport, PageSize, Segment


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is, by the kernel's word (``Peer-Address``), never by its own."""

    uid: int
    gid: int
    pid: int


# Events -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A well-formed request came from the peer with this routing id."""

    peer: bytes
    identity: Identity
    correlation: int
    request: Request


@dataclass(frozen=True, slots=True)
class SegmentMade:
    """A MakeSegment ended well: published, with the maker's proof."""

    token: int
    segment: Segment
    pages: PageReport


@dataclass(frozen=True, slots=True)
class SegmentRefused:
    """A MakeSegment ended without a segment; nothing was kept."""

    token: int
    error: Failed


@dataclass(frozen=True, slots=True)
class SegmentProgress:
    """A MakeSegment under way has this many bytes."""

    token: int
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class SegmentSealed:
    """A SealSegment ended well."""

    token: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class SealRefused:
    """A SealSegment found a writer, or failed; the segment is as before."""

    token: int
    error: Failed


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The process behind a session is dead (pidfd)."""

    session: int


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    """A send to this peer failed: it is gone, or never reads."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A signal, or the end of the parent of an embedded coordinator."""

    reason: str


Event = (
    RequestReceived
    | SegmentMade
    | SegmentRefused
    | SegmentProgress
    | SegmentSealed
    | SealRefused
    | ProcessExited
    | PeerUnreachable
    | StopRequested
)


# Effects ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer; correlation 0 marks a notice of no request."""

    peer: bytes
    correlation: int
    message: Message


@dataclass(frozen=True, slots=True)
class MakeSegment:
    """Walk the ladder on a thread; answer with SegmentMade or SegmentRefused."""

    token: int
    segment_id: int
    spec: ArraySpec
    huge_pages: HugePages
    page_size: PageSize
    backing: str


@dataclass(frozen=True, slots=True)
class CancelSegment:
    """Stop a MakeSegment soon; it still answers (SegmentRefused, or SegmentMade if too late)."""

    token: int


@dataclass(frozen=True, slots=True)
class SealSegment:
    """Make the file read-only if nobody maps it writable; answer SegmentSealed or SealRefused."""

    token: int
    segment: Segment


@dataclass(frozen=True, slots=True)
class UnlinkSegment:
    """Remove the file; the pages go with the last mapping."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class WatchProcess:
    """Report ProcessExited(session) when this pid ends, or at once if it has ended."""

    session: int
    pid: int


@dataclass(frozen=True, slots=True)
class UnwatchProcess:
    """The session is closed; forget its pidfd."""

    session: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Everything is drained: end the loop."""


Effect = (
    Send
    | MakeSegment
    | CancelSegment
    | SealSegment
    | UnlinkSegment
    | WatchProcess
    | UnwatchProcess
    | Stop
)
