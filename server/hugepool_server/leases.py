"""Who is connected, and which segments each of them was promised.

A session is one process, known by the lock that it holds on its token, and the
routing id that it is heard from. It holds two sorts of lease: those that its client
asked for, each with a number to give back, and those that a worker was granted
together with its parts, one a segment, which end when the segment is dropped or the
worker goes.

::

    OPENING ──> UNBOUND ──> BOUND <── DORMANT

OPENING   its token is being made
UNBOUND   its client was told of the token and is to lock it
BOUND     the lock was seen; only now may it hold anything
DORMANT   an earlier coordinator's: its process lives, and has not been heard of

The session of a client over TCP has no process here and no lock. It lives by a *lease*: it ends
when that was not renewed for its length, and its token is a secret name. It is bound at once.

A session *resumes* from the Hello in which its client says that it had one before
until it has told the last lease that it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from hugepool_common.errors import ArrayBusyError, NotEnoughMemoryError, NotPermittedError
from hugepool_common.messages import Bind, Hello, Holder
from hugepool_server.records import Identity, SessionRecord

_TEXT_LIMIT = 200
_NAME_LIMIT = 40
"""Of a client's name that others are told: a page of them must fit one frame."""

Rows = tuple[int, int]


class SessionState(Enum):
    """How far a session is."""

    OPENING = "opening"
    UNBOUND = "unbound"
    BOUND = "bound"
    DORMANT = "dormant"


@dataclass(frozen=True, slots=True)
class Greeting:
    """A Hello or Bind that is answered when the session's token was made or looked at."""

    peer: bytes
    correlation: int
    request: Hello | Bind


@dataclass(slots=True, eq=False)
class Session:
    """One client, from its Hello to the end of its process.

    Parameters
    ----------
    number
        Never given twice, not by a later coordinator either.
    peer
        Routing id that replies go to; empty while dormant.
    identity
        Who is behind it, by the kernel's word; fixed for the session's life.
    client
        What the client calls itself; shown, never trusted.
    state
        How far it is.
    reachable
        False after a send failed, until the peer is heard of again: nothing is
        sent to it, and what it holds stays.
    token, token_path
        Name of the file whose lock says that the process lives, and where it is; each
        empty as long as it is not known.
    resuming
        Whether the client may still tell leases that it holds.
    renewed
        Whether it has come by another connection and not registered as a worker since.
    waiting
        What is answered when the token was made or looked at.
    leases
        By lease number: what the client asked for.
    unconfirmed
        Numbers of those leases that a client which resumes has not told yet.
    held
        By segment id: what its worker was granted with parts.
    knows_workers
        Whether the number of workers is still what it was last told.
    lease_ns
        Over TCP how long it lives without a Renew; 0 for a local one.
    lease_end_ns
        Until when that is, counted from its last Renew or Welcome.
    batch, batched
        Of a publication of several that is told in several messages: its number, and the
        names and segments told so far.
    """

    number: int
    peer: bytes
    identity: Identity
    client: str
    state: SessionState = SessionState.OPENING
    reachable: bool = True
    token: str = ""
    token_path: str = ""
    resuming: bool = False
    renewed: bool = False
    waiting: list[Greeting] = field(default_factory=list)
    leases: dict[int, Lease] = field(default_factory=dict)
    unconfirmed: set[int] = field(default_factory=set)
    held: dict[int, Lease] = field(default_factory=dict)
    knows_workers: bool = False
    lease_ns: int = 0
    lease_end_ns: int = 0
    batch: int = 0
    batched: list[tuple[str, int]] = field(default_factory=list)

    @property
    def takes_parts(self) -> bool:
        """Whether it may be sent parts, if it is a worker.

        One that came by another connection registers anew, and says by that that it is
        at no part: what it was sent before would be taken from it, and still be run.
        """
        return self.reachable and not self.renewed

    def __repr__(self) -> str:
        who = f"pid {self.identity.pid}" if self.identity.is_local else "a client over TCP"
        return (
            f"<Session {self.number} of {who}: "
            f"{len(self.leases)} leases, {len(self.held)} held by its worker>"
        )


