"""What dead coordinators left: segment directories that no process has locked.

The lock ends with the process, so a directory of our pattern, owned by us and with
a free lock, belongs to no process. If a mark in it names a runtime directory whose
record still speaks of it, the next coordinator there will come for the segments;
else they are nobody's. Their files can be unlinked at any time: who still maps one
keeps reading, and the pages go with the last mapping.

Nothing else is touched: what does not look like ours is left alone and reported.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from hugepool_common import paths
from hugepool_common.paths import is_still
from hugepool_server.manifests import quarantined_segments, read_coordinator, remembered
from hugepool_server.records import DamagedRecordError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What a sweep removed."""

    count: int
    """Segment files."""
    nbytes: int
    """Bytes of pages that they held."""
    left: tuple[str, ...] = ()
    """Paths in dead directories that are not ours to remove, or cannot be removed."""
    removed: tuple[str, ...] = ()
    """Paths of the segment files."""


def reclaim_directory(path: str, boot: str, keep: Container[str]) -> Reclaimed:
    """Remove a segment directory if its coordinator is dead and has no successor.

    Parameters
    ----------
    path
        Of the directory; its name is of our pattern.
    boot
        Of the kernel.
    keep
        Paths of segment files that are kept.
    """
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError:
        return Reclaimed(0, 0)  # removed meanwhile, a symbolic link, or not ours to open
    try:
        if not is_ours(fd):
            return Reclaimed(0, 0, (path,))
        # Before it is locked, lest its owner, starting now, finds it locked. And again
        # once it is: the mark is put in under the lock.
        if _awaited(fd, path, boot) or not try_lock(fd):
            return Reclaimed(0, 0)
        # The lock is held while removing, so of two sweeps only one acts.
        if not is_still(path, fd) or _awaited(fd, path, boot):
            return Reclaimed(0, 0)
        found = remove_segments(fd, path, keep.__contains__)
        remove_directory(fd, path)
        return found
    except (DamagedRecordError, OSError):
        return Reclaimed(0, 0, (path,))  # whose it is cannot be known, or it cannot be removed
    finally:
        os.close(fd)


def _awaited(dir_fd: int, dir_path: str, boot: str) -> bool:
    """Whether a coordinator that is yet to start, or a person, will come for the segments."""
    store = paths.segment_directory_store(os.path.basename(dir_path))
    names = os.listdir(dir_fd)
    segments = {paths.file_segment(name) for name in names}
    for owner in filter(None, map(paths.owner_mark_path, names)):
        # A record that is gone is made up from the manifests by the next coordinator there.
        record = read_coordinator(owner) or remembered(owner, boot)
        if (record.store, record.boot_id) == (store, boot):
            return True
        # Kept until somebody has looked at the manifest, even if the store was lost too.
        if not segments.isdisjoint(quarantined_segments(owner)):
            return True
    return False


def remove_segments(dir_fd: int, dir_path: str, keep: Callable[[str], bool]) -> Reclaimed:
    """Remove the segment files in a directory, but for those to be kept.

    Parameters
    ----------
    dir_fd, dir_path
        The directory, locked.
    keep
        Told the path of a file, says whether to keep it.
    """
    nbytes = 0
    left: list[str] = []
    removed: list[str] = []
    for name in os.listdir(dir_fd):
        path = os.path.join(dir_path, name)
        if paths.owner_mark_path(name) is not None or keep(path):
            continue
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not (ours and paths.is_segment_file(name)):
                left.append(path)
                continue
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            continue
        except OSError:  # a mount that became read-only keeps no coordinator from starting
            left.append(path)
            continue
        removed.append(path)
        nbytes += status.st_blocks * 512
    return Reclaimed(len(removed), nbytes, tuple(left), tuple(removed))


def remove_directory(dir_fd: int, path: str) -> None:
    """Remove a directory that holds nothing but marks."""
    try:
        names = os.listdir(dir_fd)
        if all(paths.owner_mark_path(name) is not None for name in names):
            for name in names:
                os.unlink(name, dir_fd=dir_fd)
            os.rmdir(path)
    except OSError as error:
        # Something of a stranger is in it, or somebody cleaned up before us.
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EROFS, errno.EISDIR):
            raise


def total(found: Iterable[Reclaimed]) -> Reclaimed:
    """What several directories gave together."""
    parts = list(found)
    left = tuple(path for part in parts for path in part.left)
    removed = tuple(path for part in parts for path in part.removed)
    return Reclaimed(len(removed), sum(part.nbytes for part in parts), left, removed)


def is_ours(fd: int) -> bool:
    """Whether what is open belongs to this user."""
    return os.fstat(fd).st_uid == os.geteuid()


def try_lock(fd: int) -> bool:
    """Lock a directory until it is closed; False if another process has locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
