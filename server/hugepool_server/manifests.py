"""The records in a runtime directory: one manifest per array, and the coordinator's own.

A record is written under another name and renamed into place, so a reader finds
the old one or the new one, whole, whenever the writer was killed. Nothing is
synced to a disk: a record is worth as much as the memory it speaks of, and
outlives a kill as the page cache does.

What cannot be read is never thrown away: it is moved to ``quarantine``, and the
segment of a manifest there stays until a person removes it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from hugepool_common import paths
from hugepool_common.errors import (
    DetachedError,
    NotPermittedError,
    SegmentChangedError,
    UnsupportedPlatformError,
)
from hugepool_common.kernel_files import read_kernel_file
from hugepool_server import records
from hugepool_server.record_files import (
    finish_renames,
    opened_directory,
    private_directory,
    read_file,
    refusals,
    removed,
    replace_file,
    replace_files,
)
from hugepool_server.records import (
    EPOCH_SHIFT,
    ArrayRecord,
    CoordinatorRecord,
    DamagedRecordError,
    SessionRecord,
)

log = logging.getLogger("hugepoold")

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Found:
    """What a coordinator found in its runtime directory."""

    records: tuple[ArrayRecord, ...]
    """The whole manifests of this boot, by segment id."""
    damaged: dict[int, str]
    """What is wrong with each manifest that is not whole, by segment id."""
    quarantined: frozenset[int]
    """Segment ids of all manifests that ever were damaged."""
    unfinished: int
    """Manifests that a killed coordinator was writing, now removed."""
    stale: int
    """Manifests of another boot, now removed."""
    left: tuple[str, ...]
    """Paths of what is not ours."""
    finished: int = 0
    """Manifests that a killed coordinator was putting in their places together; now they are."""


class Manifests:
    """The manifests of one coordinator, written and known.

    Parameters
    ----------
    runtime_directory
        Owned by this process.
    durable
        False: nothing is written or read; the records are known as long as this lives.

    Raises
    ------
    NotPermittedError, NotEnoughMemoryError
        The directory cannot be made.

    Notes
    -----
    Methods may be called from any thread. A context manager that closes.
    """

    def __init__(self, runtime_directory: str, *, durable: bool = True) -> None:
        self._runtime_directory = runtime_directory
        self._path = paths.manifests_path(runtime_directory)
        self._durable = durable
        self._lock = threading.Lock()
        self._records: dict[int, ArrayRecord] = {}
        self._dir_fd = -1
        if durable:
            with refusals(self._path):
                self._dir_fd = paths.open_private_directory(self._path)

    def write(self, record: ArrayRecord) -> None:
        """Write a manifest: from here on the array outlives this process.

        Raises
        ------
        OSError
            There is no new manifest; one that was there is as before.
        InvalidSpecError
            Nobody could read it again.
        """
        with self._lock:
            self._write(record)

    def known(self, segment_id: int) -> ArrayRecord:
        """What the manifest of a segment says.

        Raises
        ------
        SegmentChangedError
            There is none: the segment was destroyed.
        """
        with self._lock:
            return self._known(segment_id)

    def lying_in(self, directory: str) -> tuple[ArrayRecord, ...]:
        """What is known of the segments in a segment directory."""
        with self._lock:
            known = tuple(self._records.values())
        return tuple(one for one in known if os.path.dirname(one.segment.path) == directory)

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to the directory of the manifests, if there is one.

        Raises
        ------
        OSError
            That cannot be seen.
        """
        return not self._durable or paths.is_still(self._path, self._fd())

    def update(self, segment_id: int, **changes: Any) -> ArrayRecord:
        """Write a manifest anew with these fields changed, in one step.

        Raises
        ------
        SegmentChangedError
            There is none: the segment was destroyed.
        OSError, InvalidSpecError
            As :meth:`write`.
        """
        with self._lock:
            changed = msgspec.structs.replace(self._known(segment_id), **changes)
            self._write(changed)
            return changed

    def rename(self, names: Mapping[int, tuple[str, int]]) -> None:
        """Give sealed segments other names, to last: of all of them, or of none.

        Parameters
        ----------
        names
            By segment id: the name, and which generation of it this is.

        Raises
        ------
        SegmentChangedError
            One has no manifest: the segment was destroyed.
        OSError, InvalidSpecError
            As :meth:`write`.
        """
        with self._lock:
            renamed = []
            for segment_id, (name, generation) in names.items():
                record = self._known(segment_id)
                spec = msgspec.structs.replace(record.spec, name=name)
                renamed.append(
                    msgspec.structs.replace(
                        record, spec=spec, generation=generation, temporary=False
                    )
                )
            before = [self._records[segment_id] for segment_id in names]
            try:
                self._write(*renamed)
            except BaseException:
                with suppress(OSError):  # some may have been put in their places
                    self._write(*before)
                raise

    def remove(self, segment_id: int) -> None:
        """Remove a manifest, if there is one: from here on the array goes with this process.

        Raises
        ------
        OSError
            It is still there.
        """
        with self._lock:
            if self._durable:
                with suppress(FileNotFoundError):
                    os.unlink(paths.manifest_name(segment_id), dir_fd=self._fd())
            self._records.pop(segment_id, None)

    def read(self, boot: str | None = None) -> Found:
        """Read what an earlier coordinator wrote, before anything else is written.

        Parameters
        ----------
        boot
            Of the kernel; asked of it by default.

        Raises
        ------
        NotPermittedError
            Something is there and cannot be looked at; it is as it was.
        """
        if not self._durable:
            return Found((), {}, frozenset(), 0, 0, ())
        with self._lock, refusals(self._path):
            return self._read(self._fd(), boot or boot_id())

    def close(self, *, keep: bool = True) -> None:
        """Let go of the directory.

        Parameters
        ----------
        keep
            Whether the manifests stay. Otherwise all that are known are removed:
            their segments go next.
        """
        with self._lock:
            fd, self._dir_fd = self._dir_fd, -1
            known, self._records = self._records, {}
        if fd < 0:
            return
        try:
            for segment_id in () if keep else known:
                with suppress(FileNotFoundError):
                    os.unlink(paths.manifest_name(segment_id), dir_fd=fd)
        finally:
            os.close(fd)

    def __enter__(self) -> Manifests:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Manifests {self._path}, {len(self._records)} known>"

    def _known(self, segment_id: int) -> ArrayRecord:
        record = self._records.get(segment_id)
        if record is None:
            raise SegmentChangedError(
                "the segment was destroyed", where=paths.segment_file_name(segment_id)
            )
        return record

    def _write(self, *written: ArrayRecord) -> None:
        by_segment = {record.segment.segment_id: record for record in written}
        if self._durable:
            files = {
                paths.manifest_name(segment_id): records.encode(record)
                for segment_id, record in by_segment.items()
            }
            try:
                replace_files(self._fd(), files)
            except FileNotFoundError as error:
                raise removed(self._path) from error
        self._records.update(by_segment)

    def _fd(self) -> int:
        if self._dir_fd < 0:
            raise DetachedError("the manifests are closed", where=self._path)
        return self._dir_fd

    def _read(self, dir_fd: int, boot: str) -> Found:
        whole: dict[int, ArrayRecord] = {}
        damaged: dict[int, str] = {}
        left = []
        finished = finish_renames(dir_fd)
        unfinished = stale = 0
        for name in sorted(os.listdir(dir_fd)):
            segment_id = paths.manifest_segment(name)
            if paths.is_unfinished_manifest(name):
                os.unlink(name, dir_fd=dir_fd)
                unfinished += 1
            elif segment_id is None:
                left.append(os.path.join(self._path, name))
            else:
                try:
                    record = _manifest(dir_fd, name, segment_id)
                except DamagedRecordError as error:
                    damaged[segment_id] = str(error)
                    _put_away(dir_fd, name, self._runtime_directory)
                    continue
                if record.boot_id == boot:
                    whole[segment_id] = record
                else:
                    os.unlink(name, dir_fd=dir_fd)
                    stale += 1
        self._records = whole
        return Found(
            tuple(whole.values()),
            damaged,
            frozenset(damaged) | quarantined_segments(self._runtime_directory),
            unfinished,
            stale,
            tuple(left),
            finished,
        )


