from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hugepool_common import paths
from hugepool_common.errors import DetachedError, NotPermittedError
from hugepool_server import reclaim, remains
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.remains import Reclaimed
from support.host import require

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
    before = len(os.listdir("/proc/self/fd"))
    with SegmentDirectories() as directories:
        _, path = directories.on(str(tmp_path))
        assert path == seen[3]
        assert len(seen) == 4
        assert os.path.isdir(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_group_that_may_not_be_given_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with SegmentDirectories(group=1) as directories, pytest.raises(NotPermittedError):
        directories.on(str(tmp_path))
    assert not os.listdir(tmp_path)
