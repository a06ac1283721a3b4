"""Segments and their manifests, made, sealed, published and removed together."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hugepool_common import paths
from hugepool_common.errors import (
    ArrayBusyError,
    CancelledError,
    ErrorCode,
    InvalidMatrixError,
    NotEnoughMemoryError,
    SegmentChangedError,
)
from hugepool_common.spec import ArraySpec, Segment
from hugepool_server import events, makers
from hugepool_server.backends import select
from hugepool_server.config import Config
from hugepool_server.makers import MAKER_THREADS, UNLINK_BYTES, Makers, Origin
from hugepool_server.manifests import Manifests, boot_id
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import ArrayRecord, Identity
from hugepool_server.sealing import check_sealed
from support.host import Mounts, settles

ME = Identity(os.geteuid(), os.getegid(), os.getpid())
OWNER = "ab" * 16


class Workshop:
    """Makers over a runtime directory, and what they have to say."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory = str(directory)
        self.outcomes: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        self.directories = SegmentDirectories()
        self.manifests = Manifests(self.directory)
        self.makers = Makers(
            Config(self.directory, **config),
            Origin(boot_id(), 3),
            self.directories,
            self.manifests,
            self.outcomes.put,
        )
        self._last = 3 << 32

    def outcome(self) -> Any:
        """What is told next that is not progress."""
        while isinstance(told := self.outcomes.get(timeout=60), events.SegmentProgress):
            pass
        return told

    def begin(self, spec: ArraySpec) -> int:
        self._last += 1
        effect = events.MakeSegment(self._last, self._last, spec, "off", "auto", "", ME, 1)
        self.makers.make(effect, OWNER)
        return self._last

    def make(self, spec: ArraySpec) -> Segment:
        self.begin(spec)
        made = self.outcome()
        assert isinstance(made, events.SegmentMade), made
        return made.segment

    def seal(self, segment: Segment, spec: ArraySpec) -> Any:
        self.makers.seal(events.SealSegment(77, segment, spec))
        return self.outcome()

    def written(self) -> dict[int, ArrayRecord]:
        """What the next coordinator would read."""
        with Manifests(self.directory) as again:
            return {found.segment.segment_id: found for found in again.read().records}

    def close(self) -> None:
        self.makers.stop()
        self.manifests.close(keep=False)
        self.directories.close()


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """With checksums."""
    made = Workshop(tmp_path)
    yield made
    made.close()
    assert os.listdir(paths.manifests_path(str(tmp_path))) == []


def spec_of(name: str, elements: int = 1000) -> ArraySpec:
    return ArraySpec(name, (elements,), "<f8")


def mode_of(segment: Segment) -> int:
    return os.stat(segment.path).st_mode & 0o777


def test_what_is_temporary_is_so_until_it_is_published(workshop: Workshop) -> None:
    spec = spec_of("t")
    effect = events.MakeSegment(1, 1, spec, "off", "auto", "", ME, 1, temporary=True)
    workshop.makers.make(effect, OWNER)
    segment = workshop.outcome().segment
    assert workshop.written()[1].temporary
    assert isinstance(workshop.seal(segment, spec), events.SegmentSealed)
    assert workshop.written()[1].temporary
    published = workshop.makers.publish(events.PublishGeneration(2, 1, "x", 1))
    assert published == events.GenerationPublished(2)
    assert not workshop.written()[1].temporary
    workshop.makers.unlink(segment)


def test_what_is_told_to_be_made_is_written_down(workshop: Workshop) -> None:
    spec = spec_of("x")
    segment = workshop.make(spec)
    (record,) = workshop.written().values()
    assert (record.spec, record.segment, record.creator) == (spec, segment, ME)
    assert (record.owner, record.generation, record.sealed) == (OWNER, 1, False)
    assert (record.boot_id, record.epoch) == (boot_id(), 3)
    assert os.path.exists(segment.path)


