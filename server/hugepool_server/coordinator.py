"""The coordinator as a state machine: an event and the time in, effects out.

Nothing here reads a clock, opens a file or touches a socket, so every race is a
sequence of events that a test can write down. What there is lives in ``state.py``
(named objects in ``registry.py``, sessions and leases in ``leases.py``, jobs and
workers in ``jobs.py``), what may be done to it in ``array_requests.py`` and
``job_requests.py``; this class sends events to them and answers for sessions and for
its own end.

A request's handler returns its reply, or None when the reply comes with a later
event or was given already; it checks everything before it changes anything, so
an error that it raises leaves all as it was. What follows from a change (an
array that nobody keeps, a part that finds a worker, the end of a drain) is done
once, after every event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    NotPermittedError,
    ProtocolError,
)
from hugepool_common.messages import (
    Attach,
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
    GoodbyeSaid,
    Hello,
    List,
    Message,
    PartDone,
    PartFailed,
    RegisterWorker,
    ReportTiming,
    Seal,
    Shutdown,
    ShuttingDown,
    Stats,
    SubmitJob,
    Welcome,
)
from hugepool_server.array_requests import ArrayRequests
from hugepool_server.events import (
    Effect,
    Event,
    PeerUnreachable,
    ProcessExited,
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
    UnwatchProcess,
    WatchProcess,
    WorkerContinued,
    WorkerStopped,
)
from hugepool_server.job_requests import JobRequests
from hugepool_server.leases import Asker, Session
from hugepool_server.registry import ActKind
from hugepool_server.state import Limits, State, cancelled

_NEW_WORK = (CreateArray, Attach, Seal, RegisterWorker, SubmitJob)


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
    ) -> None:
        self.instance = instance
        self.pid = pid
        self.uid = uid
        self.version = version
        self._started_ns = started_ns
        self._state = State(uid, limits or Limits())
        self._arrays = ArrayRequests(self._state)
        self._work = JobRequests(self._state)
        self._stopping = ""
        self._stopped = False
        self._on: dict[type, Callable[[Any, int], None]] = {
            RequestReceived: self._on_request,
            SegmentMade: self._arrays.on_segment_made,
            SegmentRefused: self._arrays.on_segment_refused,
            SegmentProgress: self._arrays.on_segment_progress,
            SegmentSealed: self._arrays.on_segment_sealed,
            SealRefused: self._arrays.on_seal_refused,
            ProcessExited: self._on_process_exited,
            PeerUnreachable: self._on_peer_unreachable,
            StopRequested: self._on_stop_requested,
            Tick: self._work.on_tick,
            WorkerStopped: self._work.on_worker_stopped,
            WorkerContinued: self._work.on_worker_continued,
        }
        self._answer: dict[type, Callable[[Asker, Any, int], Message | None]] = {
            Hello: self._hello,
            CreateArray: self._arrays.create,
            Attach: self._arrays.attach,
            Detach: self._arrays.detach,
            Seal: self._arrays.seal,
            Destroy: self._arrays.destroy,
            List: self._arrays.list_page,
            Describe: self._arrays.describe,
            Stats: self._stats,
            RegisterWorker: self._work.register_worker,
            SubmitJob: self._work.submit_job,
            PartDone: self._work.part_done,
            PartFailed: self._work.part_failed,
            ReportTiming: self._work.report_timing,
            Shutdown: self._shutdown,
            Goodbye: self._goodbye,
            Cancel: self._cancel,
        }

    def __repr__(self) -> str:
        state = repr(self._state).partition(": ")[2].rstrip(">")
        return f"<Coordinator {self.instance}: {state}{', stopping' if self._stopping else ''}>"

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
        self._on[type(event)](event, now_ns)
        self._work.settle(now_ns)
        self._arrays.settle()
        if self._stopping and not self._state.registry.acts:
            self._stop()
        return self._state.take_effects()

    @property
    def wake_ns(self) -> int | None:
        """When the next Tick is due, on the clock of `handle`; None while none is."""
        return self._state.jobs.wake_ns

    def validate(self) -> None:
        """Assert every invariant; for tests, after every event."""
        self._state.validate()
        assert not self._stopping or not self._state.jobs.live
        assert not self._stopped or self._stopping

    # Requests -----------------------------------------------------------------

    def _on_request(self, event: RequestReceived, now_ns: int) -> None:
        try:
            asker = Asker(self._session_for(event), event.correlation)
        except HugepoolError as error:
            self._state.emit(Send(event.peer, event.correlation, Failed.from_error(error)))
            return
        reply: Message | None
        try:
            if self._stopping and isinstance(event.request, _NEW_WORK):
                raise self._stopping_error()
            reply = self._answer[type(event.request)](asker, event.request, now_ns)
        except HugepoolError as error:
            reply = Failed.from_error(error)
        if reply is not None:
            self._state.reply(asker, reply)

    def _session_for(self, event: RequestReceived) -> Session:
        session = self._state.leases.of_peer(event.peer)
        if session is None:
            return self._open_session(event)
        # A routing id can be taken over or shared; the process behind it cannot.
        if (session.identity.uid, session.identity.pid) != (event.identity.uid, event.identity.pid):
            raise NotPermittedError(
                "the session is another process's",
                needed=f"pid {session.identity.pid} of uid {session.identity.uid}",
                had=f"pid {event.identity.pid} of uid {event.identity.uid}",
                remedy="connect anew; a forked child needs a connection of its own",
            )
        if not session.reachable:
            session.reachable = True
            self._work.tell_of_workers(session)  # it may have missed it
        return session

    def _open_session(self, event: RequestReceived) -> Session:
        if not isinstance(event.request, Hello):
            raise ProtocolError("there is no session; Hello must come first", remedy="connect anew")
        if self._stopping:
            raise self._stopping_error()
        session = self._state.leases.open(event.peer, event.identity, event.request.client)
        self._state.emit(WatchProcess(session.number, session.identity.pid))
        return session

    def _hello(self, asker: Asker, request: Hello, now_ns: int) -> Message:
        return Welcome(asker.session.number, self.version, self.instance, self.pid)

    def _goodbye(self, asker: Asker, request: Goodbye, now_ns: int) -> Message:
        self._end_session(asker.session)
        return GoodbyeSaid()

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
                needed=f"uid {self.uid} or 0",
                had=f"uid {identity.uid}",
            )
        self._state.reply(asker, ShuttingDown())
        if not self._stopping:
            self._drain(f"shutdown by pid {identity.pid}")
        return None

    def _stats(self, asker: Asker, request: Stats, now_ns: int) -> Message:
        published = self._state.registry.published
        asker.session.knows_workers = True
        return Counted(
            instance=self.instance,
            pid=self.pid,
            version=self.version,
            uptime_ns=now_ns - (self._started_ns or 0),
            sessions=len(self._state.leases.sessions),
            arrays=len(published),
            nbytes=sum(found.spec.nbytes for found in published),
            length=sum(found.segment.length for found in published),
            huge_bytes=sum(found.pages.huge_bytes for found in published),
            jobs_running=len(self._state.jobs.live),
            jobs_done=self._state.jobs.done_count,
            jobs_failed=self._state.jobs.failed_count,
            workers=self._state.jobs.describe_workers(),
            timings=tuple(self._state.jobs.timings),
            jobs_waiting=self._state.jobs.waiting,
        )

    # Ends of sessions ---------------------------------------------------------

    def _on_process_exited(self, event: ProcessExited, now_ns: int) -> None:
        session = self._state.leases.of_number(event.session)
        if session is not None:
            session.reachable = False
            self._end_session(session)

    def _on_peer_unreachable(self, event: PeerUnreachable, now_ns: int) -> None:
        session = self._state.leases.of_peer(event.peer)
        if session is None:
            return
        session.reachable = False
        session.knows_workers = True  # that this is no longer so may be what did not arrive
        # A client may be stopped and still map its arrays: only its death ends its
        # leases. A worker that cannot be told of parts is of no use; but one that is at a
        # part may still write, and nobody else may do that part until it reports or dies.
        worker = self._state.jobs.worker_of(session)
        if worker is not None and worker.running is None:
            self._end_session(session)

    def _end_session(self, session: Session) -> None:
        """Close a session and all that it began or held; its requests are answered if it hears."""
        closed = cancelled("the session was closed")
        for job in self._state.jobs.of_session(session):
            self._work.fail(job, closed)
        for act in self._state.registry.acts_of(session):
            if act.kind is ActKind.MAKE:
                self._arrays.abandon(act)
            self._state.reply_late(act, closed)
        self._state.jobs.unregister(session)
        self._state.leases.close(session)
        self._state.registry.disown(session)
        self._state.emit(UnwatchProcess(session.number))

    # The coordinator's own end ------------------------------------------------

    def _on_stop_requested(self, event: StopRequested, now_ns: int) -> None:
        if not self._stopping:
            self._drain(event.reason)
            return
        for act in self._state.registry.acts:
            self._state.reply_late(act, Failed.from_error(self._stopping_error()))
        self._stop()

    def _drain(self, reason: str) -> None:
        """Refuse new work, end what is under way, and stop when no slow act is left."""
        self._stopping = reason or "no reason given"
        error = Failed.from_error(self._stopping_error())
        for job in self._state.jobs.live:
            self._work.fail(job, error)
        for act in self._state.registry.acts:
            if act.kind is ActKind.MAKE:
                self._arrays.abandon(act)
                self._state.reply_late(act, error)
        for session in self._state.leases.sessions:
            self._state.notify(session, CoordinatorStopping())

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._state.emit(Stop())

    def _stopping_error(self) -> CoordinatorUnreachableError:
        return CoordinatorUnreachableError(
            f"the coordinator is stopping: {self._stopping}", remedy="connect to another one"
        )


__all__ = ["Coordinator", "Limits"]
