"""``hugepool doctor`` as it is installed, on this very host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from hugepool_common.units import MIB
from support.host import require

HUGEPOOL = str(Path(sysconfig.get_path("scripts")) / "hugepool")


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def rung(told: dict[str, Any], name: str) -> dict[str, Any]:
    found = [one for one in told["rungs"] if one["rung"] == name]
    assert len(found) == 1
    return dict(found[0])


def test_json_parses_and_the_exit_status_agrees_with_it() -> None:
    done = ran(HUGEPOOL, "doctor", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == told["exit_status"]
    assert (done.returncode == 0) == any(one["outcome"] == "huge" for one in told["rungs"])
    assert done.returncode in (0, 4)
    small = rung(told, "shm-4k")
    assert (small["outcome"], small["huge_bytes"], small["length"]) == ("small", 0, 2 * MIB)
    for one in told["rungs"]:
        if one["outcome"] == "refused":
            assert one["reason"]
    assert "available" in told["tlb_counter"]


def test_text_off_a_terminal_is_plain() -> None:
    done = ran(HUGEPOOL, "doctor")
    assert done.returncode in (0, 4)
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith(("huge pages: ", "no array"))
    assert "RUNG" in done.stdout


def test_room_must_be_a_number_of_bytes() -> None:
    done = ran(HUGEPOOL, "doctor", "--room", "plenty")
    assert done.returncode in (1, 2)
    assert "plenty" in done.stderr
    assert "Traceback" not in done.stderr


def test_collapse_needs_no_preparation() -> None:
    told = json.loads(ran(HUGEPOOL, "doctor", "--json").stdout)
    collapse = rung(told, "shm-collapse")
    require("collapse", collapse["outcome"] == "huge", str(collapse["reason"]))
    assert collapse["huge_bytes"] == collapse["length"] == 2 * MIB


@pytest.mark.parametrize("name", ["tmpfs-huge", "hugetlbfs-2m"])
def test_the_suggested_commands_bring_the_rung(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In a mount namespace of its own the advice is followed to the letter."""
    if name == "hugetlbfs-2m":
        request.getfixturevalue("huge_page_pool")
    private = shutil.which("unshare") is not None and os.geteuid() == 0
    require("mounts", private and ran("unshare", "-m", "true").returncode == 0, "needs root")
    # Mounts are made over, so that neither the host's /dev/shm nor its directories change.
    script = (
        "set -e\n"
        "mount -t tmpfs none /run && mount -t tmpfs -o size=64M none /dev/shm\n"
        f"{HUGEPOOL} doctor --room 8M --json > {tmp_path}/before || true\n"
        f"{sysconfig.get_path('scripts')}/python - <<'END'\n"
        "import json\n"
        f"told = json.load(open('{tmp_path}/before'))\n"
        f"commands = [c for r in told['rungs'] if r['rung'] == '{name}' for c in r['commands']]\n"
        f"open('{tmp_path}/commands', 'w').write('\\n'.join(commands) + '\\n')\n"
        "END\n"
        f"sh -e {tmp_path}/commands\n"
        f"{HUGEPOOL} doctor --room 8M --json > {tmp_path}/after\n"
        "ls -A /dev/shm\n"
    )
    done = ran("unshare", "-m", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    before = rung(json.loads((tmp_path / "before").read_text()), name)
    after = rung(json.loads((tmp_path / "after").read_text()), name)
    assert before["outcome"] == "refused"
    assert before["commands"]
    assert after["outcome"] == "huge", after["reason"]
    assert after["commands"] == []
    assert done.stdout == ""  # nothing is left behind
