"""Every decision of one move comes out of one integer.

A run of the simulation is a list of such integers, one a move. It follows from a
seed; and a list with some of them left out is a run too, so a failure can be made
shorter by leaving moves out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

BITS = 96
"""Enough for every decision of a move; one that runs out goes on with zeros."""


class Chance:
    """The decisions of the move under way."""

    __slots__ = ("bits",)

    def __init__(self) -> None:
        self.bits = 0

    def pick(self, count: int) -> int:
        """A number below `count`; 0 is what happens when nothing is left to decide with."""
        self.bits, picked = divmod(self.bits, count)
        return picked

    def one_in(self, count: int) -> bool:
        """True once in so many times, and never when nothing is left to decide with."""
        self.bits, picked = divmod(self.bits, count)
        return picked == count - 1

    def of(self, choices: Sequence[T]) -> T:
        """One of them."""
        self.bits, picked = divmod(self.bits, len(choices))
        return choices[picked]


def moves_of(seed: int, count: int) -> Iterator[int]:
    """The moves that follow from a seed."""
    source = random.Random(seed)
    return (source.getrandbits(BITS) for _ in range(count))
