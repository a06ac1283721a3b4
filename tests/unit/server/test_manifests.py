from __future__ import annotations

import errno
import os
import stat
import threading
import zlib
from pathlib import Path

import msgspec
import pytest

from hugepool_common import paths
from hugepool_common.errors import (
    DetachedError,
    InvalidSpecError,
    NotEnoughMemoryError,
    NotPermittedError,
    SegmentChangedError,
    UnsupportedPlatformError,
)
from hugepool_server import manifests, records
from hugepool_server.manifests import Found, Manifests, begin_epoch, boot_id, read_coordinator
from hugepool_server.records import CoordinatorRecord, DamagedRecordError
from support.durable import BOOT, OTHER_BOOT, STORE, array_record, list_renames, session_record
from support.host import Mounts, require

FIRST, SECOND = (1 << 32) + 1, (1 << 32) + 2


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir(mode=0o700)
    return str(tmp_path / "run")


def manifest(run: str, segment_id: int) -> Path:
    return Path(paths.manifests_path(run)) / paths.manifest_name(segment_id)


def no_store() -> str:
    raise AssertionError("there is one")


# Manifests ----------------------------------------------------------------------


def test_what_one_coordinator_writes_the_next_one_reads(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        written.write(array_record(SECOND))
        sealed = written.update(FIRST, sealed=True, checksum="crc32-16M:0123456789abcdef")
        assert sealed == array_record(FIRST, sealed=True, checksum="crc32-16M:0123456789abcdef")
        assert repr(written) == f"<Manifests {run}/arrays, 2 known>"
    with Manifests(run) as read:
        found = read.read(BOOT)
        assert found.records == (sealed, array_record(SECOND))
        assert (found.damaged, found.unfinished, found.stale, found.left) == ({}, 0, 0, ())
        # What was read can be changed as if this one had written it.
        assert read.update(SECOND, generation=2).generation == 2
    with Manifests(run) as again:
        assert [one.generation for one in again.read(BOOT).records] == [1, 2]


def test_what_lies_in_one_directory_is_known(run: str) -> None:
    here, there = array_record(FIRST, "/here/a"), array_record(SECOND, "/there/a")
    with Manifests(run) as written:
        written.write(here)
        written.write(there)
        assert written.lying_in("/here") == (here,)
        assert written.lying_in("/there") == (there,)
        assert written.lying_in("/") == ()


def test_a_directory_that_is_not_where_it_was_is_told(run: str) -> None:
    place = Path(paths.manifests_path(run))
    with Manifests(run) as written:
        assert written.is_there
        place.rename(place.with_name("away"))
        assert not written.is_there
        place.mkdir(mode=0o700)
        assert not written.is_there, "another directory lies there"
        place.rmdir()
        place.with_name("away").rename(place)
        assert written.is_there
    with Manifests(run, durable=False) as never:
        assert never.is_there, "there is none to be missed"
        assert never.read(BOOT) == Found((), {}, frozenset(), 0, 0, (), 0)


def test_a_directory_that_was_removed_is_no_place_to_write_to(run: str) -> None:
    with Manifests(run) as written:
        os.rmdir(paths.manifests_path(run))
        with pytest.raises(NotPermittedError, match="was moved or removed"):
            written.write(array_record(FIRST))
        with pytest.raises(SegmentChangedError):
            written.known(FIRST)


def test_the_coordinator_writes_to_the_directory_that_it_has_open(run: str) -> None:
    record = CoordinatorRecord(7, STORE, (), BOOT)
    dir_fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rename(run, f"{run}-away")
        os.mkdir(run, 0o700)
        manifests.write_coordinator(run, record, dir_fd=dir_fd)
    finally:
        os.close(dir_fd)
    assert os.listdir(run) == []
    assert read_coordinator(f"{run}-away") == record


def test_manifests_are_for_this_user_only(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
    assert stat.S_IMODE(os.stat(paths.manifests_path(run)).st_mode) == 0o700
    assert stat.S_IMODE(manifest(run, FIRST).stat().st_mode) == 0o600
    os.chmod(paths.manifests_path(run), 0o777)
    with pytest.raises(NotPermittedError, match="not private"):
        Manifests(run)


@pytest.mark.parametrize("durable", [True, False])
def test_several_are_renamed_together(run: str, durable: bool) -> None:
    with Manifests(run, durable=durable) as written:
        for number in (FIRST, SECOND):
            written.write(array_record(number, temporary=True))
        with pytest.raises(SegmentChangedError):
            written.rename({FIRST: ("a", 3), 99: ("b", 1)})
        assert written.known(FIRST) == array_record(FIRST, temporary=True)
        written.rename({FIRST: ("a", 3), SECOND: ("b", 1)})
        told = [written.known(number) for number in (FIRST, SECOND)]
    assert [(one.spec.name, one.generation, one.temporary) for one in told] == [
        ("a", 3, False),
        ("b", 1, False),
    ]
    with Manifests(run) as read:
        assert read.read(BOOT).records == (tuple(told) if durable else ())


@pytest.mark.parametrize("call", ["write", "rename"])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_of_several_that_cannot_all_be_renamed_none_is(
    run: str, monkeypatch: pytest.MonkeyPatch, call: str, fails_at: int
) -> None:
    with Manifests(run) as written:
        for number in (FIRST, SECOND):
            written.write(array_record(number))
        real, calls = getattr(os, call), []

        def failing(*arguments: object, **options: object) -> object:
            calls.append(arguments)
            if len(calls) == fails_at:
                raise OSError(errno.ENOSPC, "no room")
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, failing)
        with pytest.raises(OSError, match="no room"):
            written.rename({FIRST: ("a", 2), SECOND: ("b", 2)})
        monkeypatch.undo()
        assert written.known(FIRST) == array_record(FIRST)
    with Manifests(run) as read:
        found = read.read(BOOT)
        assert found.records == (array_record(FIRST), array_record(SECOND))
        assert found.unfinished == 0


def killed_while_renaming(run: str, call: str, at: int) -> bool:
    """Whether a process that renames two manifests was killed before a system call of it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    try:
        with Manifests(run) as written:
            written.read(BOOT)
            real, calls = getattr(os, call), 0

            def deadly(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls == at:
                    os._exit(9)
                return real(*arguments, **options)

            setattr(os, call, deadly)
            written.rename({FIRST: ("a", 2), SECOND: ("b", 2)})
    finally:
        os._exit(0)


@pytest.mark.parametrize("call", ["open", "write", "rename", "unlink"])
def test_of_several_that_were_being_renamed_all_are_at_the_next_start_or_none(
    run: str, call: str
) -> None:
    outcomes = []
    for at in range(1, 9):
        with Manifests(run) as written:
            written.write(array_record(FIRST))
            written.write(array_record(SECOND))
        killed = killed_while_renaming(run, call, at)
        with Manifests(run) as read:
            found = read.read(BOOT)
        generations = {one.generation for one in found.records}
        assert len(found.records) == 2 and len(generations) == 1, (at, found)
        assert sorted(os.listdir(paths.manifests_path(run))) == sorted(
            paths.manifest_name(number) for number in (FIRST, SECOND)
        )
        assert (found.damaged, found.left) == ({}, ())
        if not killed:
            break
        outcomes.append((generations.pop(), found.finished))
    before, after = (1, 0), [(2, 2), (2, 1), (2, 0)]
    assert (
        outcomes
        == {
            "open": [before] * 3,
            "write": [before] * 3,
            "rename": [before, *after[:2]],
            "unlink": after[2:],
        }[call]
    )


def test_only_what_was_listed_is_put_in_its_place(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        written.write(array_record(SECOND))
    for number in (FIRST, SECOND):
        data = records.encode(array_record(number, generation=7))
        beside = paths.unfinished_name(paths.manifest_name(number))
        manifest(run, number).with_name(beside).write_bytes(data)
    whole = zlib.crc32(data)
    names = [paths.manifest_name(number) for number in (FIRST, SECOND)]
    # That of the first was begun later and never ended; and a stranger's name is none of ours.
    list_renames(
        run,
        f"{names[0]} {whole ^ 1:08x}",
        f"{names[1]} {whole:08x}",
        f"../x {whole:08x}",
        "two",
        "",
    )
    with Manifests(run) as read:
        found = read.read(BOOT)
    assert [one.generation for one in found.records] == [1, 7]
    assert (found.finished, found.unfinished) == (1, 1)
    assert sorted(os.listdir(paths.manifests_path(run))) == sorted(names)


def test_a_damaged_list_of_renames_puts_nothing_in_its_place(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
    data = records.encode(array_record(FIRST, generation=7))
    beside = paths.unfinished_name(paths.manifest_name(FIRST))
    manifest(run, FIRST).with_name(beside).write_bytes(data)
    list_renames(run, f"{paths.manifest_name(FIRST)} {zlib.crc32(data):08x}", crc=1)
    with Manifests(run) as read:
        found = read.read(BOOT)
    assert [one.generation for one in found.records] == [1]
    assert os.listdir(paths.manifests_path(run)) == [paths.manifest_name(FIRST)]


def test_a_list_of_renames_that_is_no_file_is_left(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
    link = Path(paths.manifests_path(run)) / paths.RENAMES_NAME
    link.symlink_to("/dev/null")
    with Manifests(run) as read:
        assert read.read(BOOT).left == (str(link),)
    assert link.is_symlink()


def test_a_list_of_renames_that_cannot_be_removed_harms_nothing(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        written.write(array_record(SECOND))
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", _refuse)
            written.rename({FIRST: ("a", 2), SECOND: ("b", 2)})
        written.update(FIRST, generation=3)
    with Manifests(run) as read:
        assert [one.generation for one in read.read(BOOT).records] == [3, 2]


def test_a_removed_manifest_stays_removed(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        written.remove(FIRST)
        written.remove(FIRST)
        written.remove(SECOND)
        assert not manifest(run, FIRST).exists()
        # A seal that ends after its array was destroyed must not bring it back.
        with pytest.raises(SegmentChangedError, match="destroyed"):
            written.update(FIRST, sealed=True)
        assert os.listdir(paths.manifests_path(run)) == []


def test_an_embedded_coordinator_writes_nothing(run: str) -> None:
    with Manifests(run, durable=False) as written:
        written.write(array_record(FIRST))
        assert written.update(FIRST, generation=7).generation == 7
        written.remove(FIRST)
        with pytest.raises(SegmentChangedError):
            written.update(FIRST, generation=8)
        assert written.read() == Found((), {}, frozenset(), 0, 0, ())
    assert os.listdir(run) == []
    os.fstat(0), os.fstat(1)  # it had no descriptor to close


def test_what_ends_in_order_takes_its_manifests_with_it(run: str) -> None:
    with Manifests(run) as kept:
        kept.write(array_record(FIRST))
        assert kept.known(FIRST) == array_record(FIRST)
    with pytest.raises(SegmentChangedError):
        kept.known(FIRST)
    ended = Manifests(run)
    ended.read(BOOT)
    ended.write(array_record(SECOND))
    assert manifest(run, FIRST).exists()
    ended.close(keep=False)
    assert os.listdir(paths.manifests_path(run)) == []
    with pytest.raises(SegmentChangedError):
        ended.known(SECOND)


def test_a_closed_one_refuses_rather_than_forget(run: str) -> None:
    written = Manifests(run)
    written.close()
    written.close()
    with pytest.raises(DetachedError):
        written.write(array_record(FIRST))
    with pytest.raises(DetachedError):
        written.remove(FIRST)


def test_a_refused_write_leaves_the_old_manifest(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        with pytest.raises(InvalidSpecError):
            written.update(FIRST, generation=0)
        for call in ("write", "rename"):
            with monkeypatch.context() as patched:
                patched.setattr(os, call, _refuse)
                with pytest.raises(OSError, match="No space"):
                    written.update(FIRST, generation=2)
        assert os.listdir(paths.manifests_path(run)) == [paths.manifest_name(FIRST)]
        assert written.update(FIRST, checksum="").generation == 1


def test_a_write_that_could_not_be_undone_hinders_no_other(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Manifests(run) as written:
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", _refuse)
            patched.setattr(os, "unlink", _refuse)
            with pytest.raises(OSError, match="No space"):
                written.write(array_record(FIRST))
        assert len(os.listdir(paths.manifests_path(run))) == 1
        written.write(array_record(FIRST))
        assert os.listdir(paths.manifests_path(run)) == [paths.manifest_name(FIRST)]


def test_a_manifest_that_cannot_be_removed_is_still_known(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", _refuse)
            with pytest.raises(OSError, match="No space"):
                written.remove(FIRST)
        assert written.update(FIRST, generation=2).generation == 2


def test_short_writes_are_continued(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        assert written.read(BOOT).records == (array_record(FIRST),)


def test_a_full_runtime_directory_keeps_what_it_has(mounts: Mounts) -> None:
    run = mounts.tmpfs("size=64k,mode=0700")
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        begin_epoch(run, BOOT, lambda: STORE)
        filler = Path(run) / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space") as refused:
            written.update(FIRST, generation=2)
        assert refused.value.errno == errno.ENOSPC
        with pytest.raises(NotEnoughMemoryError, match=r"no room.*make room"):
            begin_epoch(run, BOOT, no_store)
        filler.unlink()
        assert [one.generation for one in written.read(BOOT).records] == [1]
        assert begin_epoch(run, BOOT, no_store).epoch == 3


def test_a_read_only_runtime_directory_is_refused(mounts: Mounts) -> None:
    run = mounts.tmpfs("size=64k,mode=0700")
    begin_epoch(run, BOOT, lambda: STORE)
    mounts.make_read_only(run)
    with pytest.raises(NotPermittedError, match=r"Read-only.*HUGEPOOL_RUNTIME_DIR"):
        begin_epoch(run, BOOT, no_store)
    with pytest.raises(NotPermittedError, match="Read-only"):
        Manifests(run)


def test_threads_write_one_manifest_after_the_other(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))

        def work(first: int) -> None:
            for generation in range(first, first + 50):
                written.update(FIRST, generation=generation)

        threads = [threading.Thread(target=work, args=(1 + 100 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        known = written.update(FIRST, checksum="")
        assert written.read(BOOT).records == (known,)


# Reading what is there ----------------------------------------------------------


def test_what_a_killed_coordinator_was_writing_is_removed(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        half = manifest(run, SECOND).with_name(".tmp-" + paths.manifest_name(SECOND))
        half.write_bytes(b"hugepool-arr")
        found = written.read(BOOT)
        assert (found.unfinished, found.records) == (1, (array_record(FIRST),))
        assert not half.exists()
        assert written.read(BOOT).unfinished == 0


def test_manifests_of_another_boot_are_dropped(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST, boot_id=OTHER_BOOT))
        written.write(array_record(SECOND, boot_id=boot_id()))
    with Manifests(run) as read:
        found = read.read()
        assert (found.stale, [one.segment.segment_id for one in found.records]) == (1, [SECOND])
        assert not manifest(run, FIRST).exists()
        with pytest.raises(SegmentChangedError):
            read.update(FIRST, generation=2)


def test_what_is_damaged_is_put_into_quarantine(run: str) -> None:
    with Manifests(run) as written:
        written.write(array_record(FIRST))
        data = manifest(run, FIRST).read_bytes()
        manifest(run, FIRST).write_bytes(data.replace(b'"x"', b'"y"'))
        manifest(run, SECOND).write_bytes(data)  # whole, and another's
        manifest(run, SECOND + 1).symlink_to("/etc/passwd")
        manifest(run, SECOND + 2).mkdir()
        os.mkfifo(manifest(run, SECOND + 3))
        manifest(run, SECOND + 4).write_bytes(b"x" * (records.MAX_RECORD_BYTES + 5))
        ids = {FIRST, *range(SECOND, SECOND + 5)}
    with Manifests(run) as read:
        found = read.read(BOOT)
        assert found.records == ()
        assert found.damaged.keys() == ids == found.quarantined
        assert "checksum" in found.damaged[FIRST]
        assert "another segment" in found.damaged[SECOND]
        assert "no regular file" in found.damaged[SECOND + 1]
        assert os.listdir(paths.manifests_path(run)) == []
        quarantine = Path(paths.quarantine_path(run))
        assert sorted(os.listdir(quarantine)) == sorted(map(paths.manifest_name, ids))
        assert (quarantine / paths.manifest_name(FIRST)).read_bytes() == data.replace(
            b'"x"', b'"y"'
        )
        again = read.read(BOOT)
        assert not again.damaged
        assert again.quarantined == ids
    with pytest.raises(SegmentChangedError):
        Manifests(run).update(FIRST, generation=2)


def test_a_socket_in_the_place_of_a_manifest_is_damage(run: str) -> None:
    import socket

    with Manifests(run) as read, socket.socket(socket.AF_UNIX) as planted:
        here = os.getcwd()
        os.chdir(paths.manifests_path(run))
        try:
            planted.bind(paths.manifest_name(FIRST))
        finally:
            os.chdir(here)
        assert read.read(BOOT).quarantined == {FIRST}


def test_a_manifest_of_another_user_is_damage(run: str) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give a file to another user")
    with Manifests(run) as read:
        read.write(array_record(FIRST))
        os.chown(manifest(run, FIRST), 65534, 65534)
        assert read.read(BOOT).damaged.keys() == {FIRST}


def test_what_cannot_be_put_away_counts_as_if_it_were(run: str) -> None:
    with Manifests(run) as read:
        manifest(run, FIRST).write_bytes(b"?")
        Path(paths.quarantine_path(run)).symlink_to("/tmp")
        for _ in range(2):
            found = read.read(BOOT)
            assert found.damaged.keys() == found.quarantined == {FIRST}
            assert manifest(run, FIRST).exists()
            Path(paths.quarantine_path(run)).unlink()
            Path(paths.quarantine_path(run)).touch()


def test_what_is_not_ours_is_left(run: str) -> None:
    with Manifests(run) as read:
        places = [Path(paths.manifests_path(run)) / name for name in ("notes.txt", ".tmp-x")]
        for place in places:
            place.touch()
        found = read.read(BOOT)
        assert sorted(found.left) == sorted(map(str, places))
        assert all(place.exists() for place in places)


def test_what_cannot_be_looked_at_is_no_reason_to_go_on(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a manifest that could not be read just now would cost its segment."""
    with Manifests(run) as read:
        read.write(array_record(FIRST))
        for call in ("read", "listdir"):
            with monkeypatch.context() as patched:
                patched.setattr(os, call, _fail)
                with pytest.raises(NotPermittedError, match="Input/output"):
                    read.read(BOOT)
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", _fail)
            with pytest.raises(NotPermittedError, match="Input/output"):
                read.read(BOOT)
        assert read.read(BOOT).records == (array_record(FIRST),)


# Epochs -------------------------------------------------------------------------


def test_a_directory_that_takes_no_file_is_told_as_that(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there a moment ago: the kernel says of a new file in /proc that it is not found."""

    def nowhere(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(manifests, "replace_file", nowhere)
    with pytest.raises(NotPermittedError, match="no file can be made") as caught:
        begin_epoch(run, BOOT, lambda: STORE)
    assert caught.value.where == run and paths.RUNTIME_VARIABLE in caught.value.remedy


def test_every_start_has_an_epoch_of_its_own(run: str) -> None:
    first = begin_epoch(run, BOOT, lambda: STORE)
    assert first == CoordinatorRecord(1, STORE, (), BOOT)
    known = msgspec.structs.replace(first, directories=("/mnt/hugepool-0-" + STORE,))
    manifests.write_coordinator(run, known)
    assert begin_epoch(run, BOOT, no_store) == msgspec.structs.replace(known, epoch=2)
    assert read_coordinator(run) == msgspec.structs.replace(known, epoch=2)


def test_another_boot_has_another_store(run: str) -> None:
    begin_epoch(run, OTHER_BOOT, lambda: STORE)
    assert begin_epoch(run, BOOT, lambda: "f" * 16) == CoordinatorRecord(2, "f" * 16, (), BOOT)


def test_a_damaged_record_is_made_up_from_what_is_beside_it(run: str) -> None:
    path = Path(run) / paths.COORDINATOR_NAME
    name = f"hugepool-0-{STORE}"
    for epoch in (4, 9, 11):
        record = begin_epoch(run, BOOT, lambda: STORE)
        with Manifests(run) as written:
            written.write(array_record((epoch << 32) + 1, f"/dev/shm/{name}/a", epoch=epoch))
            written.write(array_record((epoch << 32) + 2, f"/mnt/{name}/a", epoch=epoch))
            written.write(array_record((epoch << 32) + 3, "/elsewhere/a", epoch=epoch))
            written.write(array_record((1 << 32) + 9, f"/old/{name}/a", boot_id=OTHER_BOOT))
        (Path(paths.manifests_path(run)) / "notes").write_text("?")
        path.write_bytes(b"\0" + path.read_bytes())
        with pytest.raises(DamagedRecordError):
            read_coordinator(run)
        record = begin_epoch(run, BOOT, no_store)
        assert record.epoch == epoch + 1
        assert record.store == STORE
        assert record.directories == (f"/dev/shm/{name}", f"/mnt/{name}")
        assert read_coordinator(run) == record
        kept = Path(paths.quarantine_path(run)) / paths.COORDINATOR_NAME
        assert kept.read_bytes().startswith(b"\0hugepool-coordinator")
        path.unlink()
        assert begin_epoch(run, BOOT, no_store).epoch == epoch + 1  # without one likewise


def test_a_damaged_record_is_in_its_place_until_there_is_another(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, another's sweep would take the segments for nobody's."""
    path = Path(run) / paths.COORDINATOR_NAME
    path.write_bytes(b"?")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", _refuse)
        with pytest.raises(NotEnoughMemoryError):
            begin_epoch(run, BOOT, lambda: STORE)
    assert path.read_bytes() == b"?"


def test_what_is_made_up_goes_by_what_most_manifests_say(run: str) -> None:
    with Manifests(run) as written:
        for number in range(1, 21):  # each of a store of its own, in whatever order they are found
            path = f"/dev/shm/hugepool-0-{number:016x}/{number}"
            written.write(array_record((2 << 32) + number, path, epoch=5))
        for number in range(21, 23):
            path = f"/dev/shm/hugepool-0-{STORE}/{number}"
            written.write(array_record((2 << 32) + number, path))
        for number in range(23, 27):
            written.write(array_record((2 << 32) + number, f"/elsewhere/{number}"))
    record = begin_epoch(run, BOOT, no_store)
    assert (record.store, record.epoch) == (STORE, 6)
    assert record.directories == (f"/dev/shm/hugepool-0-{STORE}",)


def test_of_two_damaged_records_the_last_is_put_away(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(run) / paths.COORDINATOR_NAME
    for harm in (b"first", b"second"):
        path.write_bytes(harm)
        begin_epoch(run, BOOT, lambda: STORE)
        kept = Path(paths.quarantine_path(run)) / paths.COORDINATOR_NAME
        assert kept.read_bytes() == harm
        assert "copied into quarantine" in caplog.messages[-1]


def test_no_number_is_given_again_whatever_was_lost(run: str) -> None:
    tokens = Path(paths.tokens_path(run))
    tokens.mkdir()
    session = session_record((6 << 32) + 1)
    (tokens / session.token).write_bytes(records.encode(session))
    (tokens / ("f" * 32)).write_bytes(b"?")
    assert begin_epoch(run, BOOT, lambda: STORE).epoch == 7
    (Path(run) / paths.COORDINATOR_NAME).write_bytes(b"")
    quarantine = Path(paths.quarantine_path(run))
    quarantine.mkdir(exist_ok=True, mode=0o700)
    (quarantine / paths.manifest_name((8 << 32) + 5)).touch()
    for _ in range(2):  # the second time there is one in quarantine already
        assert begin_epoch(run, BOOT, lambda: STORE).epoch == 9
        (Path(run) / paths.COORDINATOR_NAME).write_bytes(b"")


def test_a_directory_without_a_record_has_none(run: str) -> None:
    assert read_coordinator(run) is None
    assert read_coordinator(run + "/missing") is None
    Path(run, "file").touch()
    assert read_coordinator(run + "/file") is None
    Path(run, "link").symlink_to(run)
    assert read_coordinator(run + "/link") is None


def test_a_record_in_a_directory_of_another_user_is_none_of_ours(run: str) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give a file to another user")
    begin_epoch(run, BOOT, lambda: STORE)
    os.chown(run, 65534, 65534)
    assert read_coordinator(run) is None


def test_a_kernel_that_tells_no_boots_apart_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(boot_id()) == 36
    monkeypatch.setattr(manifests, "BOOT_ID_FILE", "/no/such/file")
    with pytest.raises(UnsupportedPlatformError):
        boot_id()


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fail(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
