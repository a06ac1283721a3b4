from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hugepool_common import paths
from hugepool_common.errors import CoordinatorRunningError, DetachedError, NotPermittedError
from hugepool_server import manifests, reclaim, remains
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import CoordinatorRecord
from hugepool_server.remains import Reclaimed
from support.durable import BOOT, OTHER_BOOT, STORE, Life
from support.host import Descriptors, Mounts, require

DEAD = paths.segment_directory_name(os.geteuid(), "0123456789abcdef")


def _dead_directory(place: Path, files: dict[str, int] | None = None) -> Path:
    made = place / DEAD
    made.mkdir(mode=0o700)
    for name, count in (files or {}).items():
        (made / name).write_bytes(b"x" * count)
    return made


@pytest.fixture(autouse=True)
def _no_preferred_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUGEPOOL_MOUNT", raising=False)


def test_a_directory_is_made_once_private_and_locked(tmp_path: Path) -> None:
    with SegmentDirectories() as directories:
        fd, path = directories.on(str(tmp_path))
        assert directories.on(str(tmp_path)) == (fd, path)
        assert paths.segment_directory_owner(os.path.basename(path)) == os.geteuid()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        other = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(other)
    assert not os.path.exists(path)


def test_a_group_may_enter_but_not_write(tmp_path: Path) -> None:
    with SegmentDirectories(group=os.getegid()) as directories:
        status = os.stat(directories.on(str(tmp_path))[1])
        assert stat.S_IMODE(status.st_mode) == 0o710
        assert status.st_gid == os.getegid()


