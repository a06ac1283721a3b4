"""The commands that would give a host a rung of the ladder, or more room on it.

Pure functions of a :class:`~hugepool_common.pages.Host`: they read nothing and run
nothing. Each command is one line for a root shell.
"""

from __future__ import annotations

import shlex

from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host
from hugepool_common.units import GIB, KIB, MIB, page_size_name, round_up

SMALL_RUNG = "shm-4k"
HUGE_RUNGS = ("hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "hugetlbfs-1g")
"""Huge rungs as the ladder tries them; the last one only on request."""

_HUGETLBFS_PAGE_SIZES = {"hugetlbfs-2m": 2 * MIB, "hugetlbfs-1g": GIB}
_HUGE_BY_MOUNT = ("always", "within_size")
_THP = "/sys/kernel/mm/transparent_hugepage"
_SHM = "/dev/shm"


def room_bytes(rung: str, host: Host) -> int:
    """Bytes that new arrays could have on a rung, as far as the host tells."""
    page_size = _HUGETLBFS_PAGE_SIZES.get(rung)
    if page_size is not None:
        pool = host.pool(page_size)
        mounts = _hugetlbfs_mounts(host, page_size)
        if pool is None or not mounts:
            return 0
        rooms = [pool.available_bytes + mount.claimed_bytes for mount in mounts]
        room = max(map(min, rooms, [_left(mount) for mount in mounts]))
        limit = host.hugetlb_limit(page_size)
        return room if limit is None else min(room, limit.headroom_bytes)
    places = tmpfs_places(host, _HUGE_BY_MOUNT if rung == "tmpfs-huge" else ())
    free = max((place.available_bytes for place in places), default=0)
    return min(free, host.memory_headroom_bytes)


def tmpfs_places(host: Host, options: tuple[str, ...] = ()) -> list[TmpfsMount]:
    """The writable tmpfs mounts that arrays may go to.

    Those are the preferred one, ``/dev/shm``, and any that was mounted for huge
    pages: another tmpfs, such as ``/run``, holds other things.

    Parameters
    ----------
    options
        Only those with one of these values of ``huge=``; empty for all.
    """
    own = (_SHM, host.preferred_mount())
    return [
        mount
        for mount in host.tmpfs_mounts
        if mount.writable
        and (mount.huge in options if options else mount.huge != "never" or mount.path in own)
    ]


def remedies(rung: str, host: Host, *, uid: int, gid: int, room: int) -> tuple[str, ...]:
    """Commands after which a rung should be there with `room` bytes for new arrays.

    Parameters
    ----------
    rung
        A backing.
    host
        The host as it is.
    uid, gid
        Who the coordinator runs as: the owner of a new mount.
    room
        Bytes that new arrays need together.

    Returns
    -------
    tuple of str
        Empty when the host seems to have it all, or when no command helps.
    """
    if rung in _HUGETLBFS_PAGE_SIZES:
        return _for_hugetlbfs(_HUGETLBFS_PAGE_SIZES[rung], host, uid, gid, room)
    commands = []
    if rung == "tmpfs-huge" and not room_bytes(rung, host):
        commands.append(_for_tmpfs_huge(host, uid, gid))
    if rung in ("tmpfs-huge", "shm-collapse"):
        commands += _for_modes(host, collapse=rung == "shm-collapse")
    return (*commands, *_for_tmpfs_room(rung, host, room))


def _for_hugetlbfs(page_size: int, host: Host, uid: int, gid: int, room: int) -> tuple[str, ...]:
    pool = host.pool(page_size)
    if pool is None:
        return ()  # this kernel or processor has no pages of the size
    commands = []
    mounts = _hugetlbfs_mounts(host, page_size)
    claimed = max((mount.claimed_bytes for mount in mounts), default=0)
    missing = round_up(room - claimed, page_size) // page_size - pool.available_pages
    if missing > 0:
        commands.append(_pool_command(host, page_size, pool.total_pages + missing))
    if not mounts:
        commands.append(_mount_command(page_size, host, uid, gid))
    elif all(_left(mount) < room for mount in mounts):
        widest = max(mounts, key=_left)
        wanted = (widest.limit_bytes or 0) + round_up(room - _left(widest), page_size)
        commands.append(f"mount -o remount,size={wanted // MIB}M {shlex.quote(widest.path)}")
    limit = host.hugetlb_limit(page_size)
    if limit is not None and limit.headroom_bytes < room:
        needed = round_up(limit.usage_bytes + room, page_size)
        commands.append(f"echo {needed} > {shlex.quote(limit.where)}")
    return tuple(commands)


def _pool_command(host: Host, page_size: int, pages: int) -> str:
    if page_size == host.default_huge_page_size:
        return f"sysctl vm.nr_hugepages={pages}"
    directory = f"/sys/kernel/mm/hugepages/hugepages-{page_size // KIB}kB"
    return f"echo {pages} > {directory}/nr_hugepages"


def _mount_command(page_size: int, host: Host, uid: int, gid: int) -> str:
    name = page_size_name(page_size)
    path = f"/run/hugepages/hugepool-{uid}-{name}"
    return (
        f"mkdir -p {path} && "
        f"mount -t hugetlbfs -o pagesize={name},uid={uid},gid={gid},mode=0700 none {path}"
    )


def _for_tmpfs_huge(host: Host, uid: int, gid: int) -> str:
    if any(mount.path == _SHM and mount.writable for mount in host.tmpfs_mounts):
        return f"mount -o remount,huge=within_size {_SHM}"
    path = f"/run/hugepages/hugepool-{uid}-tmpfs"
    return (
        f"mkdir -p {path} && "
        f"mount -t tmpfs -o huge=within_size,uid={uid},gid={gid},mode=0700 none {path}"
    )


def _for_modes(host: Host, *, collapse: bool) -> list[str]:
    """Undo the switches that forbid huge pages in shared memory, whatever a mount says."""
    commands = []
    if host.shmem_enabled == "deny":
        commands.append(f"echo never > {_THP}/shmem_enabled")
    # From Linux 6.11 on each page size has a switch too, and collapse obeys it.
    if collapse and host.shmem_enabled_pmd == "never":
        kilobytes = host.hpage_pmd_size // KIB
        commands.append(f"echo inherit > {_THP}/hugepages-{kilobytes}kB/shmem_enabled")
    return commands


def _for_tmpfs_room(rung: str, host: Host, room: int) -> tuple[str, ...]:
    available = room_bytes(rung, host)
    if available >= room or available >= host.memory_headroom_bytes:
        return ()  # enough, or memory is short and no mount option makes more
    for mount in host.tmpfs_mounts:
        if mount.path == _SHM and mount.writable and mount.available_bytes < room:
            wanted = round_up(mount.limit_bytes - mount.available_bytes + room, MIB)
            return (f"mount -o remount,size={wanted // MIB}M {_SHM}",)
    return ()


def _hugetlbfs_mounts(host: Host, page_size: int) -> list[HugetlbfsMount]:
    return [
        mount for mount in host.hugetlbfs_mounts if mount.page_size == page_size and mount.writable
    ]


def _left(mount: HugetlbfsMount) -> int:
    """What a mount's own limit leaves; without one, more than anything."""
    return 1 << 62 if mount.available_bytes is None else mount.available_bytes
