"""``hugepoold``: the daemon's command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hugepool_common._version import __version__
from hugepool_common.errors import CoordinatorRunningError, HugepoolError, InvalidSpecError
from hugepool_common.paths import PROGRAM_VARIABLE
from hugepool_common.settings import CONFIG_VARIABLE, export_mount, read_configuration
from hugepool_common.usage import wrong_use
from hugepool_server.config import Config

if TYPE_CHECKING:
    from hugepool_server.status_page import StatusPage

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_RUNNING = 5
"""Exit status when another coordinator owns the runtime directory."""

EXIT_INTERRUPTED = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--runtime-dir",
    metavar="DIR",
    help="Directory of the socket. Default: $HUGEPOOL_RUNTIME_DIR, /run/hugepool for root, "
    "$XDG_RUNTIME_DIR/hugepool, else /tmp/hugepool-UID.",
)
@click.option(
    "--group",
    metavar="NAME",
    help="Let this group connect, make arrays and read those of all; an array is written by its "
    "creator's user, and by workers.",
)
@click.option(
    "--keep/--no-keep",
    default=None,
    help="When told to stop, leave arrays and sessions to the next coordinator on this directory.",
)
@click.option("--quota", metavar="SIZE", help="Most bytes of all arrays, such as 100G.")
@click.option("--quota-per-user", metavar="SIZE", help="Most bytes of one user's arrays.")
@click.option(
    "--checksums/--no-checksums",
    default=None,
    help="Whether sealing computes a checksum of the bytes. Default: it does.",
)
@click.option("--mount", metavar="DIR", help="Where to put arrays, on hugetlbfs or tmpfs.")
@click.option(
    "--tcp",
    metavar="[HOST:]PORT",
    help="Take clients over TCP too, from this machine alone; port 0 for any. "
    "Default host: 127.0.0.1.",
)
@click.option(
    "--lease",
    "lease_s",
    type=float,
    metavar="SECONDS",
    help="How long a session over TCP lives without a sign of its client. Default: 10.",
)
@click.option(
    "--http",
    metavar="[HOST:]PORT",
    help="Serve a page that shows what goes on; port 0 for any. Default host: 127.0.0.1.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Default: info.",
)
@click.option("--config", metavar="FILE", help="Settings, in place of the usual files.")
@click.option("--parent", type=int, hidden=True, help="End with this process.")
@click.option("--ready-fd", type=int, hidden=True, help="Write the address here once bound.")
@click.version_option(__version__, prog_name="hugepoold")
def hugepoold(
    runtime_dir: str | None,
    group: str | None,
    keep: bool | None,
    quota: str | None,
    quota_per_user: str | None,
    checksums: bool | None,
    mount: str | None,
    tcp: str | None,
    lease_s: float | None,
    http: str | None,
    log_level: str | None,
    config: str | None,
    parent: int | None,
    ready_fd: int | None,
) -> int:
    """Run the hugepool coordinator in the foreground until SIGTERM, SIGINT or SIGHUP.

    The first of these ends it in order, within seconds; a second SIGTERM or SIGINT at once.
    However it ends other than in order, with --keep in order too, and always after SIGHUP
    (a closed terminal, or somebody's "reload"; status 129), the next coordinator on the same
    directory has the arrays again, and clients reconnect by themselves. A SIGHUP or SIGINT
    that was ignored at the start (nohup, a shell's "&") stays ignored.

    What no option says is taken from HUGEPOOL_ variables and hugepool.toml: see
    hugepool config.

    With --tcp its second address is the second line of what is printed. Whoever can open that port
    on this machine, any user, may look at everything, and make arrays.

    With --http a process of its own serves a page, in which whoever can open the port
    sees names, sizes and process ids, never data. It asks the coordinator nothing while
    no browser is open.

    \b
    Examples:
      hugepoold --runtime-dir /run/user/1000/hugepool
      hugepoold --http 8377
      hugepoold --tcp 127.0.0.1:8378
    """
    if config is not None:
        os.environ[CONFIG_VARIABLE] = config
    found = read_configuration(
        {
            "runtime_dir": runtime_dir,
            "group": group,
            "keep": keep,
            "quota": quota,
            "quota_per_user": quota_per_user,
            "checksums": checksums,
            "mount": mount,
            "tcp": tcp,
            "lease_s": lease_s,
            "log_level": log_level,
        }
    )
    settings = found.settings
    if parent is not None:  # what is set for the service is not meant for a private one
        settings = found.by_flag_alone(
            "runtime_dir", "group", "keep", "quota", "quota_per_user", "tcp"
        )
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="hugepoold: %(levelname)s: %(message)s",
    )
    export_mount(settings)
    from hugepool_server.daemon import Daemon

    checked = Config.checked(settings, parent_pid=parent)
    with _page(http) as page, Daemon(checked) as daemon:  # a page in vain has touched nothing
        if page is not None:
            page.show(daemon.address)
        if ready_fd is not None:
            os.write(ready_fd, daemon.address.encode() + b"\n")
            os.close(ready_fd)
        else:
            for address in filter(None, (daemon.address, daemon.tcp_address)):
                click.echo(address)
        return daemon.run()


@contextmanager
def _page(http: str | None) -> Iterator[StatusPage | None]:
    """The status page, if one is wanted."""
    if http is None:
        yield None
        return
    from hugepool_server.status_page import StatusPage

    page = StatusPage(http)
    logging.getLogger(__name__).info("status page at %s", page.url)
    try:
        yield page
    finally:
        page.close()


def main() -> None:
    """Run ``hugepoold`` and exit with its status."""
    program = os.environ.pop(PROGRAM_VARIABLE, "hugepoold")
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  a closed stream is None
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.platform != "linux":
        sys.exit("hugepoold: hugepool needs Linux; this is " + sys.platform)
    try:
        status = hugepoold.main(standalone_mode=False, prog_name=program)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        print(wrong_use(error, program), file=sys.stderr)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except CoordinatorRunningError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(EXIT_RUNNING)
    except HugepoolError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, InvalidSpecError) else EXIT_FAILURE)
    except OSError as error:
        print(f"{program}: cannot run: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
