from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from hugepool_common.mounts import (
    Room,
    mount_under,
    parse_mountinfo,
    read_mounts,
)
from hugepool_common.pages import Host, LiveHost, Pool, read_host
from hugepool_common.units import GIB, KIB, MIB
from support.host import Mounts, fake_host

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
25 22 0:23 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=65536k
26 22 0:24 / /dev/hugepages rw,relatime shared:3 - hugetlbfs hugetlbfs rw,pagesize=2M,size=64M
27 22 0:25 / /mnt/big\040pages rw - hugetlbfs none rw,pagesize=1024M,min_size=1G
28 22 0:26 / /mnt/huge rw - tmpfs none rw,size=1048576k,huge=within_size
29 22 0:27 / /mnt/ro ro,relatime - tmpfs none rw
31 22 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
broken line
32 22 x:y / /mnt/nonsense rw - tmpfs none rw
""".lstrip()


def _look(hidden: tuple[str, ...] = ()) -> dict[str, Room]:
    rooms = {}
    for line in parse_mountinfo(MOUNTINFO):
        device = os.makedev(9, 9) if line.path in hidden else line.device
        rooms[line.path] = Room(device, 4096, 64 * MIB, 48 * MIB, True)
    return rooms


def _fake_tree(root: Path, **more: str) -> str:
    files = {
        "proc/self/mountinfo": MOUNTINFO,
        "proc/self/status": "Name:\tx\nTHP_enabled:\t0\n",
        "proc/self/cgroup": "0::/user.slice/app\n",
        "proc/meminfo": "MemTotal: 2097152 kB\nMemAvailable:  1048576 kB\n"
        "SwapFree: 1024 kB\nHugepagesize: 2048 kB\n",
        "proc/sys/kernel/osrelease": "6.1.0-test\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never\n",
        "sys/kernel/mm/transparent_hugepage/hpage_pmd_size": "2097152\n",
        "sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled": "always [inherit]\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/memory.max": f"{512 * MIB}\n",
        "sys/fs/cgroup/user.slice/memory.current": f"{500 * MIB}\n",
        "sys/fs/cgroup/user.slice/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
        "sys/fs/cgroup/user.slice/app/memory.max": f"{400 * MIB}\n",
        "sys/fs/cgroup/user.slice/app/memory.current": f"{100 * MIB}\n",
        "sys/fs/cgroup/user.slice/app/hugetlb.2MB.max": f"{8 * MIB}\n",
        "sys/fs/cgroup/user.slice/app/hugetlb.2MB.current": f"{2 * MIB}\n",
        "sys/fs/cgroup/user.slice/app/hugetlb.2MB.rsvd.max": "max\n",
        **more,
    }
    for kib, counts in ((2048, (100, 40, 10, 5, 20)), (1048576, (1, 1, 0, 0, 0))):
        for name, count in zip(
            ("nr", "free", "resv", "surplus", "nr_overcommit"), counts, strict=True
        ):
            files[f"sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}_hugepages"] = f"{count}\n"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return str(root)


def test_a_host_is_read(tmp_path: Path) -> None:
    host = read_host(_fake_tree(tmp_path), look=_look().get)
    assert host.kernel_release == "6.1.0-test"
    assert (host.thp_enabled, host.shmem_enabled) == ("madvise", "advise")
    assert host.shmem_enabled_pmd == "inherit"
    assert not host.process_thp
    assert host.overcommit_memory == 2
    assert host.hpage_pmd_size == host.default_huge_page_size == 2 * MIB
    assert host.memory_available_bytes == GIB + MIB
    assert host.memory_total_bytes == 2 * GIB
    assert [pool.page_size for pool in host.pools] == [2 * MIB, GIB]


def test_a_live_host_tells_the_same(tmp_path: Path) -> None:
    root = _fake_tree(tmp_path)
    host, live = read_host(root, look=_look().get), LiveHost(root, look=_look().get)
    for fact in fields(Host):
        assert getattr(live, fact.name) == getattr(host, fact.name)
    assert live.memory_headroom_bytes == host.memory_headroom_bytes
    assert live.pool(GIB) == host.pool(GIB)


def test_a_live_host_keeps_what_it_read_and_the_next_one_reads_anew(tmp_path: Path) -> None:
    root = _fake_tree(tmp_path)
    live = LiveHost(root, look=_look().get)
    assert live.pools[0].free_pages == 40
    free = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
    free.write_text("60\n")
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 4 kB\n")
    assert live.pools[0].free_pages == 40
    assert live.memory_available_bytes == 4 * KIB, "it was not asked for before"
    assert LiveHost(root, look=_look().get).pools[0].free_pages == 60


def test_a_mount_made_meanwhile_is_seen(tmp_path: Path) -> None:
    root = _fake_tree(tmp_path)
    look = {**_look(), "/mnt/new": Room(os.makedev(0, 99), 4096, MIB, MIB, True)}.get
    before = [mount.path for mount in LiveHost(root, look).tmpfs_mounts]
    added = "40 22 0:99 / /mnt/new rw - tmpfs none rw,huge=always\n"
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTINFO + added)
    assert [mount.path for mount in LiveHost(root, look).tmpfs_mounts] == [*before, "/mnt/new"]
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTINFO)
    assert [mount.path for mount in LiveHost(root, look).tmpfs_mounts] == before


def test_pages_available_are_free_less_promised_plus_what_may_be_added(tmp_path: Path) -> None:
    pool = read_host(_fake_tree(tmp_path), look=_look().get).pool(2 * MIB)
    assert pool == Pool(2 * MIB, 100, 40, 10, 5, 20)
    assert pool.available_pages == 40 - 10 + (20 - 5)
    assert pool.available_bytes == 45 * 2 * MIB
    assert Pool(4 * KIB, 0, 0, 0, 9, 0).available_pages == 0


def test_mounts_are_read_with_their_options(tmp_path: Path) -> None:
    host = read_host(_fake_tree(tmp_path), look=_look().get)
    small, big = host.hugetlbfs_mounts
    assert (small.path, small.page_size) == ("/dev/hugepages", 2 * MIB)
    assert (small.limit_bytes, small.available_bytes) == (64 * MIB, 48 * MIB)
    assert (big.path, big.page_size) == ("/mnt/big pages", GIB)
    assert (big.limit_bytes, big.available_bytes, big.claimed_bytes) == (None, None, GIB)
    modes = {mount.path: (mount.huge, mount.writable) for mount in host.tmpfs_mounts}
    assert modes == {
        "/dev/shm": ("never", True),
        "/mnt/huge": ("within_size", True),
        "/mnt/ro": ("never", False),
    }


def test_a_mount_hidden_by_another_is_not_used(tmp_path: Path) -> None:
    host = read_host(_fake_tree(tmp_path), look=_look(hidden=("/dev/shm",)).get)
    assert "/dev/shm" not in [mount.path for mount in host.tmpfs_mounts]


def test_of_two_mounts_on_one_path_the_later_counts() -> None:
    lines = parse_mountinfo(
        "1 0 0:5 / /m rw - tmpfs none rw,huge=always\n2 1 0:6 / /m rw - hugetlbfs none rw\n"
    )
    look = {"/m": Room(os.makedev(0, 6), 2 * MIB, 0, 0, True)}.get
    hugetlbfs, tmpfs = read_mounts(lines, 2 * MIB, look)
    assert not tmpfs
    assert [(mount.path, mount.page_size) for mount in hugetlbfs] == [("/m", 2 * MIB)]


def test_a_path_that_cannot_be_reached_is_no_mount() -> None:
    assert read_mounts(parse_mountinfo(MOUNTINFO), 2 * MIB, lambda _: None) == ((), ())


def test_escapes_in_mount_points_are_bytes() -> None:
    line = parse_mountinfo("1 0 0:5 / /a\\040b\\134c\\303\\244 rw - tmpfs none rw\n")[0]
    assert line.path == "/a b\\cä"


def test_the_tightest_ancestor_limits_memory(tmp_path: Path) -> None:
    host = read_host(_fake_tree(tmp_path), look=_look().get)
    limit = host.memory_limit
    assert limit is not None
    assert limit.where == "/sys/fs/cgroup/user.slice"
    assert limit.headroom_bytes == (512 - 500 + 100) * MIB
    assert host.memory_headroom_bytes == limit.headroom_bytes
    huge = host.hugetlb_limit(2 * MIB)
    assert huge is not None
    assert huge.headroom_bytes == 6 * MIB
    assert huge.where == "/sys/fs/cgroup/user.slice/app/hugetlb.2MB.max"
    assert host.hugetlb_limit(GIB) is None


def test_version_1_limits_are_read(tmp_path: Path) -> None:
    root = _fake_tree(
        tmp_path,
        **{
            "proc/self/mountinfo": "1 0 0:7 /docker /cg/memory rw - cgroup cgroup rw,memory\n",
            "proc/self/cgroup": "4:cpu:/\n3:memory:/docker/abc\n",
            "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/memory/abc/memory.limit_in_bytes": f"{30 * MIB}\n",
            "cg/memory/abc/memory.usage_in_bytes": f"{20 * MIB}\n",
        },
    )
    limit = read_host(root, look=_look().get).memory_limit
    assert limit is not None
    assert (limit.where, limit.headroom_bytes) == ("/cg/memory/abc", 10 * MIB)


def test_an_empty_tree_is_a_host_that_offers_nothing(tmp_path: Path) -> None:
    host = read_host(str(tmp_path))
    assert not host.pools
    assert not host.hugetlbfs_mounts
    assert not host.tmpfs_mounts
    assert host.shmem_enabled == host.thp_enabled == ""
    assert host.memory_limit is None
    assert host.pool(2 * MIB) is None


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        ("proc/version", "Linux version 4.4.0 gVisor", "gvisor"),
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("run/systemd/container", "lxc\n", "lxc"),
    ],
)
def test_a_container_is_recognised(tmp_path: Path, path: str, text: str, kind: str) -> None:
    assert read_host(_fake_tree(tmp_path, **{path: text})).container == kind


def test_the_preferred_directory_is_found_on_the_deepest_mount() -> None:
    host = fake_host(preferred_directory="/mnt/2m/of/mine")
    assert host.preferred_mount() == "/mnt/2m"
    assert fake_host(preferred_directory="/mnt/2meter").preferred_mount() is None
    assert fake_host().preferred_mount() is None
    assert mount_under("/a/b/c", ["/", "/a", "/a/b"]) == "/a/b"


def test_a_real_mount_under_another_one_is_not_seen(mounts: Mounts) -> None:
    path = mounts.tmpfs("size=4M,huge=always")
    seen = {mount.path: mount for mount in read_host().tmpfs_mounts}
    assert (seen[path].huge, seen[path].limit_bytes) == ("always", 4 * MIB)
    mounts.over(path, "size=8M")
    seen = {mount.path: mount for mount in read_host().tmpfs_mounts}
    assert (seen[path].huge, seen[path].limit_bytes) == ("never", 8 * MIB)
