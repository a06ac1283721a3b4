"""What all commands have in common: help, settings, completion, and what they import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import hugepool
from hugepool.cli import hugepool as group
from hugepool_common.settings import NAMES, variable_of
from support.commands import HUGEPOOL, Shell
from support.host import require, settles
from support.service import Service

CONTEXT = click.Context(group)
COMMANDS = group.list_commands(CONTEXT)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell whose configuration files are the test's own."""
    return Shell(
        XDG_CONFIG_HOME=str(tmp_path),
        HUGEPOOL_CONFIG="",
        HUGEPOOL_RUNTIME_DIR=str(tmp_path / "run"),
    )


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    (tmp_path / "hugepool").mkdir()
    return tmp_path / "hugepool" / "hugepool.toml"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_each_command_is_listed_and_shows_an_example(name: str) -> None:
    command = group.get_command(CONTEXT, name)
    assert command is not None and command.name == name
    text = command.get_help(click.Context(command, info_name=name, parent=CONTEXT))
    assert "Example" in text and f"hugepool {name}" in text
    listed = group.get_help(click.Context(group)).split("Commands:")[1]
    assert f"\n  {name}" in listed


def test_the_program_alone_shows_its_help(shell: Shell) -> None:
    done = shell()
    assert done.status == 2 and all(name in done.err for name in COMMANDS)


def test_every_setting_and_where_it_comes_from(shell: Shell, settings_file: Path) -> None:
    settings_file.write_text('quota = "5G"\nkeep = true\n')
    told = {one["setting"]: one for one in shell.succeed("config", "--json").json}
    assert list(told) == list(NAMES)
    assert told["quota"] == {
        "setting": "quota",
        "value": "5G",
        "origin": str(settings_file),
        "variable": "HUGEPOOL_QUOTA",
    }
    assert (told["keep"]["value"], told["reconnect_s"]["value"]) == (True, 10.0)
    assert told["runtime_dir"]["origin"] == "HUGEPOOL_RUNTIME_DIR"
    rows = {row["setting"]: row for row in shell.succeed("config").rows}
    assert (rows["keep"]["value"], rows["huge_pages"]["origin"]) == ("true", "default")
    assert "(none)" in shell.at_a_terminal("config")


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "quota = " + "9" * 5000, 'keep = "\xff"'])
def test_a_settings_file_that_is_none_is_told(shell: Shell, settings_file: Path, text: str) -> None:
    settings_file.write_bytes(text.encode("latin1"))
    line = shell.refuse(2, "config")
    assert "is no TOML" in line and line.endswith(f"(at {settings_file})")


def test_what_the_terminals_encoding_lacks_is_an_escape(shell: Shell) -> None:
    done = shell("config", HUGEPOOL_MOUNT="/mnt/数", PYTHONIOENCODING="latin-1")
    assert done.status == 0 and "/mnt/\\u6570" in done.out
    done = shell("config", HUGEPOOL_MOUNT=os.fsdecode(b"/mnt/\xff"))
    assert done.status == 0 and "/mnt/\\udcff" in done.out


def test_a_chosen_file_and_a_variable_with_a_typo(shell: Shell, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.toml"
    chosen.write_text('quota = "7G"\n')
    for arguments in (["config", "--config", str(chosen)], ["--config", str(chosen), "config"]):
        (row,) = [row for row in shell.succeed(*arguments).rows if row["setting"] == "quota"]
        assert (row["value"], row["origin"]) == ("7G", str(chosen))
    for command in ("config", "ls"):
        line = shell.refuse(2, command, HUGEPOOL_ADRESS="ipc:///x")
        assert line.endswith("did you mean HUGEPOOL_ADDRESS?")
    assert shell("config", HUGEPOOL_OF_A_TEST="1").status == 0
    assert "No such file" in shell.refuse(2, "config", "--config", str(tmp_path / "none"))


@pytest.mark.parametrize("arguments", [("config",), ("plan", "5"), ("--help",), ("doctor",)])
def test_output_that_cannot_be_written_is_named(shell: Shell, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*HUGEPOOL, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=shell.environment,
        )
    assert done.returncode == 1
    assert done.stderr == "hugepool: No space left on device: standard output\n"


def test_what_the_locale_lacks_is_an_escape(shell: Shell) -> None:
    done = shell(
        *("doctor", "--room", "1"),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        HUGEPOOL_MOUNT="/mnt/\u6570",
    )
    assert "/mnt/" in done.out and done.status in (0, 4), done.err


def test_ctrl_c_while_it_starts_is_no_traceback(shell: Shell, tmp_path: Path) -> None:
    # A stand-in for slow imports: the first of them waits to be interrupted.
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n"
    )
    paths = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = shell("config", PYTHONPATH=paths)
    assert (done.status, done.out, done.err) == (130, "", "")


