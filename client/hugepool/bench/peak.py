"""What one CPU computes at most: the flat part of a roofline."""

from __future__ import annotations

import os
import subprocess
import sys

ORDER = 768
"""Rows and columns of the matrices: 14 MB in all, and long enough to time."""

_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
_SECONDS = 60
# NumPy's BLAS reads its number of threads when it is loaded: hence a process of its own.
_PROGRAM = f"""
import time
import numpy
a = numpy.random.default_rng(1).random(({ORDER}, {ORDER}))
out = numpy.empty_like(a)
best = float("inf")
for _ in range(8):
    began = time.perf_counter()
    numpy.matmul(a, a, out=out)
    best = min(best, time.perf_counter() - began)
print(2 * {ORDER}**3 / best / 1e9)
"""


def peak_gflops() -> float | None:
    """1e9 float64 operations per second of NumPy's matrix product on one CPU, the best of eight.

    Returns
    -------
    float or None
        None where it could not be measured; a roofline is then drawn without its flat part.
    """
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    try:
        done = subprocess.run(
            (sys.executable, "-c", _PROGRAM),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=True,
        )
        return float(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
