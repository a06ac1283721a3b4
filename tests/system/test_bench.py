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

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import hugepool
from hugepool.bench.cases import build_case
from hugepool.bench.memory import planned_segments
from hugepool.bench.operands import OperandSet
from hugepool.bench.options import BACKINGS, PATTERNS, BenchOptions
from hugepool.bench.results import Benchmark
from hugepool.remedies import room_bytes
from hugepool_common.pages import read_host
from hugepool_common.units import GIB
from support.host import dead_directories, require, settles
from support.service import children

HUGEPOOL = str(Path(sysconfig.get_path("scripts")) / "hugepool")
MATRIX = Path(__file__).parent.parent / "data" / "debian-depends.mtx.gz"
pytestmark = pytest.mark.timeout(900)
SMALL = ("--quick", "--size", "8MB", "--gathers", "1e5")


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (HUGEPOOL, "bench", *words), capture_output=True, text=True, timeout=800, check=False
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


def test_the_sweep_spans_the_range_and_is_in_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, file = tmp_path / "run.html", tmp_path / "run.json"
    done = bench(
        "--size", "1MB", "--gathers", "1e4", "--repeats", "2", "--pattern", "random",
        "--backing", "shm-4k", "--backing", "heap", "--kernel", "hugepool", "--workers", "1",
        "--sweep", "0.001", "--html", str(page), "--output", str(file),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    run = Benchmark.from_json(file.read_bytes())
    assert {point.backing for point in run.sweep} == {"shm-4k", "heap"}
    # No time at all, so only what is always measured: the two ends.
    assert {point.array_bytes for point in run.sweep} == {256 << 10, 1_000_000}
    assert {point.agreement for point in run.sweep} == {"bit for bit"}
    assert all(len(point.samples_ns) == 2 for point in run.sweep)
    assert all(point.huge_bytes == 0 for point in run.sweep if point.backing == "shm-4k")
    assert any("the sweep ended after" in note for note in run.notes)
    assert "the sweep ended after" in " ".join(done.stdout.split())
    assert "Nanoseconds per random gather against the size" in page.read_text(encoding="utf-8")


def test_two_files_are_compared_and_differences_are_no_failure(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    words = ("--workers", "1", "--kernel", "hugepool", "--repeats", "5")
    run = told(*TINY, *words)

    def timed(*samples_ns: int) -> bytes:
        # Those measured may be farther apart than the runs are to be: a round may be preempted.
        cells = tuple(msgspec.structs.replace(cell, samples_ns=samples_ns) for cell in run.cells)
        return msgspec.structs.replace(run, cells=cells).to_json()

    old.write_bytes(timed(1000, 1010, 1020, 1030, 1040))
    new.write_bytes(timed(99_000, 99_100, 99_200, 99_300, 99_400))
    done = bench("--compare", str(old), str(new))
    assert (done.returncode, done.stderr) == (0, "")
    assert "differ beyond the noise of both runs: 0 faster, 1 slower." in done.stdout
    assert "Machine and versions: the same." in done.stdout
    as_json = bench("--compare", str(old), str(new), "--json")
    assert (as_json.returncode, as_json.stderr) == (0, "")
    changes = json.loads(as_json.stdout)["changes"]
    assert [one["verdict"] for one in changes if one["key"]["pattern"] == "random"] == ["slower"]
    assert {one["verdict"] for one in changes if one["key"]["pattern"] == "limit"} == {""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 7}', "layout 7, and this hugepool reads 1"),
        ('{"format": 1, "cells"', "truncated"),
        ("", "truncated"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_compared_is_one_line(
    tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    done = bench("--compare", str(path), str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


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


def test_the_articles_rows_take_more_rounds_unless_told() -> None:
    done = bench("--reproduce", "--size", "80kB", "--gathers", "1e4", "--json")
    assert done.returncode == 0, done.stderr
    assert {len(row["samples_ns"]) for row in json.loads(done.stdout)["rows"]} == {12}


TINY = ("--size", "80kB", "--gathers", "1e4", "--repeats", "1", "--pattern", "random",
        "--backing", "shm-4k")  # fmt: skip


def test_a_full_device_is_told_and_the_table_is_not_lost() -> None:
    done = bench(*TINY, "--workers", "1", "--output", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == "hugepool: cannot write /dev/full: No space left on device\n"
    assert "random gather of 10,000" in done.stdout


def test_numbers_of_workers_may_be_a_range() -> None:
    require("two CPUs", len(os.sched_getaffinity(0)) > 1, "only one is there")
    assert {cell.workers for cell in told(*TINY, "--workers", "1-2").cells} == {1, 2}


def test_pages_that_are_not_there_end_with_status_4_and_one_command() -> None:
    host = read_host()
    pool = host.pool(GIB)
    require("1G pages", pool is not None, "this kernel has none")
    assert pool is not None
    if room_bytes("hugetlbfs-1g", host) >= 5 * GIB:
        pytest.skip("five pages of 1 GiB are there")
    if pool.available_bytes + host.memory_headroom_bytes < 7 * GIB:
        pytest.skip("memory has no room for five pages of 1 GiB")
    done = bench("--pattern", "random", "--backing", "hugetlbfs-1g", "--size", "8MB",
                 "--gathers", "1e4", "--workers", "1")  # fmt: skip
    assert done.returncode == 4
    assert "needed 5 huge pages of 1 GiB" in done.stderr
    assert "smaller --size" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_plan_is_what_is_made() -> None:
    options = BenchOptions(nbytes=800_000, gathers=50_000, workers=(1,))
    with hugepool.connect("embedded") as pool:
        for pattern in PATTERNS:
            made = OperandSet.of_case(pool, "shm-4k", build_case(pattern, options))
            unique = {one.name: one.spec.nbytes for one in made.objects.values()}
            found = sorted(unique.values())
            planned = sorted(planned_segments(pattern, options))
            made.destroy()
            if pattern == "kronecker":  # how many edges are double is known when they are drawn
                assert len(found) == len(planned)
                assert 0.5 * sum(planned) < sum(found) <= sum(planned)
            else:
                assert found == planned, pattern


def written(tmp_path: Path, data: npt.NDArray[Any]) -> str:
    """A 3 x 4 matrix file with so many entries in its first row and one in the others."""
    path = tmp_path / "matrix.npz"
    indptr = np.array([0, len(data) - 2, len(data) - 1, len(data)])
    indices = np.array([*range(len(data) - 2), 0, 3])
    np.savez(path, indptr=indptr, indices=indices, data=data, shape=(3, 4), format=b"csr")
    return str(path)


def test_a_matrix_with_holes_and_infinities_is_measured(tmp_path: Path) -> None:
    path = written(tmp_path, np.array([1.0, np.inf, -np.inf, np.nan, 2.0]))
    run = told("--matrix", path, "--repeats", "1", "--gathers", "1e4", "--workers", "1",
               "--kernel", "hugepool", "--kernel", "scipy", "--backing", "shm-4k")  # fmt: skip
    assert {cell.agreement for cell in run.cells} == {"bit for bit"}


def test_yes_and_no_are_one_and_zero(tmp_path: Path) -> None:
    path = written(tmp_path, np.array([True, False, True, True]))
    run = told("--matrix", path, "--repeats", "1", "--gathers", "1e4", "--workers", "1")
    assert all(cell.verified for cell in run.cells)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.array([1j, 2, 3]), "complex128 matrices are not measured (needed "),
        (np.array([]), "no stored entries"),
    ],
)
def test_matrices_that_are_not_measured(tmp_path: Path, data: npt.NDArray[Any], said: str) -> None:
    path = tmp_path / "matrix.npz"
    indptr = np.full(4, len(data))
    indptr[0] = 0
    np.savez(path, indptr=indptr, indices=np.arange(len(data)), data=data, shape=(3, 4))
    done = bench("--matrix", str(path))
    assert done.returncode == 1
    assert said in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "plenty"), "plenty"),
        (("--gathers", "1.5"), "1.5"),
        (("--workers", "0"), "0"),
        (("--workers", ""), "''"),
        (("--workers", "2-1"), "2-1"),
        (("--workers", "1-"), "1-"),
        (("--workers", "1-1e12"), "1-1e12"),
        (("--size", ""), "''"),
        (("--size", "8.5"), "4 KiB"),
        (("--gathers", ""), "''"),
        (("--matrix", ""), "''"),
        (("--seed", "-1"), "seed"),
        (("--pattern", "stencil", "--kernel", "take"), "'take'"),
        (("--pattern", "random", "--kernel", "scipy"), "'scipy'"),
        (("--output", ""), "--output"),
        (("--plot", ""), "--plot"),
        (("--html", "/tmp"), "/tmp: Is a directory"),
        (("--output", "/tmp/a.x", "--html", "/tmp/../tmp/a.x"), "--output and --html"),
        (("--backing", "floppy"), "floppy"),
        (("--pattern", "spiral"), "spiral"),
        (("--kernel", "magic"), "magic"),
        (("--repeats", "0"), "repeats"),
        (("--plot", "/no/such/directory/a.png"), "/no/such/directory is no directory"),
        (("--reproduce", "--pattern", "random"), "--reproduce"),
        (("--reproduce", "--sweep", "5"), "--reproduce"),
        (("--sweep", "0"), "seconds, as 30"),
        (("--sweep", "soon"), "'soon'"),
        (("--sweep", "1e5"), "3600 seconds"),
        (("--compare", "a.json"), "--compare"),
        (("--compare", "a.json", "b.json", "--size", "8MB"), "not with --size"),
        (("--compare", "a.json", "b.json", "--quick"), "not with --quick"),
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
    one = bench("--size", "1e18", "--gathers", "1e5", "--workers", "1")
    assert one.returncode == 1
    assert "needed 1e+06 TB, had" in one.stderr
    assert len(one.stderr.splitlines()) == 1


def test_an_interrupted_run_leaves_nothing() -> None:
    before = dead_directories()
    with subprocess.Popen(
        (HUGEPOOL, "bench", "--quick", "--repeats", "1000000", "--pattern", "random"),
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
