"""Run many worlds: ``scripts/soak simulate [--steps N] [--seed S] [--minutes M]``.

Worlds are independent, each with a seed of its own, so they run in as many processes
as there are CPUs. A world that fails is made shorter and told in full, with the one
command that runs it again. The report is JSON, on stdout or in a file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from simulation.chance import moves_of
from simulation.shrinking import Failure, failure_of, shrunk, story_of
from simulation.world import World, settings_of

MOVES = 2000
WORLDS_AT_ONCE = 16
"""Worlds that a process runs before it reports."""

PROGRESS_S = 5.0
STORY_LINES = 150
STORY_COLUMNS = 300
MOST_FAILURES = 5


@dataclass(slots=True)
class Tally:
    """What some worlds came to."""

    worlds: int = 0
    steps: int = 0
    lives: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    removals: Counter[str] = field(default_factory=Counter)
    met: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed_seeds: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what others came to."""
        self.worlds += other.worlds
        self.steps += other.steps
        self.lives += other.lives
        self.faults += other.faults
        self.outcomes += other.outcomes
        self.removals += other.removals
        self.met += other.met
        self.failed_seeds += other.failed_seeds

    def add_world(self, world: World) -> None:
        """Take in one world that has come to its end."""
        self.worlds += 1
        self.steps += world.steps
        self.lives += world.lives
        self.faults += world.faults_seen
        self.outcomes += world.outcomes
        self.removals += world.removals
        self.met += world.met


def run_worlds(first_seed: int, count: int, moves: int) -> Tally:
    """Run worlds of consecutive seeds."""
    tally = Tally()
    for seed in range(first_seed, first_seed + count):
        settings = settings_of(seed, moves=moves)
        world = World(settings)
        try:
            world.run(moves_of(seed, moves))
        except Exception:  # told in full by whoever runs this seed again
            tally.failed_seeds.append(seed)
        tally.add_world(world)
    return tally


def _begin_process() -> None:
    """Worlds make little rubbish and keep much: looking for it took 5 % of the time."""
    gc.freeze()
    gc.set_threshold(20_000)


def simulate(
    *, steps: int, first_seed: int, moves: int, processes: int, deadline: float | None
) -> tuple[Tally, float]:
    """Run worlds until they have made so many steps, or time is up, or too many failed."""
    tally = Tally()
    began = told = time.monotonic()
    with ProcessPoolExecutor(processes, initializer=_begin_process) as pool:
        seeds = iter(range(first_seed, sys.maxsize, WORLDS_AT_ONCE))
        running: set[Future[Tally]] = {
            pool.submit(run_worlds, next(seeds), WORLDS_AT_ONCE, moves) for _ in range(processes)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tally.add(future.result())
            now = time.monotonic()
            if now - told > PROGRESS_S:
                told = now
                _say(f"{tally.steps:,} steps, {tally.worlds:,} worlds, {now - began:.0f} s")
            over = tally.steps >= steps or len(tally.failed_seeds) >= MOST_FAILURES
            if not over and (deadline is None or now < deadline):
                running |= {
                    pool.submit(run_worlds, next(seeds), WORLDS_AT_ONCE, moves) for _ in done
                }
    return tally, time.monotonic() - began


def failure_of_seed(seed: int, moves: int) -> Failure | None:
    """Run what follows from a seed; None if all is well."""
    return failure_of(settings_of(seed, moves=moves), tuple(moves_of(seed, moves)))


def describe(failure: Failure, moves: int) -> Iterator[str]:
    """A failure, for a person: what, where, and how to see it again."""
    story = story_of(failure)
    yield f"seed {failure.settings.seed}, commit {commit()}, step {failure.step}"
    yield f"{failure.where}: {failure.error}"
    yield f"{failure.settings}"
    if len(story) > STORY_LINES:
        yield f"... {len(story) - STORY_LINES} lines left out"
    yield from (line[:STORY_COLUMNS] for line in story[-STORY_LINES:])
    yield f"again: scripts/soak simulate --replay {failure.settings.seed} --moves {moves}"


def commit() -> str:
    """Of the source tree."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def report_of(tally: Tally, seconds: float, arguments: argparse.Namespace) -> dict[str, object]:
    """The report, ready for JSON."""
    return {
        "commit": commit(),
        "first_seed": arguments.seed,
        "moves_a_world": arguments.moves,
        "processes": arguments.processes,
        "worlds": tally.worlds,
        "steps": tally.steps,
        "seconds": round(seconds, 1),
        "steps_a_second": round(tally.steps / seconds) if seconds else 0,
        "coordinators": tally.lives,
        "failed_seeds": sorted(tally.failed_seeds),
        "faults": dict(tally.faults.most_common()),
        "removals": dict(tally.removals.most_common()),
        "outcomes": {f"{a}: {b}": n for (a, b), n in sorted(tally.outcomes.items())},
        "met": {f"{a} at {b}": n for (a, b), n in sorted(tally.met.items())},
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak simulate", description=__doc__)
    parser.add_argument("--steps", type=lambda text: int(float(text)), default=100_000_000)
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1, help="of the first world")
    parser.add_argument("--moves", type=int, default=MOVES, help="of each world")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--report", help="file for the report; stdout without")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one world and tell it")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The command."""
    options = parsed(arguments)
    if options.replay is not None:
        failure = failure_of_seed(options.replay, options.moves)
        if failure is None:
            print(f"seed {options.replay}: all is well")
            return 0
        print(*describe(shrunk(failure), options.moves), sep="\n")
        return 1
    deadline = None
    if options.minutes is not None:
        deadline = time.monotonic() + 60 * options.minutes
    tally, seconds = simulate(
        steps=options.steps,
        first_seed=options.seed,
        moves=options.moves,
        processes=options.processes,
        deadline=deadline,
    )
    text = json.dumps(report_of(tally, seconds, options), indent=2)
    if options.report:
        Path(options.report).write_text(text + "\n")
    else:
        print(text)
    for seed in sorted(tally.failed_seeds)[:1]:
        failure = failure_of_seed(seed, options.moves)
        if failure is not None:
            print(*describe(shrunk(failure), options.moves), sep="\n", file=sys.stderr)
    return 1 if tally.failed_seeds else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
