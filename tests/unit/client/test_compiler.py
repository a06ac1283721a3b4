"""The cache of compiled kernels: private, safe for many processes, never in the way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hugepool import kernels
from hugepool.kernels import compiler
from support.extras import need

CHILD = """
import sys
import numpy as np
from hugepool import kernels
from hugepool.kernels import compiler
compiler._LOCK_WAIT_NS = 500 * 10**9  # others may take long where the machine is busy
kernel = kernels.resolve("gather", "numba")
for dtype in sys.argv[1:]:
    x, out = np.arange(100).astype(dtype), np.zeros(50, dtype)
    idx = np.arange(50)[::-1].copy()
    kernel({"x": x, "idx": idx, "out": out}, 0, 50)
    assert (out == x[idx]).all(), dtype
hits = [
    sum(loop.stats.cache_hits.values())
    for loop in kernels.gather._gather_elements._compiled.values()
]
print(sum(hits), compiler.cache_directory())
"""


def _child(directory: Path, *dtypes: str, **variables: str) -> subprocess.Popen[str]:
    variables = {"NUMBA_CACHE_DIR": str(directory)} | variables
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, *dtypes],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(child: subprocess.Popen[str]) -> tuple[int, Path]:
    stdout, stderr = child.communicate(timeout=500)
    assert child.returncode == 0, stderr
    hits, directory = stdout.split()
    return int(hits), Path(directory)


@pytest.fixture(autouse=True)
def _numba() -> None:
    need("numba")


@pytest.mark.timeout(1100)
def test_processes_that_compile_at_once_share_one_sound_cache(tmp_path: Path) -> None:
    dtypes = ["<u1", "<u2", "<u4", "<f8"]
    together = [_child(tmp_path, dtype) for dtype in dtypes] + [_child(tmp_path, "<u2")]
    compiled = [_finished(child) for child in together]
    assert sum(hits for hits, _ in compiled) == 1  # one of the two of <u2 waited and loaded
    (directory,) = {directory for _, directory in compiled}
    assert directory.parent == tmp_path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert _finished(_child(tmp_path, *dtypes))[0] == len(dtypes)


@pytest.mark.timeout(1100)
def test_a_damaged_cache_is_passed_over(tmp_path: Path) -> None:
    _, directory = _finished(_child(tmp_path, "<f8"))
    damaged = [path for path in directory.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    assert _finished(_child(tmp_path, "<f8"))[0] == 0


@pytest.mark.timeout(1100)
def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    _, directory = _finished(_child(tmp_path, "<u1"))
    directory.chmod(0o777)
    home = tmp_path / "home"
    _, elsewhere = _finished(_child(tmp_path, "<u1", XDG_CACHE_HOME=str(home)))
    assert elsewhere == home / "hugepool" / directory.name


def test_the_directory_follows_settings_that_change_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = compiler._directory_name()
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert compiler._directory_name() != before
    monkeypatch.delenv("NUMBA_BOUNDSCHECK")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/elsewhere")
    assert compiler._directory_name() == before


def test_places_of_the_cache_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/chosen")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    temporary = str(tmp_path / f"hugepool-cache-{os.geteuid()}")
    assert list(compiler._cache_parents()) == ["/chosen", "/caches/hugepool", temporary]
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert next(iter(compiler._cache_parents())) == "/home/somebody/.cache/hugepool"
    os.rmdir(temporary)
    os.symlink("/var", temporary)
    assert temporary not in list(compiler._cache_parents())


def test_kernels_run_without_any_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "cache_directory", lambda: None)
    total = compiler.CompiledLoop("hugepool.kernels.stream_loops", "total")
    assert total(np.ones(20), 3, 20) == 17


def test_the_users_own_numba_cache_setting_is_left_alone() -> None:
    import numba

    before = numba.config.CACHE_DIR
    kernels.resolve("sum", "numba")({"a": np.ones(9)}, 0, 9)
    assert before == numba.config.CACHE_DIR
