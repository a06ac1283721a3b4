"""What a limit of descriptors is good for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hugepool_server import descriptors
from support.host import settles

SCRIPT = """
import os, resource
from hugepool_server import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
try:
    limit = descriptors.raise_limit()
except Exception as error:
    print(type(error).__name__, error)
else:
    before = descriptors.is_full(limit)
    opened = [os.dup(0) for _ in range(limit * 8 // 10 + 1 - descriptors.open_count())]
    after = descriptors.is_full(limit)
    print(limit, descriptors.sessions_within(limit), before, after)
"""


def under(soft: int, hard: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(soft=soft, hard=hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_all_that_may_be_had_is_taken() -> None:
    assert under(256, 1000) == "1000 228 False True"
    assert under(256, 256) == "256 42 False True"


def test_too_few_are_refused_with_what_to_do() -> None:
    said = under(64, 255)
    assert said.startswith("HugepoolError the coordinator may open too few files")
    assert "256" in said
    assert "255" in said
    assert "LimitNOFILE" in said


def test_a_usual_limit_is_enough_for_all_sessions() -> None:
    assert descriptors.sessions_within(65536) > 10_000
    assert descriptors.sessions_within(descriptors.LEAST) >= 40


def test_descriptors_are_counted() -> None:
    def counted() -> bool:
        before = descriptors.open_count()
        fd = os.dup(0)
        try:
            return descriptors.open_count() == before + 1
        finally:
            os.close(fd)

    # Threads of others, and rubbish that is collected, may close theirs in between.
    assert settles(counted)


def test_the_error_tells_the_count() -> None:
    error = descriptors.full_error(1000)
    assert isinstance(error, MemoryError)
    assert settles(lambda: descriptors.full_error(1000).had == str(descriptors.open_count()))
    assert "1000" in error.needed
    with pytest.raises(MemoryError):
        raise error
