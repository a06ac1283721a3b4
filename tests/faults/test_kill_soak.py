"""Some hundred cycles of the kill soak; ten thousand are ``scripts/soak kill``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.kill_soak import ABSENT, OPEN, Broken, Ledger
from support.extras import need
from support.host import require

need("numba")

PROGRAM = Path(__file__).with_name("kill_soak.py")
CYCLES = 200


@pytest.mark.timeout(1800)
def test_nothing_is_lost_when_processes_are_killed_by_chance(
    huge_page_pool: int, tmp_path: Path
) -> None:
    require("mounts", os.geteuid() == 0, "needs root to mount")
    report_path = tmp_path / "kill.json"
    done = subprocess.run(
        [
            *(sys.executable, str(PROGRAM), "--cycles", str(CYCLES), "--seed", "1"),
            *("--report", str(report_path)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_path.read_text())
    assert report["cycles"] == CYCLES
    assert min(report["killed"][role] for role in ("coordinator", "worker", "client")) > CYCLES / 20


def told(verb: str, name: str, content: int | None, outcome: str = "") -> dict[str, object]:
    call = {"verb": verb, "name": name, "content": content}
    return {"end": call, "outcome": outcome, "ns": 1} if outcome else {"begin": call}


def sealed(content: int) -> dict[str, object]:
    return {"sealed": True, "lost": False, "content": content, "nbytes": 8}


def test_the_ledger_wants_what_was_acknowledged() -> None:
    ledger = Ledger()
    ledger.hear(told("put", "c0-1", 5))
    assert ledger.possible["c0-1"] == {ABSENT, OPEN, 5}
    assert not ledger.compare({})  # it had begun, so it may have failed
    ledger.hear(told("put", "c0-1", 6))
    ledger.hear(told("put", "c0-1", 6, "ok"))
    assert "c0-1 holds absent" in ledger.compare({})
    assert "c0-1 holds None" in ledger.compare({"c0-1": {**sealed(6), "content": None}})
    assert not ledger.compare({"c0-1": sealed(6)})
    assert "c0-2 holds 6" in ledger.compare({"c0-1": sealed(6), "c0-2": sealed(6)})


def test_the_ledger_gives_up_what_a_dead_client_had_not_sealed() -> None:
    ledger = Ledger()
    ledger.hear(told("create", "c1-0", None))
    ledger.hear(told("create", "c1-0", None, "ok"))
    assert ledger.possible["c1-0"] == {OPEN}
    ledger.owner_died(1)
    assert ledger.possible["c1-0"] == {ABSENT}


def test_the_ledger_knows_a_wrong_result() -> None:
    with pytest.raises(Broken, match="torn"):
        Ledger().hear(told("attach", "c0-0", None, "WRONG c0-0 is torn"))
