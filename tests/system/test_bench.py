"""``hugepool bench`` as it is installed, on this very host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from hugepool.bench.options import BACKINGS, PATTERNS
from hugepool.bench.results import Benchmark
from support.host import dead_directories, require, settles

HUGEPOOL = str(Path(sysconfig.get_path("scripts")) / "hugepool")
MATRIX = Path(__file__).parent.parent / "data" / "debian-depends.mtx.gz"
SMALL = ("--quick", "--size", "8MB", "--gathers", "1e5")


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (HUGEPOOL, "bench", *words), capture_output=True, text=True, timeout=240, check=False
    )


def told(*words: str) -> Benchmark:
    done = bench(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Benchmark.from_json(done.stdout.encode())


def present() -> list[str]:
    """Backings that this host gives, by the doctor's word."""
    done = subprocess.run(
        (HUGEPOOL, "doctor", "--json"), capture_output=True, text=True, timeout=120, check=False
    )
    rungs: list[dict[str, Any]] = json.loads(done.stdout)["rungs"]
    return [rung["rung"] for rung in rungs if rung["outcome"] in ("huge", "small")]


def test_every_pattern_on_every_backing_verified() -> None:
    there = present()
    run = told(*SMALL, "--repeats", "3")
    assert {cell.pattern for cell in run.cells} >= set(PATTERNS[:4])
    assert all(cell.verified for cell in run.cells)
    measured = {cell.backing for cell in run.cells}
    missing = {one.backing for one in run.missing}
    assert measured | missing == set(BACKINGS)
    # The pool may have a 2 MiB page for the doctor and too few for 8 MB.
    assert set(there) <= measured | {name for name in missing if name.startswith("hugetlbfs")}
    assert "heap" in measured
    for cell in run.cells:
        assert len(cell.samples_ns) == 3
        assert min(cell.samples_ns) > 0
        assert cell.mapped_bytes > 0
        if cell.backing == "shm-4k":
            assert cell.huge_bytes == 0
        elif cell.backing != "heap":
            assert cell.huge_fraction >= 0.99
        assert not cell.speedup.significant, "three rounds are too few for any claim"
    for one in run.missing:
        assert one.reason
    assert all(limit.gb_per_s > 0 for limit in run.limits)


def test_gathers_are_verified_bit_for_bit_against_numpy() -> None:
    run = told(*SMALL, "--repeats", "1", "--pattern", "zipf", "--kernel", "hugepool",
               "--kernel", "numpy", "--kernel", "take", "--backing", "shm-4k")  # fmt: skip
    assert {cell.agreement for cell in run.cells} == {"bit for bit"}
    assert {cell.implementation for cell in run.cells} >= {"fancy", "take"}
    assert {cell.backing for cell in run.cells} == {"shm-4k"}


def test_a_given_matrix_equals_scipys_product() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError:
        require("scipy", False, "reads .mtx files")
    run = told("--matrix", str(MATRIX), "--repeats", "2", "--gathers", "1e5")
    assert {cell.kernel for cell in run.cells} >= {"hugepool"}
    assert {cell.items for cell in run.cells} == {299_188}
    assert {cell.agreement for cell in run.cells} == {"bit for bit"}
    assert "debian-depends.mtx.gz" in run.cells[0].title


def test_the_table_and_the_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"run.{name}" for name in ("json", "png", "html")}
    done = bench(
        *SMALL, "--repeats", "2", "--pattern", "random", "--backing", "shm-4k",
        "--output", str(files["json"]), "--plot", str(files["png"]), "--html", str(files["html"]),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "random gather of 100,000 from 1,000,000 float64" in done.stdout
    assert "\x1b" not in done.stdout
    assert Benchmark.from_json(files["json"].read_bytes()).cells
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert files["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_articles_rows() -> None:
    words = ("--reproduce", "--size", "8MB", "--gathers", "1e5", "--repeats", "2")
    done = bench(*words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    labels = [row["label"] for row in rows]
    assert labels[:3] == ["heap copy", "4K shm", "MAP_PRIVATE of 4K"]
    assert any(label.startswith("stride 2") for label in labels)
    assert all(row["verified"] for row in rows)
    assert [row["article_s"] for row in rows[:3]] == [0.69, 1.39, 0.69]
    assert rows[1]["huge_fraction"] == rows[2]["huge_fraction"] == 0
    plain = bench(*words)
    assert plain.returncode == 0
    assert "1.39 s, 19.3M misses" in plain.stdout
    assert "do not compare" in " ".join(plain.stdout.split()), "another size than the article's"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "plenty"), "plenty"),
        (("--gathers", "1.5"), "1.5"),
        (("--workers", "0"), "0"),
        (("--backing", "floppy"), "floppy"),
        (("--pattern", "spiral"), "spiral"),
        (("--kernel", "magic"), "magic"),
        (("--repeats", "0"), "repeats"),
        (("--plot", "/no/such/directory/a.png"), "/no/such/directory"),
        (("--reproduce", "--pattern", "random"), "--reproduce"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(words: tuple[str, ...], said: str) -> None:
    done = bench(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_never_fits_is_refused_before_it_is_tried() -> None:
    done = bench("--size", "500TB", "--gathers", "1e13")
    assert done.returncode == 1
    assert "needed" in done.stderr
    assert "had" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupted_run_leaves_nothing() -> None:
    before = dead_directories()
    with subprocess.Popen(
        (HUGEPOOL, "bench", "--quick", "--repeats", "1000", "--pattern", "random"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert settles(lambda: len(children(process.pid)) >= 2, 60), "coordinator and worker"
        started = children(process.pid)
        time.sleep(0.5)  # into the rounds; the outcome is the same at any moment
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert settles(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started))
    assert settles(lambda: dead_directories() <= before)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]
