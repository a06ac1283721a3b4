from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest

from hugepool_common import linux, mapping, reservation
from hugepool_common.errors import (
    ArrayBusyError,
    CancelledError,
    DetachedError,
    HugepoolError,
    InvalidSpecError,
    NotEnoughMemoryError,
    NotPermittedError,
    SegmentChangedError,
)
from hugepool_common.mapping import Mapping
from hugepool_common.segment_file import open_segment
from hugepool_common.spec import Part, Segment
from hugepool_common.units import KIB, MIB
from support.host import Mounts, require, settles

LENGTH = 4 * MIB
WHOLE = Part("array", "<f8", (LENGTH // 8,), 0)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """An open, allocated file of 4 MiB on /dev/shm, without a name."""
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.posix_fallocate(fd, 0, LENGTH)
    yield fd
    os.close(fd)


@pytest.fixture
def segment() -> Iterator[Segment]:
    """A published segment of 4 MiB on /dev/shm."""
    path = f"/dev/shm/hugepool-test-{os.getpid()}.segment"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.posix_fallocate(fd, 0, LENGTH)
    status = os.fstat(fd)
    os.close(fd)
    yield Segment(1, path, status.st_dev, status.st_ino, status.st_uid, LENGTH, 4 * KIB, "shm-4k")
    if os.path.lexists(path):
        os.unlink(path)


def _areas(file: os.stat_result) -> int:
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    with open("/proc/self/maps") as lines:
        return sum(line.split()[3:5] == [device, str(file.st_ino)] for line in lines)


def _changed(segment: Segment, **fields: Any) -> Segment:
    return Segment(
        **{**{name: getattr(segment, name) for name in segment.__struct_fields__}, **fields}
    )


def _collapsed(fd: int) -> None:
    require("collapse", linux.probe_advice(linux.MADV_COLLAPSE), "needs Linux 6.1")
    with Mapping.over(fd, LENGTH, page_size=4 * KIB) as made:
        made.populate(True)
        linux.advise(made.address, LENGTH, linux.MADV_HUGEPAGE)
        said = ""

        def collapsed() -> bool:
            nonlocal said
            try:
                linux.advise(made.address, LENGTH, linux.MADV_COLLAPSE)
            except OSError as error:
                said = str(error)
                if error.errno in (errno.EAGAIN, errno.EBUSY):
                    return False  # a page was in use elsewhere in the kernel: not for long
                require("collapse", False, said)
            return True

        require("collapse", settles(collapsed), said)


def test_a_mapping_is_aligned_and_shows_the_file(file: int) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        assert made.address % (2 * MIB) == 0
        array = made.array(WHOLE)
        assert array.ctypes.data == made.address
        array[-1] = 7.5
        assert numpy.frombuffer(os.pread(file, 8, LENGTH - 8))[0] == 7.5
        del array


def test_every_view_counts_until_it_dies(file: int) -> None:
    made = Mapping.over(file, LENGTH, page_size=4 * KIB)
    assert made.live_arrays() == 0
    array = made.array(WHOLE)
    assert made.live_arrays() == 1
    held: list[Any] = [array[::2], array.reshape(2, -1), array.reshape(2, -1).T[1:][::2]]
    assert made.live_arrays() == 4
    del array
    assert made.live_arrays() == 3
    held.append(memoryview(held[0]))
    held.append(numpy.from_dlpack(held[0]))
    held.append(held[1].view(numpy.recarray))
    assert made.live_arrays() >= 3
    with pytest.raises(ArrayBusyError, match="still in use"):
        made.close()
    assert held[0].sum() == 0
    while held:
        assert made.live_arrays() > 0
        held.pop()
    assert made.live_arrays() == 0
    made.close()


def test_close_unmaps_at_once_and_twice_does_nothing(file: int) -> None:
    status = os.fstat(file)
    made = Mapping.over(file, LENGTH, page_size=4 * KIB)
    assert _areas(status) == 1
    made.close()
    assert _areas(status) == 0
    made.close()
    assert made.closed
    assert made.live_arrays() == 0
    assert repr(made) == "<Mapping closed>"
    for use in (lambda: made.array(WHOLE), lambda: made.populate(False), made.prove):
        with pytest.raises(DetachedError):
            use()


@pytest.mark.parametrize("charged", [True, False])
def test_the_last_view_unmaps(file: int, charged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not charged:  # as under vm.overcommit_memory=2
        monkeypatch.setattr(
            mapping, "reserve", lambda length, writable: reservation._reserve_uncharged(length)
        )
    status = os.fstat(file)
    made = Mapping.over(file, LENGTH, page_size=4 * KIB)
    view = made.array(WHOLE)[5:10]
    del made
    gc.collect()
    assert _areas(status) == 1
    view[:] = 1
    assert view.sum() == 5
    del view
    gc.collect()
    assert _areas(status) == 0
    made = Mapping.over(file, LENGTH, page_size=4 * KIB)
    made.close()
    assert _areas(status) == 0


def test_an_error_under_way_is_not_hidden_by_its_own_arrays(file: int) -> None:
    with pytest.raises(KeyError), Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        array = made.array(WHOLE)
        raise KeyError
    with pytest.raises(ArrayBusyError), made:
        pass
    del array
    made.close()


def test_a_reader_cannot_write(segment: Segment) -> None:
    with Mapping.open(segment) as made:
        array = made.array(WHOLE)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(OSError, match="Permission denied"):
            _protect(made.address, LENGTH, linux.PROT_READ | linux.PROT_WRITE)
        del array


def test_a_writer_is_seen_by_a_reader(segment: Segment) -> None:
    with Mapping.open(segment, writable=True) as writer, Mapping.open(segment) as reader:
        ours, theirs = writer.array(WHOLE), reader.array(WHOLE)
        ours[3] = 4
        assert theirs[3] == 4
        del ours, theirs


def test_a_private_mapping_reads_and_is_not_writable(segment: Segment) -> None:
    with Mapping.open(segment, private=True) as made:
        array = made.array(WHOLE)
        assert array.sum() == 0
        assert not array.flags.writeable
        del array
    with pytest.raises(InvalidSpecError):
        Mapping.open(segment, private=True, writable=True)


@pytest.mark.parametrize("field", ["device", "inode", "owner_uid", "length"])
def test_another_file_is_refused(segment: Segment, field: str) -> None:
    step = 4 * KIB if field == "length" else 1
    wrong = _changed(segment, **{field: getattr(segment, field) + step})
    with pytest.raises(SegmentChangedError, match="not the segment"):
        Mapping.open(wrong)


def test_a_segment_that_is_gone_was_destroyed(segment: Segment) -> None:
    os.unlink(segment.path)
    with pytest.raises(SegmentChangedError, match="destroyed"):
        Mapping.open(segment)


def test_planted_things_are_refused(segment: Segment, tmp_path: Path) -> None:
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(segment.path)
    os.mkfifo(fifo)
    for path in (link, fifo, tmp_path):
        with pytest.raises(SegmentChangedError):
            Mapping.open(_changed(segment, path=str(path)))


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "relative"},
        {"length": 0},
        {"length": -4096},
        {"length": 4097},
        {"page_size": 0},
        {"page_size": 3 * 4096},
        {"length": 1 << 60},
    ],
)
def test_a_segment_that_cannot_be_is_refused(segment: Segment, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpecError):
        Mapping.open(_changed(segment, **fields))


