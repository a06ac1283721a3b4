"""Commands that would bring each rung, on hosts that lack one thing after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hugepool.remedies import HUGE_RUNGS, SMALL_RUNG, remedies, room_bytes, shortage, tmpfs_places
from hugepool_common.cgroups import HugetlbLimit, MemoryLimit
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host, Pool
from hugepool_common.units import GIB, KIB, MIB

SHM = TmpfsMount("/dev/shm", "never", 8 * GIB, 7 * GIB, True)
POOL = Pool(2 * MIB, 600, 600, 0, 0, 0)
MOUNT = HugetlbfsMount("/run/huge", 2 * MIB, None, 0, None, True)
BARE = Host(
    kernel_release="6.12.0",
    page_size=4 * KIB,
    hpage_pmd_size=2 * MIB,
    default_huge_page_size=2 * MIB,
    thp_enabled="madvise",
    shmem_enabled="never",
    shmem_enabled_pmd="inherit",
    process_thp=True,
    knows_collapse=True,
    overcommit_memory=0,
    memory_available_bytes=16 * GIB,
    pools=(Pool(2 * MIB, 10, 10, 4, 0, 0), Pool(GIB, 0, 0, 0, 0, 0)),
    tmpfs_mounts=(SHM,),
)
RICH = replace(BARE, pools=(POOL, Pool(GIB, 2, 2, 0, 0, 0)), hugetlbfs_mounts=(MOUNT,))
MAKE_MOUNT = (
    "mkdir -p /run/hugepages/hugepool-1000-2M && mount -t hugetlbfs "
    "-o pagesize=2M,uid=1000,gid=100,mode=0700 none /run/hugepages/hugepool-1000-2M"
)
THP = "/sys/kernel/mm/transparent_hugepage"


def commands(rung: str, host: Host, room: int = GIB) -> list[str]:
    return list(remedies(rung, host, uid=1000, gid=100, room=room))


def test_a_host_that_has_everything_needs_nothing() -> None:
    everything = replace(
        RICH,
        tmpfs_mounts=(replace(SHM, huge="within_size"),),
        hugetlbfs_mounts=(MOUNT, replace(MOUNT, path="/run/giant", page_size=GIB)),
    )
    assert {rung: commands(rung, everything) for rung in (*HUGE_RUNGS, SMALL_RUNG)} == {
        rung: [] for rung in (*HUGE_RUNGS, SMALL_RUNG)
    }


def test_a_small_pool_is_raised_by_what_is_missing_beside_what_is_promised() -> None:
    # 512 pages wanted, 6 of 10 neither taken nor promised: 506 more.
    assert commands("hugetlbfs-2m", BARE) == ["sysctl vm.nr_hugepages=516", MAKE_MOUNT]


@pytest.mark.parametrize(
    ("rung", "room", "why"),
    [
        ("hugetlbfs-2m", 40 * GIB, "this machine has 25.8 GB of memory"),
        ("hugetlbfs-2m", 23 * GIB, "only 17.2 GB of memory are free"),
        ("shm-collapse", 40 * GIB, "this machine has 25.8 GB of memory"),
        ("tmpfs-huge", 40 * GIB, "this machine has 25.8 GB of memory"),
    ],
)
def test_no_command_asks_for_more_than_there_is_memory(rung: str, room: int, why: str) -> None:
    host = replace(BARE, memory_total_bytes=24 * GIB)
    assert commands(rung, host, room) == []
    assert shortage(rung, host, room) == why
    assert shortage(rung, host, GIB) == "", "one that fits is no shortage"


def test_a_pool_that_others_use_leaves_less() -> None:
    taken = (Pool(2 * MIB, 10000, 0, 0, 0, 0),)
    host = replace(BARE, memory_total_bytes=24 * GIB, pools=taken)
    assert shortage("hugetlbfs-2m", host, 4 * GIB) == ""
    assert "this machine has" in shortage("hugetlbfs-2m", host, 5 * GIB)


def test_the_limit_of_the_control_group_is_a_memory_too() -> None:
    limit = MemoryLimit(2 * GIB, 0, 0, "/cg")
    host = replace(BARE, memory_total_bytes=24 * GIB, memory_limit=limit)
    assert shortage("shm-collapse", host, 3 * GIB) == "the control group /cg has 2.15 GB of memory"
    assert shortage("hugetlbfs-2m", host, 3 * GIB) == "", "hugetlbfs does not count against it"


def test_pages_on_demand_count_as_room() -> None:
    demand = replace(RICH, pools=(Pool(2 * MIB, 0, 0, 0, 100, 612),))
    assert room_bytes("hugetlbfs-2m", demand) == GIB
    assert commands("hugetlbfs-2m", demand) == []


def test_a_pool_of_another_than_the_default_size_is_set_through_sysfs() -> None:
    assert commands("hugetlbfs-1g", BARE, 3 * GIB) == [
        "echo 3 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
        MAKE_MOUNT.replace("2M", "1G"),
    ]


def test_no_command_gives_a_page_size_that_the_kernel_lacks() -> None:
    assert commands("hugetlbfs-1g", replace(BARE, pools=BARE.pools[:1])) == []
    assert room_bytes("hugetlbfs-1g", replace(BARE, pools=BARE.pools[:1])) == 0


@pytest.mark.parametrize(
    "mount", [replace(MOUNT, writable=False), replace(MOUNT, page_size=GIB)], ids=["foreign", "1G"]
)
def test_a_mount_that_we_cannot_use_is_none(mount: HugetlbfsMount) -> None:
    host = replace(RICH, hugetlbfs_mounts=(mount,))
    assert room_bytes("hugetlbfs-2m", host) == 0
    assert commands("hugetlbfs-2m", host) == [MAKE_MOUNT]


def test_a_mount_that_is_too_small_is_widened_by_what_is_missing() -> None:
    narrow = replace(MOUNT, limit_bytes=64 * MIB, available_bytes=32 * MIB)
    host = replace(RICH, hugetlbfs_mounts=(narrow,))
    assert room_bytes("hugetlbfs-2m", host) == 32 * MIB
    assert commands("hugetlbfs-2m", host) == ["mount -o remount,size=1056M /run/huge"]


def test_the_widest_of_several_mounts_counts() -> None:
    narrow = replace(MOUNT, path="/a", limit_bytes=64 * MIB, available_bytes=0)
    host = replace(RICH, hugetlbfs_mounts=(narrow, MOUNT))
    assert room_bytes("hugetlbfs-2m", host) == 600 * 2 * MIB
    assert commands("hugetlbfs-2m", host) == []


def test_pages_claimed_by_a_mount_are_room_on_it() -> None:
    claimed = replace(MOUNT, claimed_bytes=GIB)
    pool = Pool(2 * MIB, 512, 512, 512, 0, 0)
    host = replace(RICH, pools=(pool,), hugetlbfs_mounts=(claimed,))
    assert room_bytes("hugetlbfs-2m", host) == GIB
    assert commands("hugetlbfs-2m", host) == []


def test_a_limit_of_the_control_group_is_named() -> None:
    where = "/sys/fs/cgroup/hugetlb.2MB.max"
    host = replace(RICH, hugetlb_limits=(HugetlbLimit(2 * MIB, 4 * MIB, 2 * MIB, where),))
    assert room_bytes("hugetlbfs-2m", host) == 2 * MIB
    assert commands("hugetlbfs-2m", host) == [f"echo {GIB + 2 * MIB} > {where}"]


def test_a_path_with_a_blank_is_quoted() -> None:
    narrow = replace(MOUNT, path="/mnt/my pages", limit_bytes=0, available_bytes=0)
    host = replace(RICH, hugetlbfs_mounts=(narrow,))
    assert commands("hugetlbfs-2m", host) == ["mount -o remount,size=1024M '/mnt/my pages'"]


def test_shared_memory_is_mounted_huge() -> None:
    assert commands("tmpfs-huge", BARE) == ["mount -o remount,huge=within_size /dev/shm"]
    assert commands("tmpfs-huge", replace(BARE, tmpfs_mounts=())) == [
        "mkdir -p /run/hugepages/hugepool-1000-tmpfs && mount -t tmpfs "
        "-o huge=within_size,uid=1000,gid=100,mode=0700 none /run/hugepages/hugepool-1000-tmpfs"
    ]


def test_a_tmpfs_mounted_with_advise_gives_no_huge_pages_by_itself() -> None:
    assert room_bytes("tmpfs-huge", replace(BARE, tmpfs_mounts=(replace(SHM, huge="advise"),))) == 0
    assert room_bytes("tmpfs-huge", replace(BARE, tmpfs_mounts=(replace(SHM, huge="always"),)))


def test_switches_that_forbid_collapse_are_undone() -> None:
    assert commands("shm-collapse", BARE) == []
    denied = replace(BARE, shmem_enabled="deny")
    assert commands("shm-collapse", denied) == [f"echo never > {THP}/shmem_enabled"]
    never = replace(BARE, shmem_enabled_pmd="never")
    assert commands("shm-collapse", never) == [
        f"echo inherit > {THP}/hugepages-2048kB/shmem_enabled"
    ]
    assert commands(SMALL_RUNG, replace(denied, shmem_enabled_pmd="never")) == []


def test_a_small_shm_is_widened_unless_memory_itself_is_short() -> None:
    docker = replace(BARE, tmpfs_mounts=(replace(SHM, limit_bytes=64 * MIB, available_bytes=MIB),))
    for rung in ("shm-collapse", SMALL_RUNG):
        assert room_bytes(rung, docker) == MIB
        assert commands(rung, docker) == ["mount -o remount,size=1087M /dev/shm"]
    poor = replace(BARE, memory_limit=MemoryLimit(100 * MIB, 60 * MIB, 0, "/sys/fs/cgroup"))
    assert room_bytes("shm-collapse", poor) == 40 * MIB
    assert commands("shm-collapse", poor) == []


def test_a_tmpfs_that_holds_other_things_is_no_place_for_arrays() -> None:
    run = TmpfsMount("/run", "never", 8 * GIB, 8 * GIB, True)
    host = replace(BARE, tmpfs_mounts=(run, SHM))
    assert tmpfs_places(host) == [SHM]
    assert tmpfs_places(replace(host, preferred_directory="/run/mine")) == [run, SHM]
    huge = replace(run, huge="always")
    assert tmpfs_places(replace(BARE, tmpfs_mounts=(huge, SHM))) == [huge, SHM]
    assert tmpfs_places(replace(BARE, tmpfs_mounts=(huge, SHM)), ("always",)) == [huge]
    assert tmpfs_places(replace(BARE, tmpfs_mounts=(replace(SHM, writable=False),))) == []
