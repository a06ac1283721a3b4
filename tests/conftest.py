"""Fixtures for every kind of test."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.host import Gauges, Mounts, free_pages, lower_pool, raise_pool, require, settles
from support.locker import locker as locker
from support.service import service as service

POOL_PAGES = 192


@pytest.fixture(scope="session")
def huge_page_pool() -> Iterator[int]:
    """At least 192 free pages of 2 MiB, given back at the end of the run."""
    try:
        before, made = raise_pool(POOL_PAGES)
    except OSError as error:
        require("hugetlbfs", False, f"the pool cannot be raised: {error}")
        raise
    require("hugetlbfs", free_pages() >= POOL_PAGES, "the kernel finds no free huge pages")
    yield POOL_PAGES
    lower_pool(before, made)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    """Mounts that only this test sees."""
    made = Mounts(tmp_path)
    yield made
    made.close()


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Descriptors, free huge pages and segment directories are afterwards as before."""
    before = Gauges.read()
    yield
    gc.collect()
    assert settles(before.restored), f"before {before}, after {Gauges.read()}"
