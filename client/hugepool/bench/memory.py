"""How much memory a run takes, and what to leave out where it does not fit.

Private copies of the workers are nobody else's to check: past the limit of a
control group they end in SIGKILL, not in an error. So the sum is made before
anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

from hugepool.bench import matrices
from hugepool.bench.matrices import CsrMatrix
from hugepool.bench.options import BASELINE, HEAP, BenchOptions
from hugepool.bench.patterns import GATHER_PATTERNS
from hugepool.bench.results import Missing
from hugepool_common.errors import NotEnoughMemoryError
from hugepool_common.units import format_bytes

# Workers with numba and SciPy loaded, the coordinator, and air for everybody else.
_PROCESS_BYTES = 200_000_000
_SPARE_BYTES = 300_000_000

_PREFERENCE = (BASELINE, "hugetlbfs-2m", "shm-collapse", "tmpfs-huge", "hugetlbfs-1g", HEAP)
"""What to keep longest when not everything fits."""


def operand_bytes(pattern: str, options: BenchOptions) -> int:
    """Payload on one backing while a generated pattern runs, limits included."""
    stream = 8 * options.gathers
    if pattern in GATHER_PATTERNS:
        return 8 * options.elements + 2 * 8 * options.gathers + 2 * stream
    entries = options.entries
    rows, columns = {
        "uniform": (entries // matrices.ENTRIES_PER_ROW, options.elements),
        "kronecker": (entries // matrices.EDGES_PER_VERTEX,) * 2,
        "stencil": (entries // matrices.STENCIL_POINTS,) * 2,
    }[pattern]
    return 12 * entries + 12 * rows + 8 * columns + 3 * stream


def matrix_bytes(matrix: CsrMatrix, options: BenchOptions) -> int:
    """The same for a given matrix."""
    rows, columns = matrix.shape
    return matrix.nbytes + 8 * (rows + columns) + 3 * 8 * options.gathers


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

    Returns
    -------
    kept, missing
        In the order given, and the rest with needed and had.

    Raises
    ------
    NotEnoughMemoryError
        Not even one backing fits, or the measuring process itself does not.
    """
    fixed = client_bytes + _PROCESS_BYTES * workers + _SPARE_BYTES
    memory, room = headroom_bytes - fixed, shm_room_bytes
    if memory < 0:
        raise _nothing_fits(fixed, headroom_bytes)
    kept: list[str] = []
    missing: list[Missing] = []
    shm_taken = False  # the heap copies are made from 4 KiB shared memory
    for backing in sorted(backings, key=_PREFERENCE.index):
        # Pages of hugetlbfs were taken out of the available memory when their pool was filled.
        need = 0 if backing.startswith("hugetlbfs") else bytes_per_backing
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
