"""What to measure: the choices of one run, checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hugepool.bench.matrices import MATRIX_PATTERNS
from hugepool.bench.patterns import GATHER_PATTERNS
from hugepool_common.errors import InvalidSpecError
from hugepool_common.units import KIB

HEAP = "heap"
BASELINE = "shm-4k"
"""The backing that speed-ups are counted from."""

RUNGS = ("shm-4k", "tmpfs-huge", "shm-collapse", "hugetlbfs-2m", "hugetlbfs-1g")
BACKINGS = (HEAP, *RUNGS)
"""Everything that can be measured, in the order of the table."""

PATTERNS = (*GATHER_PATTERNS, *MATRIX_PATTERNS)
FILE_PATTERN = "file"
"""Pattern name of a matrix that came from ``--matrix``."""

KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "hugepool": {"gather": ("numba", "take"), "matvec": ("numba", "scipy", "numpy")},
    "numpy": {"gather": ("fancy",), "matvec": ("numpy",)},
    "take": {"gather": ("take",)},
    "scipy": {"matvec": ("scipy",)},
}
"""Name on the command line to the implementations of each kernel, best first."""

MAX_DEFAULT_WORKERS = 4
MIN_BYTES = 4 * KIB
"""Least x: with less, a run times its own start."""
MAX_SWEEP_S = 3600
_MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The choices of one run.

    Parameters
    ----------
    nbytes
        Bytes of x (float64), at least :data:`MIN_BYTES`.
    gathers
        Gathers per run; matrices have half as many stored entries.
    workers
        Numbers of worker processes to measure with, rising.
    backings
        Of :data:`BACKINGS`.
    patterns
        Of :data:`PATTERNS`.
    kernels
        Of :data:`KERNELS`; empty: hugepool's everywhere, NumPy's ``x[idx]`` for ``random``
        and SciPy's for matrices.
    matrix
        Path of a matrix file to measure with, or None.
    repeats
        Measured rounds.
    seed
        Of everything random, 0 to 2**63 - 1.
    sweep_s
        Seconds for gathers over growing arrays; 0 for none.

    Raises
    ------
    InvalidSpecError
        A choice that nobody has, or two that exclude each other.
    """

    nbytes: int = 256_000_000
    gathers: int = 10_000_000
    workers: tuple[int, ...] = field(default_factory=lambda: default_workers())
    backings: tuple[str, ...] = BACKINGS
    patterns: tuple[str, ...] = PATTERNS
    kernels: tuple[str, ...] = ()
    matrix: str | None = None
    repeats: int = 5
    seed: int = 1
    sweep_s: float = 0.0

    def __post_init__(self) -> None:
        if self.nbytes < MIN_BYTES:
            raise InvalidSpecError(
                f"x must have at least {MIN_BYTES // KIB} KiB", had=f"{self.nbytes} bytes"
            )
        if not 0 <= self.seed <= _MAX_SEED:
            raise InvalidSpecError(
                "seed out of range", needed=f"0 to {_MAX_SEED}", had=str(self.seed)
            )
        for what, count in (("gathers", self.gathers), ("repeats", self.repeats)):
            if count < 1:
                raise InvalidSpecError(f"{what} must be at least 1", had=str(count))
        if not 0 <= self.sweep_s <= MAX_SWEEP_S:
            raise InvalidSpecError(
                "a sweep takes a limited time",
                needed=f"up to {MAX_SWEEP_S} seconds",
                had=f"{self.sweep_s:g}",
            )
        _check_names("backing", self.backings, BACKINGS)
        _check_names("pattern", self.patterns, PATTERNS)
        _check_names("kernel", self.kernels, tuple(KERNELS))
        self._check_pairs()
        cpus = len(os.sched_getaffinity(0))
        if not self.workers or min(self.workers) < 1 or max(self.workers) > cpus:
            raise InvalidSpecError(
                "every worker needs a CPU of its own",
                needed=f"numbers from 1 to {cpus}",
                had=",".join(map(str, self.workers)) or "none",
            )

    def _check_pairs(self) -> None:
        """Refuse a kernel that no pattern needs, and a pattern that no kernel computes."""
        patterns = (*self.patterns, *((FILE_PATTERN,) if self.matrix is not None else ()))
        for name in self.kernels:
            if not any(kernel_of(pattern) in KERNELS[name] for pattern in patterns):
                raise InvalidSpecError(
                    f"kernel {name!r} computes none of the patterns {' '.join(patterns)}",
                    needed=f"kernels for {' and '.join(sorted(set(map(kernel_of, patterns))))}",
                    had=f"one for {' and '.join(KERNELS[name])}",
                )
        for pattern in patterns:
            if not kernel_names(self, pattern, kernel_of(pattern)):
                raise InvalidSpecError(
                    f"pattern {pattern!r} is computed by none of the kernels "
                    f"{' '.join(self.kernels)}",
                    needed=f"a kernel for {kernel_of(pattern)}",
                )

    @property
    def elements(self) -> int:
        """Elements of x."""
        return self.nbytes // 8

    @property
    def entries(self) -> int:
        """Stored entries to aim at in generated matrices."""
        return max(1, self.gathers // 2)


def default_workers(cpus: int | None = None) -> tuple[int, ...]:
    """1, 2, 4 and so on up to the CPUs of this process, at most 4."""
    available = len(os.sched_getaffinity(0)) if cpus is None else cpus
    most = min(available, MAX_DEFAULT_WORKERS)
    counts = {1, most, *(count for count in (2,) if count <= most)}
    return tuple(sorted(counts))


def kernel_of(pattern: str) -> str:
    """What a pattern computes: ``gather`` or ``matvec``."""
    return "gather" if pattern in GATHER_PATTERNS else "matvec"


def default_patterns(kernels: Sequence[str]) -> tuple[str, ...]:
    """All patterns that one of the chosen kernels computes; without a choice, all."""
    return tuple(
        pattern
        for pattern in PATTERNS
        if not kernels or any(kernel_of(pattern) in KERNELS.get(name, ()) for name in kernels)
    )


def kernel_names(options: BenchOptions, pattern: str, kernel: str) -> tuple[str, ...]:
    """Names of :data:`KERNELS` to measure for a pattern, those without the kernel left out."""
    chosen = options.kernels
    if not chosen:
        chosen = ("hugepool", "scipy", "numpy") if pattern == "random" else ("hugepool", "scipy")
    return tuple(name for name in chosen if kernel in KERNELS[name])


def _check_names(what: str, names: tuple[str, ...], choices: tuple[str, ...]) -> None:
    for name in names:
        if name not in choices:
            raise InvalidSpecError(f"unknown {what} {name!r}", needed="one of " + " ".join(choices))
