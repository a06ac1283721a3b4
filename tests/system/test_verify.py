"""Checksums computed again: sound, damaged, cut short, or not there."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hugepool
from support.extras import sparse
from support.snapshots import read_held

HUGEPOOL = Path(sysconfig.get_path("scripts")) / "hugepool"


@pytest.fixture
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


def run(pool: hugepool.Pool, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HUGEPOOL), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "HUGEPOOL_ADDRESS": pool.address},
    )


def damage(path: str, offset: int) -> None:
    """Flip a bit of a sealed file: what no client can, and broken memory does."""
    os.chmod(path, 0o600)
    fd = os.open(path, os.O_RDWR)
    byte = os.pread(fd, 1, offset)[0]
    os.pwrite(fd, bytes([byte ^ 4]), offset)
    os.close(fd)


def test_what_is_sound_is_reported(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(3e6))
    told: list[tuple[int, int]] = []
    report = pool.verify("x", progress=lambda *done: told.append(done))
    assert (report.name, report.nbytes, report.checksum) == ("x", 24_000_000, x.checksum)
    assert told[-1] == (24_000_000, 24_000_000)
    pool.put("empty", np.zeros((0, 4)))
    assert pool.verify("empty").nbytes == 0
    pool.put("A", sparse().eye_array(50, format="csr"))
    assert pool.verify("A").nbytes == 51 * 4 + 50 * 4 + 50 * 8
    assert pool.describe("x").array.readers == 1, "the lease was not given back"


def test_no_free_descriptor_is_an_error_with_a_remedy(pool: hugepool.Pool, tmp_path: Path) -> None:
    for number in range(5):
        pool.put(f"x{number}", np.arange(10.0))
    pool.snapshot(tmp_path)
    before = read_held(tmp_path)
    gc.collect()  # nothing of an earlier test is closed from here on
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        with pytest.raises(hugepool.NotEnoughMemoryError, match="Too many open files") as told:
            pool.verify("x0")
        with pytest.raises(hugepool.HugepoolError, match="Too many open files"):
            pool.snapshot(tmp_path)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, limits[1]))
        with pytest.raises(hugepool.SnapshotError, match="too many objects") as many:
            pool.snapshot(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in told.value.remedy and "ulimit -n" in many.value.remedy
    assert read_held(tmp_path) == before
    assert all(info.readers == 0 for info in pool.list()), "a lease was not given back"


@pytest.mark.parametrize("offset", [0, 12_345_678, 23_999_999])
def test_one_flipped_bit_is_found(pool: hugepool.Pool, offset: int) -> None:
    x = pool.put("x", np.arange(3e6), backing="shm-4k")
    damage(x.info.segment.path, offset)
    with pytest.raises(hugepool.ChecksumError) as caught:
        pool.verify("x")
    assert caught.value.needed == x.checksum != caught.value.had


def test_padding_may_be_anything(pool: hugepool.Pool) -> None:
    A = pool.put("A", sparse().eye_array(50, format="csr"), backing="shm-4k")
    damage(A.info.segment.path, 4000)
    assert pool.verify("A").checksum == A.checksum


def test_a_file_cut_short_or_gone_is_an_error_and_no_signal(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(3e6), backing="shm-4k")
    os.chmod(x.info.segment.path, 0o600)
    os.truncate(x.info.segment.path, 4096)
    with pytest.raises(hugepool.SegmentChangedError):
        pool.verify("x")
    os.unlink(x.info.segment.path)
    with pytest.raises(hugepool.SegmentChangedError):
        pool.verify("x")


def test_what_has_no_checksum(pool: hugepool.Pool) -> None:
    x = pool.create("x", 5)
    with pytest.raises(hugepool.InvalidSpecError, match="not sealed"):
        pool.verify("x")
    with pytest.raises(hugepool.ArrayNotFoundError):
        pool.verify("y")
    assert pool.describe(x.name).array.readers == 1


def test_the_command(pool: hugepool.Pool) -> None:
    pool.put("good", np.arange(1000.0))
    bad = pool.put("bad", np.arange(1000.0), backing="shm-4k")
    pool.create("open", 5)
    done = run(pool, "verify")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", "bad", "good"]
    damage(bad.info.segment.path, 80)
    done = run(pool, "verify")
    assert done.returncode == 1
    assert "not those that were sealed" in done.stdout
    done = run(pool, "verify", "--json", "bad", "good")
    assert done.returncode == 1
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["good"]["ok"] and findings["good"]["nbytes"] == 8000
    assert not findings["bad"]["ok"] and "sealed" in findings["bad"]["error"]
    assert run(pool, "verify", "good").returncode == 0
    done = run(pool, "verify", "nothing", "good")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "nothing" in done.stderr and "hugepool ls" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", "good"]
    assert run(pool, "verify", "--address", "ipc:///nowhere").returncode == 3


def test_a_file_is_published(pool: hugepool.Pool, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(5))
    for generation in (1, 2):
        done = run(pool, "publish", "x", str(tmp_path / "x.npy"))
        assert done.returncode == 0, done.stderr
        assert f"x generation {generation}" in done.stdout
    assert pool.attach("x").array.tolist() == [0, 1, 2, 3, 4]
    assert run(pool, "publish", "y", str(tmp_path / "none.npy")).returncode == 1
    assert run(pool, "publish", "../y", str(tmp_path / "x.npy")).returncode == 2
    assert [info.spec.name for info in pool.list()] == ["x"]
