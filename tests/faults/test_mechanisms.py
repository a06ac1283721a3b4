"""The record of what keeps each promise is true of this tree, and what reads it can tell.

All of it is taken away, one after the other, by ``scripts/soak mechanisms``.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from faults.mechanisms import MECHANISMS, Mechanism
from faults.removal import Copy

ROOT = Path(__file__).resolve().parents[2]
LOCKED = "a record has a checksum"


def test_every_mechanism_is_in_its_module_once() -> None:
    for one in MECHANISMS:
        assert (ROOT / one.file).read_text().count(one.line) == 1, one.what


def test_every_test_is_there() -> None:
    for one in MECHANISMS:
        file, _, name = one.test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in found, one.test


def test_the_document_says_what_the_record_says() -> None:
    told = (ROOT / "docs" / "reliability.md").read_text()
    for promise in dict.fromkeys(one.promise for one in MECHANISMS):
        assert f"### {promise}\n" in told
    _, _, section = told.partition("## Promises")
    for one in MECHANISMS:
        _, _, rest = section.partition(f"### {one.promise}\n")
        assert row(one) in rest.partition("\n##")[0], f"a row of {one.promise}:\n{row(one)}"


def row(one: Mechanism) -> str:
    """How the document tells of a mechanism."""
    file, _, name = one.test.partition("::")
    module = one.file.partition("/")[2].removesuffix(".py").replace("/", ".")
    return f"| {one.what} | `{module}` | `{Path(file).stem}`: `{name}` |"


@pytest.mark.timeout(900)
def test_one_that_is_taken_away_is_missed_and_what_nobody_misses_is_told(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    found = next(one for one in MECHANISMS if one.what == LOCKED)
    assert copy.without(found)[0] == "noticed"
    idle = Mechanism(found.promise, "nothing", found.file, found.line, found.line, found.test)
    assert copy.without(idle)[0] == "missed"
    assert copy.run([found.test])[0] == 0
