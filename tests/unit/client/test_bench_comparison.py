"""What two runs say together: real differences are found, noise is not."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hugepool.bench.comparison import UnreadableRunError, compare_runs, read_run
from hugepool.bench.comparison_table import print_comparison
from hugepool.bench.results import Benchmark
from hugepool.bench.statistics import (
    MIN_ROUNDS,
    RUN_CONFIDENCE,
    run_interval_rank,
    unpaired_speedup,
)
from hugepool.bench.table import WIDTH
from hugepool.bench.tlb import Stlb
from support.benchmarks import benchmark, cell, point
from support.examples import examples

TIMES = st.lists(st.floats(1.0, 1e9), min_size=1, max_size=9)


# The method -----------------------------------------------------------------------


def coverage(old: int, new: int, outside: int) -> float:
    """How often the interval holds the shift, by counting every arrangement of the ranks."""
    held = total = 0
    for places in itertools.combinations(range(old + new), old):
        rest = [place for place in range(old + new) if place not in places]
        below = sum(left < right for left in places for right in rest)
        total += 1
        held += outside < below < old * new - outside
    return held / total


@pytest.mark.parametrize(("old", "new"), [(4, 4), (5, 5), (4, 6), (3, 8), (5, 7), (6, 6)])
def test_the_interval_covers_what_it_says_and_no_wider_one_is_needed(old: int, new: int) -> None:
    rank = run_interval_rank(old, new)
    if rank is None:
        assert coverage(old, new, 0) < RUN_CONFIDENCE
        return
    assert coverage(old, new, rank) >= RUN_CONFIDENCE
    assert coverage(old, new, rank + 1) < RUN_CONFIDENCE


def test_the_normal_distribution_goes_on_where_counting_stops() -> None:
    counted, taken = run_interval_rank(62, 62), run_interval_rank(62, 66)
    assert counted is not None
    assert taken is not None
    middle = [rank / (62 * other) for rank, other in ((counted, 62), (taken, 66))]
    assert middle[1] == pytest.approx(middle[0], abs=0.01)
    assert run_interval_rank(2, 2000) == run_interval_rank(2000, 2)


def test_a_shift_beyond_all_noise_is_found() -> None:
    old = [100.0, 103.0, 101.0, 104.0, 102.0]
    found = unpaired_speedup(old, [90.0, 91.0, 89.0, 92.0, 90.5])
    assert found.significant
    assert found.ratio == pytest.approx(102 / 90.5, rel=0.01)
    assert found.low is not None
    assert found.low > 1


def test_one_round_across_the_border_is_enough_to_say_nothing() -> None:
    old = [100.0, 103.0, 101.0, 104.0, 102.0]
    assert not unpaired_speedup(old, [90.0, 91.0, 89.0, 92.0, 100.5]).significant


def test_apart_but_less_than_their_own_scatter_is_not_marked() -> None:
    old = [100.0, 150.0, 200.0, 250.0, 300.0]
    found = unpaired_speedup(old, [60.0, 70.0, 80.0, 90.0, 99.0])
    assert found.low is not None
    assert found.low > 1, "every old round took longer than every new one"
    assert found.ratio is not None
    assert found.significant == (math.log(found.ratio) > math.log(250 / 150))
    assert not unpaired_speedup([100.0, 101.0, 200.0, 210.0, 220.0], [99.0] * 5).significant


def test_four_rounds_say_nothing_however_far_apart() -> None:
    few = MIN_ROUNDS - 1
    assert not unpaired_speedup([1000.0] * few, [1.0] * few).significant
    assert not unpaired_speedup([1000.0] * 30, [1.0] * few).significant


@settings(max_examples=examples(200))
@given(TIMES, TIMES)
def test_turned_round_it_says_the_opposite(old: list[float], new: list[float]) -> None:
    there, back = unpaired_speedup(old, new), unpaired_speedup(new, old)
    assert there.significant == back.significant
    assert there.low is not None
    assert there.high is not None
    assert there.low <= there.high
    assert back.high == pytest.approx(1 / there.low)
    assert back.low == pytest.approx(1 / there.high)


@settings(max_examples=examples(200))
@given(st.lists(st.floats(10.0, 1e6), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_a_run_never_differs_from_itself(samples: list[float], chance: random.Random) -> None:
    other = list(samples)
    chance.shuffle(other)
    found = unpaired_speedup(samples, other)
    assert not found.significant
    assert found.ratio == pytest.approx(1)


@settings(max_examples=examples(200))
@given(
    st.lists(st.floats(100.0, 110.0), min_size=MIN_ROUNDS, max_size=12),
    st.lists(st.floats(100.0, 110.0), min_size=MIN_ROUNDS, max_size=12),
    st.floats(1.3, 10.0),
)
def test_what_is_farther_than_all_scatter_is_always_found(
    old: list[float], new: list[float], factor: float
) -> None:
    found = unpaired_speedup(old, [time * factor for time in new])
    assert found.significant
    assert found.ratio == pytest.approx(1 / factor, rel=0.11)


@pytest.mark.parametrize("rounds", [5, 12])
def test_noise_is_marked_less_often_than_the_method_says(rounds: int) -> None:
    chance = random.Random(20)
    marked = 0
    for _ in range(2000):
        old, new = ([chance.lognormvariate(5, 0.2) for _ in range(rounds)] for _ in range(2))
        marked += unpaired_speedup(old, new).significant
    assert marked <= 2000 * (1 - RUN_CONFIDENCE)


def test_nothing_and_no_time_are_refused() -> None:
    for old, new in (([], [1.0]), ([1.0], []), ([1.0], [0.0])):
        with pytest.raises(ValueError, match=r"sample|positive"):
            unpaired_speedup(old, new)


# Runs -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Five rounds, steady or half as long."""

    steady: tuple[int, ...] = (100_000, 101_000, 102_000, 103_000, 104_000)
    halved: tuple[int, ...] = (50_000, 50_400, 51_000, 51_500, 52_000)


