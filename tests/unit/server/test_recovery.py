from __future__ import annotations

import errno
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hugepool_common import paths
from hugepool_common.errors import CoordinatorRunningError, NotPermittedError
from hugepool_server import records as record_codec
from hugepool_server.manifests import Manifests
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import ArrayRecord
from hugepool_server.recovery import MOST_NAMED, Recovery, recover
from support.durable import (
    BOOT,
    LENGTH,
    OTHER_BOOT,
    STORE,
    Life,
    array_record,
    list_renames,
    session_record,
)
from support.host import Descriptors, Mounts, require


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mount").mkdir()
    return tmp_path / "mount"


def mode_of(record: ArrayRecord) -> int:
    return stat.S_IMODE(os.stat(record.segment.path).st_mode)


def test_whole_arrays_come_back_as_they_were(run: Path, place: Path) -> None:
    life = Life(run, place)
    assert life.recovery.event.arrays == ()
    assert list(life.recovery.lines()) == []
    records = (
        life.array(1, mode=0o400, sealed=True, checksum="crc32-16M:0123456789abcdef"),
        life.array(2),
        life.array(3, mode=0o400, sealed=True, generation=4),
    )
    life.kill()
    for _ in range(2):
        life = Life(run, place)
        assert life.recovery.event.arrays == records
        assert life.recovery.event.lost == frozenset()
        assert list(life.recovery.lines()) == []
        assert [mode_of(one) for one in records] == [0o400, 0o600, 0o400]
        life.kill()


def test_a_step_that_was_killed_is_ended(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1, mode=0o400, sealed=True)
    life.kill()
    changed = record_codec.encode(msgspec.structs.replace(record, generation=9))
    name = paths.manifest_name(record.segment.segment_id)
    (Path(paths.manifests_path(str(run))) / paths.unfinished_name(name)).write_bytes(changed)
    list_renames(str(run), f"{name} {zlib.crc32(changed):08x}")
    life = Life(run, place)
    assert [one.generation for one in life.recovery.event.arrays] == [9]
    assert list(life.recovery.lines()) == [
        "put 1 manifests in their places, after others of one step"
    ]
    life.kill()


def test_a_seal_that_was_killed_is_undone(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1, mode=0o400)
    life.kill()
    life = Life(run, place)
    assert life.recovery.event.arrays == (record,)
    assert mode_of(record) == 0o600
    assert list(life.recovery.lines()) == ["put back the mode of 1 segments"]
    life.kill()
    again = Life(run, place)
    assert list(again.recovery.lines()) == []
    again.kill()


def test_what_is_sealed_is_made_read_only_again(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1, mode=0o600, sealed=True)
    life.kill()
    life = Life(run, place)
    assert mode_of(record) == 0o400
    life.kill()


def test_a_group_is_given_what_the_last_one_did_not_have(run: Path, place: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give files to any group")
    life = Life(run, place)
    open_one, sealed = life.array(1), life.array(2, mode=0o400, sealed=True)
    life.kill()
    life = Life(run, place, group=65534, segment_mode=0o660)
    assert [mode_of(open_one), mode_of(sealed)] == [0o660, 0o440]
    assert os.stat(open_one.segment.path).st_gid == 65534
    assert life.recovery.changed_modes == 2
    directory = os.stat(os.path.dirname(sealed.segment.path))
    assert (stat.S_IMODE(directory.st_mode), directory.st_gid) == (0o710, 65534)
    life.kill()
    life = Life(run, place, group=65534, segment_mode=0o660)
    assert life.recovery.changed_modes == 0
    life.kill()
    life = Life(run, place)
    assert [mode_of(open_one), mode_of(sealed)] == [0o600, 0o400]
    life.kill()


def replaced_by_another_file(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.write_bytes(bytes(LENGTH))


def replaced_by_a_link(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


def replaced_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Path.unlink, "gone"),
        (replaced_by_another_file, "another file"),
        (replaced_by_a_link, "another file"),
        (replaced_by_a_fifo, "another file"),
        (lambda path: os.truncate(path, 100), "another file"),
        (lambda path: os.truncate(path, 2 * LENGTH), "another file"),
    ],
)
def test_memory_that_is_gone_or_another_is_lost(
    run: Path, place: Path, fault: Any, reason: str
) -> None:
    life = Life(run, place)
    record, whole = life.array(1), life.array(2)
    path = Path(record.segment.path)
    life.kill()
    fault(path)
    for _ in range(2):
        life = Life(run, place)
        assert life.recovery.event.arrays == (record, whole)
        assert life.recovery.event.lost == {record.segment.segment_id}
        [line] = [one for one in life.recovery.lines() if one.startswith("lost")]
        assert line.startswith("lost x1: ")
        assert reason in line
        # What is there in its place is not ours to judge.
        assert path.is_symlink() or path.exists() == (reason != "gone")
        life.kill()
    # Destroyed, its name is free; and what lay there is nobody's now.
    life = Life(run, place)
    life.manifests.remove(record.segment.segment_id)
    life.kill()
    life = Life(run, place)
    assert life.recovery.event.arrays == (whole,)
    life.directories.close()


