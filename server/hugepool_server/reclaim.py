"""Directories that hold a coordinator's segments, one on each mount.

A coordinator keeps its segments on each mount in one private directory, locked
with ``flock`` for life. The kernel frees the lock with the process, however it
dies: then the next coordinator of the same store takes the directory over, or, if
there is none to come, anybody's sweep removes it (:mod:`hugepool_server.remains`).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack

from hugepool_common import paths
from hugepool_common.errors import CoordinatorRunningError, DetachedError, NotPermittedError
from hugepool_common.kernel_files import read_kernel_file
from hugepool_common.pages import MOUNT_VARIABLE
from hugepool_common.paths import is_still
from hugepool_server.manifests import BOOT_ID_FILE
from hugepool_server.remains import (
    Reclaimed,
    is_ours,
    reclaim_directory,
    remove_directory,
    remove_segments,
    total,
    try_lock,
)

LOCK_PATIENCE_NS = 2_000_000_000
"""How long a directory of ours may be locked: by another's sweep, which soon lets go of it."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MARK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 16
_LOCK_INTERVAL_S = 0.01


class SegmentDirectories:
    """One private, locked directory on every mount that segments are made on.

    Parameters
    ----------
    store
        16 hex digits: the directories have the same names in every life of the
        coordinator, and one that is there already is taken over. None: random names,
        of this life only.
    owner
        With `store`: the runtime directory, which each directory is marked with.
    group
        Group id whose members may read segments; the directories are then 0710,
        otherwise 0700.
    made
        Called with the path of a directory before anything is in it; what it raises
        is raised.
    renewed
        Called with the path of a directory that was moved away or removed from outside
        when it is about to be replaced by another.

    Notes
    -----
    Methods may be called from any thread. A context manager that closes, and so
    removes everything: a durable coordinator that could not start calls
    ``close(keep=True)``.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        owner: str | None = None,
        group: int | None = None,
        made: Callable[[str], None] | None = None,
        renewed: Callable[[str], None] | None = None,
    ) -> None:
        self._name = store and paths.segment_directory_name(os.geteuid(), store)
        self._mark = paths.owner_mark_name(owner) if store and owner else None
        self._group = group
        self._made = made
        self._renewed = renewed
        self._lock = threading.Lock()
        self._open: dict[str, tuple[int, str]] = {}
        self._former: dict[int, str] = {}
        self._closed = False

    @property
    def group(self) -> int | None:
        """Group id whose members may read segments."""
        return self._group

    def on(self, mount_path: str) -> tuple[int, str]:
        """The directory on a mount, made or taken over at the first call, or if it is gone.

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
        CoordinatorRunningError
            Another process has locked it.
        """
        with self._lock:
            if self._closed:
                raise DetachedError("the segment directories are closed")
            opened = self._open.get(mount_path)
            if opened is None:
                self._open[mount_path] = self._new(mount_path)
            elif not is_still(opened[1], opened[0]):
                self._renew(opened)
            return self._open[mount_path]

    def gone(self) -> tuple[str, ...]:
        """The paths of directories that were moved away or removed since they were opened.

        Raises
        ------
        OSError
            That cannot be seen.
        """
        with self._lock:
            opened = dict(self._open.values())
        return tuple(path for dir_fd, path in opened.items() if not is_still(path, dir_fd))

    def adopt(self, dir_paths: Iterable[str]) -> tuple[str, ...]:
        """Open and lock what an earlier coordinator of the same store made.

        Returns
        -------
        tuple of str
            The paths that are not there any more (their mount is gone), or are no
            directories of this store.

        Raises
        ------
        CoordinatorRunningError
            Another process has locked one.
        OSError, NotPermittedError
            One cannot be opened, or not be given to the group.
        """
        missing = []
        with self._lock:
            for path in dir_paths:
                mount_path, name = os.path.split(path)
                if name != self._name:
                    missing.append(path)
                    continue
                if mount_path in self._open:
                    continue
                try:
                    self._open[mount_path] = self._reopened(path)
                except (FileNotFoundError, NotADirectoryError):
                    missing.append(path)
        return tuple(missing)

    def find(self, segment_path: str) -> int | None:
        """The descriptor of the directory of ours that a segment lies in; None if in none."""
        with self._lock:
            opened = {dir_path: dir_fd for dir_fd, dir_path in self._open.values()}
        return opened.get(os.path.dirname(segment_path))

    def prune(self, keep: Callable[[str], bool]) -> Reclaimed:
        """Remove the segment files in our directories that are not to be kept.

        Parameters
        ----------
        keep
            Told the path of a segment file, says whether to keep it.
        """
        with self._lock:
            opened = list(self._open.values())
        return total(
            remove_segments(dir_fd, dir_path, keep) for dir_fd, dir_path in dict(opened).items()
        )

    def sweep(
        self,
        mount_paths: Iterable[str],
        *,
        boot: str | None = None,
        keep: Container[str] = (),
    ) -> Reclaimed:
        """Remove what coordinators of this user left that are dead and have no successor.

        Parameters
        ----------
        mount_paths
            Where to look; ``$HUGEPOOL_MOUNT`` is looked at too. A place that cannot
            be read is passed over.
        boot
            Of the kernel; asked of it by default.
        keep
            Paths of segment files that are kept wherever they lie.

        Notes
        -----
        Directories that this object has open are not touched.
        """
        preferred = os.environ.get(MOUNT_VARIABLE)
        boot = boot or read_kernel_file(BOOT_ID_FILE).strip()
        places = dict.fromkeys([*mount_paths, *([preferred] if preferred else [])])
        return total(
            reclaim_directory(os.path.join(place, name), boot, keep)
            for place in places
            for name in _names(place)
            if paths.segment_directory_owner(name) == os.geteuid()
        )

    def close(self, *, keep: bool = False, spared: Container[int] = ()) -> None:
        """Unlink every segment of ours and its directory. Mapped segments stay readable.

        Parameters
        ----------
        keep
            Leave them to the next coordinator of the store, and only unlock them.
        spared
            Ids of segments that stay all the same, in their directories.
        """

        def is_spared(path: str) -> bool:
            return paths.file_segment(os.path.basename(path)) in spared

        with self._lock:
            self._closed = True
            opened, self._open = self._open, {}
            former, self._former = self._former, {}
        with ExitStack() as undo:  # one that cannot be removed keeps no other
            for dir_fd, dir_path in former.items():
                undo.callback(os.close, dir_fd)
                if not keep:  # it may only have been moved
                    undo.callback(remove_segments, dir_fd, dir_path, is_spared)
            for dir_fd, dir_path in dict(opened.values()).items():
                undo.callback(os.close, dir_fd)
                if not keep:
                    undo.callback(remove_directory, dir_fd, dir_path)
                    undo.callback(remove_segments, dir_fd, dir_path, is_spared)

    def __enter__(self) -> SegmentDirectories:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else ", ".join(sorted(self._open)) or "none yet"
        return f"<SegmentDirectories {state}>"

    def _new(self, mount_path: str) -> tuple[int, str]:
        return self._make(mount_path) if self._name is None else self._take(mount_path)

    def _renew(self, opened: tuple[int, str]) -> None:
        dir_fd, dir_path = opened
        if self._renewed is not None:
            self._renewed(dir_path)
        another = self._new(os.path.dirname(dir_path))
        # Not closed yet: another thread may be at making a file in it, and would find its
        # number to be something else.
        self._former[dir_fd] = dir_path
        for mount_path in [path for path, one in self._open.items() if one == opened]:
            self._open[mount_path] = another

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
            if try_lock(fd) and is_still(path, fd):
                try:
                    self._admit_group(fd, path)
                except BaseException:
                    remove_directory(fd, path)
                    os.close(fd)
                    raise
                return fd, path
            os.close(fd)
        raise OSError(errno.EAGAIN, "segment directories are removed as soon as made", mount_path)

    def _take(self, mount_path: str) -> tuple[int, str]:
        path = os.path.join(mount_path, self._name or "")
        for _ in range(_ATTEMPTS):
            fresh = _mkdir(path)
            try:
                fd = os.open(path, _DIRECTORY)
            except FileNotFoundError:  # a sweep took it for a dead one's, as in _make
                continue
            opened = self._opened_as(fd)
            if opened is not None:  # by another path of the same mount
                os.close(fd)
                return opened
            with ExitStack() as undo:
                undo.callback(os.close, fd)
                if not is_ours(fd):
                    raise PermissionError(errno.EPERM, "it belongs to another user", path)
                _lock_own(fd, path)
                if not is_still(path, fd):
                    continue
                if fresh:
                    undo.callback(remove_directory, fd, path)
                self._admit_group(fd, path)
                # Known before it is marked: a marked one that the coordinator's
                # record lacks would be waited for by all and taken up by nobody.
                if self._made is not None:
                    self._made(path)
                self._put_mark(fd)
                undo.pop_all()
                return fd, path
        raise OSError(errno.EAGAIN, "segment directories are removed as soon as made", mount_path)

    def _reopened(self, path: str) -> tuple[int, str]:
        fd = os.open(path, _DIRECTORY)
        with ExitStack() as undo:
            undo.callback(os.close, fd)
            if not is_ours(fd):
                raise FileNotFoundError(errno.ENOENT, "it belongs to another user", path)
            _lock_own(fd, path)
            if not is_still(path, fd):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._admit_group(fd, path)
            self._put_mark(fd)
            undo.pop_all()
        return fd, path

    def _opened_as(self, fd: int) -> tuple[int, str] | None:
        status = os.fstat(fd)
        same = (one for one in self._open.values() if os.path.samestat(os.fstat(one[0]), status))
        return next(same, None)

    def _put_mark(self, fd: int) -> None:
        """Name the owner in a directory, and nobody else."""
        if self._mark is None:
            return
        names = os.listdir(fd)
        if self._mark not in names:
            os.close(os.open(self._mark, _MARK, 0o600, dir_fd=fd))
        # The new mark is there before the old one goes: at no moment is it nobody's.
        for name in names:
            if name != self._mark and paths.owner_mark_path(name) is not None:
                os.unlink(name, dir_fd=fd)

    def _admit_group(self, fd: int, path: str) -> None:
        # Nobody but us may open it: who could, could hold its lock.
        mode = 0o700 if self._group is None else 0o710
        status = os.fstat(fd)
        if self._group is not None and status.st_gid != self._group:
            try:
                os.fchown(fd, -1, self._group)
            except PermissionError:
                raise NotPermittedError(
                    f"segments cannot be given to group {self._group}",
                    where=path,
                    remedy=f"run the coordinator as a member of group {self._group}",
                ) from None
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(fd, mode)


def _mkdir(path: str) -> bool:
    """Make a directory; False if there is one."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _lock_own(fd: int, path: str) -> None:
    """Lock a directory of our store."""
    deadline_ns = time.monotonic_ns() + LOCK_PATIENCE_NS
    while not try_lock(fd):
        if time.monotonic_ns() > deadline_ns:
            raise CoordinatorRunningError(
                "another process has locked the segment directory",
                where=path,
                remedy="find it with fuser, and end it",
            )
        time.sleep(_LOCK_INTERVAL_S)


def _names(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []
