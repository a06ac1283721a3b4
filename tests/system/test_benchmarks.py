"""Every program of ``benchmarks/`` runs, checks its results and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent.parent.parent / "benchmarks"

pytestmark = pytest.mark.timeout(900)
pytest.importorskip("scipy", reason="the programs check their results against SciPy's")


def run_program(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, str(PROGRAMS / f"{name}.py"), *words),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def told(path: Path, name: str, *words: str) -> dict[str, Any]:
    done = run_program(name, *words, "--json", str(path))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def names(contest: dict[str, Any]) -> set[str]:
    return {entry["name"] for entry in contest["entries"]}


def test_gathers_of_ours_and_of_numpy_are_equal_and_timed(tmp_path: Path) -> None:
    words = ("--size", "1MB", "--rounds", "2", "--pages", "4K", "--peers", "numpy")
    (contest,) = told(tmp_path / "run.json", "gather", *words)["contests"]
    assert names(contest) >= {"pool.gather(out)", "pool.gather", "numpy take(clip, out)"}
    for entry in contest["entries"]:
        assert len(entry["samples_ns"]) == 2
        assert min(entry["samples_ns"]) > 0
        if entry["group"] != "limit":
            assert entry["agreement"] == "bit for bit", entry["name"]


@pytest.mark.parametrize(
    "matrix", ["uniform", "kronecker:8", "stencil:8", "arrow", "dense-rows", "depends:1"]
)
def test_products_with_every_kind_of_matrix_agree(tmp_path: Path, matrix: str) -> None:
    words = ("--size", "200KB", "--rounds", "1", "--pages", "4K", "--peers", "scipy")
    run = told(tmp_path / "run.json", "matvec", *words, "--matrix", matrix, "--workers", "1")
    (contest,) = run["contests"]
    assert contest["title"].startswith(f"{matrix}: ")
    assert names(contest) >= {"pool.matvec(out)", "scipy A @ x", "scipy csr_matvec(y)"}
    computed = [entry for entry in contest["entries"] if entry["group"] != "limit"]
    assert all(entry["agreement"] for entry in computed)
    ratios = {(one["ours"], one["peer"]) for one in contest["ratios"]}
    assert ("pool.matvec(out)", "scipy A @ x") in ratios


def test_transposed_products_agree_and_have_peers_of_their_own(tmp_path: Path) -> None:
    words = ("--size", "200KB", "--rounds", "1", "--pages", "4K", "--peers", "scipy")
    forms = ("--forms", "direct,binned", "--matrix", "dense-rows", "--workers", "1,2")
    run = told(tmp_path / "run.json", "matvec", *words, *forms, "--transposed")
    (contest,) = run["contests"]
    assert contest["title"].startswith("dense-rows, transposed: ")
    agreed = {
        (entry["name"], entry["workers"]): entry["agreement"]
        for entry in contest["entries"]
        if entry["group"] != "limit"
    }
    assert all(agreed.values()), agreed
    assert agreed["plan binned (jobs)", 2] == "bit for bit"
    assert agreed["pool.rmatvec(out)", 1] == agreed["scipy csc_matvec(y)", 1] == "bit for bit"
    # Each process takes columns of a transpose that is kept; who sums over rows runs alone.
    assert {("scipy kept A.T.tocsr() @ x", 1), ("scipy kept A.T.tocsr() @ x", 2)} <= set(agreed)
    alone = {one["name"] for one in run["missing"] if one["workers"] == 2}
    assert {"scipy A.T @ x", "scipy csc_matvec(y)"} <= alone


def test_plans_that_round_are_checked_by_what_they_may_round(tmp_path: Path) -> None:
    forms = ("mirrored", "compact", "bfloat16")
    words = ("--matrix", "stencil-symmetric:8", "--forms", ",".join(forms), "--workers", "1")
    run = told(
        tmp_path / "run.json",
        "matvec",
        *words,
        "--rounds",
        "1",
        "--pages",
        "4K",
        "--peers",
        "scipy",
    )
    (contest,) = run["contests"]
    agreed = {entry["name"]: entry["agreement"] for entry in contest["entries"]}
    assert agreed["plan mirrored (jobs)"] == "bit for bit"
    assert all(agreed[f"plan {form} (jobs)"] for form in forms[1:]), agreed
    kept = {plan["name"]: plan["described"] for plan in contest["plans"]}
    assert "values: float64" in kept["plan mirrored"]


def test_a_step_is_timed_by_every_way_that_is_there(tmp_path: Path) -> None:
    words = ("--size", "200", "--rounds", "1", "--steps", "3", "--pages", "4K", "--workers", "2")
    run = told(tmp_path / "run.json", "dispatch", *words, "--peers", "multiprocessing")
    (contest,) = run["contests"]
    assert names(contest) >= {
        "pool.matvec(out)",
        "multiprocessing Pipe",
        "multiprocessing Pool.map",
    }
    assert all(len(entry["samples_ns"]) == 3 for entry in contest["entries"])


def test_making_and_attaching_are_timed_by_stages(tmp_path: Path) -> None:
    run = told(tmp_path / "run.json", "create_attach", "--size", "1MB", "--rounds", "2")
    assert [contest["title"].partition(":")[0] for contest in run["contests"]] == [
        "create and fill",
        "attach",
        "attach and first pass",
        "second pass",
    ]
    for contest in run["contests"]:
        expected = {"hugepool", "multiprocessing shared_memory", "numpy memmap"}
        assert names(contest) == expected


def test_scaling_compares_every_count_with_one_process(tmp_path: Path) -> None:
    words = ("--size", "300KB", "--rounds", "1", "--pages", "4K", "--matrix", "stencil")
    run = told(tmp_path / "run.json", "scaling", *words)
    gathers, products = run["contests"]
    assert "pool.gather(out)" in names(gathers)
    assert "pool.matvec(out)" in names(products)
    workers = {entry["workers"] for entry in products["entries"]}
    assert {one["workers"] for one in products["scalings"]} == workers - {1}


def test_matrices_are_canonical_and_the_same_for_a_seed() -> None:
    code = """
import numpy, scipy.sparse, matrices
for name in matrices.RECIPES:
    made, again = (matrices.make_matrix(name, 100_000, seed=3)[0] for _ in range(2))
    other = matrices.make_matrix(name, 100_000, seed=4)[0]
    for role in ("indptr", "indices", "data"):
        assert numpy.array_equal(getattr(made, role), getattr(again, role)), (name, role)
    assert name == "stencil" or not numpy.array_equal(made.data[:9], other.data[:9]), name
    given = (made.data, made.indices, made.indptr)
    checked = scipy.sparse.csr_array(given, shape=made.shape)
    checked.check_format(full_check=True)
    assert checked.has_canonical_format, name
    print(name, made.nnz)
"""
    done = subprocess.run(
        (sys.executable, "-c", code), cwd=PROGRAMS, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10


def test_the_table_and_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "run.png"
    words = ("--size", "200KB", "--rounds", "1", "--workers", "1", "--matrix", "stencil")
    done = run_program("matvec", *words, "--peers", "scipy", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    assert "(columns) over peers (rows)" in done.stdout
    assert "scipy csr_matvec(y)" in done.stdout
    assert "round 1 of 1" in done.stderr
    assert "\x1b" not in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--matrix", "hilbert"), "'hilbert' is not of"),
        (("--pages", "3K"), "'3K' is not of 2M,4K"),
        (("--workers", "100000"), "every worker needs a CPU of its own"),
        (("--size", "lots"), "is not a number of bytes"),
        (("--rounds", "0"), "must be 1 or more"),
        (("--forms", "woven"), "'woven' is not of"),
    ],
)
def test_bad_choices_are_refused(words: tuple[str, ...], said: str) -> None:
    done = run_program("matvec", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_starts_are_timed(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    done = run_program("startup", "--rounds", "2", "--arrays", "3", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "aim 150 ms" in done.stdout
    found = {one["name"]: one for one in json.loads(path.read_bytes())["found"]}
    assert {"import hugepool", "hugepool ls"} <= set(found)
    assert all(len(one["cpu_ns"]) == 2 and min(one["cpu_ns"]) > 0 for one in found.values())
    assert run_program("startup", "--rounds", "0").returncode == 2


def test_what_does_not_fit_into_memory_is_refused() -> None:
    done = run_program("gather", "--size", "8MB", "--gathers", "1e12", "--pages", "4K")
    assert done.returncode == 1
    assert "may be taken" in done.stderr


def test_deaths_and_restarts_are_timed_and_nothing_is_missing_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "200")  # the next one may take its time to start
    words = ("--deaths", "3", "--restarts", "2", "--arrays", "5", "--sessions", "3")
    found = told(tmp_path / "run.json", "restart", *words)["found"]
    assert [len(one["samples_ns"]) for one in found] == [3, 2, 2]
    for one in found:
        assert 0 < one["p50_ns"] <= one["p99_ns"] <= one["max_ns"] == max(one["samples_ns"])
    _, bound, resumed = found
    assert all(
        early < late for early, late in zip(bound["samples_ns"], resumed["samples_ns"], strict=True)
    )
