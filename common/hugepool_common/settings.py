"""What may be set once for all programs, and where each value comes from.

A value is taken from the first of these that has one: an option of the command, an
environment variable, the user's file, the machine's file, the default. The files are
TOML without tables: ``/etc/hugepool/hugepool.toml``, and over it
``$XDG_CONFIG_HOME/hugepool/hugepool.toml``; ``$HUGEPOOL_CONFIG`` names one file to be
read in place of both. A name or value that is none is an error, wherever it stands: a
setting with a typo would be one that silently is not there.
"""

from __future__ import annotations

import errno
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

import msgspec

from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError
from hugepool_common.paths import RUNTIME_VARIABLE
from hugepool_common.small_files import read_small_file
from hugepool_common.spec import HugePages, PageSize
from hugepool_common.units import parse_bytes

CONFIG_VARIABLE = "HUGEPOOL_CONFIG"
SYSTEM_FILE = "/etc/hugepool/hugepool.toml"

FLAG = "flag"
DEFAULT = "default"
"""Origins of values that come from no variable and no file."""

LEAST_LEASE_S, MOST_LEASE_S = 1, 3600

_MOST_BYTES = 1 << 20
"""A configuration file has some hundred bytes."""

LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting, with its default.

    Parameters
    ----------
    address
        Coordinator that clients connect to; empty for the local one.
    checksums
        Whether sealing computes a checksum.
    group
        Whose members may connect beside the coordinator's own user; empty for nobody's.
    huge_pages, page_size
        Pages of arrays that state none of their own.
    keep
        Whether a coordinator that is told to stop leaves the arrays to the next one.
    lease_s
        Seconds that the session of a client over TCP lives without a sign of it.
    log_level
        Of the coordinator.
    mount
        Directory on hugetlbfs or tmpfs to put arrays in; empty for the best that is found.
    quota, quota_per_user
        Most bytes of all arrays, and of one user's, such as ``100G``; empty for no limit.
    reconnect_s
        Seconds that a client waits for a coordinator that ended and may be started again.
    runtime_dir
        Directory of the coordinator's socket; empty for the user's own.
    tcp
        Loopback address and port at which the coordinator also takes clients over TCP, such as
        ``127.0.0.1:8378``; empty for none.
    """

    address: str = ""
    checksums: bool = True
    group: str = ""
    huge_pages: HugePages = "try"
    keep: bool = False
    lease_s: float = 10.0
    log_level: LogLevel = "info"
    mount: str = ""
    page_size: PageSize = "auto"
    quota: str = ""
    quota_per_user: str = ""
    reconnect_s: float = 10.0
    runtime_dir: str = ""
    tcp: str = ""


NAMES = Settings.__struct_fields__

_PREFIX = "HUGEPOOL_"
_NOT_SET = {"PROGRAM"}
"""Variables of ours that are no settings."""

_NEEDED = {str: "a string", bool: "true or false", float: "seconds, 0 or more"}
_ODD_VARIABLES = {"log_level": "HUGEPOOL_LOG", "runtime_dir": RUNTIME_VARIABLE}


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in force.

    Parameters
    ----------
    settings
        Their values.
    origins
        By name: :data:`FLAG`, a variable, the path of a file, or :data:`DEFAULT`.
    """

    settings: Settings
    origins: Mapping[str, str]

    def by_flag_alone(self, *names: str) -> Settings:
        """The values, but of these settings the default unless a flag said otherwise."""
        default = Settings()
        unset = [name for name in names if self.origins[name] != FLAG]
        return msgspec.structs.replace(
            self.settings, **{name: getattr(default, name) for name in unset}
        )


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return _ODD_VARIABLES.get(name, _PREFIX + name.upper())


def read_settings(**flags: object) -> Settings:
    """The values in force; see :func:`read_configuration`."""
    return read_configuration(flags).settings


def read_configuration(flags: Mapping[str, object] | None = None) -> Configuration:
    """Find out what is set, and where.

    Parameters
    ----------
    flags
        Values of options, by name of the setting; None for an option that was not given.

    Raises
    ------
    InvalidSpecError
        Some place has a name or value that is none, or the chosen file cannot be read.
    """
    found: dict[str, object] = {}
    origins = dict.fromkeys(NAMES, DEFAULT)
    for path, required in configuration_files():
        for name, value in _read_file(path, required).items():
            found[name], origins[name] = value, path
    for name in NAMES:
        variable = variable_of(name)
        if text := os.environ.get(variable, ""):
            found[name] = _value(name, text, variable, strict=False)
            origins[name] = variable
    for variable, meant in suspect_variables().items():
        raise InvalidSpecError(
            f"{variable} is not a setting", where="environment", remedy=f"did you mean {meant}?"
        )
    for name, value in (flags or {}).items():
        if value is not None:
            found[name] = _value(name, value, "", strict=False)
            origins[name] = FLAG
    return Configuration(msgspec.structs.replace(Settings(), **found), origins)


