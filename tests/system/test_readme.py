"""Every code block of the README is run: shells as processes, scripts in order against them.

So are those of the page that shows the commands at work, which the README leads to.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support.commands import Shell
from support.documents import ROOT, beginning, blocks_of, on_screen
from support.service import Service, tell

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
AT_WORK = (ROOT / "docs" / "reference" / "session.md").read_text(encoding="utf-8")
BLOCKS = [(block.language, block.text) for block in (*blocks_of(TEXT), *blocks_of(AT_WORK))]
SCRIPTS = [text for language, text in BLOCKS if language == "python"]
SHELL_BLOCKS = [
    [shlex.split(line, comments=True) for line in text.splitlines()]
    for language, text in BLOCKS
    if language == "bash"
]
LINES = [line for block in SHELL_BLOCKS for line in block]
SERVICES = [line for line in LINES if line[1:2] in (["serve"], ["worker"])]
SERVED = [
    line for line in LINES if line[1:2] in (["publish"], ["verify"], ["snapshot"], ["restore"])
]
COMMANDS = [line for line in LINES if line[0] == "hugepool" and line not in SERVICES + SERVED]
COMMAND_BLOCKS = [
    found for block in SHELL_BLOCKS if (found := [line for line in block if line in COMMANDS])
]
"""Commands that need no service; a later one of a block may read what an earlier one wrote."""
SESSIONS = {
    name: [
        shown
        for block in blocks_of(text)
        if block.language == "console"
        for shown in block.session()
    ]
    for name, text in (("README", TEXT), ("commands at work", AT_WORK))
}
"""Commands at a terminal, and what they show there; each document's have a service of their own."""

OF_THE_HOST = {"plan", "setup"}
"""Commands that show other lines on other machines."""

BIN = sysconfig.get_path("scripts")


def test_the_languages_are_known() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "console", "python", "text"}


def test_scripts_and_commands_run_in_order_as_in_three_shells(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = {"HUGEPOOL_RUNTIME_DIR": str(service.directory), "HUGEPOOL_ADDRESS": ""}
    assert [line[1] for line in SERVICES] == ["serve", "worker"]
    serve = service.spawn(f"{BIN}/hugepool", *SERVICES[0][1:], **environment)
    assert serve.stdout is not None
    assert serve.stdout.readline().strip() == service.address
    service.spawn(f"{BIN}/hugepool", *SERVICES[1][1:], **environment)
    assert len(SCRIPTS) == 7
    outputs = []
    scripts = [[sys.executable, "-c", script] for script in SCRIPTS]
    for command in scripts + [[f"{BIN}/hugepool", *line[1:]] for line in SERVED]:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    private, first, second, third, fourth, fifth, sixth, *told = outputs
    assert "<SharedArray 'x' (5000000,) float64 40 MB sealed" in private
    (shown,) = [text for language, text in BLOCKS if language == "text"]
    assert list(map(beginning, private.splitlines())) == list(map(beginning, shown.splitlines()))
    assert "on 2 worker(s)" in first
    total = float(re.search(r"sum ([0-9.e+]+)", first)[1])  # type: ignore[index]
    assert float(second.split()[0]) == pytest.approx(total)
    assert re.findall(r"^(\w+) \(", second, re.MULTILINE) == ["A", "x"]
    assert third.startswith("matvec plan of ")
    assert float(re.search(r"highest rank ([0-9.]+)", third)[1]) > 1  # type: ignore[index]
    assert fourth.startswith("0.0 1000000.0 2\nVerifyReport(name='weights', generation=2")
    assert re.fullmatch(r"\[.*1000000\.0.*, .*1000000\.0.*\]\n", fifth)
    assert "JobProgress(done=" in sixth
    assert [len(re.findall(r"^weights\t.*crc32-16M:", table, re.MULTILINE)) for table in told] == [
        *(0, 1, 1, 1)
    ]


@pytest.mark.parametrize(("name", "count"), [("README", 4), ("commands at work", 17)])
def test_the_session_shows_what_a_terminal_shows(
    name: str, count: int, service: Service, tmp_path: Path
) -> None:
    """Line for line: the same headings, and lines that begin with the same words."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    service.start()
    reader = service.python(
        "import hugepool\n"
        "pool = hugepool.connect(); input()\n"
        "A = pool.attach('A'); print('attached', flush=True); input()\n"
    )
    shell = Shell(HUGEPOOL_ADDRESS=service.address, NO_COLOR="1", XDG_CONFIG_HOME=str(tmp_path))
    assert len(SESSIONS[name]) == count
    for line, shown in SESSIONS[name]:
        command, *arguments = shlex.split(line)
        if command == "readers":
            assert tell(reader) == "attached"
        seen = on_screen(shell.at_a_terminal(command, *arguments, directory=str(tmp_path)))
        if command in OF_THE_HOST:
            continue
        assert list(map(beginning, seen)) == list(map(beginning, shown.splitlines())), line


@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", COMMAND_BLOCKS, ids=lambda block: " ".join(block[0]))
def test_commands(block: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for command in block:
        done = subprocess.run(
            [f"{BIN}/hugepool", *command[1:]],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=tmp_path,
        )
        assert done.returncode in ((0, 4) if "doctor" in command else (0,)), done.stderr
        assert done.stdout


def test_what_the_rest_of_the_shell_lines_name_exists() -> None:
    for line in LINES:
        if line in SERVICES + SERVED + COMMANDS:
            continue
        if line[0].startswith("scripts/"):
            assert os.access(ROOT / line[0], os.X_OK)
        else:
            assert line[0] in {"sudo", "pip"}, line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
