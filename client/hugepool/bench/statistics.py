"""What repeated timings allow to be said: quartiles, paired ratios, and when to say nothing.

Page kinds are compared by *pairs*: round by round, the time on 4 KiB pages over the
time on the other pages, because a disturbance of a shared machine lasts longer than
a round and hits both. The interval of the median ratio is taken from order
statistics (the sign test turned round), which assumes nothing about how times are
distributed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.93
"""Least coverage of the interval of a median ratio. Five rounds reach 0.9375 and so suffice."""

MIN_ROUNDS = 5
"""Rounds below which no interval of this coverage exists."""

RULE = (
    "A speed-up is the median of the rounds' paired ratios; the range is its sign-test interval "
    f"(at least {100 * CONFIDENCE:.0f} %). It is called not significant when that range "
    "includes 1, when the ratios' own interquartile range is wider than their distance from 1 "
    f"(both as logarithms), or after fewer than {MIN_ROUNDS} rounds."
)


class Spread(msgspec.Struct, frozen=True):
    """Median, quartiles and extremes of samples, in their unit."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise at least one sample; quartiles are interpolated between samples."""
        ordered = sorted(samples)
        return cls(
            statistics.median(ordered),
            quantile(ordered, 0.25),
            quantile(ordered, 0.75),
            ordered[0],
            ordered[-1],
        )

    @property
    def iqr(self) -> float:
        """Distance between the quartiles."""
        return self.upper_quartile - self.lower_quartile


def quantile(ordered: Sequence[float], share: float) -> float:
    """The `share` quantile of sorted samples, linear between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class Speedup(msgspec.Struct, frozen=True):
    """How much faster one page kind is than another, and whether the rounds support it.

    Parameters
    ----------
    ratio
        Median of the paired ratios; above 1 is faster than the baseline. None when refused.
    low, high
        Interval of that median; the extremes when there are too few rounds for one.
    rounds
        Number of pairs.
    significant
        Whether the interval exists and leaves out 1, and the ratios lie closer to each
        other than to 1.
    refused
        Why there is no ratio at all; empty when there is one.
    """

    ratio: float | None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    significant: bool = False
    refused: str = ""

    @classmethod
    def refusal(cls, reason: str) -> Speedup:
        """No claim, and why."""
        return cls(None, refused=reason)


def paired_speedup(baseline: Sequence[float], samples: Sequence[float]) -> Speedup:
    """Compare two cells by rounds; element k of both comes from round k.

    Raises
    ------
    ValueError
        Lengths differ, or a time is not positive.
    """
    if len(baseline) != len(samples) or not samples:
        raise ValueError("paired samples must be equally many, and at least one")
    if min(*baseline, *samples) <= 0:
        raise ValueError("times must be positive")
    ratios = sorted(slow / fast for slow, fast in zip(baseline, samples, strict=True))
    rank = interval_rank(len(ratios))
    low, high = ratios[rank or 0], ratios[-1 - (rank or 0)]
    logs = Spread.of([math.log(ratio) for ratio in ratios])
    one_sided = low > 1.0 or high < 1.0
    significant = rank is not None and one_sided and abs(logs.median) > logs.iqr
    return Speedup(statistics.median(ratios), low, high, len(ratios), significant)


def interval_rank(rounds: int) -> int | None:
    """How many samples to leave out at each end for an interval of the median; None if too few.

    The k-th smallest and k-th largest of n samples enclose the median with probability
    ``1 - 2 * P(Binomial(n, 1/2) < k)``.
    """
    found = None
    tail = 0.0
    for outside in range(rounds // 2):
        tail += math.comb(rounds, outside) / 2**rounds
        if 1 - 2 * tail < CONFIDENCE:
            break
        found = outside
    return found
