"""Two runs of ``hugepool bench``: what has changed between them beyond the noise of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from hugepool.bench.results import (
    HUGE_ENOUGH,
    Benchmark,
    CellResult,
    Environment,
    OptionValue,
    SweepPoint,
)
from hugepool.bench.statistics import RUN_RULE, Spread, unpaired_speedup
from hugepool.bench.table import binary, percentage
from hugepool_common.errors import HugepoolError, InvalidSpecError
from hugepool_common.small_files import read_small_file

MOST_BYTES = 1 << 26
"""A run's JSON has some hundred kilobytes."""

FORMAT = 1
"""Number of the comparison's JSON layout."""

LIMIT = "limit"
SWEEP = "sweep"
_NS_PER_MS = 1_000_000
Verdict = Literal["faster", "slower", ""]
Difference: TypeAlias = OptionValue | dict[str, int] | dict[str, str]


class UnreadableRunError(HugepoolError, ValueError):
    """A file holds no run of ``hugepool bench`` that can be compared."""


class Key(msgspec.Struct, frozen=True, order=True):
    """What stands for the same measurement in both runs.

    Parameters
    ----------
    pattern
        Of a cell; ``limit`` for the machine's own limits, ``sweep`` for growing arrays.
    what
        Kernel, kind of limit, or size of x.
    """

    pattern: str
    what: str
    backing: str
    workers: int

    def __str__(self) -> str:
        return f"{self.pattern} {self.what} {self.backing} {self.workers}"


class Change(msgspec.Struct, frozen=True):
    """One measurement in both runs.

    Parameters
    ----------
    unit
        ``ns per gather``, ``ns per nnz``, or ``ms`` for one run of a limit.
    old, new
        Times of the rounds in that unit.
    ratio, low, high
        Old time over new, and its interval (or the extremes after too few rounds).
    rounds
        Of the run that has fewer.
    verdict
        ``faster`` or ``slower`` beyond the noise of both runs, else empty.
    note
        What else is not the same: the code that ran, or the pages that it got.
    """

    key: Key
    unit: str
    old: Spread
    new: Spread
    ratio: float
    low: float
    high: float
    rounds: int
    verdict: Verdict
    note: str


class Differing(msgspec.Struct, frozen=True):
    """A fact of the machine, the software or the options that the runs do not share."""

    what: str
    old: Difference
    new: Difference


