"""Taking up what an earlier coordinator on the same runtime directory left.

A manifest and its segment's file must agree before either is believed. Nothing is
decided twice and nothing hangs on what an interrupted recovery had done: a second
one finds the same.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from hugepool_common import paths
from hugepool_common.errors import NotPermittedError
from hugepool_server.events import Recovered
from hugepool_server.manifests import Found, Manifests
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import ArrayRecord, SessionRecord
from hugepool_server.remains import Reclaimed

SEALED_BITS = 0o440
"""What sealing leaves of a segment's mode."""

MOST_NAMED = 32
"""Segments without a manifest that the log names."""

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # works whatever the file's mode, and on a FIFO


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found, for the coordinator and for the log."""

    event: Recovered
    found: Found
    """What the manifests gave."""
    lost: dict[int, str]
    """Why each lost array is lost, with its name, by segment id."""
    kept: tuple[str, ...]
    """Paths of the segments whose manifests are in quarantine."""
    orphans: Reclaimed
    """Segments without a manifest, removed."""
    changed_modes: int
    """Segments whose mode was not what their manifest says, and now is."""
    dead_sessions: int
    """Sessions of another boot."""

    def lines(self) -> Iterator[str]:
        """What somebody who reads the log should know."""
        for segment_id, reason in self.found.damaged.items():
            name = paths.manifest_name(segment_id)
            yield f"put {name} into quarantine: {reason}"
        for path in self.kept:
            yield f"kept until its manifest is removed from quarantine: {path}"
        for reason in self.lost.values():
            yield f"lost {reason}"
        if self.orphans.count:
            yield f"removed {self.orphans.count} segments without a manifest"
            # An array that somebody misses: nothing else is left that tells of it.
            for path in self.orphans.removed[:MOST_NAMED]:
                yield f"never published, or its manifest was removed from outside: {path}"
            if self.orphans.count > MOST_NAMED:
                yield f"and {self.orphans.count - MOST_NAMED} more"
        if self.found.finished:
            yield f"put {self.found.finished} manifests in their places, after others of one step"
        if self.found.unfinished:
            yield f"removed {self.found.unfinished} manifests that were not finished"
        if self.found.stale:
            yield f"removed {self.found.stale} manifests of another boot"
        if self.changed_modes:
            yield f"put back the mode of {self.changed_modes} segments"
        for path in (*self.found.left, *self.orphans.left):
            yield f"left alone, for it is not ours: {path}"


def recover(
    manifests: Manifests,
    directories: SegmentDirectories,
    sessions: tuple[SessionRecord, ...],
    *,
    boot: str,
    segment_mode: int,
) -> Recovery:
    """Reconcile manifests with segments.

    Parameters
    ----------
    manifests
        Of the runtime directory, not read yet.
    directories
        Those of the coordinator's record, adopted.
    sessions
        Whose processes live and hold their locks.
    boot
        Of the kernel.
    segment_mode
        Mode of a segment's file until it is sealed.

    Raises
    ------
    NotPermittedError
        Something cannot be looked at, and so is not known to be lost. Nothing was
        removed that a later start would want.
    """
    found = manifests.read(boot)
    lost: dict[int, str] = {}
    changed_modes = 0
    for record in found.records:
        try:
            fd = _open(record, directories)
        except _Lost as loss:
            lost[record.segment.segment_id] = f"{record.spec.name}: {loss}"
            continue
        try:
            changed_modes += _put_mode(fd, record, segment_mode, directories.group)
        finally:
            os.close(fd)
    # Of those that are lost too: a file in the place of another is not ours to judge.
    known = {record.segment.segment_id for record in found.records}
    kept = []

    def keep(path: str) -> bool:
        segment_id = paths.file_segment(os.path.basename(path))
        if segment_id in found.quarantined:
            kept.append(path)
            return True
        return segment_id in known

    orphans = directories.prune(keep)
    alive = tuple(session for session in sessions if session.boot_id == boot)
    return Recovery(
        event=Recovered(found.records, frozenset(lost), alive),
        found=found,
        lost=lost,
        kept=tuple(kept),
        orphans=orphans,
        changed_modes=changed_modes,
        dead_sessions=len(sessions) - len(alive),
    )


class _Lost(Exception):
    """The memory of a manifest is not there."""


def _open(record: ArrayRecord, directories: SegmentDirectories) -> int:
    """Open the file of a manifest, if it is the one."""
    segment = record.segment
    name = os.path.basename(segment.path)
    dir_fd = directories.find(segment.path)
    if dir_fd is None or name != paths.segment_file_name(segment.segment_id):
        raise _Lost(f"{segment.path} lies in no segment directory that is there")
    try:
        fd = os.open(name, _LOOK, dir_fd=dir_fd)
    except FileNotFoundError:
        raise _Lost(f"{segment.path} is gone") from None
    except OSError as error:  # not lost: it may be there at the next start
        raise NotPermittedError(
            f"a segment cannot be looked at: {error.strerror}", where=segment.path
        ) from error
    status = os.fstat(fd)
    needed = (segment.device, segment.inode, segment.owner_uid, segment.length)
    had = (status.st_dev, status.st_ino, status.st_uid, status.st_size)
    if needed != had or not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        raise _Lost(f"{segment.path} is another file")
    return fd


def _put_mode(fd: int, record: ArrayRecord, segment_mode: int, group: int | None) -> bool:
    """Give a segment's file the mode that goes with its manifest; whether it had another.

    A seal that was killed has taken the permission to write off what is not sealed.
    """
    mode = segment_mode & SEALED_BITS if record.sealed else segment_mode
    status = os.fstat(fd)
    path = f"/proc/self/fd/{fd}"  # what is open for looking only has no fchmod
    try:
        if group is not None and status.st_gid != group:
            os.chown(path, -1, group)
        elif stat.S_IMODE(status.st_mode) == mode:
            return False
        os.chmod(path, mode)
    except OSError as error:
        if error.errno == errno.EROFS:  # nobody can write there, whatever the mode
            return False
        raise NotPermittedError(
            f"the mode of a segment cannot be put back: {error.strerror}",
            where=record.segment.path,
        ) from error
    return True
