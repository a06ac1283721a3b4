"""One session with a coordinator: requests out, replies and notices in.

A waiting caller watches the coordinator's process as well as its socket, so a killed
coordinator is noticed at once and a slow one (populating 100 GB) has no deadline. Where
arrays and sessions outlive that process, the caller waits for the next one, takes the
session up with it and asks again; elsewhere it is told. A channel belongs to the process
that opened it: after ``fork`` the child's copy refuses to work, because two processes
cannot share one session.

Over TCP the coordinator's process is not to be seen, and a session lives by a lease that a thread
renews (`renewal`). When that is over, or may be, everything here is refused (`fence`).

Threads share a channel: each waits for the reply to its own request. One of them is *at the
socket*, and alone uses the session and its books; what comes for others it notes and tells them of.
Who has something to send wakes it, and takes its place.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from hugepool import reunion
from hugepool.calls import Call, Present
from hugepool.holdings import Claim, Doomed
from hugepool.interrupts import Uninterrupted
from hugepool.ledger import Ledger
from hugepool.link import LinkEnded
from hugepool.place import Place
from hugepool.renewal import Renewal
from hugepool.session import Session, check_descriptors, expected
from hugepool.succession import Succession, too_late
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    DetachedError,
    LeaseExpiredError,
    RequestTimeoutError,
    SegmentChangedError,
)
from hugepool_common.messages import (
    Attach,
    Cancel,
    Cancelled,
    CreateArray,
    Describe,
    Described,
    Detach,
    Detached,
    Goodbye,
    List,
    Message,
    Notice,
    Publish,
    Published,
    Renew,
    Renewed,
    Reply,
    Stats,
    SubmitJob,
    Welcome,
)
from hugepool_common.settings import read_settings
from hugepool_common.spec import Segment

CANCEL_TIMEOUT_S = 2.0
"""How long Ctrl-C waits for a request to be taken back; what it grants later is given back then."""

GOODBYE_TIMEOUT_S = 2.0

_TAKEN_BACK_AT = (Attach, CreateArray, Describe, List, Stats, SubmitJob)
"""Requests at which a call that was taken back ends: those that last, and those that go before.

