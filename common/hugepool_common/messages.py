"""The control protocol: one frozen class per message, numbered, request and reply on one stem.

==========  ==========================================================
1 to 99     requests, client to coordinator
100         Failed, the reply to any request that could not be done
101 to 199  replies: the request's number + 100
201 to 299  notices, coordinator to client, without a reply
==========  ==========================================================

The number travels in the field ``m``. Numbers are never used again once retired.
Reserved for later: 15 CrewReady, 17 Heartbeat, 18 SetQuota. A reply whose request's
number + 100 was taken has the next free one; 24 stays unused, for 124 is taken.

A notice that belongs to a request (CreateProgress, JobProgress) carries the
request's correlation id; the others carry 0. Times are CLOCK_MONOTONIC nanoseconds, which
all processes of one machine share.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from hugepool_common.errors import ERROR_KINDS, ErrorCode, HugepoolError, IndexOutOfRangeError
from hugepool_common.spec import ArraySpec, HugePages, PageReport, PageSize, Segment

MAX_PARTS = 128
"""Most parts of one job: its timings must fit one frame."""

PAGE_OF_LIST = 32
"""Arrays in one Listed reply; the rest is asked for with ``after``."""

PAGE_OF_HOLDERS = 128
"""Holders in one Described reply; the rest is asked for with ``after``."""

PAGE_OF_JOBS = 32
"""Jobs in one JobsListed reply; the rest is asked for with ``after``."""

NOBODY = (1 << 32) - 1
"""Uid, and gid, that clients over TCP are told by. No user has it: to the kernel it means none."""

PAGE_OF_PUBLICATIONS = 400
"""Most names in one PublishAll, however long: others go before it, with ``more``."""

CREW_KERNEL = "crew"
"""Name of the job that lasts as long as a crew: its workers take no other part till then."""

WORKER_CLIENT = "worker"
"""What the client of a worker calls itself in Hello: after a restart it may be at an old part."""

View = Literal["shared", "heap", "private"]
"""A worker sees an operand in the shared mapping, as a heap copy, or in a MAP_PRIVATE mapping."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="m"):
    """Base of everything on the wire."""


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One report of a run: what a worker, or a user's ``timed`` block, did and how long it took.

    Parameters
    ----------
    label
        The kernel, or the user's own name of the step.
    implementation
        Which code ran, such as ``numba`` or ``numpy``.
    worker
        Number of the worker; 0 for a report that belongs to none.
    pid
        Process that ran.
    part, row_start, row_stop
        The row partition.
    elements, nnz
        Elements gathered or rows written; matrix entries used.
    started_ns, wall_ns, cpu_ns
        Start and duration of the kernel alone, and the thread's CPU time in it.
    nbytes
        Payload bytes that the kernel had to read and write.
    mapped_bytes, huge_bytes
        Bytes of the shared operands that this process maps, and those of them
        mapped by huge pages.
    tlb_misses
        dTLB read misses, or None with the reason in `tlb_note`.
    """

    label: str
    implementation: str = ""
    worker: int = 0
    pid: int = 0
    part: int = 0
    row_start: int = 0
    row_stop: int = 0
    elements: int = 0
    nnz: int = 0
    started_ns: int = 0
    wall_ns: int = 0
    cpu_ns: int = 0
    nbytes: int = 0
    mapped_bytes: int = 0
    huge_bytes: int = 0
    tlb_misses: int | None = None
    tlb_note: str = ""


class ArrayInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the coordinator knows of a named object."""

    spec: ArraySpec
    segment: Segment
    pages: PageReport
    """As the creator proved it; an attacher proves its own mapping."""
    sealed: bool
    creator_pid: int
    creator_uid: int
    created_ns: int
    readers: int
    """Leases held on it now."""
    generation: int = 1
    """How often something was published under the name, this one included."""
    checksum: str = ""
    """Of the payload, as :mod:`hugepool_common.checksum` writes it; empty until sealed."""
    lost: bool = False
    """Its memory is gone: the name stands only until it is destroyed."""
    temporary: bool = False
    """It goes with its creator, sealed or not, unless it is published under another name."""


class Holder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lease on an object, and the process that has it."""

    lease: int
    pid: int
    uid: int
    client: str
    """What the process calls itself, perhaps cut short."""
    readonly: bool
    rows: tuple[int, int] | None = None
    """What it declared its own."""


class Operand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named array in a role of a kernel, such as ``x``, ``idx``, ``A`` or ``out``."""

    role: str
    name: str
    writable: bool = False
    view: View = "shared"
    segment_id: int = 0
    """Of the handle that the name came from: the name may stand for another array now."""


