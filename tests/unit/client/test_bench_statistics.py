"""When repeated timings allow a claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hugepool.bench.statistics import (
    CONFIDENCE,
    MIN_ROUNDS,
    Spread,
    interval_rank,
    paired_speedup,
    quantile,
)


def test_spread_of_samples() -> None:
    found = Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.minimum, found.maximum) == (3.0, 1.0, 5.0)
    assert (found.lower_quartile, found.upper_quartile, found.iqr) == (2.0, 4.0, 2.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


def test_quantiles_are_numpys() -> None:
    samples = sorted([0.3, 8.0, 1.5, 2.25, 9.0, 4.0])
    for share in (0.0, 0.1, 0.25, 0.5, 0.99, 1.0):
        assert math.isclose(quantile(samples, share), np.quantile(samples, share))


def test_a_steady_gain_is_significant_and_paired() -> None:
    # Both moved by 5x over the rounds; the pairs tell nevertheless.
    slow = [100.0, 200.0, 300.0, 400.0, 500.0]
    found = paired_speedup(slow, [time / 2 for time in slow])
    assert found.ratio == 2.0
    assert (found.low, found.high, found.rounds) == (2.0, 2.0, 5)
    assert found.significant


def test_a_steady_loss_is_significant_too() -> None:
    found = paired_speedup([10.0, 11.0, 12.0, 13.0, 14.0], [20.0, 22.5, 24.0, 26.5, 28.0])
    assert found.significant
    assert found.high is not None
    assert found.high < 1


def test_one_pair_on_the_other_side_of_five_spoils_the_claim() -> None:
    assert not paired_speedup([20.0, 20.0, 20.0, 20.0, 9.0], [10.0] * 5).significant


def test_a_gain_smaller_than_its_own_scatter_is_no_claim() -> None:
    found = paired_speedup([10.1, 10.2, 10.3, 25.0, 24.0], [10.0] * 5)
    assert found.low is not None
    assert found.low > 1, "all on one side"
    assert not found.significant


def test_equal_times_are_no_claim() -> None:
    assert not paired_speedup([5.0] * 9, [5.0] * 9).significant


def test_few_rounds_are_never_enough() -> None:
    for rounds in range(1, MIN_ROUNDS):
        assert interval_rank(rounds) is None
        found = paired_speedup([50.0] * rounds, [1.0] * rounds)
        assert (found.ratio, found.significant) == (50.0, False)
    assert interval_rank(MIN_ROUNDS) == 0


@pytest.mark.parametrize("rounds", [5, 8, 9, 15, 30])
def test_the_interval_has_its_coverage_and_no_more_than_needed(rounds: int) -> None:
    def coverage(rank: int) -> float:
        outside: int = sum(math.comb(rounds, k) for k in range(rank + 1))
        return 1 - 2 * outside / float(2**rounds)

    rank = interval_rank(rounds)
    assert rank is not None
    assert coverage(rank) >= CONFIDENCE > coverage(rank + 1)


def test_noise_alone_is_rarely_called_a_gain() -> None:
    generator = np.random.default_rng(5)
    claims = sum(
        paired_speedup(*generator.lognormal(0.0, 0.2, (2, 5)).tolist()).significant
        for _ in range(500)
    )
    assert claims < 500 * (1 - CONFIDENCE)


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="equally many"):
        paired_speedup([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="equally many"):
        paired_speedup([], [])
    with pytest.raises(ValueError, match="positive"):
        paired_speedup([1.0], [0.0])
