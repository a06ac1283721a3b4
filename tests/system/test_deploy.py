"""The files under deploy/ are valid, agree with each other and with the installed programs.

Each check is also run on a copy with a planted error, which it must report.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from hugepool_common import paths, units
from hugepool_server import descriptors
from hugepool_server.coordinator import Limits
from support.host import require

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROGRAMS = Path(sysconfig.get_path("scripts"))
UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())
MOUNT_UNIT = "run-hugepages-hugepool.mount"
SERVICES = [name for name in UNITS if name.endswith(".service")]
SYSCTL_FILES = sorted((DEPLOY / "sysctl.d").iterdir())
CONTAINERFILE = DEPLOY / "container" / "Containerfile"


def tool(feature: str, name: str) -> str:
    """Path of a checking tool, in this environment or on PATH; skips where it is missing."""
    found = shutil.which(str(PROGRAMS / name)) or shutil.which(name)
    require(feature, found is not None, f"{name} is not installed")
    assert found is not None
    return found


def ran(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=180,
        check=False,
    )


def setting(unit: str, key: str) -> str:
    """The one value of a key in a unit's text."""
    values = re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)
    assert len(values) == 1, f"{key} is given {len(values)} times"
    return str(values[0])


def environment(unit: str) -> dict[str, str]:
    pairs = re.findall(r"^Environment=([A-Z_]+)=(.*)$", unit, re.MULTILINE)
    return dict(pairs)


def copied_units(directory: Path) -> None:
    """All units, with the programs of this environment where they expect an installation."""
    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text()
        (directory / name).write_text(text.replace("/usr/local/bin/", f"{PROGRAMS}/"))


def complaints(unit: Path) -> list[str]:
    """What systemd says of a unit; it ends with 0 on most errors, so only its words count."""
    done = ran(tool("systemd-analyze", "systemd-analyze"), "verify", "--man=no", unit)
    # Units of the host may have faults of their own.
    found = [line for line in done.stdout.splitlines() if any(name in line for name in UNITS)]
    if done.returncode and not found:
        found = [done.stdout]
    return found


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_every_unit(name: str, tmp_path: Path) -> None:
    copied_units(tmp_path)
    assert complaints(tmp_path / name) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("hugepoold.service", "Type=exec", "Type=exe"),
        ("hugepoold.service", "RuntimeDirectoryMode=", "RuntimeDirectoriesMode="),
        ("hugepoold.service", "/hugepoold --group", "/hugepuld --group"),
        ("hugepoold.service", "StartLimitBurst=", "StartLimitBurts="),
        ("hugepoold.service", "KillMode=mixed", "KillMode=mild"),
        ("hugepool-worker@.service", "Wants=", "Wanting="),
        (MOUNT_UNIT, "Where=/run/hugepages/hugepool", "Where=/run/hugepages/other"),
        (MOUNT_UNIT, "Options=", "Option="),
    ],
)
def test_a_planted_error_in_a_unit_is_reported(
    name: str, right: str, wrong: str, tmp_path: Path
) -> None:
    copied_units(tmp_path)
    text = (tmp_path / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong))
    assert complaints(tmp_path / name)


def test_the_mount_unit_is_named_after_its_directory() -> None:
    escape = tool("systemd-analyze", "systemd-escape")
    where = setting((DEPLOY / "systemd" / MOUNT_UNIT).read_text(), "Where")
    assert ran(escape, "--path", "--suffix=mount", where).stdout.strip() == MOUNT_UNIT
    assert ran(escape, "--path", "--suffix=mount", where + "-2").stdout.strip() != MOUNT_UNIT


def test_services_meet_at_the_directories_that_hugepool_looks_for() -> None:
    mount = (DEPLOY / "systemd" / MOUNT_UNIT).read_text()
    daemon = (DEPLOY / "systemd" / "hugepoold.service").read_text()
    worker = (DEPLOY / "systemd" / "hugepool-worker@.service").read_text()
    runtime = "/run/" + setting(daemon, "RuntimeDirectory")
    assert environment(daemon)[paths.RUNTIME_VARIABLE] == runtime
    assert environment(daemon)["HUGEPOOL_MOUNT"] == setting(mount, "Where")
    assert environment(worker)[paths.ADDRESS_VARIABLE] == paths.address_of(runtime)
    assert setting(daemon, "ReadWritePaths") == "-" + setting(mount, "Where")
    assert MOUNT_UNIT in setting(daemon, "After").split()
    assert MOUNT_UNIT in setting(daemon, "Wants").split()
    # The coordinator refuses a runtime directory that its group may write to.
    assert int(setting(daemon, "RuntimeDirectoryMode"), 8) & 0o022 == 0


def test_only_the_coordinator_writes_to_the_mount() -> None:
    options = setting((DEPLOY / "systemd" / MOUNT_UNIT).read_text(), "Options").split(",")
    mode = next(word.removeprefix("mode=") for word in options if word.startswith("mode="))
    assert int(mode, 8) & 0o027 == 0  # a writer to the directory could rename segments


