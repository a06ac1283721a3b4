"""Directories that hold segments, and the removal of what dead coordinators left in them.

A coordinator keeps its segments on each mount in one private directory, locked
with ``flock`` for life. The kernel frees the lock with the process, however it
dies, so a directory of our pattern, owned by us and with a free lock, belongs to
nobody any more. Its files can be unlinked at any time: who still maps one keeps
reading, and the pages go with the last mapping.

Nothing else is touched: what does not look like ours is left alone and reported.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from hugepool_common import paths
from hugepool_common.errors import DetachedError, NotPermittedError
from hugepool_common.pages import MOUNT_VARIABLE

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What a sweep removed."""

    count: int
    """Segment files."""
    nbytes: int
    """Bytes of pages that they held."""
    left: tuple[str, ...] = ()
    """Paths in dead directories that are not ours to remove."""


class SegmentDirectories:
    """One private, locked directory on every mount that segments are made on.

    Parameters
    ----------
    group
        Group id whose members may read segments; the directories are then 0710,
        otherwise 0700.

    Notes
    -----
    Methods may be called from any thread. A context manager that closes.
    """

    def __init__(self, *, group: int | None = None) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._open: dict[str, tuple[int, str]] = {}
        self._closed = False

    def on(self, mount_path: str) -> tuple[int, str]:
        """The directory on a mount, made at the first call.

        Returns
        -------
        dir_fd : int
            Open and locked until :meth:`close`.
        dir_path : str
            Its absolute path.

        Raises
        ------
        OSError
            It cannot be made there.
        NotPermittedError
            The group may not be given to it.
        """
        with self._lock:
            if self._closed:
                raise DetachedError("the segment directories are closed")
            if mount_path not in self._open:
                self._open[mount_path] = self._make(mount_path)
            return self._open[mount_path]

    def sweep(self, mount_paths: Iterable[str]) -> Reclaimed:
        """Remove what coordinators of this user left that are dead.

        Parameters
        ----------
        mount_paths
            Where to look; ``$HUGEPOOL_MOUNT`` is looked at too. A place that cannot
            be read is passed over.
        """
        preferred = os.environ.get(MOUNT_VARIABLE)
        places = dict.fromkeys([*mount_paths, *([preferred] if preferred else [])])
        count = nbytes = 0
        left: list[str] = []
        for place in places:
            for name in _names(place):
                if paths.segment_directory_owner(name) == os.geteuid():
                    found = _reclaim(os.path.join(place, name))
                    count, nbytes = count + found.count, nbytes + found.nbytes
                    left += found.left
        return Reclaimed(count, nbytes, tuple(left))

    def close(self) -> None:
        """Unlink every segment of ours and its directory. Mapped segments stay readable."""
        with self._lock:
            self._closed = True
            opened, self._open = self._open, {}
        for dir_fd, dir_path in opened.values():
            try:
                _empty(dir_fd, dir_path)
                _remove(dir_path)
            finally:
                os.close(dir_fd)

    def __enter__(self) -> SegmentDirectories:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else ", ".join(sorted(self._open)) or "none yet"
        return f"<SegmentDirectories {state}>"

    def _make(self, mount_path: str) -> tuple[int, str]:
        for _ in range(_ATTEMPTS):
            name = paths.segment_directory_name(os.geteuid(), secrets.token_hex(8))
            path = os.path.join(mount_path, name)
            os.mkdir(path, 0o700)
            # Between mkdir and flock another coordinator's sweep may take the
            # directory for a dead one. It then holds the lock, or has removed the
            # directory that we open or lock: so look again once we hold the lock.
            try:
                fd = os.open(path, _DIRECTORY)
            except FileNotFoundError:
                continue
            if _locked(fd) and _still(path, fd):
                try:
                    self._admit_group(fd, path)
                except BaseException:
                    _remove(path)
                    os.close(fd)
                    raise
                return fd, path
            os.close(fd)
        raise OSError(errno.EAGAIN, "segment directories are removed as soon as made", mount_path)

    def _admit_group(self, fd: int, path: str) -> None:
        if self._group is None:
            return
        try:
            os.fchown(fd, -1, self._group)
        except PermissionError:
            raise NotPermittedError(
                f"segments cannot be given to group {self._group}",
                where=path,
                remedy=f"run the coordinator as a member of group {self._group}",
            ) from None
        os.fchmod(fd, 0o710)  # a member who could open it could hold its lock


def _reclaim(path: str) -> Reclaimed:
    """Remove one directory if its coordinator is dead."""
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError:
        return Reclaimed(0, 0)  # removed meanwhile, a symbolic link, or not ours to open
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            return Reclaimed(0, 0, (path,))
        # The lock is held while removing, so of two sweeps only one acts.
        if not _locked(fd) or not _still(path, fd):
            return Reclaimed(0, 0)
        found = _empty(fd, path)
        if not found.left:
            _remove(path)
        return found
    finally:
        os.close(fd)


def _empty(dir_fd: int, dir_path: str) -> Reclaimed:
    count = nbytes = 0
    left: list[str] = []
    for name in os.listdir(dir_fd):
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not (ours and paths.is_segment_file(name)):
                left.append(os.path.join(dir_path, name))
                continue
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            continue
        count += 1
        nbytes += status.st_blocks * 512
    return Reclaimed(count, nbytes, tuple(left))


def _remove(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError as error:
        # Something of a stranger is in it, or somebody cleaned up before us.
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EROFS):
            raise


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still(path: str, fd: int) -> bool:
    """Whether the path still is the directory that is open."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _names(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []
