"""Real coordinators and workers as child processes of a test, ended by their own pids."""

from __future__ import annotations

import os
import select
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
            What starts it, such as ``prlimit``. If it forks it must pass signals on, SIGKILL too.
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
            timeout=280,
            env={**os.environ, "HUGEPOOL_ADDRESS": self.address, **environment},
        )

    def stop(self) -> int:
        """SIGTERM the coordinator and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL the coordinator; it has ended then, also where what started it forked."""
        assert self.process is not None
        alive = self.process.poll() is None  # else its pid may be another's
        forked = [os.pidfd_open(pid) for pid in children(self.process.pid) if alive]
        self.process.kill()
        self.process.wait()
        for fd in forked:
            select.select([fd], [], [])
            os.close(fd)

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


def children(pid: int) -> list[int]:
    """Processes that the main thread of a process has started, and that it has not reaped."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def state(pid: int) -> str:
    """Of the main thread of a process: ``R``, ``S``, ``T`` and what else ``ps`` shows."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


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
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and workers wait for the next coordinator however slow the machine starts one."""
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "120")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A coordinator that is not started yet."""
    made = Service(tmp_path / "run")
    yield made
    made.close()
