"""A failure made shorter: the same failure with as few moves as a while of trying finds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from simulation.world import Settings, World

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that ended badly.

    Parameters
    ----------
    settings, moves
        Which run.
    error
        Kind and message.
    where
        The check that failed: file and line.
    step
        Event of the coordinator that it failed at.
    """

    settings: Settings
    moves: tuple[int, ...]
    error: str
    where: str
    step: int


def failure_of(settings: Settings, moves: Sequence[int]) -> Failure | None:
    """Run; None if all is well."""
    made: list[int] = []

    def counted() -> object:
        for move in moves:
            made.append(move)
            yield move

    world = World(settings)
    try:
        world.run(counted())  # type: ignore[arg-type]
    except Exception as error:  # whatever it is, it is the finding
        text = f"{type(error).__name__}: {error}"
        return Failure(settings, tuple(made), text, _where(error), world.steps)
    return None


def shrunk(failure: Failure, *, patience_s: float = PATIENCE_S) -> Failure:
    """The same check failing after fewer moves.

    Chunks of moves are left out, large ones first, for as long as that makes a difference
    or time is left.
    """
    deadline = time.monotonic() + patience_s
    chunk = max(len(failure.moves) // 2, 1)
    while True:
        found = False
        stop = len(failure.moves)
        while stop > 0:
            start = max(stop - chunk, 0)
            if time.monotonic() > deadline:
                return failure
            fewer = failure_of(failure.settings, failure.moves[:start] + failure.moves[stop:])
            if fewer is not None and fewer.where == failure.where:
                failure = fewer
                found = True
            stop = min(start, len(failure.moves))
        if chunk == 1 and not found:
            return failure
        chunk = max(chunk // 2, 1)


def story_of(failure: Failure) -> list[str]:
    """What happens in a run, told again."""
    story: list[str] = []
    try:
        World(failure.settings, story).run(failure.moves)
    except Exception as error:  # as the first time
        story.append(f"{type(error).__name__}: {error}")
    return story


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
