"""The status page of this coordinator: a process of its own, which is an ordinary client.

It listens before the coordinator begins, so that a port in use ends us before anything was
touched; it is told the address when there is one; and it ends when its stdin does, however
we end. It is run by name: the page belongs to the client's package, which is not imported here.
"""

from __future__ import annotations

import logging
import subprocess
import sys

END_S = 5.0

log = logging.getLogger(__name__)


class StatusPage:
    """A running server of the page.

    Parameters
    ----------
    http
        ``[HOST:]PORT`` to listen at.

    Attributes
    ----------
    url
        Where a browser finds it.

    Raises
    ------
    SystemExit
        It did not start, and has said why on stderr; with its exit status.
    """

    def __init__(self, http: str) -> None:
        self._process = subprocess.Popen(
            # As our own children are started: nothing is imported from the working directory.
            [sys.executable, "-P", "-m", "hugepool", "top", "--follow-stdin", "--http", http],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us to handle
        )
        assert self._process.stdout is not None
        with self._process.stdout as said:
            self.url = said.readline().strip()
        if not self.url:
            raise SystemExit(self._process.wait() or 1)

    def show(self, address: str) -> None:
        """Tell it the coordinator's address: from here on it answers."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(address + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # close() says so

    def close(self) -> None:
        """End it."""
        status = self._process.poll()
        if status is not None:
            log.warning("the status page had ended before, with status %d", status)
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