@pytest.mark.parametrize(
    "part",
    [
        Part("array", "<f8", (LENGTH // 8 + 1,), 0),
        Part("array", "<f8", (1,), LENGTH),
        Part("array", "<f8", (1,), -8),
        Part("array", "<f8", (1,), 4),
        Part("array", "O", (1,), 0),
        Part("array", "<f8", (-1,), 0),
    ],
)
def test_a_part_outside_the_segment_is_refused(file: int, part: Part) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made, pytest.raises(InvalidSpecError):
        made.array(part)


def test_shapes_come_out_as_asked(file: int) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        for shape in ((), (0,), (3, 0, 5), (2, 3), (1,) * 64):
            array = made.array(Part("array", "<i4", shape, 4096))
            assert array.shape == shape
            assert array.dtype == numpy.int32
            del array


def test_populate_reports_and_can_be_cancelled(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "POPULATE_SLICE", MIB)
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        seen: list[tuple[int, int]] = []
        made.populate(True, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(MIB * count, LENGTH) for count in (1, 2, 3, 4)]
        cancel = threading.Event()
        done_bytes = 0

        def stop_after_the_first(done: int, total: int) -> None:
            nonlocal done_bytes
            done_bytes = done
            cancel.set()

        with pytest.raises(CancelledError):
            made.populate(True, cancel=cancel, progress=stop_after_the_first)
        assert done_bytes == MIB


def test_populate_of_a_range_leaves_the_rest(file: int) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        assert made.prove()[:2] == (0, 0)
        made.populate(True, start=MIB, stop=2 * MIB)
        huge_bytes, present_bytes, _ = made.prove()
        assert (huge_bytes, present_bytes) == (0, MIB)


def test_populate_on_a_kernel_without_it_gives_pages_and_keeps_contents(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: int, length: int, advice: int) -> None:
        raise OSError(22, "Invalid argument")

    os.pwrite(file, b"kept", MIB)
    monkeypatch.setattr(linux, "advise", refuse)
    monkeypatch.setattr(linux, "probe_advice", lambda advice: False)
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        made.populate(True)
        assert made.prove()[1] == LENGTH
    assert os.pread(file, 4, MIB) == b"kept"
    # The same on a file that has no room: an error, not SIGBUS.
    os.ftruncate(file, 0)
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        with pytest.raises(NotEnoughMemoryError):
            made.populate(True)
        made.close()


def test_pages_past_the_end_are_an_error_and_no_signal(file: int) -> None:
    os.ftruncate(file, MIB)
    with (
        Mapping.over(file, LENGTH, page_size=4 * KIB) as made,
        pytest.raises(NotEnoughMemoryError, match="no room"),
    ):
        made.populate(False)


def test_base_pages_are_never_called_huge(file: int) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        linux.advise(made.address, LENGTH, linux.MADV_NOHUGEPAGE)
        made.populate(True)
        report = made.report("shm-4k", 4 * KIB)
    assert (report.huge_bytes, report.present_bytes, report.length) == (0, LENGTH, LENGTH)


def test_collapsed_pages_are_proved_by_both_methods(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _collapsed(file)
    with Mapping.over(file, LENGTH, page_size=4 * KIB, writable=False) as made:
        made.populate(False)
        assert made.prove() in (
            (LENGTH, LENGTH, "pagemap_scan"),
            (LENGTH, LENGTH, "smaps"),
        )

        def refuse(address: int, length: int) -> tuple[int, int]:
            raise OSError(25, "Inappropriate ioctl for device")

        monkeypatch.setattr(linux, "scan_huge", refuse)
        assert made.prove() == (LENGTH, LENGTH, "smaps")
        assert str(made.report("shm-collapse", 2 * MIB)) == "shm-collapse (2M pages), 100 % huge"


def test_a_misaligned_mapping_of_a_huge_file_is_not_huge(file: int) -> None:
    _collapsed(file)
    owner, base, unmap = reservation.reserve(LENGTH + 4 * MIB, writable=False)
    address = -(-base // (2 * MIB)) * 2 * MIB + 4 * KIB
    reservation.map_over(file, address, LENGTH, writable=False, private=False, owner=owner)
    linux.advise(address, LENGTH, linux.MADV_POPULATE_READ)
    assert linux.read_smaps(address, LENGTH) == (0, LENGTH)
    assert linux.scan_huge(address, LENGTH) == (0, LENGTH)
    del owner
    unmap()


def test_a_scan_counts_more_regions_than_its_vector_holds(file: int) -> None:
    # Every second page present: 512 regions in 4 MiB, with 8 MiB more than one call returns.
    os.posix_fallocate(file, 0, 3 * LENGTH)
    with Mapping.over(file, 3 * LENGTH, page_size=4 * KIB) as made:
        linux.advise(made.address, made.length, linux.MADV_NOHUGEPAGE)
        for offset in range(0, made.length, 8 * KIB):
            linux.advise(made.address + offset, 4 * KIB, linux.MADV_POPULATE_WRITE)
        assert linux.scan_huge(made.address, made.length) == (0, made.length // 2)


def test_a_refused_map_leaves_no_hole_for_a_stranger(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(mounts.hugetlbfs("pagesize=2M,size=2M")) / "sparse"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, LENGTH)
    plugged: list[tuple[int, int]] = []
    plug = reservation._plug

    def watch(address: int, length: int, owner: Any) -> None:
        plug(address, length, owner)
        inside = [
            line
            for line in Path("/proc/self/maps").read_text().splitlines()
            if int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16)
        ]
        plugged.append((len(inside), len(reservation._STRANDED)))

    monkeypatch.setattr(reservation, "_plug", watch)
    with pytest.raises(NotEnoughMemoryError):
        Mapping.over(fd, LENGTH, page_size=2 * MIB)
    os.close(fd)
    assert plugged == [(1, 0)]


def test_a_read_only_descriptor_gives_no_writable_mapping(segment: Segment) -> None:
    fd = os.open(segment.path, os.O_RDONLY)
    with pytest.raises(NotPermittedError):
        Mapping.over(fd, LENGTH, page_size=4 * KIB, writable=True)
    os.close(fd)
    assert not reservation._STRANDED


def test_what_is_sealed_is_not_mapped_writable_by_root_either(segment: Segment) -> None:
    """The kernel lets root open any file for writing; a sealed one is everybody's to read."""
    os.chmod(segment.path, 0o444)
    with pytest.raises(NotPermittedError, match="for writing"):
        Mapping.open(segment, writable=True)
    Mapping.open(segment).close()


def test_no_address_space_is_a_memory_error(file: int) -> None:
    with pytest.raises(MemoryError, match="no address space"):
        reservation.reserve(1 << 60, writable=False)


def test_no_free_descriptor_is_an_error_with_a_remedy(segment: Segment) -> None:
    gc.collect()  # rubbish that closes its own below would be room
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(NotEnoughMemoryError, match="Too many open files") as caught:
            Mapping.open(segment)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in caught.value.remedy


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_populating_is_tried_again_where_the_kernel_was_only_interrupted(
    segment: Segment, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, refusals = linux.advise, [number, number]

    def advise(address: int, length: int, advice: int) -> None:
        if advice == linux.MADV_POPULATE_READ and refusals:
            raise OSError(refusals.pop(), "not now")
        real(address, length, advice)

    monkeypatch.setattr(linux, "advise", advise)
    with Mapping.open(segment) as mapping:
        assert mapping.prove()[1] == segment.length
    assert not refusals


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EAGAIN, NotEnoughMemoryError),
        (errno.EBUSY, NotEnoughMemoryError),
        (errno.EIO, SegmentChangedError),
    ],
)
def test_whatever_the_kernel_refuses_is_an_error_of_ours(
    segment: Segment, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HugepoolError]
) -> None:
    def advise(address: int, length: int, advice: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(linux, "advise", advise)
    with pytest.raises(kind, match=os.strerror(number)):
        Mapping.open(segment)


def test_a_mapping_is_not_pickled(file: int) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made, pytest.raises(TypeError):
        pickle.dumps(made)


def _protect(address: int, length: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_a_child_forked_while_another_thread_is_at_a_mapping_can_use_it(file: int) -> None:
    with Mapping.over(file, LENGTH, page_size=4 * KIB) as made:
        whole = made.array(WHOLE)
        at_it = threading.Thread(target=made._lock.acquire)  # the child does not have this one
        at_it.start()
        at_it.join()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            os._exit(made.live_arrays())
        made._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        del whole


def _writers_refuse(segment: Segment) -> bool:
    """Whether somebody could still write to it, as the kernel sees it."""
    fd = os.open(segment.path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def _child(act: Callable[[], int]) -> Iterator[None]:
    """A child forked now, that has acted when this begins, and lives on until it ends."""
    told, tell = os.pipe()
    wait, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            os.write(tell, bytes([act()]))
            os.close(go_on)
            os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        assert os.read(told, 1) == b"\1"
        yield
    finally:
        os.close(go_on)
        os.close(told)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_does_not_keep_writable_what_is_not_forked(segment: Segment) -> None:
    made = Mapping.open(segment, writable=True, forked=False)
    made.array(WHOLE)[:] = 1.0
    with _child(lambda: 1):
        assert _writers_refuse(segment)
        made.close()
        assert not _writers_refuse(segment)


def test_what_is_forked_a_child_keeps_writable(segment: Segment) -> None:
    made = Mapping.open(segment, writable=True)
    with _child(lambda: 1):
        made.close()
        assert _writers_refuse(segment)
    assert not _writers_refuse(segment)


@pytest.mark.parametrize("charged", [False, True])
def test_a_child_finds_zeros_of_its_own_and_nobody_elses_memory(
    segment: Segment, charged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither faults where the mapping was, nor tears away what it has there."""
    if charged:
        monkeypatch.setattr(mapping, "reserve", lambda n, _: reservation._reserve_uncharged(n))
    made = Mapping.open(segment, writable=True, forked=False)
    whole = made.array(WHOLE)
    whole[:] = 1.0

    def act() -> int:
        nonlocal whole
        before = float(whole.sum())
        whole[:] = 2.0
        found = [before, float(whole.sum()), made.live_arrays()]
        at, length = made.address, made.length
        del whole
        made.close()
        stranger = linux.map_memory(
            at, length, linux.PROT_READ, linux.MAP_PRIVATE | linux.MAP_ANONYMOUS
        )
        linux.unmap_memory(stranger, length)
        return found == [0.0, 2.0 * (LENGTH // 8), 1] and stranger == at

    with _child(act):
        assert whole.sum() == LENGTH // 8
    del whole
    made.close()


def test_a_gap_that_somebody_has_taken_is_never_torn_away(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Mapping.open(segment, writable=True, forked=False)
    place = made.address, made.length
    whole = reservation._filled
    anonymous = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS

    def taken_before(address: int, length: int, protection: int) -> bool:
        linux.map_memory(address, length, linux.PROT_READ, anonymous | linux.MAP_FIXED)
        return whole(address, length, protection)

    def act() -> int:
        nonlocal made
        del made
        return not whole(*place, linux.PROT_READ)  # it is there yet

    with monkeypatch.context() as patched:
        patched.setattr(reservation, "_filled", taken_before)
        with _child(act):
            pass
    made.close()


def test_nobody_forks_between_the_opening_and_the_closing_of_the_descriptor(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free() -> bool:
        """Whether another thread could fork now."""
        found: list[bool] = []

        def look() -> None:
            found.append(mapping._no_fork.acquire(blocking=False))
            if found[0]:
                mapping._no_fork.release()

        looker = threading.Thread(target=look)
        looker.start()
        looker.join()
        return found[0]

    seen: list[bool] = []
    descriptors: list[int] = []
    opened, closed = open_segment, os.close

    def open_and_look(segment: Segment, writable: bool) -> int:
        seen.append(free())
        descriptors.append(opened(segment, writable))
        return descriptors[0]

    def look_and_close(fd: int) -> None:
        if fd in descriptors:
            seen.append(free())
        closed(fd)

    with monkeypatch.context() as patched:
        patched.setattr(mapping, "open_segment", open_and_look)
        patched.setattr(os, "close", look_and_close)
        made = Mapping.open(segment, writable=True, forked=False)
    assert seen == [False, False]
    assert free()
    made.close()


def test_a_fork_holds_the_lock_of_those_that_open_and_gives_it_back() -> None:
    script = """
import os
seen = []
os.register_at_fork(before=lambda: seen.append(mapping._no_fork._is_owned()))  # after ours
from hugepool_common import mapping
child = os.fork()
if child == 0:
    os._exit(mapping._no_fork._is_owned())
assert os.waitpid(child, 0)[1] == 0
assert seen == [True] and not mapping._no_fork._is_owned()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of the thread that holds it
def test_a_fork_does_not_wait_for_ever_for_those_that_open(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, at_it = threading.Event(), threading.Event()

    def hold() -> None:
        with mapping._no_fork:
            at_it.set()
            go_on.wait()

    def act() -> int:
        Mapping.open(segment, writable=True, forked=False).close()
        return 1

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    holder = threading.Thread(target=hold)
    holder.start()
    at_it.wait()
    try:
        with _child(act):
            pass
    finally:
        go_on.set()
        holder.join()
    assert len(told) == 1  # it did not have what it was to give back
