"""Phases: what a planned run consists of, and what jobs and crews carry out.

Every part of a phase may run at the same time as the others of that phase, and none
before all parts of the phase before it are done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hugepool.array import SharedObject
from hugepool.timings import JobTimings


@dataclass(frozen=True, slots=True)
class Phase:
    """One kernel over a partition.

    Parameters
    ----------
    kernel, implementation
        As :func:`hugepool.kernels.resolve` knows them.
    operands
        Role to handle.
    rows
        Bounds: part k is ``[rows[k], rows[k + 1])`` and may be empty.
    writes
        Roles that the kernel writes.
    """

    kernel: str
    operands: Mapping[str, SharedObject]
    rows: tuple[int, ...]
    writes: frozenset[str] = frozenset({"out"})
    implementation: str = "auto"


def elapsed_ns(steps: Sequence[Phase], timings: JobTimings) -> int:
    """Kernel time of a run: of each phase from its first start to its last end.

    What lies between phases is the messages' time, which a crew does not have.
    """
    total_ns, taken = 0, 0
    for step in steps:
        parts = timings.parts[taken : taken + len(step.rows) - 1]
        taken += len(parts)
        if parts:
            first_ns = min(part.started_ns for part in parts)
            total_ns += max(part.started_ns + part.wall_ns for part in parts) - first_ns
    return total_ns
