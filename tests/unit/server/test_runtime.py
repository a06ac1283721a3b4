from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from hugepool_common import paths
from hugepool_common.errors import CoordinatorRunningError, NotPermittedError
from hugepool_server.manifests import (
    Manifests,
    begin_epoch,
    read_coordinator,
    write_coordinator,
)
from hugepool_server.runtime import RuntimeDirectory
from hugepool_server.tokens import Tokens
from support.durable import BOOT, STORE, TOKEN, array_record
from support.host import require


def _serve(run: str) -> None:
    """Leave what a coordinator leaves that served."""
    begin_epoch(run, BOOT, lambda: STORE)
    with Manifests(run) as manifests:
        manifests.write(array_record())
    os.mkdir(paths.tokens_path(run))
    Path(paths.tokens_path(run), TOKEN).touch()
    Path(paths.socket_path(run)).touch()


def test_a_coordinator_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    runtime = RuntimeDirectory(run)
    _serve(run)
    with pytest.raises(CoordinatorRunningError):
        RuntimeDirectory(run)
    with Manifests(run) as manifests:
        manifests.remove(array_record().segment.segment_id)
    os.mkdir(paths.quarantine_path(run))
    runtime.close()
    runtime.close()
    assert not os.path.exists(run)


def test_what_is_kept_is_there_for_the_next(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    runtime = RuntimeDirectory(run)
    _serve(run)
    runtime.close(keep=True)
    assert sorted(os.listdir(run)) == ["arrays", "coordinator", "tokens"]
    assert os.listdir(paths.tokens_path(run)) == [TOKEN]
    record = read_coordinator(run)
    assert record is not None
    assert record.epoch == 1


def test_records_of_arrays_that_live_are_not_removed(tmp_path: Path) -> None:
    """An embedded coordinator may be started in the directory of a service that crashed."""
    run = str(tmp_path / "run")
    os.mkdir(run, 0o700)
    _serve(run)
    RuntimeDirectory(run).close()
    assert read_coordinator(run) is not None
    assert os.listdir(paths.tokens_path(run)) == [TOKEN]
    assert len(os.listdir(paths.manifests_path(run))) == 1


def test_what_a_person_put_there_stays(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    runtime = RuntimeDirectory(run)
    begin_epoch(run, BOOT, lambda: STORE)
    for directory in (paths.tokens_path(run), paths.quarantine_path(run)):
        os.mkdir(directory)
        Path(directory, "notes.txt").touch()
    runtime.close()
    assert sorted(os.listdir(run)) == ["quarantine", "tokens"]


def test_a_directory_that_was_moved_away_is_tidied_and_not_the_next_at_its_path(
    tmp_path: Path,
) -> None:
    run, moved = str(tmp_path / "run"), str(tmp_path / "moved")
    first = RuntimeDirectory(run)
    begin_epoch(run, BOOT, lambda: STORE)
    tokens = Tokens(run, BOOT)
    os.mkdir(paths.manifests_path(run))
    Path(paths.tokens_path(run), TOKEN).touch()
    assert first.is_there
    os.rename(run, moved)
    assert not first.is_there
    second = RuntimeDirectory(run)
    begin_epoch(run, BOOT, lambda: STORE)
    os.mkdir(paths.tokens_path(run))  # empty, and still not the first one's to remove
    Path(paths.socket_path(run)).touch()
    before = sorted(os.listdir(run))
    tokens.close()
    first.close()
    assert sorted(os.listdir(run)) == before
    assert second.is_there
    assert os.listdir(moved) == []
    second.close()


def test_the_record_goes_where_the_owned_directory_is(tmp_path: Path) -> None:
    run, moved = str(tmp_path / "run"), str(tmp_path / "moved")
    first = RuntimeDirectory(run)
    record = begin_epoch(run, BOOT, lambda: STORE)
    os.rename(run, moved)
    second = RuntimeDirectory(run)
    others = begin_epoch(run, BOOT, lambda: "f" * 16)
    changed = msgspec.structs.replace(record, directories=("/dev/shm/hugepool-0-" + STORE,))
    write_coordinator(run, changed, dir_fd=first.fd)
    assert read_coordinator(run) == others
    assert read_coordinator(moved) == changed
    first.close()
    second.close()


GROUP = 54321  # any number; nobody is in it


def _owner(path: Path) -> tuple[int, str]:
    status = path.stat()
    return status.st_gid, f"{stat.S_IMODE(status.st_mode):04o}"


def _serve_group(run: Path) -> None:
    RuntimeDirectory(str(run), mode=0o710, group=GROUP).close(keep=True)


@pytest.fixture
def other_group() -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to give a directory to any group")


@pytest.mark.usefixtures("other_group")
def test_what_a_coordinator_made_is_given_to_its_group(tmp_path: Path) -> None:
    run = tmp_path / "run"
    runtime = RuntimeDirectory(str(run), mode=0o710, group=GROUP)
    assert _owner(run) == (GROUP, "0710")
    runtime.close()
    assert not run.exists()


@pytest.mark.usefixtures("other_group")
@pytest.mark.parametrize("mode, gid", [(0o755, 0), (0o711, 0), (0o750, GROUP), (0o710, GROUP)])
def test_a_directory_that_lets_the_group_in_stays_as_it_is(
    tmp_path: Path, mode: int, gid: int
) -> None:
    """As root it may be /run."""
    for name in ("notes.txt", paths.COORDINATOR_NAME):
        run = tmp_path / name
        run.mkdir()
        (run / name).touch()
        os.chown(run, -1, gid)
        run.chmod(mode)
        _serve_group(run)
        assert _owner(run) == (gid, f"{mode:04o}")


@pytest.mark.usefixtures("other_group")
@pytest.mark.parametrize("mode, gid", [(0o700, 0), (0o710, 0), (0o700, GROUP), (0o701, GROUP)])
def test_a_directory_of_others_that_keeps_the_group_out_is_refused(
    tmp_path: Path, mode: int, gid: int
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").touch()
    os.chown(run, -1, gid)
    run.chmod(mode)
    with pytest.raises(NotPermittedError, match="holds other things") as refused:
        _serve_group(run)
    assert f"chgrp {GROUP} {run} && chmod g=x {run}" in str(refused.value)
    assert _owner(run) == (gid, f"{mode:04o}")
    RuntimeDirectory(str(run)).close()  # and it is not locked
    assert _owner(run) == (gid, f"{mode:04o}")


@pytest.mark.usefixtures("other_group")
def test_a_directory_of_an_earlier_coordinator_is_given_to_the_group_of_this_one(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    for mode in (0o700, 0o710):
        run.mkdir()
        _serve(str(run))
        run.chmod(mode)
        _serve_group(run)
        assert _owner(run) == (GROUP, "0710")
        run.rename(tmp_path / f"{mode:o}")
