"""Changes of a host: noted before they are made, and brought back exactly."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from hugepool import host_changes
from hugepool.host_changes import Change, Entry, MakeMount, Remount, Setup, SetValue
from hugepool_common.errors import HugepoolError, NotPermittedError
from hugepool_common.mounts import parse_mountinfo
from support.host import Mounts, require


@pytest.fixture(autouse=True)
def as_root() -> None:
    require("unprivileged", os.geteuid() == 0, "needs root, as what is tested does")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(str(tmp_path / "journal.json"))


@pytest.fixture
def told() -> list[str]:
    return []


def mounted(path: str) -> str:
    """File system type at a path; empty if nothing is mounted there."""
    lines = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    return next((line.kind for line in reversed(lines) if line.path == path), "")


def test_values_come_back_in_turn(tmp_path: Path, setup: Setup, told: list[str]) -> None:
    pool = tmp_path / "nr_hugepages"
    pool.write_text("10\n")
    assert setup.apply(SetValue(str(pool), "20")) == "20"
    assert setup.apply(SetValue(str(pool), "30")) == "30"
    assert [(one.before, one.after) for one in setup.entries()] == [("10", "20"), ("20", "30")]
    assert setup.undo(told.append)
    assert pool.read_text() == "10"
    assert told == [f"undone: echo {value} > {pool}" for value in (30, 20)]
    assert setup.entries() == () and not (tmp_path / "journal.json").exists()


def test_of_a_choice_the_chosen_word_is_what_was_there(tmp_path: Path, setup: Setup) -> None:
    mode = tmp_path / "shmem_enabled"
    mode.write_text("always within_size advise never [deny] force\n")
    setup.apply(SetValue(str(mode), "never"))
    assert setup.entries()[0].before == "deny"
    setup.undo(lambda _: None)
    assert mode.read_text() == "deny"


def test_what_somebody_has_changed_since_is_left_alone(
    tmp_path: Path, setup: Setup, told: list[str]
) -> None:
    pool = tmp_path / "nr_hugepages"
    pool.write_text("10")
    setup.apply(SetValue(str(pool), "20"))
    pool.write_text("99")
    assert not setup.undo(told.append)
    assert pool.read_text() == "99"
    assert "somebody has changed it since (had 99" in told[0]
    assert setup.entries() == (), "it is not ours any more"


@pytest.mark.parametrize("reached", [False, True])
def test_a_change_that_was_cut_off_is_undone(
    tmp_path: Path, setup: Setup, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power fails between the two notes of it: before or after the value was written."""
    pool = tmp_path / "nr_hugepages"
    pool.write_text("10")

    def cut_off(self: SetValue) -> None:
        if reached:
            pool.write_text("17")  # as many as the kernel had
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SetValue, "apply", cut_off)
        with pytest.raises(KeyboardInterrupt):
            setup.apply(SetValue(str(pool), "20"))
    assert setup.entries() == (Entry(SetValue(str(pool), "20"), "10", None),)
    assert setup.undo(lambda _: None)
    assert pool.read_text() == "10"


def test_a_journal_of_before_the_machine_was_started_is_void(tmp_path: Path, setup: Setup) -> None:
    pool = tmp_path / "nr_hugepages"
    pool.write_text("10")
    setup.apply(SetValue(str(pool), "20"))
    journal = tmp_path / "journal.json"
    journal.write_text(journal.read_text().replace(host_changes._boot_id(), "another"))
    assert setup.entries() == ()


def test_a_journal_that_is_none_is_told(tmp_path: Path, setup: Setup) -> None:
    (tmp_path / "journal.json").write_text('{"entries": 3}')
    with pytest.raises(HugepoolError, match="journal of changes cannot be read"):
        setup.undo(lambda _: None)


def test_the_journal_is_private_and_reads_back(tmp_path: Path, setup: Setup) -> None:
    pool = tmp_path / "nr_hugepages"
    pool.write_text("10")
    setup.apply(SetValue(str(pool), "20"))
    journal = tmp_path / "journal.json"
    assert journal.stat().st_mode & 0o777 == 0o600
    changes: list[Change] = [
        SetValue("/a", "1"),
        Remount("/b", "huge", "never"),
        MakeMount("tmpfs", "o", "/c"),
    ]
    for change in changes:
        entry = Entry(change, "before", "after")
        assert msgspec.json.decode(msgspec.json.encode(entry), type=Entry) == entry


