"""The coordinator's sockets: frames of a known sender in, messages out, nothing that blocks.

There is one for local peers, whom the kernel names, and where it is wanted one for peers over TCP,
who are nobody: which socket a message came by says which of the two its sender is. A peer is
known beyond this module by its routing id, after a byte for the socket.

Over TCP a routing id is all that tells one connection from another, so its client draws one that
nobody guesses; who comes with a short one, such as ZeroMQ gives by itself, is refused.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import zmq

from hugepool_common import wire
from hugepool_common.errors import (
    HugepoolError,
    InvalidSpecError,
    NotPermittedError,
    ProtocolError,
)
from hugepool_common.messages import CreateProgress, Failed, JobProgress, Message
from hugepool_server.events import RequestReceived
from hugepool_server.records import OVER_TCP, Identity

log = logging.getLogger("hugepoold")

BATCH = 256
"""Requests taken from the socket before other sources are looked at."""

QUEUED_MESSAGES = 1000
"""Kept for a peer that does not read; the next one is refused."""

HANDSHAKE_MS = 3000
"""What connects and says nothing is dropped after so long."""

FLUSH_MS = 1000
"""How long the last replies may take to leave."""


HEARTBEAT_MS, HEARTBEAT_PATIENCE_MS = 1000, 3000
"""Over TCP: how often ZeroMQ asks a peer whether it is there, and when it hangs up."""

LEAST_ROUTING_ID = 16
"""Bytes of the routing id of a peer over TCP."""

_LOCAL, _TCP = b"l", b"t"


class Endpoint:
    """Bound ROUTER sockets.

    Parameters
    ----------
    path
        Of the socket. What lies there is removed: the lock on its directory says that
        nobody listens.
    umask
        Under which it is made.
    group
        Numeric gid that it is given to.
    tcp
        Where to bind for peers over TCP, port 0 for any; empty for nowhere.

    Attributes
    ----------
    sockets
        To be polled.
    tcp_address
        Where peers over TCP connect; empty for nowhere.

    Raises
    ------
    NotPermittedError
        It cannot be made there.
    InvalidSpecError
        The port is another's, or there is no such address.
    """

    def __init__(self, path: str, *, umask: int, group: int | None = None, tcp: str = "") -> None:
        self._context = zmq.Context()
        self._routers: dict[bytes, zmq.Socket[bytes]] = {}
        self.tcp_address = ""
        try:
            self._routers[_LOCAL] = self._bound(path, umask)
            if group is not None:
                os.chown(path, -1, group)
            if tcp:
                self._routers[_TCP] = self._bound_to_tcp(tcp)
        except BaseException:
            self.close()
            raise
        self.sockets = tuple(self._routers.values())

    def _router(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else replies to the dead vanish silently
        router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.LINGER, 0)
        return router

    def _bound_to_tcp(self, address: str) -> zmq.Socket[bytes]:
        router = self._router()
        router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_PATIENCE_MS)
        router.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_PATIENCE_MS)
        try:
            router.bind(address)
        except zmq.ZMQError as error:
            raise InvalidSpecError(
                f"cannot listen for clients over TCP: {error.strerror}",
                where=address,
                remedy="choose another port with --tcp",
            ) from None
        self.tcp_address = router.getsockopt_string(zmq.LAST_ENDPOINT)
        return router

    def _bound(self, path: str, umask: int) -> zmq.Socket[bytes]:
        router = self._router()
        with suppress(OSError):  # if it cannot be removed, bind says why
            os.unlink(path)
        before = os.umask(umask)
        try:
            router.bind("ipc://" + path)
        except zmq.ZMQError as error:
            raise NotPermittedError(
                f"cannot make the socket: {error.strerror}",
                where=path,
                remedy="choose another directory with HUGEPOOL_RUNTIME_DIR",
            ) from None
        finally:
            os.umask(before)
        return router

    def __repr__(self) -> str:
        return f"<Endpoint {'closed' if self._context.closed else 'bound'}>"

    def receive(self, socket: zmq.Socket[bytes]) -> Iterator[RequestReceived]:
        """The requests that have arrived, up to :data:`BATCH`; what is none is refused here."""
        origin = _TCP if socket is self._routers.get(_TCP) else _LOCAL
        for _ in range(BATCH):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            request = self._request_in(origin, frames)
            if request is not None:
                yield request

    def _request_in(self, origin: bytes, frames: list[zmq.Frame]) -> RequestReceived | None:
        routing_id, *message = (frame.bytes for frame in frames)
        peer = origin + routing_id
        identity = OVER_TCP if origin == _TCP else _identity(frames[-1])
        if identity is None:
            log.warning("dropped a message of a peer without a kernel identity")
            return None
        try:
            if identity is OVER_TCP and len(routing_id) < LEAST_ROUTING_ID:
                raise ProtocolError(
                    "the routing id of a client over TCP could be guessed",
                    needed=f"{LEAST_ROUTING_ID} random bytes or more (ZMQ_ROUTING_ID)",
                    had=f"{len(routing_id)}",
                )
            correlation, request = wire.decode_request(message)
        except ProtocolError as error:
            answerable = wire.correlation_of(message)
            log.info("refused a message of %s: %s", identity.told_process, error)
            if answerable is not None:
                self.refuse(peer, answerable, error)
            return None
        return RequestReceived(peer, identity, correlation, request)

    def send(self, peer: bytes, correlation: int, message: Message) -> bool:
        """Send without waiting; False if the peer is gone or does not read."""
        try:
            frames = wire.encode(correlation, message)
        except ProtocolError as error:
            log.error("%s", error)
            frames = wire.encode(correlation, Failed.from_error(error))
        try:
            self._routers[peer[:1]].send_multipart([peer[1:], *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # EAGAIN: it does not read what we sent before. EHOSTUNREACH: it is gone.
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            # Progress that is not read may be lost.
            told = isinstance(message, CreateProgress | JobProgress)
            return told and error.errno == zmq.EAGAIN
        return True

    def refuse(self, peer: bytes, correlation: int, error: HugepoolError) -> None:
        """Answer a request that the coordinator never sees."""
        self.send(peer, correlation, Failed.from_error(error))

    def close(self) -> None:
        """Let the last replies out, if they are read, and close."""
        self._context.destroy(linger=FLUSH_MS)


def _identity(frame: zmq.Frame) -> Identity | None:
    """Uid, gid and pid of the sender as the kernel gave them at accept (SO_PEERCRED)."""
    try:
        address = frame.get("Peer-Address")
    except zmq.ZMQError:
        return None
    return _identity_in(str(address))


@functools.lru_cache(maxsize=1024)
def _identity_in(address: str) -> Identity | None:
    fields = address.rsplit(":", 3)[1:]
    if len(fields) != 3 or not all(field.isdecimal() for field in fields):
        return None
    uid, gid, pid = map(int, fields)
    return Identity(uid, gid, pid)
