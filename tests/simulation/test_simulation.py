"""Any order of messages, deaths, kills and late outcomes leaves everything whole.

The worlds of this file are seeded: a failure names the seed that shows it again, and
the command. ``scripts/soak simulate`` runs as many more as there is time for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hugepool_server.leases import Leases, Session
from simulation.chance import moves_of
from simulation.shrinking import failure_of, shrunk, story_of
from simulation.soak import MOVES, describe, failure_of_seed, simulate
from simulation.world import Settings

HERE = Path(__file__).parent
STEPS = int(float(os.environ.get("HUGEPOOL_SIMULATION_STEPS", "1e6")))
"""Events that the coordinators of one test run handle."""

ENOUGH_STEPS = 200_000
"""For every fault to come up, and every request to be granted at times."""

FIRST_SEED = int(os.environ.get("HUGEPOOL_SIMULATION_SEED", "1"))


def kept_seeds() -> list[tuple[int, int]]:
    """Seeds that once failed, with their number of moves."""
    lines = (HERE / "seeds.txt").read_text().splitlines()
    fields = [line.partition("#")[0].split() for line in lines]
    return [(int(seed), int(moves)) for seed, moves in filter(None, fields)]


@pytest.mark.parametrize(("seed", "moves"), kept_seeds())
def test_what_failed_once_does_not_fail_again(seed: int, moves: int) -> None:
    failure = failure_of_seed(seed, moves)
    if failure is not None:
        pytest.fail("\n".join(describe(shrunk(failure), moves)))


@pytest.mark.timeout(1200)
def test_many_worlds() -> None:
    tally, _ = simulate(
        steps=STEPS,
        first_seed=FIRST_SEED,
        moves=MOVES,
        processes=len(os.sched_getaffinity(0)),
        deadline=None,
    )
    if tally.failed_seeds:
        failure = failure_of_seed(min(tally.failed_seeds), MOVES)
        assert failure is not None, "a run depends on more than its seed"
        pytest.fail("\n".join(describe(shrunk(failure), MOVES)))
    assert tally.steps >= STEPS
    if STEPS >= ENOUGH_STEPS:
        assert tally.faults.keys() == FAULTS
        granted = {name for name, outcome in tally.outcomes if GRANTED[name] == outcome}
        assert granted == set(GRANTED)
        assert tally.removals.keys() >= REASONS


FAULTS = {
    "client killed",
    "client replaced by exec",
    "client stopped",
    "clock jumped",
    "connection lost",
    "coordinator killed",
    "coordinator stopped in order",
    "kill in a step",
    "kill in recovery",
    "link cut",
    "making failed",
    "manifest refused",
    "message dropped",
    "message duplicated",
    "message of another process",
    "messages reordered",
    "publish failed",
    "seal failed",
    "segment removed from outside",
    "send failed",
    "step failed",
    "token refused",
    "worker killed",
    "worker stopped",
}

GRANTED = {
    "Attach": "Attached",
    "Bind": "Bound",
    "Cancel": "Cancelled",
    "CreateArray": "ArrayCreated",
    "Describe": "Described",
    "Destroy": "Destroyed",
    "Detach": "Detached",
    "Goodbye": "GoodbyeSaid",
    "Hello": "Welcome",
    "List": "Listed",
    "PartDone": "PartAccepted",
    "PartFailed": "PartAccepted",
    "Publish": "Published",
    "PublishAll": "PublishedAll",
    "RegisterWorker": "WorkerRegistered",
    "Renew": "Renewed",
    "ReportTiming": "TimingReported",
    "Resume": "Resumed",
    "Seal": "Sealed",
    "Stats": "Counted",
    "SubmitJob": "JobDone",
}


REASONS = {
    "destroyed",
    "its owner ended before it was sealed",
    "not wanted any more",
    "older than what is removed",
    "superseded",
    "what it was made of is gone",
}

DIGEST = """
from simulation.chance import moves_of
from simulation.world import World, settings_of

story = []
World(settings_of(11, moves=1500), story).run(moves_of(11, 1500))
world = World(settings_of(11, moves=1500), [])
world.run(moves_of(11, 1500))
assert world.story == story
print(len(story), world.digest())
"""


def test_the_same_seed_makes_the_same_world() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": python_path()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(told) == 1
    assert int(next(iter(told)).split()[0]) > 500


def python_path() -> str:
    """Where this process finds what it imports."""
    return os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])


def test_a_failure_is_made_shorter_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: Leases, session: Session, number: int) -> None:
        """Give back the lowest lease instead of the one that was named."""
        release(self, session, min(session.leases, default=number))

    release = Leases.release
    monkeypatch.setattr(Leases, "release", taken)
    settings = Settings(seed=1, moves=4000, clients=2, workers=0, faults=0)
    failure = failure_of(settings, tuple(moves_of(1, 4000)))
    assert failure is not None
    short = shrunk(failure, patience_s=200)
    assert short.where == failure.where
    assert len(short.moves) < len(failure.moves) / 3
    story = story_of(short)
    assert story[-1] == short.error
    assert any("Detach" in line for line in story)
