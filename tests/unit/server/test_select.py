"""Decisions of the ladder on machines that exist only as data."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hugepool_common.cgroups import HugetlbLimit, MemoryLimit
from hugepool_common.errors import (
    InvalidSpecError,
    NotEnoughMemoryError,
    NotEnoughPagesError,
)
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import MOUNT_VARIABLE, Host, Pool
from hugepool_common.spec import Fall
from hugepool_common.units import GIB, KIB, MIB
from hugepool_server.backends import hugetlbfs, select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.reclaim import SegmentDirectories
from support.host import Mounts, fake_host

BIG = 400 * MIB
SHM_ONLY = (TmpfsMount("/dev/shm", "never", 32 * GIB, 32 * GIB, True),)
NOWHERE: dict[str, Any] = {"hugetlbfs_mounts": (), "tmpfs_mounts": ()}


@pytest.fixture
def directories() -> Iterator[SegmentDirectories]:
    with SegmentDirectories() as made:
        yield made


def _fall(host: Host, rung: str, nbytes: int = BIG) -> Fall:
    fall = select.backend_of(rung).unusable(host, nbytes)
    assert fall is not None
    assert fall.rung == rung
    return fall


def test_rungs_go_from_the_largest_pages_down() -> None:
    assert select.RUNGS == ("hugetlbfs-1g", "hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "shm-4k")
    for rung in select.RUNGS:
        assert select.backend_of(rung).rung == rung


@pytest.mark.parametrize(
    ("nbytes", "huge_pages", "page_size", "backing", "rungs"),
    [
        (BIG, "try", "auto", "", ["hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "shm-4k"]),
        (BIG, "try", "2M", "", ["hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "shm-4k"]),
        (BIG, "on", "auto", "", ["hugetlbfs-2m", "tmpfs-huge", "shm-collapse"]),
        (BIG, "off", "auto", "", ["shm-4k"]),
        (BIG, "try", "4K", "", ["shm-4k"]),
        (BIG, "on", "1G", "", ["hugetlbfs-1g"]),
        (
            BIG,
            "try",
            "1G",
            "",
            ["hugetlbfs-1g", "hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "shm-4k"],
        ),
        (MIB - 1, "try", "auto", "", ["shm-4k", "hugetlbfs-2m", "tmpfs-huge", "shm-collapse"]),
        (MIB, "try", "auto", "", ["hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "shm-4k"]),
        (1, "try", "2M", "", ["hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "shm-4k"]),
        (1, "on", "auto", "", ["hugetlbfs-2m", "tmpfs-huge", "shm-collapse"]),
        (BIG, "try", "auto", "shm-collapse", ["shm-collapse"]),
        (BIG, "on", "1G", "hugetlbfs-1g", ["hugetlbfs-1g"]),
        (BIG, "off", "4K", "shm-4k", ["shm-4k"]),
    ],
)
def test_options_choose_the_rungs(
    nbytes: int, huge_pages: Any, page_size: Any, backing: str, rungs: list[str]
) -> None:
    assert select.rungs_for(nbytes, huge_pages, page_size, backing) == rungs


@pytest.mark.parametrize(
    ("huge_pages", "page_size", "backing"),
    [
        ("on", "4K", ""),
        ("off", "2M", ""),
        ("off", "1G", ""),
        ("maybe", "auto", ""),
        ("try", "3M", ""),
        ("try", "auto", "floppy"),
        ("on", "auto", "shm-4k"),
        ("off", "auto", "hugetlbfs-2m"),
        ("try", "4K", "hugetlbfs-2m"),
        ("try", "2M", "shm-4k"),
        ("try", "1G", "hugetlbfs-2m"),
        ("try", "2M", "hugetlbfs-1g"),
    ],
)
def test_contradictions_are_refused(huge_pages: Any, page_size: Any, backing: str) -> None:
    with pytest.raises(InvalidSpecError):
        select.rungs_for(BIG, huge_pages, page_size, backing)


def test_usable_rungs_of_a_generous_and_of_an_empty_host() -> None:
    assert select.usable_rungs(fake_host()) == list(select.RUNGS)
    assert select.usable_rungs(fake_host(**NOWHERE)) == []
    assert select.usable_rungs(fake_host(hugetlbfs_mounts=(), tmpfs_mounts=SHM_ONLY)) == [
        "shm-collapse",
        "shm-4k",
    ]


def test_a_pool_too_small_names_the_sysctl() -> None:
    host = fake_host(pools=(Pool(2 * MIB, 76, 20, 8, 0, 0),))
    fall = _fall(host, "hugetlbfs-2m")
    assert (fall.call, fall.errno) == ("nr_hugepages", errno.ENOMEM)
    assert fall.reason == "12 of 200 pages of 2M are free"
    assert fall.remedy == "sysctl vm.nr_hugepages=264"


def test_surplus_pages_are_not_asked_for_again() -> None:
    host = fake_host(pools=(Pool(2 * MIB, 30, 0, 0, 10, 10),))
    assert _fall(host, "hugetlbfs-2m").remedy == "sysctl vm.nr_hugepages=220"
    roomy = fake_host(pools=(Pool(2 * MIB, 0, 0, 0, 0, 200),))
    assert select.backend_of("hugetlbfs-2m").unusable(roomy, BIG) is None


def test_a_pool_that_the_sysctl_does_not_mean_is_named_by_its_file() -> None:
    host = fake_host(pools=(Pool(2 * MIB, 0, 0, 0, 0, 0), Pool(GIB, 1, 0, 0, 0, 0)))
    assert _fall(host, "hugetlbfs-1g").remedy == (
        "echo 2 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    )
    assert _fall(fake_host(pools=()), "hugetlbfs-2m").call == "sysfs"


def test_every_lack_of_hugetlbfs_is_told_apart() -> None:
    mount = HugetlbfsMount("/mnt/2m", 2 * MIB, None, 0, None, True)
    limited = replace(mount, limit_bytes=64 * MIB, available_bytes=10 * MIB)
    limit = HugetlbLimit(2 * MIB, 20 * MIB, 4 * MIB, "/cg/hugetlb.2MB.max")
    lacks = {
        "mountinfo": fake_host(hugetlbfs_mounts=()),
        "access": fake_host(hugetlbfs_mounts=(replace(mount, writable=False),)),
        "statvfs": fake_host(hugetlbfs_mounts=(limited,)),
        "nr_hugepages": fake_host(pools=(Pool(2 * MIB, 0, 0, 0, 0, 0),)),
        "hugetlb cgroup": fake_host(hugetlb_limits=(limit,)),
        "HUGEPOOL_MOUNT": fake_host(preferred_directory="/home/me"),
    }
    falls = {call: _fall(host, "hugetlbfs-2m") for call, host in lacks.items()}
    assert {fall.call for fall in falls.values()} == set(lacks)
    assert len({fall.reason for fall in falls.values()}) == len(lacks)
    assert all(fall.remedy for fall in falls.values())
    assert "pagesize=2M" in falls["mountinfo"].remedy
    assert "size=464M" in falls["statvfs"].remedy
    assert falls["hugetlb cgroup"].remedy == f"echo {404 * MIB} > /cg/hugetlb.2MB.max"


def test_a_missing_mount_and_an_empty_pool_are_mended_together() -> None:
    host = fake_host(hugetlbfs_mounts=(), pools=(Pool(2 * MIB, 0, 0, 0, 0, 0),))
    remedy = _fall(host, "hugetlbfs-2m").remedy
    assert remedy.startswith("sysctl vm.nr_hugepages=200 && mkdir -p ")
    assert "mount -t hugetlbfs" in remedy


def test_a_mount_of_another_page_size_is_never_taken() -> None:
    host = fake_host(hugetlbfs_mounts=fake_host().hugetlbfs_mounts[1:])
    assert _fall(host, "hugetlbfs-2m").call == "mountinfo"
    assert select.backend_of("hugetlbfs-1g").unusable(host, BIG) is None


def test_of_several_mounts_the_one_with_room_is_taken() -> None:
    full = HugetlbfsMount("/mnt/full", 2 * MIB, 64 * MIB, 0, 4 * MIB, True)
    roomy = HugetlbfsMount("/mnt/roomy", 2 * MIB, GIB, 0, GIB, True)
    host = fake_host(hugetlbfs_mounts=(full, roomy))
    backend = select.backend_of("hugetlbfs-2m")
    assert backend.place(host, BIG).path == "/mnt/roomy"
    preferring = replace(host, preferred_directory="/mnt/full/mine")
    assert backend.place(preferring, 2 * MIB).path == "/mnt/full/mine"
    assert _fall(preferring, "hugetlbfs-2m").call == "statvfs"


def test_pages_claimed_by_a_mount_are_its_own() -> None:
    mount = HugetlbfsMount("/mnt/2m", 2 * MIB, None, GIB, None, True)
    host = fake_host(hugetlbfs_mounts=(mount,), pools=(Pool(2 * MIB, 512, 512, 512, 0, 0),))
    assert select.backend_of("hugetlbfs-2m").unusable(host, BIG) is None


@pytest.mark.parametrize(
    ("changes", "call", "remedy"),
    [
        ({"shmem_enabled": ""}, "sysfs", ""),
        ({"shmem_enabled": "deny"}, "shmem_enabled", "echo never > "),
        ({"process_thp": False}, "prctl", "another launcher"),
        ({"knows_collapse": False}, "madvise", "mount -o remount,huge=within_size /dev/shm"),
        ({"shmem_enabled_pmd": "never"}, "shmem_enabled", "echo inherit > "),
        ({"tmpfs_mounts": ()}, "access", "mount -t tmpfs"),
        (
            {"tmpfs_mounts": (TmpfsMount("/dev/shm", "never", 64 * MIB, 60 * MIB, True),)},
            "statvfs",
            "mount -o remount,size=404M /dev/shm",
        ),
        ({"memory_available_bytes": 300 * MIB}, "MemAvailable", ""),
        (
            {"memory_limit": MemoryLimit(500 * MIB, 300 * MIB, 50 * MIB, "/cg")},
            "memory cgroup",
            "raise the limit of /cg by 224 MB",
        ),
    ],
)
def test_every_lack_of_collapse_is_told(changes: dict[str, Any], call: str, remedy: str) -> None:
    fall = _fall(fake_host(**changes), "shm-collapse")
    assert fall.call == call
    assert remedy in fall.remedy


def test_tmpfs_without_the_option_is_no_huge_tmpfs() -> None:
    fall = _fall(fake_host(tmpfs_mounts=SHM_ONLY), "tmpfs-huge")
    assert fall.remedy == "mount -o remount,huge=within_size /dev/shm"
    assert _fall(fake_host(shmem_enabled="deny"), "tmpfs-huge").call == "shmem_enabled"


def test_arrays_go_to_dev_shm_and_not_to_any_tmpfs() -> None:
    run = TmpfsMount("/run", "never", GIB, GIB, True)
    assert _fall(fake_host(tmpfs_mounts=(run,)), "shm-4k").call == "access"
    host = fake_host(tmpfs_mounts=(run, *SHM_ONLY))
    assert select.backend_of("shm-4k").place(host, BIG).path == "/dev/shm"


def test_small_pages_avoid_huge_mounts_while_they_can() -> None:
    backend = select.backend_of("shm-4k")
    assert backend.place(fake_host(), BIG).path == "/dev/shm"
    huge = TmpfsMount("/dev/shm", "always", 32 * GIB, 32 * GIB, True)
    assert backend.place(fake_host(tmpfs_mounts=(huge,)), BIG).path == "/dev/shm"


def test_on_fails_with_pages_needed_pages_free_and_the_sysctl(
    directories: SegmentDirectories,
) -> None:
    host = fake_host(
        pools=(Pool(2 * MIB, 76, 12, 0, 0, 0),), tmpfs_mounts=SHM_ONLY, shmem_enabled="deny"
    )
    with pytest.raises(NotEnoughPagesError) as caught:
        _make(directories, host, huge_pages="on")
    error = caught.value
    assert error.needed == "200 huge pages of 2 MiB"
    assert error.had == "12 free"
    assert error.remedy == "sysctl vm.nr_hugepages=264"
    for rung in ("hugetlbfs-2m", "tmpfs-huge", "shm-collapse"):
        assert f"{rung}: " in error.message


def test_one_rung_demanded_fails_alone(directories: SegmentDirectories) -> None:
    host = fake_host(tmpfs_mounts=SHM_ONLY)
    with pytest.raises(NotEnoughPagesError, match="tmpfs-huge") as caught:
        _make(directories, host, backing="tmpfs-huge")
    assert "hugetlbfs" not in str(caught.value)
    with pytest.raises(NotEnoughPagesError, match="1 huge page of 1 GiB"):
        _make(directories, fake_host(**NOWHERE), backing="hugetlbfs-1g")


def test_no_room_anywhere_is_a_memory_error(directories: SegmentDirectories) -> None:
    full = (TmpfsMount("/dev/shm", "never", 64 * MIB, 60 * MIB, True),)
    host = fake_host(hugetlbfs_mounts=(), tmpfs_mounts=full)
    for options in ({}, {"huge_pages": "off"}, {"backing": "shm-4k"}):
        with pytest.raises(NotEnoughMemoryError) as caught:
            _make(directories, host, **options)
        assert caught.value.needed == "419 MB"
        assert caught.value.had == "/dev/shm has 62.9 MB free"
        assert caught.value.remedy == "mount -o remount,size=404M /dev/shm"


@pytest.mark.parametrize("options", [{}, {"huge_pages": "on"}, {"huge_pages": "off"}])
def test_more_than_the_machine_has_names_no_command(
    directories: SegmentDirectories, options: dict[str, Any]
) -> None:
    full = (TmpfsMount("/dev/shm", "within_size", 64 * MIB, 60 * MIB, True),)
    host = fake_host(
        memory_total_bytes=256 * MIB, pools=(Pool(2 * MIB, 76, 12, 0, 0, 0),), tmpfs_mounts=full
    )
    with pytest.raises(MemoryError) as caught:
        _make(directories, host, **options)
    assert "this machine has 268 MB of memory" in str(caught.value)
    assert "sysctl" not in str(caught.value) and "mount -o" not in str(caught.value)


def test_a_pool_larger_than_free_memory_is_not_recommended() -> None:
    pool = Pool(2 * MIB, 76, 12, 0, 0, 0)
    host = fake_host(memory_total_bytes=GIB, memory_available_bytes=300 * MIB, pools=(pool,))
    assert hugetlbfs.pool_command(host, pool, 400 * MIB) == ""
    assert hugetlbfs.pool_command(host, pool, 300 * MIB) == "sysctl vm.nr_hugepages=214"


def test_a_mount_made_between_two_segments_is_used(
    directories: SegmentDirectories, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mounts.tmpfs("size=8M")
    monkeypatch.setenv(MOUNT_VARIABLE, place)
    policy: dict[str, Any] = {"huge_pages": "off", "page_size": "auto", "backing": "shm-4k"}
    first, _ = select.make_segment(SegmentRequest(1, 4096), directories=directories, **policy)
    assert first.path.startswith(place + "/")
    later = mounts.tmpfs("size=8M")
    monkeypatch.setenv(MOUNT_VARIABLE, later)
    second, _ = select.make_segment(SegmentRequest(2, 4096), directories=directories, **policy)
    assert second.path.startswith(later + "/")
    directories.close()


def test_small_segments_need_memory_too(directories: SegmentDirectories) -> None:
    plenty = fake_host(tmpfs_mounts=SHM_ONLY)
    assert select.backend_of("shm-4k").unusable(plenty, 4096) is None
    scarce = replace(plenty, memory_available_bytes=64 * MIB)
    assert _fall(scarce, "shm-4k", 4096).call == "MemAvailable"


def test_a_segment_that_is_gone_or_another_is_not_unlinked(directories: SegmentDirectories) -> None:
    segment, _ = select.make_segment(
        SegmentRequest(1, 4 * KIB),
        huge_pages="off",
        page_size="auto",
        backing="",
        directories=directories,
    )
    os.rename(segment.path, segment.path + ".old")
    with open(segment.path, "wb"):
        pass
    select.unlink_segment(segment)
    assert os.path.exists(segment.path)
    os.rename(segment.path + ".old", segment.path)
    select.unlink_segment(segment)
    select.unlink_segment(segment)
    assert not os.path.exists(segment.path)


def _make(directories: SegmentDirectories, host: Host, **options: Any) -> None:
    chosen: dict[str, Any] = {"huge_pages": "try", "page_size": "auto", "backing": "", **options}
    select.make_segment(SegmentRequest(1, BIG), directories=directories, host=host, **chosen)
