"""Sessions: how they begin, go on at another connection, and end.

A client says Hello and is told of a token, a file that it locks for life; once the
lock was seen it is bound and may ask for anything. The lock is the process's, so
whoever holds it *is* the session, whatever connection it is heard from: a client
whose connection or whose coordinator was renewed says Hello with the name of its
token, goes on under its old number, and tells what leases it holds.

A client over TCP has no process that could be seen. Its session is bound when its token is
made, whoever knows the token's name *is* the session, and it ends when it was not renewed for
the length of its lease: as if its process had exited.
"""

from __future__ import annotations

from hugepool_common.errors import (
    HugepoolError,
    LeaseExpiredError,
    NotPermittedError,
    ProtocolError,
)
from hugepool_common.messages import (
    Bind,
    Bound,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Held,
    Hello,
    Message,
    RegisterWorker,
    Renew,
    Renewed,
    Resume,
    Resumed,
    RunPart,
    Welcome,
)
from hugepool_server.array_requests import ArrayRequests, check_rows, over_tcp
from hugepool_server.events import (
    CheckToken,
    MakeToken,
    PeerUnreachable,
    ProcessExited,
    RequestReceived,
    Send,
    TokenChecked,
    TokenMade,
    TokenRefused,
    UnwatchProcess,
    WatchProcess,
)
from hugepool_server.job_requests import JobRequests
from hugepool_server.leases import Asker, Greeting, Session, SessionState
from hugepool_server.named_object import NamedObject
from hugepool_server.records import Identity
from hugepool_server.registry import ActKind
from hugepool_server.state import State, cancelled


