"""The rows that sum a run up."""

from __future__ import annotations

import pytest

from hugepool.bench.headline import HEADER, headlines
from hugepool.bench.table import print_benchmark
from support.benchmarks import benchmark, cell

SLOW = [300_000, 303_000, 301_000, 304_000, 302_000]
FAST = [100_000, 101_000, 102_000, 103_000, 104_000]


def test_ours_on_the_best_proved_pages_against_the_peer_on_4k() -> None:
    cells = [
        cell("shm-4k", SLOW, kernel="numpy"),
        cell("shm-4k", [200_000] * 5),
        cell("shm-collapse", [150_000] * 5),
        cell("hugetlbfs-2m", FAST),
        cell("heap", [90_000] * 5),
    ]
    (row,) = headlines(cells)
    assert len(row) == len(HEADER)
    assert row[:6] == ["random", "1", "hugetlbfs-2m", "102", "NumPy x[idx] on shm-4k", "302"]
    assert row[6].startswith("2.95x (2.90-3.00)")


def test_pages_that_were_not_proved_huge_get_no_credit() -> None:
    cells = [cell("shm-4k", SLOW, kernel="numpy"), cell("hugetlbfs-2m", FAST, huge_bytes=1 << 20)]
    assert headlines(cells) == []


def test_what_the_spread_does_not_carry_is_said_so() -> None:
    noisy = [100_000, 500_000, 90_000, 600_000, 301_000]
    (row,) = headlines([cell("shm-4k", SLOW, kernel="numpy"), cell("hugetlbfs-2m", noisy)])
    assert row[6].startswith("not significant") and row[6].endswith("it includes 1")
    scattered = [250_000, 240_000, 100_000, 90_000, 280_000]
    (row,) = headlines([cell("shm-4k", SLOW, kernel="numpy"), cell("hugetlbfs-2m", scattered)])
    assert row[6].startswith("not significant (1.08-3.38)")
    assert row[6].endswith("rounds differ too much")
    (row,) = headlines([cell("shm-4k", SLOW[:3], kernel="numpy"), cell("hugetlbfs-2m", FAST[:3])])
    assert row[6].endswith("fewer than 5 rounds")


def test_a_run_that_was_mostly_disturbed_says_so_beneath(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calm = [cell("shm-4k", SLOW, kernel="numpy", disturbed=2), cell("hugetlbfs-2m", FAST)]
    print_benchmark(benchmark(*calm))
    assert "quieter machine" not in capsys.readouterr().out
    print_benchmark(benchmark(calm[0], cell("hugetlbfs-2m", FAST, disturbed=4)))
    last = " ".join(capsys.readouterr().out.split())
    assert "6 of 10 samples were disturbed" in last and "quieter machine" in last


def test_they_end_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_benchmark(benchmark(cell("shm-4k", SLOW, kernel="scipy"), cell("hugetlbfs-2m", FAST)))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[:3] == ["random", "1", "hugetlbfs-2m"]
    assert "SciPy A @ x on shm-4k" in last