def test_the_cell_that_changed_is_marked_and_no_other() -> None:
    samples = Samples()
    old = benchmark(cell("shm-4k", samples.steady), cell("heap", samples.steady))
    new = benchmark(cell("shm-4k", samples.halved), cell("heap", samples.steady))
    found = compare_runs(old, new)
    assert [(one.key.backing, one.verdict) for one in found.marked] == [("shm-4k", "faster")]
    assert found.marked[0].ratio == pytest.approx(2, rel=0.02)
    assert found.marked[0].old.median == 102.0
    assert found.marked[0].unit == "ns per gather"
    assert [one.verdict for one in compare_runs(new, old).marked] == ["slower"]
    assert found.environment == ()


def test_the_machines_limits_and_the_sweep_are_compared_too() -> None:
    run = msgspec.structs.replace(benchmark(), sweep=(point(1 << 20), point(1 << 21)))
    keys = [str(one.key) for one in compare_runs(run, run).changes]
    assert "limit copy shm-4k 1" in keys
    assert "sweep 2 MiB shm-4k 1" in keys


def test_other_inputs_are_named_and_not_compared() -> None:
    found = compare_runs(benchmark(cell(title="1 of 2")), benchmark(cell(title="1 of 3")))
    assert [str(key) for key in found.other_inputs] == ["random hugepool hugetlbfs-2m 1"]
    assert all(one.key.pattern == "limit" for one in found.changes)
    apart = compare_runs(benchmark(cell("heap")), benchmark(cell("shm-4k")))
    assert "random hugepool heap 1" in map(str, apart.only_old)
    assert "random hugepool shm-4k 1" in map(str, apart.only_new)


