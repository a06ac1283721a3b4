"""A process that locks a token, as a client does, and then does as it is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

LOCKER = """
import fcntl, os, sys
print(os.getpid(), flush=True)
path = sys.stdin.readline().strip()
fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
for line in sys.stdin:
    {on_line}
    print("done", flush=True)
"""

FORK = "print(os.fork() or __import__('signal').pause(), flush=True)"
EXEC = "os.execv(sys.executable, [sys.executable, '-c', 'print(1, flush=True); input()'])"


class Locker:
    """The process.

    Parameters
    ----------
    on_line
        Python that it runs for each line that it is told, with the token open as ``fd``.
    prefix
        What starts it, such as ``unshare``.
    """

    def __init__(self, on_line: str = "pass", *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", LOCKER.format(on_line=on_line)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self.said())

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def lock(self, path: str) -> None:
        self.tell(path)
        assert self.said() == "locked"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass


@pytest.fixture
def locker() -> Iterator[Callable[..., Locker]]:
    """Start lockers that end with the test."""
    started: list[Locker] = []

    def one(*arguments: str) -> Locker:
        started.append(Locker(*arguments))
        return started[-1]

    yield one
    for locker in started:
        locker.close()
