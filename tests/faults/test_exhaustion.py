"""Everything that can run out does: a typed error, no signal, and not a page kept.

Every case runs in a process of its own, because the failure that these tests are
afraid of (SIGBUS, SIGKILL) would take the test run with it. A case with ``lying``
shows the ladder a generous machine, so that the refusal comes from the kernel, at
the worst moment, and not from the look beforehand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hugepool_common.pages import read_host
from hugepool_common.units import MIB
from hugepool_server.backends import select
from support.host import PAGE_2M, Mounts, free_pages, held_pages, require, settles

pytestmark = pytest.mark.usefixtures("leak_check")

SCRIPT = """
import json, os, sys, time
from dataclasses import replace
from hugepool_common.errors import HugepoolError
from hugepool_common.pages import read_host
from hugepool_server.backends import select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.reclaim import SegmentDirectories

def held_pages():
    pool = read_host().pool(2 << 20)
    return pool.total_pages - pool.free_pages + pool.reserved_pages if pool else 0

options = json.loads(sys.argv[1])
group = options["cgroup"]
if group:
    with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
host = read_host()
if options["only"]:
    host = replace(host, tmpfs_mounts=tuple(
        mount for mount in host.tmpfs_mounts if mount.path == options["place"]))
if options["lying"]:
    host = replace(
        host,
        pools=tuple(replace(pool, free_pages=1 << 20) for pool in host.pools),
        hugetlbfs_mounts=tuple(replace(m, available_bytes=1 << 50) for m in host.hugetlbfs_mounts),
        tmpfs_mounts=tuple(
            replace(m, available_bytes=1 << 50, writable=True) for m in host.tmpfs_mounts
        ),
        memory_limit=None,
    )
with SegmentDirectories() as directories:
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        select.make_segment(
            SegmentRequest(1, options["nbytes"]), huge_pages=options["huge_pages"],
            page_size="auto", backing=options["backing"], directories=directories, host=host)
    except HugepoolError as error:
        facts = {**error.__dict__, "kind": type(error).__name__}
    else:
        facts = {"kind": "made"}
    # While the refused coordinator lives, nothing may be kept either.
    deadline = time.monotonic() + 60  # others may take pages for a moment
    refused = facts["kind"] != "made"
    while (kept := refused and held_pages() > options["held_pages"]):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    facts["kept_pages"] = kept
    facts["room"] = os.statvfs(options["place"]).f_bfree
    facts["descriptors"] = len(os.listdir("/proc/self/fd")) - descriptors
    print(json.dumps(facts))