def test_no_color_is_no_code_at_all(shell: Shell) -> None:
    for arguments in (("doctor",), ("config",)):
        seen = shell.at_a_terminal(*arguments, NO_COLOR="1")
        assert "\x1b" not in seen, arguments


def test_the_option_parser_points_to_the_command_s_help(shell: Shell) -> None:
    assert shell.refuse(2, "bench", "--compare", "a").endswith("see: hugepool bench --help")


def test_what_never_ends_is_not_read(shell: Shell, tmp_path: Path) -> None:
    pipe, vast = str(tmp_path / "pipe"), tmp_path / "vast"
    os.mkfifo(pipe)
    vast.touch()
    os.truncate(vast, 1 << 40)
    for path in ("/dev/zero", pipe):
        line = shell.refuse(2, "--config", path, "config")
        assert "no regular file" in line and path in line
        assert "no regular file" in shell.refuse(1, "bench", "--compare", path, path)
    assert "too large" in shell.refuse(2, "--config", str(vast), "config")
    assert "too large" in shell.refuse(1, "bench", "--compare", str(vast), str(vast))
    shell.succeed("--config", "/dev/null", "config")


def test_a_typo_in_the_file_is_an_error_of_every_command(shell: Shell, settings_file: Path) -> None:
    settings_file.write_text('qota = "7G"\n')
    for command in (["config"], ["ls"], ["create", "x", "5"], ["plan", "5"]):
        line = shell.refuse(2, *command)
        assert str(settings_file) in line and line.endswith("did you mean quota?")
    done = shell("serve")
    assert done.status == 2 and "did you mean quota?" in done.err


