"""The only module that builds file names.

Runtime directory (0700, or 0750 with a group): one coordinator's socket, made
under the first of ``$HUGEPOOL_RUNTIME_DIR``, ``/run/hugepool`` for root,
``$XDG_RUNTIME_DIR/hugepool``, ``/tmp/hugepool-<uid>``.

Segments lie apart from it, in one private directory per coordinator and mount::

    <mount>/hugepool-<uid>-<instance>/<segment id, 8 hex digits>.segment

The directory is locked by its coordinator for life, so what a dead one left is
recognised by the free lock, and a person who cleans ``/dev/shm`` sees whose it is.
"""

from __future__ import annotations

import os
import re
import stat

from hugepool_common.errors import InvalidSpecError, NotPermittedError

ADDRESS_VARIABLE = "HUGEPOOL_ADDRESS"
RUNTIME_VARIABLE = "HUGEPOOL_RUNTIME_DIR"
PROGRAM_VARIABLE = "HUGEPOOL_PROGRAM"
"""What ``hugepool serve`` tells ``hugepoold`` to call itself in its help and errors."""

SOCKET_NAME = "hugepool.sock"
_SERVICE_DIRECTORY = "/run/hugepool"
_SOCKET_PATH_LIMIT = 107  # sun_path less its terminating zero

_SEGMENT_DIRECTORY = re.compile(r"hugepool-([0-9]+)-([0-9a-f]{16})")
_SEGMENT_FILE = re.compile(r"(?:\.tmp-)?[0-9a-f]{8}\.segment")


def runtime_directory() -> str:
    """The runtime directory of this user's coordinator."""
    chosen = os.environ.get(RUNTIME_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return _SERVICE_DIRECTORY
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        return os.path.join(session, "hugepool")
    return f"/tmp/hugepool-{os.geteuid()}"


def socket_path(directory: str) -> str:
    """The socket of the coordinator that owns a runtime directory.

    Raises
    ------
    InvalidSpecError
        The path is longer than a Unix socket's may be.
    """
    path = os.path.join(directory, SOCKET_NAME)
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        raise InvalidSpecError(
            "the path of the coordinator's socket is too long",
            needed=f"at most {_SOCKET_PATH_LIMIT} bytes",
            had=f"{len(os.fsencode(path))}",
            where=path,
            remedy=f"set {RUNTIME_VARIABLE} to a shorter directory",
        )
    return path


def socket_fits(directory: str) -> bool:
    """Whether the socket of a runtime directory has a path that a Unix socket may have."""
    try:
        socket_path(directory)
    except InvalidSpecError:
        return False
    return True


def address_of(directory: str) -> str:
    """The ZeroMQ address of the coordinator that owns a runtime directory."""
    return "ipc://" + socket_path(directory)


def service_address() -> str:
    """The address of the machine's service, in a directory that only root can make."""
    return address_of(_SERVICE_DIRECTORY)


def default_addresses() -> list[str]:
    """Where a local coordinator may listen: this user's directory, then the service's."""
    found = [address_of(runtime_directory())]
    service = service_address()
    if service not in found and RUNTIME_VARIABLE not in os.environ:
        found.append(service)
    return found


def segment_directory_name(uid: int, instance: str) -> str:
    """Name of a coordinator's segment directory; `instance` is 16 hex digits."""
    return f"hugepool-{uid}-{instance}"


def segment_directory_owner(name: str) -> int | None:
    """The uid in a segment directory's name, or None if it is no such name."""
    match = _SEGMENT_DIRECTORY.fullmatch(name)
    return int(match[1]) if match else None


def segment_file_name(segment_id: int) -> str:
    """Name of a segment's file."""
    return f"{segment_id:08x}.segment"


def unpublished_file_name(segment_id: int) -> str:
    """Name of a segment not yet published, on file systems without O_TMPFILE."""
    return f".tmp-{segment_id:08x}.segment"


def is_segment_file(name: str) -> bool:
    """Whether a file in a segment directory is ours to remove."""
    return _SEGMENT_FILE.fullmatch(name) is not None


def open_private_directory(path: str, mode: int = 0o700) -> int:
    """Make or open a directory that only we (and, by `mode`, our group) can use.

    Returns
    -------
    int
        Its descriptor.

    Raises
    ------
    NotPermittedError
        It is a symbolic link, belongs to another user, or others may write to it.
    OSError
        It cannot be made.
    """
    try:
        os.mkdir(path, 0o700)
        made = True
    except FileExistsError:
        made = False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NotPermittedError(
            f"not a directory of ours: {error.strerror}",
            where=path,
            remedy=f"choose another with {RUNTIME_VARIABLE}",
        ) from None
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or (
        not made and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        os.close(fd)
        raise NotPermittedError(
            "the directory is not private to this user",
            needed=f"owner {os.geteuid()}, no write for others",
            had=f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            where=path,
            remedy=f"choose another with {RUNTIME_VARIABLE}",
        )
    if made and mode != 0o700:
        os.fchmod(fd, mode)
    return fd
