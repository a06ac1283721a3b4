"""One session with a coordinator: requests out, replies and notices in.

A waiting caller watches the coordinator's process as well as its socket, so a killed
coordinator is noticed at once and a slow one (populating 100 GB) has no deadline. Where
arrays and sessions outlive that process, the caller waits for the next one, takes the
session up with it and asks again; elsewhere it is told. A channel belongs to the process
that opened it: after ``fork`` the child's copy refuses to work, because two processes
cannot share one session.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from hugepool import reunion
from hugepool.holdings import Claim
from hugepool.ledger import Ledger
from hugepool.link import LinkEnded
from hugepool.session import Session, expected
from hugepool.succession import Succession, too_late
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    DetachedError,
    RequestTimeoutError,
    SegmentChangedError,
)
from hugepool_common.messages import (
    Cancel,
    Cancelled,
    CreateArray,
    Describe,
    Described,
    Detach,
    Detached,
    FromCoordinator,
    Goodbye,
    Message,
    Notice,
    Publish,
    Published,
    Reply,
    SubmitJob,
    Welcome,
)
from hugepool_common.settings import read_settings
from hugepool_common.spec import Segment

CANCEL_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 2.0

_PROBE_MS = 30
"""How often an absent coordinator is looked for."""

_R = TypeVar("_R", bound=Message)


class Channel:
    """An open session.

    Parameters
    ----------
    address
        ``ipc://`` and the path of the coordinator's socket.
    client
        What this client calls itself in the coordinator's lists.

    Raises
    ------
    CoordinatorUnreachableError
        Nobody listens there, or nobody answers.
    InvalidSpecError
        The address is of no known kind.
    """

    def __init__(self, address: str, *, client: str = "python") -> None:
        self.address = address
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        patience_s = read_settings().reconnect_s
        self._ledger = Ledger()
        self._closed = False
        self._session = Session(address, client, self._ledger.note)
        self._succession = Succession(self._session, self._ledger, patience_s)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child's copy, which is good for nothing."""
        return os.getpid() != self._owner_pid

    @property
    def reunions(self) -> int:
        """How often the session went on with a coordinator that was started in place of its own."""
        return self._succession.count

    @property
    def workers_changes(self) -> int:
        """How often the coordinator said that its last Stats no longer tells who works."""
        return self._ledger.workers_changes

    @property
    def welcome(self) -> Welcome:
        """What the coordinator of the moment, or the last one, said of itself."""
        return self._session.welcome

    def request(
        self,
        message: Message,
        reply: type[_R],
        *,
        timeout_s: float | None = None,
        on_notice: Callable[[Message], None] | None = None,
    ) -> _R:
        """Send a request and wait for its reply.

        Parameters
        ----------
        message
            The request.
        reply
            Class of the reply that a success gives.
        timeout_s
            Seconds to wait; None waits as long as the coordinator lives, or may come back.
        on_notice
            Called with each notice that belongs to this request.

        Raises
        ------
        HugepoolError
            The error that the coordinator answered with.
        CoordinatorUnreachableError
            The coordinator ended, and none came in its place.
        JobInterruptedError
            One did, and the request was a job.
        RequestTimeoutError
            No reply in time.
        DetachedError
            The channel is closed, or this is a forked child.
        """
        self._check_process()  # before the lock, which a fork may have copied while it was held
        with self._lock:
            self._check_usable()
            correlation = self._session.next_number()
            deadline = _deadline(timeout_s)
            try:
                self._send_abandoned()
                self._submit(correlation, message, deadline)
                answer = self._wait(correlation, deadline, on_notice)
                if self._ledger.was_repeated(correlation):
                    answer = self._second_answer(message, answer)
            except (CoordinatorUnreachableError, RequestTimeoutError):
                raise
            except BaseException:
                self._give_up(correlation)
                raise
            finally:
                self._ledger.forget(correlation, ended=self._session.left)
        return expected(message, answer, reply)

    def _give_up(self, correlation: int) -> None:
        """Take back a request whose outcome nobody will hold."""
        if self._session.left:
            return  # whom it was asked of has ended
        # From here on what it grants is given back, even if we are interrupted again.
        self._ledger.disown(correlation)
        cancel = self._session.next_number()
        deadline = _deadline(CANCEL_TIMEOUT_S)
        try:
            self._submit(cancel, Cancel(correlation), deadline)
            answer = self._wait(cancel, deadline, None)
            # Replies come in order: what is not found now was answered before, or never sent.
            if isinstance(answer, Cancelled) and answer.found:
                self._wait(correlation, deadline, None)
        except (CoordinatorUnreachableError, RequestTimeoutError):
            pass
        finally:
            self._ledger.forget(cancel)

    def claim(self, lease: int) -> Claim:
        """What stands behind a lease that was just granted."""
        return self._ledger.holdings.claim(lease)

    def release(self, claim: Claim) -> None:
        """Give a lease back; one that is lost has nobody to be given back to."""
        if self._ledger.holdings.let_go(claim):
            self.request(Detach(claim.held.lease), Detached)

    def release_later(self, claim: Claim) -> None:
        """Give a lease back with the next request, as :meth:`post_later`."""
        self._ledger.abandoned.append(claim)

    def check_owner(self, segment: Segment) -> None:
        """Refuse a segment that is no file of the coordinator's own user.

        Raises
        ------
        SegmentChangedError
            The coordinator names a file of somebody else.
        """
        if segment.owner_uid != self._session.coordinator_uid:
            raise SegmentChangedError(
                "the segment does not belong to the coordinator",
                needed=f"uid {self._session.coordinator_uid}",
                had=f"uid {segment.owner_uid}",
                where=segment.path,
            )

    def post(self, message: Message) -> None:
        """Send a report whose reply nobody waits for; if the coordinator ended, to nobody."""
        self._check_process()
        with self._lock:
            self._check_usable()
            try:
                self._session.send(self._session.next_number(), message)
            except LinkEnded:
                pass  # the next call that waits finds this out

    def post_later(self, message: Message) -> None:
        """Send a message, whose reply nobody waits for, with the next request.

        For garbage collection, which may run inside any call of this very
        channel: it must not send.
        """
        self._ledger.abandoned.append(message)

    def next_notice(self, timeout_s: float | None, *, watch: Sequence[int] = ()) -> Notice | None:
        """Wait for a notice of no request: a worker's work.

        Parameters
        ----------
        timeout_s
            Seconds to wait; None without end.
        watch
            Further descriptors that end the wait when they become readable.

        Returns
        -------
        Notice or None
            None when the time is over, a watched descriptor is readable, or
            :attr:`reunions` has grown.

        Raises
        ------
        CoordinatorUnreachableError
            The coordinator ended, and none came in its place.
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            if not self._ledger.notices:
                self._receive(_deadline(timeout_s), watch)
            return self._ledger.notices.popleft() if self._ledger.notices else None

    def take_in(self) -> None:
        """Note what has arrived, without waiting.

        Raises
        ------
        CoordinatorUnreachableError
            The coordinator ended, and none came in its place.
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            while self._receive(time.monotonic()) is not None:
                pass

    def close(self, *, goodbye: bool = True) -> None:
        """End the session. The arrays that are attached stay mapped until let go."""
        if self._closed:
            return
        if self.inherited:
            self._closed = True  # the parent's session is not ours to end
            return
        if goodbye:
            try:
                with self._lock:
                    correlation = self._session.next_number()
                    deadline = _deadline(GOODBYE_TIMEOUT_S)
                    self._submit(correlation, Goodbye(), deadline)
                    self._wait(correlation, deadline, None)
            except (CoordinatorUnreachableError, RequestTimeoutError):
                pass
        self._closed = True
        self._session.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise DetachedError("the pool is closed", remedy="call hugepool.connect() again")

    def _check_process(self) -> None:
        if self.inherited:
            raise DetachedError(
                "this pool belongs to the parent process",
                remedy="call hugepool.connect(pool.address) in the child",
            )

    # Requests and replies -----------------------------------------------------

    def _submit(self, correlation: int, message: Message, deadline: float | None) -> None:
        """Send a request that is to be answered, now or after a reunion."""
        if isinstance(message, (CreateArray, SubmitJob)) and self._session.ended:
            # What was never sent cannot have been done: it must not be asked a second time.
            self._succession.follow(deadline)
        message = self._ledger.begin(correlation, message)
        try:
            self._session.send(correlation, message)
        except LinkEnded:
            pass  # waiting for the reply finds this out

    def _send_abandoned(self) -> None:
        while (message := self._ledger.next_abandoned()) is not None:
            try:
                self._session.send(self._session.next_number(), message)
            except LinkEnded:
                return
            self._ledger.sent_abandoned()

    def _wait(
        self,
        correlation: int,
        deadline: float | None,
        on_notice: Callable[[Message], None] | None,
    ) -> Reply:
        """The reply to a request; it stays noted until the request is forgotten."""
        while (answer := self._ledger.reply(correlation)) is None:
            try:
                received = self._session.receive(deadline)
            except LinkEnded:
                settled = reunion.settled_by_end(self._ledger.request(correlation))
                if settled is not None:
                    return settled
                self._succession.follow(deadline)
                continue
            if received is None:
                raise too_late(self.address)
            number, message = received
            if number == correlation and isinstance(message, Notice) and on_notice is not None:
                on_notice(message)
        return answer

    def _receive(
        self, deadline: float | None, watch: Sequence[int] = ()
    ) -> tuple[int, FromCoordinator] | None:
        """Wait for a message; None if the time or a watched descriptor is up, or at a reunion."""
        try:
            return self._session.receive(deadline, watch)
        except LinkEnded:
            self._succession.follow(deadline, watch)
            return None

    def _second_answer(self, request: Message, answer: Reply) -> Reply:
        """The answer to a request that was asked of two coordinators."""
        if isinstance(request, Publish) and reunion.not_found(answer):
            # Its source has no name any more: because it was published?
            found = self.request(Describe(request.name), Described).array
            if found.segment.segment_id == request.segment_id:
                return Published(found)
        return reunion.second_answer(request, answer)


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
