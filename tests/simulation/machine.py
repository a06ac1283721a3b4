"""The machine under the coordinator: processes, their locks and mappings, files, pages.

Nothing here knows the coordinator. What the kernel and the file systems promise
holds here too: a lock goes with its process, a pid is given again, a file that was
unlinked keeps its pages until its last mapping goes, a directory entry is there
before whoever made it could say so.
"""

from __future__ import annotations

from hugepool_common.units import KIB
from hugepool_server.records import ArrayRecord, SessionRecord

PAGE = 4 * KIB
FIRST_PID = 100


class Process:
    """One process; its pid may be another's later."""

    __slots__ = ("alive", "mapped", "pid", "start", "stopped", "uid")

    def __init__(self, pid: int, uid: int, start: int) -> None:
        self.pid = pid
        self.uid = uid
        self.start = start
        self.alive = True
        self.stopped = False
        self.mapped: dict[File, bool] = {}
        """Whether it may write, by file."""

    def __repr__(self) -> str:
        state = "dead" if not self.alive else "stopped" if self.stopped else "running"
        return f"<Process {self.pid}/{self.start} {state}>"


class File:
    """A segment's file and its pages."""

    __slots__ = ("inode", "linked", "mappers", "pages", "readonly", "segment_id", "version")

    def __init__(self, segment_id: int, inode: int, pages: int) -> None:
        self.segment_id = segment_id
        self.inode = inode
        self.pages = pages
        self.linked = True
        self.readonly = False
        self.version = 0
        self.mappers: set[Process] = set()

    def checksum(self) -> str:
        """Of what was written to it."""
        return f"{self.segment_id:x}.{self.version}"


class Token:
    """A file for a process to lock."""

    __slots__ = ("holder", "name", "record")

    def __init__(self, name: str, record: SessionRecord) -> None:
        self.name = name
        self.record = record
        self.holder: Process | None = None


class Machine:
    """Everything that outlives a coordinator's process.

    Parameters
    ----------
    pages
        That it has.
    pids
        How many pids there are: few, so that they are used again soon.
    """

    def __init__(self, pages: int, pids: int) -> None:
        self.pages = pages
        self.free = pages
        self.files: dict[int, File] = {}
        self.manifests: dict[int, ArrayRecord] = {}
        self.tokens: dict[str, Token] = {}
        self.stolen: set[int] = set()
        """Segments that vanished without the coordinator."""
        self.epoch = 0
        self.processes: dict[int, Process] = {}
        self._unlinked: set[File] = set()
        self._pids = pids
        self._next_pid = 0
        self._starts = 0
        self._inodes = 0

    # Processes ----------------------------------------------------------------

    def spawn(self, uid: int) -> Process:
        """Start a process under the next pid that is free."""
        while True:
            pid = FIRST_PID + self._next_pid % self._pids
            self._next_pid += 1
            if pid not in self.processes:
                break
        self._starts += 1
        process = self.processes[pid] = Process(pid, uid, self._starts)
        return process

    def kill(self, process: Process) -> None:
        """End it: its locks and mappings go with it, its pid is free."""
        process.alive = False
        process.stopped = False
        del self.processes[process.pid]
        self.unlock(process)
        for file in list(process.mapped):
            self.unmap(process, file)

    def unlock(self, process: Process) -> None:
        """Let go of every lock of a process; also those on files that are not linked any more."""
        for token in self.tokens.values():
            if token.holder is process:
                token.holder = None

    # Files --------------------------------------------------------------------

    def make_file(self, segment_id: int, pages: int) -> File | None:
        """A whole file under its name, or nothing at all."""
        if pages > self.free:
            return None
        assert segment_id not in self.files, "a segment's name was used twice"
        self.free -= pages
        self._inodes += 1
        file = self.files[segment_id] = File(segment_id, self._inodes, pages)
        return file

    def unlink_file(self, segment_id: int) -> None:
        """Remove the name; the pages go with the last mapping."""
        file = self.files.pop(segment_id, None)
        if file is None:
            return
        file.linked = False
        if file.mappers:
            self._unlinked.add(file)
        else:
            self.free += file.pages

    def map(self, process: Process, file: File, *, writable: bool) -> None:
        """Map a file, or widen a mapping."""
        process.mapped[file] = writable or process.mapped.get(file, False)
        file.mappers.add(process)

    def unmap(self, process: Process, file: File) -> None:
        """Take a mapping away."""
        del process.mapped[file]
        file.mappers.discard(process)
        if not file.linked and not file.mappers:
            self._unlinked.discard(file)
            self.free += file.pages

    def check_pages(self) -> None:
        """Pages are free, or in a file that has a name or a mapping."""
        used = sum(file.pages for file in self.files.values())
        used += sum(file.pages for file in self._unlinked)
        assert self.free + used == self.pages, "pages were lost or made"
        assert self.free >= 0
