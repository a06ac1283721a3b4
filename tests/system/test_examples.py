"""Every program in examples/ is run, as its own docstring says; it checks its results itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.extras import need

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LISTED = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
NEEDS = {"pagerank": ["scipy", "numba"], "conjugate_gradient": ["scipy", "numba"]}
NEEDS["torch_loader"] = ["torch"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_prints_its_table(path: Path) -> None:
    for package in NEEDS.get(path.stem, []):
        need(package)
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "HUGEPOOL_ADDRESS": "embedded"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # The same lines as are shown, but for their numbers.
    shown = re.search(rf"python examples/{path.name}\n(.*?)```", LISTED, re.DOTALL)
    assert shown is not None
    assert [_first_word(line) for line in done.stdout.splitlines()] == [
        _first_word(line) for line in shown[1].splitlines()
    ]


def _first_word(line: str) -> str:
    word = line.split()[0]
    return "#" if word[0].isdigit() else word


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring is not None
    assert f"python examples/{path.name}" in docstring
    assert f"({path.name})" in LISTED
