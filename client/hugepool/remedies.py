"""The changes that would give a host a rung of the ladder, or more room on it.

Pure functions of a :class:`~hugepool_common.pages.Host`: they read nothing and run
nothing. The command of each change is one line for a root shell.
"""

from __future__ import annotations

from hugepool.host_changes import Change, MakeMount, Remount, SetValue
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
_MOUNTS = "/run/hugepages"


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
    """The commands of :func:`changes`, which takes the same."""
    return tuple(one.command for one in changes(rung, host, uid=uid, gid=gid, room=room))


def changes(rung: str, host: Host, *, uid: int, gid: int, room: int) -> tuple[Change, ...]:
    """Changes after which a rung should be there with `room` bytes for new arrays.

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
    tuple of Change
        Empty when the host seems to have it all, or when no change helps: none makes more
        room than there is memory, see :func:`shortage`.
    """
    if shortage(rung, host, room):
        return ()
    if rung in _HUGETLBFS_PAGE_SIZES:
        return _for_hugetlbfs(_HUGETLBFS_PAGE_SIZES[rung], host, uid, gid, room)
    found: list[Change] = []
    if rung == "tmpfs-huge" and not room_bytes(rung, host):
        found.append(_for_tmpfs_huge(host, uid, gid))
    if rung in ("tmpfs-huge", "shm-collapse"):
        found += _for_modes(host, collapse=rung == "shm-collapse")
    return (*found, *_for_tmpfs_room(rung, host, room))


def shortage(rung: str, host: Host, room: int) -> str:
    """Why memory itself is too small for `room` bytes of new arrays on a rung; else empty.

    Of a host that cannot say how much it has, nothing is too small.
    """
    page_size = _HUGETLBFS_PAGE_SIZES.get(rung)
    if page_size is None:
        return host.past_all_memory(room)
    claimed = max((mount.claimed_bytes for mount in _hugetlbfs_mounts(host, page_size)), default=0)
    return host.pool_shortage(page_size, -(-max(0, room - claimed) // page_size))


def _for_hugetlbfs(page_size: int, host: Host, uid: int, gid: int, room: int) -> tuple[Change, ...]:
    pool = host.pool(page_size)
    if pool is None:
        return ()  # this kernel or processor has no pages of the size
    found: list[Change] = []
    mounts = _hugetlbfs_mounts(host, page_size)
    claimed = max((mount.claimed_bytes for mount in mounts), default=0)
    missing = round_up(room - claimed, page_size) // page_size - pool.available_pages
    if missing > 0:
        found.append(set_pool(host, page_size, pool.total_pages + missing))
    if not mounts:
        found.append(_make_hugetlbfs(page_size, uid, gid))
    elif all(_left(mount) < room for mount in mounts):
        widest = max(mounts, key=_left)
        wanted = (widest.limit_bytes or 0) + round_up(room - _left(widest), page_size)
        found.append(Remount(widest.path, "size", str(wanted)))
    limit = host.hugetlb_limit(page_size)
    if limit is not None and limit.headroom_bytes < room:
        needed = round_up(limit.usage_bytes + room, page_size)
        found.append(SetValue(limit.where, str(needed)))
    return tuple(found)


def set_pool(host: Host, page_size: int, pages: int) -> SetValue:
    """Give the kernel's pool of a page size so many pages in all."""
    if page_size == host.default_huge_page_size:
        return SetValue("/proc/sys/vm/nr_hugepages", str(pages))
    directory = f"/sys/kernel/mm/hugepages/hugepages-{page_size // KIB}kB"
    return SetValue(f"{directory}/nr_hugepages", str(pages))


def _make_hugetlbfs(page_size: int, uid: int, gid: int) -> MakeMount:
    name = page_size_name(page_size)
    options = f"pagesize={name},uid={uid},gid={gid},mode=0700"
    return MakeMount("hugetlbfs", options, f"{_MOUNTS}/hugepool-{uid}-{name}")


def _for_tmpfs_huge(host: Host, uid: int, gid: int) -> Change:
    if any(mount.path == _SHM and mount.writable for mount in host.tmpfs_mounts):
        return Remount(_SHM, "huge", "within_size")
    options = f"huge=within_size,uid={uid},gid={gid},mode=0700"
    return MakeMount("tmpfs", options, f"{_MOUNTS}/hugepool-{uid}-tmpfs")


def _for_modes(host: Host, *, collapse: bool) -> list[Change]:
    """Undo the switches that forbid huge pages in shared memory, whatever a mount says."""
    found: list[Change] = []
    if host.shmem_enabled == "deny":
        found.append(SetValue(f"{_THP}/shmem_enabled", "never"))
    # From Linux 6.11 on each page size has a switch too, and collapse obeys it.
    if collapse and host.shmem_enabled_pmd == "never":
        kilobytes = host.hpage_pmd_size // KIB
        found.append(SetValue(f"{_THP}/hugepages-{kilobytes}kB/shmem_enabled", "inherit"))
    return found


def _for_tmpfs_room(rung: str, host: Host, room: int) -> tuple[Change, ...]:
    available = room_bytes(rung, host)
    if available >= room or available >= host.memory_headroom_bytes:
        return ()  # enough, or memory is short and no mount option makes more
    for mount in host.tmpfs_mounts:
        if mount.path == _SHM and mount.writable and mount.available_bytes < room:
            wanted = round_up(mount.limit_bytes - mount.available_bytes + room, MIB)
            return (Remount(_SHM, "size", str(wanted)),)
    return ()


def _hugetlbfs_mounts(host: Host, page_size: int) -> list[HugetlbfsMount]:
    return [
        mount for mount in host.hugetlbfs_mounts if mount.page_size == page_size and mount.writable
    ]


def _left(mount: HugetlbfsMount) -> int:
    """What a mount's own limit leaves; without one, more than anything."""
    return 1 << 62 if mount.available_bytes is None else mount.available_bytes
