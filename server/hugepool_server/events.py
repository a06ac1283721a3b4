"""What can happen to the coordinator, and what it can want done.

:class:`~hugepool_server.coordinator.Coordinator` turns events into effects;
``daemon.py`` makes events of sockets, threads, pidfds and signals, and performs
effects. A *token* ties the end of a slow act to the effect that began it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hugepool_common.messages import Failed, Message, Request
from hugepool_common.spec import ArraySpec, HugePages, PageReport, PageSize, Segment
from hugepool_server.records import ArrayRecord, Identity, SessionRecord

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
    """A SealSegment ended well; its manifest says so."""

    token: int
    segment: Segment
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class SealRefused:
    """A SealSegment found a writer, or failed; the segment is as before."""

    token: int
    error: Failed


@dataclass(frozen=True, slots=True)
class GenerationPublished:
    """A PublishGeneration or PublishTogether ended well: each manifest has its name."""

    token: int


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """A PublishGeneration or PublishTogether failed; all is as before."""

    token: int
    error: Failed


@dataclass(frozen=True, slots=True)
class TokenMade:
    """A MakeToken ended well."""

    session: int
    path: str


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """A MakeToken failed: there can be no session."""

    session: int
    error: Failed


@dataclass(frozen=True, slots=True)
class TokenChecked:
    """A CheckToken ended: whether the session's own process holds the lock, and lives."""

    session: int
    held: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an earlier coordinator on this runtime directory left. The first event, if at all."""

    arrays: tuple[ArrayRecord, ...]
    """Every whole manifest of this boot."""
    lost: frozenset[int]
    """Segment ids of those whose segment is gone or is another file."""
    sessions: tuple[SessionRecord, ...]
    """Those whose process lives and holds its lock, and those over TCP."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that :attr:`Coordinator.wake_ns` named has come."""


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    """The process of a busy worker does not run (SIGSTOP, a debugger). Told again and again."""

    session: int


@dataclass(frozen=True, slots=True)
class WorkerContinued:
    """It runs again."""

    session: int


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The process behind a session is dead (pidfd), or has let go of its token's lock."""

    session: int


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    """A send to this peer failed: it is gone, or never reads."""

    peer: bytes
    unsent: Message | None = None
    """What it will not hear, if the daemon says so."""


@dataclass(frozen=True, slots=True)
class TroubleSeen:
    """What is wrong around the coordinator that it can do nothing about, instead of what was."""

    troubles: tuple[str, ...]
    """Sentences, for those who ask how it is."""


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
    | GenerationPublished
    | PublishRefused
    | TokenMade
    | TokenRefused
    | TokenChecked
    | Recovered
    | Tick
    | WorkerStopped
    | WorkerContinued
    | ProcessExited
    | PeerUnreachable
    | TroubleSeen
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
    """Walk the ladder on a thread and write the manifest, the commit point.

    Answer with SegmentMade or SegmentRefused.
    """

    token: int
    segment_id: int
    spec: ArraySpec
    huge_pages: HugePages
    page_size: PageSize
    backing: str
    creator: Identity
    session: int
    """The owner, until it ends."""
    temporary: bool = False
    """Goes with the owner even when it is sealed; the manifest says so."""


@dataclass(frozen=True, slots=True)
class CancelSegment:
    """Stop a MakeSegment soon; it still answers (SegmentRefused, or SegmentMade if too late)."""

    token: int


@dataclass(frozen=True, slots=True)
class SealSegment:
    """Make the file read-only if nobody maps it writable, check it, note it in the manifest.

    Answer with SegmentSealed or SealRefused.
    """

    token: int
    segment: Segment
    spec: ArraySpec


@dataclass(frozen=True, slots=True)
class PublishGeneration:
    """Put another name and generation into the manifest of a sealed segment, in one step.

    It is temporary no more. Answer with GenerationPublished or PublishRefused.
    """

    token: int
    segment_id: int
    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class PublishTogether:
    """Several PublishGeneration, all of them or none.

    Answer with GenerationPublished or PublishRefused of this token, once.
    """

    token: int
    publications: tuple[PublishGeneration, ...]


@dataclass(frozen=True, slots=True)
class UnlinkSegment:
    """Remove the manifest, then the file; the pages go with the last mapping."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class WatchProcess:
    """Report ProcessExited(session) when this pid ends, or at once if it has ended."""

    session: int
    pid: int


@dataclass(frozen=True, slots=True)
class MakeToken:
    """Make the file that the session's process will lock; answer TokenMade or TokenRefused.

    Nobody locks that of a session with a lease: its name is what the client has.
    """

    session: int
    identity: Identity
    client: str
    lease_ns: int = 0


@dataclass(frozen=True, slots=True)
class CheckToken:
    """See whether the session's process holds the lock and lives; answer TokenChecked."""

    session: int


@dataclass(frozen=True, slots=True)
class UnwatchProcess:
    """The session is closed; forget its pidfd and remove its token."""

    session: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Everything is drained: end the loop."""


Effect = (
    Send
    | MakeSegment
    | CancelSegment
    | SealSegment
    | PublishGeneration
    | PublishTogether
    | UnlinkSegment
    | WatchProcess
    | MakeToken
    | CheckToken
    | UnwatchProcess
    | Stop
)
