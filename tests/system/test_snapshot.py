"""Snapshots of real pools: written while others destroy and publish, killed, restored."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import hugepool
from hugepool.channel import Channel
from hugepool.snapshot_directory import SnapshotDirectory, write_whole
from hugepool.snapshot_index import FORMAT, Index
from hugepool_common import checksum
from hugepool_common.checksum import checksum_of_buffers
from hugepool_common.messages import ArrayInfo
from hugepool_common.spec import ArraySpec, Segment
from support.extras import sparse
from support.host import Gauges, Mounts, settles
from support.power import Disk, disk_at, disks_after, recording, write_disk
from support.service import Service
from support.snapshots import read_held, saved

HUGEPOOL = Path(sysconfig.get_path("scripts")) / "hugepool"
KILLS = int(os.environ.get("HUGEPOOL_SOAK_SNAPSHOT_KILLS", "10"))


@pytest.fixture
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


@pytest.fixture
def other() -> Iterator[hugepool.Pool]:
    """Another machine, or this one after a reboot."""
    with hugepool.connect("embedded") as pool:
        yield pool


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


# There and back -----------------------------------------------------------------


def test_everything_sealed_comes_back(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path
) -> None:
    values: dict[str, np.ndarray[Any, Any]] = {
        "scalar": np.array(2.5),
        "empty": np.zeros((3, 0, 2), "i2"),
        "half": np.arange(1000).astype("f2"),
        "complex": np.linspace(0, 1j, 501).reshape(3, 167),
        "bools": np.arange(77) % 3 == 0,
        "long": np.random.default_rng(1).random(3_000_000),
    }
    for name, value in values.items():
        pool.put(name, value)
    A = pool.put("A", sparse().random_array((3000, 2000), density=0.01, format="csr", rng=1))
    wide = pool.make_blank(ArraySpec("wide", (2, 5), "<f4", "csr", 2, "<i8"))
    wide.indptr[:] = [0, 1, 2]  # type: ignore[attr-defined]
    wide.seal()
    report = pool.snapshot(tmp_path / "disk")
    assert sorted(saved.name for saved in report.objects) == names(pool)
    assert report.skipped == {} and report.nbytes > 24_000_000
    back = other.restore(tmp_path / "disk")
    assert [one.name for one in back.objects] == [one.name for one in report.objects]
    assert names(other) == names(pool)
    for name, value in values.items():
        found = other.attach(name)
        assert found.sealed and found.generation == 1 and found.dtype == value.dtype
        np.testing.assert_array_equal(found.array, value)
    assert (other.attach("A").as_scipy() != A.as_scipy()).nnz == 0
    assert other.attach("wide").indptr.dtype == np.dtype("<i8")
    for info in pool.list():
        assert other.verify(info.spec.name).checksum == info.checksum
        assert other.describe(info.spec.name).array.readers <= 2


def test_onto_huge_pages_where_no_write_works(
    mounts: Mounts,  # unmounted after the coordinator, which may use it, has ended
    pool: hugepool.Pool,
    huge_page_pool: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HUGEPOOL_MOUNT", mounts.hugetlbfs())
    pool.put("x", np.arange(1e6))
    pool.snapshot(tmp_path)
    with hugepool.connect("embedded") as other:
        other.restore(tmp_path, backing="hugetlbfs-2m")
        x = other.attach("x")
        assert x.pages.backing == "hugetlbfs-2m"
        np.testing.assert_array_equal(x.array, np.arange(1e6))
        again = other.snapshot(tmp_path)
        assert again.objects[0].checksum == x.checksum


def test_what_cannot_be_saved_is_told(pool: hugepool.Pool, tmp_path: Path) -> None:
    x = pool.put("x", np.arange(100.0))
    pool.create("open", 10)
    plan = pool.plan_gather(np.arange(5), x, name="plan", form="direct", workers=1)
    readers = {info.spec.name: info.readers for info in pool.list()}
    report = pool.snapshot(tmp_path)
    assert [one.name for one in report.objects] == ["x"]
    assert report.skipped["open"] == "it is not sealed"
    assert "plan anew" in report.skipped[plan.name]
    for name in ("open", plan.name):
        with pytest.raises(hugepool.InvalidSpecError, match="cannot be saved"):
            pool.snapshot(tmp_path, [name])
    with pytest.raises(hugepool.ArrayNotFoundError):
        pool.snapshot(tmp_path, ["nothing"])
    assert read_held(tmp_path) == {"x": np.arange(100.0).tobytes()}
    assert {info.spec.name: info.readers for info in pool.list()} == readers


def test_what_goes_with_its_client_is_saved_only_if_it_is_named(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path
) -> None:
    pool.put("x", np.arange(100.0))
    pool.put("mine", np.arange(10.0), temporary=True)
    with hugepool.connect(pool.address) as neighbour:
        neighbour.create("filling", 10, temporary=True)
        done = neighbour.put("y.new-0", np.arange(5.0), temporary=True)  # a publication under way
        temporary = {info.spec.name for info in pool.list() if info.temporary}
        assert temporary == {"mine", "filling", "y.new-0"}
        report = pool.snapshot(tmp_path)
        assert [one.name for one in report.objects] == ["x"]
        assert report.skipped == {}
        done.publish_as("y")  # it is there to stay from here on
        assert [one.name for one in pool.snapshot(tmp_path).objects] == ["x", "y"]
        with pytest.raises(hugepool.InvalidSpecError, match="not sealed"):
            pool.snapshot(tmp_path, ["filling"])
        assert [one.name for one in pool.snapshot(tmp_path, ["mine"]).objects] == ["mine"]
    other.restore(tmp_path)
    assert [(info.spec.name, info.temporary) for info in other.list()] == [("mine", False)]


def test_a_name_that_goes_with_another_client_by_now_is_left_out(
    pool: hugepool.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        pool.put(name, np.arange(100.0))
    listed = pool.list

    def then_made_anew() -> tuple[ArrayInfo, ...]:
        found = listed()
        pool.destroy("b")
        pool.put("b", np.arange(100.0), temporary=True)
        return found

    monkeypatch.setattr(pool, "list", then_made_anew)
    report = pool.snapshot(tmp_path)
    assert [one.name for one in report.objects] == ["a"] and report.skipped == {}


def test_a_name_that_is_made_anew_meanwhile_is_left_out(
    pool: hugepool.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.put("a", np.arange(100.0))
    pool.put("b", np.arange(100.0))
    neighbour = hugepool.connect(pool.address)
    listed = pool.list

    def then_made_anew() -> tuple[ArrayInfo, ...]:
        found = listed()
        neighbour.destroy("b")
        making = threading.Thread(
            target=neighbour.create, args=("b", 10**8), kwargs={"backing": "shm-4k"}
        )
        making.start()
        threads.append(making)
        time.sleep(0.1)  # it takes longer to make; were it there, it would not be sealed
        return found

    threads: list[threading.Thread] = []
    monkeypatch.setattr(pool, "list", then_made_anew)
    report = pool.snapshot(tmp_path)
    threads.pop().join()
    neighbour.close()
    assert [one.name for one in report.objects] == ["a"]
    assert list(report.skipped) == ["b"]


def test_some_of_it(pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path) -> None:
    for name in "abc":
        pool.put(name, np.full(4, ord(name)))
    assert len(pool.snapshot(tmp_path, ["a", "b", "a"]).objects) == 2
    assert names(other) == []
    with pytest.raises(hugepool.ArrayNotFoundError, match="'c'"):
        other.restore(tmp_path, ["a", "c"])
    assert names(other) == []
    other.restore(tmp_path, "b")
    assert names(other) == ["b"]
    assert other.attach("b").array.tolist() == [ord("b")] * 4


def test_an_empty_pool(pool: hugepool.Pool, tmp_path: Path) -> None:
    assert pool.snapshot(tmp_path).objects == ()
    assert pool.restore(tmp_path).objects == ()


def test_names_that_are_taken(pool: hugepool.Pool, tmp_path: Path) -> None:
    for name in "ab":
        pool.put(name, np.zeros(3))
    pool.snapshot(tmp_path)
    pool.destroy("a")
    pool.publish("b", np.ones(5))
    reader = pool.attach("b")
    with pytest.raises(hugepool.ArrayExistsError, match="replace"):
        pool.restore(tmp_path)
    assert names(pool) == ["b"]
    pool.restore(tmp_path, replace=True)
    assert names(pool) == ["a", "b"]
    assert pool.attach("b").array.tolist() == [0, 0, 0]
    assert (pool.attach("a").generation, pool.attach("b").generation) == (1, 3)
    assert reader.array.tolist() == [1] * 5


# While others work --------------------------------------------------------------


def test_what_is_destroyed_and_published_meanwhile_is_saved_as_it_was(
    pool: hugepool.Pool, tmp_path: Path
) -> None:
    for name in "abcd":
        pool.put(name, np.full(50_000, ord(name), "f8"))
    with hugepool.connect(pool.address) as rival:

        def interfere(done_bytes: int, total_bytes: int) -> None:
            if set(names(rival)) >= {"b", "d"}:
                rival.destroy("b")
                rival.destroy("d")
                rival.publish("c", np.zeros(7))

        report = pool.snapshot(tmp_path, progress=interfere)
    assert [one.name for one in report.objects] == ["a", "b", "c", "d"]
    held = read_held(tmp_path)
    assert held == {name: np.full(50_000, ord(name), "f8").tobytes() for name in "abcd"}


def test_progress_reaches_the_end(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path
) -> None:
    for name in "ab":
        pool.put(name, np.zeros(5_000_000))
    for act in (pool.snapshot, other.restore):
        told: list[tuple[int, int]] = []
        act(tmp_path, progress=lambda *done, told=told: told.append(done))
        assert told == sorted(told)
        assert told[-1] == (80_000_000, 80_000_000) and len(told) >= 4


# Damage -------------------------------------------------------------------------


def test_damaged_memory_is_not_saved(pool: hugepool.Pool, tmp_path: Path) -> None:
    x = pool.put("x", np.arange(1000.0), backing="shm-4k")
    pool.snapshot(tmp_path)
    before = disk_at(tmp_path)
    os.chmod(x.info.segment.path, 0o600)
    fd = os.open(x.info.segment.path, os.O_RDWR)
    os.pwrite(fd, b"\1", 4000)
    os.close(fd)
    with pytest.raises(hugepool.ChecksumError):
        pool.snapshot(tmp_path)
    assert disk_at(tmp_path) == before


# What DIR alone has -------------------------------------------------------------


def test_the_only_copy_of_what_is_lost_stays(service: Service, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    service.start()
    with hugepool.connect(service.address) as pool:
        for name in "abc":
            pool.put(name, np.full(100, ord(name), "f8"))
        pool.snapshot(disk, ["a", "b"])
        before = disk_at(disk)
        for name in "ac":
            os.unlink(pool.describe(name).array.segment.path)

        def refused(names: list[str] | None) -> None:
            with pytest.raises(hugepool.SnapshotError, match="only copy") as caught:
                pool.snapshot(disk, names)
            assert caught.value.had == "a" and f"restore {disk} a " in caught.value.remedy
            assert disk_at(disk) == before

        refused(None)  # nobody but us has looked for the files yet
        service.restart()
        assert pool.stats().lost == 2
        refused(None)
        refused(["b"])
        with pytest.raises(hugepool.ArrayLostError):
            pool.snapshot(disk, ["a", "b"])
        done = run(pool, "snapshot", str(disk))
        assert done.returncode == 1 and "hugepool rm a" in done.stderr
        assert disk_at(disk) == before
        done = run(pool, "restore", str(disk), "a", "--replace")  # as we were told
        assert done.returncode == 0, done.stderr
        report = pool.snapshot(disk)
        assert [one.name for one in report.objects] == ["a", "b"]
        assert list(report.skipped) == ["c"], "what DIR does not have is no reason to refuse"
        os.unlink(pool.describe("a").array.segment.path)
        service.restart()
        pool.destroy("a")
        assert [one.name for one in pool.snapshot(disk).objects] == ["b"]
    assert read_held(disk) == {"b": np.full(100, ord("b"), "f8").tobytes()}


def test_what_is_destroyed_as_it_is_opened_is_not_lost(
    pool: hugepool.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        pool.put(name, np.zeros(10))
    pool.snapshot(tmp_path)
    check_owner = Channel.check_owner

    def too_late(self: Channel, segment: Segment) -> None:
        if any(info.segment == segment for info in pool.list() if info.spec.name == "b"):
            pool.destroy("b")
        check_owner(self, segment)

    monkeypatch.setattr(Channel, "check_owner", too_late)
    report = pool.snapshot(tmp_path)
    assert [one.name for one in report.objects] == ["a"] and list(report.skipped) == ["b"]


def test_a_snapshot_of_nothing_takes_the_place_of_none(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path
) -> None:
    """The timer of a machine that has just started, and its arrays are still on the disk."""
    pool.put("x", np.zeros(10))
    pool.snapshot(tmp_path)
    before = disk_at(tmp_path)
    other.create("open", 3)
    for chosen in (None, ()):
        with pytest.raises(hugepool.SnapshotError, match="nothing") as caught:
            other.snapshot(tmp_path, chosen)
        assert f"restore {tmp_path}" in caught.value.remedy
        assert disk_at(tmp_path) == before
    done = run(other, "snapshot", str(tmp_path))
    assert done.returncode == 1 and "hugepool restore" in done.stderr
    assert disk_at(tmp_path) == before
    other.restore(tmp_path)
    assert [one.name for one in other.snapshot(tmp_path).objects] == ["x"]


def test_a_snapshot_that_cannot_be_read_gives_way_to_one_of_something(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path
) -> None:
    pool.put("x", np.zeros(10))
    pool.snapshot(tmp_path)
    next(tmp_path.rglob("index.json")).write_bytes(b"{}")
    with pytest.raises(hugepool.SnapshotError, match="damaged"):
        other.snapshot(tmp_path)  # nobody can say what would be lost
    assert next(tmp_path.rglob("*.data")).read_bytes() == bytes(80)
    pool.snapshot(tmp_path)
    assert read_held(tmp_path) == {"x": bytes(80)}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_files_are_not_restored(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path, damage: str, replace: bool
) -> None:
    for name in "abc":
        pool.put(name, np.zeros(1000))
    pool.snapshot(tmp_path)
    victim = sorted(tmp_path.rglob("*.data"))[2]
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[5000] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        os.truncate(victim, 7999)
    else:
        victim.unlink()
    if replace:
        other.publish("a", np.ones(1))
    expected = names(other)
    with pytest.raises(hugepool.SnapshotError, match="'c'"):
        other.restore(tmp_path, replace=replace)
    assert names(other) == expected
    assert settles(lambda: other.stats().arrays == len(expected)), "memory was left behind"


def test_a_matrix_that_is_none_does_not_come_from_a_disk(
    pool: hugepool.Pool, tmp_path: Path
) -> None:
    """Checksums that are right over an index that would crash a kernel."""
    spec = ArraySpec("A", (2, 3), "<f8", "csr", 2, "<i4")
    parts = [np.array([0, 1, 2], "<i4"), np.array([0, 1 << 30], "<i4"), np.ones(2)]
    content = b"".join(part.tobytes() for part in parts)
    one = saved("A", content, 0)
    told = checksum_of_buffers([memoryview(part.tobytes()) for part in parts])
    one = msgspec.structs.replace(one, spec=spec, checksum=told)
    with SnapshotDirectory(str(tmp_path), writing=True) as disk, disk.writing(100) as writer:
        with writer.data("0000.data") as fd:
            write_whole(fd, memoryview(content), 0)
        writer.commit(Index(FORMAT, (one,)))
    with pytest.raises(hugepool.IndexOutOfRangeError) as caught:
        pool.restore(tmp_path)
    assert caught.value.position == 1
    assert names(pool) == []


def test_nothing_stays_open(pool: hugepool.Pool, tmp_path: Path) -> None:
    pool.put("x", np.zeros(1000))
    pool.snapshot(tmp_path)
    before = Gauges.read().descriptors
    for _ in range(3):
        pool.snapshot(tmp_path)
        pool.restore(tmp_path, replace=True)
        with pytest.raises(hugepool.ArrayExistsError):
            pool.restore(tmp_path)
        with pytest.raises(hugepool.SnapshotError):
            pool.restore(tmp_path / "nowhere")
    assert settles(lambda: Gauges.read().descriptors <= before)


# Power and kills ----------------------------------------------------------------


def test_a_power_failure_at_any_write_leaves_the_old_or_the_new(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run, recorded; every disk that may be left of it, read; some of them restored."""
    monkeypatch.setattr(checksum, "SLICE_BYTES", 32 << 10)
    root = tmp_path / "disk"
    old = {"x": np.full(100, 1.0).tobytes(), "y": np.full(30_000, 2.0).tobytes()}
    new = {"x": np.full(200, 3.0).tobytes(), "y": np.full(30_000, 4.0).tobytes()}
    for name, content in old.items():
        pool.publish(name, np.frombuffer(content))
    pool.snapshot(root)
    start = disk_at(root)
    for name, content in new.items():
        pool.publish(name, np.frombuffer(content))
    with recording(root) as acts:
        pool.snapshot(root)
    assert next(disks_after(start, acts)) == disk_at(root), "something was done unseen"
    assert sum(act.verb == "write" for act in acts) > 10
    seen: dict[bool, list[Disk]] = {False: [], True: []}
    with scratch_in_memory() as scratch:
        for count in range(len(acts) + 1):
            for disk in disks_after(start, acts[:count], seed=count, most=40):
                path = write_disk(disk, scratch / "state")
                held = read_held(path)
                assert held in (old, new), (count, acts[count - 1].verb, acts[count - 1].path)
                seen[held == new].append(disk)
                remove(path)
        for number, disk in enumerate([*seen[False][-2:], *seen[True][:2], *seen[True][-2:]]):
            path = write_disk(disk, scratch / f"restored-{number}")
            other.restore(path, replace=True)
            expected = old if number < 2 else new
            for name, content in expected.items():
                assert other.attach(name).array.tobytes() == content
    assert len(seen[False]) > 50 and len(seen[True]) > 5


