"""Every command used wrongly: one line that says what to do, the right status, nothing else.

The table names for each command each way to go wrong, or why there is none; a command
that is new, and not in it, fails.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import hugepool
from hugepool.cli import hugepool as group
from support.commands import Done, Shell
from support.documents import ROOT
from support.host import require
from support.service import Service

COMMANDS = group.list_commands(click.Context(group))
GRAPH = str(ROOT / "tests/data/debian-depends.mtx.gz")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

FAILED, USAGE, NO_COORDINATOR = 1, 2, 3

WAYS = ("missing", "no coordinator", "bad value", "no permission", "unknown")
"""An argument left out; nobody to ask; a size or name that is none; a user who may not; no such
array."""


@dataclass(frozen=True)
class Wrong:
    """A wrong use.

    Parameters
    ----------
    arguments
        Of the command; ``SNAPSHOT`` stands for a directory that has one, ``SECRET`` for a file
        that nobody but its owner may read or write, ``OTHERS`` for a directory of another user.
    status
        That it ends with.
    says
        What to do, as the line has it.
    """

    arguments: tuple[str, ...]
    status: int
    says: str


def use(*arguments: str, status: int = USAGE, says: str = "--help") -> Wrong:
    return Wrong(arguments, status, says)


def alone(*arguments: str) -> Wrong:
    """A command that needs a coordinator, and finds none."""
    return Wrong(arguments, NO_COORDINATOR, "start one with: hugepool serve")


def stranger(*arguments: str) -> Wrong:
    """A command of a user whom the coordinator does not serve."""
    return Wrong(arguments, NO_COORDINATOR, "run as its user")


def unknown(*arguments: str) -> Wrong:
    """A command for an array that is not there."""
    return Wrong(arguments, FAILED, "hugepool ls")


NO_NAME = "needed 1 to 128 of A-Z a-z 0-9"
NEEDS_NOTHING = "it has no argument that must be given"
ASKS_NOBODY = "it asks no coordinator"
OWN = "it starts a coordinator of its own"
NO_ARRAY = "it names no array that is there already"
ANYBODY = "anybody may"

WRONG: dict[str, tuple[Wrong | str, ...]] = {
    "bench": (
        use("--size"),
        OWN,
        use("--size", "plenty", says="write it as 400MB"),
        use("--output", "SECRET", says="cannot write"),
        use("--compare", "/nowhere/a.json", "/nowhere/b.json", status=FAILED, says="/nowhere/a"),
    ),
    "completion": (
        use(says="bash, zsh, fish"),
        ASKS_NOBODY,
        use("tcsh", says="'bash', 'zsh', 'fish'"),
        ANYBODY,
        NO_ARRAY,
    ),
    "config": (
        use("--config"),
        ASKS_NOBODY,
        use("--config", "/nowhere/x.toml", says="No such file or directory (at /nowhere/x.toml)"),
        use("--config", "SECRET", says="Permission denied"),
        NO_ARRAY,
    ),
    "create": (
        use("x", says="hugepool create --help"),
        alone("x", "5"),
        use("x", "many", says="write it as 1000000, 1e6 or 500x20"),
        stranger("x", "5"),
        NO_ARRAY,
    ),
    "doctor": (
        use("--room"),
        OWN,
        use("--room", "plenty", says="write it as 400MB"),
        ANYBODY,
        NO_ARRAY,
    ),
    "get": (
        use("x", says="hugepool get --help"),
        alone("x", "/tmp/x.npy"),
        use("taken", "/tmp/x.csv", says=".npy, .npz"),
        stranger("x", "/tmp/x.npy"),
        unknown("nothing", "/tmp/x.npy"),
    ),
    "ls": (
        NEEDS_NOTHING,
        alone(),
        use("--address", "pipe://1.2.3.4", says="ipc://PATH"),
        stranger(),
        unknown("q*"),
    ),
    "plan": (
        use(says="hugepool plan --help"),
        ASKS_NOBODY,
        use("much", says="write it as 400MB"),
        ANYBODY,
        NO_ARRAY,
    ),
    "publish": (
        use("x", says="hugepool publish --help"),
        alone("x", GRAPH),
        use("no/name", GRAPH, says=NO_NAME),
        stranger("x", GRAPH),
        NO_ARRAY,
    ),
    "put": (
        use("x", says="hugepool put --help"),
        alone("x", GRAPH),
        use("no/name", GRAPH, says=NO_NAME),
        stranger("x", GRAPH),
        NO_ARRAY,
    ),
    "readers": (
        use(says="hugepool readers --help"),
        alone("x"),
        use("no/name", says=NO_NAME),
        stranger("x"),
        unknown("nothing"),
    ),
    "restore": (
        use(says="hugepool restore --help"),
        alone("/nowhere"),
        use("SNAPSHOT", "no/name", says=NO_NAME),
        stranger("/nowhere"),
        use("SNAPSHOT", "nothing", status=FAILED, says="leave names out to restore all"),
    ),
    "rm": (
        use(says="hugepool rm --help"),
        alone("x"),
        use("no/name", says=NO_NAME),
        stranger("x"),
        unknown("nothing"),
    ),
    "seal": (
        use(says="hugepool seal --help"),
        alone("x"),
        use("no/name", says=NO_NAME),
        stranger("x"),
        unknown("nothing"),
    ),
    "serve": (
        use("--quota", says="hugepool serve --help"),
        "it is one",
        use("--quota", "much", says='a number of bytes such as "100G"'),
        use("--runtime-dir", "OTHERS", status=FAILED, says="HUGEPOOL_RUNTIME_DIR"),
        NO_ARRAY,
    ),
    "setup": (
        use("--size"),
        ASKS_NOBODY,
        use("--size", "much", says="write it as 400MB"),
        use("--apply", "--size", "4GB", status=FAILED, says="sudo"),
        NO_ARRAY,
    ),
    "snapshot": (
        use(says="hugepool snapshot --help"),
        alone("/nowhere"),
        use("SNAPSHOT", "no/name", says=NO_NAME),
        stranger("/nowhere"),
        unknown("SNAPSHOT", "nothing"),
    ),
    "stat": (
        use(says="hugepool stat --help"),
        alone("x"),
        use("no/name", says=NO_NAME),
        stranger("x"),
        unknown("nothing"),
    ),
    "status": (
        NEEDS_NOTHING,
        alone(),
        use("--address", "pipe://1.2.3.4", says="ipc://PATH"),
        stranger(),
        NO_ARRAY,
    ),
    "top": (
        use("--filter"),
        alone("--once"),
        use("--interval", "0"),
        stranger("--once"),
        "--filter shows what there is and will be",
    ),
    "verify": (
        NEEDS_NOTHING,
        alone(),
        use("no/name", says=NO_NAME),
        stranger(),
        unknown("nothing"),
    ),
    "warm": (
        NEEDS_NOTHING,
        alone(),
        use("no/name", says=NO_NAME),
        stranger(),
        unknown("nothing"),
    ),
    "worker": (
        use("-n"),
        alone(),
        use("-n", "0"),
        stranger(),
        NO_ARRAY,
    ),
}


def cases(*ways: str) -> list[object]:
    """The wrong uses of these ways, for a test to take one at a time."""
    return [
        pytest.param(name, wrong, id=f"{name}-{way}".replace(" ", "-"))
        for name, row in WRONG.items()
        for way, wrong in zip(WAYS, row, strict=True)
        if way in ways and isinstance(wrong, Wrong)
    ]


def test_every_command_is_used_wrongly_in_every_way_that_it_has() -> None:
    assert list(WRONG) == COMMANDS
    for name, row in WRONG.items():
        assert len(row) == len(WAYS), name
        assert any(isinstance(wrong, Wrong) for wrong in row), name


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that others may enter, which pytest's own they may not."""
    directory = Path(tempfile.mkdtemp(prefix="hugepool-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[Service]:
    """A coordinator of this user alone with the array ``taken``, a snapshot of it, a secret."""
    service = Service(place / "run").start()
    with hugepool.connect(service.address) as pool:
        pool.put("taken", [1.0])
        pool.snapshot(place / "SNAPSHOT")
    (place / "SECRET").touch(mode=0o600)
    (place / "OTHERS").mkdir()
    yield service
    service.close()


def one_line(done: Done, wrong: Wrong) -> str:
    """The one line that a command said, and what is right about it."""
    assert (done.status, done.out) == (wrong.status, ""), done.err
    (line,) = done.err.splitlines()
    assert line.startswith("hugepool") and wrong.says in line, line
    return line


def placed(arguments: tuple[str, ...], place: Path) -> list[str]:
    names = ("SNAPSHOT", "SECRET", "OTHERS")
    return [str(place / word) if word.startswith(names) else word for word in arguments]


@pytest.mark.parametrize(("name", "wrong"), cases("missing", "bad value", "unknown"))
def test_one_line_says_what_to_do(name: str, wrong: Wrong, running: Service, place: Path) -> None:
    shell = Shell(HUGEPOOL_ADDRESS=running.address, HUGEPOOL_RUNTIME_DIR=str(place / "other"))
    one_line(shell(name, *placed(wrong.arguments, place)), wrong)
    with hugepool.connect(running.address) as pool:
        assert [info.spec.name for info in pool.list()] == ["taken"]


@pytest.mark.parametrize(("name", "wrong"), cases("no coordinator"))
def test_without_a_coordinator(name: str, wrong: Wrong, tmp_path: Path) -> None:
    nobody = Shell(HUGEPOOL_RUNTIME_DIR=str(tmp_path / "run"))
    one_line(nobody(name, *wrong.arguments), wrong)
    one_line(nobody(name, *wrong.arguments, "--address", "ipc:///nowhere.sock"), wrong)
    line = nobody.refuse(USAGE, name, *wrong.arguments, "--address", "pipe://1.2.3.4")
    assert "ipc://PATH" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "wrong"), cases("no permission"))
def test_a_user_without_permission(name: str, wrong: Wrong, running: Service, place: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become another user")
    shell = Shell(
        HUGEPOOL_ADDRESS=running.address,
        XDG_CONFIG_HOME="/nowhere",
        PYTHONDONTWRITEBYTECODE="1",
    )
    os.chown(place / "OTHERS", 65534, 65534)
    # It starts Python once more, which another user may not where that lies in a home directory.
    prefix = () if name == "serve" else NOBODY
    done = shell(name, *placed(wrong.arguments, place), prefix=prefix)
    reachable = "No module named" not in done.err and done.status not in (126, 127)
    require("unprivileged", reachable, "another user may not execute this environment")
    one_line(done, wrong)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_there_is_not(name: str, tmp_path: Path) -> None:
    line = Shell(HUGEPOOL_RUNTIME_DIR=str(tmp_path / "run")).refuse(USAGE, name, "--nonsense")
    assert line.startswith(f"hugepool {name}: No such option")
    assert line.endswith(f"see: hugepool {name} --help")


def test_a_command_that_there_is_not() -> None:
    assert Shell().refuse(USAGE, "lss").endswith("see: hugepool --help")
