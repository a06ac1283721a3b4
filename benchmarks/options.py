"""Command-line choices that all programs have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hugepool_common.errors import HugepoolError
from hugepool_common.units import parse_bytes

PAGES = ("2M", "4K")
"""Page kinds, the one first whose memory peers get a copy of their own in."""


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of one run.

    Parameters
    ----------
    nbytes
        ``--size``; what is counted is told by each program.
    rounds
        Measured rounds.
    workers
        Numbers of processes, rising.
    pages
        Of :data:`PAGES`.
    peers
        Words, one of which must be in a peer's name for it to take part; empty for all.
    seed
        Of everything random.
    json, plot
        Files to write, or None.
    extra
        What only one program knows, by name.
    """

    nbytes: int
    rounds: int
    workers: tuple[int, ...]
    pages: tuple[str, ...]
    peers: tuple[str, ...]
    seed: int
    json: str | None
    plot: str | None
    extra: argparse.Namespace

    def wants(self, peer: str) -> bool:
        """Whether a peer was asked for."""
        return not self.peers or any(word in peer for word in self.peers)


def read_options(
    description: str | None,
    *,
    size: str,
    size_help: str,
    rounds: int = 7,
    oversubscribed: bool = False,
    add: Callable[[argparse.ArgumentParser], object] | None = None,
    arguments: Sequence[str] | None = None,
) -> Options:
    """Parse the command line; a bad one ends the program with status 2.

    Parameters
    ----------
    description
        The program's docstring.
    size, size_help
        Default of ``--size`` and what it counts.
    rounds
        Default of ``--rounds``.
    oversubscribed
        Whether there may be more workers than CPUs.
    add
        Adds the program's own options.
    arguments
        Instead of ``sys.argv``.
    """
    cpus = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=_nbytes, default=size, help=f"{size_help} ({size})")
    parser.add_argument("--rounds", type=_count, default=rounds, help=f"({rounds})")
    parser.add_argument(
        "--workers", type=_counts, default=tuple(sorted({1, cpus})), help="such as 1,2"
    )
    parser.add_argument("--pages", type=_pages, default=PAGES, help="of 2M,4K")
    parser.add_argument(
        "--peers", type=_words, default=(), help="only peers whose names have one of these words"
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random (1)")
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG there; needs Matplotlib")
    if add is not None:
        add(parser)
    chosen = parser.parse_args(arguments)
    if max(chosen.workers) > cpus and not oversubscribed:
        parser.error(f"every worker needs a CPU of its own, and there are {cpus}")
    return Options(
        nbytes=chosen.size,
        rounds=chosen.rounds,
        workers=chosen.workers,
        pages=chosen.pages,
        peers=chosen.peers,
        seed=chosen.seed,
        json=chosen.json,
        plot=chosen.plot,
        extra=chosen,
    )


def _nbytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except HugepoolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    number = int(float(text))
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(word) for word in text.split(",")}))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _pages(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not words or not set(words) <= set(PAGES):
        raise argparse.ArgumentTypeError(f"{text!r} is not of {','.join(PAGES)}")
    return tuple(page for page in PAGES if page in words)