SNAPSHOT = """
import hugepool, sys
pool = hugepool.connect()
print("ready", flush=True)
sys.stdin.readline()
pool.snapshot(sys.argv[1])
print("done", flush=True)
sys.stdin.readline()
"""


def test_kill_9_at_any_moment_leaves_the_old_or_the_new(service: Service, tmp_path: Path) -> None:
    service.start()
    chance = random.Random(4)
    root = tmp_path / "disk"
    elements = 2_000_000
    took_s = 0.0
    last = 0.0
    with hugepool.connect(service.address) as pool:
        for value in range(1, KILLS + 1):
            for name in "ab":
                pool.publish(name, np.full(elements, float(value)))
            process = subprocess.Popen(
                [sys.executable, "-c", SNAPSHOT, str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "HUGEPOOL_ADDRESS": service.address},
            )
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            started = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            if value == 1:  # the first one is left alone, to see how long it takes
                assert process.stdout.readline() == "done\n"
                took_s = time.monotonic() - started
            else:
                time.sleep(chance.uniform(0, 2 * took_s))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            held = read_held(root)
            assert held is not None
            found = {np.frombuffer(content)[0] for content in held.values()}
            assert len(found) == 1, "two generations in one snapshot"
            now = found.pop()
            assert now in (last, float(value)), "neither the old nor the new"
            assert held == {name: np.full(elements, now).tobytes() for name in "ab"}
            last = now
        pool.snapshot(root)
        assert len([entry for entry in root.iterdir() if entry.is_dir()]) == 1
        assert settles(lambda: all(info.readers <= 1 for info in pool.list())), "leases were left"


