"""A sample of the syscall sweep; the whole of it is ``scripts/soak sweep``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.host import require
from support.tracing import have_strace

PROGRAM = Path(__file__).with_name("sweep.py")


@pytest.mark.timeout(1800)
def test_every_kind_of_call_killed_and_made_to_fail(huge_page_pool: int, tmp_path: Path) -> None:
    require("strace", not have_strace(), have_strace())
    require("mounts", os.geteuid() == 0, "needs root to mount")
    report_path = tmp_path / "sweep.json"
    done = subprocess.run(
        [
            *(sys.executable, str(PROGRAM), "--seed", "1", "--report", str(report_path)),
            *("--sample", "140", "--compound", "25"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(report_path.read_text())
    assert report["failures"] == []
    # A point that was not reached proves nothing.
    assert report["fired"] >= 140
    assert len(report["unreached"]) <= 3, report["unreached"]
