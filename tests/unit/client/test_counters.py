"""The dTLB counter counts, or says why it does not; it never reports a made-up 0."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from typing import Any

import numpy as np
import pytest

from hugepool import counters
from hugepool.counters import TlbCounter
from hugepool_common.errors import UnsupportedPlatformError

_TYPE_SOFTWARE, _PAGE_FAULTS = 1, 2  # perf_event_open(2); every kernel can count these


def _run(counter: TlbCounter) -> None:
    with counter:
        np.ones(1_000_000).sum()


def test_on_this_machine_it_counts_or_tells_why() -> None:
    counter = TlbCounter()
    _run(counter)
    if counter.misses is None:
        assert counter.note.startswith("unavailable: ")
    else:
        assert counter.misses > 0
        assert not counter.note.startswith("unavailable")
    counter.close()


@pytest.fixture
def fault_counter(monkeypatch: pytest.MonkeyPatch) -> TlbCounter:
    """A counter of page faults in place of TLB misses, for machines without the latter."""
    monkeypatch.setattr(counters, "_TYPE_CACHE", _TYPE_SOFTWARE)
    monkeypatch.setattr(counters, "_CONFIG", _PAGE_FAULTS)
    counter = TlbCounter()
    if counter.note:
        pytest.skip(f"this machine forbids even software counters: {counter.note}")
    return counter


def _touch(pages: int) -> None:
    """Take a page fault for each of so many pages."""
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as fresh:
        fresh.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(pages):
            fresh[page * mmap.PAGESIZE] = 1


def test_only_what_happens_inside_is_counted(fault_counter: TlbCounter) -> None:
    with fault_counter:
        _touch(300)
    assert fault_counter.misses is not None
    assert fault_counter.misses >= 300
    _touch(3000)
    with fault_counter:
        _touch(300)
    assert fault_counter.misses is not None
    assert 300 <= fault_counter.misses < 3000
    assert fault_counter.note == ""
    fault_counter.close()


def test_an_error_inside_passes_through_and_the_counter_stays_usable(
    fault_counter: TlbCounter,
) -> None:
    with pytest.raises(ZeroDivisionError), fault_counter:
        _touch(1 // 0)
    with fault_counter:
        _touch(300)
    assert fault_counter.misses
    fault_counter.close()


def test_another_thread_is_told_so(fault_counter: TlbCounter) -> None:
    thread = threading.Thread(target=_run, args=(fault_counter,))
    thread.start()
    thread.join()
    assert fault_counter.misses is None
    assert "another thread" in fault_counter.note
    with fault_counter:
        _touch(300)
    assert (bool(fault_counter.misses), fault_counter.note) == (True, "")
    fault_counter.close()


def test_close_gives_the_descriptor_back(fault_counter: TlbCounter) -> None:
    descriptor = fault_counter._fd
    fault_counter.close()
    fault_counter.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    _run(fault_counter)
    assert (fault_counter.misses, fault_counter.note) == (
        None,
        "unavailable: the counter is closed",
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "perf_event_paranoid is"),
        (errno.EPERM, "perf_event_paranoid is"),
        (errno.ENOENT, "no dTLB miss counter"),
        (errno.EOPNOTSUPP, "no dTLB miss counter"),
        (errno.ENODEV, "no dTLB miss counter"),
        (errno.ENOSYS, "without performance counters"),
        (errno.EMFILE, "descriptor"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_every_refusal_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(counters, "perf_event_open", refuse)
    counter = TlbCounter()
    _run(counter)
    assert counter.misses is None
    assert counter.note.startswith("unavailable: ")
    assert words in counter.note


def test_elsewhere_than_linux_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> int:
        raise UnsupportedPlatformError("hugepool needs Linux")

    monkeypatch.setattr(counters, "perf_event_open", refuse)
    assert TlbCounter().note == "unavailable: hugepool needs Linux"


@pytest.mark.parametrize(
    ("counted", "enabled", "running", "misses", "note"),
    [
        (500, 0, 0, 500, ""),
        (500, 100, 100, 500, ""),
        (0, 100, 100, 0, ""),
        (0, 0, 0, None, "unavailable: the counter did not run"),
        (0, 100, 0, None, "unavailable: the counter did not run"),
        (500, 100, 25, 2000, "scaled: counted during 25 % of the run"),
    ],
)
def test_a_counter_that_had_no_turn_is_not_a_zero(
    counted: int, enabled: int, running: int, misses: int | None, note: str
) -> None:
    found = counters._interpreted(counted, enabled, running)
    assert found[0] == misses
    assert found[1].startswith(note)
    assert bool(found[1]) == bool(note)
