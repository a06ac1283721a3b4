"""Index arrays for gathers, made from a seed: the same seed gives the same array everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hugepool_common.errors import InvalidSpecError

Indices: TypeAlias = npt.NDArray[np.int64]

STRIDE = 8
"""Elements between two gathers of the ``stride`` pattern: one float64 of every 64-byte line."""

_BLOCK = 1 << 20


def make_indices(pattern: str, elements: int, gathers: int, seed: int = 0) -> Indices:
    """Indices ``0 <= i < elements`` in the order in which a gather uses them.

    Parameters
    ----------
    pattern
        One of :data:`GATHER_PATTERNS`:
        ``random`` is uniform; ``stride`` takes every 8th element and, at the end, begins
        again one element later; ``zipf`` has frequencies that fall as 1/rank, its ranks
        spread over the whole array; ``sequential`` counts up and wraps around.
    elements
        Length of the array that is gathered from.
    gathers
        Number of indices.
    seed
        Of NumPy's PCG64.

    Returns
    -------
    numpy.ndarray
        int64, shape (gathers,).

    Raises
    ------
    InvalidSpecError
        Unknown pattern, or ``elements < 1`` or ``gathers < 0``.
    """
    if elements < 1 or gathers < 0:
        raise InvalidSpecError(
            "a gather needs at least one element to take",
            had=f"{elements} elements, {gathers} taken",
        )
    if pattern not in GATHER_PATTERNS:
        raise InvalidSpecError(
            f"{pattern!r} is no gather pattern", needed=" or ".join(GATHER_PATTERNS)
        )
    return GATHER_PATTERNS[pattern](elements, gathers, seed)


def strided(elements: int, gathers: int, stride: int) -> Indices:
    """Every `stride`-th element, beginning again one element later when the end is reached."""
    step = max(1, min(stride, elements))
    lap = -(-elements // step)  # how many a lap over the array takes
    numbers = np.arange(gathers, dtype=np.int64)
    found = numbers % lap
    found *= step
    numbers //= lap
    numbers %= step
    found += numbers
    # the last one of a shifted lap may stand past the end: it takes the last element
    return np.minimum(found, elements - 1, out=found)


def _random(elements: int, gathers: int, seed: int) -> Indices:
    return np.random.default_rng(seed).integers(0, elements, size=gathers, dtype=np.int64)


def _stride(elements: int, gathers: int, seed: int) -> Indices:
    return strided(elements, gathers, STRIDE)


def _sequential(elements: int, gathers: int, seed: int) -> Indices:
    found = np.arange(gathers, dtype=np.int64)
    found %= elements
    return found


def _zipf(elements: int, gathers: int, seed: int) -> Indices:
    # P(rank k) = log((k + 2) / (k + 1)) / log(n + 1), which is 1/k but for the first few
    # ranks and needs no table of n weights. A multiplier without a common divisor with n
    # sends every rank to a place of its own, so that hot elements share no cache line.
    generator = np.random.default_rng(seed)
    multiplier = _coprime(elements)
    found = np.empty(gathers, np.int64)
    for start in range(0, gathers, _BLOCK):
        block = found[start : start + _BLOCK]
        ranks = np.exp(generator.random(len(block)) * math.log(elements + 1)) - 1
        np.minimum(ranks.astype(np.int64), elements - 1, out=block)
        block[:] = (block.astype(np.uint64) * np.uint64(multiplier)) % np.uint64(elements)
    return found


def _coprime(elements: int) -> int:
    """An odd number near the golden section of `elements`, below 2**32, without common divisor."""
    candidate = max(1, min(int(elements * 0.6180339887), (1 << 31) - 1)) | 1
    while math.gcd(candidate, elements) != 1:
        candidate += 2
    return candidate


GATHER_PATTERNS: dict[str, Callable[[int, int, int], Indices]] = {
    "random": _random,
    "stride": _stride,
    "zipf": _zipf,
    "sequential": _sequential,
}
"""Pattern name to ``function(elements, gathers, seed)``."""
