from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from hugepool_common import paths
from hugepool_common.spec import ArraySpec
from hugepool_server.manifests import Manifests
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.runtime import RuntimeDirectory
from hugepool_server.tokens import Tokens
from hugepool_server.whereabouts import MOST_NAMED, MOST_TROUBLES, TROUBLE_BYTES, Whereabouts
from support.durable import BOOT, STORE, array_record


@dataclass
class Ground:
    """What a coordinator stands on."""

    runtime: RuntimeDirectory
    tokens: Tokens
    manifests: Manifests
    directories: SegmentDirectories
    whereabouts: Whereabouts
    place: Path

    def array(self, number: int) -> str:
        """Write a manifest of a segment in the directory at our place; the directory."""
        _, directory = self.directories.on(str(self.place))
        segment_id = (1 << 32) + number
        path = os.path.join(directory, paths.segment_file_name(segment_id))
        record = array_record(segment_id, path)
        name = f"x{number:02}"
        self.manifests.write(msgspec.structs.replace(record, spec=ArraySpec(name, (8,), "<f8")))
        return directory


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    run, place = str(tmp_path / "run"), tmp_path / "mount"
    place.mkdir()
    runtime = RuntimeDirectory(run)
    tokens, manifests = Tokens(run, BOOT), Manifests(run)
    with SegmentDirectories(
        store=STORE, owner=run, renewed=lambda path: whereabouts.renewed(path)
    ) as directories:
        whereabouts = Whereabouts(runtime, tokens, manifests, directories)
        yield Ground(runtime, tokens, manifests, directories, whereabouts, place)
    manifests.close(keep=False)
    tokens.close()
    runtime.close()


def test_all_is_well_where_everything_is(ground: Ground) -> None:
    ground.array(1)
    assert repr(ground.whereabouts) == "<Whereabouts: 0 troubles>"
    assert not ground.whereabouts.look()
    assert ground.whereabouts.troubles == ()


@pytest.mark.parametrize("what", ["arrays", "tokens"])
def test_what_is_gone_is_told_until_it_is_back(
    ground: Ground, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(ground.runtime.path) / what
    path.rename(path.with_name("moved"))
    assert ground.whereabouts.look()
    assert not ground.whereabouts.look()
    (told,) = ground.whereabouts.troubles
    assert ground.runtime.path in told
    assert len(caplog.records) == 1  # and not once a second
    path.with_name("moved").rename(path)
    assert ground.whereabouts.look()
    assert not ground.whereabouts.troubles
    path.rename(path.with_name("moved"))
    assert ground.whereabouts.look()
    assert len(caplog.records) == 2
    path.with_name("moved").rename(path)


def test_another_directory_in_its_place_is_not_it(ground: Ground) -> None:
    path = Path(ground.runtime.path) / "arrays"
    path.rename(path.with_name("moved"))
    path.mkdir()
    assert ground.whereabouts.look()
    assert "manifests" in ground.whereabouts.troubles[0]
    path.rmdir()
    path.with_name("moved").rename(path)


def test_of_a_runtime_directory_that_is_gone_only_that_is_told(ground: Ground) -> None:
    shutil.rmtree(ground.runtime.path)
    assert ground.whereabouts.look()
    (told,) = ground.whereabouts.troubles
    assert ground.runtime.path in told


def test_what_cannot_be_seen_is_no_trouble(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that does not answer for a while is none that was removed."""
    ground.array(1)

    def refuse(path: str, fd: int) -> bool:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(paths, "is_still", refuse)
    monkeypatch.setattr("hugepool_server.runtime.is_still", refuse)
    monkeypatch.setattr("hugepool_server.reclaim.is_still", refuse)
    assert not ground.whereabouts.look()


def test_arrays_that_nobody_can_attach_are_named_until_they_are_destroyed(ground: Ground) -> None:
    directory = ground.array(1)
    shutil.rmtree(directory)
    ground.whereabouts.look()
    assert ": x01;" in ground.whereabouts.troubles[0]
    ground.array(2)  # makes the directory anew
    assert not ground.whereabouts.look()
    assert ": x01;" in ground.whereabouts.troubles[0]
    ground.manifests.remove((1 << 32) + 1)
    assert ground.whereabouts.look()
    assert ground.whereabouts.troubles == ()


def test_trouble_is_cut_to_what_a_frame_takes(ground: Ground) -> None:
    for number in range(MOST_NAMED + 5):
        directory = ground.array(number)
    shutil.rmtree(directory)
    ground.whereabouts.look()
    assert f"x{MOST_NAMED - 1:02} and 5 more;" in ground.whereabouts.troubles[0]
    place = ground.place
    for number in range(MOST_TROUBLES + 1):
        place = ground.place / (str(number) + "\N{SNOWMAN}" * 80) / ("d" * 250) / ("d" * 250)
        place /= "d" * 250
        place.mkdir(parents=True)
        shutil.rmtree(ground.directories.on(str(place))[1])
    ground.whereabouts.look()
    told = ground.whereabouts.troubles
    assert len(told) == MOST_TROUBLES
    assert max(len(one.encode()) for one in told) <= TROUBLE_BYTES