class Comparison(msgspec.Struct, frozen=True):
    """Everything that two runs say together.

    Parameters
    ----------
    old_disturbed, new_disturbed
        Share of each run's rounds that were timed while others used the workers' CPUs.
    only_old, only_new
        Measurements without their like in the other run.
    other_inputs
        Measurements of the same name with other data, which are not compared.
    """

    old_started: str
    new_started: str
    old_disturbed: float
    new_disturbed: float
    changes: tuple[Change, ...]
    environment: tuple[Differing, ...]
    options: tuple[Differing, ...]
    only_old: tuple[Key, ...]
    only_new: tuple[Key, ...]
    other_inputs: tuple[Key, ...]
    rule: str
    format: int = FORMAT

    @property
    def marked(self) -> tuple[Change, ...]:
        """What differs beyond the noise."""
        return tuple(change for change in self.changes if change.verdict)

    def to_json(self) -> bytes:
        """Indented JSON, one trailing newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class _Measured(msgspec.Struct, frozen=True):
    """One measurement of one run, whichever table it is in."""

    samples_ns: tuple[int, ...]
    unit: str
    items: int
    inputs: str
    implementation: str
    huge_fraction: float | None = None


def read_run(path: str) -> Benchmark:
    """Read what ``hugepool bench --output`` (or ``--json``) wrote.

    Raises
    ------
    UnreadableRunError
        No regular file, too large, no JSON, another layout, or samples that no clock has told.
    OSError
        The file cannot be read.
    """
    remedy = "compare files of: hugepool bench --output FILE; see: hugepool bench --help"
    try:
        text = read_small_file(path, MOST_BYTES)
    except InvalidSpecError as error:
        raise UnreadableRunError(
            f"no run of hugepool bench: {error.message}",
            needed=error.needed,
            where=path,
            remedy=remedy,
        ) from None
    try:
        run = Benchmark.from_json(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableRunError(
            "this is no run of this version's hugepool bench",
            had=" ".join(str(error).split()),
            where=path,
            remedy=remedy,
        ) from None
    for key, one in _measured(run).items():
        if not one.samples_ns or min(one.samples_ns) <= 0 or one.items < 1:
            raise UnreadableRunError(
                f"{key} has no times that can be compared", where=path, remedy=remedy
            )
    return run


def compare_runs(old: Benchmark, new: Benchmark) -> Comparison:
    """Compare all that both have measured, and name what else is not the same."""
    before, after = _measured(old), _measured(new)
    common = [key for key in after if key in before]
    other = [key for key in common if before[key].inputs != after[key].inputs]
    return Comparison(
        old.started,
        new.started,
        _disturbed(old),
        _disturbed(new),
        tuple(_change(key, before[key], after[key]) for key in common if key not in other),
        tuple(_differing(_facts(old.environment), _facts(new.environment))),
        tuple(_differing(old.options, new.options)),
        tuple(key for key in before if key not in after),
        tuple(key for key in after if key not in before),
        tuple(other),
        RUN_RULE,
    )


def _disturbed(run: Benchmark) -> float:
    timed: list[CellResult | SweepPoint] = [*run.cells, *run.sweep]
    return sum(one.disturbed for one in timed) / max(1, sum(len(one.samples_ns) for one in timed))


def _measured(run: Benchmark) -> dict[Key, _Measured]:
    """Everything timed; of the limits those of the first pattern, as the tables have them."""
    found = {
        Key(cell.pattern, cell.kernel, cell.backing, cell.workers): _Measured(
            cell.samples_ns,
            f"ns per {cell.unit}",
            cell.items,
            cell.title,
            cell.implementation,
            cell.huge_fraction,
        )
        for cell in run.cells
    }
    for limit in run.limits:
        if limit.pattern == run.limits[0].pattern:
            found[Key(LIMIT, limit.kind, limit.backing, limit.workers)] = _Measured(
                limit.samples_ns,
                "ms",
                _NS_PER_MS,
                f"{limit.array_bytes} bytes",
                limit.implementation,
            )
    for point in run.sweep:
        found[Key(SWEEP, binary(point.array_bytes), point.backing, 1)] = _Measured(
            point.samples_ns,
            "ns per gather",
            point.gathers,
            f"{point.gathers} gathers",
            point.implementation,
            point.huge_fraction,
        )
    return found


def _change(key: Key, old: _Measured, new: _Measured) -> Change:
    found = unpaired_speedup(old.samples_ns, new.samples_ns)
    assert found.ratio is not None
    assert found.low is not None
    assert found.high is not None
    verdict: Verdict = ""
    if found.significant:
        verdict = "faster" if found.ratio > 1 else "slower"
    return Change(
        key,
        new.unit,
        Spread.of([sample / old.items for sample in old.samples_ns]),
        Spread.of([sample / new.items for sample in new.samples_ns]),
        found.ratio,
        found.low,
        found.high,
        found.rounds,
        verdict,
        "; ".join(_remarks(old, new)),
    )


def _remarks(old: _Measured, new: _Measured) -> Iterator[str]:
    if old.implementation != new.implementation:
        yield f"code {old.implementation}, now {new.implementation}"
    before, after = old.huge_fraction, new.huge_fraction
    # The heap's share is a little different every time; what counts is who gets the credit.
    if before is not None and after is not None and (before < HUGE_ENOUGH) != (after < HUGE_ENOUGH):
        yield f"{percentage(100 * before)} % huge, now {percentage(100 * after)} %"


def _facts(environment: Environment) -> dict[str, Difference]:
    """What should be the same on one machine; free memory and load are different every time."""
    pools = {size: text.rpartition(" of ")[2] for size, text in environment.huge_page_pools.items()}
    found: dict[str, Difference] = {
        "CPU": environment.cpu,
        "CPUs": environment.cpus,
        "kernel": environment.kernel_release,
        "memory bytes": environment.memory_bytes,
        "last-level cache bytes": environment.last_level_cache_bytes,
        "TLB entries": environment.stlb.entries,
        "THP enabled": environment.thp_enabled,
        "THP shmem_enabled": environment.shmem_enabled,
        "container": environment.container,
    }
    found |= {f"huge pages of {size}, total": count for size, count in pools.items()}
    return found | {f"{name} version": text for name, text in environment.versions.items()}


def _differing(old: Mapping[str, Difference], new: Mapping[str, Difference]) -> Iterator[Differing]:
    for what in [*old, *(name for name in new if name not in old)]:
        if old.get(what) != new.get(what):
            yield Differing(what, old.get(what), new.get(what))
