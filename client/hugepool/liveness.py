"""The token of a session: a file whose lock says that this process lives.

The coordinator makes the file and tells its path to this client alone; we hold a POSIX
write lock on it for as long as the session lasts. The kernel lets go of that lock when
the process dies, and not before: no matter how long it is stopped, and never because of
a forked child, which inherits the descriptor but not the lock. A coordinator that was
restarted sees by the same lock which sessions of its predecessor still live.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from hugepool_common.errors import NotEnoughMemoryError, NotPermittedError


class Token:
    """The locked token of one session.

    Parameters
    ----------
    path
        As the coordinator told it.
    owner_uid
        The coordinator's user.

    Attributes
    ----------
    name
        Of the file: what a session is taken up again by.

    Raises
    ------
    NotPermittedError
        There is no such file to be seen here, it is another user's, or it is locked.
    NotEnoughMemoryError
        This process has no descriptor left.

    Notes
    -----
    To close *any* descriptor of the file lets go of the lock, so this process must not
    open it a second time, not even to look at it.
    """

    def __init__(self, path: str, owner_uid: int) -> None:
        self.name = os.path.basename(path)
        try:
            # A device or a FIFO in its place must not make us wait.
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._fd = os.open(path, flags)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise NotEnoughMemoryError(
                    f"the token of this session cannot be opened: {error.strerror}",
                    where=path,
                    remedy="raise the number of file descriptors with: ulimit -n",
                ) from None
            raise NotPermittedError(
                f"the token of this session cannot be opened: {error.strerror}",
                where=path,
                remedy="let this process see the coordinator's whole runtime directory",
            ) from None
        try:
            self._check(path, owner_uid)
            self._lock(path)
        except BaseException:
            self.close()
            raise

    def _check(self, path: str, owner_uid: int) -> None:
        try:
            status = os.fstat(self._fd)
        except OSError as error:
            raise NotPermittedError(
                f"the token of this session cannot be looked at: {error.strerror}", where=path
            ) from None
        if not stat.S_ISREG(status.st_mode) or status.st_uid != owner_uid:
            raise NotPermittedError(
                "the token of this session is not the coordinator's",
                needed=f"a regular file of uid {owner_uid}",
                had=f"mode {status.st_mode:o} of uid {status.st_uid}",
                where=path,
            )

    def _lock(self, path: str) -> None:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NotPermittedError(
                f"the token of this session cannot be locked: {error.strerror}", where=path
            ) from None

    def close(self) -> None:
        """Let go of the lock, and so of the session. In a forked child: of nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
