"""Table, JSON and page of a made-up run."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from hugepool.bench.command import write_results
from hugepool.bench.reproduce import STORY, ArticleRow, doubts
from hugepool.bench.results import Benchmark, Missing, missing_rung
from hugepool.bench.statistics import Speedup, Spread, paired_speedup
from hugepool.bench.table import (
    WIDTH,
    limit_ns,
    number,
    plain_table,
    print_benchmark,
    speedup_text,
    wrapped,
)
from hugepool_common.errors import HugepoolError, NotEnoughPagesError
from support.benchmarks import TITLE, benchmark, cell
from support.host import Mounts


def test_the_table_tells_everything_in_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_benchmark(benchmark())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(TITLE)
    assert lines[1].split()[:4] == ["backing", "kernel", "w", "median"]
    row = next(line for line in lines if line.startswith("hugetlbfs-2m"))
    assert row.split()[:3] == ["hugetlbfs-2m", "hugepool", "1"]
    assert row.split()[3:9] == ["102", "2.00", "100", "0.24", "80", "100"]
    assert "1.98x (1.94-2.01)" in row
    assert "dTLB misses: unavailable: no such counter <here>" in lines
    assert "  tmpfs-huge: no such mount (needed 1 page, had none)" in lines
    assert "      mount -o huge=always" in lines
    assert any("2 of 2 checked" in line for line in lines)
    assert any(line.split()[:5] == ["shm-4k", "1", "21.5", "18.0", "81.2"] for line in lines)
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("columns", [WIDTH, 60])
def test_a_terminal_gets_the_same_rows_however_narrow_it_is(columns: int) -> None:
    screen = io.StringIO()
    print_benchmark(benchmark(), Console(file=screen, width=columns, force_terminal=True))
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "\x1b[1m" in screen.getvalue()
    rows = [line.split() for line in text.splitlines()]
    assert ["backing", "kernel", "w", "median", "IQR", "min"] in [row[:6] for row in rows]
    assert ["hugetlbfs-2m", "hugepool", "1", "102", "2.00", "100"] in [row[:6] for row in rows]
    for piece in (TITLE, "1.98x (1.94-2.01)", "baseline", "<here>", "mount -o huge=always"):
        assert piece in text


def test_counted_misses_have_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_benchmark(benchmark(cell(tlb_misses_per_item=0.3861, tlb_note="")))
    lines = capsys.readouterr().out.splitlines()
    assert "dTLB" in lines[1].split()
    assert "0.386" in lines[2].split()
    assert not any(line.startswith("dTLB misses") for line in lines)


@pytest.mark.parametrize(
    ("speedup", "text"),
    [
        (Speedup(1.5, 1.25, 1.75, 5, True), "1.50x (1.25-1.75)"),
        (Speedup(1.5, 0.9, 1.75, 5, False), "not significant (0.90-1.75)"),
        (Speedup.refusal("not proved huge"), "not proved huge"),
    ],
)
def test_claims_in_words(speedup: Speedup, text: str) -> None:
    assert speedup_text(speedup) == text


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.1234, 9.876, 12.34, 123.4)] == [
        "0.12",
        "9.88",
        "12.3",
        "123",
    ]


def test_columns_are_aligned() -> None:
    assert plain_table("t", ["backing", "w"], [["a", "1"], ["longer-one", "12"]]) == (
        "t\nbacking      w\na            1\nlonger-one  12"
    )


def test_commands_are_never_broken() -> None:
    command = "      " + "mount " * 40
    assert wrapped(command) == command
    assert max(map(len, wrapped("word " * 60).splitlines())) <= WIDTH


def test_json_round_trip() -> None:
    run = benchmark()
    assert Benchmark.from_json(run.to_json()) == run
    told = json.loads(run.to_json())
    assert told["cells"][1]["samples_ns"] == [100_000, 101_000, 102_000, 103_000, 104_000]
    assert told["cells"][1]["speedup"]["significant"] is True
    assert told["environment"]["versions"]["numpy"] == "2.4.6"
    del told["cells"]
    with pytest.raises(msgspec.ValidationError, match="cells"):
        Benchmark.from_json(json.dumps(told).encode())


def test_a_reason_is_said_once() -> None:
    error = NotEnoughPagesError(
        "huge pages were demanded and cannot be had (tmpfs-huge: no mount)",
        needed="4 pages",
        had="no mount",
        remedy="mount it",
    )
    found = missing_rung("tmpfs-huge", "tmpfs-huge", error)
    assert str(found) == "tmpfs-huge: no mount (needed 4 pages); mount it"
    other = missing_rung("heap", "shm-4k", NotEnoughPagesError("full", had="3 MB"))
    assert str(other) == "heap: full (had 3 MB)"
    assert str(Missing("heap", "full", pattern="zipf")) == "heap (zipf): full"


def article_row(label: str, samples: list[int], article: str, speedup: Speedup) -> ArticleRow:
    seconds = Spread.of([sample / 1e9 for sample in samples])
    return ArticleRow(
        label, "fancy", 1.0, article, tuple(samples), seconds, None, 0.0, None, "", speedup, True
    )


def test_no_claim_is_explained_by_the_rounds() -> None:
    slow = [600_000_000, 1_200_000_000, 620_000_000, 1_300_000_000, 610_000_000]
    noisy = [1_100_000_000, 500_000_000, 1_200_000_000, 510_000_000, 900_000_000]
    fast = [sample // 2 for sample in slow]
    baseline = article_row("4K shm", slow, STORY["shm-4k"][1], Speedup.refusal("baseline"))
    doubted = article_row("heap copy", noisy, "", paired_speedup(slow, noisy))
    certain = article_row("huge", fast, "", paired_speedup(slow, fast))
    few = article_row("private", noisy[:2], "", paired_speedup(slow[:2], noisy[:2]))
    assert doubts([doubted, baseline, certain, few]) == [
        "heap copy: no claim; its rounds took 0.500 to 1.200 s, those of 4K shm 0.600 to 1.300 s. "
        "The fastest rounds are 1.20x apart.",
        "private: fewer than 5 rounds allow no claim.",
    ]


def test_the_limit_is_a_time_of_the_best_round() -> None:
    assert limit_ns(cell(percent_of_limit=80.0)) == pytest.approx(0.8 * 100.0)
    assert limit_ns(cell(percent_of_limit=None)) is None


@pytest.mark.parametrize(("name", "begins"), [("drawn", b"\x89PNG"), ("drawn.SVG", b"<?xml")])
def test_the_plot_is_a_png_unless_it_is_named_svg(tmp_path: Path, name: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / name
    run = benchmark(cell("shm-4k"), cell(), cell(pattern="zipf"), cell(pattern="stride"))
    write_results(run, False, None, str(target), None)
    assert target.read_bytes().startswith(begins)


@pytest.mark.parametrize("option", ["output", "plot", "html"])
def test_a_full_disk_leaves_the_file_of_before(
    mounts: Mounts, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    if option == "plot":
        pytest.importorskip("matplotlib")
    place = Path(mounts.tmpfs("size=16k"))
    before = place / "before"
    before.write_text("of before")
    with pytest.raises(OSError), (place / "rest").open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(4096))
    files = dict.fromkeys(("output", "plot", "html")) | {option: str(before)}
    with pytest.raises(HugepoolError, match=f"cannot write {before}: No space left"):
        write_results(benchmark(cell("shm-4k"), cell()), False, **files)
    assert before.read_text() == "of before"
    assert sorted(os.listdir(place)) == ["before", "rest"]
    assert "shm-4k" in capsys.readouterr().out, "what was measured is shown all the same"


def test_results_are_written_through_a_link_and_to_a_device(tmp_path: Path) -> None:
    run, target, link = benchmark(cell()), tmp_path / "run.json", tmp_path / "newest.json"
    link.symlink_to(target)
    write_results(run, False, str(link), None, os.devnull)
    assert link.is_symlink() and target.read_bytes() == run.to_json()
    assert not os.path.isfile(os.devnull)
