"""The scripts that make the environment and run the checks, without making one here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.host import require

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "scripts" / "environment.sh"
PROGRAMS = [
    *(ROOT / "scripts" / name for name in ("test", "bench", "docs")),
    ROOT / ".ci" / "run",
]


def ran(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def sourced(commands: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run bash commands with the functions of environment.sh."""
    text = f"set -euo pipefail; . {shlex.quote(str(ENVIRONMENT))}; {commands}"
    return ran("bash", "-c", text, **variables)


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert ran("bash", "-n", script).returncode == 0
    assert "set -euo pipefail" in script.read_text()


def test_every_folder_of_tests_is_run() -> None:
    script = (ROOT / "scripts" / "test").read_text()
    named = {
        word
        for lane in re.findall(r"^(?:pure|real)=\((.+)\)$", script, re.M)
        for word in lane.split()
    }
    assert named == {
        f"tests/{found.parent.relative_to(ROOT / 'tests').parts[0]}"
        for found in (ROOT / "tests").rglob("test_*.py")
    }


@pytest.mark.parametrize(("pure", "real", "check"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_the_check_fails_if_any_part_does_and_only_then(
    pure: int, real: int, check: int, tmp_path: Path
) -> None:
    programs, scripts = tmp_path / "venv" / "bin", tmp_path / "scripts"
    programs.mkdir(parents=True)
    scripts.mkdir()
    (scripts / "test").write_text((ROOT / "scripts" / "test").read_text())
    (scripts / "environment.sh").write_text(
        f"root={tmp_path} venv={tmp_path}/venv state={tmp_path}\n"
        'say() { echo "$*" >&2; }\nprepare_environment() { :; }\n'
    )
    answers = dict.fromkeys(("ruff", "lint-imports"), "exit 0") | {"mypy": f"exit {check}"}
    answers["python"] = f'case "$*" in *tests/unit*) exit {pure} ;; *) exit {real} ;; esac'
    for name, answer in answers.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    done = ran("bash", scripts / "test", TMPDIR=str(tmp_path))
    assert bool(done.returncode) == bool(pure or real or check), done.stderr
    assert not list(tmp_path.glob("tmp.*"))


def test_no_package_index_is_named() -> None:
    for script in [*PROGRAMS, ENVIRONMENT]:
        text = script.read_text()
        assert "://" not in text
        assert "index-url" not in text


def test_a_machine_without_a_new_python_is_told_so(tmp_path: Path) -> None:
    done = sourced(
        "is_new_enough() { return 1; }; can_make_environment() { return 1; }; prepare_environment",
        HUGEPOOL_VENV=str(tmp_path / "venv"),
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv" / "bin").exists()


def test_a_python_without_venv_is_told_so(tmp_path: Path) -> None:
    done = sourced(
        "is_new_enough() { [[ $1 == python3 ]]; }; can_make_environment() { return 1; }; "
        "prepare_environment",
        HUGEPOOL_VENV=str(tmp_path / "venv"),
    )
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


def test_the_key_of_an_installation_follows_what_it_depends_on(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "pyvenv.cfg").write_text("version = 3.11.2\n")
    command = f"root={tmp_path} venv={tmp_path} && installation_key"
    first = sourced(command).stdout
    assert len(first.strip()) == 64
    assert sourced(command).stdout == first
    (tmp_path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    second = sourced(command).stdout
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert len({first, second, sourced(command).stdout}) == 3


def test_an_installation_of_another_key_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "pyvenv.cfg").write_text("version = 3.11.2\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    place = f"root={tmp_path} venv={tmp_path}"
    assert sourced(f"{place}; is_installed").returncode == 1
    stamped = f"{place}; installation_key > {tmp_path}/hugepool-installed; is_installed"
    assert sourced(stamped).returncode == 0
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert sourced(f"{place}; is_installed").returncode == 1


def test_the_dev_group_is_read_whole() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        group = tomllib.load(file)["dependency-groups"]["dev"]
    done = sourced(f"venv={shlex.quote(sys.prefix)}; dev_requirements")
    assert done.stdout.splitlines() == group


@pytest.mark.parametrize("home", ["", "/nonexistent"])
def test_an_unusable_home_is_replaced(home: str, tmp_path: Path) -> None:
    done = sourced("choose_place; echo $HOME", HOME=home, HUGEPOOL_VENV=str(tmp_path))
    assert done.stdout.strip() == str(tmp_path / "home")


def test_the_whole_check_refuses_to_start_without_root() -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become another user")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    readable = ran(*user, "test", "-r", PROGRAMS[-1]).returncode == 0
    require("unprivileged", readable, "the tree lies where other users cannot read")
    done = ran(*user, "bash", PROGRAMS[-1])
    assert done.returncode == 2
    assert "needs root" in done.stderr