def test_two_snapshots_into_one_directory(
    pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path
) -> None:
    pool.put("x", np.zeros(10))
    pool.snapshot(tmp_path)
    refused = []

    def meanwhile(done_bytes: int, total_bytes: int) -> None:
        for act in (other.snapshot, other.restore):
            with pytest.raises(hugepool.SnapshotError, match="another process") as caught:
                act(tmp_path)
            refused.append(caught.value.remedy)

    pool.snapshot(tmp_path, progress=meanwhile)
    assert refused and all("wait" in remedy for remedy in refused)
    assert read_held(tmp_path) == {"x": bytes(80)}


def test_a_child_forked_meanwhile_does_not_keep_the_directory(
    pool: hugepool.Pool, tmp_path: Path
) -> None:
    pool.put("x", np.zeros(10))
    children: list[int] = []

    def fork(done_bytes: int, total_bytes: int) -> None:
        if not children:
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            children.append(pid)

    try:
        pool.snapshot(tmp_path, progress=fork)
        pool.snapshot(tmp_path)
        pool.restore(tmp_path, replace=True)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


@pytest.mark.parametrize("instead", [True, False])
def test_a_directory_that_is_moved_meanwhile_is_no_success(
    pool: hugepool.Pool, tmp_path: Path, instead: bool
) -> None:
    root, moved = tmp_path / "disk", tmp_path / "moved"
    pool.put("x", np.zeros(10))
    pool.snapshot(root)
    pool.publish("x", np.ones(10))

    def move(done_bytes: int, total_bytes: int) -> None:
        root.rename(moved)
        if instead:
            root.mkdir()

    with pytest.raises(hugepool.SnapshotError, match="moved"):
        pool.snapshot(root, progress=move)
    assert read_held(moved) == {"x": bytes(80)}, "the one before counts"
    assert len(list(moved.iterdir())) == 2


