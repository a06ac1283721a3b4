"""What repeated timings allow to be said: quartiles, paired ratios, and when to say nothing.

Page kinds are compared by *pairs*: round by round, the time on 4 KiB pages over the
time on the other pages, because a disturbance of a shared machine lasts longer than
a round and hits both. The interval of the median ratio is taken from order
statistics (the sign test turned round), which assumes nothing about how times are
distributed.

Two runs have no rounds in common: they are compared by all pairs of a round of each
(:func:`unpaired_speedup`), with the interval that the Mann-Whitney test turned round gives.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.93
"""Least coverage of the interval of a median ratio. Five rounds reach 0.9375 and so suffice."""

MIN_ROUNDS = 5
"""Rounds below which no interval of this coverage exists."""

RUN_CONFIDENCE = 0.99
"""Least coverage of the interval between two runs: a comparison asks of many cells at once, and
nobody is to be sent after what chance has marked. Five rounds of each reach 0.992."""

# Additions to count the arrangements of two samples; 60 rounds of each are within it.
_MOST_COUNTING = 250_000

RULE = (
    "A speed-up is the median of the rounds' paired ratios; the range is its sign-test interval "
    f"(at least {100 * CONFIDENCE:.0f} %). It is called not significant when that range "
    "includes 1, when the ratios' own interquartile range is wider than their distance from 1 "
    f"(both as logarithms), or after fewer than {MIN_ROUNDS} rounds."
)

RUN_RULE = (
    "Ratio: old time over new, so above 1 the new run is faster: the median of all pairs of one "
    "round of each run (Hodges and Lehmann), with the interval that the Mann-Whitney test gives it "
    f"(at least {100 * RUN_CONFIDENCE:.0f} %). Faster or slower is said only where that interval "
    "leaves out 1 and the ratio is farther from 1 than the interquartile range of either run's "
    f"rounds (all as logarithms); never after fewer than {MIN_ROUNDS} rounds. This knows the noise "
    "within the two runs. What differs from one start of a machine to the next it cannot know: "
    "look at the limits of the machine, and measure twice."
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


def unpaired_speedup(old: Sequence[float], new: Sequence[float]) -> Speedup:
    """Compare the same cell of two runs, whose rounds have nothing to do with each other.

    Raises
    ------
    ValueError
        No samples, or a time is not positive.
    """
    if not old or not new:
        raise ValueError("each run must have at least one sample")
    if min(*old, *new) <= 0:
        raise ValueError("times must be positive")
    ratios = sorted(before / after for before in old for after in new)
    rank = run_interval_rank(len(old), len(new))
    low, high = ratios[rank or 0], ratios[-1 - (rank or 0)]
    ratio = statistics.median(ratios)
    noise = max(Spread.of([math.log(sample) for sample in samples]).iqr for samples in (old, new))
    one_sided = low > 1.0 or high < 1.0
    rounds = min(len(old), len(new))
    enough = rank is not None and rounds >= MIN_ROUNDS
    significant = enough and one_sided and abs(math.log(ratio)) > noise
    return Speedup(ratio, low, high, rounds, significant)


@functools.cache
def run_interval_rank(old: int, new: int) -> int | None:
    """How many pairs to leave out at each end for an interval of the ratio; None if too few.

    The k-th smallest and k-th largest of the pairs enclose the shift between two samples with
    probability ``1 - 2 * P(U < k)`` of Mann and Whitney's U. Its distribution is counted, and
    of more than 60 rounds each it is taken as normal.
    """
    old, new = sorted((old, new))
    pairs = old * new
    tail = (1 - RUN_CONFIDENCE) / 2
    if old * pairs > _MOST_COUNTING:
        deviation = math.sqrt(pairs * (old + new + 1) / 12)
        below = pairs / 2 - 0.5 + statistics.NormalDist().inv_cdf(tail) * deviation
        return math.floor(below) if below >= 0 else None
    arrangements = math.comb(old + new, old)
    found = None
    seen = 0
    for outside, ways in enumerate(_mann_whitney_counts(old, new)):
        seen += ways
        if seen > tail * arrangements:
            break
        found = outside
    return found


def _mann_whitney_counts(old: int, new: int) -> list[int]:
    """In how many arrangements U is 0, 1, 2 and so on: Gauss's binomial coefficients."""
    counts = [1] + [0] * (old * new)
    for step in range(1, old + 1):
        for place in range(len(counts) - 1, new + step - 1, -1):
            counts[place] -= counts[place - new - step]
        for place in range(step, len(counts)):
            counts[place] += counts[place - step]
    return counts
