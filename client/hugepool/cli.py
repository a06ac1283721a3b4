"""``hugepool``: the command line. Commands import what they need when they run."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys

import click

from hugepool_common._version import __version__
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    InvalidSpecError,
    JobFailedError,
    NotEnoughPagesError,
)
from hugepool_common.paths import PROGRAM_VARIABLE

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NO_COORDINATOR = 3
EXIT_NOT_ENOUGH_PAGES = 4
EXIT_INTERRUPTED = 130

_ELSEWHERE = {
    "bench": "hugepool.bench.command:bench_command",
    "doctor": "hugepool.doctor:doctor_command",
    "publish": "hugepool.data_commands:publish_command",
    "restore": "hugepool.data_commands:restore_command",
    "snapshot": "hugepool.data_commands:snapshot_command",
    "verify": "hugepool.data_commands:verify_command",
}
"""Commands whose modules are too heavy to import for ``hugepool --help`` alone."""

_SUMMARIES = {
    "bench": "Measure gathers and sparse products on every page kind of this host.",
    "doctor": "Show what huge pages this host can give, and how to get the rest.",
    "publish": "Read a file and let a name stand for it, in one step.",
    "restore": "Make the arrays and matrices of a snapshot.",
    "snapshot": "Save sealed arrays and matrices to a disk.",
    "verify": "Compare sealed objects with the checksums they were sealed with.",
}


class LazyGroup(click.Group):
    """A group whose heavier commands are imported when they are called."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of all commands, in order."""
        return sorted([*super().list_commands(context), *_ELSEWHERE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name, imported now if it lives elsewhere."""
        if name not in _ELSEWHERE:
            return super().get_command(context, name)
        module, _, attribute = _ELSEWHERE[name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        rows = []
        for name in self.list_commands(context):
            command = self.commands.get(name)
            rows.append((name, command.get_short_help_str() if command else _SUMMARIES[name]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hugepool")
def hugepool() -> None:
    """Shared NumPy arrays and sparse matrices on verified huge pages (Linux).

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 no coordinator, 4 not enough
    huge pages, 5 another coordinator runs, 130 interrupted.
    """


@hugepool.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Run the coordinator: see serve --help."""
    os.environ[PROGRAM_VARIABLE] = "hugepool serve"
    from hugepool.children import RUN_MODULE

    os.execv(sys.executable, [sys.executable, *RUN_MODULE, "hugepool_server", *options])


@hugepool.command()
@click.option(
    "-n", "--count", default=1, show_default=True, type=click.IntRange(1, 1024), help="Processes."
)
@click.option("--cpus", metavar="LIST", help="Pin worker k to the k-th of these, as 0-3 or 0,2.")
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Coordinator. Default: $HUGEPOOL_ADDRESS, else the local one.",
)
def worker(count: int, cpus: str | None, address: str | None) -> None:
    """Run worker processes.

    They end with the coordinator, or on Ctrl-C.

    \b
    Example:
      hugepool worker -n 2 --cpus 0-1
    """
    from hugepool.children import start_worker, stop_processes
    from hugepool.connection import local_address
    from hugepool.worker import parse_cpus

    pins = () if cpus is None else parse_cpus(cpus)
    where = local_address(address)

    def end(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            pinned = (pins[number % len(pins)],) if pins else ()
            processes.append(start_worker(where, cpus=pinned))
        click.echo(f"{count} worker(s) for {where}", err=True)
        statuses = [process.wait() for process in processes]
    finally:
        stop_processes(processes)
    killed = [-status for status in statuses if status < 0]
    if killed:
        raise JobFailedError(
            f"{len(killed)} of {count} workers were killed",
            had=", ".join(signal.Signals(number).name for number in killed),
        )
    sys.exit(max(statuses))


def main() -> None:
    """Run the command line and exit with its status."""
    # A closed stream (`>&-`) is None to Python; the rest of the program writes to what it has.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        hugepool.main(standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except CoordinatorUnreachableError as error:
        _fail(error, EXIT_NO_COORDINATOR)
    except NotEnoughPagesError as error:
        _fail(error, EXIT_NOT_ENOUGH_PAGES)
    except InvalidSpecError as error:
        _fail(error, EXIT_USAGE)
    except (HugepoolError, OSError) as error:
        _fail(error, EXIT_FAILURE)


def _fail(error: Exception, status: int) -> None:
    print(f"hugepool: {error}", file=sys.stderr)
    sys.exit(status)
