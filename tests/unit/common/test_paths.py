from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hugepool_common import paths
from hugepool_common.errors import InvalidSpecError, NotPermittedError


def test_the_runtime_directory_is_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.RUNTIME_VARIABLE, "/tmp/here/../there")
    assert paths.runtime_directory() == "/tmp/there"
    assert paths.default_addresses() == ["ipc:///tmp/there/hugepool.sock"]


def test_a_user_looks_for_the_service_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.RUNTIME_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/77")
    monkeypatch.setattr(os, "geteuid", lambda: 77)
    assert paths.default_addresses() == [
        "ipc:///run/user/77/hugepool/hugepool.sock",
        "ipc:///run/hugepool/hugepool.sock",
    ]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert paths.runtime_directory() == "/tmp/hugepool-77"


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(InvalidSpecError, match="too long"):
        paths.socket_path("/" + "d" * 100)


def test_only_our_own_names_are_ours() -> None:
    name = paths.segment_directory_name(1000, "0123456789abcdef")
    assert paths.segment_directory_owner(name) == 1000
    for other in (
        "hugepool-1000",
        name + "x",
        "x" + name,
        name.upper(),
        "hugepool--1-0123456789abcdef",
    ):
        assert paths.segment_directory_owner(other) is None
    assert paths.is_segment_file(paths.segment_file_name(7))
    assert paths.is_segment_file(paths.unpublished_file_name(0xFFFFFFFF))
    assert paths.is_segment_file("00000007.segment")  # as they were called at first
    assert paths.is_segment_file(".tmp-00000007.segment")
    for other in (
        "7.segment",
        "00000007.segment.bak",
        ".tmp-x",
        "00000007.Segment",
        "000000007.segment",
        "00000000000000007.segment",
        "notes.txt",
    ):
        assert not paths.is_segment_file(other)
        assert paths.file_segment(other) is None


def test_names_tell_their_numbers_again() -> None:
    for number in (1, 1 << 32, (1 << 63) - 1):
        assert paths.file_segment(paths.segment_file_name(number)) == number
        assert paths.file_segment(paths.unpublished_file_name(number)) is None
        assert paths.manifest_segment(paths.manifest_name(number)) == number
        unfinished = paths.unfinished_name(paths.manifest_name(number))
        assert paths.manifest_segment(unfinished) is None
        assert paths.is_unfinished_manifest(unfinished)
        assert not paths.is_unfinished_manifest(paths.manifest_name(number))
    assert not paths.is_unfinished_manifest(".tmp-notes")
    name = paths.segment_directory_name(1000, "0123456789abcdef")
    assert paths.segment_directory_store(name) == "0123456789abcdef"
    assert paths.segment_directory_store("hugepool-1000-x") is None
    assert paths.is_token("0123456789abcdef" * 2)
    assert not paths.is_token("../0123456789abcdef")


def test_a_private_directory_is_made_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        fd = paths.open_private_directory(str(tmp_path / "new"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
    os.close(fd)
    os.close(paths.open_private_directory(str(tmp_path / "new")))


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    (tmp_path / "file").touch()
    for name in ("open", "link", "file"):
        with pytest.raises(NotPermittedError):
            paths.open_private_directory(str(tmp_path / name))
