"""Who is connected, and which segments each of them was promised.

A session is one routing id bound to one process. It holds two sorts of lease:
those that its client asked for, each with a number to give back, and those that
a worker was granted together with its parts, one a segment, which end when the
segment is dropped or the worker goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hugepool_common.errors import NotEnoughMemoryError, NotPermittedError
from hugepool_server.events import Identity

_TEXT_LIMIT = 200


@dataclass(slots=True, eq=False)
class Session:
    """One client's connection.

    Parameters
    ----------
    number
        Unique in its coordinator, from 1.
    peer
        Routing id that replies go to.
    identity
        Who is behind it, by the kernel's word; fixed for the session's life.
    client
        What the client calls itself; shown, never trusted.
    reachable
        False after a send failed, until the peer is heard of again: nothing is
        sent to it, and what it holds stays.
    leases
        By lease number: what the client asked for.
    held
        By segment id: what its worker was granted with parts.
    knows_workers
        Whether the number of workers is still what it was last told.
    """

    number: int
    peer: bytes
    identity: Identity
    client: str
    reachable: bool = True
    leases: dict[int, Lease] = field(default_factory=dict)
    held: dict[int, Lease] = field(default_factory=dict)
    knows_workers: bool = False

    def __repr__(self) -> str:
        return (
            f"<Session {self.number} of pid {self.identity.pid}: "
            f"{len(self.leases)} leases, {len(self.held)} held by its worker>"
        )


@dataclass(slots=True, eq=False)
class Lease:
    """The promise to keep a segment for a session."""

    number: int
    session: Session
    segment_id: int
    readonly: bool


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
    """

    def __init__(self, *, max_sessions: int, max_leases: int) -> None:
        self._max_sessions = max_sessions
        self._max_leases = max_leases
        self._sessions: dict[int, Session] = {}
        self._by_peer: dict[bytes, Session] = {}
        self._by_segment: dict[int, dict[int, Lease]] = {}
        self._last_session = 0
        self._last_lease = 0

    def __repr__(self) -> str:
        return f"<Leases: {len(self._sessions)} sessions, {self.count} leases>"

    # Sessions -----------------------------------------------------------------

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All open sessions, oldest first."""
        return tuple(self._sessions.values())

    def open(self, peer: bytes, identity: Identity, client: str) -> Session:
        """Begin a session.

        Raises
        ------
        NotEnoughMemoryError
            There are `max_sessions` already.
        """
        if len(self._sessions) >= self._max_sessions:
            raise NotEnoughMemoryError(
                "the coordinator has no room for another session",
                needed=f"fewer than {self._max_sessions} sessions",
                had=str(len(self._sessions)),
                remedy="close pools that are not in use",
            )
        self._last_session += 1
        session = Session(self._last_session, peer, identity, client[:_TEXT_LIMIT])
        self._sessions[session.number] = session
        self._by_peer[peer] = session
        return session

    def of_peer(self, peer: bytes) -> Session | None:
        """The session that this routing id opened, if it is still open."""
        return self._by_peer.get(peer)

    def of_number(self, number: int) -> Session | None:
        """The session of this number, if it is still open."""
        return self._sessions.get(number)

    def close(self, session: Session) -> None:
        """End a session and every lease that it has."""
        for lease in [*session.leases.values(), *session.held.values()]:
            self._forget(lease)
        session.leases.clear()
        session.held.clear()
        del self._by_peer[session.peer]
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

    def grant(self, session: Session, segment_id: int, *, readonly: bool) -> Lease:
        """Promise a segment to a client; see :meth:`check_room`."""
        lease = self._new(session, segment_id, readonly)
        session.leases[lease.number] = lease
        return lease

    def hold(self, session: Session, segment_id: int, *, readonly: bool) -> None:
        """Promise a segment to a worker, once; a later writable use widens the lease."""
        lease = session.held.get(segment_id)
        if lease is None:
            session.held[segment_id] = self._new(session, segment_id, readonly)
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
            self._forget(lease)
        elif not 0 < number <= self._last_lease or any(
            number in leases for leases in self._by_segment.values()
        ):
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
            self._forget(lease)
        return workers

    def drop(self, lease: Lease) -> None:
        """End a lease that a worker holds."""
        del lease.session.held[lease.segment_id]
        self._forget(lease)

    def on(self, segment_id: int) -> tuple[Lease, ...]:
        """All leases on a segment, oldest first."""
        return tuple(self._by_segment.get(segment_id, {}).values())

    def writers(self, segment_id: int) -> list[Lease]:
        """The writable leases on a segment that clients asked for."""
        return [
            lease
            for lease in self.on(segment_id)
            if not lease.readonly and lease.number in lease.session.leases
        ]

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
            lease.readonly = True

    def _new(self, session: Session, segment_id: int, readonly: bool) -> Lease:
        self._last_lease += 1
        lease = Lease(self._last_lease, session, segment_id, readonly)
        self._by_segment.setdefault(segment_id, {})[lease.number] = lease
        return lease

    def _forget(self, lease: Lease) -> None:
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
            Of all arrays that are published.
        """
        assert len(self._sessions) <= self._max_sessions
        assert [s.number for s in self._by_peer.values()] == list(self._sessions)
        assert self._by_segment.keys() <= set(segment_ids), "lease on a segment that is gone"
        for number, session in self._sessions.items():
            assert session.number == number <= self._last_session
            assert self._by_peer[session.peer] is session
            assert len(session.leases) <= self._max_leases
        granted = [
            lease
            for session in self._sessions.values()
            for lease in [*session.leases.values(), *session.held.values()]
        ]
        indexed = [lease for leases in self._by_segment.values() for lease in leases.values()]
        assert all(self._sessions.get(lease.session.number) is lease.session for lease in indexed)
        assert len({lease.number for lease in granted}) == len(granted), "lease number used twice"
        assert {id(lease) for lease in granted} == {id(lease) for lease in indexed}
        assert all(self._by_segment.values()), "empty entry kept"
        assert all(0 < lease.number <= self._last_lease for lease in granted)
