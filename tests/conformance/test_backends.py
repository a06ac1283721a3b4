"""One suite for every rung. Its checks go round the code under test.

The file is looked at with ``os`` and mapped here by a bare ``mmap(2)``, and its
pages are counted from ``/proc/self/smaps`` by lines read here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest

from hugepool_common.errors import (
    ArrayBusyError,
    ArrayExistsError,
    CancelledError,
    HugepoolError,
    SegmentChangedError,
)
from hugepool_common.mapping import Mapping
from hugepool_common.pages import read_host
from hugepool_common.spec import PageReport, Part, Segment
from hugepool_common.units import GIB, KIB, MIB
from hugepool_server.backends import filling, select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.reclaim import SegmentDirectories
from support.host import held_pages, require, settles

_GIGANTIC = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB")
_HUGE_LINES = ("ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb")

pytestmark = pytest.mark.usefixtures("leak_check")


@dataclass
class Rung:
    """A rung that this machine has, and how much is free where it makes its files."""

    name: str
    page_size: int
    nbytes: int
    free_bytes: Callable[[], int]
    directories: SegmentDirectories

    @property
    def length(self) -> int:
        """Bytes of a segment of `nbytes`."""
        return -(-self.nbytes // self.page_size) * self.page_size

    def make(self, segment_id: int = 1, **options: Any) -> tuple[Segment, PageReport]:
        """A segment on exactly this rung."""
        nbytes = options.pop("nbytes", self.nbytes)
        request = SegmentRequest(segment_id, nbytes, **options.pop("request", {}))
        return select.make_segment(
            request,
            huge_pages="try",
            page_size="auto",
            backing=self.name,
            directories=self.directories,
            **options,
        )


@pytest.fixture(params=select.RUNGS)
def rung(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rung]:
    name = str(request.param)
    page_size, nbytes = 2 * MIB, 5 * MIB + 8
    # Where others make files too, what is free says nothing.
    private = name in ("shm-4k", "shm-collapse") and os.geteuid() == 0
    path = request.getfixturevalue("mounts").tmpfs("size=512M") if private else "/dev/shm"
    if name == "hugetlbfs-1g":
        request.getfixturevalue("gigantic_page")
        page_size = GIB
        path = request.getfixturevalue("mounts").hugetlbfs("pagesize=1G,size=1G")
    elif name == "hugetlbfs-2m":
        request.getfixturevalue("huge_page_pool")
        path = request.getfixturevalue("mounts").hugetlbfs("pagesize=2M,size=64M")
    elif name == "tmpfs-huge":
        path = request.getfixturevalue("mounts").tmpfs("size=64M,huge=always")
        require("tmpfs-huge", read_host().shmem_enabled != "deny", "shmem_enabled=deny")
    elif name == "shm-collapse":
        fall = select.backend_of(name).unusable(read_host(), nbytes)
        require("collapse", fall is None, fall.reason if fall else "")
    else:
        page_size = 4 * KIB
    monkeypatch.setenv("HUGEPOOL_MOUNT", path)

    def free_bytes() -> int:
        room = os.statvfs(path)
        return room.f_bfree * room.f_bsize

    with SegmentDirectories() as directories:
        yield Rung(name, page_size, nbytes, free_bytes, directories)


@pytest.fixture(scope="module")
def gigantic_page() -> Iterator[None]:
    count = _GIGANTIC / "nr_hugepages"
    require("hugetlbfs-1g", count.exists(), "the kernel has no pages of 1 GiB")
    before = count.read_text()
    try:
        count.write_text(str(int(before) + 1))
    except OSError as error:
        require("hugetlbfs-1g", False, str(error))
    free = int((_GIGANTIC / "free_hugepages").read_text())
    reserved = int((_GIGANTIC / "resv_hugepages").read_text())
    try:
        require("hugetlbfs-1g", free > reserved, "no free gigabyte in one piece")
        yield
    finally:
        count.write_text(before)


class BareMapping:
    """A shared read-only mapping at an aligned address, by mmap(2) and nothing else."""

    def __init__(self, path: str, length: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        ]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._length = length
        spare = self._libc.mmap(None, length + GIB, 0, 0x4022, -1, 0)
        self.address = -(-spare // GIB) * GIB
        self._libc.munmap(spare, length + GIB)
        fd = os.open(path, os.O_RDONLY)
        found = self._libc.mmap(self.address, length, mmap.PROT_READ, 0x100001, fd, 0)
        os.close(fd)
        assert found == self.address, os.strerror(ctypes.get_errno())
        self.bytes = numpy.ctypeslib.as_array((ctypes.c_ubyte * length).from_address(self.address))

    def huge_bytes(self) -> int:
        """After touching every page, by smaps."""
        self.bytes[:: 4 * KIB].sum()
        huge = 0
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line)
            if head:
                inside = int(head[1], 16) == self.address
            elif inside and line.split(":")[0] in _HUGE_LINES:
                huge += int(line.split()[1]) * KIB
        return huge

    def close(self) -> None:
        """Unmap."""
        del self.bytes
        self._libc.munmap(self.address, self._length)


def test_the_file_is_what_the_segment_says(rung: Rung) -> None:
    segment, _ = rung.make(request={"file_mode": 0o640, "group": os.getegid()})
    status = os.lstat(segment.path)
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_dev, status.st_ino) == (segment.device, segment.inode)
    assert status.st_uid == segment.owner_uid == os.geteuid()
    assert status.st_size == segment.length == rung.length
    assert status.st_blocks * 512 == rung.length
    assert status.st_nlink == 1
    assert segment.backing == rung.name
    assert segment.page_size == rung.page_size
    assert os.path.basename(segment.path) == "0000000000000001.segment"
    assert stat.S_IMODE(os.stat(os.path.dirname(segment.path)).st_mode) == 0o700


def test_the_report_is_true(rung: Rung) -> None:
    segment, report = rung.make()
    bare = BareMapping(segment.path, segment.length)
    try:
        assert report.huge_bytes == bare.huge_bytes()
        assert not bare.bytes.any()
    finally:
        bare.close()
    assert report.huge_bytes == (0 if rung.name == "shm-4k" else rung.length)
    assert report.present_bytes == report.length == rung.length
    assert (report.backing, report.page_size) == (rung.name, rung.page_size)
    assert report.reasons == ()


def test_an_attacher_gets_the_same_pages_and_bytes(rung: Rung) -> None:
    segment, made = rung.make()
    part = Part("array", "<f8", (rung.nbytes // 8,), 0)
    with Mapping.open(segment, writable=True) as writer, Mapping.open(segment) as reader:
        array = writer.array(part)
        array[:] = numpy.arange(array.size)
        del array
        report = reader.report(segment.backing, segment.page_size)
        assert report.huge_bytes == made.huge_bytes
        assert report.present_bytes == segment.length
        assert not reader.array(part).flags.writeable
        with Mapping.open(segment, private=True) as private:
            assert private.array(part)[-1] == part.count - 1
    bare = BareMapping(segment.path, segment.length)
    assert numpy.array_equal(
        bare.bytes[: part.nbytes].view(numpy.float64), numpy.arange(part.count)
    )
    bare.close()


def test_pages_come_back_when_the_last_mapping_goes(rung: Rung) -> None:
    before = rung.free_bytes()
    segment, _ = rung.make()
    with Mapping.open(segment, writable=True) as mapping:
        array = mapping.array(Part("array", "|u1", (rung.length,), 0))
        array[-1] = 9
        select.unlink_segment(segment)
        with pytest.raises(SegmentChangedError):
            Mapping.open(segment)
        assert array[-1] == 9
        del array
    assert settles(lambda: rung.free_bytes() >= before)


def test_progress_rises_to_the_whole_length(rung: Rung, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SLICE_BYTES", 2 * MIB)
    seen: list[tuple[int, int]] = []
    rung.make(progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert seen == sorted(seen)
    assert seen[-1] == (rung.length, rung.length)


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_cancelled_segment_leaves_nothing(rung: Rung, moment: str) -> None:
    if moment == "during" and rung.name == "hugetlbfs-1g":
        pytest.skip("one page is one slice")
    before = rung.free_bytes()
    cancel = threading.Event()
    if moment == "before":
        cancel.set()
    nbytes = rung.nbytes if rung.page_size == GIB else 50 * MIB
    with pytest.raises(CancelledError):
        rung.make(nbytes=nbytes, cancel=_AfterLooks(cancel, 2), progress=lambda *_: cancel.set())
    for path in _files(rung):
        assert not path.exists()
    assert settles(lambda: rung.free_bytes() >= before)


class _AfterLooks:
    """Set after it was looked at so many times, or when the event is."""

    def __init__(self, event: threading.Event, looks: int) -> None:
        self._event, self._looks = event, looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._event.is_set() or self._looks < 0


def test_an_id_that_is_taken_is_refused_and_its_owner_unharmed(rung: Rung) -> None:
    if rung.name == "hugetlbfs-1g":
        pytest.skip("there is one page only")
    segment, _ = rung.make()
    with Mapping.open(segment, writable=True) as mapping:
        mapping.array(Part("array", "|u1", (1,), 0))[0] = 5
    free_bytes = rung.free_bytes()
    with pytest.raises(ArrayExistsError):
        rung.make()
    with Mapping.open(segment) as mapping:
        assert mapping.array(Part("array", "|u1", (1,), 0))[0] == 5
    if rung.name.startswith("hugetlbfs"):
        assert rung.free_bytes() == free_bytes


@pytest.mark.parametrize("nbytes", [0, 1])
def test_the_smallest_arrays_take_one_page(rung: Rung, nbytes: int) -> None:
    segment, report = rung.make(nbytes=nbytes)
    assert segment.length == report.present_bytes == rung.page_size
    Mapping.open(segment).close()


def test_sealing_waits_for_every_writer(rung: Rung) -> None:
    segment, _ = rung.make()
    writer = Mapping.open(segment, writable=True)
    with pytest.raises(ArrayBusyError, match="writable mapping"):
        select.seal_segment(segment, 0o400)
    assert stat.S_IMODE(os.stat(segment.path).st_mode) == 0o600
    writer.close()
    fd = os.open(segment.path, os.O_RDWR)
    with pytest.raises(ArrayBusyError):
        select.seal_segment(segment, 0o400)
    os.close(fd)
    with Mapping.open(segment):
        select.seal_segment(segment, 0o440)
    assert stat.S_IMODE(os.stat(segment.path).st_mode) == 0o440
    select.seal_segment(segment, 0o400)
    Mapping.open(segment).close()
    select.unlink_segment(segment)
    with pytest.raises(SegmentChangedError):
        select.seal_segment(segment, 0o400)


def test_a_file_system_without_nameless_files_is_served(
    rung: Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    segment, _ = rung.make()
    assert os.listdir(os.path.dirname(segment.path)) == ["0000000000000001.segment"]
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(HugepoolError):
        rung.make(segment_id=2, cancel=_AfterLooks(cancel, 1))
    assert os.listdir(os.path.dirname(segment.path)) == ["0000000000000001.segment"]


def test_a_coordinator_killed_while_filling_leaves_no_page(rung: Rung) -> None:
    place = os.environ["HUGEPOOL_MOUNT"]
    with SegmentDirectories() as directories:
        directories.sweep([place])  # what others left: only this test's child counts
    before, held = rung.free_bytes(), held_pages()
    script = f"""
