"""One session with a coordinator: requests out, replies and notices in.

A waiting caller watches the coordinator's process as well as its socket, so a
killed coordinator is an error at once and a slow one (populating 100 GB) has no
deadline. A channel belongs to the process that opened it: after ``fork`` the
child's copy refuses to work, because two processes cannot share one session.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import zmq

from hugepool.interrupts import Uninterrupted
from hugepool.listener import START_REMEDY, probe
from hugepool_common import wire
from hugepool_common._version import __version__
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    DetachedError,
    ProtocolError,
    RequestTimeoutError,
    SegmentChangedError,
)
from hugepool_common.messages import (
    ArrayCreated,
    Attached,
    Cancel,
    Cancelled,
    Destroy,
    Detach,
    Failed,
    FromCoordinator,
    Goodbye,
    Hello,
    Message,
    Notice,
    Reply,
    Welcome,
    WorkersChanged,
)
from hugepool_common.spec import Segment

HELLO_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 2.0

_R = TypeVar("_R", bound=Message)


class Channel:
    """An open session.

    Parameters
    ----------
    address
        ``ipc://`` and the path of the coordinator's socket.
    client
        What this client calls itself in the coordinator's lists.

    Attributes
    ----------
    workers_changes
        How often the coordinator said that its last Stats no longer tells who works.

    Raises
    ------
    CoordinatorUnreachableError
        Nobody listens there, or nobody answers.
    InvalidSpecError
        The address is of no known kind.
    """

    def __init__(self, address: str, *, client: str = "python") -> None:
        peer = probe(address)
        self.address = address
        self._coordinator_uid = peer.uid
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        self._correlation = 0
        self._waiting: set[int] = set()
        self._replies: dict[int, Reply] = {}
        self._unwanted: set[int] = set()
        self._notices: deque[Notice] = deque()
        self.workers_changes = 0
        self._abandoned: deque[Message] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY)
        # Fires when the coordinator's end of the socket goes: the only sign of its
        # death where its pid is not ours to see.
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(address)
        self._coordinator_fd = -1
        self._closed = False
        try:
            self._coordinator_fd = peer.watch(address)
            self.welcome = self.request(
                Hello(client, __version__), Welcome, timeout_s=HELLO_TIMEOUT_S
            )
        except BaseException:
            self.close(goodbye=False)
            raise

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

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
            Seconds to wait; None waits as long as the coordinator lives.
        on_notice
            Called with each notice that belongs to this request.

        Raises
        ------
        HugepoolError
            The error that the coordinator answered with.
        CoordinatorUnreachableError
            The coordinator ended.
        RequestTimeoutError
            No reply in time.
        DetachedError
            The channel is closed, or this is a forked child.
        """
        self._check_process()  # before the lock, which a fork may have copied while it was held
        with self._lock:
            self._check_usable()
            while self._abandoned:
                self._send(self._begin(), self._abandoned.popleft())
            correlation = self._begin()
            self._waiting.add(correlation)
            try:
                self._send(correlation, message)
                answer = self._wait(correlation, timeout_s, on_notice)
            except (CoordinatorUnreachableError, RequestTimeoutError):
                raise
            except BaseException:
                self._give_up(correlation)
                raise
            finally:
                self._forget(correlation)
        if isinstance(answer, Failed):
            raise answer.to_error()
        if not isinstance(answer, reply):
            raise ProtocolError(
                f"unexpected reply {type(answer).__name__} to {type(message).__name__}"
            )
        return answer

    def _give_up(self, correlation: int) -> None:
        """Take back a request whose outcome nobody will hold."""
        # From here on what it grants is given back, even if we are interrupted again.
        self._unwanted.add(correlation)
        cancel = self._begin()
        self._waiting.add(cancel)
        try:
            self._send(cancel, Cancel(correlation))
            answer = self._wait(cancel, CANCEL_TIMEOUT_S, None)
            # Replies come in order: what is not found now was answered before, or never sent.
            if isinstance(answer, Cancelled) and answer.found:
                self._wait(correlation, CANCEL_TIMEOUT_S, None)
        except (CoordinatorUnreachableError, RequestTimeoutError):
            pass
        finally:
            self._forget(cancel)

    def _give_back(self, granted: Reply) -> None:
        if isinstance(granted, ArrayCreated):
            self.post_later(Destroy(granted.array.spec.name))
        elif isinstance(granted, Attached):
            self.post_later(Detach(granted.lease))

    def check_owner(self, segment: Segment) -> None:
        """Refuse a segment that is no file of the coordinator's own user.

        Raises
        ------
        SegmentChangedError
            The coordinator names a file of somebody else.
        """
        if segment.owner_uid != self._coordinator_uid:
            raise SegmentChangedError(
                "the segment does not belong to the coordinator",
                needed=f"uid {self._coordinator_uid}",
                had=f"uid {segment.owner_uid}",
                where=segment.path,
            )

    def post(self, message: Message) -> None:
        """Send a request whose reply nobody waits for."""
        self._check_process()
        with self._lock:
            self._check_usable()
            self._send(self._begin(), message)

    def post_later(self, message: Message) -> None:
        """Send a message, whose reply nobody waits for, with the next request.

        For garbage collection, which may run inside any call of this very
        channel: it must not send.
        """
        self._abandoned.append(message)

    def next_notice(
        self, timeout_s: float | None, *, watch: list[int] | None = None
    ) -> Notice | None:
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
            None when the time is over or a watched descriptor is readable.

        Raises
        ------
        CoordinatorUnreachableError
            The coordinator ended.
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            if not self._notices:
                self._receive(_deadline(timeout_s), watch or [])
            return self._notices.popleft() if self._notices else None

    def take_in(self) -> None:
        """Note what has arrived, without waiting.

        Raises
        ------
        CoordinatorUnreachableError
            The coordinator ended.
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            while self._receive(time.monotonic(), []) is not None:
                pass

    def close(self, *, goodbye: bool = True) -> None:
        """End the session. The arrays that are attached stay mapped until let go."""
        if self._closed:
            return
        if os.getpid() != self._owner_pid:
            self._closed = True  # the parent's session is not ours to end
            return
        if goodbye:
            try:
                with self._lock:
                    correlation = self._begin()
                    self._waiting.add(correlation)
                    self._send(correlation, Goodbye())
                    self._wait(correlation, GOODBYE_TIMEOUT_S, None)
            except (CoordinatorUnreachableError, RequestTimeoutError):
                pass
        self._closed = True
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()
        if self._coordinator_fd >= 0:
            os.close(self._coordinator_fd)
            self._coordinator_fd = -1

    def _check_usable(self) -> None:
        if self._closed:
            raise DetachedError("the pool is closed", remedy="call hugepool.connect() again")

    def _check_process(self) -> None:
        if os.getpid() != self._owner_pid:
            raise DetachedError(
                "this pool belongs to the parent process",
                remedy="call hugepool.connect(pool.address) in the child",
            )

    def _begin(self) -> int:
        self._correlation += 1
        return self._correlation

    def _forget(self, correlation: int) -> None:
        self._waiting.discard(correlation)
        answer = self._replies.pop(correlation, None)
        if answer is not None and correlation in self._unwanted:
            self._unwanted.discard(correlation)
            self._give_back(answer)

    def _send(self, correlation: int, message: Message) -> None:
        frames = wire.encode(correlation, message)
        with Uninterrupted():
            self._socket.send_multipart(frames)

    def _wait(
        self,
        correlation: int,
        timeout_s: float | None,
        on_notice: Callable[[Message], None] | None,
    ) -> Reply:
        """The reply to a request; it stays noted until the request is forgotten."""
        deadline = _deadline(timeout_s)
        while correlation not in self._replies:
            received = self._receive(deadline, [])
            if received is None:
                raise RequestTimeoutError(
                    "the coordinator did not answer",
                    needed=f"a reply within {timeout_s} s",
                    where=self.address,
                )
            number, message = received
            if number == correlation and isinstance(message, Notice) and on_notice is not None:
                on_notice(message)
        return self._replies[correlation]

    def _receive(
        self, deadline: float | None, watch: list[int]
    ) -> tuple[int, FromCoordinator] | None:
        """Wait for one message and note it; None if the time or a watched descriptor is up."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        for fd in watch:
            poller.register(fd, zmq.POLLIN)
        death = self._coordinator_fd if self._coordinator_fd >= 0 else self._monitor
        poller.register(death, zmq.POLLIN)
        left_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
        ready = dict(poller.poll(left_ms))
        # Replies first: a coordinator that stops says so before it ends.
        if self._socket in ready:
            with Uninterrupted():
                number, message = wire.decode_from_coordinator(self._socket.recv_multipart())
                if isinstance(message, WorkersChanged):
                    self.workers_changes += 1
                elif isinstance(message, Notice):
                    if number == 0:
                        self._notices.append(message)
                elif number in self._waiting:
                    self._replies[number] = message
                elif number in self._unwanted:
                    self._unwanted.discard(number)
                    self._give_back(message)
            return number, message
        if death in ready:
            raise CoordinatorUnreachableError(
                "the coordinator ended", where=self.address, remedy=START_REMEDY
            )
        return None


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
