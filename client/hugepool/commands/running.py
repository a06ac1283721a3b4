"""``hugepool serve`` and ``worker``: the processes that stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click

from hugepool.address import local_address
from hugepool.children import RUN_MODULE, start_worker, stop_processes
from hugepool.commands.arguments import address_option
from hugepool_common.errors import JobFailedError
from hugepool_common.paths import PROGRAM_VARIABLE


@click.command(
    "serve",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve_command(options: tuple[str, ...]) -> None:
    """Run the coordinator: see serve --help."""
    os.environ[PROGRAM_VARIABLE] = "hugepool serve"
    os.execv(sys.executable, [sys.executable, *RUN_MODULE, "hugepool_server", *options])


@click.command("worker")
@click.option(
    "-n", "--count", default=1, show_default=True, type=click.IntRange(1, 1024), help="Processes."
)
@click.option("--cpus", metavar="LIST", help="Pin worker k to the k-th of these, as 0-3 or 0,2.")
@address_option
def worker_command(count: int, cpus: str | None, address: str | None) -> None:
    """Run worker processes.

    They end with the coordinator, or on Ctrl-C.

    \b
    Example:
      hugepool worker -n 2 --cpus 0-1
    """

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
