"""``hugepool config``: what is set, and where."""

from __future__ import annotations

import os
from typing import Any

import click

from hugepool.commands.arguments import json_option
from hugepool.commands.tables import Column, print_json, print_table, warn
from hugepool_common.paths import runtime_directory
from hugepool_common.settings import (
    CONFIG_VARIABLE,
    NAMES,
    configuration_files,
    read_configuration,
    variable_of,
)

_UNSET = {
    "address": "the local service, else a private coordinator",
    "group": "none",
    "mount": "the best that is found",
    "quota": "none",
    "quota_per_user": "none",
    "tcp": "none",
}


@click.command("config")
@click.option("--config", "file", metavar="FILE", help="Read this file in place of the usual ones.")
@json_option
def config_command(file: str | None, as_json: bool) -> None:
    """Show every setting, its value, and where that comes from.

    Options of a command go before environment variables, those before the user's
    file ($XDG_CONFIG_HOME/hugepool/hugepool.toml), that before the machine's
    (/etc/hugepool/hugepool.toml), that before the default. $HUGEPOOL_CONFIG names one
    file to be read in place of both.

    \b
    Example:
      hugepool config
    \b
    A file:
      quota = "100G"
      keep = true
    """
    if file is not None:
        os.environ[CONFIG_VARIABLE] = file
    found = read_configuration()
    values: dict[str, Any] = {name: getattr(found.settings, name) for name in NAMES}
    values["runtime_dir"] = runtime_directory(found.settings.runtime_dir)
    for path, _ in configuration_files():
        if os.path.exists(path) and not os.access(path, os.R_OK):
            warn(f"{path} is left out: this user may not read it")
    if as_json:
        print_json(
            [
                {
                    "setting": name,
                    "value": values[name],
                    "origin": found.origins[name],
                    "variable": variable_of(name),
                }
                for name in NAMES
            ]
        )
        return
    columns = (
        Column("setting"),
        Column("value", shown=_shown, told=_told),
        Column("origin"),
        Column("variable"),
    )
    print_table(
        columns,
        [(name, (name, values[name]), found.origins[name], variable_of(name)) for name in NAMES],
    )


def _told(pair: tuple[str, Any]) -> str:
    value = pair[1]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(pair: tuple[str, Any]) -> str:
    return _told(pair) or f"({_UNSET[pair[0]]})"
