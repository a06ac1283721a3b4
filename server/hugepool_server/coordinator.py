"""The coordinator as a state machine: an event and the time in, effects out.

Nothing here reads a clock, opens a file or touches a socket, so every race is a
sequence of events that a test can write down. What there is lives in ``state.py``
(named objects in ``registry.py``, sessions and leases in ``leases.py``, jobs and
workers in ``jobs.py``), what may be done to it in ``session_requests.py``,
``array_requests.py``, ``publication_requests.py`` and ``job_requests.py``; this class
sends events to them and answers for its own end. What an earlier coordinator left comes in
by ``recovery.py``.

A request's handler returns its reply, or None when the reply comes with a later
event or was given already; it checks everything before it changes anything, so
an error that it raises leaves all as it was. What follows from a change (an
array that nobody keeps, a part that finds a worker, the end of a drain) is done
once, after every event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hugepool_common.errors import HugepoolError, NotPermittedError
from hugepool_common.messages import (
    Attach,
    Bind,
    Cancel,
    Cancelled,
    CoordinatorStopping,
    Counted,
    CreateArray,
    Describe,
    Destroy,
    Detach,
    Failed,
    Goodbye,
    Hello,
    List,
    ListJobs,
    Message,
    PartDone,
    PartFailed,
    Publish,
    PublishAll,
    RegisterWorker,
    Renew,
    ReportTiming,
    Resume,
    Seal,
    Shutdown,
    ShuttingDown,
    Stats,
    SubmitJob,
)
from hugepool_server.adoption import recover
from hugepool_server.array_requests import ArrayRequests
from hugepool_server.events import (
    Effect,
    Event,
    GenerationPublished,
    PeerUnreachable,
    ProcessExited,
    PublishRefused,
    Recovered,
    RequestReceived,
    SealRefused,
    SegmentMade,
    SegmentProgress,
    SegmentRefused,
    SegmentSealed,
    Send,
    Stop,
    StopRequested,
    Tick,
    TokenChecked,
    TokenMade,
    TokenRefused,
    TroubleSeen,
    WorkerContinued,
    WorkerStopped,
)
from hugepool_server.job_requests import JobRequests
from hugepool_server.leases import Asker
from hugepool_server.publication_requests import PublicationRequests
from hugepool_server.registry import ActKind
from hugepool_server.session_requests import SessionRequests
from hugepool_server.state import Limits, State, cancelled

_NEW_WORK = (CreateArray, Attach, Seal, Publish, PublishAll, RegisterWorker, SubmitJob)


class Coordinator:
    """Everything that one coordinator knows and decides.

    Parameters
    ----------
    instance
        Name of this coordinator's life, told in Welcome.
    pid, uid
        Of the coordinator's own process; its uid, like root, may do to an array
        what the creator may.
    version
        Of hugepool, told in Welcome.
    started_ns
        When it began, on the clock of ``handle``'s `now_ns`; by default, when the first
        event came.
    limits
        What it takes on at most.
    durable
        Whether arrays and sessions outlive this coordinator's process, told in Welcome.
    epoch
        How often a coordinator has started on this runtime directory; numbers of
        sessions, leases, segments, jobs and workers begin after ``epoch << 32``.

    Attributes
    ----------
    tcp
        Address for clients over TCP, told in Counted; empty where there is none.

    Notes
    -----
    One thread calls `handle`; there is nothing to lock.
    """

    def __init__(
        self,
        *,
        instance: str,
        pid: int,
        uid: int,
        version: str,
        started_ns: int | None = None,
        limits: Limits | None = None,
        durable: bool = False,
        epoch: int = 0,
    ) -> None:
        self.instance = instance
        self.pid = pid
        self.uid = uid
        self.version = version
        self.epoch = epoch
        self.tcp = ""
        self._started_ns = started_ns
        self._state = State(uid, limits or Limits(), epoch)
        self._arrays = ArrayRequests(self._state)
        self._publications = PublicationRequests(self._state, self._arrays)
        self._work = JobRequests(self._state)
        self._sessions = SessionRequests(
            self._state,
            self._arrays,
            self._work,
            instance=instance,
            pid=pid,
            version=version,
            durable=durable,
        )
        self._stopped = False
        self._troubles: tuple[str, ...] = ()
        self._on: dict[type, Callable[[Any, int], None]] = {
            RequestReceived: self._on_request,
            SegmentMade: self._arrays.on_segment_made,
            SegmentRefused: self._arrays.on_segment_refused,
            SegmentProgress: self._arrays.on_segment_progress,
            SegmentSealed: self._arrays.on_segment_sealed,
            SealRefused: self._arrays.on_seal_refused,
            GenerationPublished: self._arrays.on_generation_published,
            PublishRefused: self._arrays.on_publish_refused,
            TokenMade: self._sessions.on_token_made,
            TokenRefused: self._sessions.on_token_refused,
            TokenChecked: self._sessions.on_token_checked,
            ProcessExited: self._sessions.on_process_exited,
            PeerUnreachable: self._sessions.on_peer_unreachable,
            Recovered: self._on_recovered,
            TroubleSeen: self._on_trouble_seen,
            StopRequested: self._on_stop_requested,
            Tick: self._work.on_tick,
            WorkerStopped: self._work.on_worker_stopped,
            WorkerContinued: self._work.on_worker_continued,
        }
        self._answer: dict[type, Callable[[Asker, Any, int], Message | None]] = {
            Bind: self._sessions.bind,
            Resume: self._sessions.resume,
            CreateArray: self._arrays.create,
            Attach: self._arrays.attach,
            Detach: self._arrays.detach,
            Seal: self._arrays.seal,
            Publish: self._arrays.publish,
            PublishAll: self._publications.publish_all,
            Destroy: self._arrays.destroy,
            List: self._arrays.list_page,
            Describe: self._arrays.describe,
            Stats: self._stats,
            RegisterWorker: self._sessions.register_worker,
            SubmitJob: self._work.submit_job,
            PartDone: self._work.part_done,
            PartFailed: self._work.part_failed,
            ReportTiming: self._work.report_timing,
            ListJobs: self._work.list_jobs,
            Shutdown: self._shutdown,
            Goodbye: self._sessions.goodbye,
            Renew: self._sessions.renew,
            Cancel: self._cancel,
        }

    def __repr__(self) -> str:
        state = repr(self._state).partition(": ")[2].rstrip(">")
        return (
            f"<Coordinator {self.instance}: {state}{', stopping' if self._state.stopping else ''}>"
        )

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event in.

        Parameters
        ----------
        event
            What happened.
        now_ns
            When, in nanoseconds of CLOCK_MONOTONIC; never falls.

        Returns
        -------
        list of Effect
            What is to be done, in this order.
        """
        if self._started_ns is None:
            self._started_ns = now_ns
        self._sessions.end_overdue(now_ns)  # first: what is heard too late finds no session
        self._on[type(event)](event, now_ns)
        self._work.settle(now_ns)
        self._arrays.settle()
        if self._state.stopping and not self._state.registry.acts:
            self._stop()
        return self._state.take_effects()

    @property
    def wake_ns(self) -> int | None:
        """When the next Tick is due, on the clock of `handle`; None while none is."""
        times = (self._state.jobs.wake_ns, self._state.leases.wake_ns)
        return min((time_ns for time_ns in times if time_ns is not None), default=None)

    @property
    def stopping(self) -> bool:
        """Whether it refuses new work and drains."""
        return bool(self._state.stopping)

    @property
    def busy_workers(self) -> tuple[tuple[int, int], ...]:
        """Session and pid of each worker whose process is to be looked at.

        Those that were sent a part and have not reported since, and those that could not
        be told something: they may be told again once they run.
        """
        return tuple(
            (worker.session.number, worker.session.identity.pid)
            for worker in self._state.jobs.workers
            if worker.running is not None or not worker.session.reachable
        )

    def validate(self) -> None:
        """Assert every invariant; for tests, after every event."""
        self._state.validate()
        assert not self._state.stopping or not self._state.jobs.live
        assert not self._stopped or self._state.stopping

    # Requests -----------------------------------------------------------------

    def _on_request(self, event: RequestReceived, now_ns: int) -> None:
        try:
            if isinstance(event.request, Hello):
                self._sessions.hello(event, event.request, now_ns)
                return
            asker = self._sessions.asker(event)
        except HugepoolError as error:
            self._state.emit(Send(event.peer, event.correlation, Failed.from_error(error)))
            return
        reply: Message | None
        try:
            if self._state.stopping and isinstance(event.request, _NEW_WORK):
                raise self._state.stopping_error()
            reply = self._answer[type(event.request)](asker, event.request, now_ns)
        except HugepoolError as error:
            reply = Failed.from_error(error)
        if reply is not None:
            self._state.reply(asker, reply)

    def _cancel(self, asker: Asker, request: Cancel, now_ns: int) -> Message | None:
        acts = [
            act
            for act in self._state.registry.acts_of(asker.session)
            if act.asker == Asker(asker.session, request.request) and act.kind is ActKind.MAKE
        ]
        jobs = [
            job
            for job in self._state.jobs.of_session(asker.session)
            if job.asker.correlation == request.request
        ]
        self._state.reply(asker, Cancelled(found=bool(acts or jobs)))
        for act in acts:
            self._arrays.abandon(act)
        for job in jobs:
            self._work.fail(job, cancelled("the job was cancelled"))
        return None

    def _shutdown(self, asker: Asker, request: Shutdown, now_ns: int) -> Message | None:
        identity = asker.session.identity
        if identity.uid not in (0, self.uid):
            raise NotPermittedError(
                "only its own user or root may stop the coordinator",
                needed=f"uid {self.uid} or 0" if self.uid else "uid 0",
                had=identity.told_user,
                remedy="ask whoever runs it; closing your own pool ends what is yours",
            )
        self._state.reply(asker, ShuttingDown())
        if not self._state.stopping:
            self._drain(f"shutdown by pid {identity.pid}")
        return None

    def _stats(self, asker: Asker, request: Stats, now_ns: int) -> Message:
        registry, jobs, limits = self._state.registry, self._state.jobs, self._state.limits
        kept = registry.kept
        lost = sum(found.lost for found in registry.published)
        asker.session.knows_workers = True
        return Counted(
            instance=self.instance,
            pid=self.pid,
            version=self.version,
            uptime_ns=now_ns - (self._started_ns or 0),
            sessions=len(self._state.leases.sessions),
            arrays=len(registry.published) - lost,
            nbytes=sum(found.spec.nbytes for found in kept),
            length=sum(found.segment.length for found in kept),
            huge_bytes=sum(found.pages.huge_bytes for found in kept),
            jobs_running=len(jobs.live),
            jobs_done=jobs.done_count,
            jobs_failed=jobs.failed_count,
            workers=jobs.describe_workers(),
            timings=tuple(jobs.timings),
            jobs_waiting=jobs.waiting,
            epoch=self.epoch,
            lost=lost,
            quota_bytes=limits.max_bytes,
            user_quota_bytes=limits.max_bytes_per_user,
            tcp=self.tcp,
            troubles=self._troubles,
        )

    # The coordinator's own beginning and end ----------------------------------

    def _on_recovered(self, event: Recovered, now_ns: int) -> None:
        recover(self._state, event, now_ns)

    def _on_trouble_seen(self, event: TroubleSeen, now_ns: int) -> None:
        self._troubles = event.troubles

    def _on_stop_requested(self, event: StopRequested, now_ns: int) -> None:
        if not self._state.stopping:
            self._drain(event.reason)
            return
        for act in self._state.registry.acts:
            self._state.reply_late(act, Failed.from_error(self._state.stopping_error()))
        self._stop()

    def _drain(self, reason: str) -> None:
        """Refuse new work, end what is under way, and stop when no slow act is left."""
        self._state.stopping = reason or "no reason given"
        error = Failed.from_error(self._state.stopping_error())
        for job in self._state.jobs.live:
            self._work.fail(job, error)
        for act in self._state.registry.acts:
            if act.kind is ActKind.MAKE:
                self._arrays.abandon(act)
                self._state.reply_late(act, error)
        self._sessions.drain(error)
        for session in self._state.leases.sessions:
            self._state.notify(session, CoordinatorStopping())

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._state.emit(Stop())


__all__ = ["Coordinator", "Limits"]
