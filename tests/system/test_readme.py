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

import click
import pytest

import hugepool
from hugepool.cli import hugepool as group
from support.commands import Shell
from support.documents import ROOT, beginning, blocks_of, on_screen
from support.host import settles
from support.service import Service, said

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

OF_THE_HOST = {"plan", "setup", "doctor", "bench"}
"""Commands that show other lines on other machines, but for the first one."""

FILL = re.compile(r"(pool|/\S+) .* of .* taken")
"""A line of ``top`` about a pool or a mount."""

COLUMNS = 120
"""Of the terminal in which the sessions were written down."""

BIN = sysconfig.get_path("scripts")


def test_the_languages_are_known() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "console", "python", "text"}


@pytest.mark.timeout(1800)
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
    with hugepool.connect(service.address) as pool:  # as who has read so far has waited
        assert settles(lambda: len(pool.stats().workers) == 2)
    assert len(SCRIPTS) == 7
    outputs = []
    scripts = [[sys.executable, "-c", script] for script in SCRIPTS]
    for command in scripts + [[f"{BIN}/hugepool", *line[1:]] for line in SERVED]:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=280,
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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SESSIONS)
def test_the_session_shows_what_a_terminal_shows(
    name: str, service: Service, tmp_path: Path
) -> None:
    """Line for line: the same headings, and lines that begin with the same words."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = {
        "HUGEPOOL_RUNTIME_DIR": str(service.directory),
        "HUGEPOOL_ADDRESS": "",
        "NO_COLOR": "1",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    shell = Shell(**environment)
    if not any(line.startswith("serve") for line, _ in SESSIONS[name]):
        service.start()
    for line, shown in SESSIONS[name]:
        command, *arguments = shlex.split(line)
        expected = shown.splitlines()
        if command == "readers":
            reader = service.python(
                f"import hugepool; A = hugepool.connect().attach({arguments[0]!r})\n"
                "print('attached', flush=True); input()\n"
            )
            assert said(reader) == "attached"
        if arguments[-1:] == ["&"]:
            # On one stream, as they are on a terminal; it ends with the test.
            merged = ("sh", "-c", 'exec "$@" 2>&1', "sh", f"{BIN}/hugepool", command)
            behind = service.spawn(*merged, *arguments[:-1], **environment)
            seen = [said(behind)]
            while seen[0].startswith("hugepoold:") and not expected[0].startswith("hugepoold:"):
                seen = [said(behind)]  # that one told of what others left on this machine
            seen += [said(behind) for _ in expected[1:]]
        else:
            seen = on_screen(
                shell.at_a_terminal(command, *arguments, columns=COLUMNS, directory=str(tmp_path))
            )
        if command in OF_THE_HOST:
            seen, expected = seen[:1], expected[:1]
        if command == "setup":  # what is missing here is not what is missing there
            continue
        if command == "top":  # every pool and mount of the machine has a line
            seen, expected = (
                [one for one in lines if not FILL.match(one)] for lines in (seen, expected)
            )
        assert list(map(beginning, seen)) == list(map(beginning, expected)), line


def test_every_command_is_shown_at_work() -> None:
    shown = {line.split()[0] for line, output in SESSIONS["commands at work"] if output.strip()}
    assert shown == set(group.list_commands(click.Context(group)))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", COMMAND_BLOCKS, ids=lambda block: " ".join(block[0]))
def test_commands(block: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for command in block:
        done = subprocess.run(
            [f"{BIN}/hugepool", *command[1:]],
            capture_output=True,
            text=True,
            timeout=850,
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
