"""What a coordinator was told on its command line to allow and to do, from the outside."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import hugepool
from hugepool_common.units import MIB
from support.service import Service

pytestmark = pytest.mark.usefixtures("patience")


def test_a_quota_is_refused_before_anything_is_taken(service: Service) -> None:
    service.start("--quota", "3M")
    with hugepool.connect(service.address) as pool, hugepool.connect(service.address) as other:
        first = pool.create("first", 2 * MIB, "u1")
        directory = Path(first.info.segment.path).parent
        before = {path.name for path in directory.iterdir()}
        with pytest.raises(hugepool.QuotaExceededError) as caught:
            other.create("second", 2 * MIB, "u1")
        assert isinstance(caught.value, MemoryError)
        assert caught.value.needed
        assert caught.value.had
        assert caught.value.remedy
        assert {path.name for path in directory.iterdir()} == before
        assert [info.spec.name for info in pool.list()] == ["first"]
        assert pool.stats().quota_bytes == 3 * MIB
        other.create("small", MIB, "u1")
        first.detach()
        pool.destroy("first")
        other.create("second", 2 * MIB, "u1")


def test_what_was_taken_over_counts(service: Service) -> None:
    service.start("--quota-per-user", "3M")
    with hugepool.connect(service.address) as pool:
        pool.put("first", np.zeros(2 * MIB, "u1"))
        service.restart("--quota-per-user", "3M")
        with pytest.raises(hugepool.QuotaExceededError):
            pool.create("second", 2 * MIB, "u1")
        assert pool.stats().user_quota_bytes == 3 * MIB
        # A lower one takes nothing from anybody.
        service.restart("--quota-per-user", "1M")
        assert pool.attach("first").array.nbytes == 2 * MIB
        with pytest.raises(hugepool.QuotaExceededError):
            pool.create("second", 8, "u1")
        pool.destroy("first")
        pool.create("second", MIB, "u1")


@pytest.mark.parametrize(
    "words",
    [
        ("--quota", "much"),
        ("--quota", "0"),
        ("--quota-per-user", "-1"),
        ("--keep", "--parent", "1"),
    ],
)
def test_what_cannot_be_meant_is_refused(service: Service, words: tuple[str, ...]) -> None:
    process = service.begin(*words)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert not os.path.exists(service.directory)


def test_checksums_may_be_switched_off(service: Service) -> None:
    service.start("--no-checksums")
    with hugepool.connect(service.address) as pool:
        pool.put("plain", [1.0])
        service.restart()
        pool.put("checked", [1.0])
        assert {info.spec.name: bool(info.checksum) for info in pool.list()} == {
            "plain": False,
            "checked": True,
        }