def export_mount(settings: Settings) -> None:
    """Let this process and its children see the chosen mount as they look at the host."""
    if settings.mount:
        os.environ[variable_of("mount")] = settings.mount


def suspect_variables() -> dict[str, str]:
    """Environment variables that look like one of ours with a typo, and what was meant.

    One that is like none of ours is somebody else's affair: a test's, a script's.
    """
    words = {name.removeprefix(_PREFIX) for name in os.environ if name.startswith(_PREFIX)}
    known = {variable_of(name).removeprefix(_PREFIX) for name in NAMES} | {"CONFIG"}
    settings = {name.upper(): variable_of(name).removeprefix(_PREFIX) for name in NAMES}
    nearest = {
        word: settings.get(word)
        or _nearest(word, known)  # LOG_LEVEL is a setting, LOG its variable
        for word in sorted(words - known - _NOT_SET)
    }
    return {_PREFIX + word: _PREFIX + meant for word, meant in nearest.items() if meant}


def configuration_files() -> list[tuple[str, bool]]:
    """The files that settings are read from, the strongest one last, and whether each must be."""
    chosen = os.environ.get(CONFIG_VARIABLE)
    if chosen:
        return [(chosen, True)]
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [(SYSTEM_FILE, False), (os.path.join(home, "hugepool", "hugepool.toml"), False)]


def _read_file(path: str, required: bool) -> dict[str, object]:
    try:
        content = read_small_file(path, _MOST_BYTES)
    except InvalidSpecError as error:
        raise InvalidSpecError(
            f"the configuration file cannot be read: {error.message}",
            needed=error.needed,
            where=path,
        ) from None
    except OSError as error:
        # A usual one that we may not read is not meant for us: somebody else's home, perhaps.
        if not required and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return {}
        message = f"the configuration file cannot be read: {error.strerror}"
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # the file is not at fault
            raise NotEnoughMemoryError(
                message, where=path, remedy="raise the number of descriptors with: ulimit -n"
            ) from None
        raise InvalidSpecError(message, where=path) from None
    import tomllib  # most machines have no file

    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise InvalidSpecError(f"the configuration file is no TOML: {error}", where=path) from None
    for name in table:
        if name not in NAMES:
            _refuse_name(name, path)
    return {name: _value(name, value, path, strict=True) for name, value in table.items()}


def _refuse_name(name: str, path: str) -> NoReturn:
    nearest = _nearest(name, NAMES)
    raise InvalidSpecError(
        f"{name!r} is not a setting",
        where=path,
        remedy=f"did you mean {nearest}?" if nearest else f"settings are {', '.join(NAMES)}",
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = [one for one in sorted(known) if _letters_apart(name, one) <= max(2, len(name) // 3)]
    if not near:
        return ""
    import difflib  # only over an error

    return next(iter(difflib.get_close_matches(name, near, 1, cutoff=0.7)), "")


def _letters_apart(one: str, other: str) -> int:
    letters = Counter(one)
    letters.subtract(other)
    return sum(map(abs, letters.values()))


def _value(name: str, value: object, where: str, *, strict: bool) -> object:
    """A value as its setting has it."""
    is_quota = name in ("quota", "quota_per_user")
    try:
        checked = getattr(msgspec.convert({name: value}, Settings, strict=strict), name)
        good = not is_quota or not checked or parse_bytes(checked) > 0
        if name == "reconnect_s":
            good = 0 <= checked < math.inf
        elif name == "lease_s":
            good = LEAST_LEASE_S <= checked <= MOST_LEASE_S
    except (msgspec.ValidationError, InvalidSpecError):
        good = False
    if good:
        return checked
    (kind,) = (field.type for field in msgspec.structs.fields(Settings) if field.name == name)
    needed = " or ".join(get_args(kind)) or _NEEDED[kind]
    if is_quota:
        needed = 'a number of bytes such as "100G"'
    elif name == "lease_s":
        needed = f"seconds, {LEAST_LEASE_S} to {MOST_LEASE_S}"
    raise InvalidSpecError(
        f"the setting {name} cannot be {reprlib.repr(value)}",
        needed=needed,
        where=where,
    )
