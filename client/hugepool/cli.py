"""``hugepool``: the command line. Commands import what they need when they run."""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from hugepool_common._version import __version__
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    InvalidSpecError,
    NotEnoughPagesError,
)
from hugepool_common.printable import printable
from hugepool_common.settings import CONFIG_VARIABLE
from hugepool_common.usage import wrong_use

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NO_COORDINATOR = 3
EXIT_NOT_ENOUGH_PAGES = 4
EXIT_INTERRUPTED = 130

_COMMANDS = {
    "bench": (
        "hugepool.bench.command",
        "Measure gathers and sparse products on every page kind.",
    ),
    "completion": (
        "completion",
        "Print the script that completes commands and live array names.",
    ),
    "config": ("configuration", "Show every setting, its value, and where that comes from."),
    "create": ("filling", "Make an array of one value, sealed."),
    "doctor": (
        "hugepool.doctor",
        "Show what huge pages there can be, and how to get the rest.",
    ),
    "get": ("fetching", "Write an array or matrix to a file."),
    "ls": ("listing", "List arrays, matrices and plans."),
    "plan": ("sizing", "Show how many pages so many bytes take, and how to get them."),
    "publish": ("keeping", "Read a file and let a name stand for it, in one step."),
    "put": ("filling", "Read a file into a sealed array or matrix."),
    "readers": ("listing", "Show which processes have an array."),
    "restore": ("keeping", "Make the arrays and matrices of a snapshot."),
    "rm": ("naming", "Remove names."),
    "seal": ("naming", "Make arrays immutable that another process has filled."),
    "serve": ("running", "Run the coordinator: see serve --help."),
    "setup": ("setup", "Show or run the commands that give this host huge pages, and undo them."),
    "snapshot": ("keeping", "Save sealed arrays and matrices to a disk."),
    "stat": ("listing", "Show everything known of one array, matrix or plan."),
    "status": ("status", "Show the coordinator: what it holds, who works, what it has done."),
    "top": ("hugepool.live.command", "Show arrays, workers and jobs live, or serve a page of it."),
    "verify": ("keeping", "Compare sealed objects with the checksums they were sealed with."),
    "warm": ("warming", "Bring in every page of arrays, and show how many bytes are huge."),
    "worker": ("running", "Run worker processes."),
}
"""Every command's module, imported only when it is called, and what the list says of it.

A module without a dot is one of :mod:`hugepool.commands`.
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of all commands, in order."""
        return sorted(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if name not in _COMMANDS:
            return None
        module = _COMMANDS[name][0]
        if "." not in module:
            module = f"hugepool.commands.{module}"
        command = getattr(importlib.import_module(module), f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was called; what is wrong with its options is told as its own."""
        try:
            return super().invoke(context)
        except click.UsageError as error:
            name = context.invoked_subcommand
            if error.ctx is None and name is not None and name in _COMMANDS:
                command = self.get_command(context, name)
                assert command is not None
                error.ctx = click.Context(command, info_name=name, parent=context)
            raise

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands, again without importing them."""
        names = [name for name in _COMMANDS if name.startswith(incomplete)]
        found = [CompletionItem(name, help=_COMMANDS[name][1]) for name in names]
        return found + click.Command.shell_complete(self, context, incomplete)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hugepool")
@click.option("--config", metavar="FILE", help="Read settings from here: see hugepool config.")
def hugepool(config: str | None) -> None:
    """Shared NumPy arrays and sparse matrices on verified huge pages (Linux).

    Data goes to stdout, aligned on a terminal and tab-separated elsewhere; messages go
    to stderr. Sizes are written 400MB, 2M or 1GiB. Names complete: hugepool completion.

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 no coordinator, 4 not enough
    huge pages, 5 another coordinator runs, 130 interrupted.
    """
    if config is not None:
        os.environ[CONFIG_VARIABLE] = config


def main() -> None:
    """Run the command line and exit with its status."""
    # A closed stream (`>&-`) is None to Python; the rest of the program writes to what it has.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Output.over(sys.stdout)
    try:
        _run()
    except SystemExit as ended:
        try:
            sys.stdout.flush()
        except OSError as error:
            _stop_writing()
            if not ended.code:
                if not isinstance(error, BrokenPipeError):
                    _tell_error(error)
                sys.exit(EXIT_FAILURE)
        raise


class _Output(io.TextIOWrapper):
    """Standard output, whose errors say that it is what cannot be written."""

    @classmethod
    def over(cls, stream: io.TextIOWrapper) -> _Output:
        """In place of another, which must not be used any more."""
        encoding, errors = stream.encoding, stream.errors
        if errors == "strict" or encoding.lower() != "utf-8":
            errors = "backslashreplace"  # as stderr: better that than nothing
        buffered = stream.line_buffering
        return cls(stream.detach(), encoding, errors, line_buffering=buffered)

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _of_output(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _of_output(error) from None


def _of_output(error: OSError) -> OSError:
    return type(error)(error.errno, error.strerror, "standard output")


def _stop_writing() -> None:
    """Let nothing more be written: what is left would be tried again at the very end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


def _run() -> None:
    """Run a command; SystemExit has its status, and what went wrong was told."""
    try:
        status = hugepool.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except BrokenPipeError:
        # Whoever read our output has enough, as `head` has; nothing more can be said there.
        _stop_writing()
        sys.exit(EXIT_FAILURE)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        print(wrong_use(error, "hugepool"), file=sys.stderr)
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
    finally:
        # The interpreter would look through all modules for cycles once more, on its way out:
        # a tenth of what a short command takes.
        gc.freeze()


def _fail(error: Exception, status: int) -> NoReturn:
    _tell_error(error)
    sys.exit(status)


def _tell_error(error: Exception) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.strerror}: {error.filename}"
    print(f"hugepool: {printable(text)}", file=sys.stderr)
