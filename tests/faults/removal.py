"""Takes the mechanisms of ``mechanisms.py`` away one by one, and runs the test of each.

A test that passes without what it is named beside proves nothing, so it is told and the exit
status is 1. The tests run with the code whole first. The code is changed in a copy::

    python tests/faults/removal.py --report removals.json
    python tests/faults/removal.py --only "locks are looked at every second"
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.mechanisms import MECHANISMS, Mechanism

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "client", "server")
TIMEOUT_S = 120
_FAILED = 1  # what pytest says of tests that ran; anything else means that they did not


class Copy:
    """A copy of the three packages, to be broken and mended."""

    def __init__(self, place: Path) -> None:
        self._place = place
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, place / package, ignore=ignored)
        # By their hash: a change within the same second must not run as it was before.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(place, quiet=1, invalidation_mode=checked)

    def run(self, tests: Sequence[str]) -> tuple[int, str]:
        """Run tests with this code; pytest's status and what it said."""
        path = os.pathsep.join(str(self._place / package) for package in PACKAGES)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-rs", "-p", "no:cacheprovider"]
        with subprocess.Popen(
            [*command, f"--timeout={TIMEOUT_S}", "--tb=short", *tests],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=(1 + len(tests)) * TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # A coordinator that does not end, say: nothing of it may stay.
                os.killpg(process.pid, signal.SIGKILL)
                return _FAILED, process.communicate()[0] + "\nE  it did not end"
            finally:
                self._end_what_is_left()
        return process.returncode, said

    def _end_what_is_left(self) -> None:
        """End processes that still run this copy's code: one that does not end with its parent."""
        path = os.fsencode(self._place / PACKAGES[0])
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # it has ended, or is another user's
                    if path in (entry / "environ").read_bytes():
                        os.kill(int(entry.name), signal.SIGTERM)

    def without(self, mechanism: Mechanism) -> tuple[str, str]:
        """Run its test without a mechanism: ``noticed``, ``missed`` or ``skipped``, and why."""
        path = self._place / mechanism.file
        whole = path.read_text()
        assert whole.count(mechanism.line) == 1, f"{mechanism.what}: the code is not what it was"
        path.write_text(whole.replace(mechanism.line, mechanism.instead))
        try:
            status, said = self.run([mechanism.test])
        finally:
            path.write_text(whole)
        if status == _FAILED:
            reasons = [line[1:].strip() for line in said.splitlines() if line.startswith("E  ")]
            return "noticed", (reasons or [said.splitlines()[-1]])[0][:160]
        if status == 0:
            summary = said.splitlines()[-1]
            return ("missed" if "passed" in summary else "skipped"), summary
        raise SystemExit(f"{mechanism.what}: its test did not run\n{said}")


def main() -> int:
    """Take away all, or those that were named; 0 if every one was missed by its test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="WHAT", help="may be repeated")
    parser.add_argument("--report", type=Path, help="write every outcome here, as JSON")
    asked = parser.parse_args()
    chosen = [one for one in MECHANISMS if asked.only is None or one.what in asked.only]
    if not chosen:
        parser.error("no mechanism is called so")
    told = []
    with tempfile.TemporaryDirectory(prefix="hugepool-removal-") as place:
        copy = Copy(Path(place))
        status, said = copy.run(list(dict.fromkeys(one.test for one in chosen)))
        if status != 0:
            print(f"the tests fail with the code whole\n{said}", file=sys.stderr)
            return 2
        for mechanism in chosen:
            began = time.monotonic()
            outcome, why = copy.without(mechanism)
            seconds = time.monotonic() - began
            print(f"{outcome:<8} {mechanism.what}\n         {why}", flush=True)
            told.append(
                {
                    "promise": mechanism.promise,
                    "mechanism": mechanism.what,
                    "file": mechanism.file,
                    "removed": mechanism.line.strip(),
                    "test": mechanism.test,
                    "outcome": outcome,
                    "reason": why,
                    "seconds": round(seconds, 1),
                }
            )
    if asked.report is not None:
        asked.report.write_text(json.dumps(told, indent=1) + "\n")
    counts = {one["outcome"] for one in told}
    print(f"{len(told)} mechanisms taken away; every test noticed: {counts == {'noticed'}}")
    return 0 if counts <= {"noticed", "skipped"} else 1


if __name__ == "__main__":
    sys.exit(main())
