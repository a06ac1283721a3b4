"""Whether the processes behind sessions live: pidfds in the poller, locks on tokens.

A pidfd becomes readable at the moment of death, and is the first to tell. The lock
says what it cannot: that the process is the very one that the session was opened
by, however its pid was used before or since, and that it still is the client (an
``exec`` lets go of the lock and keeps the pid). So locks are looked at now and
then, and often where there is no pidfd to wait for.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterable

import zmq

from hugepool_server.tokens import Tokens

log = logging.getLogger("hugepoold")

CHECK_INTERVAL_NS = 1_000_000_000
"""Between two looks at the locks of all sessions."""

POLL_INTERVAL_NS = 20_000_000
"""Between two looks at the locks of sessions without a pidfd."""

BIND_PATIENCE_NS = 300_000_000_000
"""How long a session may take to lock its token; a debugger may hold it up."""


class Liveness:
    """What is watched for each session.

    Parameters
    ----------
    tokens
        Of the sessions.
    poller
        Gets the pidfds.
    """

    def __init__(self, tokens: Tokens, poller: zmq.Poller) -> None:
        self._tokens = tokens
        self._poller = poller
        self._pids: dict[int, int] = {}
        self._pidfds: dict[int, int] = {}
        self._sessions: dict[int, int] = {}
        self._bound: set[int] = set()
        self._opened_ns: dict[int, int] = {}
        self._next_check_ns: int | None = None
        self._next_poll_ns: int | None = None

    def __repr__(self) -> str:
        return f"<Liveness: {len(self._pids)} sessions, {len(self._pidfds)} pidfds>"

    def watch(self, session: int, pid: int, now_ns: int) -> bool:
        """Watch the process of a session; False if there is none any more.

        A session whose token was taken over from an earlier coordinator is bound already.
        """
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError as error:  # a pid of another namespace is 0 here
            log.info("session %d has its lock watched alone: %s", session, error.strerror)
            fd = -1
        self._pids[session] = pid
        self._opened_ns[session] = now_ns
        if fd >= 0:
            self._pidfds[session] = fd
            self._sessions[fd] = session
            self._poller.register(fd, zmq.POLLIN)
        if self._tokens.check(session):
            self._bound.add(session)
        self.schedule(now_ns)
        return True

    def unwatch(self, session: int) -> None:
        """Forget a session that is closed, and its token."""
        self._pids.pop(session, None)
        self._opened_ns.pop(session, None)
        self._bound.discard(session)
        fd = self._pidfds.pop(session, None)
        if fd is not None:
            self._poller.unregister(fd)
            del self._sessions[fd]
            os.close(fd)
        self._tokens.forget(session)

    def bind(self, session: int) -> bool:
        """Whether a session's process holds its token's lock, and lives; watched from now on."""
        # In this order: a pid that was used again between the session's first message and
        # pidfd_open fails to hold the lock, and one that dies after it has locked
        # is seen to be dead.
        held = self._tokens.check(session)
        if held is None:
            held = session in self._bound
        if not held or self._is_dead(session):
            return False
        self._bound.add(session)
        return True

    def exited(self, ready: Iterable[int]) -> list[int]:
        """The sessions whose pidfd is among the descriptors that are ready."""
        return [self._sessions[fd] for fd in ready if fd in self._sessions]

    def is_watched(self, session: int) -> bool:
        """Whether a session is open."""
        return session in self._pids

    @property
    def wake_ns(self) -> int | None:
        """When :meth:`ended` wants to be called; None while there is nothing to look at."""
        times = [time for time in (self._next_check_ns, self._next_poll_ns) if time is not None]
        return min(times, default=None)

    def check_due(self, now_ns: int) -> bool:
        """Whether the look at all sessions is due; :meth:`ended` takes it."""
        return self._next_check_ns is not None and now_ns >= self._next_check_ns

    def ended(self, now_ns: int) -> list[int]:
        """The sessions whose process has let go of its lock, or never took it."""
        found: list[int] = []
        if self.check_due(now_ns):
            self._next_check_ns = None
            found += [one for one in self._pids if self._is_over(one, now_ns)]
        if self._next_poll_ns is not None and now_ns >= self._next_poll_ns:
            self._next_poll_ns = None
            blind = self._bound - self._pidfds.keys()
            found += [one for one in blind if self._tokens.check(one) is False]
        self.schedule(now_ns)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Close the pidfds; the tokens stay as they are."""
        for fd in self._pidfds.values():
            os.close(fd)
        self._pidfds.clear()
        self._sessions.clear()

    def _is_over(self, session: int, now_ns: int) -> bool:
        if session in self._bound:
            return self._tokens.check(session) is False
        return now_ns - self._opened_ns[session] > BIND_PATIENCE_NS

    def _is_dead(self, session: int) -> bool:
        fd = self._pidfds.get(session)
        if fd is None:
            return False
        silent = select.poll()
        silent.register(fd, select.POLLIN)
        return bool(silent.poll(0))

    def schedule(self, now_ns: int) -> None:
        """Be due in a second as long as there is a session, one over TCP too, which has no pid."""
        if self._next_check_ns is None and (self._pids or len(self._tokens)):
            self._next_check_ns = now_ns + CHECK_INTERVAL_NS
        if self._next_poll_ns is None and len(self._pidfds) < len(self._pids):
            self._next_poll_ns = now_ns + POLL_INTERVAL_NS