class SessionRequests:
    """Opens, binds, takes up again and ends sessions.

    Parameters
    ----------
    state
        What there is.
    arrays, work
        Who gives up what a session that ends had begun.
    instance, pid, version, durable
        Told in Welcome.
    """

    def __init__(
        self,
        state: State,
        arrays: ArrayRequests,
        work: JobRequests,
        *,
        instance: str,
        pid: int,
        version: str,
        durable: bool,
    ) -> None:
        self._state = state
        self._arrays = arrays
        self._work = work
        self._instance = instance
        self._pid = pid
        self._version = version
        self._durable = durable

    # Who asks -----------------------------------------------------------------

    def asker(self, event: RequestReceived) -> Asker:
        """Whose request this is, if it is one that its session may ask.

        Raises
        ------
        ProtocolError
            There is no session, or it is not bound.
        LeaseExpiredError
            There is no session at this connection over TCP, or not any more.
        NotPermittedError
            The session is another process's.
        """
        session = self._heard_from(event)
        if session is None and not event.identity.is_local:
            raise _lease_over()
        if session is None:
            raise ProtocolError("there is no session; Hello must come first", remedy="connect anew")
        if session.state is not SessionState.BOUND and not isinstance(
            event.request, Bind | Goodbye
        ):
            raise ProtocolError(
                "the session is not bound",
                needed="Bind, once the token is locked",
                had=type(event.request).__name__,
            )
        return Asker(session, event.correlation)

    def _heard_from(self, event: RequestReceived) -> Session | None:
        session = self._state.leases.of_peer(event.peer)
        if session is None:
            return None
        # A routing id can be taken over or shared; the process behind it cannot.
        _check_same_process(session, event.identity)
        if not session.reachable:
            session.reachable = True
            self._work.tell_of_workers(session)  # it may have missed it
        return session

    # Beginning ----------------------------------------------------------------

    def hello(self, event: RequestReceived, request: Hello, now_ns: int) -> None:
        """Open a session, or see whether this is the process of an earlier one.

        Raises
        ------
        ProtocolError
            The connection has another session.
        NotPermittedError
            The session of before is another process's.
        NotEnoughMemoryError
            There are too many sessions.
        CoordinatorUnreachableError
            The coordinator is stopping.
        LeaseExpiredError
            The session of before was one over TCP, and is over.
        """
        session = self._heard_from(event)
        before = self._state.leases.of_token(request.resume)
        greeting = Greeting(event.peer, event.correlation, request)
        if session is not None:
            if before not in (None, session):
                raise _other_session()
            self._greet_again(session, greeting, now_ns)
            return
        if self._state.stopping:
            raise self._state.stopping_error()
        if before is None:
            if request.resume and not event.identity.is_local:
                raise _lease_over()
            self._open(greeting, event.identity)
            return
        _check_same_process(before, event.identity)
        if event.identity.is_local:
            self._look_at_token(before, greeting)
        else:
            self._take_up(before, greeting, now_ns)

    def _greet_again(self, session: Session, greeting: Greeting, now_ns: int) -> None:
        if session.state is SessionState.OPENING:
            session.waiting.append(greeting)
        else:
            self._state.leases.renew(session, now_ns)
            self._welcome(session, greeting)

    def _open(self, greeting: Greeting, identity: Identity) -> None:
        assert isinstance(greeting.request, Hello), greeting
        lease_ns = 0 if identity.is_local else self._state.limits.lease_ns
        session = self._state.leases.open(
            greeting.peer, identity, greeting.request.client, lease_ns=lease_ns
        )
        session.waiting.append(greeting)
        if greeting.request.resume:
            self._state.leases.resume(session)
        if identity.is_local:
            self._state.emit(WatchProcess(session.number, identity.pid))
        self._state.emit(MakeToken(session.number, session.identity, session.client, lease_ns))

    def on_token_made(self, event: TokenMade, now_ns: int) -> None:
        """Tell the client what to lock."""
        session = self._state.leases.of_number(event.session)
        if session is None:
            self._state.emit(UnwatchProcess(event.session))  # it ended before its token was there
            return
        if session.state is not SessionState.OPENING:
            return
        self._state.leases.told_token(session, event.path)
        self._state.leases.renew(session, now_ns)
        for greeting in _taken(session.waiting):
            self._welcome(session, greeting)

    def on_token_refused(self, event: TokenRefused, now_ns: int) -> None:
        """Without a token there is no session."""
        session = self._state.leases.of_number(event.session)
        if session is None or session.state is not SessionState.OPENING:
            return
        for greeting in _taken(session.waiting):
            self._answer(greeting, event.error)
        self.end(session)

    def bind(self, asker: Asker, request: Bind, now_ns: int) -> Message | None:
        """See whether the session's own process holds the lock."""
        session = asker.session
        if session.state is SessionState.OPENING:
            raise ProtocolError("the session has no token yet", remedy="wait for Welcome")
        if session.state is SessionState.BOUND:
            return Bound()
        self._look_at_token(session, Greeting(session.peer, asker.correlation, request))
        return None

    def _look_at_token(self, session: Session, greeting: Greeting) -> None:
        if not session.waiting:
            self._state.emit(CheckToken(session.number))
        session.waiting.append(greeting)

    def on_token_checked(self, event: TokenChecked, now_ns: int) -> None:
        """The session begins or goes on, or its process is not what it was."""
        session = self._state.leases.of_number(event.session)
        if session is None or session.state is SessionState.OPENING:
            return
        waiting = _taken(session.waiting)
        if not event.held and waiting:
            self._refuse(session, waiting, now_ns)
            return
        for greeting in waiting:
            if isinstance(greeting.request, Hello):
                self._take_up(session, greeting, now_ns)
            else:
                if session.state is SessionState.UNBOUND:
                    self._state.leases.bind(session)
                self._answer(greeting, Bound())

    def _refuse(self, session: Session, waiting: list[Greeting], now_ns: int) -> None:
        """Nobody holds the lock as it should be held: that session is over."""
        for greeting in waiting:
            if isinstance(greeting.request, Bind):
                self._answer(greeting, Failed.from_error(_not_held(session)))
        self.end(session)
        for greeting in waiting:
            if isinstance(greeting.request, Hello):
                self._open_in_place(greeting, session.identity, now_ns)

    def _open_in_place(self, greeting: Greeting, identity: Identity, now_ns: int) -> None:
        """A Hello asked for a session that turned out to be over: it gets a new one."""
        again = self._state.leases.of_peer(greeting.peer)
        try:
            if again is not None:
                self._greet_again(again, greeting, now_ns)
            else:
                self._open(greeting, identity)
        except HugepoolError as error:
            self._answer(greeting, Failed.from_error(error))

    # Going on -----------------------------------------------------------------

    def _take_up(self, session: Session, greeting: Greeting, now_ns: int) -> None:
        """The process of a session is heard from another connection.

        What was sent to the old one may not have arrived: jobs are interrupted, and other
        acts wait for somebody to ask again.
        """
        other = self._state.leases.of_peer(greeting.peer)
        if other not in (None, session):
            self._answer(greeting, Failed.from_error(_other_session()))
            return
        if other is None:
            for job in self._state.jobs.of_session(session):
                self._state.jobs.finish(job, failed=True)
            for act in self._state.registry.acts_of(session):
                act.asker = None
            self._state.leases.take_up(session, greeting.peer)
        self._state.leases.renew(session, now_ns)
        self._welcome(session, greeting)

    def register_worker(self, asker: Asker, request: RegisterWorker, now_ns: int) -> Message:
        """Make the session a worker.

        One that was a worker at another connection is at no part when it registers again,
        whatever was sent to it there: that part is another's.

        Raises
        ------
        NotPermittedError
            It is over TCP: nobody could tell when its process has let go of what it writes.
        """
        if not asker.session.identity.is_local:
            raise over_tcp("a client over TCP can be no worker")
        if asker.session.renewed:
            asker.session.renewed = False
            self._state.jobs.lay_down(asker.session)
        return self._work.register_worker(asker, request, now_ns)

    def resume(self, asker: Asker, request: Resume, now_ns: int) -> Message:
        """Grant again, under their old numbers, the leases that the client holds."""
        session = asker.session
        if not session.resuming:
            raise ProtocolError(
                "the session has nothing to resume",
                needed="a Hello that names its token, and no last Resume since",
            )
        kept: list[tuple[Held, NamedObject]] = []
        gone: dict[int, None] = {}
        for held in request.leases:
            found = self._state.registry.of_segment(held.segment_id)
            if found is None:
                gone[held.segment_id] = None
            else:
                kept.append((held, found))
        self._check_held(asker, kept)
        for held, found in kept:
            readonly = held.readonly or found.sealed
            self._state.leases.grant_again(
                session,
                held.lease,
                held.segment_id,
                readonly=readonly,
                rows=None if readonly else held.rows,
            )
        if not request.more:
            self._state.leases.end_resuming(session)
        return Resumed(tuple(gone))

    def _check_held(self, asker: Asker, kept: list[tuple[Held, NamedObject]]) -> None:
        """Refuse leases that this client cannot have had, or not beside what others have."""
        leases, session = self._state.leases, asker.session
        fresh = []
        for held, found in kept:
            if leases.check_again(session, held.lease, held.segment_id) is not None:
                continue
            fresh.append(held.lease)
            if held.rows is not None:
                self._arrays.check_declares(asker)
                check_rows(found.spec, held.rows, readonly=held.readonly)
            if held.readonly or found.sealed:
                continue
            self._arrays.check_may(asker, found, "write to")
            if held.rows is not None:
                leases.check_rows(session, held.segment_id, held.rows)
        if len(set(fresh)) < len(fresh):
            raise ProtocolError("two leases have one number")
        if fresh:
            leases.check_room(session, self._arrays.promised(asker) + len(fresh) - 1)

    # Ends ---------------------------------------------------------------------

    def goodbye(self, asker: Asker, request: Goodbye, now_ns: int) -> Message:
        """Close the session."""
        self.end(asker.session)
        return GoodbyeSaid()

    def renew(self, asker: Asker, request: Renew, now_ns: int) -> Message:
        """Begin the lease of a session over TCP anew."""
        if not asker.session.lease_ns:
            raise ProtocolError(
                "a local session has no lease to be renewed",
                had=asker.session.identity.told_process,
            )
        self._state.leases.renew(asker.session, now_ns)
        return Renewed()

    def end_overdue(self, now_ns: int) -> None:
        """End the sessions over TCP of which nothing was heard in time, as if they had exited."""
        for session in self._state.leases.overdue(now_ns):
            session.reachable = False
            self.end(session)

    def on_process_exited(self, event: ProcessExited, now_ns: int) -> None:
        """The process is dead, or let go of its lock: nobody hears at its connection."""
        session = self._state.leases.of_number(event.session)
        if session is not None:
            session.reachable = False
            self.end(session)

    def on_peer_unreachable(self, event: PeerUnreachable, now_ns: int) -> None:
        """Sending failed: what it holds stays, for only its death ends that."""
        session = self._state.leases.of_peer(event.peer)
        if session is None:
            return
        session.reachable = False
        session.knows_workers = True  # that this is no longer so may be what did not arrive
        # A client may be stopped and still map its arrays, and a worker write them: only
        # its death ends that. One that is not bound holds nothing.
        if session.state is not SessionState.BOUND:
            self.end(session)
        elif isinstance(event.unsent, RunPart):
            self._state.jobs.unsent(session, event.unsent)

    def drain(self, error: Failed) -> None:
        """Answer all that wait for a token: the coordinator is stopping."""
        for session in self._state.leases.sessions:
            for greeting in _taken(session.waiting):
                self._answer(greeting, error)

    def end(self, session: Session) -> None:
        """Close a session and all that it began or held; its requests are answered if it hears."""
        closed = cancelled("the session was closed")
        for job in self._state.jobs.of_session(session):
            self._work.fail(job, closed)
        for act in self._state.registry.acts_of(session):
            if act.kind is ActKind.MAKE:
                self._arrays.abandon(act)
            self._state.reply_late(act, closed)
        for greeting in _taken(session.waiting):
            if session.reachable or greeting.peer != session.peer:
                self._answer(greeting, closed)
        self._state.jobs.unregister(session)
        self._state.leases.close(session)
        self._state.registry.disown(session)
        self._state.emit(UnwatchProcess(session.number))

    # Replies without a session ------------------------------------------------

    def _welcome(self, session: Session, greeting: Greeting) -> None:
        assert isinstance(greeting.request, Hello), greeting
        resumed = bool(session.token) and greeting.request.resume == session.token
        self._answer(
            greeting,
            Welcome(
                session.number,
                self._version,
                self._instance,
                self._pid,
                token=session.token if session.lease_ns else session.token_path,
                resumed=resumed,
                durable=self._durable,
                lease_ns=session.lease_ns,
            ),
        )

    def _answer(self, greeting: Greeting, message: Message) -> None:
        self._state.emit(Send(greeting.peer, greeting.correlation, message))


def _taken(waiting: list[Greeting]) -> list[Greeting]:
    taken = list(waiting)
    waiting.clear()
    return taken


def _check_same_process(session: Session, identity: Identity) -> None:
    if session.identity.process != identity.process:
        raise NotPermittedError(
            "the session is another process's",
            needed=session.identity.told_process,
            had=identity.told_process,
            remedy="connect anew; a forked child needs a connection of its own",
        )


def _other_session() -> ProtocolError:
    return ProtocolError(
        "this connection has another session", remedy="connect anew to take up the one of before"
    )


def _lease_over() -> LeaseExpiredError:
    return LeaseExpiredError(
        "there is no session at this connection, or its lease has run out",
        remedy="call hugepool.connect() again: what the session held was given back",
    )


def _not_held(session: Session) -> NotPermittedError:
    return NotPermittedError(
        "the token is not locked by the session's process",
        needed=f"a POSIX write lock of pid {session.identity.pid}",
        where=session.token_path,
        remedy="lock it (fcntl.lockf) and keep it open, then say Bind",
    )
