"""SIGKILL of coordinators and workers: after one start of a coordinator nothing is left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import hugepool
from support.host import Mounts, free_pages
from support.service import Service


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
    free_before = free_pages()
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.put("x", np.arange(2e6), backing="hugetlbfs-2m")
    y = pool.put("y", np.arange(2e6), backing="shm-collapse")
    pool.create("z", 1000)
    pool.gather(x, np.arange(1000), out="g", workers=1)
    assert free_pages() < free_before
    directories = [Path(shared.info.segment.path).parent for shared in (x, y)]
    assert [len(os.listdir(directory)) for directory in directories] == [1, 3]
    if victims != "coordinator":
        os.kill(pool.stats().workers[0].pid, 9)
    if victims != "worker":
        service.kill()
    else:
        assert service.stop() == 0
    x.detach()
    pool.close()
    service.start()
    assert not any(directory.exists() for directory in directories)
    assert os.listdir(mount) == []
    deadline = time.monotonic() + 10
    while free_pages() < free_before:
        assert time.monotonic() < deadline, "huge pages did not come back"
        time.sleep(0.01)
    assert service.stop() == 0


def test_a_foreign_file_in_a_dead_directory_is_left_alone(service: Service, tmp_path: Path) -> None:
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.put("x", np.arange(10.0))
    directory = Path(x.info.segment.path).parent
    (directory / "notes.txt").write_text("mine")
    service.kill()
    pool.close()
    service.start()
    assert os.listdir(directory) == ["notes.txt"]
    (directory / "notes.txt").unlink()
    directory.rmdir()
