"""The line that is shown while something takes long."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

WAITING = """
import time
from hugepool import progress
progress.DELAY_S = 0.0
with progress.Waiting("reading a[/b]/[red]\\x1b[2J.npy") as waiting:
    waiting.update(1, 2)
    while waiting._shown is None:
        time.sleep(0.01)
print("done")
"""


def test_names_of_files_are_neither_markup_nor_commands() -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        timeout=200,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
    )
    os.close(follower)
    seen = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert (done.returncode, done.stdout) == (0, "done\n"), seen
    assert r"reading a[/b]/[red]\x1b[2J.npy" in seen
