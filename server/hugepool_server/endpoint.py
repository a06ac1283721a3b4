"""The coordinator's socket: frames of a known sender in, messages out, nothing that blocks."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import zmq

from hugepool_common import wire
from hugepool_common.errors import HugepoolError, NotPermittedError, ProtocolError
from hugepool_common.messages import CreateProgress, Failed, JobProgress, Message
from hugepool_server.events import RequestReceived
from hugepool_server.records import Identity

log = logging.getLogger("hugepoold")

BATCH = 256
"""Requests taken from the socket before other sources are looked at."""

QUEUED_MESSAGES = 1000
"""Kept for a peer that does not read; the next one is refused."""

HANDSHAKE_MS = 3000
"""What connects and says nothing is dropped after so long."""

FLUSH_MS = 1000
"""How long the last replies may take to leave."""


class Endpoint:
    """A bound ROUTER socket.

    Parameters
    ----------
    path
        Of the socket. What lies there is removed: the lock on its directory says that
        nobody listens.
    umask
        Under which it is made.
    group
        Numeric gid that it is given to.

    Raises
    ------
    NotPermittedError
        It cannot be made there.
    """

    def __init__(self, path: str, *, umask: int, group: int | None = None) -> None:
        self._context = zmq.Context()
        try:
            self.socket = self._bound(path, umask)
            if group is not None:
                os.chown(path, -1, group)
        except BaseException:
            self.close()
            raise

    def _bound(self, path: str, umask: int) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else replies to the dead vanish silently
        router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BODY)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.LINGER, 0)
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

    def receive(self) -> Iterator[RequestReceived]:
        """The requests that have arrived, up to :data:`BATCH`; what is none is refused here."""
        for _ in range(BATCH):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            request = self._request_in(frames)
            if request is not None:
                yield request

    def _request_in(self, frames: list[zmq.Frame]) -> RequestReceived | None:
        peer, *message = (frame.bytes for frame in frames)
        identity = _identity(frames[-1])
        if identity is None:
            log.warning("dropped a message of a peer without a kernel identity")
            return None
        try:
            correlation, request = wire.decode_request(message)
        except ProtocolError as error:
            answerable = wire.correlation_of(message)
            log.info("refused a message of pid %d: %s", identity.pid, error)
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
            self.socket.send_multipart([peer, *frames], zmq.NOBLOCK)
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
