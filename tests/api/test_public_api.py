"""The public names, and what importing them costs."""

from __future__ import annotations

import json
import subprocess
import sys

import hugepool
from hugepool_common.errors import ERROR_KINDS, ErrorCode


def test_all_is_what_is_there() -> None:
    assert sorted(hugepool.__all__) == hugepool.__all__
    assert all(hasattr(hugepool, name) for name in hugepool.__all__)


def test_every_error_is_public_and_of_its_stdlib_kin() -> None:
    assert set(ERROR_KINDS) == set(ErrorCode)
    for kind in ERROR_KINDS.values():
        if kind is not hugepool.HugepoolError:
            assert getattr(hugepool, kind.__name__) is kind


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a piece of work."""
    done = subprocess.run(
        [sys.executable, "-c", *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


REPORT = "; import json, sys; print(json.dumps([m.partition('.')[0] for m in sys.modules]))"
HEAVY = {"numba", "llvmlite", "scipy", "matplotlib"}


def test_import_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded_by("import hugepool" + REPORT)


def test_help_loads_nothing_heavy() -> None:
    run = (
        "from click.testing import CliRunner; from hugepool.cli import hugepool as group; "
        "assert 'bench' in CliRunner().invoke(group, ['--help']).output"
    )
    assert not HEAVY & loaded_by(run + REPORT)


def test_elsewhere_than_linux_the_reason_is_clear() -> None:
    script = (
        "import sys; sys.platform = 'darwin'; import hugepool\n"
        "try: hugepool.connect()\n"
        "except hugepool.UnsupportedPlatformError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "needs Linux" in done.stdout, done.stderr