class PartOperand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An operand as a worker receives it, ready to map."""

    role: str
    spec: ArraySpec
    segment: Segment
    writable: bool
    view: View
    sealed: bool
    """Whether a copy of it stays true."""


class WorkerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registered worker."""

    worker: int
    pid: int
    cpus: tuple[int, ...]
    busy: bool
    parts_done: int
    kernel: str = ""
    """What it is at, perhaps cut short; empty if it is idle."""


class JobInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job that is queued or running."""

    job: int
    kernel: str
    implementation: str
    """As it was asked for: ``auto`` leaves the choice to each worker."""
    pid: int
    """Process that submitted it."""
    parts: int
    parts_done: int
    workers: tuple[int, ...]
    """Numbers of the workers that are at parts of it."""
    waiting: bool
    """Nobody can take up a part of it: it fails in a while."""
    standing: bool
    """It lasts until its submitter ends it, as a crew's does."""
    started_ns: int | None
    """When its first part was sent; None until then."""


# Requests ---------------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """Open a session, or take one up again. First message of every client.

    Only Bind and Goodbye are answered until the session is bound.
    """

    client: str
    version: str
    resume: str = ""
    """Name of the token of an earlier session of this very process; empty for a new one.

    Over TCP a session that is over is not replaced by a new one: that is an error."""


class CreateArray(Message, frozen=True, tag=2):
    """Make a segment for an array or matrix; writable by its creator until sealed."""

    spec: ArraySpec
    huge_pages: HugePages = "try"
    page_size: PageSize = "auto"
    backing: str = ""
    """Exactly this rung, or fail; empty walks the ladder."""
    again: bool = False
    """Asked before of a coordinator that ended: what that one made counts as made now."""
    temporary: bool = False
    """It goes with this client, sealed or not, unless it is published under another name."""


class Attach(Message, frozen=True, tag=3):
    """Take a lease on a named array."""

    name: str
    readonly: bool = True
    rows: tuple[int, int] | None = None
    """Rows ``[start, stop)`` that this writer declares its own; only with ``readonly=False``."""
    segment_id: int = 0
    """As in :class:`Operand`: of a handle that was passed on; 0 for whatever has the name."""


class Detach(Message, frozen=True, tag=4):
    """Give a lease back."""

    lease: int


class Seal(Message, frozen=True, tag=5):
    """Make an array immutable. Refused while anybody maps it writable."""

    name: str
    segment_id: int = 0
    """As in :class:`Operand`."""


class Publish(Message, frozen=True, tag=6):
    """Give a sealed object another name in one step; what had that name is superseded.

    Who holds the superseded generation keeps it; it goes with its last lease.
    """

    name: str
    """The name to be published under."""
    source: str
    """The sealed object's name, free afterwards."""
    segment_id: int = 0
    """Of the source, as in :class:`Operand`."""


class Destroy(Message, frozen=True, tag=7):
    """Remove the name; pages go when the last mapping goes."""

    name: str
    segment_id: int = 0
    """Only if it is this segment that has the name; 0 for whatever has it."""


class List(Message, frozen=True, tag=8):
    """Names in order, a page at a time."""

    after: str = ""


class Describe(Message, frozen=True, tag=9):
    """Everything known of one array."""

    name: str
    after: int | None = None
    """Tell a page of its holders: those of leases above this number. None wants none."""


class Stats(Message, frozen=True, tag=10):
    """Totals, workers, jobs."""


class RegisterWorker(Message, frozen=True, tag=11):
    """Offer this client's process for parts of jobs."""

    cpus: tuple[int, ...] = ()


class SubmitJob(Message, frozen=True, tag=12):
    """Run a kernel over row partitions on workers; answered when all parts are done."""

    kernel: str
    operands: tuple[Operand, ...]
    rows: tuple[int, ...]
    """Partition bounds: part k is ``[rows[k], rows[k+1])``; begins with 0, never falls."""
    implementation: str = "auto"
    workers: int = 0
    """Answered with FewerWorkers, and not run, where so many are not there outside crews."""
    standing: bool = False
    """Lasts until its submitter ends it: no number of workers that die at a part fails it."""
    once: bool = False
    """Adds to what is there, so no part may be run again: a worker's death at one fails it."""
    progress: bool = False
    """Told of by JobProgress whenever a part is done, but for the last one."""


class PartDone(Message, frozen=True, tag=13):
    """A worker's report of one part."""

    job: int
    part: int
    epoch: int
    timing: Timing


class PartFailed(Message, frozen=True, tag=14):
    """A worker could not do its part; the job fails with this error."""

    job: int
    part: int
    epoch: int
    error: Failed


class ReportTiming(Message, frozen=True, tag=16):
    """A user's own timing."""

    timing: Timing


class Shutdown(Message, frozen=True, tag=21):
    """Drain and end the coordinator. Same uid, or root, only."""


class Goodbye(Message, frozen=True, tag=22):
    """Close the session and everything that it held."""


class Cancel(Message, frozen=True, tag=23):
    """Give up an own CreateArray or SubmitJob under way, by its correlation id."""

    request: int


