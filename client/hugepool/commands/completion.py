"""``hugepool completion``: what a shell is to read for names to complete."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "hugepool"
_VARIABLE = "_HUGEPOOL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and live array names.

    \b
    Examples:
      eval "$(hugepool completion bash)"       # in ~/.bashrc
      eval "$(hugepool completion zsh)"        # in ~/.zshrc
      hugepool completion fish > ~/.config/fish/completions/hugepool.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
