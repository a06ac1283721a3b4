"""Whatever a coordinator left, the next one finds it as it is, and so does the one after."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hugepool_common import paths
from support.durable import OTHER_BOOT, Life

MANIFESTS = ("none", "whole", "damaged", "unfinished", "stale", "whole and unfinished")
SEGMENTS = ("none", "right", "another", "short", "unpublished")
MODES = (0o600, 0o400, 0o000)

LEFT = st.lists(
    st.tuples(
        st.sampled_from(MANIFESTS),
        st.sampled_from(SEGMENTS),
        st.booleans(),
        st.sampled_from(MODES),
    ),
    max_size=6,
)


def put(life: Life, number: int, manifest: str, segment: str, sealed: bool, mode: int) -> None:
    """Leave a manifest and a segment in these states."""
    boot = OTHER_BOOT if manifest == "stale" else life.boot
    record = life.array(number, mode=mode, sealed=sealed, boot_id=boot)
    written, path = life.manifest(record), Path(record.segment.path)
    unfinished = written.with_name(paths.unfinished_name(written.name))
    if "unfinished" in manifest:
        unfinished.write_bytes(written.read_bytes()[:50])
    if manifest in ("none", "unfinished"):
        life.manifests.remove(record.segment.segment_id)
    if manifest == "damaged":
        written.write_bytes(written.read_bytes()[:-3])
    if segment == "none":
        path.unlink()
    if segment == "another":
        path.rename(path.with_name("moved"))
        path.write_bytes(path.with_name("moved").read_bytes())
        path.with_name("moved").unlink()
    if segment == "short":
        os.truncate(path, 1)
    if segment == "unpublished":
        path.rename(path.with_name(paths.unpublished_file_name(record.segment.segment_id)))


@given(LEFT)
@settings(deadline=None)
def test_everything_left_is_found_as_it_is(
    left: list[tuple[str, str, bool, int]],
) -> None:
    with tempfile.TemporaryDirectory() as base:
        run, place = Path(base, "run"), Path(base, "mount")
        run.mkdir(mode=0o700)
        place.mkdir()
        life = Life(run, place)
        directory = Path(life.directories.on(str(place))[1])
        for number, one in enumerate(left, 1):
            put(life, number, *one)
        life.kill()

        known: list[tuple[str, int]] = []
        lost: set[int] = set()
        files: dict[str, int | None] = {}  # and their modes, where they are known
        quarantined: set[int] = set()
        removed = 0
        for number, (manifest, segment, sealed, mode) in enumerate(left, 1):
            segment_id = (1 << 32) + number
            name = paths.segment_file_name(segment_id)
            there = segment in ("right", "another", "short")
            if "whole" in manifest:
                known.append((f"x{number}", segment_id))
                if segment == "right":
                    files[name] = 0o400 if sealed else 0o600
                else:
                    lost.add(segment_id)
                    if there:
                        files[name] = mode if segment != "another" else None
            elif manifest == "damaged":
                quarantined.add(segment_id)
                if there:
                    files[name] = mode if segment != "another" else None
            else:
                removed += there
            removed += segment == "unpublished"

        for life_number in range(2):
            life = Life(run, place)
            recovery = life.recovery
            found = [(one.spec.name, one.segment.segment_id) for one in recovery.event.arrays]
            assert found == known
            assert recovery.event.lost == lost
            assert recovery.found.quarantined == quarantined
            assert recovery.found.damaged.keys() == (quarantined if life_number == 0 else set())
            assert recovery.orphans.count == (removed if life_number == 0 else 0)
            mark = paths.owner_mark_name(str(run))
            assert set(os.listdir(directory)) == {*files, mark}
            for name, wanted in files.items():
                now = stat.S_IMODE((directory / name).stat().st_mode)
                assert wanted in (None, now)
            manifests = set(os.listdir(paths.manifests_path(str(run))))
            assert manifests == {paths.manifest_name(segment_id) for _, segment_id in known}
            life.kill()
        Life(run, place).directories.close()
        assert os.listdir(place) == []
