"""Fixtures for every kind of test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.examples import examples
from support.host import Gauges, Mounts, free_pages, lower_pool, raise_pool, require, settles
from support.locker import locker as locker
from support.service import patience as patience
from support.service import service as service

POOL_PAGES = 192
FEW_PAGES = 8

# How long an example, or the making of one, takes says how busy the machine is.
settings.register_profile(
    "hugepool",
    max_examples=examples(100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("hugepool")

# A shell's "&" has it ignored, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def huge_page_pool() -> Iterator[int]:
    """At least 192 free pages of 2 MiB, given back at the end of the run."""
    yield from pool_of(POOL_PAGES)


@pytest.fixture(scope="session")
def few_huge_pages() -> Iterator[int]:
    """At least 8 free pages of 2 MiB: the rest may be in use by tests of another process."""
    yield from pool_of(FEW_PAGES)


def pool_of(pages: int) -> Iterator[int]:
    """At least so many free pages, given back at the end."""
    try:
        before, made = raise_pool(pages)
    except OSError as error:
        require("hugetlbfs", False, f"the pool cannot be raised: {error}")
        raise
    # Others may have taken some of them meanwhile, for a test.
    there = settles(lambda: free_pages() >= pages)
    require("hugetlbfs", there, "the kernel finds no free huge pages")
    yield pages
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
