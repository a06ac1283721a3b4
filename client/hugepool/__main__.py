"""``hugepool``, as a script and as ``python -m hugepool``: the command line."""

import os
import signal

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly also while it is being imported."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # neither ignored, as behind nohup, nor another's
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from hugepool import cli

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