def test_a_file_of_another_user_is_lost(run: Path, place: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give a file to another user")
    life = Life(run, place)
    first, second = life.array(1), life.array(2)
    os.chown(first.segment.path, 65534, 65534)
    os.chown(second.segment.path, 65534, 65534)
    segment = msgspec.structs.replace(second.segment, owner_uid=65534)
    life.manifests.update(segment.segment_id, segment=segment)  # even if it says so
    life.kill()
    life = Life(run, place)
    assert life.recovery.event.lost == {first.segment.segment_id, segment.segment_id}
    assert mode_of(second) == 0o600
    life.kill()


def test_only_a_regular_file_is_a_segment(run: Path, place: Path) -> None:
    life = Life(run, place)
    segment_id, path = life.segment(1)
    path.unlink()
    path.mkdir()
    status = path.stat()
    require("directory", status.st_size == LENGTH, "directories here are of no page's length")
    life.manifests.write(array_record(segment_id, str(path), status))
    life.kill()
    life = Life(run, place)
    assert life.recovery.event.lost == {segment_id}
    life.kill()


def test_a_manifest_may_not_point_elsewhere(run: Path, place: Path) -> None:
    """Its checksum is right, and yet nothing outside our directories is believed or touched."""
    life = Life(run, place)
    record = life.array(1, mode=0o400)
    directory = os.path.dirname(record.segment.path)
    outside = place / "outside"
    outside.mkdir()
    os.link(record.segment.path, outside / paths.segment_file_name(record.segment.segment_id))
    os.link(record.segment.path, os.path.join(directory, "other"))
    for path in (
        str(outside / paths.segment_file_name(record.segment.segment_id)),
        os.path.join(directory, "other"),
        os.path.join(directory, "..", NAME, os.path.basename(record.segment.path)),
    ):
        segment = msgspec.structs.replace(record.segment, path=path)
        life.manifests.update(segment.segment_id, segment=segment)
        life.kill()
        life = Life(run, place)
        assert life.recovery.event.lost == {segment.segment_id}
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o400
    life.kill()


NAME = paths.segment_directory_name(os.geteuid(), STORE)


def test_a_mount_that_went_away_loses_its_arrays_only(
    run: Path, place: Path, mounts: Mounts
) -> None:
    life = Life(run, place)
    here = life.array(1)
    there = Path(mounts.tmpfs("size=1M"))
    life.place = there
    record = life.array(2)
    life.kill()
    (there / NAME).rename(there / "hidden")
    life = Life(run, place)
    assert life.gone == (str(there / NAME),)
    assert life.recovery.event.lost == {record.segment.segment_id}
    assert life.recovery.event.arrays == (here, record)
    life.kill()
    # Back again, and nothing was lost after all.
    (there / "hidden").rename(there / NAME)
    life = Life(run, place)
    assert life.recovery.event.lost == frozenset()
    life.directories.close()


def test_segments_on_huge_pages_come_back(run: Path, mounts: Mounts, few_huge_pages: int) -> None:
    place = Path(mounts.hugetlbfs("pagesize=2M,size=4M"))
    life = Life(run, place)
    _, directory = life.directories.on(str(place))
    segment_id = (1 << 32) + 1
    path = Path(directory) / paths.segment_file_name(segment_id)
    path.touch(mode=0o400)
    os.truncate(path, 2 << 20)
    record = array_record(segment_id, str(path), path.stat())
    segment = msgspec.structs.replace(record.segment, length=2 << 20, page_size=2 << 20)
    record = msgspec.structs.replace(record, segment=segment)
    life.manifests.write(record)
    life.kill()
    life = Life(run, place)
    assert life.recovery.event == type(life.recovery.event)((record,), frozenset(), ())
    assert mode_of(record) == 0o600
    life.directories.close()
    assert os.listdir(place) == []


def test_a_segment_without_a_manifest_is_removed(run: Path, place: Path) -> None:
    """Killed between the link and the manifest, or between the manifest's end and the file's."""
    life = Life(run, place)
    record = life.array(1)
    _, never = life.segment(2)
    destroyed = life.array(3)
    life.manifests.remove(destroyed.segment.segment_id)
    unfinished = never.with_name(paths.unpublished_file_name((1 << 32) + 1))
    unfinished.write_bytes(b"x")
    life.kill()
    life = Life(run, place)
    assert life.recovery.event.arrays == (record,)
    assert life.recovery.orphans.count == 3
    assert "removed 3 segments without a manifest" in list(life.recovery.lines())
    assert sorted(os.listdir(never.parent)) == sorted(
        [os.path.basename(record.segment.path), paths.owner_mark_name(str(run))]
    )
    life.kill()


def test_segments_without_a_manifest_are_named_in_the_log(run: Path, place: Path) -> None:
    """A manifest that was removed from outside: nothing else is left that tells of the array."""
    life = Life(run, place)
    gone = [life.array(number) for number in range(1, MOST_NAMED + 3)]
    for record in gone:
        life.manifest(record).unlink()
    life.kill()
    life = Life(run, place)
    lines = list(life.recovery.lines())
    assert lines[0] == f"removed {MOST_NAMED + 2} segments without a manifest"
    named = {line.rpartition(": ")[2] for line in lines[1:-1]}
    assert len(named) == MOST_NAMED
    assert named < {record.segment.path for record in gone}
    assert lines[-1] == "and 2 more"
    life.kill()


def test_a_manifest_that_was_not_finished_is_none(run: Path, place: Path) -> None:
    life = Life(run, place)
    _, path = life.segment(1)
    half = Path(paths.manifests_path(str(run))) / (".tmp-" + paths.manifest_name((1 << 32) + 1))
    half.write_bytes(b"hugepool-array 1")
    life.kill()
    life = Life(run, place)
    assert life.recovery.event.arrays == ()
    assert not half.exists()
    assert not path.exists()
    assert list(life.recovery.lines()) == [
        "removed 1 segments without a manifest",
        f"never published, or its manifest was removed from outside: {path}",
        "removed 1 manifests that were not finished",
    ]
    life.kill()


def test_the_segment_of_a_damaged_manifest_is_kept(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1)
    damaged = life.manifest(record).read_bytes()[:-2]
    life.manifest(record).write_bytes(damaged)
    life.kill()
    told = []
    for _ in range(3):
        life = Life(run, place)
        assert life.recovery.event.arrays == ()
        assert os.path.exists(record.segment.path)
        told.append(list(life.recovery.lines()))
        life.kill()
    kept = f"kept until its manifest is removed from quarantine: {record.segment.path}"
    assert told[0][0].startswith(f"put {life.manifest(record).name} into quarantine: ")
    assert [told[0][1:], *told[1:]] == [[kept]] * 3
    # A person has looked at it.
    (Path(paths.quarantine_path(str(run))) / life.manifest(record).name).unlink()
    life = Life(run, place)
    assert life.recovery.orphans.count == 1
    life.kill()


def test_another_boot_leaves_nothing(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1)
    life.kill()
    os.unlink(record.segment.path)
    life = Life(run, place, boot=OTHER_BOOT)
    assert life.recovery.event.arrays == ()
    assert life.record.directories == ()
    assert list(life.recovery.lines()) == ["removed 1 manifests of another boot"]
    life.directories.close()


def test_sessions_are_of_this_boot(run: Path) -> None:
    alive, dead = session_record(), session_record(7, boot_id=OTHER_BOOT)
    with Manifests(str(run)) as manifests, SegmentDirectories(store=STORE) as directories:
        found = recover(manifests, directories, (dead, alive), boot=BOOT, segment_mode=0o600)
    assert found.event.sessions == (alive,)
    assert found.dead_sessions == 1


def test_what_is_not_ours_is_told(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1)
    left = {life.manifest(record).with_name("notes"), Path(record.segment.path).with_name("notes")}
    for path in left:
        path.touch()
    life.kill()
    life = Life(run, place)
    assert set(life.recovery.lines()) == {f"left alone, for it is not ours: {one}" for one in left}
    life.kill()


@pytest.mark.parametrize("call", ["open", "chmod", "chown"])
def test_what_cannot_be_looked_at_is_not_lost(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    life = Life(run, place)
    record = life.array(1, mode=0o400)
    orphan = life.segment(2)[1]
    life.kill()
    real: Any = getattr(os, call)

    def fail(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(".segment") or str(path).startswith("/proc/self/fd/"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **options)

    group = 65534 if call == "chown" else None
    if group is not None:
        require("unprivileged", os.geteuid() == 0, "needs root to give files to any group")
    descriptors = Descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(NotPermittedError, match="Input/output"):
            Life(run, place, group=group)
    assert not descriptors.opened()
    assert orphan.exists()
    life = Life(run, place)
    assert life.recovery.event.arrays == (record,)
    assert (life.recovery.event.lost, life.recovery.orphans.count) == (frozenset(), 1)
    life.kill()


def test_a_mount_that_became_read_only_gives_what_it_has(run: Path, mounts: Mounts) -> None:
    place = Path(mounts.tmpfs("size=1M"))
    life = Life(run, place)
    record, sealed = life.array(1, mode=0o400), life.array(2, mode=0o400, sealed=True)
    orphan = life.segment(3)[1]
    life.kill()
    mounts.make_read_only(str(place))
    life = Life(run, place)
    assert life.recovery.event.arrays == (record, sealed)
    assert life.recovery.event.lost == frozenset()
    assert list(life.recovery.lines()) == [f"left alone, for it is not ours: {orphan}"]
    life.kill()


def test_two_coordinators_do_not_recover_one_store(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hugepool_server.reclaim.LOCK_PATIENCE_NS", 0)
    life = Life(run, place)
    record = life.array(1)
    with pytest.raises(CoordinatorRunningError):
        Life(run, place)
    assert os.path.exists(record.segment.path)
    life.kill()


def _outcome(recovery: Recovery) -> tuple[object, ...]:
    return (recovery.event, recovery.lost)


@pytest.mark.parametrize("call", ["unlink", "rename", "chmod"])
def test_a_recovery_cut_short_anywhere_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The coordinator dies before its n-th call that changes anything, for every n."""

    class Killed(BaseException):
        pass

    def prepare(base: Path) -> tuple[Path, Path]:
        run, place = base / "run", base / "mount"
        run.mkdir(parents=True, mode=0o700)
        place.mkdir()
        life = Life(run, place)
        life.array(1, mode=0o400)
        life.array(2, mode=0o600, sealed=True)
        life.segment(3)
        life.segment(4)
        gone, stale, damaged = life.array(5), life.array(6, boot_id=OTHER_BOOT), life.array(7)
        os.unlink(gone.segment.path)
        os.unlink(stale.segment.path)
        life.manifest(damaged).write_bytes(b"?")
        life.manifest(damaged).with_name(".tmp-" + life.manifest(gone).name).touch()
        life.kill()
        return run, place

    def state(base: Path) -> set[tuple[str, int]]:
        return {
            (str(one.relative_to(base)), stat.S_IMODE(one.lstat().st_mode))
            for one in base.rglob("*")
            if "owner:" not in one.name
        }

    run, place = prepare(tmp_path / "whole")
    whole = Life(run, place)
    whole.kill()
    wanted = state(tmp_path / "whole")
    names = [(one.spec.name, one.sealed) for one in whole.recovery.event.arrays]
    real: Any = getattr(os, call)
    count = 0
    for nth in range(1, 100):
        base = tmp_path / f"{call}-{nth}"
        run, place = prepare(base)
        count = 0

        def counted(*args: Any, nth: int = nth, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count >= nth:
                raise Killed
            return real(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, counted)
            try:
                Life(run, place).kill()
            except Killed:
                pass
        life = Life(run, place)
        life.kill()
        assert [(one.spec.name, one.sealed) for one in life.recovery.event.arrays] == names
        assert len(life.recovery.event.lost) == 1
        # An epoch that was not finished leaves its file to the next one's.
        assert state(base) == wanted
        if count < nth:
            break
    assert count >= 2, "nothing was cut short"
