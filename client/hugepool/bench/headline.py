"""The run in a few rows: hugepool's kernel on huge pages against what people have today."""

from __future__ import annotations

from collections.abc import Sequence

from hugepool.bench.results import HUGE_ENOUGH, CellResult
from hugepool.bench.statistics import MIN_ROUNDS, Speedup, paired_speedup

TITLE = "In short: hugepool's kernel on huge pages against the usual code on 4 KiB shared memory"
HEADER = ["pattern", "w", "hugepool on", "ns", "against", "ns", "speed-up"]

_BASELINE = "shm-4k"
_HUGE = ("hugetlbfs-2m", "tmpfs-huge", "shm-collapse", "hugetlbfs-1g")
_PEERS = {"numpy": "NumPy x[idx]", "scipy": "SciPy A @ x"}


def headlines(cells: Sequence[CellResult]) -> list[list[str]]:
    """One row for each pattern and number of workers that a peer was measured with.

    The peer ran on 4 KiB shared memory, in the same rounds, on the same data, with as many
    workers. The first backing that is there and was proved huge stands for huge pages. A
    row is given for what is not significant too.
    """
    found = {(cell.pattern, cell.workers, cell.kernel, cell.backing): cell for cell in cells}
    rows = []
    for peer in (cell for cell in cells if cell.backing == _BASELINE and cell.kernel in _PEERS):
        for backing in _HUGE:
            ours = found.get((peer.pattern, peer.workers, "hugepool", backing))
            if ours is not None and ours.huge_fraction >= HUGE_ENOUGH:
                rows.append(_row(ours, peer))
                break
    return rows


def remarks(cells: Sequence[CellResult]) -> list[str]:
    """What is to be known of the rows, beneath them."""
    disturbed = sum(cell.disturbed for cell in cells)
    samples = sum(len(cell.samples_ns) for cell in cells)
    if 2 * disturbed <= samples:
        return []
    return [
        f"{disturbed} of {samples} samples were disturbed: other processes used the workers' CPUs. "
        "Measure again on a quieter machine before you rely on these rows."
    ]


def _why_not(speedup: Speedup) -> str:
    """Why a ratio is not significant, by the rule of the run."""
    assert speedup.low is not None
    assert speedup.high is not None
    if speedup.rounds < MIN_ROUNDS:
        return f"fewer than {MIN_ROUNDS} rounds"
    if speedup.low <= 1 <= speedup.high:
        return "it includes 1"
    return "rounds differ too much"


def _row(ours: CellResult, peer: CellResult) -> list[str]:
    speedup = paired_speedup(peer.samples_ns, ours.samples_ns)
    span = f"({speedup.low:.2f}-{speedup.high:.2f})"
    refused = f"not significant {span}: {_why_not(speedup)}"
    return [
        ours.pattern,
        str(ours.workers),
        ours.backing,
        f"{ours.per_item_ns.median:.3g}",
        f"{_PEERS[peer.kernel]} on {peer.backing}",
        f"{peer.per_item_ns.median:.3g}",
        f"{speedup.ratio:.2f}x {span}" if speedup.significant else refused,
    ]