def test_a_full_disk_leaves_the_old_one(pool: hugepool.Pool, mounts: Mounts) -> None:
    small = Path(mounts.tmpfs("size=1M"))
    pool.put("x", np.zeros(50_000))
    pool.snapshot(small)
    pool.put("y", np.zeros(50_000))
    for _ in range(2):
        with pytest.raises(hugepool.SnapshotError, match="room") as caught:
            pool.snapshot(small)
        assert "disk space" in caught.value.remedy
        assert read_held(small) == {"x": bytes(400_000)}
        assert len(list(small.iterdir())) == 2
    pool.destroy("y")
    pool.snapshot(small)


def test_a_coordinator_that_takes_no_checksums(service: Service, tmp_path: Path) -> None:
    service.start("--no-checksums")
    with hugepool.connect(service.address) as pool:
        assert pool.put("x", np.arange(10.0)).checksum == ""
        with pytest.raises(hugepool.InvalidSpecError, match="takes none"):
            pool.verify("x")
        report = pool.snapshot(tmp_path)  # the disk's are taken all the same
        pool.destroy("x")
        assert pool.restore(tmp_path).objects == report.objects
        victim = next(tmp_path.rglob("*.data"))
        victim.write_bytes(bytes(80))
        with pytest.raises(hugepool.SnapshotError, match="damaged"):
            pool.restore(tmp_path, replace=True)


