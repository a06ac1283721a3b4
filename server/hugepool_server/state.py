"""What the coordinator knows, and the effects of the event that it is at.

The coordinator and its handlers of requests, for arrays and for jobs, work on this one
state. Sending goes through here, so that nothing is sent to a peer that cannot
be reached and no request is answered twice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from hugepool_common.errors import CancelledError, InvalidSpecError
from hugepool_common.messages import Failed, Message
from hugepool_common.spec import MAX_EXTENT
from hugepool_server.events import Effect, Send
from hugepool_server.jobs import Jobs
from hugepool_server.leases import Asker, Leases, Session
from hugepool_server.patience import Patience
from hugepool_server.registry import Act, Registry

_MAX_WORKERS = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """What the coordinator takes on at most.

    Parameters
    ----------
    max_sessions
        Sessions open at once.
    max_arrays
        Named objects.
    max_leases_per_session
        Leases that one client may have.
    max_jobs
        Jobs queued or running at once.
    max_workers
        Workers registered at once; no more than 512, whose descriptions fit one frame.
    max_pending_bytes
        Payload bytes of segments being made at once.
    worker_patience_ns
        How long a job that nobody can take up waits for a worker before it fails.
    stopped_patience_ns
        How long a worker may be stopped before its part is taken back.

    Raises
    ------
    InvalidSpecError
        A limit is below 1, or `max_workers` above 512.
    """

    max_sessions: int = 1000
    max_arrays: int = 4096
    max_leases_per_session: int = 4096
    max_jobs: int = 256
    max_workers: int = _MAX_WORKERS
    max_pending_bytes: int = MAX_EXTENT
    worker_patience_ns: int = 30_000_000_000
    stopped_patience_ns: int = 10_000_000_000

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise InvalidSpecError(f"{limit.name} is too small", needed="1", had=str(value))
        if self.max_workers > _MAX_WORKERS:
            raise InvalidSpecError("max_workers is too large", needed=f"at most {_MAX_WORKERS}")


class State:
    """Named objects, leases and jobs, and what is to be done.

    Parameters
    ----------
    uid
        Of the coordinator's process.
    limits
        What it takes on at most.
    """

    def __init__(self, uid: int, limits: Limits) -> None:
        self.uid = uid
        self.registry = Registry(
            max_arrays=limits.max_arrays, max_pending_bytes=limits.max_pending_bytes
        )
        self.leases = Leases(
            max_sessions=limits.max_sessions, max_leases=limits.max_leases_per_session
        )
        self.jobs = Jobs(
            max_jobs=limits.max_jobs,
            max_workers=limits.max_workers,
            patience=Patience(limits.worker_patience_ns, limits.stopped_patience_ns),
        )
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return (
            f"<State: {len(self.leases.sessions)} sessions, "
            f"{len(self.registry.published)} arrays, {self.leases.count} leases, "
            f"{len(self.jobs.workers)} workers, {len(self.jobs.live)} jobs, "
            f"{len(self.registry.acts)} acts>"
        )

    def take_effects(self) -> list[Effect]:
        """The effects since this was called last."""
        effects, self._effects = self._effects, []
        return effects

    def emit(self, effect: Effect) -> None:
        """Want something done."""
        self._effects.append(effect)

    def notify(self, session: Session, message: Message, correlation: int = 0) -> None:
        """Send to a session if it hears."""
        if session.reachable:
            self.emit(Send(session.peer, correlation, message))

    def reply(self, asker: Asker, message: Message) -> None:
        """Answer a request."""
        self.notify(asker.session, message, asker.correlation)

    def reply_late(self, act: Act, message: Message) -> None:
        """Answer the request behind a slow act, unless that was done; never twice."""
        if act.asker is not None:
            self.reply(act.asker, message)
            act.asker = None

    def validate(self) -> None:
        """Assert every invariant, in the parts and between them."""
        self.registry.validate()
        self.jobs.validate()
        published = {found.segment_id: found for found in self.registry.published}
        self.leases.validate(published)
        sessions = self.leases.sessions
        for act in self.registry.acts:
            assert act.asker is None or act.asker.session in sessions
        for found in published.values():
            assert found.owner is None or found.owner in sessions
            writers = self.leases.writers(found.segment_id)
            assert not (found.sealed and writers), "a writable lease on a sealed array"
        for job in self.jobs.live:
            assert job.asker.session in sessions
            hopeless = not (self.jobs.workers or job.standing)
            assert job.waiting_ns is not None or not hopeless, "a job that nobody will run"
            assert job.segment_ids() <= published.keys(), "a job uses what was destroyed"
        for worker in self.jobs.workers:
            assert worker.session in sessions
            if worker.running is not None:
                used = worker.running.job.segment_ids() & published.keys()
                assert used <= worker.session.held.keys(), "a part without its leases"


def cancelled(message: str) -> Failed:
    """The reply to a request that was given up."""
    return Failed.from_error(CancelledError(message))
