"""System calls that fail in the middle of making a segment: by injection, one at a time."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hugepool_common import linux
from hugepool_common.errors import (
    CancelledError,
    NotEnoughMemoryError,
    NotEnoughPagesError,
    NotPermittedError,
)
from hugepool_common.mapping import Mapping
from hugepool_common.pages import read_host
from hugepool_common.spec import PageReport, Segment
from hugepool_common.units import MIB
from hugepool_server.backends import filling, select, shared_memory
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.reclaim import SegmentDirectories
from support.host import Mounts, require

LENGTH = 8 * MIB

pytestmark = pytest.mark.usefixtures("leak_check")

Inject = Callable[[int, Callable[[int], int]], list[int]]


@pytest.fixture
def directories() -> Iterator[SegmentDirectories]:
    with SegmentDirectories() as made:
        yield made


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Inject:
    """``inject(advice, answer)``: the n-th madvise with that advice fails with ``answer(n)``."""

    def prepare(advice: int, answer: Callable[[int], int]) -> list[int]:
        calls: list[int] = []
        lock = threading.Lock()
        real = linux.advise

        def advise(address: int, length: int, asked: int) -> None:
            if asked == advice:
                with lock:
                    calls.append(length)
                    number = answer(len(calls))
                if number:
                    raise OSError(number, os.strerror(number))
            try:
                real(address, length, asked)
            except OSError:
                if asked == advice:
                    with lock:
                        calls.pop()  # the kernel's own refusal, such as of a page that is busy
                raise

        monkeypatch.setattr(linux, "advise", advise)
        return calls

    return prepare


@pytest.fixture
def collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """One extent a call, so that calls can be told apart."""
    fall = select.backend_of("shm-collapse").unusable(read_host(), LENGTH)
    require("collapse", fall is None, fall.reason if fall else "")
    monkeypatch.setattr(shared_memory, "_COLLAPSE_SLICE", 2 * MIB)


def make(directories: SegmentDirectories, **options: Any) -> tuple[Segment, PageReport]:
    chosen: dict[str, Any] = {"huge_pages": "try", "page_size": "auto", "backing": "", **options}
    request = SegmentRequest(1, LENGTH, group=chosen.pop("group", None))
    return select.make_segment(request, directories=directories, **chosen)


def without_hugetlbfs() -> Any:
    return replace(read_host(), hugetlbfs_mounts=())


def test_fragmented_memory_gives_a_whole_segment_of_which_a_part_is_huge(
    directories: SegmentDirectories, inject: Inject, collapse: None
) -> None:
    inject(linux.MADV_COLLAPSE, lambda call: errno.ENOMEM if call == 2 else 0)
    segment, report = make(directories, host=without_hugetlbfs())
    assert segment.backing == "shm-collapse"
    assert (report.huge_bytes, report.present_bytes) == (LENGTH - 2 * MIB, LENGTH)
    assert report.reasons[-1].reason == "memory is too fragmented for some huge pages"
    assert "75 % huge because shm-collapse: memory is too fragmented" in str(report)
    # Whole all the same: nobody's first touch can fail.
    assert os.stat(segment.path).st_blocks * 512 == LENGTH
    with Mapping.open(segment) as mapping:
        assert mapping.prove()[:2] == (LENGTH - 2 * MIB, LENGTH)


@pytest.mark.parametrize("options", [{"huge_pages": "on"}, {"backing": "shm-collapse"}])
def test_a_part_is_not_enough_where_huge_pages_are_demanded(
    directories: SegmentDirectories, inject: Inject, collapse: None, options: dict[str, Any]
) -> None:
    inject(linux.MADV_COLLAPSE, lambda call: errno.ENOMEM if call == 2 else 0)
    with pytest.raises(NotEnoughPagesError, match="fragmented") as caught:
        make(directories, host=without_hugetlbfs(), **options)
    assert "compact_memory" in str(caught.value) or options == {"huge_pages": "on"}


def test_a_busy_page_is_tried_again(
    directories: SegmentDirectories, inject: Inject, collapse: None
) -> None:
    calls = inject(linux.MADV_COLLAPSE, lambda call: errno.EAGAIN if call <= 3 else 0)
    _, report = make(directories, backing="shm-collapse")
    assert report.huge_bytes == LENGTH
    assert len(calls) == LENGTH // (2 * MIB) + 3


def test_a_page_that_stays_busy_is_given_up(
    directories: SegmentDirectories, inject: Inject, collapse: None
) -> None:
    inject(linux.MADV_COLLAPSE, lambda call: errno.EAGAIN)
    with pytest.raises(NotEnoughPagesError, match="busy at every attempt"):
        make(directories, backing="shm-collapse")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EBUSY, "memory limit of the control group"),
        (errno.EINVAL, "does not collapse"),
        (errno.EPERM, "not permitted"),
    ],
)
def test_where_nothing_collapses_the_ladder_ends_in_small_pages(
    directories: SegmentDirectories, inject: Inject, collapse: None, number: int, reason: str
) -> None:
    inject(linux.MADV_COLLAPSE, lambda call: number)
    segment, report = make(directories, host=without_hugetlbfs())
    assert segment.backing == "shm-4k"
    fall = report.reasons[-1]
    assert (fall.rung, fall.errno) == ("shm-collapse", number)
    assert reason in fall.reason


@pytest.mark.parametrize("call", [1, 2])
def test_no_page_while_populating(
    directories: SegmentDirectories, inject: Inject, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(filling, "SLICE_BYTES", 2 * MIB)
    inject(linux.MADV_POPULATE_WRITE, lambda n: errno.EFAULT if n >= call else 0)
    with pytest.raises(NotEnoughMemoryError, match="could not be populated: no room"):
        make(directories, backing="shm-4k")


def test_a_limit_on_huge_pages_reached_while_populating(
    directories: SegmentDirectories,
    inject: Inject,
    mounts: Mounts,
    huge_page_pool: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = mounts.hugetlbfs("pagesize=2M,size=64M")
    monkeypatch.setenv("HUGEPOOL_MOUNT", place)
    monkeypatch.setattr(filling, "SLICE_BYTES", 2 * MIB)
    before = os.statvfs(place).f_bfree
    inject(linux.MADV_POPULATE_WRITE, lambda call: errno.EFAULT if call >= 3 else 0)
    with pytest.raises(NotEnoughPagesError, match="limit on huge pages was reached"):
        make(directories, backing="hugetlbfs-2m")
    assert os.statvfs(place).f_bfree == before
    directories.close()


def test_an_unforeseen_error_is_passed_on_and_keeps_nothing(
    directories: SegmentDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(self: Mapping) -> tuple[int, int, str]:
        raise ZeroDivisionError

    monkeypatch.setattr(Mapping, "prove", break_down)
    with pytest.raises(ZeroDivisionError):
        make(directories, backing="shm-4k")
    assert os.listdir(directories.on("/dev/shm")[1]) == []


def test_a_hole_in_a_file_is_never_published(
    directories: SegmentDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Mapping.prove

    def miss_a_page(self: Mapping) -> tuple[int, int, str]:
        huge_bytes, present_bytes, method = real(self)
        return huge_bytes, present_bytes - 4096, method

    monkeypatch.setattr(Mapping, "prove", miss_a_page)
    with pytest.raises(NotEnoughMemoryError, match="have pages"):
        make(directories, backing="shm-4k")
    assert os.listdir(directories.on("/dev/shm")[1]) == []


def test_a_group_that_may_not_be_given(
    directories: SegmentDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(NotPermittedError, match="group 1"):
        make(directories, backing="shm-4k", group=1)


def test_a_tmpfs_that_is_not_as_huge_as_it_says_is_collapsed(
    directories: SegmentDirectories, mounts: Mounts, collapse: None
) -> None:
    place = mounts.tmpfs("size=64M")
    plain = next(mount for mount in read_host().tmpfs_mounts if mount.path == place)
    host = replace(read_host(), tmpfs_mounts=(replace(plain, huge="always"),))
    _, report = make(directories, backing="tmpfs-huge", host=host)
    assert report.huge_bytes == LENGTH
    directories.close()


def test_a_huge_tmpfs_that_gives_no_huge_page_is_refused(
    directories: SegmentDirectories, mounts: Mounts, inject: Inject, collapse: None
) -> None:
    place = mounts.tmpfs("size=64M")
    plain = next(mount for mount in read_host().tmpfs_mounts if mount.path == place)
    host = replace(read_host(), tmpfs_mounts=(replace(plain, huge="always"),))
    inject(linux.MADV_COLLAPSE, lambda call: errno.ENOMEM)
    with pytest.raises(NotEnoughPagesError, match="gave no huge page"):
        make(directories, backing="tmpfs-huge", host=host)
    directories.close()


@pytest.mark.parametrize("option", ["within_size", "always", "advise", "never"])
def test_small_pages_are_small_whatever_the_mount_would_rather_give(
    directories: SegmentDirectories, mounts: Mounts, option: str
) -> None:
    place = mounts.tmpfs(f"size=64M,huge={option}")
    mount = next(mount for mount in read_host().tmpfs_mounts if mount.path == place)
    host = replace(
        read_host(), tmpfs_mounts=(mount,), preferred_directory=place, hugetlbfs_mounts=()
    )
    _, report = make(directories, backing="shm-4k", host=host)
    assert (report.huge_bytes, report.present_bytes) == (0, LENGTH)
    directories.close()


@pytest.mark.parametrize("option", ["within_size", "always"])
def test_both_options_of_a_huge_tmpfs_give_whole_segments(
    directories: SegmentDirectories, mounts: Mounts, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_MOUNT", mounts.tmpfs(f"size=64M,huge={option}"))
    _, report = make(directories, backing="tmpfs-huge", huge_pages="on")
    assert report.huge_bytes == LENGTH
    directories.close()


def test_memory_is_promised_once() -> None:
    free_bytes = filling.SPARE_BYTES + 10 * MIB
    with filling.promised(6 * MIB, lambda: free_bytes):
        with pytest.raises(filling.NoRoom), filling.promised(6 * MIB, lambda: free_bytes):
            pass
        with filling.promised(4 * MIB, lambda: free_bytes):
            pass
    with filling.promised(10 * MIB, lambda: free_bytes):
        pass


def test_memory_that_others_took_meanwhile(
    directories: SegmentDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = read_host()
    monkeypatch.setattr(shared_memory, "free_memory_bytes", lambda: 70 * MIB)
    with pytest.raises(NotEnoughMemoryError, match="do not fit in"):
        make(directories, backing="shm-4k", host=host)


def test_slices_stop_at_the_first_error_and_all_threads_have_ended() -> None:
    running = threading.active_count()
    done: list[int] = []
    breaking = threading.Event()

    def act(start: int, stop: int) -> None:
        if start == 2 * MIB:
            breaking.set()
            raise OSError(errno.EIO, "broken")
        if start > 2 * MIB:  # else all the others might be done before that one begins
            breaking.wait(60)
            time.sleep(0.05)
        done.append(start)

    with pytest.raises(OSError, match="broken"):
        filling.in_slices(1024 * MIB, 4096, act, None, None, slice_bytes=MIB)
    assert threading.active_count() <= running
    assert len(done) < 1023
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        filling.in_slices(8 * MIB, 4096, act, None, cancel)


@pytest.mark.parametrize(
    ("pages", "page_size"), [(1, 1), (4, 2 * MIB), (3, 1 << 30), (33280, 4096)]
)
def test_slices_cover_everything_once(pages: int, page_size: int) -> None:
    seen: list[tuple[int, int]] = []
    length = pages * page_size
    filling.in_slices(length, page_size, lambda a, b: seen.append((a, b)), None, None)
    seen.sort()
    assert seen[0][0] == 0
    assert seen[-1][1] == length
    assert all(first[1] == second[0] for first, second in itertools.pairwise(seen))
    assert all(start % page_size == 0 for start, _ in seen)