def test_a_service_and_its_clients_obey_the_file(
    service: Service, shell: Shell, settings_file: Path
) -> None:
    settings_file.write_text(
        f'address = "{service.address}"\nruntime_dir = "{service.directory}"\nquota = "1MB"\n'
        'page_size = "2M"\nlog_level = "error"\nchecksums = false\n'
    )
    variables = {"XDG_CONFIG_HOME": shell.environment["XDG_CONFIG_HOME"]}
    process = service.spawn(
        *(sys.executable, "-m", "hugepool", "serve", "--quota", "20MB"),
        **variables,
        HUGEPOOL_RUNTIME_DIR="",
        HUGEPOOL_LOG="warning",
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == service.address
    ours = Shell(**{**shell.environment, "HUGEPOOL_RUNTIME_DIR": ""})
    told = ours.succeed("status", "--json").json
    assert (told["quota_bytes"], told["address"]) == (20_000_000, service.address)
    made = ours.succeed("create", "x", "5", "--json").json
    assert (made["page_size"], made["checksum"]) == (2 << 20, ""), "small arrays take 4K unasked"


def test_a_private_coordinator_is_not_the_service(
    shell: Shell, settings_file: Path, tmp_path: Path
) -> None:
    settings_file.write_text('keep = true\nquota = "1kB"\ngroup = "65534"\nchecksums = false\n')
    script = (
        "import hugepool\n"
        "with hugepool.connect('embedded') as pool:\n"
        "    print(pool.put('x', [1.0] * 1000).checksum == '', pool.stats().quota_bytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=shell.environment, capture_output=True, text=True
    )
    assert done.stdout == "True 0\n", done.stderr


@pytest.fixture
def names(service: Service) -> Iterator[dict[str, str]]:
    """Variables of a shell at a coordinator with the arrays ``alpha``, ``alps`` and ``beta``."""
    service.start()
    with hugepool.connect(service.address) as pool:
        for name in ("alpha", "alps", "beta"):
            pool.put(name, [1.0])
    scripts = sysconfig.get_path("scripts")
    yield {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "HUGEPOOL_ADDRESS": service.address,
    }


def completed(environment: dict[str, str], *words: str) -> list[str]:
    """What the program offers for the last word."""
    done = subprocess.run(
        ["hugepool"],
        capture_output=True,
        text=True,
        timeout=180,
        env={
            **environment,
            "_HUGEPOOL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("hugepool", *words)),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split()]


def answered(environment: dict[str, str], *words: str) -> list[str]:
    """As :func:`completed`, but not that the coordinator took too long, which is no name at all."""
    offered: list[str] = []

    def asked() -> bool:
        offered[:] = completed(environment, *words)
        return bool(offered)

    assert settles(asked)
    return offered


def test_names_complete_as_they_are_now(names: dict[str, str]) -> None:
    assert answered(names, "stat", "al") == ["alpha", "alps"]
    assert answered(names, "rm", "alpha", "") == ["alps", "beta"]
    assert completed(names, "st") == ["stat", "status"]
    assert completed(names, "create", "x", "5", "--huge-pages", "o") == ["on", "off"]
    assert completed({**names, "HUGEPOOL_ADDRESS": "ipc:///nowhere"}, "stat", "") == []


def test_a_shell_is_not_kept_waiting_by_a_coordinator_that_is_stopped(
    names: dict[str, str], service: Service
) -> None:
    assert service.process is not None
    service.process.send_signal(19)
    try:
        assert completed(names, "stat", "") == []
    finally:
        service.process.send_signal(18)


def test_bash_completes_a_live_name(names: dict[str, str]) -> None:
    require("bash", shutil.which("bash") is not None, "no bash here")
    script = (
        'eval "$(hugepool completion bash)"\n'
        "COMP_WORDS=(hugepool stat b) COMP_CWORD=2 COMPREPLY=()\n"
        "_hugepool_completion hugepool\n"
        'echo "${COMPREPLY[*]}"\n'
    )
    said: list[str] = []

    def answered() -> bool:
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=names)
        said[:] = done.stdout, done.stderr
        return bool(done.stdout.strip() or done.stderr)  # else the coordinator took too long

    assert settles(answered)
    assert said == ["beta\n", ""]


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: Shell, name: str) -> None:
    assert "_HUGEPOOL_COMPLETE" in shell.succeed("completion", name).out
    assert "'tcsh' is not one of" in shell.refuse(2, "completion", "tcsh")


NOT_NEEDED = {
    *("numpy", "scipy", "numba", "llvmlite", "matplotlib", "rich", "hugepool_server"),
    *("asyncio", "concurrent", "csv", "ctypes", "difflib", "email", "hashlib", "html", "http"),
    *("logging", "multiprocessing", "pathlib", "secrets", "shutil", "ssl", "statistics"),
    *("subprocess", "tempfile", "tomllib", "traceback", "unittest", "urllib", "zipfile"),
}
"""Top-level modules that would take a short command more time than what it is asked for."""

OF_CLICK = {"--help": {"shutil"}, "completion": {"shutil", "subprocess"}}
"""What click imports to measure a terminal, and to ask a shell for its version."""


@pytest.mark.parametrize(
    "command",
    [
        *(["ls"], ["stat", "x"], ["readers", "x"], ["status"], ["rm", "x"], ["seal", "x"]),
        *(["config"], ["completion", "bash"], ["--help"]),
    ],
    ids=lambda command: command[0],
)
def test_a_command_that_touches_no_array_imports_nothing_for_one(
    service: Service, command: list[str]
) -> None:
    service.start()
    Shell(HUGEPOOL_ADDRESS=service.address).succeed("create", "x", "5")
    script = (
        "import sys, atexit, gc; from hugepool.cli import main\n"
        "atexit.register(lambda: print(*sorted({m.partition('.')[0] for m in sys.modules}),"
        " 'frozen' if gc.get_freeze_count() else 'thawed', file=sys.stderr))\n"
        f"sys.argv[1:] = {command!r}; main()\n"
    )
    # A variable of somebody else's: to see that it is no setting mistyped takes no module either.
    done = service.run(script, HUGEPOOL_OF_A_TEST="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout or command[0] == "rm"
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "hugepool" in loaded and not NOT_NEEDED & loaded - OF_CLICK.get(command[0], set())
    assert "frozen" in loaded, "the interpreter looks for cycles in all modules as it ends"


def test_each_setting_of_the_documents_is_one() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"`{variable_of(name)}`" in text
