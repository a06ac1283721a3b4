"""Real processes in milliseconds: forked off one interpreter that has imported the program.

A fault test starts thousands of coordinators, workers and clients. A new interpreter
takes half a second to import them; a fork of one that has imported them and done
nothing else takes a hundredth. The forking process must never open a ZeroMQ context
nor start a thread, so the programs below are run by themselves, not inside pytest.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would not survive the fork

BIRTH_S = 60.0
"""A child that is not there after so long never will be."""

_AT_THE_GATE = b"at the gate\n"
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61


class TooSlow(Exception):
    """A process neither answered nor ended in time."""


class Child:
    """A forked process with a pipe to its stdin, one from its stdout, and a log.

    Parameters
    ----------
    pid
        Of the process.
    role
        What it was started as.
    requests, replies
        Descriptors of our ends of its stdin and stdout.
    log
        File that its stderr goes to.
    """

    def __init__(self, pid: int, role: str, requests: int, replies: int, log: Path) -> None:
        self.pid = pid
        self.role = role
        self.log = log
        self.status: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._requests = requests
        self._replies = replies
        self._read = b""

    def __repr__(self) -> str:
        return f"<{self.role} pid {self.pid}{'' if self.alive else f' ended {self.status}'}>"

    @property
    def alive(self) -> bool:
        """Whether it runs; what has ended is reaped."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.status is None

    def say(self, line: str) -> None:
        """Write a line to its stdin; one that is dead does not hear it."""
        if self.status is not None:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, line.encode() + b"\n")

    def hear(self, timeout_s: float) -> str | None:
        """The next line of its stdout; None if it ended instead.

        Raises
        ------
        TooSlow
            Neither happened in time.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._replies], [], [], left)[0]:
                raise TooSlow(f"{self!r} said nothing for {timeout_s} s")
            got = os.read(self._replies, 1 << 16)
            if not got:
                self.wait(timeout_s)
                return None
            self._read += got
        line, self._read = self._read.split(b"\n", 1)
        return line.decode()

    def has_spoken(self) -> bool:
        """Whether :meth:`hear` would return at once."""
        return b"\n" in self._read or bool(select.select([self._replies], [], [], 0)[0])

    def fileno(self) -> int:
        """Readable when it has said something, or has ended."""
        return self._replies

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.status is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL it and reap it."""
        self.signal(signal.SIGKILL)
        self.wait(20)

    def wait(self, timeout_s: float) -> int:
        """Its exit status, negative for a signal.

        Raises
        ------
        TooSlow
            It has not ended in time.
        """
        if self.status is None:
            if not select.select([self._pidfd], [], [], timeout_s)[0]:
                raise TooSlow(f"{self!r} did not end in {timeout_s} s")
            self._ended(os.waitpid(self.pid, 0)[1])
        assert self.status is not None
        return self.status

    def _ended(self, status: int) -> None:
        self.status = os.waitstatus_to_exitcode(status)
        for fd in (self._pidfd, self._requests):
            os.close(fd)

    def forget(self) -> None:
        """Close what is left of an ended process."""
        if self._replies >= 0:
            os.close(self._replies)
            self._replies = -1

    def stacks(self) -> str:
        """Where its threads are: it is asked to say so in its log."""
        self.signal(signal.SIGUSR2)
        time.sleep(0.2)
        return self.tail(80)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


class Nursery:
    """Starts children that die with this process.

    Parameters
    ----------
    logs
        Directory of their logs.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._count = 0
        self.children: list[Child] = []
        gc.collect()
        gc.freeze()  # else the first collection in a child copies every page

    def spawn(
        self,
        role: str,
        run: Callable[[], int | None],
        *,
        environment: Mapping[str, str] | None = None,
        gate: bool = False,
    ) -> Child:
        """Fork a child that runs a function and exits with what it returns.

        Parameters
        ----------
        role
            Names the child and its log.
        run
            What it does, with its stdin and stdout on pipes of ours.
        environment
            What it has in its environment beside ours.
        gate
            Begin only when it is first told something: time to attach a tracer.
        """
        self.children = [child for child in self.children if child.alive]
        self._count += 1
        log = self._logs / f"{role}-{self._count}.log"
        child_in, requests = os.pipe2(os.O_CLOEXEC)
        replies, child_out = os.pipe2(os.O_CLOEXEC)
        harness = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(harness, (child_in, child_out), log, environment or {}, run, gate)
        os.close(child_in)
        os.close(child_out)
        child = Child(pid, role, requests, replies, log)
        self.children.append(child)
        if gate:
            child.hear(BIRTH_S)  # a tracer is not to see how it was born
        return child

    def close(self) -> None:
        """Kill what still lives."""
        for child in self.children:
            if child.alive:
                child.kill()
            child.forget()
        self.children.clear()


def _become(
    harness: int,
    stdio: tuple[int, int],
    log: Path,
    environment: Mapping[str, str],
    run: Callable[[], int | None],
    gate: bool,
) -> None:
    """The life of a child, from fork to exit; never returns."""
    status = 70
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # strace is no ancestor
        if os.getppid() != harness:
            os._exit(71)
        os.setsid()
        messages = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, fd in enumerate((*stdio, messages)):
            os.dup2(fd, number)
        os.closerange(3, 4096)
        sys.stdin, sys.stdout = os.fdopen(0, "r"), os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", buffering=1)
        faulthandler.enable(file=sys.stderr)
        faulthandler.register(signal.SIGUSR2, file=sys.stderr)  # where it hangs, if it does
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(environment)
        if gate:
            os.write(1, _AT_THE_GATE)
            os.read(0, 1)
        status = run() or 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