# The command --------------------------------------------------------------------


def run(pool: hugepool.Pool, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HUGEPOOL), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "HUGEPOOL_ADDRESS": pool.address},
    )


def test_the_commands(pool: hugepool.Pool, other: hugepool.Pool, tmp_path: Path) -> None:
    pool.put("x", np.arange(12.0).reshape(3, 4))
    pool.create("open", 3)
    disk = str(tmp_path / "disk")
    done = run(pool, "snapshot", disk)
    assert done.returncode == 0, done.stderr
    assert "\t3x4\t" in done.stdout and "skipped: it is not sealed" in done.stdout
    assert "saved 1 object," in done.stderr
    done = run(other, "restore", disk, "--json")
    told = json.loads(done.stdout)
    assert told["objects"][0]["spec"]["name"] == "x" and told["nbytes"] == 96
    assert other.attach("x").array[2, 3] == 11
    done = run(other, "restore", disk)
    assert done.returncode == 1
    assert "--replace" in done.stderr and "Traceback" not in done.stderr
    assert run(other, "restore", disk, "--replace", "x").returncode == 0
    assert other.attach("x").generation == 2
    done = run(other, "restore", str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "cannot be opened" in done.stderr
    assert json.loads(run(pool, "snapshot", disk, "x", "--json").stdout)["skipped"] == {}


# Scratch ------------------------------------------------------------------------


class scratch_in_memory:
    """A directory on /dev/shm, for thousands of small trees."""

    def __enter__(self) -> Path:
        self._path = Path("/dev/shm") / f"hugepool-test-snapshots-{os.getpid()}"
        self._path.mkdir()
        return self._path

    def __exit__(self, *_: object) -> None:
        remove(self._path)


def remove(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir():
            remove(entry)
        else:
            entry.unlink()
    path.rmdir()
