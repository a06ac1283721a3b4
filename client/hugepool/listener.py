"""Who listens at an address, asked of the kernel before ZeroMQ is."""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass

from hugepool_common.errors import CoordinatorUnreachableError, InvalidSpecError
from hugepool_common.tcp_address import SCHEME, host_and_port

START_REMEDY = "start one with: hugepool serve"

CONNECT_TIMEOUT_S = 2.0
_CROWDED_S = 0.005

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class NotAdmittedError(CoordinatorUnreachableError, PermissionError):
    """Somebody may listen at the address, and this user may not connect to it."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens at an address, by the kernel's word.

    Parameters
    ----------
    uid
        Its user; None over TCP, where nobody says.
    pid
        Its process in our pid namespace; 0 where that has none, and over TCP.
    """

    uid: int | None
    pid: int

    @property
    def over_tcp(self) -> bool:
        """Whether there is a connection and nothing else to know it by."""
        return self.uid is None

    def watch(self, address: str) -> int:
        """A pidfd of the process, or -1 where it cannot be seen.

        Raises
        ------
        CoordinatorUnreachableError
            It has ended already.
        """
        if self.pid == 0:
            return -1
        try:
            return os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise CoordinatorUnreachableError(
                "the coordinator ended", where=address, remedy=START_REMEDY
            ) from None
        except OSError:
            return -1


def probe(address: str) -> Listener:
    """Find out who listens at an address: ZeroMQ itself would wait for ever.

    Raises
    ------
    CoordinatorUnreachableError
        Nobody does.
    NotAdmittedError
        This user may not connect.
    InvalidSpecError
        The address is neither ``ipc://PATH`` nor ``tcp://HOST:PORT`` of this machine.
    """
    scheme, _, path = address.partition("://")
    if scheme == SCHEME:
        return _probe_tcp(address)
    if scheme != "ipc" or not path:
        raise InvalidSpecError(
            f"{address!r} is not the address of a coordinator",
            needed="ipc://PATH or tcp://127.0.0.1:PORT",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(CONNECT_TIMEOUT_S)
        try:
            _connect(attempt, path)
        except PermissionError as error:
            raise NotAdmittedError(
                f"this user may not connect to the coordinator: {error.strerror}",
                where=address,
                had=f"uid {os.geteuid()}",
                remedy="join the coordinator's group, or run as its user",
            ) from None
        except OSError as error:
            raise CoordinatorUnreachableError(
                f"no coordinator answers: {error.strerror or error}",
                where=address,
                remedy=START_REMEDY,
            ) from None
        # As they were when it called listen().
        credentials = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Listener(uid, pid)


def _probe_tcp(address: str) -> Listener:
    target = host_and_port(address)
    try:
        with socket.create_connection(target, CONNECT_TIMEOUT_S) as attempt:
            # A port that nobody listens at may be given to the attempt itself.
            if attempt.getsockname() != attempt.getpeername():
                return Listener(None, 0)
            reason = "nobody listens"
    except OSError as error:
        reason = error.strerror or str(error)
    raise CoordinatorUnreachableError(
        f"no coordinator answers: {reason}",
        where=address,
        remedy="start one with: hugepool serve --tcp PORT, or the ssh -L that leads to one",
    ) from None


def _connect(attempt: socket.socket, path: str) -> None:
    """Connect, also where so many do so at once that the listener's queue is full."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            attempt.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_CROWDED_S)