class Bind(Message, frozen=True, tag=25):
    """The client has locked the token of its session: the session begins."""


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lease that a client had of a coordinator that ended."""

    lease: int
    segment_id: int
    readonly: bool
    rows: tuple[int, int] | None = None


class Resume(Message, frozen=True, tag=26):
    """Tell a restarted coordinator what this client holds, at most 500 leases at a time."""

    leases: tuple[Held, ...]
    more: bool = False
    """Whether another Resume follows."""


class ListJobs(Message, frozen=True, tag=27):
    """Jobs queued or running, oldest first, a page at a time."""

    after: int = 0
    """Those of numbers above this one."""


class Renew(Message, frozen=True, tag=28):
    """A client over TCP is there: the lease of its session begins anew."""


class PublishAll(Message, frozen=True, tag=29):
    """Give sealed objects other names, all in one step or none of them.

    Names that are too many for one message are told in several, all but the last with
    `more`; the last one begins the step.
    """

    names: tuple[str, ...]
    """What they are to be published under."""
    segment_ids: tuple[int, ...]
    """Of the objects, in the same order."""
    replace: bool = False
    """Whether a name may be taken: what has it is superseded, as by Publish."""
    batch: int = 0
    """The same in all messages that belong together."""
    before: int = 0
    """How many names of the batch were told before."""
    more: bool = False
    """Whether another message of the batch follows."""


# Replies ----------------------------------------------------------------------


class Failed(Message, frozen=True, tag=100):
    """The error of a request, with its facts."""

    code: int
    message: str
    needed: str = ""
    had: str = ""
    where: str = ""
    remedy: str = ""
    position: int = -1

    TEXT_LIMIT: ClassVar[int] = 2000

    @classmethod
    def from_error(cls, error: BaseException) -> Failed:
        """Describe an error for the wire; one that is not ours becomes INTERNAL."""
        if not isinstance(error, HugepoolError):
            return cls(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"[: cls.TEXT_LIMIT])
        return cls(
            error.code,
            error.message[: cls.TEXT_LIMIT],
            error.needed[: cls.TEXT_LIMIT],
            error.had[: cls.TEXT_LIMIT],
            error.where[: cls.TEXT_LIMIT],
            error.remedy[: cls.TEXT_LIMIT],
            getattr(error, "position", -1),
        )

    def to_error(self) -> HugepoolError:
        """The error to raise on the side that asked."""
        kind: type[HugepoolError] = HugepoolError
        if self.code in ErrorCode._value2member_map_:
            kind = ERROR_KINDS[ErrorCode(self.code)]
        error = kind(
            self.message, needed=self.needed, had=self.had, where=self.where, remedy=self.remedy
        )
        if isinstance(error, IndexOutOfRangeError):
            error.position = self.position
        return error


class Welcome(Message, frozen=True, tag=101):
    """The session is open."""

    session: int
    version: str
    instance: str
    """The same for all coordinators that followed each other on what the first one made."""
    pid: int
    token: str = ""
    """Path of the file to be locked, and kept open for life, before Bind.

    Over TCP a secret name, by which alone the session is taken up again: nothing is locked."""
    resumed: bool = False
    """The session of before goes on: its token is still locked, and no Bind is wanted."""
    durable: bool = False
    """Arrays and sessions outlive this coordinator's process: wait for the next one."""
    lease_ns: int = 0
    """How long the session lives without a Renew; 0 for a local one, which lives by its lock."""


class ArrayCreated(Message, frozen=True, tag=102):
    """The segment is made, proved and published; the creator holds `lease`."""

    lease: int
    array: ArrayInfo


class Attached(Message, frozen=True, tag=103):
    """A lease and what to map."""

    lease: int
    array: ArrayInfo


class Detached(Message, frozen=True, tag=104):
    """The lease is gone."""


class Sealed(Message, frozen=True, tag=105):
    """The array is immutable from here on."""

    array: ArrayInfo


class Published(Message, frozen=True, tag=106):
    """The name means the new generation from here on."""

    array: ArrayInfo


class Destroyed(Message, frozen=True, tag=107):
    """The name is free."""


class Listed(Message, frozen=True, tag=108):
    """One page of arrays; ``more`` says that names follow the last one here."""

    arrays: tuple[ArrayInfo, ...]
    more: bool


class Described(Message, frozen=True, tag=109):
    """One array and the processes that hold leases on it."""

    array: ArrayInfo
    reader_pids: tuple[int, ...]
    holders: tuple[Holder, ...] = ()
    """In order of their leases, if they were asked for."""
    more: bool = False
    """Whether holders follow the last one here."""


