"""Phases: what a planned run consists of, and what jobs and crews carry out.

Every part of a phase may run at the same time as the others of that phase, and none
before all parts of the phase before it are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hugepool.array import SharedObject


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