def boot_id() -> str:
    """What the kernel calls this boot.

    Raises
    ------
    UnsupportedPlatformError
        It does not say.
    """
    boot = read_kernel_file(BOOT_ID_FILE).strip()
    if not boot:
        raise UnsupportedPlatformError(
            "the kernel does not tell one boot from another, so nothing can be kept for the "
            "next coordinator",
            where=BOOT_ID_FILE,
        )
    return boot


def begin_epoch(
    runtime_directory: str, boot: str, new_store: Callable[[], str]
) -> CoordinatorRecord:
    """Begin the epoch of a coordinator that has just taken its runtime directory.

    Parameters
    ----------
    runtime_directory
        Owned by this process.
    boot
        Of the kernel.
    new_store
        Makes 16 hex digits for the names of segment directories, where there are none
        of this boot. A record that was lost or damaged is made up from the manifests.

    Returns
    -------
    CoordinatorRecord
        As written: the epoch is higher than any that is to be seen here.

    Raises
    ------
    NotPermittedError, NotEnoughMemoryError
        What is there cannot be read, or it cannot be written; all is as before.
    """
    with refusals(runtime_directory):
        try:
            last = read_coordinator(runtime_directory)
        except DamagedRecordError as error:
            last = None
            _copy_damaged(runtime_directory)
            log.warning(
                "the coordinator's record is damaged, is made anew from the manifests, and was "
                "copied into quarantine: %s",
                error,
            )
        if last is None:
            last = remembered(runtime_directory, boot)
        if last.boot_id != boot or not last.store:
            last = CoordinatorRecord(last.epoch, new_store(), (), boot)
        record = msgspec.structs.replace(last, epoch=last.epoch + 1)
        try:
            with opened_directory(runtime_directory) as dir_fd:
                replace_file(dir_fd, paths.COORDINATOR_NAME, records.encode(record))
        except FileNotFoundError as error:  # what the kernel says of /proc
            raise NotPermittedError(
                "no file can be made in the runtime directory",
                where=runtime_directory,
                remedy=f"choose another with {paths.RUNTIME_VARIABLE}",
            ) from error
        return record


