"""The site builds without a warning, and what its pages say to type works."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import click
import pytest

import hugepool
from hugepool.cli import hugepool as command_line
from hugepool_common.settings import Settings
from hugepool_server.cli import hugepoold
from support.commands import Shell
from support.documents import ROOT, Block, beginning, blocks_of, command_lines, on_screen
from support.host import require
from support.service import Service

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TOLD = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md", *PAGES]
"""Documents that name commands."""

RUN = [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
"""Pages all of whose blocks are run."""

SHOWN = {"", "text", "toml", "ini", "sh", "yaml", "py", "dockerfile"}
"""Languages of blocks that are only read; ``bash``, ``python`` and ``console`` are run."""

OF_THE_HOST = {"plan", "setup", "doctor"}
"""Commands whose first line alone is the same on other machines."""

BIN = sysconfig.get_path("scripts")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The built site."""
    sphinx = importlib.util.find_spec("sphinx") is not None
    require("docs", sphinx, "needs Sphinx: pip install 'hugepool[docs]'")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"),
            *("-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")),
        ],
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "site"


@pytest.mark.timeout(900)  # it takes a quiet machine half a minute
def test_the_site_builds_without_a_warning_and_has_every_public_name(site: Path) -> None:
    text = (site / "reference" / "api.html").read_text(encoding="utf-8")
    documented = set(re.findall(r'id="hugepool\.(\w+)"', text))
    missing = set(hugepool.__all__) - documented
    assert not missing, f"docs/reference/api.md lacks {missing}"
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "--fill 1" in re.sub("<[^>]+>", "", commands)  # as it is typed, not with a dash
    for name in command_line.list_commands(click.Context(command_line)):
        assert f'id="hugepool-{name}"' in commands
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    protocol = (site / "protocol.html").read_text(encoding="utf-8")
    for name in Settings.__struct_fields__:
        assert f">{name}<" in settings
    for name in ("Hello", "Publish", "FewerWorkers", "WorkersChanged", "ArrayNotFoundError"):
        assert f">{name}<" in protocol


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, service: Service, tmp_path: Path) -> None:
    """In order, in one directory; a ``text`` block after a script is what that says."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = {
        "HUGEPOOL_RUNTIME_DIR": str(service.directory),
        "HUGEPOOL_ADDRESS": "",
        "XDG_CONFIG_HOME": str(tmp_path),
        "NO_COLOR": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    said = ""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        if block.language == "bash":
            for command in block.commands():
                _run_line(command, service, tmp_path, environment, where)
        elif block.language == "python":
            said = _run([sys.executable, "-c", block.text], tmp_path, environment, where)
        elif block.language == "console":
            _run_session(block, tmp_path, environment, where)
        elif block.language == "text" and said:
            assert list(map(beginning, said.splitlines())) == list(
                map(beginning, block.text.splitlines())
            ), where
        elif block.language == "py":
            compile(block.text, where, "exec")
        elif block.language == "toml":
            assert set(tomllib.loads(block.text)) <= set(Settings.__struct_fields__), where
        if block.language != "python":
            said = ""


def _run_line(
    command: list[str], service: Service, directory: Path, environment: dict[str, str], where: str
) -> None:
    program, *arguments = command
    if program in {"sudo", "pip"}:  # changes the machine
        return
    assert program == "hugepool", where
    if arguments[0] in {"serve", "worker"}:
        process = service.spawn(f"{BIN}/hugepool", *arguments, **environment)
        if arguments[0] == "serve":
            assert process.stdout is not None
            assert process.stdout.readline().strip() == service.address, where
        return
    statuses = (0, 4) if arguments[0] == "doctor" else (0,)
    _run([f"{BIN}/hugepool", *arguments], directory, environment, where, statuses)


def _run_session(block: Block, directory: Path, environment: dict[str, str], where: str) -> None:
    shell = Shell(**environment)
    assert block.session(), where
    for line, shown in block.session():
        seen = on_screen(shell.at_a_terminal(*line.split(), columns=100, directory=str(directory)))
        expected = shown.splitlines()
        if line.split()[0] in OF_THE_HOST:
            seen, expected = seen[:1], expected[:1]
        assert list(map(beginning, seen)) == list(map(beginning, expected)), f"{where}: {line}"


def _run(
    command: list[str],
    directory: Path,
    environment: dict[str, str],
    where: str,
    statuses: tuple[int, ...] = (0,),
) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=directory,
        env={**os.environ, **environment},
    )
    assert done.returncode in statuses, f"{where}: {command[:3]}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_languages_are_known(page: Path) -> None:
    """A block in a language that nothing runs would be a block that nobody checks."""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if not block.language.startswith("{"):
            assert block.language in SHOWN | {"bash", "python", "console"}, block


@pytest.mark.parametrize("page", TOLD, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    for words in command_lines(page.read_text(encoding="utf-8")):
        wrong = _wrong_word(words)
        assert wrong is None, f"{page.name}: `{' '.join(words)}`: there is no {wrong}"


def test_a_command_or_option_with_a_typo_is_found() -> None:
    text = "`hugepool lss`, `hugepool ls --jsn` and\n\n```bash\nhugepool serve --quotta 1G\n```\n"
    found = [_wrong_word(words) for words in command_lines(text)]
    assert found == ["lss", "--jsn", "--quotta"]
    good = "`hugepool ls --json`, `hugepool serve --quota 1G`, `hugepoold --keep`, `hugepool`"
    assert [_wrong_word(words) for words in command_lines(good)] == [None] * 4


def _wrong_word(words: list[str]) -> str | None:
    """The first command or option of a line that does not exist."""
    program, *rest = words
    command: click.Command = hugepoold if program == "hugepoold" else command_line
    if isinstance(command, click.Group):
        context = click.Context(command)
        while rest and rest[0].startswith("--config"):
            del rest[: 1 if "=" in rest[0] else 2]
        if rest and re.fullmatch("[a-z]+", rest[0]):
            name = rest.pop(0)
            found = command.get_command(context, name)
            if found is None:
                return name
            command = hugepoold if name == "serve" else found
    known = {"-h", "--help"} | {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    if command is command_line:
        known.add("--version")
    for word in rest:
        option = word.strip("[],.:").split("=")[0]
        if re.match(r"--?[a-z]", option) and option not in known:
            return option
    return None


def test_what_a_terminal_erases_is_not_seen() -> None:
    """A bar that is drawn in place, and taken away, leaves the lines around it."""
    written = "\x1b[?25lmaking x 1 s\r\x1b[2Kmaking x 2 s\r\n\x1b[1A\x1b[2K\x1b[?25hdone: x\nrest\n"
    assert on_screen(written.replace("\r\n", "\n")) == ["done: x", "rest"]
    assert on_screen("12345\rab\n") == ["ab345"]
