"""Sealed objects onto a disk, and back: what outlives the memory they are in.

Every object is leased and open before the first byte is written, so that none goes
while the others are saved. Its checksum is computed from the very bytes that are
written, and compared with that of its seal; a restored one is compared before it is
sealed, and once more with what the coordinator says. What is restored are temporaries,
until all are there and have their names in one step.
"""

from __future__ import annotations

import errno
import os
import reprlib
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec

from hugepool.array import SharedObject
from hugepool.channel import Channel
from hugepool.leased_file import LeasedFile
from hugepool.progress import Waiting
from hugepool.snapshot_directory import Snapshot, SnapshotDirectory, told, write_whole
from hugepool.snapshot_index import FORMAT, Index, SavedObject
from hugepool.store import ArrayStore, Policy, Progress, temporary_name
from hugepool_common.checksum import Extent, checksum_of_file
from hugepool_common.errors import (
    ArrayBusyError,
    ArrayExistsError,
    ArrayLostError,
    ArrayNotFoundError,
    ChecksumError,
    InvalidSpecError,
    NotEnoughMemoryError,
    ProtocolError,
    SegmentChangedError,
    SnapshotError,
)
from hugepool_common.messages import (
    PAGE_OF_PUBLICATIONS,
    ArrayInfo,
    Message,
    PublicationsTold,
    PublishAll,
    PublishedAll,
)
from hugepool_common.spec import ArraySpec, check_name

_MOST_NAMES_TOLD = 8
"""More than these make no command that somebody would copy."""


class SnapshotReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was written to a disk, or read back from it.

    Parameters
    ----------
    directory, snapshot
        Where, and the name of the snapshot there.
    objects
        Every object, whole.
    skipped
        Names of those that were left out, with the reasons.
    wall_ns
        How long that took.
    """

    directory: str
    snapshot: str
    objects: tuple[SavedObject, ...]
    skipped: dict[str, str]
    wall_ns: int

    @property
    def nbytes(self) -> int:
        """Payload bytes of all objects."""
        return sum(saved.nbytes for saved in self.objects)


def write_snapshot(
    store: ArrayStore,
    channel: Channel,
    directory: str | os.PathLike[str],
    names: Sequence[str] | None,
    progress: Progress | None,
) -> SnapshotReport:
    """Save sealed objects; see ``pool.snapshot``."""
    started_ns = time.monotonic_ns()
    path = os.fsdecode(directory)
    with SnapshotDirectory(path, writing=True) as disk, ExitStack() as held:
        found = _leased(store, channel, names, held)
        files = found.files
        _refuse_loss(disk, found, _unreadable(store, found))
        total = sum(_payload(file.info.spec) for file in files)
        done = 0
        with disk.writing(total) as writer, Waiting(f"writing {path}") as waiting:
            tell = progress or waiting.update
            saved = []
            for number, file in enumerate(files):
                before = done

                def told_so_far(done_bytes: int, _: int, before: int = before) -> None:
                    tell(before + done_bytes, total)

                with writer.data(f"{number:04}.data") as fd:
                    saved.append(_save(file, f"{number:04}.data", fd, told_so_far))
                done += saved[-1].nbytes
            disk.check_in_place()
            writer.commit(Index(FORMAT, tuple(saved)))
        disk.check_in_place()
    return SnapshotReport(
        path, writer.name, tuple(saved), found.skipped, time.monotonic_ns() - started_ns
    )


@dataclass(slots=True)
class _Found:
    """What is to be saved, and what is not.

    Attributes
    ----------
    everything
        Whether no names were chosen.
    files
        To be saved.
    skipped
        Names and reasons.
    unreadable
        Those of them whose memory is not to be had.
    """

    everything: bool
    files: list[LeasedFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)


def _leased(
    store: ArrayStore, channel: Channel, names: Sequence[str] | None, held: ExitStack
) -> _Found:
    """Leases on everything that is to be saved; what cannot be is told, or raised if named."""
    chosen = _chosen(names)
    found = _Found(everything=chosen is None)
    for name in _lasting(store) if chosen is None else chosen:
        try:
            file = held.enter_context(LeasedFile(channel, name))
        except (
            ArrayNotFoundError,
            ArrayLostError,
            SegmentChangedError,
            ArrayBusyError,  # its name went and is being made anew
        ) as error:
            if chosen is not None:
                raise
            found.skipped[name] = error.message
            if isinstance(error, ArrayLostError | SegmentChangedError):
                found.unreadable.add(name)
            continue
        except NotEnoughMemoryError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EMFILE:
                raise
            raise SnapshotError(
                "too many objects for this process's limit of open files",
                needed="one descriptor for each object",
                remedy="raise it: ulimit -n 65536",
            ) from None
        reason = _unfit(file.info)
        if chosen is None and file.info.temporary:  # its name went and was taken since
            file.close()
        elif not reason:
            found.files.append(file)
        elif chosen is None:
            found.skipped[name] = reason
            file.close()
        else:
            raise InvalidSpecError(f"{name!r} cannot be saved: {reason}")
    return found


def _unreadable(store: ArrayStore, found: _Found) -> dict[str, ArrayInfo]:
    """What there is, and nobody, or not we, can read."""
    if found.everything and not found.unreadable:
        return {}
    saved = {file.info.spec.name for file in found.files}
    # Asked anew: what was destroyed between its lease and its opening had no file either.
    return {
        info.spec.name: info
        for info in store.list()
        if ((info.lost and not info.temporary) or info.spec.name in found.unreadable)
        and info.spec.name not in saved
    }


def _refuse_loss(
    disk: SnapshotDirectory, found: _Found, unreadable: Mapping[str, ArrayInfo]
) -> None:
    """Let no snapshot go that has the only copy of something; nothing has been written yet."""
    if found.files and not unreadable:
        return
    there = disk.names_held()
    restore = f"restore it first: hugepool restore {shlex.quote(disk.path)}"
    if only := sorted(unreadable.keys() & there):
        names = " ".join(only) if len(only) <= _MOST_NAMES_TOLD else "NAME..."
        remedy = f"{restore} {names} --replace"
        if all(unreadable[name].lost for name in only):  # else it may be well, and we may be wrong
            remedy += f"; or give it up: hugepool rm {names}"
        raise SnapshotError(
            "the snapshot of before may have the only copy of what cannot be read now; it stays",
            had=", ".join(only)[:200],
            where=disk.path,
            remedy=remedy,
        )
    if there and not found.files:
        raise SnapshotError(
            "there is nothing to save, and the snapshot of before has something; it stays",
            had=", ".join(sorted(there))[:200],
            where=disk.path,
            remedy=f"{restore}; or remove the directory",
        )


def _lasting(store: ArrayStore) -> list[str]:
    """Names of all but temporaries: those go with their clients, and a restore would keep them."""
    return [info.spec.name for info in store.list() if not info.temporary]


def _unfit(info: ArrayInfo) -> str:
    """Why an object cannot be saved; empty if it can."""
    if info.spec.kind == "plan" or info.spec.made_of:
        return "it was made from another object, and is quicker to plan anew"
    if not info.sealed:
        return "it is not sealed"
    return ""


def _save(file: LeasedFile, name: str, fd: int, progress: Progress) -> SavedObject:
    spec = file.info.spec
    starts = [start for start, _ in _extents(spec)]
    checksum = file.read(
        look=lambda part, offset, view: write_whole(fd, view, starts[part] + offset),
        progress=progress,
    )
    return SavedObject(name, spec, _payload(spec), checksum)


def restore_snapshot(
    store: ArrayStore,
    channel: Channel,
    directory: str | os.PathLike[str],
    names: Sequence[str] | None,
    replace: bool,
    policy: Policy,
) -> SnapshotReport:
    """Make objects of a snapshot; see ``pool.restore``."""
    started_ns = time.monotonic_ns()
    path = os.fsdecode(directory)
    with (
        SnapshotDirectory(path, writing=False) as disk,
        disk.open_current() as snapshot,
    ):
        wanted = _wanted(snapshot, names)
        for saved in wanted:
            os.close(snapshot.open_data(saved))  # before anything is made
        if not replace:
            _refuse_taken(store, wanted)
        made: list[SharedObject] = []
        try:
            _make(store, snapshot, wanted, policy, made)
            with channel.batches:
                _publish(channel, made, wanted, replace)
        except BaseException:
            # What was published, if the reply to that was lost, has another name by now.
            store.discard(*made)
            raise
        for shared in made:
            shared.detach()
    return SnapshotReport(path, snapshot.name, wanted, {}, time.monotonic_ns() - started_ns)


def _make(
    store: ArrayStore,
    snapshot: Snapshot,
    wanted: Sequence[SavedObject],
    policy: Policy,
    made: list[SharedObject],
) -> None:
    """Make temporaries of what was saved, and seal them: they go with us until they are published.

    What there is of them at any time is in `made`.
    """
    total = sum(saved.nbytes for saved in wanted)
    done = 0
    progress = policy.pop("progress", None)
    policy["temporary"] = True
    for saved in wanted:
        before = done

        def tell(done_bytes: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done_bytes, total)

        spec = msgspec.structs.replace(saved.spec, name=temporary_name(saved.name))
        shared = store.make_blank(spec, **policy)
        made.append(shared)
        with Waiting(f"restoring {saved.name}") as waiting:
            _fill(shared, snapshot, saved, waiting.update if progress is None else tell)
        shared.seal()
        _compare(saved, shared.checksum, shared.info.segment.path)
        done += saved.nbytes


def _publish(
    channel: Channel, made: Sequence[SharedObject], wanted: Sequence[SavedObject], replace: bool
) -> None:
    """Give all of it its own names, in one step."""
    names = [saved.name for saved in wanted]
    for shared in made:
        shared.check_known()
    segment_ids = [shared.info.segment.segment_id for shared in made]
    batch = secrets.randbits(62)
    told = 0
    while True:
        stop = told + PAGE_OF_PUBLICATIONS
        answer = channel.request(
            PublishAll(
                tuple(names[told:stop]),
                tuple(segment_ids[told:stop]),
                replace,
                batch=batch,
                before=told,
                more=stop < len(names),
            ),
            Message,
        )
        if isinstance(answer, PublishedAll):
            return
        if not isinstance(answer, PublicationsTold) or not 0 <= answer.count < len(names):
            raise ProtocolError(f"unexpected reply {type(answer).__name__} to PublishAll")
        told = answer.count  # 0 from a coordinator that has not heard of the batch


def _wanted(snapshot: Snapshot, names: Sequence[str] | None) -> tuple[SavedObject, ...]:
    chosen = _chosen(names)
    if chosen is None:
        return snapshot.index.objects
    held = {saved.name: saved for saved in snapshot.index.objects}
    for name in chosen:
        if name not in held:
            raise ArrayNotFoundError(
                f"the snapshot has no {name!r}",
                had=reprlib.repr(sorted(held)),
                where=snapshot.path,
                remedy="leave names out to restore all",
            )
    return tuple(held[name] for name in chosen)


def _refuse_taken(store: ArrayStore, wanted: Sequence[SavedObject]) -> None:
    taken = {info.spec.name for info in store.list()} & {saved.name for saved in wanted}
    if taken:
        raise ArrayExistsError(
            "names of the snapshot are taken",
            had=", ".join(sorted(taken))[:200],
            remedy="destroy them, or restore with replace=True (--replace)",
        )


def _fill(shared: SharedObject, snapshot: Snapshot, saved: SavedObject, tell: Progress) -> None:
    """Copy a file into an object's memory, which is all there, and check what was copied."""
    path = os.path.join(snapshot.path, saved.file)
    targets = shared.byte_views()

    def copy(part: int, offset: int, view: memoryview) -> None:
        targets[part][offset : offset + len(view)] = view

    fd = snapshot.open_data(saved)
    try:
        with told(f"the data of {saved.name!r} cannot be read", path):
            found = checksum_of_file(fd, _extents(saved.spec), where=path, look=copy, progress=tell)
    except SegmentChangedError as error:
        raise SnapshotError(
            f"the data of {saved.name!r} became shorter", needed=error.needed, where=path
        ) from None
    finally:
        os.close(fd)
    if found != saved.checksum:
        raise SnapshotError(
            f"the data of {saved.name!r} is damaged",
            needed=saved.checksum,
            had=found,
            where=path,
        )


def _compare(saved: SavedObject, sealed: str, where: str) -> None:
    if sealed and sealed != saved.checksum:  # empty where the coordinator takes none
        raise ChecksumError(
            f"{saved.name!r} was sealed with other bytes than were restored",
            needed=saved.checksum,
            had=sealed,
            where=where,
        )


def _chosen(names: Sequence[str] | None) -> list[str] | None:
    """Each name once, in order; None for all there are."""
    if names is None:
        return None
    wanted = [names] if isinstance(names, str) else names
    return [check_name(name) for name in dict.fromkeys(wanted)]


def _payload(spec: ArraySpec) -> int:
    return sum(part.nbytes for part in spec.parts)


def _extents(spec: ArraySpec) -> list[Extent]:
    """Where the parts of an object lie in its data file: one after the other."""
    placed = []
    offset = 0
    for part in spec.parts:
        placed.append((offset, part.nbytes))
        offset += part.nbytes
    return placed
