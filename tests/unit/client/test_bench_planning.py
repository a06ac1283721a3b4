"""Choices of a run: what is measured, in which order, and what fits into memory."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hugepool.bench.cases import (
    Reference,
    build_case,
    first_difference,
    matrix_case,
    reference_of,
)
from hugepool.bench.limits import share_of_limit
from hugepool.bench.matrices import CsrMatrix
from hugepool.bench.measure import Cell, Patience, Sample, shuffled
from hugepool.bench.memory import (
    check_pages,
    in_pages,
    operand_bytes,
    planned_segments,
    what_fits,
)
from hugepool.bench.operands import placement
from hugepool.bench.options import (
    BACKINGS,
    FILE_PATTERN,
    PATTERNS,
    BenchOptions,
    default_workers,
    kernel_names,
)
from hugepool.bench.results import LimitResult
from hugepool.bench.suite import implementations, speedup_of
from hugepool.bench.sweep import SMALLEST_BYTES, sweep_segments, sweep_sizes
from hugepool.kernels import last_level_cache_bytes
from hugepool.timings import JobTimings
from hugepool_common.errors import (
    InvalidSpecError,
    JobFailedError,
    NotEnoughMemoryError,
    NotEnoughPagesError,
)
from hugepool_common.messages import Timing
from hugepool_common.mounts import HugetlbfsMount
from hugepool_common.pages import Pool
from hugepool_common.units import GIB, MIB
from support.host import fake_host

SMALL = BenchOptions(nbytes=80_000, gathers=4_000, workers=(1,))


def made(backing: str, workers: int = 1, name: str = "hugepool") -> Cell:
    rows = tuple(range(workers + 1))
    return Cell(name, "gather", "numba", placement(backing), {}, rows)


def sampled(backing: str, times: list[int], huge: int, mapped: int = 100) -> Cell:
    cell = made(backing)
    cell.samples = [Sample(time, mapped, huge, None, "") for time in times]
    return cell


# Options ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"nbytes": 4095}, "at least 4 KiB"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"patterns": ("stencil",), "kernels": ("take",)}, "'take'.*stencil"),
        ({"patterns": ("random",), "kernels": ("scipy",)}, "'scipy'.*random"),
        ({"patterns": ("random",), "kernels": ("hugepool", "scipy")}, "'scipy'.*random"),
        ({"patterns": ("random", "stencil"), "kernels": ("take",)}, "'stencil'.*take"),
        ({"patterns": (), "kernels": ("take",), "matrix": "a.npz"}, "'take'.*file"),
        ({"gathers": 0}, "gathers"),
        ({"repeats": 0}, "repeats"),
        ({"backings": ("floppy",)}, "backing 'floppy'"),
        ({"patterns": ("spiral",)}, "pattern 'spiral'"),
        ({"kernels": ("magic",)}, "kernel 'magic'"),
        ({"workers": ()}, "CPU of its own"),
        ({"workers": (100_000,)}, "CPU of its own"),
    ],
)
def test_choices_that_nobody_has(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidSpecError, match=match):
        BenchOptions(**wrong)  # type: ignore[arg-type]


def test_default_workers() -> None:
    assert [default_workers(cpus) for cpus in (1, 2, 3, 64)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4),
    ]


def test_default_kernels() -> None:
    assert kernel_names(SMALL, "random", "gather") == ("hugepool", "numpy")
    assert kernel_names(SMALL, "zipf", "gather") == ("hugepool",)
    assert kernel_names(SMALL, "uniform", "matvec") == ("hugepool", "scipy")


def test_no_implementation_is_measured_twice() -> None:
    options = BenchOptions(
        nbytes=8_000, gathers=10, workers=(1,), kernels=("hugepool", "take", "numpy", "scipy")
    )
    found = implementations(options, build_case("random", options))
    assert len({implementation for _, implementation in found}) == len(found)
    assert ("numpy", "fancy") in found
    assert "scipy" not in dict(found), "SciPy has no gather"


# Order ----------------------------------------------------------------------------


def test_page_kinds_stand_side_by_side_and_take_turns() -> None:
    cells = [
        made(backing, workers)
        for backing in ("shm-4k", "heap", "hugetlbfs-2m")
        for workers in (1, 2)
    ]
    first_of_round: Counter[tuple[str, int]] = Counter()
    for number in range(120):
        order = shuffled(cells, number)
        assert sorted(map(id, order)) == sorted(map(id, cells)), "every cell once"
        assert [cell.workers for cell in order] in ([1, 1, 1, 2, 2, 2], [2, 2, 2, 1, 1, 1])
        first_of_round[order[0].placement.label, order[0].workers] += 1
        assert order == shuffled(cells, number)
    assert len(first_of_round) == 6
    assert min(first_of_round.values()) >= 10, "some cell is hardly ever the first"
    assert shuffled([], 3) == []


def test_a_worker_without_its_cpu_is_disturbed() -> None:
    parts = (
        Timing("gather", started_ns=0, wall_ns=1_000, cpu_ns=1_000),
        Timing("gather", started_ns=0, wall_ns=1_000, cpu_ns=900),
    )
    assert Sample.of(JobTimings(1, parts, 0)).disturbed
    assert not Sample.of(JobTimings(1, parts[:1], 0)).disturbed


class _Busy:
    """A pool on a machine whose CPUs others use too."""

    def __init__(self, wall_ns: int) -> None:
        self.runs = 0
        self._part = Timing("gather", started_ns=0, wall_ns=wall_ns, cpu_ns=wall_ns // 2)

    def run(self, *_: object, **__: object) -> JobTimings:
        self.runs += 1
        return JobTimings(1, (self._part,), 0)


def test_what_is_disturbed_is_taken_up_again_as_long_as_there_is_patience() -> None:
    busy: Any = _Busy(1_000)
    patience, cell = Patience(), made("shm-4k", 1)
    cell.settled(busy)  # its worker is known from here on
    before = busy.runs
    assert cell.undisturbed(busy, patience).disturbed
    assert busy.runs - before == 3 and not patience.spent
    assert patience.note(2, 10).endswith("after 3 tries each")
    patience.left_ns = 0
    assert cell.undisturbed(busy, patience).disturbed
    assert busy.runs - before == 4
    assert "after up to 3 tries each" in patience.note(3, 10)
    assert patience.note(0, 10) == ""


# Memory ---------------------------------------------------------------------------


def fits(
    headroom: int, nbytes: int = 1_000_000_000, **changes: int | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    kept, missing = what_fits(
        BACKINGS,
        bytes_per_backing=nbytes,
        client_bytes=0,
        workers=changes.get("workers") or 2,
        headroom_bytes=headroom,
        shm_room_bytes=changes.get("room"),
        pool_bytes={"hugetlbfs-2m": changes.get("pool") or 0},
    )
    return kept, {one.backing: one.reason for one in missing}


def test_everything_fits() -> None:
    assert fits(20_000_000_000) == (BACKINGS, {})


def test_the_private_copies_go_first() -> None:
    kept, missing = fits(4_000_000_000)
    assert "heap" in missing
    assert {"shm-4k", "shm-collapse", "hugetlbfs-2m"} <= set(kept)


def test_the_baseline_goes_last() -> None:
    kept, missing = fits(1_800_000_000)
    assert set(kept) == {"shm-4k", "hugetlbfs-2m", "hugetlbfs-1g"}
    assert set(missing) == {"heap", "tmpfs-huge", "shm-collapse"}


def test_dev_shm_may_be_smaller_than_memory() -> None:
    kept, missing = fits(20_000_000_000, room=1_500_000_000)
    assert set(missing) == {"shm-collapse"}
    assert "/dev/shm" in missing["shm-collapse"]
    assert "heap" in kept, "its source is the baseline, which is there already"


def test_nothing_fits() -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        fits(100_000_000)
    assert caught.value.needed
    assert caught.value.had == "100 MB"


def test_no_pool_can_be_filled_with_more_than_memory() -> None:
    with pytest.raises(NotEnoughMemoryError, match="1e\\+06 TB"):
        fits(20_000_000_000, 10**18)
    kept, _ = fits(4_000_000_000, 6_000_000_000, pool=6_000_000_000)
    assert kept == ("hugetlbfs-2m",), "the pool has it already"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_estimate_covers_what_is_made(pattern: str) -> None:
    options = BenchOptions(nbytes=1_000_000, gathers=200_000, workers=(1,))
    case = build_case(pattern, options)
    streams = 2 if case.stream_elements == case.out_elements else 3
    needed = case.input_bytes + streams * 8 * case.stream_elements
    assert needed <= 1.1 * operand_bytes(pattern, options)
    assert operand_bytes(pattern, options) <= 2 * needed


HUGE_ROOM = {"uid": 1000, "gid": 100}


def test_all_arrays_of_a_case_are_counted_in_whole_pages() -> None:
    options = BenchOptions(nbytes=32_000_000, gathers=1_000_000, workers=(1,))
    # 32 MB of x, and 8 MB each of indices, result and two streams
    assert planned_segments("random", options) == (32_000_000, *4 * (8_000_000,))
    assert in_pages(planned_segments("random", options), 2 * MIB) == (16 + 4 * 4) * 2 * MIB
    assert in_pages(planned_segments("random", options), GIB) == 5 * GIB
    assert in_pages((0,), 2 * MIB) == 2 * MIB


@pytest.mark.parametrize(
    ("pool", "command"),
    [
        (Pool(2 * MIB, 0, 0, 0, 0, 0), "sysctl vm.nr_hugepages=40"),
        (Pool(2 * MIB, 100, 10, 0, 0, 0), "sysctl vm.nr_hugepages=130"),
        (Pool(2 * MIB, 100, 10, 4, 0, 0), "sysctl vm.nr_hugepages=134"),
    ],
)
def test_one_command_is_enough_for_the_largest_pattern(pool: Pool, command: str) -> None:
    host = fake_host(pools=(pool,))
    with pytest.raises(NotEnoughPagesError) as caught:
        check_pages(
            "hugetlbfs-2m", host, needed_bytes=64 * MIB, largest_bytes=80 * MIB, **HUGE_ROOM
        )
    assert caught.value.remedy == command
    assert caught.value.needed == "32 huge pages of 2 MiB, 40 for the largest pattern"
    assert caught.value.had == f"{pool.available_pages} free"
    check_pages("shm-4k", host, needed_bytes=GIB, largest_bytes=GIB, **HUGE_ROOM)


def test_what_is_there_already_is_not_asked_for_again() -> None:
    host = fake_host(pools=(Pool(2 * MIB, 36, 20, 0, 0, 0),))
    check_pages(
        "hugetlbfs-2m", host, needed_bytes=72 * MIB, largest_bytes=80 * MIB, kept_bytes=32 * MIB,
        **HUGE_ROOM,
    )  # fmt: skip
    with pytest.raises(NotEnoughPagesError, match=r"vm\.nr_hugepages=40"):
        check_pages(
            "hugetlbfs-2m", host, needed_bytes=80 * MIB, largest_bytes=80 * MIB,
            kept_bytes=32 * MIB, **HUGE_ROOM,
        )  # fmt: skip


def test_a_missing_mount_is_told_with_the_pages() -> None:
    host = fake_host(pools=(Pool(2 * MIB, 0, 0, 0, 0, 0),), hugetlbfs_mounts=())
    with pytest.raises(NotEnoughPagesError, match="no hugetlbfs mount with 2M pages") as caught:
        check_pages("hugetlbfs-2m", host, needed_bytes=2 * MIB, largest_bytes=2 * MIB, **HUGE_ROOM)
    assert caught.value.needed == "1 huge page of 2 MiB"
    sysctl, mkdir, mount = caught.value.remedy.split(" && ")
    assert sysctl == "sysctl vm.nr_hugepages=1"
    assert mkdir.startswith("mkdir -p /run/hugepages/")
    assert mount.startswith("mount -t hugetlbfs -o pagesize=2M,uid=1000,gid=100")


def test_a_small_mount_is_told_with_its_option() -> None:
    mount = HugetlbfsMount("/mnt/2m", 2 * MIB, 8 * MIB, 0, 6 * MIB, True)
    host = fake_host(hugetlbfs_mounts=(mount,))
    with pytest.raises(NotEnoughPagesError, match=r"/mnt/2m has 6\.29 MB left") as caught:
        check_pages(
            "hugetlbfs-2m", host, needed_bytes=10 * MIB, largest_bytes=10 * MIB, **HUGE_ROOM
        )
    assert caught.value.remedy == "mount -o remount,size=12M /mnt/2m"


# Checks ---------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_reference_finds_one_wrong_element(pattern: str) -> None:
    case = build_case(pattern, SMALL)
    x = np.empty(case.x_elements)
    case.fill_x(x)
    reference = reference_of(case, x)
    right = reference.expected.copy()
    assert reference.check(right, "here") == "bit for bit"
    right[-1] += 1e-6
    with pytest.raises(JobFailedError, match=f"at {len(right) - 1}"):
        reference.check(right, "here")
    right[-1] = np.nan
    with pytest.raises(JobFailedError):
        reference.check(right, "here")


def test_not_a_number_equals_itself_and_infinity_its_own_sign() -> None:
    data = np.array([np.nan, np.inf, -np.inf, 1e308, 1.0, 2.0])
    indptr = np.array([0, 1, 2, 3, 4, 6], np.int32)
    matrix = CsrMatrix(indptr, np.array([0, 0, 0, 0, 0, 1], np.int32), data, (5, 2))
    reference = reference_of(matrix_case(FILE_PATTERN, matrix, SMALL, "m"), np.array([10.0, 0.1]))
    assert np.isnan(reference.expected[0])
    assert list(reference.expected[1:4]) == [np.inf, -np.inf, np.inf]
    right = reference.expected.copy()
    assert reference.check(right, "here") == "bit for bit"
    right[-1] = np.nextafter(right[-1], np.inf)
    assert "rounding bound" in reference.check(right, "here")
    for position, value in ((0, 0.0), (1, -np.inf), (2, 0.0), (3, np.nan), (4, np.inf)):
        wrong = reference.expected.copy()
        wrong[position] = value
        with pytest.raises(JobFailedError, match=f"at {position}") as caught:
            reference.check(wrong, "here")
        assert "float64" not in str(caught.value)


def test_a_result_that_was_never_written_is_wrong_everywhere() -> None:
    expected = np.array([1.0, np.nan, np.inf, 0.0])
    unwritten = Reference(expected, None, "NumPy").wrong_everywhere()
    for position in range(len(expected)):
        one = expected.copy()
        one[position] = unwritten[position]
        assert first_difference(one, expected) == position


def test_another_order_of_summation_is_within_the_bound() -> None:
    case = build_case("stencil", SMALL)
    x = np.empty(case.x_elements)
    case.fill_x(x)
    reference = reference_of(case, x)
    nearly = np.nextafter(reference.expected, np.inf)
    assert "rounding bound" in reference.check(nearly, "here")


def test_a_gather_allows_no_rounding() -> None:
    case = build_case("random", SMALL)
    x = np.empty(case.x_elements)
    case.fill_x(x)
    with pytest.raises(JobFailedError):
        reference = reference_of(case, x)
        reference.check(np.nextafter(reference.expected, np.inf), "here")


def test_results_of_another_length_differ() -> None:
    assert first_difference(np.zeros(3), np.zeros(4)) == 0
    assert first_difference(np.zeros(4), np.array([0.0, 0.0, 1.0, 0.0])) == 2
    assert first_difference(np.zeros(4), np.zeros(4)) is None


def test_x_has_the_same_values_everywhere() -> None:
    first, second = np.empty(1_000), np.empty(1_000)
    case = build_case("random", SMALL)
    case.fill_x(first)
    build_case("zipf", SMALL).fill_x(second)
    assert np.array_equal(first, second)
    assert len(np.unique(first)) == 1_000, "two equal elements would hide a wrong gather"


# Claims ---------------------------------------------------------------------------

SLOW, FAST = [200, 202, 204, 206, 208], [100, 101, 102, 103, 104]


def test_proved_huge_pages_get_their_credit() -> None:
    found = speedup_of(sampled("hugetlbfs-2m", FAST, 100), sampled("shm-4k", SLOW, 0))
    assert found.ratio == pytest.approx(2.0)
    assert found.significant


def test_unproved_huge_pages_get_none() -> None:
    found = speedup_of(sampled("shm-collapse", FAST, 98), sampled("shm-4k", SLOW, 0))
    assert (found.ratio, found.refused) == (None, "not proved huge")


def test_a_baseline_with_huge_pages_is_none() -> None:
    found = speedup_of(sampled("hugetlbfs-2m", FAST, 100), sampled("shm-4k", SLOW, 50))
    assert found.refused == "shm-4k has huge pages"
    assert speedup_of(sampled("heap", FAST, 0), None).refused == "shm-4k was not measured"


def test_the_heap_promises_no_huge_pages() -> None:
    assert speedup_of(sampled("heap", FAST, 40), sampled("shm-4k", SLOW, 0)).significant


def test_the_baseline_is_not_compared_with_itself() -> None:
    baseline = sampled("shm-4k", SLOW, 0)
    assert speedup_of(baseline, baseline).refused == "baseline"


def test_share_of_the_random_line_limit() -> None:
    elements = last_level_cache_bytes()  # eight times the cache
    case = build_case("random", BenchOptions(nbytes=8 * elements, gathers=1_000, workers=(1,)))
    line = LimitResult("random", "shm-4k", 1, "random_lines", "numba", 8, (1,), 1.0, 10.0)
    assert share_of_limit(case, 20_000, [line]) == (50.0, "")
    assert share_of_limit(case, 20_000, []) == (None, "needs numba")
    small = build_case("random", SMALL)
    assert share_of_limit(small, 20_000, [line]) == (None, "x fits the cache")


def test_share_of_bandwidth_counts_whole_lines() -> None:
    nbytes = 4 * last_level_cache_bytes()
    case = build_case("stride", BenchOptions(nbytes=nbytes, gathers=1_000, workers=(1,)))
    copy = LimitResult("stride", "shm-4k", 1, "copy", "numba", 8, (1,), 8.0, None)
    assert case.moved_bytes == 1_000 * (64 + 8 + 8)
    assert share_of_limit(case, 20_000, [copy])[0] == pytest.approx(50.0)


# The sweep ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, SMALLEST_BYTES, 1_000_000, 32_000_000, 256_000_000, 4 << 30])
def test_a_sweep_begins_with_the_ends_and_halves_the_widest_gap(most: int) -> None:
    sizes = sweep_sizes(most)
    assert len(set(sizes)) == len(sizes)
    assert min(sizes) == sizes[0] == SMALLEST_BYTES
    assert all(size % 8 == 0 for size in sizes)
    if most < 2 * SMALLEST_BYTES:
        return
    assert sizes[1] == max(sizes)
    assert 0.75 * most < sizes[1] <= most
    octaves = (max(sizes) // SMALLEST_BYTES).bit_length()
    for count in range(2, octaves + 1):
        places = sorted(math.log2(size) for size in sizes[:count])
        gaps = [high - low for low, high in itertools.pairwise(places)]
        assert max(gaps) <= 2 * math.log2(max(sizes) / SMALLEST_BYTES) / (count - 1) + 1


def test_the_sweeps_memory_is_counted() -> None:
    options = BenchOptions(nbytes=64_000_000, gathers=10_000_000)
    x, idx, out, *rest = sweep_segments(options)
    assert (x, idx, out) == (64_000_000, 8_000_000, 8_000_000)
    assert sum(rest) < 100
    assert sweep_segments(BenchOptions(nbytes=80_000))[0] == SMALLEST_BYTES