@dataclass(slots=True, eq=False)
class Lease:
    """The promise to keep a segment for a session."""

    number: int
    session: Session
    segment_id: int
    readonly: bool
    rows: Rows | None = None
    """What its writer declared its own; no other session may declare any of them."""

    @property
    def told(self) -> Holder:
        """As others are told of it."""
        who = self.session.identity
        client = self.session.client[:_NAME_LIMIT]
        return Holder(self.number, who.pid, who.uid, client, self.readonly, self.rows)


@dataclass(frozen=True, slots=True)
class Asker:
    """Where the reply to a request goes."""

    session: Session
    correlation: int


class Leases:
    """All sessions and all leases.

    Parameters
    ----------
    max_sessions
        Most sessions open at once.
    max_leases
        Most leases that one session may ask for; its worker's do not count,
        since there is at most one of them an array.
    first_number
        Sessions and leases are numbered from the next one.
    """

    def __init__(self, *, max_sessions: int, max_leases: int, first_number: int) -> None:
        self._max_sessions = max_sessions
        self._max_leases = max_leases
        self._first_number = first_number
        self._sessions: dict[int, Session] = {}
        self._by_peer: dict[bytes, Session] = {}
        self._by_token: dict[str, Session] = {}
        self._resuming: dict[int, Session] = {}
        self._leased: dict[int, Session] = {}
        self._by_segment: dict[int, dict[int, Lease]] = {}
        self._by_number: dict[int, Lease] = {}
        self._inherited_count = 0
        self._last_session = first_number
        self._last_lease = first_number

    def __repr__(self) -> str:
        return f"<Leases: {len(self._sessions)} sessions, {self.count} leases>"

    # Sessions -----------------------------------------------------------------

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All sessions, dormant ones first, then oldest first."""
        return tuple(self._sessions.values())

    @property
    def resuming(self) -> tuple[Session, ...]:
        """The sessions that may still tell of leases unknown here."""
        return tuple(self._resuming.values())

    @property
    def wake_ns(self) -> int | None:
        """When the next session over TCP ends, if nothing is heard of it; None without any."""
        return min((session.lease_end_ns for session in self._leased.values()), default=None)

    def overdue(self, now_ns: int) -> list[Session]:
        """The sessions whose lease has run out."""
        return [one for one in self._leased.values() if one.lease_end_ns <= now_ns]

    def open(self, peer: bytes, identity: Identity, client: str, *, lease_ns: int = 0) -> Session:
        """Begin a session; over TCP with the length of its lease, which begins with its token.

        Raises
        ------
        NotEnoughMemoryError
            There are `max_sessions` already; or half as many over TCP, where strangers may
            come, who are to leave room for the others.
        """
        if len(self._sessions) >= self._max_sessions:
            raise _no_room("session", self._max_sessions, len(self._sessions))
        if lease_ns:
            most = max(1, self._max_sessions // 2)
            had = sum(one.lease_ns > 0 for one in self._sessions.values())
            if had >= most:
                raise _no_room("session over TCP", most, had)
        self._last_session += 1
        number = self._last_session
        session = Session(number, peer, identity.of_session(number), client[:_TEXT_LIMIT])
        session.lease_ns = lease_ns
        self._sessions[session.number] = session
        self._by_peer[peer] = session
        return session

    def recover(self, records: Iterable[SessionRecord], now_ns: int) -> list[Session]:
        """Take in the sessions of an earlier coordinator, each with a number and token of its own.

        There may be more of them than `max_sessions`: they were promised to live. Nobody knows
        when a lease was renewed last, so each begins anew.
        """
        for record in records:
            session = Session(
                record.session,
                b"",
                record.identity,
                record.client[:_TEXT_LIMIT],
                SessionState.DORMANT,
                reachable=False,
                token=record.token,
                lease_ns=record.lease_ns,
            )
            self._sessions[session.number] = session
            self.renew(session, now_ns)
            self._by_token[session.token] = session
            self.resume(session)
        self._inherited_count = len(self._sessions)
        return list(self._sessions.values())

    def of_peer(self, peer: bytes) -> Session | None:
        """The session that is heard from this routing id, if it is still open."""
        return self._by_peer.get(peer)

    def of_token(self, token: str) -> Session | None:
        """The session of this token, if it is still open."""
        return self._by_token.get(token)

    def of_number(self, number: int) -> Session | None:
        """The session of this number, if it is still open."""
        return self._sessions.get(number)

    def told_token(self, session: Session, path: str) -> None:
        """The token is there: the client is to lock it, unless it is no local one."""
        local = session.identity.is_local
        session.state = SessionState.UNBOUND if local else SessionState.BOUND
        session.token, session.token_path = path.rpartition("/")[2], path
        self._by_token[session.token] = session

    def renew(self, session: Session, now_ns: int) -> None:
        """A client over TCP was heard: its lease begins anew. Local ones have none."""
        if session.lease_ns:
            session.lease_end_ns = now_ns + session.lease_ns
            self._leased[session.number] = session

    def bind(self, session: Session) -> None:
        """The lock was seen."""
        session.state = SessionState.BOUND

    def take_up(self, session: Session, peer: bytes) -> None:
        """The lock was seen, or the secret, and the client is heard from another routing id now.

        It is to tell what it holds: what it does not tell, it never heard that it has.
        """
        self._by_peer.pop(session.peer, None)
        session.peer, session.reachable, session.renewed = peer, True, True
        self._by_peer[peer] = session
        session.unconfirmed = set(session.leases)
        self.resume(session)
        self.bind(session)

    def resume(self, session: Session) -> None:
        """The client may tell what it holds."""
        session.resuming = True
        self._resuming[session.number] = session

    def end_resuming(self, session: Session) -> None:
        """The client told all that it holds: what it did not tell goes."""
        session.resuming = False
        del self._resuming[session.number]
        for number in session.unconfirmed:
            self._forget(session.leases.pop(number))
        session.unconfirmed.clear()

    def close(self, session: Session) -> None:
        """End a session and every lease that it has."""
        for lease in [*session.leases.values(), *session.held.values()]:
            self._forget(lease)
        session.leases.clear()
        session.unconfirmed.clear()
        session.held.clear()
        self._by_peer.pop(session.peer, None)
        self._by_token.pop(session.token, None)
        self._resuming.pop(session.number, None)
        self._leased.pop(session.number, None)
        del self._sessions[session.number]

    # Leases -------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of leases, the workers' included."""
        return sum(map(len, self._by_segment.values()))

    def check_room(self, session: Session, promised: int = 0) -> None:
        """Refuse a request that would end in one lease too many.

        Parameters
        ----------
        session
            Who asks.
        promised
            Leases that it will be granted when its requests under way end.

        Raises
        ------
        NotEnoughMemoryError
            The session has `max_leases`, granted or promised.
        """
        had = len(session.leases) + promised
        if had >= self._max_leases:
            raise NotEnoughMemoryError(
                "the session has no room for another lease",
                needed=f"fewer than {self._max_leases} leases",
                had=str(had),
                remedy="detach arrays that are not in use",
            )

    def check_rows(self, session: Session, segment_id: int, rows: Rows) -> None:
        """Refuse rows that another session declared its own.

        Raises
        ------
        ArrayBusyError
            It did.
        """
        for lease in self.on(segment_id):
            if lease.rows is None or lease.session is session:
                continue
            if lease.rows[0] < rows[1] and rows[0] < lease.rows[1]:
                raise ArrayBusyError(
                    "another writer declared some of these rows its own",
                    needed=f"rows {rows[0]} to {rows[1]}",
                    had=f"rows {lease.rows[0]} to {lease.rows[1]} "
                    f"of pid {lease.session.identity.pid}",
                    remedy="declare ranges that are disjoint",
                )

    def grant(
        self, session: Session, segment_id: int, *, readonly: bool, rows: Rows | None = None
    ) -> Lease:
        """Promise a segment to a client; see :meth:`check_room`."""
        self._last_lease += 1
        lease = self._new(self._last_lease, session, segment_id, readonly)
        lease.rows = rows
        session.leases[lease.number] = lease
        return lease

    def check_again(self, session: Session, number: int, segment_id: int) -> Lease | None:
        """Refuse a number under which a client cannot have had this segment.

        Returns
        -------
        Lease or None
            The lease of this number, where the session still has it.

        Raises
        ------
        NotPermittedError
            The number was never given, or something else has it.
        """
        lease = self._by_number.get(number)
        if lease is None and 0 < number <= self._last_lease:
            return None
        if lease is None or session.leases.get(number) is not lease:
            raise NotPermittedError("the lease is not this session's", had=f"lease {number}")
        if lease.segment_id != segment_id:
            raise NotPermittedError(
                "the lease is on another segment",
                needed=f"segment {lease.segment_id}",
                had=f"segment {segment_id}",
            )
        return lease

    def grant_again(
        self,
        session: Session,
        number: int,
        segment_id: int,
        *,
        readonly: bool,
        rows: Rows | None = None,
    ) -> None:
        """Promise a segment under a number of before; see :meth:`check_again`."""
        session.unconfirmed.discard(number)
        if number not in session.leases:
            lease = session.leases[number] = self._new(number, session, segment_id, readonly)
            lease.rows = rows

    def hold(self, session: Session, segment_id: int, *, readonly: bool) -> None:
        """Promise a segment to a worker, once; a later writable use widens the lease."""
        lease = session.held.get(segment_id)
        if lease is None:
            self._last_lease += 1
            session.held[segment_id] = self._new(self._last_lease, session, segment_id, readonly)
        elif not readonly:
            lease.readonly = False

    def release(self, session: Session, number: int) -> None:
        """Take a lease back.

        One that is over already, because its array was destroyed or because this
        is said twice, is over: that is no error.

        Raises
        ------
        NotPermittedError
            The lease is another session's, a worker's, or was never granted.
        """
        lease = session.leases.pop(number, None)
        if lease is not None:
            session.unconfirmed.discard(number)
            self._forget(lease)
        elif not 0 < number <= self._last_lease or number in self._by_number:
            raise NotPermittedError("the lease is not this session's", had=f"lease {number}")

    def void(self, segment_id: int) -> list[Session]:
        """End every lease on a segment; returns the sessions whose workers held it."""
        workers = []
        for lease in self.on(segment_id):
            if lease.session.held.get(segment_id) is lease:
                workers.append(lease.session)
                del lease.session.held[segment_id]
            else:
                del lease.session.leases[lease.number]
                lease.session.unconfirmed.discard(lease.number)
            self._forget(lease)
        return workers

    def drop(self, lease: Lease) -> None:
        """End a lease that a worker holds."""
        del lease.session.held[lease.segment_id]
        self._forget(lease)

    def on(self, segment_id: int) -> tuple[Lease, ...]:
        """All leases on a segment, oldest first."""
        return tuple(self._by_segment.get(segment_id, {}).values())

    def asked(self, segment_id: int) -> list[Lease]:
        """The leases on a segment that clients asked for."""
        return [lease for lease in self.on(segment_id) if lease.number in lease.session.leases]

    def writers(self, segment_id: int) -> list[Lease]:
        """The writable leases on a segment that clients asked for."""
        return [lease for lease in self.asked(segment_id) if not lease.readonly]

    def worker_writers(self, segment_id: int) -> list[Lease]:
        """The writable leases on a segment that workers hold."""
        return [
            lease
            for lease in self.on(segment_id)
            if not lease.readonly and lease.session.held.get(segment_id) is lease
        ]

    def make_readonly(self, segment_id: int) -> None:
        """Turn every lease on a segment read-only: it was sealed."""
        for lease in self.on(segment_id):
            lease.readonly, lease.rows = True, None

    def _new(self, number: int, session: Session, segment_id: int, readonly: bool) -> Lease:
        lease = Lease(number, session, segment_id, readonly)
        self._by_segment.setdefault(segment_id, {})[number] = self._by_number[number] = lease
        return lease

    def _forget(self, lease: Lease) -> None:
        del self._by_number[lease.number]
        leases = self._by_segment[lease.segment_id]
        del leases[lease.number]
        if not leases:
            del self._by_segment[lease.segment_id]

    # Invariants ---------------------------------------------------------------

    def validate(self, segment_ids: Iterable[int]) -> None:
        """Assert what must hold between events.

        Parameters
        ----------
        segment_ids
            Of all arrays that are kept.
        """
        self._validate_sessions()
        assert self._by_segment.keys() <= set(segment_ids), "lease on a segment that is gone"
        granted = 0
        for session in self._sessions.values():
            for leases in (session.leases, session.held):
                granted += len(leases)
                for lease in leases.values():
                    assert lease.session is session
                    assert self._by_number.get(lease.number) is lease, "lease number used twice"
                    assert 0 < lease.number <= self._last_lease
                    assert self._by_segment[lease.segment_id].get(lease.number) is lease
        assert len(self._by_number) == granted
        indexed = 0
        for segment_id, on_it in self._by_segment.items():
            assert on_it, "empty entry kept"
            indexed += len(on_it)
            self._validate_rows(segment_id)
        assert indexed == granted

    def _validate_sessions(self) -> None:
        assert len(self._sessions) <= max(self._max_sessions, self._inherited_count)
        heard, known, resuming, leased = 0, 0, 0, 0
        for number, session in self._sessions.items():
            state = session.state
            assert session.number == number <= self._last_session
            assert (state is SessionState.OPENING) == (not session.token)
            if state is not SessionState.BOUND:
                assert not (session.leases or session.held)
            assert len(session.leases) <= self._max_leases
            assert (session.lease_ns > 0) is not session.identity.is_local
            if session.lease_ns:
                assert session.identity.session == number and not session.held, "nobody's worker"
                assert state is not SessionState.UNBOUND, "there is nothing to lock"
                if state is not SessionState.OPENING:
                    assert self._leased.get(number) is session and session.lease_end_ns
                    leased += 1
            if session.resuming:
                assert self._resuming.get(number) is session
                assert session.unconfirmed <= session.leases.keys()
                resuming += 1
            else:
                assert not session.unconfirmed
            if session.token:
                assert self._by_token.get(session.token) is session, "two sessions of one token"
                known += 1
            if state is SessionState.DORMANT:
                assert session.resuming and not session.reachable and not session.peer
                assert number <= self._first_number, "only what was recovered sleeps"
            else:
                assert self._by_peer.get(session.peer) is session, "two sessions of one peer"
                heard += 1
        assert len(self._by_peer) == heard
        assert len(self._by_token) == known
        assert len(self._resuming) == resuming
        assert len(self._leased) == leased

    def _validate_rows(self, segment_id: int) -> None:
        for lease in self._by_segment[segment_id].values():
            if lease.rows is not None:
                assert not lease.readonly, "a reader declared rows"
                self.check_rows(lease.session, segment_id, lease.rows)


def _no_room(what: str, most: int, had: int) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"the coordinator has no room for another {what}",
        needed=f"fewer than {most} sessions",
        had=str(had),
        remedy="close pools that are not in use",
    )