class Counted(Message, frozen=True, tag=110):
    """Totals of the coordinator."""

    instance: str
    pid: int
    version: str
    uptime_ns: int
    sessions: int
    arrays: int
    nbytes: int
    length: int
    huge_bytes: int
    jobs_running: int
    jobs_done: int
    jobs_failed: int
    workers: tuple[WorkerInfo, ...]
    timings: tuple[Timing, ...]
    """The newest reports, oldest first."""
    jobs_waiting: int = 0
    """Jobs that nobody can take up, workers being gone or stopped: they fail in a while."""
    epoch: int = 0
    """How often a coordinator has started on this runtime directory."""
    lost: int = 0
    """Names whose memory is gone."""
    quota_bytes: int = 0
    """Most payload bytes of all arrays; 0 for no quota."""
    user_quota_bytes: int = 0
    """Most payload bytes of one user's arrays; 0 for no quota."""
    tcp: str = ""
    """Address that clients over TCP connect to; empty if there is none."""
    troubles: tuple[str, ...] = ()
    """What is wrong with the directories that it works in, a sentence each."""


class WorkerRegistered(Message, frozen=True, tag=111):
    """The process is a worker now."""

    worker: int


class JobDone(Message, frozen=True, tag=112):
    """All parts are done; their timings in order of parts."""

    job: int
    timings: tuple[Timing, ...]
    wall_ns: int
    """From the first part sent to the last report received."""


class PartAccepted(Message, frozen=True, tag=113):
    """A part's report was taken, or refused because its epoch is over."""

    stale: bool


class TimingReported(Message, frozen=True, tag=116):
    """Noted."""


class ShuttingDown(Message, frozen=True, tag=121):
    """The coordinator drains and ends."""


class GoodbyeSaid(Message, frozen=True, tag=122):
    """The session is closed."""


class Cancelled(Message, frozen=True, tag=123):
    """The request was being worked on and will fail with CANCELLED, or was over already."""

    found: bool


class FewerWorkers(Message, frozen=True, tag=124):
    """The job was not taken: it counts on workers that are not there."""

    present: int
    """Workers registered and in no crew."""


class Bound(Message, frozen=True, tag=125):
    """The session is bound to this process."""


class Resumed(Message, frozen=True, tag=126):
    """The leases are granted again under their numbers, but for those of `gone` segments."""

    gone: tuple[int, ...]


class JobsListed(Message, frozen=True, tag=127):
    """One page of jobs; ``more`` says that others follow the last one here."""

    jobs: tuple[JobInfo, ...]
    more: bool


class Renewed(Message, frozen=True, tag=128):
    """The lease has begun anew; the client counts from when it *sent* Renew."""


class PublishedAll(Message, frozen=True, tag=129):
    """Every name of the batch means what was asked for, from here on."""


class PublicationsTold(Message, frozen=True, tag=130):
    """More of the batch is awaited: what follows the first `count` names of it."""

    count: int


# Notices ----------------------------------------------------------------------


class CreateProgress(Message, frozen=True, tag=201):
    """How far the pages of an array under way are."""

    done_bytes: int
    total_bytes: int


class JobProgress(Message, frozen=True, tag=206):
    """How far a job under way is."""

    done: int
    parts: int


class RunPart(Message, frozen=True, tag=202):
    """Do one part of a job."""

    job: int
    part: int
    epoch: int
    kernel: str
    implementation: str
    operands: tuple[PartOperand, ...]
    row_start: int
    row_stop: int


class DropSegment(Message, frozen=True, tag=203):
    """Unmap a segment that was destroyed; a worker keeps operands mapped between jobs."""

    segment_id: int


class CoordinatorStopping(Message, frozen=True, tag=204):
    """The coordinator ends; workers end with it."""


class WorkersChanged(Message, frozen=True, tag=205):
    """The number of workers outside crews is not what the last Stats told.

    Sent once to each session that asked, until it asks again.
    """


Request = (
    Hello
    | CreateArray
    | Attach
    | Detach
    | Seal
    | Publish
    | Destroy
    | List
    | Describe
    | Stats
    | RegisterWorker
    | SubmitJob
    | PartDone
    | PartFailed
    | ReportTiming
    | Shutdown
    | Goodbye
    | Cancel
    | Bind
    | Resume
    | ListJobs
    | Renew
    | PublishAll
)
Reply = (
    Failed
    | Welcome
    | ArrayCreated
    | Attached
    | Detached
    | Sealed
    | Published
    | Destroyed
    | Listed
    | Described
    | Counted
    | WorkerRegistered
    | JobDone
    | PartAccepted
    | TimingReported
    | ShuttingDown
    | GoodbyeSaid
    | Cancelled
    | FewerWorkers
    | Bound
    | Resumed
    | JobsListed
    | Renewed
    | PublishedAll
    | PublicationsTold
)
Notice = CreateProgress | JobProgress | RunPart | DropSegment | CoordinatorStopping | WorkersChanged
FromCoordinator = Reply | Notice
