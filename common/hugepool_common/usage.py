"""How both programs tell wrong use: on one line, with where to read on."""

from __future__ import annotations

import click

from hugepool_common.printable import printable


def wrong_use(error: click.ClickException, program: str) -> str:
    """What is wrong, on one line; of a command's use, also where that is told.

    Parameters
    ----------
    error
        What click has to say.
    program
        What was called, where the error does not know.
    """
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else program
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.UsageError):
        message += f"; see: {path} --help"
    return printable(f"{path}: {message}")
