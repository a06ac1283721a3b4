"""Child processes of a client: a private coordinator, and workers.

They are new interpreters, never forks: a fork would share this process's
sockets and locks. Each watches the pid of its parent and ends with it.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from hugepool.crew_cpus import unpinned
from hugepool_common.errors import CoordinatorUnreachableError
from hugepool_common.paths import RUNTIME_VARIABLE, socket_fits

RUN_MODULE = ("-P", "-m")
"""Interpreter options of our children: nothing is imported from the working directory."""

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class EmbeddedCoordinator:
    """A coordinator of this process alone, in a runtime directory of its own.

    Raises
    ------
    CoordinatorUnreachableError
        It did not start; the message carries what it said.
    """

    def __init__(self) -> None:
        # The coordinator makes the directory and removes it, also if we are killed.
        self._directory = _free_directory()
        ready_reader, ready_writer = os.pipe()
        # Its messages go to a file without a name: not to the user's terminal, nor
        # to a pipe that nobody drains.
        with tempfile.TemporaryFile() as log, unpinned():
            try:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, *RUN_MODULE, "hugepool_server"),
                        *("--runtime-dir", self._directory),
                        *("--parent", str(os.getpid())),
                        *("--ready-fd", str(ready_writer)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[ready_writer],
                    start_new_session=True,  # Ctrl-C is for us to handle, then to pass on
                )
            finally:
                os.close(ready_writer)
            self.address = self._wait_ready(ready_reader, log)

    def _wait_ready(self, reader: int, log: IO[bytes]) -> str:
        with open(reader, "rb") as ready:
            poller = select.poll()  # select() takes no descriptor above 1023
            poller.register(ready, select.POLLIN)
            line = ready.readline() if poller.poll(START_TIMEOUT_S * 1000) else b""
        if line.endswith(b"\n"):
            return line.decode().strip()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
        raise CoordinatorUnreachableError(
            "the private coordinator did not start", had=said[-1000:] or "no message"
        )

    @property
    def pid(self) -> int:
        """Process id of the coordinator."""
        return self._process.pid

    def stop(self) -> None:
        """Ask it to end, wait, and remove its directory."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)  # if it was killed


def _free_directory() -> str:
    """A name for a runtime directory, where its socket's path is short enough."""
    places = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    usable = [place for place in places if place and os.access(place, os.W_OK | os.X_OK)]
    name = f"hugepool-{secrets.token_hex(6)}"
    for place in usable:
        path = os.path.join(os.path.abspath(place), name)
        if socket_fits(path):
            return path
    return os.path.join(usable[0] if usable else "/tmp", name)  # and let the coordinator say why


def start_worker(address: str, *, cpus: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start one worker process for the coordinator at `address`, pinned to `cpus` if given."""
    command = [sys.executable, *RUN_MODULE, "hugepool.worker", "--address", address]
    command += ["--parent", str(os.getpid())]
    if cpus:
        command += ["--cpus", ",".join(map(str, cpus))]
    # The crew splits the work; a kernel's library must not start threads of its own.
    environment = dict.fromkeys(_ONE_THREAD, "1") | dict(os.environ)
    environment.pop(RUNTIME_VARIABLE, None)
    with unpinned():
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )


def stop_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End children by their own pids: SIGTERM, then SIGKILL for what stays."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
