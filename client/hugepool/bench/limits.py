"""The machine's limits, measured beside the patterns, and each result's share of them."""

from __future__ import annotations

from collections.abc import Sequence

from hugepool import kernels, partition
from hugepool.bench.cases import Case
from hugepool.bench.measure import LIMIT, Cell
from hugepool.bench.operands import OperandSet, Placement
from hugepool.bench.results import LimitResult
from hugepool.kernels import last_level_cache_bytes

RANDOM_LINES = "random_lines"
LINE_BYTES = 64
_STREAMS = {"copy": ("a",), "triad": ("a", "b")}
# A limit needs runs long enough to time and no longer.
_MOST_LINES = 10_000_000


def limit_cells(
    case: Case, placement: Placement, operands: OperandSet, workers: Sequence[int]
) -> list[Cell]:
    """Cells for random lines of x, and for STREAM copy and triad, on the same pages."""
    made = []
    for count in workers:
        if kernels.available(RANDOM_LINES):
            lines = partition.by_rows(min(case.items, _MOST_LINES), count)
            x = {"x": operands.objects["x"]}
            made.append(Cell(LIMIT, RANDOM_LINES, "numba", placement, x, lines, ()))
        rows = partition.by_rows(case.stream_elements, count)
        for kernel, roles in _STREAMS.items():
            implementation = kernels.available(kernel)[0]
            arrays = {role: operands.objects[f"stream_{role}"] for role in (*roles, "out")}
            made.append(Cell(LIMIT, kernel, implementation, placement, arrays, rows))
    return made


def limit_result(pattern: str, cell: Cell) -> LimitResult:
    """What a limit cell found."""
    samples = tuple(sample.wall_ns for sample in cell.samples)
    best = min(samples)
    return LimitResult(
        pattern,
        cell.placement.label,
        cell.workers,
        cell.kernel,
        cell.implementation,
        next(iter(cell.operands.values())).nbytes,
        samples,
        cell.nbytes / best,
        best / cell.elements if cell.kernel == RANDOM_LINES else None,
    )


def share_of_limit(
    case: Case, best_ns: float, limits: Sequence[LimitResult]
) -> tuple[float | None, str]:
    """Percentage of the limit that a case is compared with.

    Parameters
    ----------
    case
        Decides which limit, and how many bytes a cold cache makes it move.
    best_ns
        Of one run: the fastest round, as the limits are those of their fastest rounds.
    limits
        Of the same backing and workers.

    Returns
    -------
    percent, note
        None with the reason where there is no fair limit.
    """
    cache = last_level_cache_bytes()
    if case.limit == "lines":
        line_ns = [limit.ns_per_line for limit in limits if limit.ns_per_line is not None]
        if not line_ns:
            return None, "needs numba"
        if 8 * case.x_elements <= cache:
            return None, "x fits the cache"
        return 100 * line_ns[0] * case.items / best_ns, ""
    if case.input_bytes <= 2 * cache:
        return None, "fits the cache"
    rates = [limit.gb_per_s for limit in limits if limit.kind in _STREAMS]
    return (100 * (case.moved_bytes / best_ns) / max(rates), "") if rates else (None, "")
