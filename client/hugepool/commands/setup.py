"""``hugepool setup``: the commands that the doctor recommends, printed, run or undone."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from dataclasses import replace
from typing import TypeVar

import click

from hugepool.commands.arguments import EXIT_FAILURE, json_option
from hugepool.commands.tables import print_json, warn
from hugepool.host_changes import JOURNAL, Change, Setup, SetValue
from hugepool.remedies import HUGE_RUNGS, changes, shortage
from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError, NotEnoughPagesError
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host, read_host
from hugepool_common.settings import export_mount, read_settings
from hugepool_common.units import format_bytes, parse_bytes

_M = TypeVar("_M", HugetlbfsMount, TmpfsMount)


@click.command("setup")
@click.option(
    "--size",
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="Make room for so many bytes of arrays.",
)
@click.option(
    "--rung",
    "rungs",
    multiple=True,
    type=click.Choice(HUGE_RUNGS),
    help="Bring this rung; may be given again. Default: hugetlbfs-2m and shm-collapse.",
)
@click.option(
    "--user",
    metavar="NAME",
    help="Who the coordinator runs as. Default: who called sudo, else you.",
)
@click.option("--apply", is_flag=True, help="Do it, as root, and note what was there before.")
@click.option("--undo", is_flag=True, help="Bring back what was there before --apply.")
@click.option("--journal", default=JOURNAL, hidden=True, metavar="FILE")
@json_option
def setup_command(
    size: str,
    rungs: tuple[str, ...],
    user: str | None,
    apply: bool,
    undo: bool,
    journal: str,
    as_json: bool,
) -> None:
    """Print the commands that give this host huge pages; with --apply, do them.

    They raise the pool, mount hugetlbfs for the coordinator's user, and set the modes of
    transparent huge pages. Nothing is printed if nothing is missing. A change lasts
    until --undo or the next start of the machine; deploy/ has files that keep it.

    \b
    Examples:
      hugepool setup --size 4GB
      sudo hugepool setup --size 4GB --apply
      sudo hugepool setup --undo
    """
    if apply and undo:
        raise click.UsageError("--apply and --undo exclude each other")
    setup = Setup(journal)
    if undo:
        _undo(setup)
        return
    export_mount(read_settings())
    wanted = missing_changes(rungs, parse_bytes(size), *account(user))
    if apply:
        _apply(setup, wanted)
    elif as_json:
        print_json([{"command": one.command} for one in wanted])
    else:
        for one in wanted:
            click.echo(one.command)
        if not wanted:
            warn("nothing is missing")


def missing_changes(rungs: tuple[str, ...], room: int, uid: int, gid: int) -> list[Change]:
    """What the host lacks, each change once.

    Parameters
    ----------
    rungs
        To be brought; empty for those that serve an ordinary array.
    room
        Bytes of arrays.
    uid, gid
        Who the coordinator runs as.

    Raises
    ------
    NotEnoughMemoryError
        The machine has not so much memory: to try would take it from everything else.
    """
    host = seen_by(read_host(), uid, gid)
    found: list[Change] = []
    for rung in rungs or ("hugetlbfs-2m", "shm-collapse"):
        too_large = shortage(rung, host, room)
        if too_large:
            raise NotEnoughMemoryError(
                f"there is no room for arrays of this size on {rung}: {too_large}",
                needed=format_bytes(room),
                remedy="ask for less with --size",
            )
        found += changes(rung, host, uid=uid, gid=gid, room=room)
    return list(dict.fromkeys(found))


def account(user: str | None) -> tuple[int, int]:
    """The uid and gid of whom the coordinator runs as.

    Raises
    ------
    InvalidSpecError
        There is no such user.
    """
    if user is None:
        uid = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
        if not uid:
            return os.geteuid(), os.getegid()
        user = uid
    try:
        found = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError, ValueError):
        raise InvalidSpecError(f"no user is called {user!r}", remedy="see: getent passwd") from None
    return found.pw_uid, found.pw_gid


def seen_by(host: Host, uid: int, gid: int) -> Host:
    """The host with what another user may write to: root may everywhere."""
    if uid == os.geteuid():
        return host

    def usable(mount: _M) -> _M:
        return replace(mount, writable=mount.writable and _may_write(mount.path, uid, gid))

    return replace(
        host,
        hugetlbfs_mounts=tuple(map(usable, host.hugetlbfs_mounts)),
        tmpfs_mounts=tuple(map(usable, host.tmpfs_mounts)),
    )


def _may_write(path: str, uid: int, gid: int) -> bool:
    found = os.stat(path)
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return uid == 0 or stat.S_IMODE(found.st_mode) >> shift & 0o3 == 0o3


def _apply(setup: Setup, wanted: list[Change]) -> None:
    short: list[tuple[str, str]] = []
    for one in wanted:
        after = setup.apply(one)
        warn(f"done: {one.command}")
        # A pool that gets fewer pages than were asked for is no error to the kernel.
        if isinstance(one, SetValue) and one.path.endswith("nr_hugepages") and after != one.value:
            short.append((one.value, after))
    if not wanted:
        warn("nothing is missing")
    for needed, had in short:
        raise NotEnoughPagesError(
            "the kernel gave fewer huge pages than were asked for",
            needed=needed,
            had=had,
            remedy="try again after: echo 1 > /proc/sys/vm/compact_memory; "
            "or take it back with: hugepool setup --undo",
        )


def _undo(setup: Setup) -> None:
    if not setup.entries():
        warn("nothing is to be undone")
    elif not setup.undo(warn):
        sys.exit(EXIT_FAILURE)