def test_a_killed_coordinator_is_started_again_and_finds_what_it_wrote() -> None:
    daemon = (DEPLOY / "systemd" / "hugepoold.service").read_text()
    assert setting(daemon, "Restart") == "on-failure"
    assert setting(daemon, "RuntimeDirectoryPreserve") == "yes"
    # One signal: a second one would end it with everything left behind.
    assert setting(daemon, "KillMode") == "mixed"
    # Nothing may take workers down with a coordinator that comes back.
    worker = (DEPLOY / "systemd" / "hugepool-worker@.service").read_text()
    assert not re.search(r"^(BindsTo|PartOf|Requires|StopPropagatedFrom)=", worker, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_services_may_open_enough_files(name: str) -> None:
    limit = int(setting((DEPLOY / "systemd" / name).read_text(), "LimitNOFILE"))
    assert limit == 65536
    assert descriptors.sessions_within(limit) > Limits().max_sessions


def refused(words: list[str]) -> str:
    """What the installed program says against these words, empty when it takes them.

    ``--help`` keeps it from starting anything, but comes after the check that every
    word before it is an option of the program.
    """
    program = PROGRAMS / Path(words[0]).name
    done = ran(program, *words[1:], "--help")
    return "" if done.returncode == 0 else done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_installed_programs_take_the_options_of_the_services(name: str) -> None:
    words = shlex.split(
        setting((DEPLOY / "systemd" / name).read_text(), "ExecStart").replace("%i", "2")
    )
    assert refused(words) == ""
    planted = [word.replace("-", "--no-such-", 1) if word[0] == "-" else word for word in words]
    assert "No such option" in refused(planted)


def sysctl_faults(text: str) -> list[str]:
    """Lines of a sysctl file that this kernel would not take."""
    faults = []
    for line in text.splitlines():
        if not line.strip() or line.startswith(("#", ";")):
            continue
        match = re.fullmatch(r"([a-z0-9_.]+) = ([0-9]+)", line)
        if match is None or not Path("/proc/sys", *match[1].split(".")).is_file():
            faults.append(line)
    return faults


@pytest.mark.parametrize("file", SYSCTL_FILES, ids=lambda path: path.name)
def test_sysctl_files_name_settings_of_this_kernel(file: Path) -> None:
    text = file.read_text()
    assert sysctl_faults(text) == []
    assert sysctl_faults(text.replace("\nvm.nr_", "\nvm.no_")) != []


@pytest.mark.parametrize("file", SYSCTL_FILES, ids=lambda path: path.name)
def test_pages_of_the_pool_are_what_the_mount_may_take(file: Path) -> None:
    settings = re.findall(r"^vm\.[a-z_]+ = ([0-9]+)$", file.read_text(), re.MULTILINE)
    assert len(settings) == 1
    options = setting((DEPLOY / "systemd" / MOUNT_UNIT).read_text(), "Options").split(",")
    caps = [word.removeprefix("size=") for word in options if word.startswith("size=")]
    assert [units.parse_bytes(cap) for cap in caps] == [int(settings[0]) * 2 * units.MIB]


def made_users(configuration: str, directory: Path) -> tuple[str, str]:
    """What systemd-sysusers makes of a configuration: its words, and the passwd file."""
    sysusers = tool("systemd-analyze", "systemd-sysusers")
    (directory / "etc").mkdir(exist_ok=True)
    (directory / "users.conf").write_text(configuration)
    done = ran(sysusers, f"--root={directory}", directory / "users.conf")
    passwd = directory / "etc" / "passwd"
    return done.stdout, passwd.read_text() if passwd.exists() else ""


def test_sysusers_makes_the_user_of_the_services(tmp_path: Path) -> None:
    configuration = (DEPLOY / "sysusers.d" / "hugepool.conf").read_text()
    (tmp_path / "right").mkdir()
    _, passwd = made_users(configuration, tmp_path / "right")
    users = {line.split(":")[0] for line in passwd.splitlines()}
    groups = {
        line.split(":")[0] for line in (tmp_path / "right/etc/group").read_text().splitlines()
    }
    for name in SERVICES:
        unit = (DEPLOY / "systemd" / name).read_text()
        assert setting(unit, "User") in users
        assert setting(unit, "Group") in groups
    (tmp_path / "wrong").mkdir()
    words, passwd = made_users(
        configuration.replace("u hugepool", "user hugepool"), tmp_path / "wrong"
    )
    assert "hugepool" not in passwd
    assert words


def test_hadolint_accepts_the_containerfile(tmp_path: Path) -> None:
    hadolint = tool("hadolint", "hadolint")
    accepted = ran(hadolint, "--no-color", CONTAINERFILE)
    assert (accepted.returncode, accepted.stdout) == (0, "")
    planted = tmp_path / "Containerfile"
    planted.write_text(CONTAINERFILE.read_text().replace("python:3.12-slim", "python:latest"))
    assert "DL3007" in ran(hadolint, "--no-color", planted).stdout


def copied_sources(containerfile: str) -> list[str]:
    """What COPY takes from the tree."""
    lines = re.findall(r"^COPY (?!--from)(.*)$", containerfile, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def missing_sources(containerfile: str) -> list[str]:
    return [name for name in copied_sources(containerfile) if not (ROOT / name).exists()]


def test_the_containerfile_copies_what_exists_and_what_the_build_needs() -> None:
    text = CONTAINERFILE.read_text()
    assert missing_sources(text) == []
    assert missing_sources(text.replace("COPY common", "COPY comon")) == ["comon"]
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed |= {package.split("/")[0] for package in packages}
    assert needed <= set(copied_sources(text))


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert allowed == set(copied_sources(CONTAINERFILE.read_text()))


def test_the_container_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (.*)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert users
    assert users[-1].split(":")[0] not in ("0", "root")


def test_the_deployment_guide_lists_every_file() -> None:
    guide = (DEPLOY / "README.md").read_text()
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.name != "README.md"]
    assert files
    unlisted = [
        str(path.relative_to(DEPLOY))
        for path in files
        if str(path.relative_to(DEPLOY)) not in guide
    ]
    assert unlisted == []
