"""The socket to one process of a coordinator, and the signs of that process's end.

A link is used until the coordinator behind it ends and never for the next one: what was
sent to the one must not be carried out by the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import zmq

from hugepool.interrupts import Uninterrupted
from hugepool.listener import Listener
from hugepool_common import wire
from hugepool_common.messages import FromCoordinator, Message

_NEVER_MS = 1 << 30
"""Twelve days until ZeroMQ connects again. With -1, which is for ever, it would drop what
was received and not yet read: the last words of a coordinator that stops."""


_LAST_WORDS_MS = 1000

_ROUTING_ID_BYTES = 32
_HEARTBEAT_MS, _HEARTBEAT_PATIENCE_MS = 1000, 3000
"""Over TCP: how often ZeroMQ asks the other end whether it is there, and when it hangs up."""


Ready: TypeAlias = dict["zmq.Socket[bytes] | int", int]
"""What a wait found: sockets and descriptors with what they are ready for."""


class LinkEnded(Exception):
    """The coordinator behind a link has ended, or could not be connected at all."""


class Link:
    """An open socket to the coordinator at an address.

    Parameters
    ----------
    context
        Of the channel.
    address
        Where it listens.
    listener
        Who does.
    on_message
        Called with each message that comes, its correlation id first. Must not wait.
    wake_fd
        A descriptor that ends :meth:`wait` when it becomes readable; -1 for none.

    Raises
    ------
    CoordinatorUnreachableError
        It has ended already.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        listener: Listener,
        on_message: Callable[[int, FromCoordinator], None],
        wake_fd: int = -1,
    ) -> None:
        self._address = address
        self._on_message = on_message
        self._wake: tuple[int, ...] = () if wake_fd < 0 else (wake_fd,)
        self._coordinator_fd = listener.watch(address)
        try:
            self._connect(context, over_tcp=listener.over_tcp)
        except BaseException:  # what there is of sockets, the context closes
            self._forget_coordinator()
            raise

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]], *, over_tcp: bool) -> None:
        self._socket = context.socket(zmq.DEALER)
        if over_tcp:
            # What tells us from others that connect: nobody is to guess it. Not 0 at first,
            # which ZeroMQ keeps for those that it gives.
            self._socket.setsockopt(zmq.ROUTING_ID, b"h" + os.urandom(_ROUTING_ID_BYTES))
            # A link that was cut says nothing; without this it would never end.
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_PATIENCE_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_PATIENCE_MS)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY)
        self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        # Fires when the coordinator's end of the socket goes, which is the only sign of
        # its death where its pid is not ours to see; or when it could not be connected.
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._signs: list[zmq.Socket[bytes] | int] = [self._monitor]
        if self._coordinator_fd >= 0:
            self._signs.append(self._coordinator_fd)
        self._poller = self._poller_of(())
        self._waking = self._poller_of(self._wake)
        self._socket.connect(self._address)

    def close(self) -> None:
        """Let go of the socket; what was not read is lost."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._forget_coordinator()

    def _forget_coordinator(self) -> None:
        if self._coordinator_fd >= 0:
            os.close(self._coordinator_fd)
            self._coordinator_fd = -1

    @property
    def ended(self) -> bool:
        """Whether the coordinator's end has shown itself; what it said last may be unread."""
        return any(sign in dict(self._poller.poll(0)) for sign in self._signs)

    def send(self, correlation: int, message: Message) -> None:
        """Send a message, as soon as the coordinator takes it.

        Raises
        ------
        LinkEnded
            It will not take it any more.
        """
        frames = wire.encode(correlation, message)
        while True:
            try:
                with Uninterrupted():
                    self._socket.send_multipart(frames, zmq.NOBLOCK)
                return
            except zmq.Again:
                pass
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLOUT)
            for sign in self._signs:
                poller.register(sign, zmq.POLLIN)
            if self._socket not in dict(poller.poll()):
                raise LinkEnded

    def receive(self, deadline: float | None) -> tuple[int, FromCoordinator] | None:
        """Wait for one message, whoever wakes us; None if the time is up.

        Raises
        ------
        LinkEnded
            There is nobody any more, nor anything unread.
        """
        return self.take(_polled(self._poller, deadline))

    def wait(self, deadline: float | None, watch: Sequence[int] = ()) -> Ready:
        """Wait until :meth:`take` has something to take in, or the time is up; take nothing in.

        Or until the descriptor that wakes us, or a watched one, is readable. Meanwhile no other
        thread may use the link.
        """
        poller = self._poller_of((*self._wake, *watch)) if watch else self._waking
        return _polled(poller, deadline)

    def take(self, ready: Ready) -> tuple[int, FromCoordinator] | None:
        """One message, if :meth:`wait` found that there is one.

        Raises
        ------
        LinkEnded
            There is nobody any more, nor anything unread.
        """
        if self._socket not in ready:
            if not any(sign in ready for sign in self._signs):
                return None
            # A coordinator that stops says so before it ends. All of it is here once its
            # end of the socket is seen to be closed.
            self._monitor.poll(_LAST_WORDS_MS)
            if not self._socket.poll(0):
                raise LinkEnded
        with Uninterrupted():  # or a reply would be read and not noted
            number, message = wire.decode_from_coordinator(self._socket.recv_multipart())
            self._on_message(number, message)
        return number, message

    def _poller_of(self, watch: Sequence[int]) -> zmq.Poller:
        poller = zmq.Poller()
        for source in (self._socket, *self._signs, *watch):
            poller.register(source, zmq.POLLIN)
        return poller


def _polled(poller: zmq.Poller, deadline: float | None) -> Ready:
    left_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
    return dict(poller.poll(left_ms))