def test_many_threads_get_one_directory(tmp_path: Path) -> None:
    found: list[str] = []
    with SegmentDirectories() as directories:
        threads = [
            threading.Thread(target=lambda: found.append(directories.on(str(tmp_path))[1]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert len(os.listdir(tmp_path)) == 1


def test_close_removes_segments_and_nothing_else(tmp_path: Path) -> None:
    directories = SegmentDirectories()
    _, path = directories.on(str(tmp_path))
    (Path(path) / "00000001.segment").write_bytes(b"x")
    (Path(path) / "notes.txt").write_bytes(b"x")
    directories.close()
    directories.close()
    assert os.listdir(path) == ["notes.txt"]
    assert repr(directories) == "<SegmentDirectories closed>"
    with pytest.raises(DetachedError):
        directories.on(str(tmp_path))


def test_a_sweep_removes_what_the_dead_left(tmp_path: Path) -> None:
    files = {"00000001.segment": 4096, ".tmp-00000002.segment": 8192}
    dead = _dead_directory(tmp_path, files)
    with SegmentDirectories() as directories:
        reclaimed = directories.sweep([str(tmp_path), "/no/such/place", str(tmp_path)])
        assert (reclaimed.count, reclaimed.left) == (2, ())
        assert reclaimed.nbytes >= 12288
        assert not dead.exists()
        assert directories.sweep([str(tmp_path)]) == Reclaimed(0, 0)


def test_a_sweep_looks_at_the_preferred_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _dead_directory(tmp_path, {"00000001.segment": 1})
    monkeypatch.setenv("HUGEPOOL_MOUNT", str(tmp_path))
    assert SegmentDirectories().sweep([]).count == 1


def test_a_sweep_leaves_the_living_alone(tmp_path: Path) -> None:
    with SegmentDirectories() as living, SegmentDirectories() as sweeper:
        _, path = living.on(str(tmp_path))
        (Path(path) / "00000001.segment").write_bytes(b"x")
        sweeper.on(str(tmp_path))
        assert sweeper.sweep([str(tmp_path)]) == Reclaimed(0, 0)
        assert os.listdir(path) == ["00000001.segment"]
        assert len(os.listdir(tmp_path)) == 2


def test_a_sweep_leaves_what_is_not_ours(tmp_path: Path) -> None:
    dead = _dead_directory(tmp_path, {"00000001.segment": 1, "notes.txt": 1})
    (dead / "00000002.segment").mkdir()
    (dead / "00000003.segment").symlink_to("/etc/passwd")
    (tmp_path / "hugepool-x-0123456789abcdef").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "00000001.segment").touch()
    name = paths.segment_directory_name(os.geteuid(), "f" * 16)
    (tmp_path / name).symlink_to(target)
    reclaimed = SegmentDirectories().sweep([str(tmp_path)])
    assert reclaimed.count == 1
    assert sorted(map(os.path.basename, reclaimed.left)) == [
        "00000002.segment",
        "00000003.segment",
        "notes.txt",
    ]
    assert (target / "00000001.segment").exists()
    assert sorted(os.listdir(dead)) == ["00000002.segment", "00000003.segment", "notes.txt"]


def test_a_sweep_leaves_the_directories_of_other_users(tmp_path: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give a file to another user")
    dead = _dead_directory(tmp_path, {"00000001.segment": 1})
    os.chown(dead, 65534, 65534)
    assert SegmentDirectories().sweep([str(tmp_path)]).left == (str(dead),)
    other = tmp_path / paths.segment_directory_name(65534, "0123456789abcdef")
    dead.rename(other)
    assert SegmentDirectories().sweep([str(tmp_path)]) == Reclaimed(0, 0)
    assert (other / "00000001.segment").exists()


def test_a_killed_coordinator_is_swept_and_its_reader_reads_on(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from hugepool_server.reclaim import SegmentDirectories
fd, path = SegmentDirectories().on({str(tmp_path)!r})
open(os.path.join(path, "00000001.segment"), "wb").write(b"abc")
print(path, flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    path = Path(child.stdout.readline().strip())
    with SegmentDirectories() as directories:
        assert directories.sweep([str(tmp_path)]).count == 0
        with open(path / "00000001.segment", "rb") as reader:
            child.kill()
            child.wait()
            assert directories.sweep([str(tmp_path)]).count == 1
            assert reader.read() == b"abc"
    assert not path.exists()
    child.stdin.close()
    child.stdout.close()


def test_a_directory_swept_between_mkdir_and_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeper of another coordinator comes at each point of the race in turn."""
    real_mkdir, real_locked = os.mkdir, remains.try_lock
    seen: list[str] = []

    def mkdir(path: str, mode: int = 0o777) -> None:
        real_mkdir(path, mode)
        seen.append(path)
        if len(seen) == 1:  # removed before it is opened
            os.rmdir(path)

    def locked(fd: int) -> bool:
        if len(seen) == 2:  # held by the sweeper
            holder = os.open(seen[-1], os.O_RDONLY)
            fcntl.flock(holder, fcntl.LOCK_EX)
            try:
                return real_locked(fd)
            finally:
                os.close(holder)
        if len(seen) == 3:  # removed before it is locked
            os.rmdir(seen[-1])
        return real_locked(fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(reclaim, "try_lock", locked)
    descriptors = Descriptors()
    with SegmentDirectories() as directories:
        _, path = directories.on(str(tmp_path))
        assert path == seen[3]
        assert len(seen) == 4
        assert os.path.isdir(path)
    assert not descriptors.opened()


def test_a_group_that_may_not_be_given_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with SegmentDirectories(group=1) as directories, pytest.raises(NotPermittedError):
        directories.on(str(tmp_path))
    assert not os.listdir(tmp_path)


# Directories that outlive their coordinator ------------------------------------

NAME = paths.segment_directory_name(os.geteuid(), STORE)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mount").mkdir()
    return tmp_path / "mount"


def sweep(place: Path, boot: str = BOOT) -> Reclaimed:
    """What a coordinator that has nothing to do with the others would do."""
    with SegmentDirectories() as stranger:
        return stranger.sweep([str(place)], boot=boot)


def test_a_store_has_the_same_directory_in_every_life(run: Path, place: Path) -> None:
    first = Life(run, place)
    first.array(1)
    assert os.listdir(place) == [NAME]
    assert first.record.directories == (str(place / NAME),)
    first.kill()
    second = Life(run, place)
    assert second.record.directories == (str(place / NAME),)
    fd, path = second.directories.on(str(place))
    assert path == str(place / NAME)
    assert second.directories.find(path + "/x") == fd
    assert second.directories.find(str(place / "x")) is None
    with pytest.raises(BlockingIOError):
        _lock(place / NAME)
    second.directories.close()
    assert os.listdir(place) == []


def test_the_mark_says_whose_segments_they_are(run: Path, place: Path) -> None:
    life = Life(run, place)
    _, path = life.directories.on(str(place))
    [mark] = os.listdir(path)
    assert paths.owner_mark_path(mark) == str(run)
    assert os.stat(os.path.join(path, mark)).st_size == 0
    life.directories.close(keep=True)
    assert os.listdir(path) == [mark]


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs"])
def test_every_file_system_takes_the_mark(
    run: Path, mounts: Mounts, kind: str, few_huge_pages: int
) -> None:
    """A symbolic link would not do: hugetlbfs has none. And a mark takes no page."""
    if kind == "hugetlbfs":
        place = Path(mounts.hugetlbfs("pagesize=2M,size=4M,min_size=4M"))
    else:
        place = Path(mounts.tmpfs("size=4M"))
    before = os.statvfs(place).f_bfree
    life = Life(run, place)
    _, path = life.directories.on(str(place))
    assert paths.owner_mark_path(os.listdir(path)[0]) == str(run)
    assert os.statvfs(place).f_bfree == before
    life.kill()
    assert sweep(place) == Reclaimed(0, 0)
    Life(run, place).directories.close()
    assert os.listdir(place) == []


def test_nobody_sweeps_what_the_next_coordinator_will_come_for(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(run, place)
    record = life.array(1)
    life.kill()
    with monkeypatch.context() as patched:
        # Not even locked, lest the next coordinator find it so.
        patched.setattr(remains, "try_lock", lambda fd: pytest.fail("it was locked"))
        assert sweep(place) == Reclaimed(0, 0)
    assert os.path.exists(record.segment.path)
    life = Life(run, place)
    assert life.recovery.event.arrays == (record,)
    life.directories.close()


@pytest.mark.parametrize("change", ["boot", "store", "record", "run", "mark"])
def test_what_nobody_will_come_for_is_swept(run: Path, place: Path, change: str) -> None:
    life = Life(run, place)
    life.array(1)
    life.kill()
    if change == "boot":
        assert sweep(place, boot=OTHER_BOOT).count == 1
    elif change == "store":
        other = CoordinatorRecord(9, "f" * 16, (), BOOT)
        manifests.write_coordinator(str(run), other)
    elif change == "record":
        (run / paths.COORDINATOR_NAME).unlink()
        shutil.rmtree(paths.manifests_path(str(run)))
    elif change == "run":
        run.rename(run.with_name("moved"))
    else:
        (place / NAME / paths.owner_mark_name(str(run))).unlink()
    assert sweep(place).count == (change != "boot")
    assert os.listdir(place) == []


def test_what_cannot_be_judged_is_left_and_told(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1)
    life.kill()
    (run / paths.COORDINATOR_NAME).write_bytes(b"?")
    assert sweep(place) == Reclaimed(0, 0, (str(place / NAME),))
    again = Life(run, place)
    assert again.record.store == STORE
    assert again.recovery.event.arrays == (record,)
    again.kill()


def test_manifests_alone_tell_that_somebody_will_come(run: Path, place: Path) -> None:
    """The next coordinator makes up a record that is gone, so nobody may sweep until then."""
    life = Life(run, place)
    record = life.array(1)
    life.kill()
    (run / paths.COORDINATOR_NAME).unlink()
    assert sweep(place) == Reclaimed(0, 0)
    again = Life(run, place)
    assert again.record.store == STORE
    assert again.recovery.event.arrays == (record,)
    again.kill()


def test_a_segment_in_quarantine_outlives_even_its_store(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1)
    life.kill()
    life.manifest(record).write_bytes(b"?")
    life = Life(run, place)
    assert life.recovery.found.quarantined == {record.segment.segment_id}
    life.kill()
    (run / paths.COORDINATOR_NAME).unlink()
    assert sweep(place) == Reclaimed(0, 0)
    assert os.path.exists(record.segment.path)
    (Path(paths.quarantine_path(str(run))) / life.manifest(record).name).unlink()
    assert sweep(place).count == 1


def test_a_sweep_spares_what_it_is_told_to(tmp_path: Path) -> None:
    dead = _dead_directory(tmp_path, {"00000001.segment": 1, "00000002.segment": 1})
    kept = str(dead / "00000001.segment")
    with SegmentDirectories() as directories:
        assert directories.sweep([str(tmp_path)], keep={kept}).count == 1
    assert os.listdir(dead) == ["00000001.segment"]


def test_a_coordinator_does_not_sweep_its_own(run: Path, place: Path) -> None:
    life = Life(run, place)
    record = life.array(1)
    assert life.directories.sweep([str(place)], boot=BOOT) == Reclaimed(0, 0)
    assert os.path.exists(record.segment.path)
    life.directories.close()


def test_only_what_is_to_be_kept_is_kept(run: Path, place: Path) -> None:
    life = Life(run, place)
    kept, path = life.array(1).segment.path, Path(life.directories.on(str(place))[1])
    for name in ("0000000000000007.segment", ".tmp-0000000000000008.segment", "00000009.segment"):
        (path / name).write_bytes(b"x")
    (path / "notes.txt").touch()
    pruned = life.directories.prune(lambda one: one == kept)
    assert (pruned.count, pruned.left) == (3, (str(path / "notes.txt"),))
    mark = paths.owner_mark_name(str(run))
    assert sorted(os.listdir(path)) == sorted([os.path.basename(kept), "notes.txt", mark])
    life.directories.close()
    assert sorted(os.listdir(path)) == sorted(["notes.txt", mark])  # and so is the directory


def test_a_directory_is_noted_before_it_is_marked(run: Path, place: Path) -> None:
    """A kill in between leaves one that anybody may remove, not one that waits for ever."""
    seen: list[list[str]] = []

    def made(path: str) -> None:
        seen.append(os.listdir(path))

    with SegmentDirectories(store=STORE, owner=str(run), made=made) as directories:
        directories.on(str(place))
        directories.on(str(place))
    assert seen == [[]]
    (place / NAME).mkdir(mode=0o700)
    assert sweep(place) == Reclaimed(0, 0)
    assert os.listdir(place) == []


def test_a_directory_that_cannot_be_noted_is_not_made(run: Path, place: Path) -> None:
    def refuse(path: str) -> None:
        raise OSError(28, "No space left on device", path)

    descriptors = Descriptors()
    with SegmentDirectories(store=STORE, owner=str(run), made=refuse) as directories:
        with pytest.raises(OSError, match="No space"):
            directories.on(str(place))
        assert os.listdir(place) == []
        (place / NAME).mkdir()  # one that was there stays, with all that is in it
        with pytest.raises(OSError, match="No space"):
            directories.on(str(place))
        assert os.listdir(place) == [NAME]
    assert not descriptors.opened()


def test_one_mount_has_one_directory_under_every_path(run: Path, place: Path) -> None:
    (place.parent / "alias").symlink_to(place)
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        descriptors = Descriptors()
        fd, path = directories.on(str(place))
        assert directories.on(str(place.parent / "alias")) == (fd, path)
        assert len(descriptors.opened()) == 1
    assert os.listdir(place) == []


def test_what_is_taken_over_is_made_private_again(run: Path, place: Path) -> None:
    (place / NAME).mkdir(mode=0o755)
    (place / NAME / paths.owner_mark_name("/run/before")).touch()
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        _, path = directories.on(str(place))
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        assert os.listdir(path) == [paths.owner_mark_name(str(run))]
    # Without an owner there is nobody to name.
    with SegmentDirectories(store=STORE) as directories:
        assert os.listdir(directories.on(str(place))[1]) == []


def test_another_process_may_not_have_locked_it(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "LOCK_PATIENCE_NS", 0)
    (place / NAME).mkdir(mode=0o700)
    holder = _lock(place / NAME)
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        for act in (
            lambda: directories.on(str(place)),
            lambda: directories.adopt([str(place / NAME)]),
        ):
            with pytest.raises(CoordinatorRunningError, match=r"another process.*fuser"):
                act()
        os.close(holder)
        assert directories.adopt([str(place / NAME)]) == ()
        assert directories.adopt([str(place / NAME)]) == ()


def test_a_sweep_that_has_it_for_a_moment_is_waited_for(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / NAME).mkdir(mode=0o700)
    holders = [_lock(place / NAME)]

    def let_go(seconds: float) -> None:
        os.close(holders.pop())

    monkeypatch.setattr(reclaim, "LOCK_PATIENCE_NS", 1 << 60)
    monkeypatch.setattr("time.sleep", let_go)
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        assert directories.adopt([str(place / NAME)]) == ()
        assert directories.find(str(place / NAME / "x")) is not None


def test_what_is_gone_or_another_is_not_adopted(run: Path, place: Path) -> None:
    other = paths.segment_directory_name(os.geteuid(), "f" * 16)
    for name in ("file", "link", "mount"):
        (place / name).mkdir()
    (place / "file" / NAME).touch()
    (place / "link" / NAME).symlink_to(place)
    (place / "mount" / other).mkdir()
    asked = [str(place / name / NAME) for name in ("file", "link", "nothing")]
    asked += [str(place / "mount" / other)]
    descriptors = Descriptors()
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        assert directories.adopt(asked) == tuple(asked)
        assert not descriptors.opened()
    assert (place / "mount" / other).exists()


def test_what_another_user_planted_is_not_taken(run: Path, place: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give a file to another user")
    (place / NAME).mkdir(mode=0o700)
    os.chown(place / NAME, 65534, 65534)
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        assert directories.adopt([str(place / NAME)]) == (str(place / NAME),)
        with pytest.raises(PermissionError, match="another user"):
            directories.on(str(place))
    assert (place / NAME).exists()


def test_a_link_planted_in_the_place_of_a_directory_is_not_followed(run: Path, place: Path) -> None:
    target = place.parent / "target"
    target.mkdir()
    (place / NAME).symlink_to(target)
    with (
        SegmentDirectories(store=STORE, owner=str(run)) as directories,
        pytest.raises(NotADirectoryError),
    ):
        directories.on(str(place))
    assert os.listdir(target) == []


def _remove_once(path: Path) -> Callable[[], None]:
    left = [path]

    def remove() -> None:
        if left:
            os.rmdir(left.pop())

    return remove


@pytest.mark.parametrize("moment", ["open", "lock"])
def test_one_swept_while_it_is_made_is_made_anew(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    remove = _remove_once(place / NAME)
    real_mkdir, real_lock = reclaim._mkdir, remains.try_lock

    def mkdir(path: str) -> bool:
        made = real_mkdir(path)
        if moment == "open":
            remove()
        return made

    def lock(fd: int) -> bool:
        if moment == "lock":
            remove()
        return real_lock(fd)

    monkeypatch.setattr(reclaim, "_mkdir", mkdir)
    monkeypatch.setattr(reclaim, "try_lock", lock)
    descriptors = Descriptors()
    with SegmentDirectories(store=STORE, owner=str(run)) as directories:
        fd, path = directories.on(str(place))
        assert os.path.samestat(os.stat(path), os.fstat(fd))
    assert not descriptors.opened()


def test_one_swept_before_it_is_adopted_is_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / NAME).mkdir(mode=0o700)
    remove, real = _remove_once(place / NAME), remains.try_lock

    def lock(fd: int) -> bool:
        remove()
        return real(fd)

    monkeypatch.setattr(reclaim, "try_lock", lock)
    with SegmentDirectories(store=STORE) as directories:
        assert directories.adopt([str(place / NAME)]) == (str(place / NAME),)


@pytest.mark.parametrize("random", [True, False])
def test_a_directory_that_is_always_swept_is_given_up(
    place: Path, monkeypatch: pytest.MonkeyPatch, random: bool
) -> None:
    real = os.mkdir

    def mkdir(path: str, mode: int) -> None:
        real(path, mode)
        os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    directories = SegmentDirectories(store=None if random else STORE)
    with pytest.raises(BlockingIOError, match="as soon as made"):
        directories.on(str(place))


def test_a_sweep_looks_again_once_it_holds_the_lock(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the lock the owner has put in its mark and died."""
    life = Life(run, place)
    record = life.array(1)
    life.kill()
    mark = place / NAME / paths.owner_mark_name(str(run))
    mark.unlink()
    real = remains.try_lock

    def lock(fd: int) -> bool:
        mark.touch()
        return real(fd)

    monkeypatch.setattr(remains, "try_lock", lock)
    assert sweep(place) == Reclaimed(0, 0)
    assert os.path.exists(record.segment.path)


def test_a_directory_made_anew_meanwhile_is_not_the_one_to_be_swept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = _dead_directory(place)
    real = remains.try_lock

    def lock(fd: int) -> bool:
        dead.rmdir()
        dead.mkdir()
        return real(fd)

    monkeypatch.setattr(remains, "try_lock", lock)
    assert sweep(place) == Reclaimed(0, 0)
    assert dead.exists()


def test_what_is_swept_by_two_is_swept_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = _dead_directory(place, {"00000001.segment": 1})
    real_lock, real_stat = remains.try_lock, os.stat

    def lock(fd: int) -> bool:  # the other one is quicker
        monkeypatch.setattr(remains, "try_lock", real_lock)
        assert sweep(place).count == 1
        return real_lock(fd)

    monkeypatch.setattr(remains, "try_lock", lock)
    assert sweep(place) == Reclaimed(0, 0)
    assert not dead.exists()
    dead.mkdir()
    (dead / "00000001.segment").touch()

    def vanish(path: str, **options: Any) -> os.stat_result:
        if path == "00000001.segment":  # or a person
            (dead / path).unlink()
        return real_stat(path, **options)

    monkeypatch.setattr(os, "stat", vanish)
    assert sweep(place) == Reclaimed(0, 0)
    assert not dead.exists()


def test_what_cannot_be_removed_keeps_nobody_from_starting(mounts: Mounts) -> None:
    place = Path(mounts.tmpfs("size=1M"))
    dead = _dead_directory(place, {"00000001.segment": 1})
    empty = place / paths.segment_directory_name(os.geteuid(), "e" * 16)
    empty.mkdir()
    mounts.make_read_only(str(place))
    assert sweep(place) == Reclaimed(0, 0, (str(dead / "00000001.segment"),))
    assert dead.exists()


def test_a_directory_that_cannot_be_removed_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = _dead_directory(place, {"00000001.segment": 1})

    def refuse(path: str) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "rmdir", refuse)
    assert sweep(place).left == (str(dead),)


def test_one_that_cannot_be_removed_keeps_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (place / name).mkdir()
    descriptors = Descriptors()
    directories = SegmentDirectories(store=STORE)
    stuck = directories.on(str(place / "b"))[1]
    directories.on(str(place / "a"))
    real = os.rmdir

    def refuse(path: str) -> None:
        if path == stuck:
            raise PermissionError(1, "Operation not permitted", path)
        real(path)

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(PermissionError):
        directories.close()
    assert os.listdir(place / "a") == []
    assert not descriptors.opened()


def test_a_marks_name_tells_the_path_again() -> None:
    for path in ("/run/hugepool", "/a:b/%3A%25/c d", "/", "/tmp/\udcff"):
        name = paths.owner_mark_name(path)
        assert "/" not in name
        assert paths.owner_mark_path(name) == path
    assert paths.owner_mark_name("/run/hugepool") == "owner:run:hugepool"
    assert paths.owner_mark_path("owner") is None
    assert paths.owner_mark_path("0000000000000001.segment") is None


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


# Moved or removed from outside --------------------------------------------------


@pytest.mark.parametrize("store", [STORE, None])
def test_a_directory_that_was_removed_is_made_anew(place: Path, store: str | None) -> None:
    told: list[str] = []
    (place.parent / "alias").symlink_to(place)
    with SegmentDirectories(store=store, owner="/run/x", renewed=told.append) as directories:
        _, path = directories.on(str(place))
        assert directories.gone() == ()
        if store:
            directories.on(str(place.parent / "alias"))
        shutil.rmtree(path)
        assert directories.gone() == (path,)
        fd, anew = directories.on(str(place))
        assert told == [path]
        assert directories.gone() == ()
        assert os.path.samestat(os.stat(anew), os.fstat(fd))
        assert (anew == path) is (store is not None)
        assert os.listdir(anew) == ([paths.owner_mark_name("/run/x")] if store else [])
        other = os.open(anew, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(other)
        assert directories.on(str(place)) == (fd, anew)
        if store:
            assert directories.on(str(place.parent / "alias")) == (fd, anew)
        assert directories.find(os.path.join(anew, "x")) == fd
    assert os.listdir(place) == []


def test_the_segments_of_one_that_was_moved_go_with_their_coordinator(
    run: Path, place: Path
) -> None:
    life = Life(run, place)
    _, path = life.segment(1)
    moved = path.parent.rename(place / "moved")
    _, another = life.segment(2)
    assert another.parent == path.parent
    assert (moved / path.name).exists()  # readers that have it mapped are not asked
    life.directories.close()
    assert os.listdir(place) == ["moved"]
    assert os.listdir(moved) == [paths.owner_mark_name(str(run))]
    life.manifests.close()


def test_one_that_was_moved_is_left_to_the_next_coordinator_with_the_others(
    run: Path, place: Path
) -> None:
    life = Life(run, place)
    _, path = life.segment(1)
    moved = path.parent.rename(place / "moved")
    life.segment(2)
    life.kill()
    assert (moved / path.name).exists()


def test_one_that_cannot_be_made_anew_yet_is_made_later(run: Path, place: Path) -> None:
    life = Life(run, place)
    _, path = life.directories.on(str(place))
    shutil.rmtree(path)
    Path(path).touch()
    for _ in range(2):
        with pytest.raises(NotADirectoryError):
            life.directories.on(str(place))
    os.unlink(path)
    assert os.path.isdir(life.directories.on(str(place))[1])
    life.directories.close()
    life.manifests.close()