import os, signal
from hugepool_server.backends import filling, select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.reclaim import SegmentDirectories
filling.SLICE_BYTES = 2 << 20
select.make_segment(
    SegmentRequest(1, {rung.nbytes}), huge_pages="try", page_size="auto", backing={rung.name!r},
    directories=SegmentDirectories(), progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert settles(lambda: rung.free_bytes() >= before and held_pages() <= held)
    with SegmentDirectories() as directories:
        assert directories.sweep([place]).count == 0


def test_an_unprivileged_user_collapses(tmp_path: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become another user")
    fall = select.backend_of("shm-collapse").unusable(read_host(), MIB)
    require("collapse", fall is None, fall.reason if fall else "")
    readable = subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            sys.executable,
            "-c",
            "import hugepool_server",
        ],
        capture_output=True,
        cwd="/",
    )
    require("unprivileged", readable.returncode == 0, "the tree lies where other users cannot read")
    script = """
import os
from hugepool_common.mapping import Mapping
from hugepool_server.backends import select
from hugepool_server.backends.base import SegmentRequest
from hugepool_server.reclaim import SegmentDirectories
assert os.geteuid() == 65534
with SegmentDirectories() as directories:
    segment, report = select.make_segment(
        SegmentRequest(1, 10 << 20), huge_pages="on", page_size="auto", backing="shm-collapse",
        directories=directories)
    assert segment.owner_uid == 65534
    with Mapping.open(segment) as mapping:
        print(report.huge_bytes, mapping.prove()[0])
"""
    child = subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            sys.executable,
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [str(10 * MIB)] * 2


def _files(rung: Rung) -> list[Path]:
    _, path = rung.directories.on(os.environ["HUGEPOOL_MOUNT"])
    return list(Path(path).iterdir())
