"""The property tests of the kernels once more, with every array access checked by numba."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.examples import FACTOR_VARIABLE
from support.extras import need

ROOT = Path(__file__).resolve().parents[2]
PROPERTIES = sorted(
    path.name
    for path in (ROOT / "tests" / "properties").glob("test_*.py")
    if path != Path(__file__)
    and ("hugepool.kernels" in path.read_text() or "import kernels" in path.read_text())
)

READ_BEHIND_THE_END = """
import numpy as np
from hugepool.kernels.compiler import CompiledLoop

sum_all = CompiledLoop("hugepool.kernels.stream_loops", "total")
sum_all(np.ones(8), 0, 80)
"""


def _run(*command: str, factor: float = 1.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", FACTOR_VARIABLE: str(factor)},
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
    options = ("-q", "-x", "-p", "no:cacheprovider", "--timeout", "0")  # but for our own
    factor = 0.3 if name == "test_direct_kernels.py" else 1.0  # that has by far the most tests
    path = str(ROOT / "tests" / "properties" / name)
    done = _run("-m", "pytest", *options, path, factor=factor)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
