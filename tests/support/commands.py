"""The installed ``hugepool`` driven as a user drives it: processes, streams, statuses."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

HUGEPOOL = (os.path.join(sysconfig.get_path("scripts"), "hugepool"),)
"""The program as it is installed."""


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        """The lines of a table by the titles of its columns."""
        lines = self.out.splitlines()
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))

    @property
    def fields(self) -> dict[str, str]:
        """The facts of one thing by their names."""
        return {row["field"]: row["value"] for row in self.rows}

    @property
    def json(self) -> Any:
        """What ``--json`` printed."""
        return json.loads(self.out)


class Shell:
    """Runs commands with variables of its own.

    Parameters
    ----------
    environment
        Beside those of this process.
    """

    def __init__(self, **environment: str) -> None:
        self.environment = {**os.environ, "HUGEPOOL_ADDRESS": "", **environment}

    def __call__(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> Done:
        """Run a command and wait for its end."""
        done = subprocess.run(
            [*prefix, *HUGEPOOL, *arguments],
            capture_output=True,
            text=True,
            timeout=280,
            cwd="/" if prefix else None,
            env={**self.environment, **environment},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def succeed(self, *arguments: str) -> Done:
        """Run a command that must succeed."""
        done = self(*arguments)
        assert done.status == 0, done.err
        return done

    def refuse(self, status: int, *arguments: str, **environment: str) -> str:
        """Run a command that must fail with one line, which is returned."""
        done = self(*arguments, prefix=(), **environment)
        assert done.status == status, (done.status, done.err)
        assert done.out == ""
        (line,) = done.err.splitlines()
        return line

    def at_a_terminal(
        self, *arguments: str, columns: int = 80, directory: str | None = None, **environment: str
    ) -> str:
        """Run a command whose streams are a terminal, and return what is seen there."""
        leader, follower = pty.openpty()
        size = {"COLUMNS": str(columns), "TERM": "xterm"}
        with _closing(leader):
            with _closing(follower):
                process = subprocess.Popen(
                    [*HUGEPOOL, *arguments],
                    stdin=follower,
                    stdout=follower,
                    stderr=follower,
                    cwd=directory,
                    env={**self.environment, **size, **environment},
                )
            seen = b""
            while True:
                try:
                    piece = os.read(leader, 65536)
                except OSError:  # EIO: nobody has the other side open any more
                    break
                if not piece:
                    break
                seen += piece
        process.wait(120)
        return seen.decode().replace("\r\n", "\n")


@contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)
