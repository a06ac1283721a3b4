"""Child processes of a client: a private coordinator, and workers.

They are new interpreters, never forks: a fork would share this process's
sockets and locks. Each watches the pid of its parent and ends with it.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from hugepool.crew_cpus import unpinned
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    HugepoolError,
    NotEnoughMemoryError,
    NoWorkersError,
)
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
    NotEnoughMemoryError
        This process has no descriptor left, or may have no further child.
    """

    def __init__(self) -> None:
        # The coordinator makes the directory and removes it, also if we are killed.
        self._directory = _free_directory()
        with ExitStack() as opened:
            with _starting("a private coordinator", CoordinatorUnreachableError):
                reader, writer = os.pipe()
                ready = opened.enter_context(open(reader, "rb"))
                writer_end = opened.enter_context(open(writer, "wb"))
                # Its messages go to a file without a name: not to the user's terminal, nor
                # to a pipe that nobody drains.
                log = opened.enter_context(tempfile.TemporaryFile())
                with unpinned():
                    self._process = subprocess.Popen(
                        [
                            *(sys.executable, *RUN_MODULE, "hugepool_server"),
                            *("--runtime-dir", self._directory),
                            *("--parent", str(os.getpid())),
                            *("--ready-fd", str(writer)),
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=[writer],
                        start_new_session=True,  # Ctrl-C is for us to handle, then to pass on
                    )
            try:
                writer_end.close()
                self.address = self._wait_ready(ready, log)
            except BaseException:  # Ctrl-C: nobody has what could be stopped later
                self.stop()
                raise

    def _wait_ready(self, ready: IO[bytes], log: IO[bytes]) -> str:
        with ready:
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


@contextmanager
def _starting(what: str, kind: type[HugepoolError]) -> Iterator[None]:
    """Tell why a child cannot be started."""
    try:
        yield
    except OSError as error:
        message = f"{what} cannot be started: {error.strerror or error}"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise NotEnoughMemoryError(
                message, needed="a few free descriptors", remedy="raise them with: ulimit -n"
            ) from error
        if error.errno in (errno.EAGAIN, errno.ENOMEM):
            raise NotEnoughMemoryError(
                message, remedy="raise the limit of tasks (ulimit -u, TasksMax=), or free memory"
            ) from error
        raise kind(message, where=str(error.filename or "")) from error


def start_worker(address: str, *, cpus: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start one worker process for the coordinator at `address`, pinned to `cpus` if given.

    Raises
    ------
    NoWorkersError
        There is nothing to start.
    NotEnoughMemoryError
        This process has no descriptor left, or may have no further child.
    """
    command = [sys.executable, *RUN_MODULE, "hugepool.worker", "--address", address]
    command += ["--parent", str(os.getpid())]
    if cpus:
        command += ["--cpus", ",".join(map(str, cpus))]
    # The crew splits the work; a kernel's library must not start threads of its own.
    environment = dict.fromkeys(_ONE_THREAD, "1") | dict(os.environ)
    environment.pop(RUNTIME_VARIABLE, None)
    with _starting("a worker", NoWorkersError), unpinned():
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
