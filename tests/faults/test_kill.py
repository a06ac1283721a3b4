"""SIGKILL of coordinators and workers: after one start of a coordinator nothing is left over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import hugepool
from support.host import Mounts, held_pages, settles
from support.service import Service


def segments_in(directory: Path) -> int:
    return len(list(directory.glob("*.segment")))


@pytest.mark.parametrize("victims", ["coordinator", "worker", "both"])
def test_no_growth_after_a_restart(
    service: Service,
    mounts: Mounts,
    huge_page_pool: int,
    monkeypatch: pytest.MonkeyPatch,
    victims: str,
) -> None:
    mount = mounts.hugetlbfs()
    monkeypatch.setenv("HUGEPOOL_MOUNT", mount)
    held_before = held_pages()
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.put("x", np.arange(2e6), backing="hugetlbfs-2m")
    y = pool.put("y", np.arange(2e6), backing="shm-collapse")
    pool.create("z", 1000)
    pool.gather(x, np.arange(1000), out="g", workers=1)
    assert os.stat(x.info.segment.path).st_blocks * 512 >= x.array.nbytes  # pages of the pool
    directories = [Path(shared.info.segment.path).parent for shared in (x, y)]
    assert [segments_in(directory) for directory in directories] == [1, 3]
    if victims != "coordinator":
        os.kill(pool.stats().workers[0].pid, 9)
    if victims != "worker":
        service.kill()
    else:
        assert service.stop() == 0
    x.detach()
    pool.close()
    service.start()
    sealed = {"x", "y"} if victims != "worker" else set()
    with hugepool.connect(service.address) as pool:
        assert {info.spec.name for info in pool.list()} == sealed
        assert sum(map(segments_in, directories)) == len(sealed)
        for name in sealed:
            np.testing.assert_array_equal(pool.attach(name).array, np.arange(2e6))
            pool.destroy(name)
    assert service.stop() == 0
    assert not any(directory.exists() for directory in directories)
    assert os.listdir(mount) == []
    assert settles(lambda: held_pages() <= held_before), "huge pages did not come back"


def test_a_foreign_file_in_a_dead_directory_is_left_alone(service: Service, tmp_path: Path) -> None:
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.create("x", 10)
    directory = Path(x.info.segment.path).parent
    (directory / "notes.txt").write_text("mine")
    service.kill()
    pool.close()
    service.start()
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: pool.list() == ())
    assert segments_in(directory) == 0
    assert service.stop() == 0
    assert (directory / "notes.txt").read_text() == "mine"
    shutil.rmtree(directory)
