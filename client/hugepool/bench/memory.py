"""How much memory a run takes, and what to leave out where it does not fit.

Private copies of the workers are nobody else's to check: past the limit of a
control group they end in SIGKILL, not in an error. So the sum is made before
anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hugepool.bench import matrices
from hugepool.bench.matrices import CsrMatrix
from hugepool.bench.options import BASELINE, HEAP, BenchOptions
from hugepool.bench.patterns import GATHER_PATTERNS
from hugepool.bench.results import Missing
from hugepool.remedies import remedies, room_bytes
from hugepool_common.errors import NotEnoughMemoryError, NotEnoughPagesError
from hugepool_common.pages import Host
from hugepool_common.spec import ArraySpec
from hugepool_common.units import GIB, MIB, format_bytes, page_size_name, round_up

HUGETLBFS_PAGE_SIZES = {"hugetlbfs-2m": 2 * MIB, "hugetlbfs-1g": GIB}
"""Page size of the backings whose pages must be reserved."""

# Workers with numba and SciPy loaded, the coordinator, and air for everybody else.
_PROCESS_BYTES = 200_000_000
_SPARE_BYTES = 300_000_000

_PREFERENCE = (BASELINE, "hugetlbfs-2m", "shm-collapse", "tmpfs-huge", "hugetlbfs-1g", HEAP)
"""What to keep longest when not everything fits."""


def planned_segments(pattern: str, options: BenchOptions) -> tuple[int, ...]:
    """Payload of every segment on one backing while a generated pattern runs, limits included.

    Of ``kronecker`` it is the most that there can be: its double edges are merged.
    """
    if pattern in GATHER_PATTERNS:
        return (8 * options.elements, *4 * (8 * options.gathers,))
    rows, columns, entries = matrices.planned_size(pattern, options.elements, options.entries)
    return _product_segments(rows, columns, entries, options)


def matrix_segments(matrix: CsrMatrix, options: BenchOptions) -> tuple[int, ...]:
    """The same for a given matrix."""
    return _product_segments(*matrix.shape, matrix.nnz, options)


def _product_segments(
    rows: int, columns: int, entries: int, options: BenchOptions
) -> tuple[int, ...]:
    index_dtype = "<i4" if max(rows, columns, entries) < 2**31 else "<i8"
    matrix = ArraySpec("A", (rows, columns), "<f8", "csr", entries, index_dtype)
    streams = 2 if rows == options.gathers else 3  # the result is one where the lengths agree
    return (8 * columns, matrix.nbytes, 8 * rows, *streams * (8 * options.gathers,))


def operand_bytes(pattern: str, options: BenchOptions) -> int:
    """Payload on one backing while a generated pattern runs, limits included."""
    return sum(planned_segments(pattern, options))


def in_pages(segments: Iterable[int], page_size: int) -> int:
    """Bytes of segments with these payloads, each in whole pages and with one at least."""
    return sum(round_up(max(nbytes, 1), page_size) for nbytes in segments)


def check_pages(
    backing: str,
    host: Host,
    *,
    needed_bytes: int,
    largest_bytes: int,
    kept_bytes: int = 0,
    uid: int,
    gid: int,
) -> None:
    """Refuse a case for which a pool of huge pages has too little room, before it is begun.

    The coordinator would refuse one array after the other, each with a command that
    makes room for that one alone.

    Parameters
    ----------
    backing
        Any; those that need no reserved pages pass.
    needed_bytes
        Of everything that the case keeps there at once, in whole pages.
    largest_bytes
        The same of the largest case of the run: what the command makes room for.
    kept_bytes
        What the case needs and is there already, in whole pages.
    uid, gid
        Who owns a new mount.

    Raises
    ------
    NotEnoughPagesError
        With the pages needed and had, and the commands that give them.
    """
    page_size = HUGETLBFS_PAGE_SIZES.get(backing)
    pool = None if page_size is None else host.pool(page_size)
    if page_size is None or pool is None:
        return  # without such a pool the coordinator says why
    room = room_bytes(backing, host)
    if room >= needed_bytes - kept_bytes:
        return
    commands = remedies(backing, host, uid=uid, gid=gid, room=largest_bytes - kept_bytes)
    pages, most = needed_bytes // page_size, largest_bytes // page_size
    kind = "1 GiB" if page_size == GIB else "2 MiB"
    needed = f"{pages} huge page{'s' * (pages > 1)} of {kind}"
    raise NotEnoughPagesError(
        _lacking(host, page_size, needed_bytes - kept_bytes),
        needed=needed + (f", {most} for the largest pattern" if most > pages else ""),
        had=f"{pool.available_pages} free",
        where=backing,
        remedy=" && ".join(commands),
    )


def _lacking(host: Host, page_size: int, more_bytes: int) -> str:
    """What is too small, in words: the mount, the pool or the control group."""
    name = page_size_name(page_size)
    mounts = [mount for mount in host.hugetlbfs_mounts if mount.page_size == page_size]
    if not mounts:
        return f"no hugetlbfs mount with {name} pages"
    writable = [mount for mount in mounts if mount.writable]
    if not writable:
        return f"{mounts[0].path} is not writable"
    limited = [mount for mount in writable if mount.available_bytes is not None]
    if len(limited) == len(writable):
        widest = max(limited, key=lambda mount: mount.available_bytes or 0)
        if (widest.available_bytes or 0) < more_bytes:
            left = format_bytes(widest.available_bytes or 0)
            return f"{widest.path} has {left} left of its size= option"
    limit = host.hugetlb_limit(page_size)
    if limit is not None and limit.headroom_bytes < more_bytes:
        return f"the control group allows {format_bytes(limit.headroom_bytes)} of huge pages more"
    return f"not enough pages of {name} are free"


def client_bytes(pattern: str, options: BenchOptions) -> int:
    """What the measuring process itself holds: indices or matrix, and the reference."""
    if pattern in GATHER_PATTERNS:
        return 3 * 8 * options.gathers
    return 48 * options.entries


def what_fits(
    backings: Sequence[str],
    *,
    bytes_per_backing: int,
    client_bytes: int,
    workers: int,
    headroom_bytes: int,
    shm_room_bytes: int | None = None,
    pool_bytes: Mapping[str, int] | None = None,
) -> tuple[tuple[str, ...], tuple[Missing, ...]]:
    """Choose the backings whose operands fit side by side.

    Parameters
    ----------
    backings
        Wanted, in any order.
    bytes_per_backing
        Largest sum of operands over the patterns.
    client_bytes
        Of the measuring process.
    workers
        Most worker processes; each has a heap copy of its own.
    headroom_bytes
        Memory that may be taken: what is available, and the control group's limit.
    shm_room_bytes
        Free bytes of the plain tmpfs, or None if unknown.
    pool_bytes
        By backing: free bytes of a pool of huge pages, which are in no other sum.

    Returns
    -------
    kept, missing
        In the order given, and the rest with needed and had.

    Raises
    ------
    NotEnoughMemoryError
        Not even one backing fits, or the measuring process itself does not.
    """
    pools = pool_bytes or {}
    fixed = client_bytes + _PROCESS_BYTES * workers + _SPARE_BYTES
    memory, room = headroom_bytes - fixed, shm_room_bytes
    if memory < 0:
        raise _nothing_fits(fixed, headroom_bytes)
    kept: list[str] = []
    missing: list[Missing] = []
    shm_taken = False  # the heap copies are made from 4 KiB shared memory
    for backing in sorted(backings, key=_PREFERENCE.index):
        # Pages of hugetlbfs were taken out of the available memory when their pool was filled;
        # a pool can be made no larger than by the memory that is left.
        need = bytes_per_backing
        if backing in HUGETLBFS_PAGE_SIZES:
            need = 0
            reach = headroom_bytes - fixed + pools.get(backing, 0)
            if bytes_per_backing > reach:
                missing.append(_short(backing, "memory", fixed + bytes_per_backing, fixed + reach))
                continue
        shm_need = bytes_per_backing if backing in (BASELINE, "shm-collapse") else 0
        if backing == HEAP:
            source = 0 if shm_taken else bytes_per_backing
            need, shm_need = source + workers * bytes_per_backing, source
        if need > memory:
            missing.append(_short(backing, "memory", fixed + need, max(0, memory + fixed)))
            continue
        if room is not None and shm_need > room:
            missing.append(_short(backing, "/dev/shm", shm_need, room))
            continue
        memory -= need
        room = None if room is None else room - shm_need
        shm_taken |= backing == BASELINE
        kept.append(backing)
    if not kept:
        raise _nothing_fits(fixed + bytes_per_backing, headroom_bytes)
    return tuple(backing for backing in backings if backing in kept), tuple(missing)


def _nothing_fits(needed: int, had: int) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        "no backing has room for this benchmark",
        needed=format_bytes(needed),
        had=format_bytes(had),
        remedy="use a smaller --size or fewer --gathers",
    )


def _short(backing: str, where: str, needed: int, had: int) -> Missing:
    return Missing(
        backing,
        f"not enough room in {where}",
        needed=format_bytes(needed),
        had=format_bytes(had),
        remedy="use a smaller --size, fewer --gathers or fewer --backing",
    )
