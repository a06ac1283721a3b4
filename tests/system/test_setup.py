"""``hugepool setup``: what it prints, does and undoes on this very machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hugepool.commands.setup import account, seen_by
from hugepool_common.errors import InvalidSpecError
from hugepool_common.mounts import HugetlbfsMount, parse_mountinfo
from hugepool_common.pages import read_host
from hugepool_common.units import MIB
from support.commands import Shell
from support.host import Mounts, fake_host, require

POOL = Path("/proc/sys/vm/nr_hugepages")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(HUGEPOOL_RUNTIME_DIR=str(tmp_path / "run"), SUDO_UID="")


def hugetlbfs_mounts() -> set[str]:
    lines = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    return {line.path for line in lines if line.kind == "hugetlbfs"}


def without_numbers(commands: list[str]) -> list[str]:
    """Commands whose numbers depend on what others hold of the machine's pool just now."""
    return [re.sub("=[0-9]+", "=#", command) for command in commands]


def missing_size() -> str:
    """By so much more than the pool has that it stays missing whatever others give back."""
    pool = read_host().pool(2 * MIB)
    return str((pool.available_bytes if pool else 0) + 256 * MIB)


def entries_of(journal: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(Path(journal).read_text())["entries"]
    return entries


def test_the_commands_are_those_of_the_doctor(shell: Shell) -> None:
    size = missing_size()
    lines = without_numbers(shell.succeed("setup", "--size", size).out.splitlines())
    told = shell.succeed("setup", "--size", size, "--json").json
    assert without_numbers([one["command"] for one in told]) == lines
    doctor = shell("doctor", "--json", "--room", size).json
    recommended = {one["rung"]: without_numbers(one["commands"]) for one in doctor["rungs"]}
    assert set(lines) == {*recommended["hugetlbfs-2m"], *recommended["shm-collapse"]}


def test_only_what_was_asked_for(shell: Shell) -> None:
    assert shell.succeed("setup", "--size", "0", "--rung", "shm-collapse").out in (
        "",
        "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled\n",
    )
    require("hugetlbfs", read_host().pool(2 * MIB) is not None, "no pool of 2 MiB pages here")
    lines = shell.succeed("setup", "--rung", "hugetlbfs-2m", "--user", "nobody").out
    assert "uid=65534,gid=65534" in lines


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--size", "much"], 2, "not a number of bytes"),
        (["--rung", "hugetlbfs-3m"], 2, "hugetlbfs-2m"),
        (["--user", "no-such-user"], 2, "no user is called"),
        (["--user", "²"], 2, "no user is called"),
        (["--apply", "--undo"], 2, "exclude each other"),
    ],
)
def test_wrong_use(shell: Shell, arguments: list[str], status: int, words: str) -> None:
    assert words in shell.refuse(status, "setup", *arguments)


@pytest.mark.parametrize("more", [[], ["--json"], ["--apply"], ["--rung", "shm-collapse"]])
def test_more_than_the_machine_has_is_refused(shell: Shell, more: list[str]) -> None:
    before = POOL.read_text() if POOL.exists() else ""
    line = shell.refuse(1, "setup", "--size", "900TB", *more)
    assert "this machine has" in line and "--size" in line
    assert "sysctl" not in line and "mount -o" not in line
    assert (POOL.read_text() if POOL.exists() else "") == before


def test_done_and_undone(shell: Shell, tmp_path: Path) -> None:
    host = read_host()
    pool = host.pool(2 * MIB)
    require(
        "hugetlbfs",
        pool is not None and host.default_huge_page_size == 2 * MIB and os.geteuid() == 0,
        "needs root and a pool of 2 MiB pages",
    )
    assert pool is not None
    Mounts(tmp_path)  # what is mounted from here on is seen by this process's family alone
    before, mounts = POOL.read_text(), hugetlbfs_mounts()
    journal = ["--journal", str(tmp_path / "journal.json")]
    options = ["--size", missing_size(), "--rung", "hugetlbfs-2m", "--user", "nobody", *journal]
    asked = ["setup", "--apply", *options]
    done = shell(*asked)
    try:
        assert done.status in (0, 4), done.err  # 4: memory is too scattered for the pages
        assert done.out == ""
        changes = [entry["change"] for entry in entries_of(journal[1])]
        assert [one["change"] for one in changes] == ["set", "mount"]
        path = changes[1]["path"]
        assert path in hugetlbfs_mounts()
        assert (os.stat(path).st_uid, os.stat(path).st_mode & 0o777) == (65534, 0o700)
        if done.status == 0:
            assert POOL.read_text().strip() == changes[0]["value"]
        shell(*asked)  # again: the mount is there, and perhaps nothing is missing
        noted = [entry["change"]["change"] for entry in entries_of(journal[1])]
        assert noted.count("mount") == 1
    finally:
        undone = shell("setup", "--undo", *journal)
    assert undone.status == 0, undone.err
    assert undone.err.count("undone: ") == len(noted)
    assert (POOL.read_text(), hugetlbfs_mounts()) == (before, mounts)
    assert not os.path.exists(path)
    assert "nothing is to be undone" in shell.succeed("setup", "--undo", *journal).err


def test_without_root_nothing_is_done(shell: Shell) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become another user")
    before = POOL.read_text()
    prefix = NOBODY
    done = shell(
        "setup", "--apply", "--size", missing_size(), prefix=prefix, PYTHONDONTWRITEBYTECODE="1"
    )
    require("unprivileged", "No module named" not in done.err, "nobody may not execute this")
    assert done.status == 1 and "needs root" in done.err and "sudo" in done.err
    assert done.err.count("\n") == 1
    assert POOL.read_text() == before


def test_a_mount_of_root_is_none_to_another_user(tmp_path: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "what is tested is what root sees")
    mount = HugetlbfsMount(str(tmp_path), 2 * MIB, None, 0, None, True)
    tmp_path.chmod(0o755)
    host = fake_host(hugetlbfs_mounts=(mount,), tmpfs_mounts=())
    assert seen_by(host, 0, 0) is host
    assert not seen_by(host, 65534, 65534).hugetlbfs_mounts[0].writable
    tmp_path.chmod(0o1777)
    assert seen_by(host, 65534, 65534).hugetlbfs_mounts[0].writable
    tmp_path.chmod(0o770)
    os.chown(tmp_path, 0, 65534)
    assert seen_by(host, 65534, 65534).hugetlbfs_mounts[0].writable
    assert not seen_by(host, 65533, 65533).hugetlbfs_mounts[0].writable


def test_whose_coordinator_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert account(None) == (os.geteuid(), os.getegid())
    assert account("nobody") == account("65534") == (65534, 65534)
    with pytest.raises(InvalidSpecError, match="no user"):
        account("99999999999999999999")
    require("unprivileged", os.geteuid() == 0, "sudo makes root")
    monkeypatch.setenv("SUDO_UID", "65534")
    assert account(None) == (65534, 65534)