def read_coordinator(runtime_directory: str) -> CoordinatorRecord | None:
    """The record of a coordinator of this user in its runtime directory; None if there is none.

    Raises
    ------
    DamagedRecordError
        There is one, and it is not whole.
    OSError
        It cannot be read.
    """
    try:
        with opened_directory(runtime_directory) as dir_fd:
            if os.fstat(dir_fd).st_uid != os.geteuid():
                return None
            data = read_file(dir_fd, paths.COORDINATOR_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return records.decode(CoordinatorRecord, data)


def write_coordinator(
    runtime_directory: str, record: CoordinatorRecord, *, dir_fd: int | None = None
) -> None:
    """Write the coordinator's record in one step.

    Parameters
    ----------
    runtime_directory
        Its path.
    record
        What to write.
    dir_fd
        The directory as its coordinator has it open, whatever lies at the path by now.

    Raises
    ------
    NotPermittedError, NotEnoughMemoryError
        It is as before.
    """
    data = records.encode(record)
    with refusals(runtime_directory):
        if dir_fd is not None:
            replace_file(dir_fd, paths.COORDINATOR_NAME, data)
            return
        with opened_directory(runtime_directory) as opened_fd:
            replace_file(opened_fd, paths.COORDINATOR_NAME, data)


def _manifest(dir_fd: int, name: str, segment_id: int) -> ArrayRecord:
    record = records.decode(ArrayRecord, read_file(dir_fd, name))
    if record.segment.segment_id != segment_id:
        raise DamagedRecordError(
            "the manifest is of another segment",
            needed=str(segment_id),
            had=str(record.segment.segment_id),
        )
    return record


def _put_away(dir_fd: int, name: str, runtime_directory: str) -> None:
    """Move a damaged record where a person can look at it.

    It stays where it is if it cannot be moved: the next start will find it again.
    """
    quarantine = paths.quarantine_path(runtime_directory)
    with suppress(OSError), private_directory(quarantine) as quarantine_fd:
        os.rename(name, name, src_dir_fd=dir_fd, dst_dir_fd=quarantine_fd)


def _copy_damaged(runtime_directory: str) -> None:
    """Keep the coordinator's damaged record, which is to be replaced.

    It stays in its place too: to a coordinator that sweeps just then, none at all
    would say that nobody will come for the segments.
    """
    name = paths.COORDINATOR_NAME
    with (
        suppress(OSError),
        opened_directory(runtime_directory) as dir_fd,
        private_directory(paths.quarantine_path(runtime_directory)) as quarantine_fd,
    ):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=quarantine_fd)
        os.link(name, name, src_dir_fd=dir_fd, dst_dir_fd=quarantine_fd, follow_symlinks=False)


