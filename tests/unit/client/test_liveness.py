"""The lock that says that a client lives, as the kernel and other processes see it."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from hugepool.liveness import Token
from hugepool_common.errors import NotPermittedError
from support.host import require

_FLOCK = struct.Struct("hhqqi4x")

HOLDER = """
import os, sys
from hugepool.liveness import Token
token = Token(sys.argv[1], os.geteuid())
print("locked", flush=True)
for command in sys.stdin:
    exec(command)
    print("done", flush=True)
"""


def holder_of(path: Path) -> int | None:
    """Pid of the process that holds a write lock, as F_GETLK names it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else pid


class Holder:
    """A process that holds a token."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("locked")

    def _expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == word + "\n"

    def do(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self._expect("done")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / ("ab" * 16)
    made.write_text("a session")
    return made


def test_the_lock_names_its_process_and_goes_with_it(path: Path) -> None:
    holder = Holder(path)
    try:
        assert holder_of(path) == holder.process.pid
        holder.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert holder_of(path) == holder.process.pid
    finally:
        holder.kill()
    assert holder_of(path) is None


def test_closing_lets_go(path: Path) -> None:
    holder = Holder(path)
    try:
        holder.do("token.close()")
        assert holder_of(path) is None
        holder.do("token.close()")
    finally:
        holder.kill()


def test_a_forked_child_neither_holds_the_lock_nor_lets_go_of_it(path: Path) -> None:
    holder = Holder(path)
    try:
        # A child that closes its copy and ends.
        holder.do("pid = os.fork(); pid or (token.close(), os._exit(0)); os.waitpid(pid, 0)")
        assert holder_of(path) == holder.process.pid
        # One that keeps its copy and outlives the parent, until our end of the pipe closes.
        holder.do("os.fork() or (os.read(0, 1), os._exit(0))")
        holder.process.kill()
        holder.process.wait()
        assert holder_of(path) is None
    finally:
        holder.kill()


def test_a_token_that_another_holds_is_refused(path: Path) -> None:
    holder = Holder(path)
    try:
        with pytest.raises(NotPermittedError, match="cannot be locked"):
            Token(str(path), os.geteuid())
    finally:
        holder.kill()


def test_a_process_without_descriptors_is_told_so(path: Path) -> None:
    script = (
        "import os, resource, sys\n"
        "from hugepool.liveness import Token\n"
        "from hugepool_common.errors import NotEnoughMemoryError\n"
        "limit = os.dup(0)\n"
        "os.close(limit)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "try: Token(sys.argv[1], os.geteuid())\n"
        "except NotEnoughMemoryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "ulimit -n" in done.stdout


def test_a_token_that_is_not_there_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(NotPermittedError, match=r"nothing.*runtime directory"):
        Token(str(tmp_path / "nothing"), os.geteuid())


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_no_regular_file_is_refused(path: Path, tmp_path: Path, kind: str) -> None:
    planted = tmp_path / "planted"
    if kind == "symlink":
        planted.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(planted)
    else:
        planted.mkdir()
    with pytest.raises(NotPermittedError):
        Token(str(planted), os.geteuid())


def test_another_user_s_file_is_refused(path: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to make another user's file")
    os.chown(path, 64001, -1)
    with pytest.raises(NotPermittedError, match="uid 64001"):
        Token(str(path), os.geteuid())
