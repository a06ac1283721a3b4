"""``hugepool rm`` and ``seal``: the end of a name, and of writing."""

from __future__ import annotations

import sys

import click

from hugepool.commands.arguments import (
    EXIT_FAILURE,
    address_option,
    json_option,
    names_argument,
    opened,
)
from hugepool.commands.listing import told
from hugepool.commands.tables import Column, print_json, print_table, size, warn
from hugepool_common.errors import ArrayNotFoundError, HugepoolError
from hugepool_common.messages import Destroy, Destroyed, Seal, Sealed
from hugepool_common.spec import check_name


@click.command("rm")
@names_argument(required=True)
@click.option("-f", "--force", is_flag=True, help="A name that is not there is no error.")
@address_option
def rm_command(names: tuple[str, ...], force: bool, address: str | None) -> None:
    """Remove names. Who has attached an array keeps it; its pages go with the last reader.

    All that can be removed are, also if one cannot.

    \b
    Example:
      hugepool rm x y
    """
    wanted = [check_name(name) for name in dict.fromkeys(names)]
    failed = False
    with opened(address) as channel:
        for name in wanted:
            try:
                channel.request(Destroy(name), Destroyed)
            except ArrayNotFoundError as error:
                if not force:
                    warn(str(error))
                    failed = True
            except HugepoolError as error:
                if channel.closed:
                    raise
                warn(str(error))
                failed = True
    if failed:
        sys.exit(EXIT_FAILURE)


@click.command("seal")
@names_argument(required=True)
@address_option
@json_option
def seal_command(names: tuple[str, ...], address: str | None, as_json: bool) -> None:
    """Make arrays immutable that another process has filled and let go of.

    Only the user whose process made an array may seal it, and only while nobody,
    its maker included, has it attached for writing: who does is named. An array that is
    not sealed goes with the process that made it. Prints the checksums.

    \b
    Example:
      hugepool seal x
    """
    wanted = [check_name(name) for name in dict.fromkeys(names)]
    with opened(address) as channel:
        sealed = [channel.request(Seal(name), Sealed).array for name in wanted]
    if as_json:
        print_json([told(one) for one in sealed])
        return
    columns = (Column("name"), size("bytes"), Column("checksum"))
    print_table(columns, [(one.spec.name, one.spec.nbytes, one.checksum) for one in sealed])
