"""What a run found, as typed values that go to JSON and come back."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from hugepool.bench.statistics import Speedup, Spread
from hugepool.bench.tlb import Stlb
from hugepool_common.errors import HugepoolError

OptionValue: TypeAlias = str | int | float | list[str | int] | None
"""What the JSON has for a choice of the run."""

FORMAT = 1
"""Number of the JSON layout; another number is another layout."""

HUGE_ENOUGH = 0.99
"""Least share of mapped bytes that must be huge before huge pages get the credit."""


class CellResult(msgspec.Struct, frozen=True):
    """One kernel on one backing with so many workers.

    Parameters
    ----------
    pattern, title
        The case, by name and in words.
    kernel, implementation
        Name as on the command line, and the code that ran.
    backing
        Where x, the indices or the matrix, and the result lay.
    workers
        Processes that shared the rows.
    unit, items
        ``gather`` or ``nnz``, and how many of them one run has.
    nbytes
        Payload read and written by one run.
    samples_ns
        Wall time of every measured round, in order of rounds: first start to last stop.
    disturbed
        How many of them were taken while a worker had less than 95 % of its CPU, although
        such a round is run again up to three times.
    per_item_ns
        The same per item.
    gb_per_s
        Payload over the median time, 1e9 bytes per second.
    mapped_bytes, huge_bytes
        Of all operands, summed over the workers as they proved them: the round with the
        smallest share.
    tlb_misses_per_item
        Median dTLB read misses per item, or None with the reason in `tlb_note`.
    verified, agreement
        Whether the result was compared with the reference before timing, and how well it
        agreed.
    limit, percent_of_limit, limit_note
        ``lines`` or ``stream``; fastest round as a share of that limit's fastest round, on
        the same pages and workers, or None and why.
    speedup
        Over 4 KiB shared memory.
    """

    pattern: str
    title: str
    kernel: str
    implementation: str
    backing: str
    workers: int
    unit: str
    items: int
    nbytes: int
    samples_ns: tuple[int, ...]
    disturbed: int
    per_item_ns: Spread
    gb_per_s: float
    mapped_bytes: int
    huge_bytes: int
    tlb_misses_per_item: float | None
    tlb_note: str
    verified: bool
    agreement: str
    limit: str
    percent_of_limit: float | None
    limit_note: str
    speedup: Speedup

    @property
    def huge_fraction(self) -> float:
        """Share of the mapped bytes that huge pages map."""
        return self.huge_bytes / self.mapped_bytes if self.mapped_bytes else 0.0


class LimitResult(msgspec.Struct, frozen=True):
    """A limit of the machine, measured in the same rounds on the same pages.

    Parameters
    ----------
    kind
        ``copy`` and ``triad`` (STREAM's byte counts, 16 and 24 per element) or ``random_lines``.
    array_bytes
        Of each array streamed over, or of the x whose lines are read.
    gb_per_s
        Of the fastest round, as STREAM counts; a random line is 64 bytes.
    ns_per_line
        Of the fastest round of ``random_lines``, else None.
    """

    pattern: str
    backing: str
    workers: int
    kind: str
    implementation: str
    array_bytes: int
    samples_ns: tuple[int, ...]
    gb_per_s: float
    ns_per_line: float | None


class SweepPoint(msgspec.Struct, frozen=True):
    """Random gathers by one worker from an x of some size, all operands on one backing.

    Parameters
    ----------
    array_bytes
        Of x.
    gathers
        Of one run.
    samples_ns, disturbed, per_item_ns, mapped_bytes, huge_bytes, agreement
        As :class:`CellResult` has them.
    """

    array_bytes: int
    backing: str
    implementation: str
    gathers: int
    samples_ns: tuple[int, ...]
    disturbed: int
    per_item_ns: Spread
    mapped_bytes: int
    huge_bytes: int
    agreement: str

    @property
    def huge_fraction(self) -> float:
        """Share of the mapped bytes that huge pages map."""
        return self.huge_bytes / self.mapped_bytes if self.mapped_bytes else 0.0


class Missing(msgspec.Struct, frozen=True):
    """A backing that was not measured, and what would change that."""

    backing: str
    reason: str
    needed: str = ""
    had: str = ""
    remedy: str = ""
    pattern: str = ""
    """The only pattern concerned; empty for all."""

    @property
    def fact(self) -> str:
        """What is missing and why, without the remedy."""
        pairs = (("needed", self.needed), ("had", self.had))
        facts = ", ".join(f"{word} {fact}" for word, fact in pairs if fact)
        text = f"{self.backing}{f' ({self.pattern})' if self.pattern else ''}: {self.reason}"
        return f"{text} ({facts})" if facts else text

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact


def missing_rung(backing: str, rung: str, error: HugepoolError) -> Missing:
    """Why a backing could not be made, without saying anything twice."""
    # The ladder's message names the rung that it fell from and the reason in brackets.
    reason = error.message.partition(f"({rung}: ")[2].removesuffix(")") or error.message
    had = "" if error.had == reason else error.had
    return Missing(backing, reason, error.needed, had, error.remedy)


class Environment(msgspec.Struct, frozen=True):
    """The machine and the software, as read at the start."""

    kernel_release: str
    cpu: str
    cpus: int
    last_level_cache_bytes: int
    memory_bytes: int
    memory_available_bytes: int
    thp_enabled: str
    shmem_enabled: str
    huge_page_pools: dict[str, str]
    container: str
    load_average: float
    versions: dict[str, str]
    stlb: Stlb = Stlb()


class Benchmark(msgspec.Struct, frozen=True):
    """One whole run.

    Parameters
    ----------
    sweep
        Random gathers over growing arrays; empty unless asked for.
    peak_gflops
        1e9 operations per second of one CPU in a dense float64 product, or None if no sparse
        product was measured.
    """

    command: tuple[str, ...]
    started: str
    environment: Environment
    options: dict[str, OptionValue]
    cells: tuple[CellResult, ...]
    limits: tuple[LimitResult, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    rule: str
    sweep: tuple[SweepPoint, ...] = ()
    peak_gflops: float | None = None
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Indented JSON, one trailing newline."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Benchmark:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        msgspec.DecodeError
            No JSON, or (:class:`msgspec.ValidationError`) another layout.
        """
        number = msgspec.json.decode(text, type=_Numbered).format
        if number != FORMAT:
            raise msgspec.ValidationError(f"layout {number}, and this hugepool reads {FORMAT}")
        return msgspec.json.decode(text, type=cls)


class _Numbered(msgspec.Struct):
    """As much as is needed to know whether the rest can be read."""

    format: int


def tlb_note(cells: tuple[CellResult, ...]) -> str:
    """Why dTLB misses are not shown, once for all; empty when some are."""
    if any(cell.tlb_misses_per_item is not None for cell in cells):
        return ""
    return next((cell.tlb_note for cell in cells if cell.tlb_note), "")
