"""The only module that builds file names.

The runtime directory of one coordinator is the first of ``$HUGEPOOL_RUNTIME_DIR``,
``/run/hugepool`` for root, ``$XDG_RUNTIME_DIR/hugepool``, ``/tmp/hugepool-<uid>``
(0700, or 0710 with a group)::

    hugepool.sock                                   its socket
    coordinator                                     its record: epoch, store
    arrays/<segment id, 16 hex digits>.manifest     one per array
    tokens/<32 hex digits>                          one per session, locked by its process
    quarantine/                                     records that were found damaged

Segments lie apart from it, in one private directory per coordinator and mount::

    <mount>/hugepool-<uid>-<store>/<segment id, 16 hex digits>.segment
    <mount>/hugepool-<uid>-<store>/owner:run:hugepool

The directory is locked by its coordinator for life, so what a dead one left is
recognised by the free lock, and a person who cleans ``/dev/shm`` sees whose it is.
The empty file ``owner...`` names the runtime directory (``/`` written as ``:``) of a
coordinator whose successor will come for the segments. It is no symbolic link,
because hugetlbfs refuses them (EINVAL), and a byte of content would take a huge page.
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
COORDINATOR_NAME = "coordinator"
RENAMES_NAME = "renames"
"""Beside records that are being put in their places together: which."""
_SERVICE_DIRECTORY = "/run/hugepool"
_SOCKET_PATH_LIMIT = 107  # sun_path less its terminating zero

_SEGMENT_DIRECTORY = re.compile(r"hugepool-([0-9]+)-([0-9a-f]{16})")
_SEGMENT_FILE = re.compile(r"(\.tmp-)?([0-9a-f]{16}|[0-9a-f]{8})\.segment")
_MANIFEST_FILE = re.compile(r"([0-9a-f]{16})\.manifest")
_TOKEN = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = ".tmp-"
_OWNER_MARK = "owner:"


def runtime_directory(chosen: str = "") -> str:
    """The runtime directory of this user's coordinator; one that was chosen goes first."""
    chosen = chosen or os.environ.get(RUNTIME_VARIABLE, "")
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


def default_addresses(chosen: str = "") -> list[str]:
    """Where a local coordinator may listen: this user's directory, then the service's.

    Parameters
    ----------
    chosen
        The runtime directory that was chosen, if one was: the only place then.
    """
    found = [address_of(runtime_directory(chosen))]
    service = service_address()
    if service not in found and not chosen and RUNTIME_VARIABLE not in os.environ:
        found.append(service)
    return found


def manifests_path(directory: str) -> str:
    """Where in a runtime directory the manifests are."""
    return os.path.join(directory, "arrays")


def manifest_name(segment_id: int) -> str:
    """Name of a segment's manifest."""
    return f"{segment_id:016x}.manifest"


def manifest_segment(name: str) -> int | None:
    """The segment id in a manifest's name, or None if it is no such name."""
    match = _MANIFEST_FILE.fullmatch(name)
    return int(match[1], 16) if match else None


def tokens_path(directory: str) -> str:
    """Where in a runtime directory the tokens of sessions are."""
    return os.path.join(directory, "tokens")


def is_token(name: str) -> bool:
    """Whether a token may have this name."""
    return _TOKEN.fullmatch(name) is not None


def quarantine_path(directory: str) -> str:
    """Where in a runtime directory damaged records are put."""
    return os.path.join(directory, "quarantine")


def unfinished_name(name: str) -> str:
    """What a record's file is called while it is written."""
    return _UNFINISHED + name


def is_unfinished_manifest(name: str) -> bool:
    """Whether a coordinator was writing a file beside the manifests when it was killed."""
    last = name.removeprefix(_UNFINISHED)
    return last != name and bool(last == RENAMES_NAME or _MANIFEST_FILE.fullmatch(last))


def segment_directory_name(uid: int, store: str) -> str:
    """Name of a coordinator's segment directory; `store` is 16 hex digits."""
    return f"hugepool-{uid}-{store}"


def segment_directory_owner(name: str) -> int | None:
    """The uid in a segment directory's name, or None if it is no such name."""
    match = _SEGMENT_DIRECTORY.fullmatch(name)
    return int(match[1]) if match else None


def segment_directory_store(name: str) -> str | None:
    """The store in a segment directory's name, or None if it is no such name."""
    match = _SEGMENT_DIRECTORY.fullmatch(name)
    return match[2] if match else None


def owner_mark_name(directory: str) -> str:
    """Name of the empty file that tells whose a segment directory is: a runtime directory."""
    escaped = directory.replace("%", "%25").replace(":", "%3A")
    return _OWNER_MARK + escaped.removeprefix("/").replace("/", ":")


def owner_mark_path(name: str) -> str | None:
    """The runtime directory that a file's name tells, or None if it is no such name."""
    if not name.startswith(_OWNER_MARK):
        return None
    escaped = name.removeprefix(_OWNER_MARK).replace(":", "/")
    return "/" + escaped.replace("%3A", ":").replace("%25", "%")


def segment_file_name(segment_id: int) -> str:
    """Name of a segment's file."""
    return f"{segment_id:016x}.segment"


def unpublished_file_name(segment_id: int) -> str:
    """Name of a segment not yet published, on file systems without O_TMPFILE."""
    return unfinished_name(segment_file_name(segment_id))


def is_segment_file(name: str) -> bool:
    """Whether a file in a segment directory is ours to remove."""
    return _SEGMENT_FILE.fullmatch(name) is not None


def file_segment(name: str) -> int | None:
    """The segment id in the name of a published segment's file; None for other files."""
    match = _SEGMENT_FILE.fullmatch(name)
    return int(match[2], 16) if match and not match[1] else None


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


def is_still(path: str, fd: int) -> bool:
    """Whether the path still is the directory that is open.

    Raises
    ------
    OSError
        That cannot be seen.
    """
    try:
        there = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(fd))
