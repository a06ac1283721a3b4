"""Real coordinators and workers as child processes of a test, ended by their own pids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hugepool_common.paths import COORDINATOR_NAME, address_of


class Service:
    """A ``hugepoold`` in a runtime directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = address_of(str(directory))
        self._processes: list[subprocess.Popen[str]] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str, prefix: Sequence[str] = ()) -> Service:
        """Start the coordinator and wait for the address it prints.

        Parameters
        ----------
        options
            Of ``hugepoold``.
        prefix
            What starts it, such as ``prlimit``; it must not fork, or pass signals on.
        """
        self.process = self.begin(*options, prefix=prefix)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"hugepoold did not start: {self.process.communicate()[1]}")
        assert line.strip() == self.address
        return self

    def begin(self, *options: str, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a coordinator and wait for nothing."""
        return self.spawn(
            *(*prefix, sys.executable, "-m", "hugepool_server"),
            *("--runtime-dir", str(self.directory), *options),
        )

    def restart(self, *options: str, prefix: Sequence[str] = ()) -> Service:
        """SIGKILL the coordinator and start the next one on its directory."""
        self.kill()
        return self.start(*options, prefix=prefix)

    def spawn(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start any process that is to be ended with the test."""
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HUGEPOOL_ADDRESS": self.address, **environment},
        )
        self._processes.append(process)
        return process

    def python(
        self, script: str, *, prefix: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start a Python script that is told lines, and says lines."""
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HUGEPOOL_ADDRESS": self.address, **environment},
        )
        self._processes.append(process)
        return process

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python script against this coordinator in a process of its own."""
        return subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HUGEPOOL_ADDRESS": self.address, **environment},
        )

    def stop(self) -> int:
        """SIGTERM the coordinator and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL the coordinator."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End everything that was started."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)
        for process in self._processes:
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._clean_up()

    def _clean_up(self) -> None:
        """Remove what a coordinator that was killed last left for one that will never come."""
        if not (self.directory / COORDINATOR_NAME).exists():
            return
        last = self.begin("--log-level", "error")
        assert last.stdout is not None
        last.stdout.readline()
        last.terminate()
        last.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str = "") -> str:
    """Tell a process a line; what it says to it."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return said(process)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A coordinator that is not started yet."""
    made = Service(tmp_path / "run")
    yield made
    made.close()
