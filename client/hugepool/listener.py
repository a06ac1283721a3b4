"""Who listens at an address, asked of the kernel before ZeroMQ is."""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass

from hugepool_common.errors import CoordinatorUnreachableError, InvalidSpecError

START_REMEDY = "start one with: hugepool serve"

CONNECT_TIMEOUT_S = 2.0
_CROWDED_S = 0.005

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens at an address, by the kernel's word.

    Parameters
    ----------
    uid
        Its user.
    pid
        Its process in our pid namespace; 0 where that has none.
    """

    uid: int
    pid: int

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
        Nobody does, or this user may not connect.
    InvalidSpecError
        The address is not ``ipc://PATH``.
    """
    scheme, _, path = address.partition("://")
    if scheme != "ipc" or not path:
        raise InvalidSpecError(
            f"{address!r} is not the address of a coordinator", needed="ipc://PATH"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(CONNECT_TIMEOUT_S)
        try:
            _connect(attempt, path)
        except OSError as error:
            raise CoordinatorUnreachableError(
                f"no coordinator answers: {error.strerror or error}",
                where=address,
                remedy=START_REMEDY
                if not isinstance(error, PermissionError)
                else "join the coordinator's group, or run as its user",
            ) from None
        # As they were when it called listen().
        credentials = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Listener(uid, pid)


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
