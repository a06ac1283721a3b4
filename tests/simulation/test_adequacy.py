"""The simulation notices when the state machine, or the daemon around it, is broken.

Those breakages that take many worlds to be noticed are tried where
``HUGEPOOL_SIMULATION_ADEQUACY=all`` is set.
"""

from __future__ import annotations

import os
from itertools import count

import pytest

from simulation.breakages import BREAKAGES, Breakage
from simulation.chance import moves_of
from simulation.soak import MOVES
from simulation.world import World, settings_of

MOST_STEPS = 1_000_000
EVERYTHING = os.environ.get("HUGEPOOL_SIMULATION_ADEQUACY") == "all"
TRIED = [one for one in BREAKAGES if EVERYTHING or not one.is_rare]


def steps_to_notice() -> int:
    """Steps of worlds that end well, and of the one that does not."""
    steps = 0
    for seed in count(1):
        world = World(settings_of(seed, moves=MOVES))
        try:
            world.run(moves_of(seed, MOVES))
        except Exception:  # whatever it is: it was noticed
            return steps + world.steps
        steps += world.steps
        if steps > MOST_STEPS:
            return steps
    raise AssertionError("there is no end of seeds")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("breakage", TRIED, ids=lambda breakage: breakage.name)
def test_a_breakage_is_noticed(breakage: Breakage) -> None:
    with breakage.applied():
        assert steps_to_notice() <= MOST_STEPS


def test_a_breakage_is_mended_afterwards() -> None:
    for breakage in BREAKAGES:
        before = breakage.broken.__code__
        with breakage.applied():
            assert breakage.broken.__code__ is not before
        assert breakage.broken.__code__ is before
