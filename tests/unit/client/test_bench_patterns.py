"""Index patterns: in range, seeded, and of the shape that their names promise."""

from __future__ import annotations

import numpy as np
import pytest

from hugepool.bench.patterns import GATHER_PATTERNS, make_indices, strided
from hugepool_common.errors import InvalidSpecError


@pytest.mark.parametrize("pattern", GATHER_PATTERNS)
@pytest.mark.parametrize(("elements", "gathers"), [(1, 5), (7, 100), (1000, 1000), (4096, 0)])
def test_indices_are_int64_and_inside(pattern: str, elements: int, gathers: int) -> None:
    found = make_indices(pattern, elements, gathers, seed=3)
    assert (found.dtype, found.shape) == (np.dtype(np.int64), (gathers,))
    assert gathers == 0 or (found.min() >= 0 and found.max() < elements)


@pytest.mark.parametrize("pattern", ["random", "zipf"])
def test_a_seed_decides_everything(pattern: str) -> None:
    first, again, other = (make_indices(pattern, 10_000, 5_000, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_random_covers_the_array_evenly() -> None:
    counts = np.bincount(make_indices("random", 16, 160_000, 1), minlength=16)
    assert counts.min() > 9_500
    assert counts.max() < 10_500


def test_stride_takes_every_eighth_and_comes_round_to_all() -> None:
    found = make_indices("stride", 64, 64)
    assert found[:9].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1]
    assert sorted(found.tolist()) == list(range(64))


def test_stride_stays_inside_an_array_that_it_does_not_divide() -> None:
    assert strided(5, 7, 2).tolist() == [0, 2, 4, 1, 3, 4, 0]


def test_sequential_wraps_around() -> None:
    assert make_indices("sequential", 4, 6).tolist() == [0, 1, 2, 3, 0, 1]


def test_zipf_falls_as_one_over_rank_and_is_spread() -> None:
    elements, gathers = 1 << 16, 400_000
    places, counts = np.unique(make_indices("zipf", elements, gathers, 1), return_counts=True)
    order = np.argsort(counts)[::-1]
    ranked = counts[order]
    # P(k) = log((k + 2) / (k + 1)) / log(n + 1)
    expected = gathers * np.log((np.arange(8) + 2) / (np.arange(8) + 1)) / np.log(elements + 1)
    assert np.allclose(ranked[:8], expected, rtol=0.05)
    hot = np.sort(places[order[:32]])
    assert np.diff(hot).min() > 8, "hot elements must not share a cache line"


def test_no_gather_from_nothing() -> None:
    with pytest.raises(InvalidSpecError, match="at least one element"):
        make_indices("random", 0, 1)
    with pytest.raises(InvalidSpecError, match="no gather pattern"):
        make_indices("spiral", 1, 1)
