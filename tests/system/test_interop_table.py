"""docs/interop.md: every cell's test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_table_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/interop.md").read_text()))
    files = ("interop", "handover", "shared_memory", "formats")
    defined: set[str] = set()
    for file in files:
        text = (ROOT / f"tests/system/test_{file}.py").read_text()
        defined |= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
        defined |= set(re.findall(r"\"(test_\w+)\"", text))  # CPython's, which are run by name
    not_ours = {
        line.split("`")[1]
        for line in (ROOT / "docs/interop.md").read_text().splitlines()
        if "| not applicable" in line
    }
    assert len(named & defined) > 40
    assert named - defined == not_ours
