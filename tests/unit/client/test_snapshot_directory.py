from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hugepool.snapshot_directory import (
    SnapshotDirectory,
    write_whole,
)
from hugepool.snapshot_index import Pointer
from hugepool_common.errors import SnapshotError
from support.power import Act, Disk, disk_at, disks_after, recording, write_disk
from support.snapshots import Held, read_held, save_held

OLD: Held = {"x": b"o" * 64, "y": b"O" * 24}
NEW: Held = {"x": b"n" * 96, "z": b""}
THIRD: Held = {"w": b"3" * 8, "v": b"4" * 16}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory: thousands of disks are made in it."""
    path = Path("/dev/shm") / f"hugepool-test-power-{os.getpid()}"
    path.mkdir()
    yield path
    remove(path)


def remove(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove(entry)
        else:
            entry.unlink()
    path.rmdir()


def names_in(path: Path) -> list[str]:
    return sorted(
        str(entry.relative_to(path)).replace(entry.relative_to(path).parts[0], "S", 1)
        if entry.relative_to(path).parts[0].startswith("snapshot-")
        else entry.name
        for entry in path.rglob("*")
    )


WHOLE = ["CURRENT", "S", "S/0000.data", "S/0001.data", "S/index.json"]


def test_what_is_written_is_read(scratch: Path) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    assert read_held(path) == OLD
    assert names_in(path) == WHOLE
    save_held(path, NEW)
    assert read_held(path) == NEW
    assert names_in(path) == WHOLE
    assert path.stat().st_mode & 0o777 == 0o700


# Power failures -----------------------------------------------------------------


def recorded(scratch: Path, before: Held | None, leftover: bool) -> tuple[Disk, list[Act], Disk]:
    """The disk before a snapshot of :data:`NEW`, what it did, and the disk after."""
    path = scratch / "recorded"
    path.mkdir()
    if before is not None:
        save_held(path, before)
    if leftover:
        (path / "snapshot-00000000000000aa").mkdir()
        (path / "snapshot-00000000000000aa" / "0000.data").write_bytes(b"half")
        (path / "CURRENT.tmp").write_bytes(b"hugepool-snapshot 1 ")
    start = disk_at(path)
    with recording(path) as acts:
        save_held(path, NEW)
    end = disk_at(path)
    remove(path)
    return start, acts, end


def verdicts(scratch: Path, start: Disk, acts: list[Act]) -> Iterator[tuple[int, Disk, Any]]:
    """What is read from every disk that a failure after every act may leave."""
    for count in range(len(acts) + 1):
        for number, disk in enumerate(disks_after(start, acts[:count], seed=count)):
            path = write_disk(disk, scratch / f"{count}-{number}")
            try:
                found: Any = read_held(path)
            except SnapshotError as error:
                found = error
            finally:
                remove(path)
            yield count, disk, found


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("leftover", [False, True])
def test_a_power_failure_leaves_the_old_or_the_new(
    scratch: Path, before: Held | None, leftover: bool
) -> None:
    start, acts, end = recorded(scratch, before, leftover)
    # Nothing was done behind the recorder's back.
    assert next(disks_after(start, acts)) == end
    renamed = next(n for n, act in enumerate(acts) if act.verb == "rename") + 1
    durable = next(n for n, act in enumerate(acts) if n >= renamed and act.verb == "sync") + 1
    seen: dict[str, int] = {"old": 0, "new": 0}
    for count, disk, found in verdicts(scratch, start, acts):
        assert found in (before, NEW), (count, acts[:count][-3:], disk, found)
        if count < renamed:
            assert found == before, "it counts before it was told to"
        if count >= durable:
            assert found == NEW, "it does not count for certain"
        seen["new" if found == NEW else "old"] += 1
    assert seen["old"] > 100 and seen["new"] >= (5 if before is None else 20)


def killed_and_run_again(scratch: Path) -> tuple[Disk, list[Act]]:
    """A run that was killed when it had renamed, and another: no power failure between."""
    start, acts, _ = recorded(scratch, OLD, False)
    renamed = next(n for n, act in enumerate(acts) if act.verb == "rename") + 1
    path = write_disk(next(disks_after(start, acts[:renamed])), scratch / "killed")
    with recording(path) as more:
        save_held(path, THIRD)
    remove(path)
    return start, acts[:renamed] + more


def test_a_kill_and_a_power_failure_leave_one_of_the_three(scratch: Path) -> None:
    start, acts = killed_and_run_again(scratch)
    for count, disk, found in verdicts(scratch, start, acts):
        assert found in (OLD, NEW, THIRD), (count, disk, found)


@pytest.mark.timeout(1000)
def test_every_sync_is_needed(scratch: Path) -> None:
    """The harness finds fault with a program that leaves any one of its syncs out."""
    start, acts = killed_and_run_again(scratch)
    syncs = [number for number, act in enumerate(acts) if act.verb == "sync"]
    once = ["", "0000.data", "0001.data", "index.jso", "snapshot-", "", "CURRENT.t"]
    names = [acts[number].path.rpartition("/")[2][:9] for number in syncs]
    assert names == [*once, *once, ""]
    needless = []
    for left_out in syncs:
        fewer = [act for number, act in enumerate(acts) if number != left_out]
        if all(found in (OLD, NEW, THIRD) for _, _, found in verdicts(scratch, start, fewer)):
            needless.append(acts[left_out].path)
    # The first run finds a disk that is synced, and an empty file has nothing to lose.
    assert [name.rpartition("/")[2] for name in needless] == ["", "0001.data"]


@pytest.mark.parametrize("before", [None, OLD])
def test_the_next_run_goes_on_from_any_disk(scratch: Path, before: Held | None) -> None:
    start, acts, _ = recorded(scratch, before, False)
    for count in range(0, len(acts) + 1, 2):
        for number, disk in enumerate(disks_after(start, acts[:count], seed=count)):
            if number % 5:
                continue
            path = write_disk(disk, scratch / f"{count}-{number}")
            save_held(path, THIRD)
            assert read_held(path) == THIRD
            assert names_in(path) == WHOLE
            remove(path)


# Errors -------------------------------------------------------------------------


def failing(real: Callable[..., Any], at: int, error: int) -> Callable[..., Any]:
    calls = 0

    def act(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(error, os.strerror(error))
        return real(*arguments, **named)

    return act


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["mkdir", "open", "pwrite", "fsync", "rename"])
def test_whatever_call_fails_the_old_one_stays(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    failures = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), failures + 1, error))
            try:
                save_held(path, NEW)
                break
            except SnapshotError as caught:
                assert os.strerror(error) in caught.message
        failures += 1
        if call == "fsync" and failures == 8:  # the last: it is renamed, and may be durable
            assert read_held(path) == NEW
        elif call == "open" and read_held(path) == NEW:
            save_held(path, OLD)  # what failed was only the removal of the old one
        else:
            assert read_held(path) == OLD
            assert names_in(path) == WHOLE, "the half of a snapshot was left"
    assert failures >= {"mkdir": 1, "open": 5, "pwrite": 4, "fsync": 8, "rename": 1}[call]
    assert read_held(path) == NEW


@pytest.mark.parametrize("call", ["open", "fstat", "listdir", "fstatvfs"])
def test_whatever_cannot_be_looked_at_is_told_and_nothing_stays_open(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    opened = os.listdir("/proc/self/fd")
    told = 0
    for act in (read_held, lambda path: save_held(path, OLD)):
        for at in range(1, 30):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing(getattr(os, call), at, errno.EIO))
                try:
                    act(path)
                except SnapshotError as caught:
                    told += 1
                    assert os.strerror(errno.EIO) in caught.message
            assert len(os.listdir("/proc/self/fd")) == len(opened), (call, at)
    assert told >= {"open": 10, "fstat": 5, "listdir": 1, "fstatvfs": 1}[call]
    assert read_held(path) == OLD


def test_who_finds_the_directory_of_a_killed_run_syncs_its_name(scratch: Path) -> None:
    with recording(scratch) as acts:
        (scratch / "snapshots").mkdir(0o700)  # and then it was killed
        save_held(scratch / "snapshots", NEW)
    remove(scratch / "snapshots")
    for number, disk in enumerate(disks_after({}, acts)):
        path = write_disk(disk, scratch / f"{number}")
        assert read_held(path / "snapshots") == NEW
        remove(path)


def test_a_path_leads_where_the_system_says(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch / "far").mkdir()
    (scratch / "far" / "place").mkdir()
    (scratch / "link").symlink_to("far/place")
    for way in (scratch / "link", Path("link")):
        monkeypatch.chdir(scratch)
        path = f"{way}/../snapshots"
        with SnapshotDirectory(path, writing=True) as disk:
            monkeypatch.chdir("/")
            disk.check_in_place()
        monkeypatch.chdir(scratch)
        save_held(Path(path), OLD)
        assert read_held(scratch / "far" / "snapshots") == OLD


def test_an_interrupted_run_leaves_nothing(scratch: Path) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    with (
        pytest.raises(KeyboardInterrupt),
        SnapshotDirectory(str(path), writing=True) as disk,
        disk.writing(8) as writer,
        writer.data("0000.data") as fd,
    ):
        write_whole(fd, memoryview(b"12345678"), 0)
        raise KeyboardInterrupt
    assert read_held(path) == OLD
    assert names_in(path) == WHOLE


def test_two_at_once_are_refused(scratch: Path) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    with SnapshotDirectory(str(path), writing=True):
        for writing in (True, False):
            with pytest.raises(SnapshotError, match="another process"):
                SnapshotDirectory(str(path), writing=writing)
    with SnapshotDirectory(str(path), writing=False):
        SnapshotDirectory(str(path), writing=False).close()
        with pytest.raises(SnapshotError, match="another process"):
            SnapshotDirectory(str(path), writing=True)
    save_held(path, NEW)


def test_no_room_is_known_before_anything_is_written(scratch: Path) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    with (
        pytest.raises(SnapshotError, match="no room") as caught,
        SnapshotDirectory(str(path), writing=True) as disk,
        disk.writing(1 << 60),
    ):
        raise AssertionError
    assert caught.value.remedy and caught.value.had
    assert names_in(path) == WHOLE


def test_what_is_not_ours_is_left_alone(scratch: Path) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    foreign = path / "notes.txt"
    foreign.write_text("mine")
    similar = path / "snapshot-mine"
    similar.mkdir()
    inside = path / "snapshot-00000000000000bb"
    inside.mkdir()
    (inside / "0000.data").write_text("left over")
    (inside / "notes.txt").write_text("mine")
    outside = scratch / "outside"
    outside.mkdir()
    (outside / "0000.data").write_text("mine")
    (path / "snapshot-00000000000000cc").symlink_to(outside)
    (path / "CURRENT.tmp").symlink_to(foreign)
    save_held(path, NEW)
    assert read_held(path) == NEW
    assert foreign.read_text() == (inside / "notes.txt").read_text() == "mine"
    assert similar.is_dir()
    assert (outside / "0000.data").read_text() == "mine"
    assert not (path / "CURRENT.tmp").is_symlink()


@pytest.mark.parametrize(
    "content", [b"", b"MANIFEST-000004\n", b"hugepool-snapshot 1 x\n", b"\0" * 5000]
)
def test_a_current_that_is_not_ours_keeps_everybody_out(scratch: Path, content: bytes) -> None:
    path = scratch / "database"
    path.mkdir()
    (path / "CURRENT").write_bytes(content)
    with pytest.raises(SnapshotError):
        save_held(path, NEW)
    with pytest.raises(SnapshotError):
        read_held(path)
    assert (path / "CURRENT").read_bytes() == content
    assert [entry.name for entry in path.iterdir()] == ["CURRENT"]


@pytest.mark.parametrize("plant", ["symlink", "fifo", "directory"])
@pytest.mark.parametrize("victim", ["CURRENT", "index.json", "0000.data"])
def test_what_is_planted_is_not_followed(scratch: Path, plant: str, victim: str) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    found = next(path.rglob(victim))
    moved = scratch / "moved"
    found.rename(moved)
    if plant == "symlink":
        found.symlink_to(moved)
    elif plant == "fifo":
        os.mkfifo(found)
    else:
        found.mkdir()
    with pytest.raises(SnapshotError):
        read_held(path)


def test_a_directory_that_is_none(scratch: Path) -> None:
    (scratch / "file").write_text("")
    with pytest.raises(SnapshotError, match="cannot be opened"):
        read_held(scratch / "nowhere")
    assert read_held(scratch) is None
    for path in (scratch / "file", scratch / "nowhere" / "below"):
        with pytest.raises(SnapshotError, match="cannot be opened"):
            save_held(path, NEW)


# Damage -------------------------------------------------------------------------


def test_every_flipped_bit_and_every_cut_is_found(scratch: Path) -> None:
    save_held(scratch / "good", OLD)
    good = disk_at(scratch / "good")
    files = [
        *good,
        *(f"{name}/{file}" for name in good if name != "CURRENT" for file in good[name]),
    ]
    files = [name for name in files if "." in name or name == "CURRENT"]
    assert len(files) == 4
    for name in files:
        path = scratch / "good" / name
        content = path.read_bytes()
        damages = [content[:cut] for cut in range(0, len(content), 7)] + [content + b"\0"]
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            damages.append(bytes(changed))
        for damaged in damages:
            path.write_bytes(damaged)
            with pytest.raises(SnapshotError):
                read_held(scratch / "good")
        path.write_bytes(content)
    assert read_held(scratch / "good") == OLD


def rewrite_index(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """An index that lies, with CRCs that are right."""
    file = next(path.rglob("index.json"))
    index = msgspec.json.decode(file.read_bytes())
    change(index)
    raw = msgspec.json.encode(index)
    file.write_bytes(raw)
    head = f"hugepool-snapshot 1 {file.parent.name} {zlib.crc32(raw):08x}".encode()
    (path / "CURRENT").write_bytes(head + b" %08x\n" % zlib.crc32(head))


@pytest.mark.parametrize(
    "field, value",
    [
        ("file", "../../secret"),
        ("file", "0001.data"),
        ("file", "index.json"),
        ("nbytes", 65),
        ("nbytes", -1),
        ("nbytes", "64"),
        ("checksum", "md5:00"),
        ("spec.name", "../x"),
        ("spec.name", "y"),
        ("spec.shape", [-8]),
        ("spec.shape", [1 << 60]),
        ("spec.dtype", "|O"),
        ("spec.kind", "plan"),
        ("spec.made_of", 7),
        ("spec.extra", 7),
    ],
)
def test_an_index_that_lies_is_refused(scratch: Path, field: str, value: object) -> None:
    save_held(scratch / "snapshots", OLD)

    def change(index: dict[str, Any]) -> None:
        *parents, last = field.split(".")
        target = index["objects"][0]
        for parent in parents:
            target = target[parent]
        target[last] = value

    rewrite_index(scratch / "snapshots", lambda index: None)
    assert read_held(scratch / "snapshots") == OLD
    rewrite_index(scratch / "snapshots", change)
    with pytest.raises(SnapshotError):
        read_held(scratch / "snapshots")


def test_another_version_says_so(scratch: Path) -> None:
    save_held(scratch / "snapshots", OLD)
    current = scratch / "snapshots" / "CURRENT"
    head = current.read_bytes().rpartition(b" ")[0].replace(b"snapshot 1 ", b"snapshot 2 ")
    current.write_bytes(head + b" %08x\n" % zlib.crc32(head))
    with pytest.raises(SnapshotError, match="another version"):
        read_held(scratch / "snapshots")


@pytest.mark.parametrize("bad", [b'"\xff\xfe"', b'"\xc3"', b'"\xed\xa0\x80"'])
def test_an_index_that_is_no_text_is_refused(scratch: Path, bad: bytes) -> None:
    path = scratch / "snapshots"
    save_held(path, OLD)
    file = next(path.rglob("index.json"))
    raw = file.read_bytes().replace(b'"x"', bad)
    file.write_bytes(raw)
    (path / "CURRENT").write_bytes(Pointer.to(file.parent.name, raw).encode())
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_held(path)
