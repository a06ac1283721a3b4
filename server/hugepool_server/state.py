"""What the coordinator knows, and the effects of the event that it is at.

The coordinator and its handlers of requests, for arrays and for jobs, work on this one
state. Sending goes through here, so that nothing is sent to a peer that cannot
be reached and no request is answered twice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from hugepool_common.errors import (
    CancelledError,
    CoordinatorUnreachableError,
    InvalidSpecError,
)
from hugepool_common.messages import Failed, Message
from hugepool_common.spec import MAX_EXTENT
from hugepool_server.events import Effect, Send
from hugepool_server.jobs import Jobs
from hugepool_server.leases import Asker, Leases, Session, SessionState
from hugepool_server.named_object import NamedObject
from hugepool_server.patience import Patience
from hugepool_server.records import EPOCH_SHIFT
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
        Named objects, superseded generations included.
    max_bytes, max_bytes_per_user
        Payload bytes of all objects, and of those that one user created, made or being
        made; 0 for no such quota.
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
    lease_ns
        How long a new session over TCP lives without a sign of its client.

    Raises
    ------
    InvalidSpecError
        A limit is below 1, a quota below 0, or `max_workers` above 512.
    """

    max_sessions: int = 1000
    max_arrays: int = 4096
    max_bytes: int = 0
    max_bytes_per_user: int = 0
    max_leases_per_session: int = 4096
    max_jobs: int = 256
    max_workers: int = _MAX_WORKERS
    max_pending_bytes: int = MAX_EXTENT
    worker_patience_ns: int = 30_000_000_000
    stopped_patience_ns: int = 10_000_000_000
    lease_ns: int = 10_000_000_000

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            least = 0 if limit.name in ("max_bytes", "max_bytes_per_user") else 1
            if value < least:
                raise InvalidSpecError(
                    f"{limit.name} is too small", needed=str(least), had=str(value)
                )
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
    epoch
        How often a coordinator has started here: the upper half of every number given.

    Attributes
    ----------
    stopping
        Why nothing new is taken on any more; empty until then.
    """

    def __init__(self, uid: int, limits: Limits, epoch: int = 0) -> None:
        first_number = epoch << EPOCH_SHIFT
        self.uid = uid
        self.limits = limits
        self.first_number = first_number
        self.stopping = ""
        self.registry = Registry(
            max_arrays=limits.max_arrays,
            max_pending_bytes=limits.max_pending_bytes,
            max_bytes=limits.max_bytes,
            max_bytes_per_user=limits.max_bytes_per_user,
            first_number=first_number,
        )
        self.leases = Leases(
            max_sessions=limits.max_sessions,
            max_leases=limits.max_leases_per_session,
            first_number=first_number,
        )
        self.jobs = Jobs(
            max_jobs=limits.max_jobs,
            max_workers=limits.max_workers,
            patience=Patience(limits.worker_patience_ns, limits.stopped_patience_ns),
            first_number=first_number,
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

    def may_be_held_unseen(self, found: NamedObject) -> bool:
        """Whether a session of before may have a lease on it that it has not told yet."""
        return self.registry.is_inherited(found) and bool(self.leases.resuming)

    def stopping_error(self) -> CoordinatorUnreachableError:
        """The error of what came too late."""
        return CoordinatorUnreachableError(
            f"the coordinator is stopping: {self.stopping}", remedy="connect to another one"
        )

    def validate(self) -> None:
        """Assert every invariant, in the parts and between them."""
        self.registry.validate()
        self.jobs.validate()
        kept = {found.segment_id: found for found in self.registry.kept}
        self.leases.validate(kept)
        for act in self.registry.acts:
            assert act.asker is None or self._is_bound(act.asker.session)
        for found in kept.values():
            owner = found.owner
            assert owner is None or self.leases.of_number(owner.number) is owner
            for lease in self.leases.on(found.segment_id):
                assert lease.rows is None or lease.rows[1] <= found.spec.shape[0]
                assert lease.readonly or not found.sealed, "a writable lease on a sealed array"
        for found in self.registry.superseded:
            asked = self.leases.asked(found.segment_id)
            used = self.jobs.uses(found.segment_id)
            assert asked or used or self.may_be_held_unseen(found), "kept for nobody"
        for job in self.jobs.live:
            assert self._is_bound(job.asker.session)
            hopeless = not (self.jobs.workers or job.standing)
            assert job.waiting_ns is not None or not hopeless, "a job that nobody will run"
            assert job.segment_ids() <= kept.keys(), "a job uses what was destroyed"
        for worker in self.jobs.workers:
            assert self._is_bound(worker.session)
            if worker.running is not None:
                needed = worker.running.job.segment_ids() & kept.keys()
                assert needed <= worker.session.held.keys(), "a part without its leases"

    def _is_bound(self, session: Session) -> bool:
        known = self.leases.of_number(session.number) is session
        return known and session.state is SessionState.BOUND


def cancelled(message: str) -> Failed:
    """The reply to a request that was given up."""
    return Failed.from_error(CancelledError(message))
