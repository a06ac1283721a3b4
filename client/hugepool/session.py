"""How a session is opened, bound to this process, and taken up again after a restart.

A local one is bound to this process by the lock on its token. One over TCP has no token to be
locked but a secret name, and lives as long as it is renewed; its fence says until when it may be
used.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import zmq

from hugepool.fence import Fence
from hugepool.holdings import Holdings
from hugepool.interrupts import Uninterrupted
from hugepool.link import Link, LinkEnded, Ready
from hugepool.listener import START_REMEDY, Listener, probe
from hugepool.liveness import Token
from hugepool_common._version import __version__
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    LeaseExpiredError,
    NotEnoughMemoryError,
    NotPermittedError,
    ProtocolError,
    RequestTimeoutError,
)
from hugepool_common.messages import (
    Bind,
    Bound,
    Failed,
    FromCoordinator,
    Goodbye,
    GoodbyeSaid,
    Hello,
    Message,
    Reply,
    Resumed,
    Welcome,
)
from hugepool_common.transport import check_threads

HELLO_TIMEOUT_S = 10.0

_FAR_TIMEOUT_S = 3.0
"""The same where a session over TCP is taken up: through a link that was cut nobody ever answers,
and meanwhile Ctrl-C waits."""

_DESCRIPTORS = 16
"""A context, a socket, its monitor, a pidfd, a token, an event, and some to spare."""

_M = TypeVar("_M", bound=Message)


class Session:
    """A link to the coordinator of the moment, and the token that says that we live.

    Parameters
    ----------
    address
        Of the coordinator.
    client
        What this client calls itself.
    on_message
        As :class:`~hugepool.link.Link` takes it.
    wake_fd
        The same.

    Attributes
    ----------
    welcome
        What the coordinator of the moment, or the last one, said of itself.
    coordinator_uid
        Its user, and that of each that follows it; None over TCP.
    fence
        How long the session may be used.

    Raises
    ------
    CoordinatorUnreachableError
        Nobody listens there.
    RequestTimeoutError
        Nobody answers.
    NotEnoughMemoryError
        This process has too few descriptors, threads or too little address space left.
    InvalidSpecError
        The address is of no known kind.
    """

    welcome: Welcome

    def __init__(
        self,
        address: str,
        client: str,
        on_message: Callable[[int, FromCoordinator], None],
        wake_fd: int = -1,
    ) -> None:
        self.address = address
        self._wake_fd = wake_fd
        self._client = client
        self._on_message = on_message
        self._numbers = itertools.count(1)
        self._link: Link | None = None
        self._token: Token | None = None
        self._secret = ""
        self._patience_s = HELLO_TIMEOUT_S
        self.fence = Fence()
        check_descriptors(address)
        listener = probe(address)
        self.coordinator_uid = listener.uid
        check_threads(address)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._open(listener)
        except BaseException:
            self.close()
            raise

    def _open(self, listener: Listener) -> None:
        deadline = time.monotonic() + HELLO_TIMEOUT_S
        while True:
            try:
                return self._join(listener)
            except LinkEnded:
                # It ended just now, or so many connect that it had no room for one more.
                if time.monotonic() > deadline:
                    raise CoordinatorUnreachableError(
                        "the coordinator ended", where=self.address, remedy=START_REMEDY
                    ) from None
                self.leave()
                listener = probe(self.address)

    def take_up(self, listener: Listener, holdings: Holdings) -> None:
        """Go on with the coordinator that was started after ours ended, or over a new link to it.

        Parameters
        ----------
        listener
            Who it is.
        holdings
            What we hold; what is gone is marked there.

        Raises
        ------
        NotPermittedError
            It is another user's.
        NotEnoughMemoryError
            This process has too few descriptors left.
        LeaseExpiredError
            The session was one over TCP, and is over.
        LinkEnded, RequestTimeoutError
            It is gone again, or does not answer.
        """
        if listener.uid != self.coordinator_uid:
            raise NotPermittedError(
                "another user's coordinator has taken the place of ours",
                needed=f"uid {self.coordinator_uid}",
                had=f"uid {listener.uid}",
                where=self.address,
                remedy="call hugepool.connect() again if you trust it",
            )
        check_descriptors(self.address)
        self.leave()
        instance = self.welcome.instance
        self._join(listener)
        if self.welcome.instance != instance:
            holdings.lose_all()
        for page in holdings.pages():
            holdings.lose(self._exchange(page, Resumed).gone)

    def _join(self, listener: Listener) -> None:
        self._link = Link(self._context, self.address, listener, self._on_message, self._wake_fd)
        self._patience_s = _FAR_TIMEOUT_S if self._secret else HELLO_TIMEOUT_S
        if listener.uid is None:
            self._join_over_tcp()
        else:
            self._join_local(listener.uid)

    def _join_over_tcp(self) -> None:
        sent_ns = self.fence.now_ns()
        try:
            welcome = self._exchange(Hello(self._client, __version__, self._secret), Welcome)
        except LeaseExpiredError:
            self.fence.end()
            raise
        if welcome.lease_ns <= 0 or not welcome.token:
            raise ProtocolError("the coordinator gave no lease to a client over TCP")
        if not self._secret:
            self._secret = welcome.token
            self.fence.begin(welcome.lease_ns, sent_ns)
        elif welcome.resumed:
            self.fence.confirm(sent_ns)
        else:
            self.fence.end()
        self.fence.check()  # it may have taken too long to answer
        self.welcome = welcome

    def _join_local(self, uid: int) -> None:
        former = self._token
        welcome = self._exchange(
            Hello(self._client, __version__, former.name if former else ""), Welcome
        )
        if not welcome.resumed:
            try:
                token = Token(welcome.token, uid)
            except HugepoolError:
                # Else it would wait for our lock for minutes.
                self._exchange(Goodbye(), GoodbyeSaid)
                raise
            try:
                self._exchange(Bind(), Bound)
            except BaseException:
                token.close()
                raise
            self._token = token
            if former is not None:
                former.close()
        self.welcome = welcome

    def _exchange(self, message: Message, reply: type[_M]) -> _M:
        number = self.next_number()
        self.send(number, message)
        deadline = time.monotonic() + self._patience_s
        while True:
            received = self.receive(self.in_time(deadline))
            if received is None:
                self.fence.check()
                raise RequestTimeoutError(
                    "the coordinator did not answer",
                    needed=f"a reply within {self._patience_s:g} s",
                    where=self.address,
                    remedy="see whether it is stopped (kill -CONT) or its machine overloaded, "
                    "and try again",
                )
            if received[0] == number:
                return expected(message, received[1], reply)

    @property
    def ended(self) -> bool:
        """Whether the coordinator is known to have ended; it looks."""
        return self._link is None or self._link.ended

    @property
    def left(self) -> bool:
        """Whether there is no link at the moment."""
        return self._link is None

    def in_time(self, deadline: float | None) -> float | None:
        """When to stop waiting and look again: at a deadline, or when the session may be over."""
        left_s = self.fence.left_s
        if left_s is None:
            return deadline
        ends = time.monotonic() + left_s
        return ends if deadline is None else min(ends, deadline)

    def next_number(self) -> int:
        """A correlation id that none of this session's requests had."""
        return next(self._numbers)

    def send(self, correlation: int, message: Message) -> None:
        """As :meth:`hugepool.link.Link.send`."""
        if self._link is None:
            raise LinkEnded
        self._link.send(correlation, message)

    def receive(self, deadline: float | None) -> tuple[int, FromCoordinator] | None:
        """As :meth:`hugepool.link.Link.receive`."""
        if self._link is None:
            raise LinkEnded
        return self._link.receive(deadline)

    def wait(self, deadline: float | None, watch: Sequence[int] = ()) -> Ready:
        """As :meth:`hugepool.link.Link.wait`; without a link there is nothing to wait for."""
        return {} if self._link is None else self._link.wait(deadline, watch)

    def take(self, ready: Ready) -> tuple[int, FromCoordinator] | None:
        """As :meth:`hugepool.link.Link.take`."""
        if self._link is None:
            raise LinkEnded
        return self._link.take(ready)

    def leave(self) -> None:
        """Close the link to a coordinator that ended; the token stays locked."""
        with Uninterrupted():  # half closed it would neither serve nor be replaced
            if self._link is not None:
                self._link.close()
                self._link = None

    def close(self) -> None:
        """End the session, if nothing else has: its token is locked no more."""
        self.leave()
        self._context.destroy(linger=0)
        if self._token is not None:
            self._token.close()
            self._token = None


def check_descriptors(address: str) -> None:
    """See that there are descriptors left: ZeroMQ ends the process where it finds none."""
    taken: list[int] = []
    try:
        while len(taken) < _DESCRIPTORS:
            taken.append(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as error:
        raise NotEnoughMemoryError(
            f"no session can be opened: {error.strerror}",
            needed=f"{_DESCRIPTORS} file descriptors",
            had=f"{len(taken)}",
            where=address,
            remedy="raise their number with: ulimit -n",
        ) from None
    finally:
        for fd in taken:
            os.close(fd)


def expected(request: Message, answer: Reply | FromCoordinator, reply: type[_M]) -> _M:
    """The answer to a request, which is to be of a class.

    Raises
    ------
    HugepoolError
        The error that was answered.
    ProtocolError
        It is of another class.
    """
    if isinstance(answer, Failed):
        raise answer.to_error()
    if not isinstance(answer, reply):
        raise ProtocolError(f"unexpected reply {type(answer).__name__} to {type(request).__name__}")
    return answer