Never at what is asked to clean up."""

_R = TypeVar("_R", bound=Message)


class Channel:
    """An open session.

    Parameters
    ----------
    address
        ``ipc://`` and the path of the coordinator's socket, or ``tcp://127.0.0.1:PORT``.
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
        self.batches = threading.Lock()
        """Held from the first to the last part of a batch of names: a session has one at a time."""
        self._owner_pid = os.getpid()
        patience_s = read_settings().reconnect_s
        self._present = Present()
        self._ledger = Ledger()
        self._leaving = False
        self._silent = False
        self._closed = False
        check_descriptors(address)
        self._place = Place()
        try:
            self._session = Session(address, client, self._ledger.note, self._place.wake_fd)
        except BaseException:
            self._place.close()
            raise
        self._succession = Succession(self._session, self._ledger, patience_s)
        self._renewal: Renewal | None = None
        if self.over_tcp:
            try:
                self._renewal = Renewal(self._session.fence, self.renew)
            except BaseException:
                self.close()
                raise

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._leaving or self._closed

    @property
    def over_tcp(self) -> bool:
        """Whether the session lives by a lease, and not by this process's own life."""
        return self._session.coordinator_uid is None

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child's copy, which is good for nothing."""
        return os.getpid() != self._owner_pid

    @property
    def silent(self) -> bool:
        """Whether the coordinator lives and left unanswered what was taken back, and all since."""
        return self._silent

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

    @property
    def call(self) -> Call | None:
        """What this thread does for another, if it does."""
        return self._present.call

    @contextmanager
    def making(self, call: Call) -> Iterator[None]:
        """What this thread asks for meanwhile belongs to a call that may be taken back."""
        before, self._present.call = self._present.call, call
        try:
            yield
        finally:
            self._present.call = before

    def take_back(self, call: Call) -> None:
        """End a call that another thread makes, at the coordinator too. Does not wait for that."""
        call.take_back()
        self._place.wake()

    def request(
        self,
        message: Message,
        reply: type[_R],
        *,
        timeout_s: float | None = None,
        on_notice: Callable[[Message], None] | None = None,
        of: Claim | None = None,
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
        of
            On what the request names by its number, which may mean something else by now.

        Raises
        ------
        HugepoolError
            The error that the coordinator answered with.
        CoordinatorUnreachableError
            The coordinator ended, and none came in its place.
        JobInterruptedError
            One did, and the request was a job.
        ArrayLostError
            Another coordinator has taken the place of the one that gave the numbers named.
        LeaseExpiredError
            The session was one over TCP, and is over.
        RequestTimeoutError
            No reply in time.
        DetachedError
            The channel is closed, or this is a forked child.
        """
        self._check_process()  # before the lock, which a fork may have copied while it was held
        call = self._present.call
        if call is not None and not isinstance(message, _TAKEN_BACK_AT):
            call = None
        deadline = _deadline(timeout_s)
        place = self._place
        nested = place.mine
        try:
            place.enter(call)
            self._check_open()
            if call is not None:
                call.check()
            era = self._ledger.holdings.era if of is None else of.era
            correlation = self._session.next_number()
            try:
                self._send_abandoned()
                if isinstance(message, (CreateArray, SubmitJob)):
                    # What was never sent cannot have been done: it must not be asked again.
                    self._meet(deadline, nested, call)
                self._submit(correlation, message, era)
                answer = self._wait(correlation, deadline, on_notice, nested, call)
                if self._ledger.was_repeated(correlation):
                    answer = self._second_answer(message, answer)
            except (CoordinatorUnreachableError, RequestTimeoutError):
                raise
            except BaseException:
                self._give_up(correlation, nested)
                raise
            finally:
                try:
                    place.come_back()
                except BaseException:  # Ctrl-C, since the answer came: nobody will hold it
                    self._ledger.disown(correlation)
                    place.come_back()
                    raise
                finally:
                    self._ledger.forget(correlation, ended=self._session.left)
        finally:
            try:
                place.leave(nested)
            finally:  # Ctrl-C, just as it began
                place.leave(nested)
        try:
            return expected(message, answer, reply)
        except LeaseExpiredError:
            self._session.fence.end()
            raise

    def renew(self) -> None:
        """Begin the lease of a session over TCP anew; where the link is lost, over a new one."""
        sent_ns = self._session.fence.now_ns()  # before it waits for anything
        self.request(Renew(), Renewed)
        self._session.fence.confirm(sent_ns)

    def check_lease(self) -> None:
        """Refuse to use what this session holds when it may not hold it any more.

        Raises
        ------
        LeaseExpiredError
            The session is one over TCP, and is over.
        """
        self._session.fence.check()

    def _give_up(self, correlation: int, nested: bool) -> None:
        """Take back a request whose outcome nobody will hold."""
        # From here on what it grants is given back, even if we are interrupted again.
        self._ledger.disown(correlation)
        self._place.come_back()
        if self._closed or self._session.left:
            return  # whom it was asked of has ended
        cancel = self._session.next_number()
        deadline = _deadline(CANCEL_TIMEOUT_S)
        try:
            self._submit(cancel, Cancel(correlation))
            answer = self._wait(cancel, deadline, None, nested)
            # Replies come in order: what is not found now was answered before, or never sent.
            if isinstance(answer, Cancelled) and answer.found:
                self._wait(correlation, deadline, None, nested)
        except CoordinatorUnreachableError:
            pass
        except RequestTimeoutError:
            self._silent = self._ledger.reply(cancel) is None
        finally:
            self._place.come_back()
            self._ledger.forget(cancel)

    def claim(self, lease: int) -> Claim:
        """What stands behind a lease that was just granted."""
        return self._ledger.holdings.claim(lease)

    def release(self, claim: Claim) -> None:
        """Give a lease back; one that is lost has nobody to be given back to."""
        if self._ledger.holdings.let_go(claim):
            self.request(Detach(claim.held.lease), Detached, of=claim)

    def release_later(self, claim: Claim) -> None:
        """Give a lease back with the next request, as :meth:`post_later`."""
        self._ledger.abandoned.append(claim)

    def check_owner(self, segment: Segment) -> None:
        """Refuse a segment that is no file of the coordinator's own user.

        Raises
        ------
        SegmentChangedError
            The coordinator names a file of somebody else; or, over TCP, one that is not here.
        """
        if self.over_tcp:
            _check_is_here(segment)
        elif segment.owner_uid != self._session.coordinator_uid:
            raise SegmentChangedError(
                "the segment does not belong to the coordinator",
                needed=f"uid {self._session.coordinator_uid}",
                had=f"uid {segment.owner_uid}",
                where=segment.path,
            )

    def post(self, message: Message) -> None:
        """Send a report whose reply nobody waits for; if the coordinator ended, to nobody."""
        self._check_process()
        place, nested = self._place, self._place.mine
        try:
            place.enter()
            self._check_open()
            self._session.send(self._session.next_number(), message)
        except LinkEnded:
            pass  # the next call that waits finds this out
        finally:
            try:
                place.leave(nested)
            finally:  # Ctrl-C, just as it began
                place.leave(nested)

    def post_later(self, message: Message | Doomed) -> None:
        """Send a message, whose reply nobody waits for, with the next request.

        For garbage collection, which may run inside any call of this very
        channel: it must not send.
        """
        self._ledger.abandoned.append(message)

    def flush(self) -> None:
        """Send what was to be sent with the next request, if there is anybody to send it to."""
        place, nested = self._place, self._place.mine
        try:
            place.enter()
            if not (self._closed or self._session.fence.over):
                self._send_abandoned()
        finally:
            try:
                place.leave(nested)
            finally:  # Ctrl-C, just as it began
                place.leave(nested)

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
        place, nested = self._place, self._place.mine
        try:
            place.enter()
            self._check_usable()
            if not self._ledger.notices:
                self._receive(_deadline(timeout_s), watch)
            return self._ledger.notices.popleft() if self._ledger.notices else None
        finally:
            try:
                place.leave(nested)
            finally:  # Ctrl-C, just as it began
                place.leave(nested)

    def take_in(self) -> None:
        """Note what has arrived; wait for nothing but the coordinator that follows one that ended.

        Raises
        ------
        CoordinatorUnreachableError
            The coordinator ended, and none came in its place.
        """
        self._check_process()
        self._check_usable()
        place, nested = self._place, self._place.mine
        if place.taken_by_another:
            return  # who takes in whatever arrives
        try:
            place.enter()
            self._check_usable()
            while self._take_in_one(time.monotonic()):
                pass
        except LinkEnded:
            self._follow(None)
        finally:
            try:
                place.leave(nested)
            finally:  # Ctrl-C, just as it began
                place.leave(nested)

    def close(self, *, goodbye: bool = True) -> None:
        """End the session. The arrays that are attached stay mapped until let go."""
        if self._closed:
            return
        if self.inherited:
            self._closed = True  # the parent's session is not ours to end
            return
        place, nested = self._place, self._place.mine
        try:
            place.enter()
            if self._closed:
                return  # by another thread, just now
            try:
                if goodbye:
                    self._leaving = True  # what others asked before may still be answered
                    if not self._session.fence.over:
                        self._say_goodbye(nested)
            finally:  # whatever interrupts the goodbye: nobody closes it a second time
                try:
                    self._end_session()
                except BaseException:  # Ctrl-C, just as it began
                    self._end_session()
                    raise
        finally:
            try:
                place.leave(nested)
            finally:  # Ctrl-C, just as it began
                place.leave(nested)

    def _end_session(self) -> None:
        with Uninterrupted():
            self._place.enter()
            if not self._closed:
                self._closed = True
                if self._renewal is not None:
                    self._renewal.stop()
                self._session.close()
                self._place.close()

    def _say_goodbye(self, nested: bool) -> None:
        correlation = self._session.next_number()
        deadline = _deadline(0.0 if self._silent else GOODBYE_TIMEOUT_S)
        try:
            self._submit(correlation, Goodbye())
            self._wait(correlation, deadline, None, nested)
        except (CoordinatorUnreachableError, RequestTimeoutError):
            pass

    def check_usable(self) -> None:
        """Refuse what nobody would answer.

        Raises
        ------
        DetachedError
            The channel is closed, or this is a forked child.
        LeaseExpiredError
            The session was one over TCP, and is over.
        """
        self._check_process()
        self._check_open()
        self._session.fence.check()

    def _check_open(self) -> None:
        """Refuse what the coordinator would be asked after our goodbye."""
        if self.closed:
            raise closed_error()

    def _check_usable(self) -> None:
        if self._closed:
            raise closed_error()
        self._session.fence.check()

    def _check_process(self) -> None:
        if self.inherited:
            raise DetachedError(
                "this pool belongs to the parent process",
                remedy="call hugepool.connect(pool.address) in the child",
            )

    # Requests and replies -----------------------------------------------------

    def _meet(self, deadline: float | None, nested: bool, call: Call | None) -> None:
        """Have a coordinator to send to; others may be at the socket meanwhile."""
        place = self._place
        while self._session.ended:
            self._follow(deadline)
            while True:
                seen = place.news
                self._look_around(deadline, call)
                if not self._session.left:  # whoever is at the socket has found one
                    place.enter(call)
                    break
                if place.come(nested, seen, self._session.in_time(deadline)):
                    break
            self._check_usable()

    def _look_around(self, deadline: float | None, call: Call | None) -> None:
        """Between two waits: see whether to wait on."""
        self._check_usable()
        if call is not None:
            call.check()
        if deadline is not None and time.monotonic() > deadline:
            raise too_late(self.address)

    def _submit(self, correlation: int, message: Message, era: int | None = None) -> None:
        """Send a request that is to be answered, now or after a reunion.

        What names something by the number that it had in another era is answered here.
        """
        message = self._ledger.begin(correlation, message)
        if era is not None and self._ledger.answer_former(correlation, era):
            return
        try:
            self._session.send(correlation, message)
        except LinkEnded:
            pass  # waiting for the reply finds this out

    def _send_abandoned(self) -> None:
        try:
            self._succession.send_abandoned()
        except LinkEnded:
            pass  # waiting for the next reply finds this out

    def _wait(
        self,
        correlation: int,
        deadline: float | None,
        on_notice: Callable[[Message], None] | None,
        nested: bool,
        call: Call | None = None,
    ) -> Reply:
        """The reply to a request; it stays noted until the request is forgotten.

        Another thread may be at the socket meanwhile, and when this ends.
        """
        ledger, place = self._ledger, self._place
        while True:
            seen = place.news
            answer = ledger.reply(correlation)  # before the notices: none comes after it
            if on_notice is not None and (told := ledger.take_told(correlation)):
                place.leave(nested)  # it may take its time
                for notice in told:
                    on_notice(notice)
            if answer is not None:
                return answer
            self._look_around(deadline, call)
            if not place.come(nested, seen, self._session.in_time(deadline)):
                continue
            self._check_usable()  # it may have been closed since
            try:
                self._take_in_one(deadline)
            except LinkEnded:
                request = ledger.request(correlation)
                settled = reunion.settled_by_end(request)
                if settled is not None:
                    if isinstance(request, Detach):
                        # The next coordinator keeps what we had until it is told what we have.
                        self._follow_if_there()
                    return settled
                self._follow(deadline)

    def _take_in_one(self, deadline: float | None, watch: Sequence[int] = ()) -> bool:
        """Wait for a message, and note it; False if none came before something else did."""
        ready = self._session.wait(self._session.in_time(deadline), watch)
        self._place.was_woken(ready)
        if self._session.take(ready) is None:
            return False
        self._silent = False
        self._place.tell()
        return True

    def _receive(self, deadline: float | None, watch: Sequence[int] = ()) -> bool:
        """Wait for a message; False if the time or a watched descriptor is up, or at a reunion."""
        try:
            return self._take_in_one(deadline, watch)
        except LinkEnded:
            self._follow(deadline, watch)
            return False

    def _follow(self, deadline: float | None, watch: Sequence[int] = ()) -> None:
        """Go on with the next coordinator, unless this thread is to look around before."""
        try:
            # Who watches something is a worker, which has no terminal to itself.
            self._succession.follow(deadline, (*watch, self._place.wake_fd), silent=bool(watch))
        finally:
            self._place.was_woken()
            self._place.tell()

    def _follow_if_there(self) -> None:
        """Go on with the next coordinator if that takes no waiting for it."""
        try:
            self._succession.follow_if_there()
        finally:
            self._place.tell()

    def _second_answer(self, request: Message, answer: Reply) -> Reply:
        """The answer to a request that was asked of two coordinators."""
        if isinstance(request, Publish) and reunion.not_found(answer):
            # Its source has no name any more: because it was published?
            found = self.request(Describe(request.name), Described).array
            if found.segment.segment_id == request.segment_id:
                return Published(found)
        return reunion.second_answer(request, answer)


def closed_error() -> DetachedError:
    """What whoever uses a session that is over is told."""
    return DetachedError("the pool is closed", remedy="call hugepool.connect() again")


def _check_is_here(segment: Segment) -> None:
    """Over TCP a client may be anywhere; say so before the kernel says that there is no file."""
    try:
        status = os.stat(segment.path, follow_symlinks=False)
        here = (status.st_dev, status.st_ino) == (segment.device, segment.inode)
    except OSError as error:
        here = error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
    if not here:
        raise SegmentChangedError(
            "the memory of this array is not to be seen here, or is gone: arrays are mapped where "
            "the coordinator's memory is, and TCP brings none",
            needed=f"device {segment.device}, inode {segment.inode}",
            where=segment.path,
            remedy="work on the coordinator's machine; in a container, with its /dev/shm or "
            "hugetlbfs mount",
        )


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
