"""Files that hold one record each: written in one step, read with care."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hugepool_common import paths
from hugepool_common.errors import HugepoolError, NotEnoughMemoryError, NotPermittedError
from hugepool_server.records import MAX_RECORD_BYTES, DamagedRecordError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO under the name must not hold us.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def replace_file(dir_fd: int, name: str, data: bytes) -> None:
    """Put these bytes under a name in one step: who opens it finds the old or the new ones.

    Raises
    ------
    OSError
        All is as before.
    """
    unfinished = paths.unfinished_name(name)
    try:
        fd = os.open(unfinished, _CREATE, 0o600, dir_fd=dir_fd)
    except FileExistsError:  # of a write that failed and could not be undone
        os.unlink(unfinished, dir_fd=dir_fd)
        fd = os.open(unfinished, _CREATE, 0o600, dir_fd=dir_fd)
    try:
        try:
            written = 0
            while written < len(data):
                written += os.write(fd, data[written:])
        finally:
            os.close(fd)
        os.rename(unfinished, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=dir_fd)
        raise


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
def opened_directory(path: str) -> Iterator[int]:
    """The descriptor of a directory that is there, for as long as the context lasts."""
    fd = os.open(path, _DIRECTORY)
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
    except OSError as error:
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