def test_without_its_manifest_there_is_no_segment(tmp_path: Path, mounts: Mounts) -> None:
    small = Path(mounts.tmpfs("size=64k,mode=0700"))
    workshop = Workshop(small)
    try:
        first = workshop.make(spec_of("x"))
        with (
            open(small / "ballast", "wb", buffering=0) as ballast,
            pytest.raises(OSError, match="space"),
        ):
            while True:
                ballast.write(b"\0" * 4096)
        workshop.begin(spec_of("y"))
        refused = workshop.outcome()
        assert isinstance(refused, events.SegmentRefused)
        error = refused.error.to_error()
        assert isinstance(error, NotEnoughMemoryError)
        assert "'y'" in str(error)
        assert os.listdir(os.path.dirname(first.path)) == [os.path.basename(first.path)]

        # A seal and a publication need the room of the new manifest too, and harm nothing.
        refused = workshop.seal(first, spec_of("x"))
        assert isinstance(refused, events.SealRefused)
        assert refused.error.code == ErrorCode.NOT_ENOUGH_MEMORY
        assert mode_of(first) == 0o600
        told = workshop.makers.publish(events.PublishGeneration(5, first.segment_id, "other", 2))
        assert isinstance(told, events.PublishRefused)
        assert [record.spec.name for record in workshop.written().values()] == ["x"]
        (small / "ballast").unlink()
        assert isinstance(workshop.seal(first, spec_of("x")), events.SegmentSealed)
    finally:
        workshop.close()


def test_a_directory_that_is_gone_is_an_error_and_not_the_end(
    workshop: Workshop, tmp_path: Path
) -> None:
    manifests = paths.manifests_path(str(tmp_path))
    os.rmdir(manifests)
    workshop.begin(spec_of("x"))
    refused = workshop.outcome()
    assert isinstance(refused, events.SegmentRefused)
    directory, _ = workshop.directories.on("/dev/shm")
    assert os.listdir(directory) == []
    os.mkdir(manifests)


def test_a_seal_is_written_down_with_its_checksum(workshop: Workshop) -> None:
    spec = spec_of("x")
    segment = workshop.make(spec)
    np.memmap(segment.path, np.float64, "r+", shape=(1000,))[:] = np.arange(1000)
    sealed = workshop.seal(segment, spec)
    assert isinstance(sealed, events.SegmentSealed)
    assert sealed.checksum
    record = workshop.written()[segment.segment_id]
    assert (record.sealed, record.checksum) == (True, sealed.checksum)
    assert mode_of(segment) == 0o400


def test_checksums_may_be_unwanted(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, checksums=False)
    try:
        spec = spec_of("x")
        segment = workshop.make(spec)
        sealed = workshop.seal(segment, spec)
        assert isinstance(sealed, events.SegmentSealed)
        assert sealed.checksum == workshop.written()[segment.segment_id].checksum == ""
    finally:
        workshop.close()


def test_what_is_found_wrong_at_the_seal_stays_writable(workshop: Workshop) -> None:
    spec = ArraySpec("A", (2, 2), "<f8", "csr", 3, "<i4")
    segment = workshop.make(spec)  # zeros: indptr does not end with 3
    refused = workshop.seal(segment, spec)
    assert isinstance(refused, events.SealRefused)
    assert isinstance(refused.error.to_error(), InvalidMatrixError)
    assert mode_of(segment) == 0o600
    assert not workshop.written()[segment.segment_id].sealed


def test_a_seal_of_what_was_destroyed_is_refused(workshop: Workshop) -> None:
    spec = spec_of("x")
    segment = workshop.make(spec)
    workshop.makers.unlink(segment)
    refused = workshop.seal(segment, spec)
    assert isinstance(refused.error.to_error(), SegmentChangedError)