def quarantined_segments(runtime_directory: str) -> frozenset[int]:
    """Segment ids of the manifests that were found damaged and put away.

    Raises
    ------
    OSError
        The quarantine is there and cannot be looked at.
    """
    return _segments_named(paths.quarantine_path(runtime_directory))


def damaged_segments(runtime_directory: str) -> frozenset[int]:
    """The same, and those whose manifests no coordinator could put away, once others are gone.

    Raises
    ------
    OSError
        One of the places is there and cannot be looked at.
    """
    left = _segments_named(paths.manifests_path(runtime_directory))
    return left | quarantined_segments(runtime_directory)


def _segments_named(directory: str) -> frozenset[int]:
    """Segment ids of the manifests in a directory, by their names."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    found = (paths.manifest_segment(name) for name in names)
    return frozenset(one for one in found if one is not None)


def remembered(runtime_directory: str, boot: str) -> CoordinatorRecord:
    """What can be known without the coordinator's record, from all that was written beside it.

    The epoch is the highest of any number there; the store is empty unless whole
    manifests of this boot tell where their segments lie.
    """
    manifests = paths.manifests_path(runtime_directory)
    tokens = paths.tokens_path(runtime_directory)
    numbers = damaged_segments(runtime_directory)
    epochs = {number >> EPOCH_SHIFT for number in numbers}
    places: Counter[str] = Counter()
    for array in _whole(manifests, ArrayRecord):
        epochs.add(array.epoch)
        if array.boot_id == boot:
            places[os.path.dirname(array.segment.path)] += 1
    epochs.update(session.session >> EPOCH_SHIFT for session in _whole(tokens, SessionRecord))
    stores = Counter[str]()
    for place, count in places.items():
        stores[paths.segment_directory_store(os.path.basename(place)) or ""] += count
    del stores[""]
    store = stores.most_common(1)[0][0] if stores else ""
    own = tuple(sorted(place for place in places if store and place.endswith(f"-{store}")))
    return CoordinatorRecord(max(epochs, default=0), store, own, boot)


def _whole(directory: str, kind: type[records.Record]) -> Iterator[records.Record]:
    """The records of a kind in a directory that are whole."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    with opened_directory(directory) as dir_fd:
        for name in names:
            try:
                record = records.decode(kind, read_file(dir_fd, name))
            except DamagedRecordError:
                continue
            yield record
