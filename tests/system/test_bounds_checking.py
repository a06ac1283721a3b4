"""The property tests of the kernels once more, with every array access checked by numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.examples import DIVISOR_VARIABLE
from support.extras import need

ROOT = Path(__file__).resolve().parents[2]
PROPERTIES = sorted(
    path.name
    for path in (ROOT / "tests" / "properties").glob("test_*.py")
    if "hugepool.kernels" in path.read_text() or "import kernels" in path.read_text()
)

READ_BEHIND_THE_END = """
import numpy as np
from hugepool.kernels.compiler import CompiledLoop

sum_all = CompiledLoop("hugepool.kernels.stream_loops", "total")
sum_all(np.ones(8), 0, 80)
"""


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", DIVISOR_VARIABLE: "10"},
    )


def test_an_access_behind_the_end_is_found() -> None:
    need("numba")
    done = _run("-c", READ_BEHIND_THE_END)
    assert done.returncode == 1
    assert "IndexError" in done.stderr


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", PROPERTIES)
def test_no_kernel_reaches_outside_its_arrays(name: str) -> None:
    need("numba")
    options = ("-q", "-x", "-p", "no:cacheprovider")
    done = _run("-m", "pytest", *options, str(ROOT / "tests" / "properties" / name))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