def test_every_difference_of_the_machine_is_named() -> None:
    old = benchmark()
    changed = {
        "cpu": "Another", "kernel_release": "6.19", "thp_enabled": "always",
        "shmem_enabled": "advise", "huge_page_pools": {"2M": "1 available of 128"},
        "versions": {"python": "3.11.7", "numpy": "2.5.0"}, "stlb": Stlb({"4K": 1536}),
        "load_average": 9.0, "memory_available_bytes": 1,
    }  # fmt: skip
    environment = msgspec.structs.replace(old.environment, **changed)
    new = msgspec.structs.replace(old, environment=environment)
    found = {one.what: (one.old, one.new) for one in compare_runs(old, new).environment}
    assert found == {
        "CPU": ("A CPU & more", "Another"),
        "kernel": ("6.18", "6.19"),
        "TLB entries": ({"4K": 2048, "2M": 2048}, {"4K": 1536}),
        "THP enabled": ("madvise", "always"),
        "THP shmem_enabled": ("never", "advise"),
        "huge pages of 2M, total": ("64", "128"),
        "numpy version": ("2.4.6", "2.5.0"),
    }, "and neither the load nor free memory nor free pages"


def test_lost_pages_and_other_code_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    old = benchmark(cell())
    new = benchmark(cell(implementation="take", huge_bytes=1 << 20, disturbed=2))
    found = compare_runs(old, new)
    assert found.changes[0].note == "code numba, now take; 100 % huge, now 50 %"
    print_comparison(found, "a.json", "b.json")
    told = " ".join(capsys.readouterr().out.split())
    assert "random hugepool hugetlbfs-2m 1: code numba, now take" in told
    assert "old 0 %, new 40 %" in told


def test_the_table_tells_ratio_range_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    samples = Samples()
    old = benchmark(cell("shm-4k", samples.steady), cell("heap", samples.steady))
    new = benchmark(cell("shm-4k", samples.halved), cell("heap", samples.steady))
    print_comparison(compare_runs(old, new), "a.json", "b.json")
    lines = capsys.readouterr().out.splitlines()
    marked = next(line.split() for line in lines if line.split()[2:3] == ["shm-4k"])
    assert marked[:4] == ["random", "hugepool", "shm-4k", "1"]
    assert marked[4:8] == ["102", "±1.00", "51.0", "±0.55"]
    assert marked[8].endswith("x")
    assert marked[-1] == "faster"
    quiet = next(line.split() for line in lines if line.split()[2:3] == ["heap"])
    assert quiet[-1] == "0.96-1.04"
    assert "1 of 8 differ beyond the noise of both runs: 1 faster, 0 slower." in lines
    assert "Machine and versions: the same." in lines
    assert max(map(len, lines)) <= WIDTH


# Files ----------------------------------------------------------------------------


def test_a_file_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(benchmark().to_json())
    assert read_run(str(path)) == benchmark()


def test_a_file_from_before_the_sweep_is_read(tmp_path: Path) -> None:
    told = json.loads(benchmark().to_json())
    del told["sweep"], told["peak_gflops"], told["environment"]["stlb"]
    path = tmp_path / "run.json"
    path.write_text(json.dumps(told))
    assert read_run(str(path)).cells == benchmark().cells


def without_samples(run: Benchmark) -> bytes:
    return (
        msgspec.structs.replace(run, cells=(cell(samples_ns=(1,)),))
        .to_json()
        .replace(b'"samples_ns": [\n        1\n      ]', b'"samples_ns": []')
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\x00\xff", "malformed"),
        (b"[]", "Expected `object`"),
        (b'{"rows": [], "rule": ""}', "format"),
        (benchmark().to_json().replace(b'"format": 1', b'"format": 2'), "layout 2"),
        (benchmark().to_json()[:-200], "truncated"),
        (benchmark().to_json().replace(b'"cells"', b'"cell"'), "cells"),
        (benchmark().to_json().replace(b"100000,", b"0,", 1), "no times"),
        (without_samples(benchmark()), "no times"),
        (benchmark().to_json().replace(b'"items": 1000', b'"items": 0', 1), "no times"),
    ],
)
def test_other_versions_and_damage_are_one_line(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text)
    with pytest.raises(UnreadableRunError, match=said) as caught:
        read_run(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hugepool bench --output" in str(caught.value)


@settings(max_examples=examples(100))
@given(st.data())
def test_no_damage_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = bytearray(benchmark().to_json())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(text)
    try:
        run = read_run(str(path))
    except UnreadableRunError:
        return
    assert compare_runs(run, benchmark()).to_json()
