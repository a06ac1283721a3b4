from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hugepool_server.backends.unpublished import UnpublishedFile


@pytest.fixture
def dir_fd(tmp_path: Path) -> int:
    """A segment directory, open."""
    return os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)


def test_what_is_not_published_keeps_no_page_wherever_else_it_is_open(
    tmp_path: Path, dir_fd: int
) -> None:
    with UnpublishedFile(dir_fd, str(tmp_path), 1) as file:
        os.write(file.fd, b"x" * 10_000)
        stray = os.dup(file.fd)
    assert os.fstat(stray).st_blocks == 0
    assert os.listdir(tmp_path) == []
    os.close(stray)
    os.close(dir_fd)


def test_what_is_published_stays(tmp_path: Path, dir_fd: int) -> None:
    with UnpublishedFile(dir_fd, str(tmp_path), 1) as file:
        os.write(file.fd, b"x" * 10_000)
        status = file.publish(0o640, None)
    assert os.listdir(tmp_path) == [os.path.basename(file.path)]
    found = os.stat(file.path)
    assert (found.st_ino, found.st_size) == (status.st_ino, 10_000)
    assert found.st_mode & 0o7777 == 0o640
    os.close(dir_fd)


def test_a_look_that_fails_leaves_no_name(
    tmp_path: Path, dir_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with (
        pytest.raises(OSError, match=os.strerror(errno.EIO)),
        UnpublishedFile(dir_fd, str(tmp_path), 1) as file,
        monkeypatch.context() as patched,
    ):
        patched.setattr(os, "fstat", refused)
        file.publish(0o640, None)
    assert os.listdir(tmp_path) == []
    os.close(dir_fd)
