"""Fifteen hundred cycles of the leak run; a million are ``scripts/soak leaks``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.leaks import growth
from support.host import require

PROGRAM = Path(__file__).with_name("leaks.py")


@pytest.mark.timeout(900)
def test_nothing_grows_over_arrays_made_and_destroyed(huge_page_pool: int, tmp_path: Path) -> None:
    require("mounts", os.geteuid() == 0, "needs root to mount")
    report_path = tmp_path / "leaks.json"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--cycles", "1500", "--report", str(report_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_path.read_text())
    assert len(report["readings"]["at"]) >= 60


def test_a_leak_of_a_few_bytes_a_cycle_is_seen_in_a_line_through_the_readings() -> None:
    cycles = [1000 * number for number in range(1, 61)]
    steps = [1_000_000 + 100 * at + (at // 1000 % 2) * 4096 for at in cycles]
    rise, scatter = growth(cycles, steps)
    assert 4_000_000 < rise < 5_000_000
    assert 1500 < scatter < 2500
    level = [1_000_000 + (at // 1000 % 2) * 4096 for at in cycles]
    assert abs(growth(cycles, level)[0]) < 4096
