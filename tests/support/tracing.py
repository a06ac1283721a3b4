"""System calls of a running process: what they are, and one of them made to fail or to kill.

``strace -p`` attaches to a warm process, so the traced window is one operation and
not the start of an interpreter. To one *thread*: strace counts ``when=`` in each thread
by itself, and a fault in whichever thread comes first would hide the later one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.nursery import Child

CALLS = (
    "open,openat,openat2,creat,ftruncate,truncate,fallocate,mmap,madvise,mprotect,mremap,munmap,"
    "fchmod,fchmodat,chmod,fchown,fchownat,chown,lchown,link,linkat,unlink,unlinkat,rename,"
    "renameat,renameat2,write,writev,pwrite64,mkdir,mkdirat,rmdir,symlink,symlinkat,readlink,"
    "readlinkat,fcntl,flock,fstat,newfstatat,stat,lstat,statx,statfs,fstatfs,getdents64,close,"
    "fsync,fdatasync,fallocate,sendto,sendmsg,socket,bind,listen,pidfd_open,eventfd2,"
    "signalfd4,ioctl,prlimit64,epoll_ctl,memfd_create,mbind,utimensat"
)
"""Calls that change or ask something outside the process; waiting, clocks and locks of threads
do not."""

POOL = 3
"""Threads of the pools, of which one does an operation's work: which one is chance."""

_LINE = re.compile(r"(?:\d+\s+)?(\w+)\((.*)")
_FD = re.compile(r"^(?:AT_FDCWD|-?\d+)<([^>]*)>")


@dataclass(frozen=True)
class Call:
    """One system call that a thread made in the window.

    Parameters
    ----------
    thread
        Which: 0 is the first of its process, 1 and 2 are libzmq's, `POOL` any of those that
        were made later, -1 one that was made in the window.
    name
        Of the call.
    when
        It is the thread's so manieth of this name, from 1.
    text
        As strace shows it.
    """

    thread: int
    name: str
    when: int
    text: str

    @property
    def target(self) -> str:
        """The file that a descriptor in first place stands for, or the first path."""
        found = _FD.match(self.text)
        if found and not self.text.startswith("AT_FDCWD"):
            return found[1]
        quoted = re.search(r'"([^"]*)"', self.text)
        return quoted[1] if quoted else ""


def have_strace() -> str:
    """Why strace cannot be used here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    return ""


class Tracer:
    """strace on one process, or one thread of it, from construction to :meth:`stop`.

    Parameters
    ----------
    child
        The process.
    output
        File for what it sees; with `thread` None one file per thread, ``output.TID``.
    thread
        As of :class:`Call`, or None for all.
    inject
        The call and what to do, as strace's ``inject=`` wants it; empty only to look.
    """

    def __init__(
        self, child: Child, output: Path, *, thread: int | None = None, inject: str = ""
    ) -> None:
        self._output = output
        self._threads = threads_of(child.pid)
        traced = inject.split(":")[0] if inject else CALLS
        command = ["strace", "-y", "-s", "200", "-o", str(output), "-e", f"trace={traced}"]
        if inject:
            command += ["-e", f"inject={inject}"]
        if thread is None:
            command += ["-ff", "-p", str(child.pid)]
        else:
            for tid in self._threads[thread:] if thread == POOL else [self._threads[thread]]:
                command += ["-p", str(tid)]
        for stale in output.parent.glob(output.name + "*"):
            stale.unlink()
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._strace.stderr is not None
        # A line for each thread that it was told of, or one for the process: then it sees them all.
        told = max(1, command.count("-p"))
        lines = [self._strace.stderr.readline().decode() for _ in range(told)]
        if "attached" not in lines[0]:
            self._strace.wait()
            raise OSError(f"strace cannot attach: {lines[0]}")

    def stop(self) -> None:
        """Detach; the process goes on."""
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)
        assert self._strace.stderr is not None
        if not self._strace.stderr.closed:
            self._strace.stderr.read()
            self._strace.stderr.close()
        self._strace.wait()

    def calls(self) -> list[Call]:
        """What every thread did; one that was made in the window has the number -1."""
        found = []
        for path in sorted(self._output.parent.glob(self._output.name + ".*")):
            tid = int(path.suffix[1:])
            thread = min(self._threads.index(tid), POOL) if tid in self._threads else -1
            counts: dict[str, int] = {}
            for line in path.read_text(errors="replace").splitlines():
                match = _LINE.match(line)
                if match:
                    counts[match[1]] = counts.get(match[1], 0) + 1
                    found.append(Call(thread, match[1], counts[match[1]], match[2]))
        return found

    def lines(self) -> list[str]:
        """What one traced thread did, as strace shows it."""
        paths = [self._output, *self._output.parent.glob(self._output.name + ".*")]
        return [
            line
            for path in paths
            if path.exists()
            for line in path.read_text(errors="replace").splitlines()
        ]


def threads_of(pid: int) -> list[int]:
    """Thread ids in the order that the threads were made: ids are counted up, and wrap."""
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return sorted(threads, key=lambda thread: (thread - pid) % most)
