"""File descriptors: how many there may be, what that allows, how many are in use.

libzmq ends the process when a connection arrives at an ipc socket while no
descriptor is free (``ipc_listener.cpp``), and no socket option bounds the number of
connections. So the coordinator takes all that it may have, promises no more
sessions than they are good for, and turns new ones away long before the last.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from hugepool_common.errors import HugepoolError, NotEnoughMemoryError

LEAST = 256
"""A coordinator with fewer cannot promise to survive a rush of connections."""

_OWN = 64
_OF_A_SESSION = 3  # its connection, its pidfd, its token
_HANDSHAKES = 4  # one in so many is left to connections that are not sessions yet
_FULL_PERCENT = 80


def raise_limit() -> int:
    """Take as many descriptors as this process may have.

    Returns
    -------
    int
        The limit.

    Raises
    ------
    HugepoolError
        It is below :data:`LEAST`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # then those that we have must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < LEAST:
        raise HugepoolError(
            "the coordinator may open too few files",
            needed=f"a limit of at least {LEAST} descriptors",
            had=str(limit),
            where="RLIMIT_NOFILE",
            remedy="ulimit -Hn 65536, or LimitNOFILE=65536 in its systemd unit",
        )
    return limit


def sessions_within(limit: int) -> int:
    """Sessions that so many descriptors are good for."""
    return max(1, (limit - limit // _HANDSHAKES - _OWN) // _OF_A_SESSION)


def open_count() -> int:
    """Descriptors that this process has open; 0 if that cannot be seen."""
    try:
        # Linux 6.2 and later tell the number as the directory's size, at no cost.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def is_full(limit: int) -> bool:
    """Whether so many of the descriptors are in use that no session should be added."""
    return open_count() * 100 > limit * _FULL_PERCENT


def full_error(limit: int) -> HugepoolError:
    """What a client is told that is turned away."""
    return NotEnoughMemoryError(
        "the coordinator has no descriptors left for another session",
        needed=f"less than {_FULL_PERCENT}% of {limit} in use",
        had=str(open_count()),
        remedy="end clients, or start the coordinator with a higher RLIMIT_NOFILE",
    )
