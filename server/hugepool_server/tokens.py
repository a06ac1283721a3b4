"""Tokens: files whose POSIX lock says that the process behind a session lives.

The coordinator makes one file for each session, under a name that cannot be
guessed, and tells it to that client alone, which locks it for life. The kernel
keeps such a lock for the process, not for its children and not for a
descriptor, and frees it however the process ends; ``F_GETLK`` names the holder.

The coordinator looks (``F_GETLK``) and never locks: a lock of its own would hide
the client's from itself. What stands in the file is for the next coordinator,
which finds in it whose session this was.

Over TCP there is no process to lock anything: the name of the file is a secret that the client
goes on by, and the file keeps the session for the next coordinator, whoever lives.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from hugepool_common import paths
from hugepool_common.errors import HugepoolError
from hugepool_server import records
from hugepool_server.processes import start_ticks
from hugepool_server.record_files import refusals
from hugepool_server.records import Identity, SessionRecord

log = logging.getLogger("hugepoold")

_FLOCK = struct.Struct("@hhqqi0q")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RECORD_LIMIT = 1 << 16


class Tokens:
    """The tokens of one runtime directory.

    Parameters
    ----------
    runtime_directory
        Owned by this coordinator.
    boot_id
        Of the running kernel.
    group
        Numeric gid whose members lock tokens too; they can open a name that they
        were told, and list none.

    Raises
    ------
    NotPermittedError
        The directory of the tokens is not ours.
    """

    def __init__(self, runtime_directory: str, boot_id: str, *, group: int | None = None) -> None:
        self._path = paths.tokens_path(runtime_directory)
        self._boot_id = boot_id
        self._group = group
        self._directory = paths.open_private_directory(self._path)
        if group is not None:
            os.fchown(self._directory, -1, group)
            os.fchmod(self._directory, 0o710)
        self._records: dict[int, SessionRecord] = {}
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<Tokens: {len(self._records)} in {self._path}>"

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to the directory of the tokens.

        Raises
        ------
        OSError
            That cannot be seen.
        """
        return paths.is_still(self._path, self._directory)

    def make(self, session: int, identity: Identity, client: str, lease_ns: int = 0) -> str:
        """Make the token of a session.

        Parameters
        ----------
        session
            Number of a session without a token.
        identity, client, lease_ns
            Whose it is and, over TCP, how long it lives unheard; for the next coordinator.

        Returns
        -------
        str
            Its absolute path, for that client alone.

        Raises
        ------
        NotPermittedError, NotEnoughMemoryError
            It cannot be made; nothing is left.
        """
        record = SessionRecord(
            session=session,
            token=secrets.token_hex(16),
            identity=identity,
            start_ticks=start_ticks(identity.pid) if identity.is_local else 0,
            client=client,
            boot_id=self._boot_id,
            lease_ns=lease_ns,
        )
        with refusals(self._path):
            self._descriptors[session] = self._written(record)
        self._records[session] = record
        return os.path.join(self._path, record.token)

    def _written(self, record: SessionRecord) -> int:
        fd = os.open(record.token, _MAKE, 0o600, dir_fd=self._directory)
        try:
            try:
                _write(fd, records.encode(record))
                if self._group is not None and record.identity.is_local:
                    os.fchown(fd, -1, self._group)
                    os.fchmod(fd, 0o660)
            finally:
                os.close(fd)  # nobody knows the name yet, so no lock is lost
            return os.open(record.token, _LOOK, dir_fd=self._directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(record.token, dir_fd=self._directory)
            raise

    def check(self, session: int) -> bool | None:
        """Whether the session's own process holds the lock on its token; None if nobody knows.

        Where that process is in a pid namespace that is not ours to see into, its
        pid and the holder's are both told as 0, and any holder will do.
        """
        record = self._records.get(session)
        if record is None:
            return False
        try:
            return _is_held(self._descriptors[session], record.identity.pid)
        except OSError as error:
            log.warning("cannot look at the lock of session %d: %s", session, error.strerror)
            return None

    def name_of(self, session: int) -> str:
        """Name of a session's token, or an empty string."""
        record = self._records.get(session)
        return record.token if record else ""

    def knows(self, name: str) -> bool:
        """Whether a session has the token of this name."""
        return any(one.token == name for one in self._records.values())

    def forget(self, session: int) -> None:
        """Remove the token of a session that is closed."""
        record = self._records.pop(session, None)
        if record is None:
            return
        self._unlink(record.token)
        os.close(self._descriptors.pop(session))

    def read(self) -> tuple[SessionRecord, ...]:
        """Take over the tokens of an earlier coordinator.

        Returns
        -------
        tuple of SessionRecord
            Of the sessions whose process lives and holds its lock, and of those over TCP. All
            other tokens are removed; what is no token is left alone.

        Raises
        ------
        OSError
            One cannot be looked at, and its session may live; it is as it was.
        """
        for name in self._names():
            try:
                fd = os.open(name, _LOOK, dir_fd=self._directory)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
                    raise
                log.warning("left alone, for it is no token: %s", name)
                continue
            try:
                record = self._living(fd, name)
            except BaseException:
                os.close(fd)
                raise
            if record is None:
                self._unlink(name)
                os.close(fd)
            else:
                self._records[record.session] = record
                self._descriptors[record.session] = fd
        return tuple(self._records.values())

    def close(self, *, keep: bool = False) -> None:
        """Remove all tokens and their directory, or leave them to the next coordinator."""
        for fd in self._descriptors.values():
            os.close(fd)
        self._descriptors.clear()
        self._records.clear()
        if not keep:
            for name in self._names():
                self._unlink(name)
            with suppress(OSError):  # somebody keeps files there
                if self.is_there:  # else it is another coordinator's
                    os.rmdir(self._path)
        os.close(self._directory)

    def _names(self) -> Iterator[str]:
        for name in os.listdir(self._directory):
            if paths.is_token(name):
                yield name

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except OSError as error:
            # Not the whole of it: over TCP the name is a secret.
            log.warning("cannot remove the token %s...: %s", name[:8], error.strerror)

    def _living(self, fd: int, name: str) -> SessionRecord | None:
        """The record in a token, if it is whole, of this boot, and its process may live."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        try:
            record = records.decode(SessionRecord, os.pread(fd, _RECORD_LIMIT, 0))
        except (HugepoolError, ValueError) as error:
            log.warning("the token %s is damaged: %s", name, error)
            return None
        pid = record.identity.pid
        known = (
            record.token == name
            and record.boot_id == self._boot_id
            and record.session not in self._records
        )
        if not record.identity.is_local:  # its lease begins anew, and tells
            return record if known else None
        living = known and _is_held(fd, pid)
        # The lock is proof of life; when it began tells whether it is the same life, where
        # that can be seen.
        started = start_ticks(pid)
        same = 0 in (started, record.start_ticks) or started == record.start_ticks
        return record if living and same else None


def _write(fd: int, content: bytes) -> None:
    if os.write(fd, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_held(fd: int, pid: int) -> bool:
    found = fcntl.fcntl(fd, fcntl.F_GETLK, _WHOLE_FILE)
    kind, _, _, _, holder = _FLOCK.unpack(found)
    return kind == fcntl.F_WRLCK and (holder == pid or pid == 0)
