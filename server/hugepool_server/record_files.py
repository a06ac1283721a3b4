"""Files that hold one record each: written in one step, read with care."""

from __future__ import annotations

import errno
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from hugepool_common import paths
from hugepool_common.errors import HugepoolError, NotEnoughMemoryError, NotPermittedError
from hugepool_server.records import MAX_RECORD_BYTES, DamagedRecordError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO under the name must not hold us.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_RENAME = re.compile(r"(\S+) ([0-9a-f]{8})")
_UNFINISHED_LIST = paths.unfinished_name(paths.RENAMES_NAME)


def replace_file(dir_fd: int, name: str, data: bytes) -> None:
    """Put these bytes under a name in one step: who opens it finds the old or the new ones.

    Raises
    ------
    OSError
        All is as before.
    """
    replace_files(dir_fd, {name: data})


def replace_files(dir_fd: int, files: Mapping[str, bytes]) -> None:
    """Put bytes under several names, as one step also for who is killed within it.

    All are written before the first is put in its place, and a list of them, so that the next
    start can end what was begun (:func:`finish_renames`).

    Raises
    ------
    OSError
        All is as before, unless it was a rename that the system refused.
    """
    unfinished = {name: paths.unfinished_name(name) for name in files}
    written = dict(files)
    if len(files) > 1:
        written[paths.RENAMES_NAME] = _list_of(files)
        # The list goes first: from then on the others are to follow.
        unfinished = {paths.RENAMES_NAME: _UNFINISHED_LIST} | unfinished
    try:
        for name, data in written.items():
            _write_new(dir_fd, unfinished[name], data)
        for name, beside in unfinished.items():
            os.rename(beside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        for name in (paths.RENAMES_NAME, *unfinished.values()):
            with suppress(OSError):
                os.unlink(name, dir_fd=dir_fd)
        raise
    if len(files) > 1:
        with suppress(OSError):  # what it lists is no longer there
            os.unlink(paths.RENAMES_NAME, dir_fd=dir_fd)


def finish_renames(dir_fd: int) -> int:
    """End what a killed process had begun to put in place; how many files that still were.

    Raises
    ------
    OSError
        It cannot be looked at or ended; the next start will find it again.
    """
    try:
        files = _listed(read_file(dir_fd, paths.RENAMES_NAME))
    except FileNotFoundError:
        return 0
    except DamagedRecordError:
        return 0  # it is left alone, as whatever is not ours
    count = 0
    for name, crc in files:
        beside = paths.unfinished_name(name)
        try:
            data = read_file(dir_fd, beside)
        except (FileNotFoundError, DamagedRecordError):
            continue  # it is in its place
        if zlib.crc32(data) == crc:  # else it was begun later
            os.rename(beside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            count += 1
    os.unlink(paths.RENAMES_NAME, dir_fd=dir_fd)
    return count


def _list_of(files: Mapping[str, bytes]) -> bytes:
    lines = "".join(f"{name} {zlib.crc32(data):08x}\n" for name, data in files.items()).encode()
    return b"hugepool-renames 1 %08x\n" % zlib.crc32(lines) + lines


def _listed(data: bytes) -> list[tuple[str, int]]:
    """Manifests and the CRC-32 of what they are to hold; none if the list is not whole."""
    header, _, lines = data.partition(b"\n")
    if header != b"hugepool-renames 1 %08x" % zlib.crc32(lines):
        return []
    found = map(_RENAME.fullmatch, lines.decode("ascii", "replace").splitlines())
    return [
        (match[1], int(match[2], 16))
        for match in found
        if match is not None and paths.manifest_segment(match[1]) is not None
    ]


def _write_new(dir_fd: int, name: str, data: bytes) -> None:
    try:
        fd = os.open(name, _CREATE, 0o600, dir_fd=dir_fd)
    except FileExistsError:  # of a write that failed and could not be undone
        os.unlink(name, dir_fd=dir_fd)
        fd = os.open(name, _CREATE, 0o600, dir_fd=dir_fd)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
    finally:
        os.close(fd)


def read_file(dir_fd: int, name: str) -> bytes:
    """The bytes of a record's file, as far as a record may be long.

    Raises
    ------
    DamagedRecordError
        It is no file of this user.
    OSError
        It cannot be read.
    """
    try:
        fd = os.open(name, _READ, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
            raise
        raise DamagedRecordError("the record is no regular file", where=name) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise DamagedRecordError("the record is no regular file of this user", where=name)
        data = b""
        while len(data) <= MAX_RECORD_BYTES and (chunk := os.read(fd, MAX_RECORD_BYTES)):
            data += chunk
        return data
    finally:
        os.close(fd)


@contextmanager
def opened_directory(path: str, *, dir_fd: int | None = None) -> Iterator[int]:
    """The descriptor of a directory that is there, for as long as the context lasts."""
    fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def private_directory(path: str) -> Iterator[int]:
    """The same of one that is made if it is missing, and refused if others may write to it."""
    fd = paths.open_private_directory(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def refusals(path: str) -> Iterator[None]:
    """Say what to do about a runtime directory that cannot be read or written."""
    try:
        yield
    except HugepoolError:
        raise
    except FileNotFoundError as error:
        raise removed(path) from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise NotEnoughMemoryError(
                f"the runtime directory cannot be used: {error.strerror}",
                where=path,
                remedy="end clients, or start the coordinator with a higher RLIMIT_NOFILE",
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise NotEnoughMemoryError(
                "there is no room in the runtime directory",
                where=path,
                remedy=f"make room there, or choose another with {paths.RUNTIME_VARIABLE}",
            ) from error
        raise NotPermittedError(
            f"cannot use the runtime directory: {error.strerror}",
            where=path,
            remedy=f"choose another with {paths.RUNTIME_VARIABLE}",
        ) from error


def removed(path: str) -> NotPermittedError:
    """The error of a directory of records that is not where it was."""
    return NotPermittedError(
        "the directory was moved or removed while the coordinator runs",
        where=path,
        remedy="take a snapshot of what is to be kept, and start the coordinator anew",
    )
