"""Whether threads and address space are there, looked at without keeping any."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own: threads that others leave would be counted, or end meanwhile.
TRIED = """
import os, sys
from hugepool_common import transport
transport._FAREWELL_S = 60.0  # a thread may take its time to go where the machine is busy
before = set(os.listdir("/proc/self/task"))
for _ in range(20):
    try:
        transport.hold_threads(3, int(sys.argv[1]))
        print("held")
    except OSError as error:
        print(error.strerror)
    assert not set(os.listdir("/proc/self/task")) - before
"""


@pytest.mark.parametrize(
    ("spare_bytes", "said"), [(4096, "held"), (1 << 60, "Cannot allocate memory")]
)
def test_threads_that_are_tried_are_gone_afterwards(spare_bytes: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIED, str(spare_bytes)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [said] * 20
