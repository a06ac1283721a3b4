"""Records' files by themselves: what lies in the way, and what is told of it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from hugepool_common import paths
from hugepool_common.errors import HugepoolError, NotEnoughMemoryError, NotPermittedError
from hugepool_server import record_files
from hugepool_server.record_files import (
    finish_renames,
    opened_directory,
    private_directory,
    refusals,
    replace_file,
)
from support.host import Descriptors

BESIDE = paths.unfinished_name("record")


def test_what_a_failed_write_left_is_replaced_and_no_link_is_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"of somebody")
    elsewhere.chmod(0o644)
    place = tmp_path / "place"
    place.mkdir()
    for leave in (
        lambda: (place / BESIDE).symlink_to(elsewhere),
        lambda: (place / BESIDE).symlink_to(tmp_path / "nothing"),
        lambda: os.link(elsewhere, place / BESIDE),
        lambda: (place / BESIDE).write_bytes(b"half"),
    ):
        leave()
        with opened_directory(str(place)) as dir_fd:
            replace_file(dir_fd, "record", b"whole")
        assert (place / "record").read_bytes() == b"whole"
        assert stat.S_IMODE((place / "record").lstat().st_mode) == 0o600
        assert os.listdir(place) == ["record"]
        assert elsewhere.read_bytes() == b"of somebody"
        assert not (tmp_path / "nothing").exists()


def test_a_link_is_no_directory_of_records(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError), opened_directory(str(tmp_path / name)):
            pass


def test_directories_are_closed_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    descriptors = Descriptors()
    with opened_directory(str(tmp_path)) as one, private_directory(str(tmp_path)) as other:
        assert {name for name, *_ in descriptors.opened()} >= {str(one), str(other)}
    inode = tmp_path.stat().st_ino
    assert not [name for name, _, found in descriptors.opened() if found == inode]


def test_a_list_of_renames_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / paths.RENAMES_NAME).symlink_to("/dev/null")
    with opened_directory(str(tmp_path)) as dir_fd:
        assert finish_renames(dir_fd) == 0
    assert (tmp_path / paths.RENAMES_NAME).is_symlink()


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.ENOENT, NotPermittedError, "was moved or removed"),
        (errno.EMFILE, NotEnoughMemoryError, "RLIMIT_NOFILE"),
        (errno.ENFILE, NotEnoughMemoryError, "RLIMIT_NOFILE"),
        (errno.ENOSPC, NotEnoughMemoryError, "no room"),
        (errno.EDQUOT, NotEnoughMemoryError, "no room"),
        (errno.EACCES, NotPermittedError, "Permission denied"),
    ],
)
def test_a_directory_that_cannot_be_used_is_told_with_what_to_do(
    number: int, error: type[HugepoolError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught, refusals("/run/x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.where == "/run/x"
    assert caught.value.remedy
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_of_ours_is_passed_on(tmp_path: Path) -> None:
    ours = record_files.removed("/run/y")
    with pytest.raises(NotPermittedError) as caught, refusals("/run/x"):
        raise ours
    assert caught.value is ours
