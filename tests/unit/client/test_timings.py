"""What the parts of a job add up to."""

from __future__ import annotations

from hugepool.timings import JobTimings
from hugepool_common.messages import JobDone, Timing


def part(number: int, started_ns: int, wall_ns: int, **changes: object) -> Timing:
    facts: dict[str, object] = {
        "implementation": "numba",
        "pid": 100 + number,
        "part": number,
        "cpu_ns": wall_ns,
        "nbytes": 8_000_000,
        "mapped_bytes": 4 << 20,
        "huge_bytes": 2 << 20,
        "tlb_misses": 7,
    }
    return Timing("gather", started_ns=started_ns, wall_ns=wall_ns, **(facts | changes))  # type: ignore[arg-type]


def of(*parts: Timing) -> JobTimings:
    return JobTimings.of(JobDone(1, parts, 5_000_000))


def test_the_wall_time_spans_all_parts_and_the_rest_is_summed() -> None:
    timings = of(part(0, 1_000_000, 2_000_000), part(1, 1_500_000, 2_500_000))
    assert timings.wall_ns == 3_000_000
    assert timings.cpu_ns == 4_500_000
    assert timings.slowest_ns == 2_500_000
    assert (timings.nbytes, timings.mapped_bytes, timings.huge_bytes) == (
        16_000_000,
        8 << 20,
        4 << 20,
    )
    assert (timings.tlb_misses, timings.tlb_note) == (14, "")
    assert str(timings) == (
        "gather (numba): 3.000 ms on 2 worker(s), 5.33 GB/s, 50 % of mapped bytes huge"
    )


def test_one_part_that_could_not_count_misses_leaves_no_sum() -> None:
    timings = of(part(0, 0, 1), part(1, 0, 1, tlb_misses=None, tlb_note="unavailable: why"))
    assert (timings.tlb_misses, timings.tlb_note) == (None, "unavailable: why")


def test_parts_that_did_not_overlap_are_told() -> None:
    text = str(of(part(0, 0, 1_000_000), part(1, 300_000_000, 2_000_000)))
    assert "302.000 ms" in text
    assert "(slowest part 2.000 ms)" in text


def test_nothing_done() -> None:
    timings = of()
    assert (timings.wall_ns, timings.slowest_ns, timings.tlb_misses) == (0, 0, None)
    assert "0.000 ms on 0 worker(s)" in str(timings)
