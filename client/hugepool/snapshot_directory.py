"""A directory on disk with one whole snapshot in it, at whatever moment the power fails.

::

    DIR/                            locked by flock on itself
        CURRENT                     which snapshot counts, and the CRC-32 of its index
        CURRENT.tmp                 the next one, for a moment
        snapshot-<16 hex digits>/
            index.json              name, shape, dtype, checksum and size of every object
            0000.data               payload of the first one, part after part
            ...

A snapshot is written beside the one before: every file is synced, then its directory,
then DIR, which has its name. Renaming ``CURRENT.tmp`` to ``CURRENT`` is the commit
point, and only when that is synced too is the one before removed. A directory that
``CURRENT`` does not name is the remains of a run that was cut short; the next run
removes it.

Nothing here follows a symbolic link below DIR, overwrites a file that is there, or
removes one that has none of these names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from hugepool.snapshot_index import DATA_FILE, Index, Pointer, SavedObject
from hugepool_common.errors import HugepoolError, SnapshotError
from hugepool_common.units import format_bytes

_CURRENT = "CURRENT"
_CURRENT_NEXT = "CURRENT.tmp"
_INDEX = "index.json"
_SNAPSHOT = re.compile(r"snapshot-[0-9a-f]{16}")
_MOST_INDEX_BYTES = 256 << 20


class SnapshotDirectory:
    """DIR, open and locked. A context manager that lets go.

    Parameters
    ----------
    path
        The directory; made, with mode 0700, where it is to be written and is not there.
    writing
        Keep every other reader and writer out; else only writers.

    Raises
    ------
    SnapshotError
        It cannot be opened, or another process works in it.
    """

    def __init__(self, path: str, *, writing: bool) -> None:
        self.path = path
        self._absolute = path
        self._fd = -1
        self._owner_pid = os.getpid()
        with told("the directory cannot be opened", path):
            if writing:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700)
            if not os.path.isabs(path):
                # Not abspath: it takes `..` behind a symbolic link for another directory.
                self._absolute = os.path.join(os.getcwd(), path)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with told("the directory cannot be locked", path):
                lock = fcntl.LOCK_EX if writing else fcntl.LOCK_SH
                fcntl.flock(self._fd, lock | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directory."""
        if self._fd >= 0:
            # A child that was forked meanwhile has the same lock, which closing would leave it.
            if os.getpid() == self._owner_pid:
                with contextlib.suppress(OSError):  # it is not locked
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check_in_place(self) -> None:
        """See that the directory is still where it was opened.

        Raises
        ------
        SnapshotError
            It was moved or removed.
        """
        with told("the directory cannot be looked at", self.path):
            opened = os.fstat(self._fd)
        try:
            now = os.stat(self._absolute)
        except OSError:
            now = None
        if now is None or (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
            raise SnapshotError(
                "the directory was moved or removed while a snapshot was written to it",
                where=self.path,
                remedy="leave it in its place until the snapshot is made",
            )

    # Reading ------------------------------------------------------------------

    def open_current(self) -> Snapshot:
        """The snapshot that counts, its index read and checked.

        Raises
        ------
        SnapshotError
            There is none, or it is damaged.
        """
        pointer = self._read_pointer()
        if pointer is None:
            raise SnapshotError("the directory holds no snapshot", where=self.path)
        where = os.path.join(self.path, pointer.name)
        with told("the snapshot cannot be opened", where):
            fd = _open_directory(pointer.name, self._fd)
        try:
            path = os.path.join(where, _INDEX)
            raw = _read_small(_INDEX, fd, path, _MOST_INDEX_BYTES)
            if raw is None:
                raise SnapshotError("the snapshot has no index", where=path)
            pointer.check(raw, path)
            return Snapshot(pointer.name, where, fd, Index.decode(raw, path))
        except BaseException:
            os.close(fd)
            raise

    def names_held(self) -> set[str]:
        """Names in the snapshot that counts; none where there is no snapshot.

        Raises
        ------
        SnapshotError
            It is damaged.
        """
        if self._read_pointer() is None:
            return set()
        with self.open_current() as snapshot:
            return {saved.name for saved in snapshot.index.objects}

    def _read_pointer(self) -> Pointer | None:
        path = os.path.join(self.path, _CURRENT)
        raw = _read_small(_CURRENT, self._fd, path, 4096)
        return None if raw is None else Pointer.decode(raw, path)

    # Writing ------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, nbytes: int) -> Iterator[SnapshotWriter]:
        """A new snapshot, which counts once it was committed; else it is removed.

        Parameters
        ----------
        nbytes
            What it will hold: refused if there is no room.

        Raises
        ------
        SnapshotError
            No room, or the directory holds something else.
        """
        current = self._read_pointer()
        if current is not None:
            # Whoever wrote it may have been killed before this was on the disk.
            with told("the directory cannot be synced", self.path):
                os.fsync(self._fd)
            with told("the directory cannot be listed", self.path):
                self._remove_all_but(current.name)
        else:
            # Whoever made the directory may have been killed before its name was on the disk.
            with told("the directory's own name cannot be synced", self.path):
                _sync_name(self._fd)
        name = f"snapshot-{secrets.token_hex(8)}"
        where = os.path.join(self.path, name)
        with told("the snapshot cannot be made", where):
            self._check_room(nbytes)
            os.mkdir(name, 0o700, dir_fd=self._fd)
        fd = -1
        writer = None
        try:
            with told("the snapshot cannot be made", where):
                fd = _open_directory(name, self._fd)
            writer = SnapshotWriter(name, where, fd, self._fd)
            yield writer
        finally:
            if fd >= 0:
                os.close(fd)
            if writer is None or not writer.committed:
                self._abort(name)
        if writer.committed:
            with contextlib.suppress(OSError):  # the next run tries again
                self._remove_all_but(name)

    def _abort(self, name: str) -> None:
        try:
            current = self._read_pointer()
        except SnapshotError:
            return
        # Renamed and not synced: nobody can say which one a power failure would leave.
        if current is None or current.name != name:
            self._remove(name)
            with contextlib.suppress(OSError):
                os.unlink(_CURRENT_NEXT, dir_fd=self._fd)

    def _check_room(self, nbytes: int) -> None:
        room = os.fstatvfs(self._fd)
        if room.f_blocks and room.f_bavail * room.f_frsize < nbytes:
            raise SnapshotError(
                "there is no room for the snapshot; the one before stays until it is whole",
                needed=format_bytes(nbytes),
                had=format_bytes(room.f_bavail * room.f_frsize),
                where=self.path,
                remedy="free disk space, or choose another directory",
            )

    def _remove_all_but(self, kept: str) -> None:
        for name in os.listdir(self._fd):
            if _SNAPSHOT.fullmatch(name) and name != kept:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Remove a snapshot that does not count. What is not ours in it stays, and so it does."""
        try:
            fd = _open_directory(name, self._fd)
            try:
                for entry in os.listdir(fd):
                    if entry == _INDEX or DATA_FILE.fullmatch(entry):
                        os.unlink(entry, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=self._fd)
        except OSError:
            pass  # the next run tries again


class Snapshot:
    """A snapshot that counts. A context manager that closes it.

    Attributes
    ----------
    name
        Of its directory.
    path
        Where that is.
    index
        What it holds.
    """

    def __init__(self, name: str, path: str, fd: int, index: Index) -> None:
        self.name = name
        self.path = path
        self.index = index
        self._fd = fd

    def open_data(self, saved: SavedObject) -> int:
        """Descriptor of an object's data, for reading.

        Raises
        ------
        SnapshotError
            The file is not there, is no file, or has another length.
        """
        path = os.path.join(self.path, saved.file)
        with told(f"the data of {saved.name!r} cannot be opened", path):
            fd, length = _open_file(saved.file, self._fd)
        if length != saved.nbytes:
            os.close(fd)
            raise SnapshotError(
                f"the data of {saved.name!r} has the wrong length",
                needed=f"{saved.nbytes} bytes",
                had=f"{length}",
                where=path,
            )
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


class SnapshotWriter:
    """A snapshot that does not count yet.

    Attributes
    ----------
    name
        Of its directory.
    path
        Where that is.
    committed
        Whether it counts, whatever happens.
    """

    def __init__(self, name: str, path: str, fd: int, parent_fd: int) -> None:
        self.name = name
        self.path = path
        self.committed = False
        self._fd = fd
        self._parent_fd = parent_fd

    @contextlib.contextmanager
    def data(self, file: str) -> Iterator[int]:
        """A new file, which is on the disk when the block has ended well."""
        path = os.path.join(self.path, file)
        with (
            told("the snapshot cannot be written", path),
            self._written(file, self._fd) as fd,
        ):
            yield fd

    def commit(self, index: Index) -> None:
        """Let this snapshot be the one that counts.

        Raises
        ------
        SnapshotError
            It cannot be written. The one before counts, or, if it was the very last
            step that failed, one of the two.
        """
        raw = index.encode()
        with told("the snapshot cannot be written", self.path):
            with self._written(_INDEX, self._fd) as fd:
                write_whole(fd, memoryview(raw), 0)
            os.fsync(self._fd)
            os.fsync(self._parent_fd)  # it has the name of our directory
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_CURRENT_NEXT, dir_fd=self._parent_fd)  # of a run that was cut short
            with self._written(_CURRENT_NEXT, self._parent_fd) as fd:
                write_whole(fd, memoryview(Pointer.to(self.name, raw).encode()), 0)
            os.rename(
                _CURRENT_NEXT, _CURRENT, src_dir_fd=self._parent_fd, dst_dir_fd=self._parent_fd
            )
            os.fsync(self._parent_fd)
            self.committed = True

    @staticmethod
    @contextlib.contextmanager
    def _written(file: str, directory_fd: int) -> Iterator[int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(file, flags, 0o600, dir_fd=directory_fd)
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)


def write_whole(fd: int, view: memoryview, offset: int) -> None:
    """Write all of it, however little a single call may take."""
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


@contextlib.contextmanager
def told(what: str, where: str) -> Iterator[None]:
    """Tell of what the operating system refuses as a :class:`SnapshotError`.

    Parameters
    ----------
    what
        The sentence that begins the error.
    where
        The file or directory.
    """
    try:
        yield
    except HugepoolError:
        raise
    except OSError as error:
        remedies = {
            errno.ENOSPC: "free disk space, or choose another directory",
            errno.EDQUOT: "free disk space, or choose another directory",
            errno.EAGAIN: "wait until the other snapshot or restore has ended",
            errno.ENOTDIR: "choose a directory",
        }
        reason = error.strerror or str(error)
        if error.errno == errno.EAGAIN:
            reason = "another process makes or restores a snapshot there"
        elif error.errno == errno.ELOOP:
            reason = "it is a symbolic link"
        raise SnapshotError(
            f"{what}: {reason}", where=where, remedy=remedies.get(error.errno or 0, "")
        ) from None


def _sync_name(directory_fd: int) -> None:
    """Have a directory's entry in the one above on the disk."""
    try:
        parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    except PermissionError:
        return  # who may not read a directory cannot sync it
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _open_directory(name: str, parent_fd: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=parent_fd)


def _open_file(name: str, parent_fd: int) -> tuple[int, int]:
    """A descriptor of a regular file, and its length."""
    # O_NONBLOCK: a FIFO planted under the name must not hold us.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=parent_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _read_small(name: str, parent_fd: int, path: str, most_bytes: int) -> bytes | None:
    """A whole file, or None if there is none."""
    with told("the file cannot be read", path):
        try:
            fd, _ = _open_file(name, parent_fd)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise SnapshotError(
            "the file is too long", needed=f"at most {most_bytes} bytes", where=path
        )
    return raw
