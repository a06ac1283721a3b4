"""The runtime directory: one coordinator owns it, by a lock that ends with the process."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress

from hugepool_common.errors import CoordinatorRunningError, NotPermittedError
from hugepool_common.paths import (
    COORDINATOR_NAME,
    SOCKET_NAME,
    is_still,
    is_token,
    manifests_path,
    open_private_directory,
    quarantine_path,
    socket_path,
    tokens_path,
    unfinished_name,
)
from hugepool_server.record_files import opened_directory

_HERE = ""
"""In place of a runtime directory's path: names relative to its descriptor."""

_COORDINATORS = frozenset(
    [
        *(SOCKET_NAME, COORDINATOR_NAME, unfinished_name(COORDINATOR_NAME)),
        *(manifests_path(_HERE), tokens_path(_HERE), quarantine_path(_HERE)),
    ]
)
"""What coordinators make in a runtime directory."""


class RuntimeDirectory:
    """Own a runtime directory from construction to :meth:`close`.

    The lock is on the directory itself: a lock file could be unlinked, and a
    second ``bind`` of an ipc socket would silently steal it from the first.

    A directory can be moved away or removed while it is locked, and another coordinator
    own the next one at its path. So whatever is done here later goes by :attr:`fd`.

    Attributes
    ----------
    path
        Where it was.
    fd
        Its descriptor, for as long as it is owned.

    Raises
    ------
    CoordinatorRunningError
        Another process holds the lock.
    NotPermittedError
        The directory is not private to this user, cannot be made, or cannot or should not be
        given to the group.
    """

    def __init__(self, path: str, *, mode: int = 0o700, group: int | None = None) -> None:
        self.path = path
        self.fd, self._made = self._own(path, mode)
        if group is not None:
            try:
                self._admit(group, mode)
            except BaseException:
                self.close(keep=True)
                raise

    def _admit(self, group: int, mode: int) -> None:
        """Let a group enter. Who made the directory said whom it lets in: it may be /run itself."""
        status = os.fstat(self.fd)
        had = stat.S_IMODE(status.st_mode)
        enters = stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH
        if not self._made and had & enters:
            return
        # Of an earlier coordinator, for another group or none, if there is nothing else in it.
        if not self._made and not _COORDINATORS.issuperset(os.listdir(self.fd)):
            raise NotPermittedError(
                f"the runtime directory holds other things too, and group {group} may not enter it",
                needed=f"group {group}, mode {mode:04o}",
                had=f"group {status.st_gid}, mode {had:04o}",
                where=self.path,
                remedy="choose a directory that is not there yet, or let the group in: "
                f"chgrp {group} {self.path} && chmod g=x {self.path}",
            )
        try:
            os.fchown(self.fd, -1, group)
            os.fchmod(self.fd, mode)
        except PermissionError:
            raise NotPermittedError(
                f"cannot give {self.path} to group {group}",
                remedy="run the coordinator as a member of the group",
            ) from None

    @staticmethod
    def _own(path: str, mode: int) -> tuple[int, bool]:
        while True:
            made = not os.path.isdir(path)
            try:
                fd = open_private_directory(path, mode)
            except OSError as error:
                if isinstance(error, NotPermittedError):
                    raise
                raise NotPermittedError(
                    f"cannot make the runtime directory: {error.strerror}",
                    where=path,
                    remedy="set HUGEPOOL_RUNTIME_DIR to a directory of yours",
                ) from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EWOULDBLOCK:
                    raise
                raise CoordinatorRunningError(
                    "another coordinator is running",
                    where=path,
                    remedy="connect to it, or set HUGEPOOL_RUNTIME_DIR",
                ) from None
            # Between our open and our lock its owner may have removed the
            # directory on its way out; then the lock is on a ghost.
            if is_still(path, fd):
                return fd, made
            os.close(fd)

    @property
    def socket(self) -> str:
        """Path of the coordinator's socket."""
        return socket_path(self.path)

    @property
    def is_there(self) -> bool:
        """Whether its path still leads to it.

        Raises
        ------
        OSError
            That cannot be seen.
        """
        return is_still(self.path, self.fd)

    def close(self, *, keep: bool = False) -> None:
        """Remove the socket, and the directory if this process made it, then unlock.

        Parameters
        ----------
        keep
            Leave the records to the next coordinator. Otherwise they go too, unless
            there are manifests: those are of arrays that live.
        """
        if self.fd < 0:
            return
        with suppress(OSError):  # never bound, or not ours to remove
            os.unlink(socket_path(_HERE), dir_fd=self.fd)
        if not keep:
            self._remove_records()
        if self._made:
            with suppress(OSError):  # somebody keeps files there
                if self.is_there:
                    os.rmdir(self.path)
        os.close(self.fd)
        self.fd = -1

    def _remove_records(self) -> None:
        try:
            os.rmdir(manifests_path(_HERE), dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError:  # manifests
            return
        with suppress(OSError):
            tokens = tokens_path(_HERE)
            with opened_directory(tokens, dir_fd=self.fd) as tokens_fd:
                for name in filter(is_token, os.listdir(tokens_fd)):
                    os.unlink(name, dir_fd=tokens_fd)
            os.rmdir(tokens, dir_fd=self.fd)
        with suppress(OSError):
            os.rmdir(quarantine_path(_HERE), dir_fd=self.fd)
        # Last: as long as there are numbers to be seen, none of them is given again.
        with suppress(OSError):
            os.unlink(COORDINATOR_NAME, dir_fd=self.fd)