def test_a_mount_is_made_with_its_directories_and_goes_with_them(
    tmp_path: Path, setup: Setup
) -> None:
    Mounts(tmp_path)  # from here on in a mount namespace of our own
    path = tmp_path / "run" / "pages" / "mine"
    change = MakeMount("tmpfs", "huge=never,size=1M,mode=0700", str(path))
    setup.apply(change)
    assert mounted(str(path)) == "tmpfs" and path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(HugepoolError, match="mounted there already"):
        setup.apply(change)
    (tmp_path / "run" / "another's").touch()
    assert setup.undo(lambda _: None)
    assert mounted(str(path)) == ""
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["another's"]


OPTIONS = "size=1M,mode=0700"


@pytest.mark.parametrize("options", ["size=1M,mode=0755", "size=1M,mode=0700,uid=65534"])
def test_a_mount_of_somebody_else_in_its_place_is_left_alone(
    tmp_path: Path, setup: Setup, told: list[str], options: str
) -> None:
    mounts = Mounts(tmp_path)
    path = str(tmp_path / "mine")
    setup.apply(MakeMount("tmpfs", OPTIONS, path))
    subprocess.run(["umount", path], check=True)
    mounts.over(path, options)  # it is given the number of the device that is gone
    try:
        assert not setup.undo(told.append)
        assert mounted(path) == "tmpfs"
        assert "somebody has mounted something else there" in told[0]
        assert setup.entries() == (), "it is not ours any more"
    finally:
        mounts.close()


def test_a_mount_over_it_is_left_alone_until_it_is_gone(
    tmp_path: Path, setup: Setup, told: list[str]
) -> None:
    mounts = Mounts(tmp_path)
    path = str(tmp_path / "mine")
    setup.apply(MakeMount("tmpfs", OPTIONS, path))
    mounts.over(path, OPTIONS)
    assert not setup.undo(told.append)
    assert "something else is mounted over it" in told[0]
    assert len(setup.entries()) == 1
    mounts.close()
    assert mounted(path) == "tmpfs"
    assert setup.undo(told.append)
    assert mounted(path) == ""


def test_a_mount_that_was_given_another_size_is_still_ours(tmp_path: Path, setup: Setup) -> None:
    Mounts(tmp_path)
    path = str(tmp_path / "mine")
    setup.apply(MakeMount("tmpfs", OPTIONS, path))
    subprocess.run(["mount", "-o", "remount,size=2M", path], check=True)
    assert setup.undo(lambda _: None)
    assert mounted(path) == ""


def test_a_mount_in_use_stays_in_the_journal(tmp_path: Path, setup: Setup, told: list[str]) -> None:
    Mounts(tmp_path)
    path = tmp_path / "mine"
    setup.apply(MakeMount("tmpfs", "size=1M", str(path)))
    with open(path / "busy", "w"):
        assert not setup.undo(told.append)
        assert "umount refused" in told[-1]
        assert len(setup.entries()) == 1
    assert setup.undo(told.append)
    assert not path.exists()


def test_options_of_a_mount_come_back(tmp_path: Path, setup: Setup, told: list[str]) -> None:
    mounts = Mounts(tmp_path)
    path = mounts.tmpfs("size=1M,huge=never")
    assert setup.apply(Remount(path, "size", str(3 << 20))) == str(3 << 20)
    assert setup.apply(Remount(path, "huge", "within_size")) == "within_size"
    assert setup.undo(told.append)
    assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 1 << 20
    assert Remount(path, "huge", "never").before() == "never"
    mounts.close()


def test_a_command_that_is_refused_says_so(tmp_path: Path, setup: Setup) -> None:
    mounts = Mounts(tmp_path)
    path = mounts.tmpfs("size=4M")
    (Path(path) / "full").write_bytes(b"x" * (3 << 20))
    with pytest.raises(HugepoolError, match="mount refused"):
        setup.apply(Remount(path, "size", str(1 << 20)))
    assert setup.undo(lambda _: None)
    mounts.close()


def test_only_root_changes_a_host(
    tmp_path: Path, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = tmp_path / "nr_hugepages"
    pool.write_text("10")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermittedError, match="needs root"):
        setup.apply(SetValue(str(pool), "20"))
    assert pool.read_text() == "10" and setup.entries() == ()


def test_commands_are_lines_for_a_shell() -> None:
    assert [
        change.command
        for change in (
            SetValue("/proc/sys/vm/nr_hugepages", "5"),
            SetValue("/sys/a b", "never"),
            Remount("/dev/shm", "size", str(5 << 20)),
            Remount("/dev/shm", "size", "5000"),
            MakeMount("tmpfs", "huge=always", "/run/x y"),
        )
    ] == [
        "sysctl vm.nr_hugepages=5",
        "echo never > '/sys/a b'",
        "mount -o remount,size=5M /dev/shm",
        "mount -o remount,size=5000 /dev/shm",
        "mkdir -p '/run/x y' && mount -t tmpfs -o huge=always none '/run/x y'",
    ]
