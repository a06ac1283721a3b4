"""Directories that are moved or removed while their coordinator serves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import hugepool
from support.host import Mounts
from support.service import Service

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def successor(service: Service) -> Iterator[Callable[[], Service]]:
    """Starts another coordinator at the path of one whose directory was moved away."""
    made = Service(service.directory)
    yield lambda: made.start()
    made.close()


def away(service: Service) -> Path:
    """Move a runtime directory from its path."""
    return service.directory.rename(service.directory.with_name("moved"))


def log_of(service: Service) -> str:
    """What the coordinator that was started last has logged, once it has ended."""
    assert service.process is not None
    return service.process.communicate()[1]


def files(directory: Path) -> dict[str, bytes]:
    """What is in a directory, however deep."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_coordinator_whose_directory_was_moved_leaves_the_next_ones_records_alone(
    service: Service, successor: Callable[[], Service]
) -> None:
    service.start()
    with hugepool.connect(service.address) as before:
        away(service)
        second = successor()
        with hugepool.connect(second.address) as pool:
            pool.put("kept", np.arange(1000.0))
            records = files(second.directory)
            before.put("first", np.ones(10))  # it makes and writes down a segment directory
            assert files(second.directory) == records
        second.restart()
        with hugepool.connect(second.address) as pool:
            assert [(info.spec.name, info.lost) for info in pool.list()] == [("kept", False)]
            assert pool.attach("kept").array.sum() == 499500.0


@pytest.mark.parametrize("removed", [False, True])
def test_a_coordinator_whose_directory_was_moved_ends_without_the_next_ones_files(
    service: Service, successor: Callable[[], Service], removed: bool
) -> None:
    service.start()
    with hugepool.connect(service.address) as before:
        before.put("first", np.ones(10))
        moved = away(service)
        if removed:
            shutil.rmtree(moved)
        second = successor()
        with hugepool.connect(second.address) as pool:
            pool.put("kept", np.arange(10.0))
            records = files(second.directory)
            assert service.stop() == 0
            assert files(second.directory) == records
            assert pool.attach("kept").array.sum() == 45.0
        hugepool.connect(second.address).close()
        assert removed or os.listdir(moved) == []


def test_a_segment_directory_that_was_removed_is_made_anew_and_its_arrays_are_told(
    service: Service,
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        held = pool.put("x", np.arange(1000.0), huge_pages="off")
        directory = Path(pool.describe("x").array.segment.path).parent
        assert pool.stats().troubles == ()
        shutil.rmtree(directory)
        assert len(pool.stats().troubles) == 1
        pool.put("y", np.arange(10.0), huge_pages="off")
        assert pool.attach("y").array.sum() == 45.0
        assert Path(pool.describe("y").array.segment.path).parent == directory
        assert held.array.sum() == 499500.0  # who has it, keeps it
        (told,) = pool.stats().troubles
        assert str(directory) in told
        assert ": x;" in told
        service.restart()
        assert {info.spec.name: info.lost for info in pool.list()} == {"x": True, "y": False}
        assert pool.stats().troubles == ()


def test_what_nobody_has_any_more_is_no_trouble(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0), huge_pages="off")
        shutil.rmtree(Path(pool.describe("x").array.segment.path).parent)
        pool.destroy("x")
        pool.put("x", np.arange(3.0), huge_pages="off")
        assert pool.attach("x").array.sum() == 3.0
        assert pool.stats().troubles == ()


def test_manifests_that_were_removed_are_missed_at_once(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(10.0))
        path = pool.describe("x").array.segment.path
        shutil.rmtree(service.directory / "arrays")
        (told,) = pool.stats().troubles
        assert "manifests" in told
        with pytest.raises(hugepool.NotPermittedError, match="snapshot"):
            pool.put("y", np.ones(3))
        with pytest.raises(hugepool.NotPermittedError, match="snapshot"):
            pool.publish("x", np.ones(10))
        assert [info.spec.name for info in pool.list()] == ["x"]
        service.kill()
        assert "the manifests in" in log_of(service)
        service.start()
        assert pool.list() == ()
        assert x.array.sum() == 45.0
        service.kill()
        assert f"its manifest was removed from outside: {path}" in log_of(service)


def test_without_the_directory_of_tokens_nobody_connects_and_is_told_why(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        shutil.rmtree(service.directory / "tokens")
        with pytest.raises(
            hugepool.NotPermittedError, match="start the coordinator anew"
        ) as caught:
            hugepool.connect(service.address)
        assert caught.value.where == str(service.directory / "tokens")
        (told,) = pool.stats().troubles
        assert "tokens" in told
    assert service.stop() == 0
    assert "Traceback" not in log_of(service)


def test_a_full_runtime_directory_is_told_as_that(tmp_path: Path, mounts: Mounts) -> None:
    service = Service(Path(mounts.tmpfs("size=256k,nr_inodes=60")) / "run")
    try:
        service.start()
        fill(service.directory / "hog")
        with pytest.raises(hugepool.NotEnoughMemoryError, match="make room") as caught:
            hugepool.connect(service.address)
        assert str(service.directory) in caught.value.where
        os.unlink(service.directory / "hog")
        hugepool.connect(service.address).close()
        assert service.stop() == 0
        assert "Traceback" not in log_of(service)
    finally:
        service.close()


def fill(path: Path) -> None:
    """Leave no room on a small file system."""
    with path.open("wb", buffering=0) as file:
        for nbytes in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(nbytes))
            except OSError:
                continue