def test_a_seal_does_not_keep_the_coordinator_from_stopping(workshop: Workshop) -> None:
    spec = spec_of("x")
    segment = workshop.make(spec)
    writer = os.open(segment.path, os.O_RDWR)
    try:
        workshop.makers.seal(events.SealSegment(77, segment, spec))
        assert not workshop.makers.hurried
        workshop.makers.hurry()
        assert workshop.makers.hurried
        refused = workshop.outcome()
        assert isinstance(refused.error.to_error(), (CancelledError, ArrayBusyError))
        assert mode_of(segment) == 0o600
    finally:
        os.close(writer)


def test_seals_that_wait_for_writers_keep_no_other_waiting(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(makers, "WRITER_PATIENCE_NS", 3600 * 10**9)
    spec = spec_of("x")
    kept = [workshop.make(spec) for _ in range(2 * MAKER_THREADS)]
    free = workshop.make(spec)
    writers = [os.open(segment.path, os.O_RDWR) for segment in kept]
    try:
        for segment in kept:
            workshop.makers.seal(events.SealSegment(segment.segment_id, segment, spec))
        sealed = workshop.seal(free, spec)
        assert isinstance(sealed, events.SegmentSealed)
        assert sealed.token == 77
        assert {mode_of(segment) for segment in kept} <= {0o600, 0o400}  # each is tried at times
    finally:
        for writer in writers:
            os.close(writer)
    told = [workshop.outcome() for _ in kept]
    assert {type(one) for one in told} == {events.SegmentSealed}
    assert {one.token for one in told} == {segment.segment_id for segment in kept}
    assert {mode_of(segment) for segment in kept} == {0o400}


def test_a_seal_is_refused_when_its_writer_has_not_let_go_in_time(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("x")
    segment = workshop.make(spec)
    tried: list[int] = []
    whole = select.seal_segment

    def tried_and_out_of_time(segment: Segment, file_mode: int) -> None:
        tried.append(len(tried))
        if len(tried) == 3:
            monkeypatch.setattr(makers, "WRITER_PATIENCE_NS", 0)
        whole(segment, file_mode)

    monkeypatch.setattr(makers, "WRITER_PATIENCE_NS", 3600 * 10**9)
    monkeypatch.setattr(select, "seal_segment", tried_and_out_of_time)
    written = np.memmap(segment.path, np.float64, "r+", shape=(1000,))
    refused = workshop.seal(segment, spec)
    error = refused.error.to_error()
    assert isinstance(error, ArrayBusyError)
    assert error.had == f"pid {os.getpid()}"
    assert "forked" in str(error)
    assert len(tried) == 3
    assert mode_of(segment) == 0o600
    del written
    assert isinstance(workshop.seal(segment, spec), events.SegmentSealed)


def test_large_seals_keep_no_small_one_waiting(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(makers, "SMALL_BYTES", 8192)
    small, large = spec_of("small"), spec_of("large", 8192)
    go_on = threading.Event()

    def read_for_long(segment: Segment, spec: ArraySpec, **options: Any) -> str:
        if spec.name == "large":
            go_on.wait()
        return check_sealed(segment, spec, **options)

    monkeypatch.setattr(makers, "check_sealed", read_for_long)
    try:
        for _ in range(MAKER_THREADS):
            workshop.makers.seal(events.SealSegment(1, workshop.make(large), large))
        sealed = workshop.seal(workshop.make(small), small)
        assert isinstance(sealed, events.SegmentSealed)
        assert sealed.token == 77
    finally:
        go_on.set()
    told = [workshop.outcome() for _ in range(MAKER_THREADS)]
    assert [(type(one), one.token) for one in told] == [(events.SegmentSealed, 1)] * MAKER_THREADS


def test_a_seal_that_nobody_can_try_again_is_refused(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("x")
    segment = workshop.make(spec)
    whole = select.seal_segment

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def sealed_without_threads(segment: Segment, file_mode: int) -> None:
        monkeypatch.setattr(threading.Thread, "start", refused)
        whole(segment, file_mode)

    writer = os.open(segment.path, os.O_RDWR)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(select, "seal_segment", sealed_without_threads)
            outcome = workshop.seal(segment, spec)
        monkeypatch.undo()
        assert isinstance(outcome, events.SealRefused)
        assert isinstance(outcome.error.to_error(), NotEnoughMemoryError)
        assert mode_of(segment) == 0o600
    finally:
        os.close(writer)
    assert isinstance(workshop.seal(segment, spec), events.SegmentSealed)


def test_a_publication_changes_name_and_generation_alone(workshop: Workshop) -> None:
    spec = spec_of("next")
    segment = workshop.make(spec)
    workshop.seal(segment, spec)
    before = workshop.written()[segment.segment_id]
    told = workshop.makers.publish(events.PublishGeneration(9, segment.segment_id, "x", 4))
    assert told == events.GenerationPublished(9)
    after = workshop.written()[segment.segment_id]
    assert (after.spec.name, after.generation) == ("x", 4)
    assert replace_names(after, before) == before
    gone = workshop.makers.publish(events.PublishGeneration(10, 12345, "y", 1))
    assert isinstance(gone, events.PublishRefused)
    assert gone.token == 10


def replace_names(record: ArrayRecord, like: ArrayRecord) -> ArrayRecord:
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return ArrayRecord(**{**fields, "spec": like.spec, "generation": like.generation})


@pytest.mark.parametrize("elements", [1000, 2 * UNLINK_BYTES // 8])
def test_a_manifest_goes_before_its_segment(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    segment = workshop.make(spec_of("x", elements))
    whole = select.unlink_segment
    written: list[dict[int, ArrayRecord]] = []

    def looked_and_unlinked(segment: Segment) -> None:
        written.append(workshop.written())
        whole(segment)

    monkeypatch.setattr(select, "unlink_segment", looked_and_unlinked)
    workshop.makers.unlink(segment)
    assert workshop.written() == {}
    assert settles(lambda: not os.path.exists(segment.path))
    workshop.makers.unlink(segment)
    assert settles(lambda: len(written) == 2)
    assert written == [{}, {}]


def test_what_is_cancelled_leaves_nothing(workshop: Workshop) -> None:
    token = workshop.begin(spec_of("x", 50_000_000))
    workshop.makers.cancel(token)
    workshop.makers.cancel(token + 1)
    outcome = workshop.outcome()
    if isinstance(outcome, events.SegmentMade):  # it was faster
        workshop.makers.unlink(outcome.segment)
    else:
        assert isinstance(outcome.error.to_error(), CancelledError)
    assert workshop.written() == {}
    directory, _ = workshop.directories.on("/dev/shm")
    assert settles(lambda: os.listdir(directory) == [])


def test_what_is_cancelled_when_its_segment_was_just_made_gets_no_manifest(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = select.make_segment

    def made_and_cancelled(*arguments: Any, **options: Any) -> Any:
        made = whole(*arguments, **options)
        assert os.path.exists(made[0].path)
        workshop.makers.cancel(made[0].segment_id)  # its token too
        return made

    monkeypatch.setattr(select, "make_segment", made_and_cancelled)
    workshop.begin(spec_of("x"))
    outcome = workshop.outcome()
    assert isinstance(outcome, events.SegmentRefused)
    assert isinstance(outcome.error.to_error(), CancelledError)
    assert workshop.written() == {}
    directory, _ = workshop.directories.on("/dev/shm")
    assert os.listdir(directory) == []


def test_what_is_cancelled_too_late_has_no_manifest_either(workshop: Workshop) -> None:
    token = workshop.begin(spec_of("x"))
    made = workshop.outcome()
    assert isinstance(made, events.SegmentMade)
    assert list(workshop.written()) == [made.segment.segment_id]
    workshop.makers.cancel(token)  # the state machine has not heard of it yet
    assert workshop.written() == {}
    workshop.makers.unlink(made.segment)

    token = workshop.begin(spec_of("y"))
    made = workshop.outcome()
    workshop.makers.settled(token)
    workshop.makers.cancel(token)
    assert list(workshop.written()) == [made.segment.segment_id]


def test_a_segment_that_cannot_be_removed_is_removed_later(
    tmp_path: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = mounts.tmpfs("size=1m,mode=0700")
    monkeypatch.setenv("HUGEPOOL_MOUNT", mount)
    workshop = Workshop(tmp_path)
    try:
        segment = replaced(workshop.make(spec_of("x")), mount, workshop)
        mounts.make_read_only(mount)
        workshop.makers.unlink(segment)
        assert os.path.exists(segment.path)
        workshop.makers.retry()
        assert os.path.exists(segment.path)
        mounts.make_writable(mount)
        workshop.makers.retry()
        assert not os.path.exists(segment.path)
    finally:
        workshop.close()


def test_a_segment_stays_until_its_manifest_could_be_removed(mounts: Mounts) -> None:
    """Else the next coordinator would find a destroyed array's name, and call it lost."""
    place = mounts.tmpfs("size=1m,mode=0700")
    workshop = Workshop(Path(place))
    try:
        segment = workshop.make(spec_of("x"))
        mounts.make_read_only(place)
        workshop.makers.unlink(segment)
        assert os.path.exists(segment.path)
        mounts.make_writable(place)
        assert list(workshop.written()) == [segment.segment_id]
        workshop.makers.retry()
        assert workshop.written() == {}
        assert not os.path.exists(segment.path)
    finally:
        workshop.close()


def replaced(made: Segment, mount: str, workshop: Workshop) -> Segment:
    """A segment on a mount, wherever the ladder put the first one."""
    dir_fd, dir_path = workshop.directories.on(mount)
    name = paths.segment_file_name(made.segment_id)
    os.close(os.open(name, os.O_CREAT | os.O_RDWR, 0o600, dir_fd=dir_fd))
    status = os.stat(name, dir_fd=dir_fd)
    path = os.path.join(dir_path, name)
    return msgspec.structs.replace(
        made, path=path, device=status.st_dev, inode=status.st_ino, length=4096
    )


def test_without_a_thread_to_do_it_an_act_is_refused_and_not_done_later(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("x", 2 * UNLINK_BYTES // 8)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        workshop.begin(spec)
        outcome = workshop.outcome()
        assert isinstance(outcome, events.SegmentRefused)
        assert isinstance(outcome.error.to_error(), NotEnoughMemoryError)
    segment = workshop.make(spec)
    assert list(workshop.written()) == [segment.segment_id], "the first one was given up"
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        assert isinstance(workshop.seal(segment, spec), events.SealRefused)
        assert mode_of(segment) == 0o600
        workshop.makers.unlink(segment)
        assert workshop.written() == {}
    assert os.path.exists(segment.path)
    workshop.makers.retry()
    assert settles(lambda: not os.path.exists(segment.path))


def test_an_embedded_coordinator_writes_nothing_down(tmp_path: Path) -> None:
    outcomes: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
    with SegmentDirectories() as directories:
        manifests = Manifests(str(tmp_path), durable=False)
        makers = Makers(
            Config(str(tmp_path), parent_pid=1), Origin("", 1), directories, manifests, outcomes.put
        )
        spec = spec_of("x")
        makers.make(events.MakeSegment(1, 1, spec, "off", "auto", "", ME, 1), OWNER)
        made = outcomes.get(timeout=60)
        assert isinstance(made, events.SegmentMade)
        makers.seal(events.SealSegment(2, made.segment, spec))
        assert isinstance(outcomes.get(timeout=60), events.SegmentSealed)
        told = makers.publish(events.PublishGeneration(3, 1, "y", 2))
        assert told == events.GenerationPublished(3)
        makers.unlink(made.segment)
        makers.stop()
    assert not os.path.exists(paths.manifests_path(str(tmp_path)))