"""


def refuse(
    place: str,
    backing: str,
    nbytes: int,
    *,
    lying: bool = False,
    huge_pages: str = "try",
    cgroup: str = "",
    only: bool = True,
) -> dict[str, Any]:
    """Ask for a segment in a child and return the facts of its error.

    `place` is the only tmpfs that the ladder sees, unless `only` is False.
    """
    options = {
        "place": place,
        "backing": backing,
        "nbytes": nbytes,
        "lying": lying,
        "huge_pages": huge_pages,
        "cgroup": cgroup,
        "only": only,
        "held_pages": held_pages(),
    }
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SCRIPT, json.dumps(options)],
        capture_output=True,
        text=True,
        env={**os.environ, "HUGEPOOL_MOUNT": place},
    )
    assert child.returncode == 0, f"ended by {child.returncode}: {child.stderr}"
    facts: dict[str, Any] = json.loads(child.stdout)
    # The directory itself stays open for the next request.
    assert facts["descriptors"] <= 1
    assert not facts["kept_pages"], "huge pages are held for what was refused"
    return facts


def needs_collapse() -> None:
    fall = select.backend_of("shm-collapse").unusable(read_host(), MIB)
    require("collapse", fall is None, fall.reason if fall else "")


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("backing", ["shm-4k", "shm-collapse", "tmpfs-huge"])
def test_a_tmpfs_too_small(mounts: Mounts, backing: str, lying: bool) -> None:
    needs_collapse()
    huge = "always" if backing == "tmpfs-huge" else "never"
    place = mounts.tmpfs(f"size=64M,huge={huge}")
    before = os.statvfs(place).f_bfree
    facts = refuse(place, backing, 100 * MIB, lying=lying)
    small = backing == "shm-4k"
    assert facts["kind"] == ("NotEnoughMemoryError" if small else "NotEnoughPagesError")
    assert facts["room"] == before
    if not lying:
        assert facts["remedy"] == f"mount -o remount,size=100M {place}"
    reasons = ("No space left", "ran full in the collapse") if lying else ("has 67.1 MB free",)
    assert any(reason in facts["message"] for reason in reasons)


def test_a_tmpfs_that_others_fill_during_the_collapse(mounts: Mounts) -> None:
    """There is room for every seed but not for the huge pages."""
    needs_collapse()
    place = mounts.tmpfs("size=64M")
    before = os.statvfs(place).f_bfree
    facts = refuse(place, "shm-collapse", 60 * MIB)
    assert facts["kind"] == "made"
    ballast = Path(place) / "ballast"
    ballast.write_bytes(bytes(10 * MIB))
    facts = refuse(place, "shm-collapse", 60 * MIB, lying=True)
    assert facts["kind"] == "NotEnoughPagesError"
    ballast.unlink()
    assert os.statvfs(place).f_bfree == before


def test_the_ladder_walks_down_past_a_full_tmpfs(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mounts.tmpfs("size=4M,huge=always")
    before = os.statvfs(place).f_bfree
    facts = refuse(place, "", 100 * MIB, only=False)
    # /dev/shm is there too, and has the room.
    assert facts["kind"] == "made"
    assert facts["room"] == before


@pytest.mark.parametrize("lying", [False, True])
def test_a_hugetlbfs_mount_too_small(mounts: Mounts, huge_page_pool: int, lying: bool) -> None:
    place = mounts.hugetlbfs("pagesize=2M,size=16M")
    room, held = os.statvfs(place).f_bfree, held_pages()
    facts = refuse(place, "hugetlbfs-2m", 32 * MIB, lying=lying)
    assert facts["kind"] == "NotEnoughPagesError"
    assert facts["needed"] == "16 huge pages of 2 MiB"
    assert "16.8 MB left of its size= option" in facts["message"]
    assert "size=48M" in facts["remedy"]
    assert facts["room"] == room
    assert settles(lambda: held_pages() <= held)


@pytest.mark.parametrize("lying", [False, True])
def test_an_exhausted_pool(mounts: Mounts, huge_page_pool: int, lying: bool) -> None:
    place = mounts.hugetlbfs("pagesize=2M")
    pages, held = free_pages(), held_pages()
    facts = refuse(place, "hugetlbfs-2m", (pages + 1000) * PAGE_2M, lying=lying)
    assert facts["kind"] == "NotEnoughPagesError"
    assert f"of {pages + 1000} pages of 2M are free" in facts["message"]
    assert facts["remedy"].startswith("sysctl vm.nr_hugepages=")
    assert int(facts["remedy"].split("=")[1]) > pages + 1000 - 1
    assert settles(lambda: held_pages() <= held)


def test_the_remedy_for_an_exhausted_pool_is_exact(mounts: Mounts, huge_page_pool: int) -> None:
    place = mounts.hugetlbfs("pagesize=2M")
    count = Path("/proc/sys/vm/nr_hugepages")
    before = int(count.read_text())
    length = (free_pages() + 8) * PAGE_2M
    facts = refuse(place, "hugetlbfs-2m", length)
    wanted = int(facts["remedy"].removeprefix("sysctl vm.nr_hugepages="))
    try:
        count.write_text(str(wanted))
        if int(count.read_text()) < wanted:  # the memory that there is lies scattered
            Path("/proc/sys/vm/compact_memory").write_text("1")
            count.write_text(str(wanted))
        require("hugetlbfs", int(count.read_text()) == wanted, "memory is fragmented")
        assert refuse(place, "hugetlbfs-2m", length)["kind"] == "made"
    finally:
        if int(count.read_text()) == wanted:
            count.write_text(str(before))


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs"])
@pytest.mark.parametrize("lying", [False, True])
def test_a_read_only_mount(mounts: Mounts, huge_page_pool: int, kind: str, lying: bool) -> None:
    options = "pagesize=2M" if kind == "hugetlbfs" else "size=16M,huge=always"
    place = getattr(mounts, kind)(options)
    mounts.make_read_only(place)
    backing = "hugetlbfs-2m" if kind == "hugetlbfs" else "tmpfs-huge"
    facts = refuse(place, backing, 2 * MIB, lying=lying)
    assert facts["kind"] == "NotEnoughPagesError"
    assert (
        "Read-only file system" in facts["message"]
        or "not writable" in facts["message"]
        or ("may write" in facts["message"])
    )
    assert os.listdir(place) == []


def test_huge_pages_demanded_of_a_host_without(mounts: Mounts, huge_page_pool: int) -> None:
    place = mounts.hugetlbfs("pagesize=2M,size=2M")
    facts = refuse(place, "", 64 << 40, huge_pages="on")
    assert facts["kind"] == "NotEnoughPagesError"
    assert facts["needed"] == f"{(64 << 40) // PAGE_2M} huge pages of 2 MiB"
    assert facts["remedy"]
    facts = refuse(place, "", 64 << 40)
    assert facts["kind"] == "NotEnoughMemoryError"


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("backing", ["shm-4k", "shm-collapse"])
def test_a_memory_cgroup_too_small(mounts: Mounts, backing: str, lying: bool) -> None:
    """Filling tmpfs past this limit would be SIGKILL, so it must be seen before."""
    needs_collapse()
    top = Path("/sys/fs/cgroup/memory")
    group = top / f"hugepool-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 * MIB))
    except OSError as error:
        require("memory-cgroup", False, f"no version 1 group can be made: {error}")
    try:
        place = mounts.tmpfs("size=1G")
        before = os.statvfs(place).f_bfree
        facts = refuse(place, backing, 300 * MIB, lying=lying, cgroup=str(group))
        assert facts["kind"].startswith("NotEnough")
        assert "memory" in facts["message"]
        assert facts["room"] == before
        assert refuse(place, backing, 20 * MIB, lying=lying, cgroup=str(group))["kind"] == "made"
    finally:
        assert settles(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
