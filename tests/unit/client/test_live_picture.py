"""What is made of a coordinator's counts: rates, fills, and which rows are shown in which order."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hugepool.live.picture import Picture, WorkerView, mounts_of, pools_of, workers_of
from hugepool.live.screen import View, screen
from hugepool.live.selection import SORTS, selected
from hugepool.live.terminal import press, split_keys
from hugepool.live.watcher import Watcher
from hugepool_common.messages import Counted, JobInfo, Timing, WorkerInfo
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Pool
from hugepool_common.units import GIB, MIB
from support.host import fake_host

JOB = JobInfo((1 << 32) + 7, "gather", "auto", 50, 4, 1, (1,), False, False, 0)
RUN = Timing("gather", worker=1, elements=100, nbytes=3000, wall_ns=1000, tlb_misses=25)


def counted(*workers: WorkerInfo, timings: tuple[Timing, ...] = ()) -> Counted:
    counts: dict[str, Any] = {
        field.name: 0 for field in msgspec.structs.fields(Counted) if field.type is int
    }
    return Counted(instance="i", version="0", workers=workers, timings=timings, tcp="", **counts)


def worker(number: int = 1, *, at: str = "", parts_done: int = 0) -> WorkerInfo:
    return WorkerInfo(number, 100 + number, (3,), bool(at), parts_done, at)


# Workers ----------------------------------------------------------------------


def test_a_worker_at_a_job_has_the_rates_of_its_newest_run() -> None:
    slower = msgspec.structs.replace(RUN, wall_ns=9999)
    now = counted(worker(at="gather", parts_done=9), timings=(slower, RUN))
    (seen,) = workers_of(now, [JOB], counted(worker(parts_done=5)), 2.0)
    assert (seen.pid, seen.cpus, seen.kernel, seen.job) == (101, (3,), "gather", JOB.job)
    assert seen.parts_per_s == 2.0
    assert seen.rate_bytes_per_s == 3_000_000_000
    assert seen.tlb_misses_per_element == 0.25


def test_misses_of_a_product_are_by_matrix_entry_and_none_where_not_counted() -> None:
    product = msgspec.structs.replace(RUN, nnz=50)
    (seen,) = workers_of(counted(worker(at="gather"), timings=(product,)), [], None, 0.0)
    assert seen.tlb_misses_per_element == 0.5
    uncounted = msgspec.structs.replace(RUN, tlb_misses=None, tlb_note="unavailable: no counter")
    (seen,) = workers_of(counted(worker(at="gather"), timings=(uncounted,)), [], None, 0.0)
    assert (seen.tlb_misses_per_element, seen.tlb_note) == (None, "unavailable: no counter")


@pytest.mark.parametrize(
    ("at", "parts_done", "shown"),
    [
        ("gather", 5, True),  # at the kernel that it reported last
        ("crew", 5, False),  # at another one: the report is old
        ("", 5, False),  # idle since the look before
        ("", 6, True),  # idle now, but it did a part in between
    ],
)
def test_an_old_report_is_no_rate_of_now(at: str, parts_done: int, shown: bool) -> None:
    now = counted(worker(at=at, parts_done=parts_done), timings=(RUN,))
    (seen,) = workers_of(now, [], counted(worker(parts_done=5)), 1.0)
    assert (seen.rate_bytes_per_s is not None) == shown
    assert seen.job is None


def test_the_first_look_knows_no_parts_per_second_and_a_new_worker_starts_from_none() -> None:
    now = counted(worker(1, parts_done=8), worker(2, parts_done=4))
    assert [one.parts_per_s for one in workers_of(now, [], None, 0.0)] == [None, None]
    seen = workers_of(now, [], counted(worker(1, parts_done=8)), 2.0)
    assert [one.parts_per_s for one in seen] == [0.0, 2.0]


def test_a_users_own_timing_without_bytes_is_no_rate() -> None:
    own = Timing("gather", worker=1, wall_ns=5)
    (seen,) = workers_of(counted(worker(at="gather"), timings=(RUN, own)), [], None, 0.0)
    assert seen.rate_bytes_per_s == 3_000_000_000


# Pools and mounts -------------------------------------------------------------


def test_pages_that_are_promised_count_as_taken_and_empty_pools_are_not_shown() -> None:
    host = fake_host(pools=(Pool(2 * MIB, 10, 6, 4, 0, 0), Pool(GIB, 0, 0, 0, 0, 9)))
    (pool,) = pools_of(host)
    assert (pool.name, pool.total_bytes, pool.taken_bytes) == ("pool 2M", 20 * MIB, 16 * MIB)


def test_mounts_are_shown_that_have_a_limit_and_hold_arrays_or_are_meant_to() -> None:
    host = fake_host(
        hugetlbfs_mounts=(
            HugetlbfsMount("/mnt/free", 2 * MIB, None, 0, None, True),
            HugetlbfsMount("/mnt/limited", 2 * MIB, 10 * MIB, 0, 4 * MIB, True),
        ),
        tmpfs_mounts=(
            TmpfsMount("/dev/shm", "never", GIB, GIB // 4, True),
            TmpfsMount("/run", "never", GIB, GIB, True),
            TmpfsMount("/run/arrays", "never", GIB, GIB, True),
            TmpfsMount("/mnt/huge", "always", GIB, GIB, True),
        ),
    )
    shown = {mount.name: mount.taken_bytes for mount in mounts_of(host, ["/run/arrays/d/x"])}
    assert shown == {
        "/dev/shm": GIB - GIB // 4,
        "/mnt/huge": 0,
        "/mnt/limited": 6 * MIB,
        "/run": 0,
        "/run/arrays": 0,
    }
    assert "/run" not in {mount.path for mount in mounts_of(host, [])}


def test_a_path_that_is_no_utf_8_is_told_all_the_same() -> None:
    odd = TmpfsMount(os.fsdecode(b"/mnt/\xff\x1b[2J"), "always", GIB, GIB, True)
    shown = mounts_of(fake_host(hugetlbfs_mounts=(), tmpfs_mounts=(odd,)), [])
    assert [mount.path for mount in shown] == [r"/mnt/\udcff\x1b[2J"]
    assert msgspec.json.encode(shown)
    address = os.fsdecode(b"ipc:///nowhere/\xff.sock")
    picture = Watcher(address).look()
    assert picture.address == r"ipc:///nowhere/\udcff.sock" and picture.said.isprintable()


# Which arrays, and in which order ---------------------------------------------


def array(name: str, **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "dtype": "<f8",
        "shape": (5,),
        "nbytes": 40,
        "length": 4096,
        "huge_bytes": 0,
        "backing": "shm-4k",
        "readers": 0,
        "created_ns": 0,
        "sealed": True,
        "lost": False,
    }
    return facts | changes


ARRAYS = (
    array("a", nbytes=10, created_ns=3, readers=1),
    array("b.big", nbytes=900, huge_bytes=4096),
    array("c", nbytes=10, huge_bytes=2048, created_ns=9, readers=7),
)


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({}, "b.big a c"),
        ({"reverse": True}, "c a b.big"),
        ({"sort": "name"}, "a b.big c"),
        ({"sort": "huge"}, "a c b.big"),
        ({"sort": "readers"}, "c a b.big"),
        ({"sort": "newest"}, "c a b.big"),
        ({"pattern": "b*"}, "b.big"),
        ({"pattern": "big"}, "b.big"),
        ({"pattern": "B*"}, ""),
        ({"pattern": "[ac]"}, "a c"),
    ],
)
def test_selection(how: dict[str, Any], names: str) -> None:
    assert " ".join(one["name"] for one in selected(ARRAYS, **how)) == names


def test_every_order_is_one_of_a_length_of_zero() -> None:
    empty = [array("x", length=0), array("y")]
    for sort in SORTS:
        assert len(selected(empty, sort=sort)) == 2


# Change -----------------------------------------------------------------------

PICTURE = Picture(
    "ipc:///run/hugepool/hugepool.sock",
    5.0,
    "running",
    "",
    1.0,
    totals=msgspec.structs.asdict(counted()) | {"arrays": 3, "length": 3},
    arrays=ARRAYS,
    workers=(WorkerView(1, 101, (0,), True, "gather", 9, JOB.job, 2.0, 3e9, 0.25),),
    jobs=(JOB,),
    pools=pools_of(fake_host()),
    mounts=mounts_of(fake_host(), []),
)


def test_clocks_alone_are_no_change() -> None:
    later = msgspec.structs.replace(
        PICTURE, taken=9.0, totals=PICTURE.totals | {"uptime_ns": 5_000_000}
    )
    assert later.same_as(PICTURE)
    assert not msgspec.structs.replace(later, jobs=()).same_as(PICTURE)
    assert not PICTURE.same_as(None)


# The screen -------------------------------------------------------------------


def shown(picture: Picture, view: View, width: int = 80, height: int | None = None) -> list[str]:
    console = Console(width=width, no_color=True, force_terminal=False, _environ={})
    with console.capture() as captured:
        console.print(screen(picture, view, width=width, height=height))
    return captured.get().splitlines()


def test_eighty_columns_show_every_figure() -> None:
    lines = shown(PICTURE, View())
    assert max(map(len, lines)) <= 80
    (big,) = (line.split() for line in lines if line.startswith("b.big"))
    assert big == ["b.big", "<f8", "5", "900", "B", "shm-4k", "100", "0"]
    (at,) = (line.split() for line in lines if line.startswith("101"))
    assert at == ["101", "0", "gather", "7", "9", "2", "3", "0.25"]
    (job,) = (line.split() for line in lines if line.startswith("7 "))
    assert job[:3] == ["7", "gather", "1/4"]
    assert lines[0].split() == ["hugepool", PICTURE.address, "running", "0", "s"]


@settings(deadline=None, max_examples=40)
@given(
    name=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200),
    width=st.integers(20, 200),
    height=st.integers(1, 60),
    count=st.integers(0, 80),
    first=st.integers(0, 100),
)
def test_no_name_and_no_size_of_the_terminal_break_the_screen(
    name: str, width: int, height: int, count: int, first: int
) -> None:
    picture = msgspec.structs.replace(
        PICTURE, arrays=tuple(array(f"{k}{name}") for k in range(count))
    )
    lines = shown(picture, View(first=first), width, height)
    assert len(lines) <= max(height, 25), lines


def test_what_has_no_room_can_be_scrolled_to() -> None:
    many = msgspec.structs.replace(PICTURE, arrays=tuple(array(f"n{k:03}") for k in range(100)))
    view = View(sort="name")
    lines = shown(many, view, height=30)
    assert len(lines) == 30
    assert any(line.startswith("n000") for line in lines)
    assert any(line.strip().endswith("of 100") for line in lines)
    for _ in range(20):
        press("\x1b[6~", view)
    lines = shown(many, view, height=30)
    assert any(line.startswith("n099") for line in lines)
    assert not any(line.startswith("n000") for line in lines)


def test_more_workers_than_fit_are_counted() -> None:
    crowd = tuple(worker_view(pid) for pid in range(200, 230))
    lines = shown(msgspec.structs.replace(PICTURE, workers=crowd), View(), height=40)
    assert "  and 23 more workers" in lines
    assert sum(line.startswith("2") for line in lines) >= 7


def worker_view(pid: int) -> WorkerView:
    return msgspec.structs.replace(PICTURE.workers[0], pid=pid, worker=pid)


def test_a_coordinator_that_is_gone_is_said_to_be_and_its_last_picture_stays() -> None:
    gone = msgspec.structs.replace(PICTURE, state="absent", said="no coordinator answers")
    lines = shown(gone, View())
    assert " absent for " in lines[0]
    assert lines[1].startswith("no coordinator answers; what follows is the last")
    assert any(line.startswith("b.big") for line in lines)
    never = Picture("ipc:///x", 0.0, "silent", "no answer", 0.0)
    assert shown(never, View())[1].startswith("no answer")


# Keys -------------------------------------------------------------------------


def test_keys_change_the_view() -> None:
    view = View()
    for key in split_keys("sr/w*\x7fx\rp"):
        press(key, view)
    assert view == View(sort="name", reverse=True, pattern="wx", paused=True)
    for key in split_keys("/\x1b"):
        press(key, view)
    assert (view.pattern, view.typing) == ("", False)
    for key in split_keys("\x1b[Bj\x1b[6~\x1b[A?"):
        press(key, view)
    assert view.first == 11
    for _ in range(len(SORTS) - 1):
        press("s", view)
    assert view.sort == "bytes"


def test_a_name_being_typed_may_have_letters_that_are_keys() -> None:
    view = View()
    for key in split_keys("/sprq"):
        press(key, view)
    assert (view.pattern, view.sort, view.paused) == ("sprq", "bytes", False)


def test_keys_of_a_burst_are_told_apart() -> None:
    assert list(split_keys("a\x1b[A\x1b[6~ü\x1b")) == ["a", "\x1b[A", "\x1b[6~", "ü", "\x1b"]


def test_a_key_that_means_nothing_does_nothing() -> None:
    view = View()
    for key in split_keys("/w\x1b[C\x1b[3~\x1b[1;5D\x1bOq"):  # right, delete, Ctrl-left, keypad 1
        press(key, view)
    assert (view.pattern, view.typing) == ("w", True)
