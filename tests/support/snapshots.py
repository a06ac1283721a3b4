"""Snapshots on a disk without a coordinator: written, read, and looked at."""

from __future__ import annotations

import os
from pathlib import Path

from hugepool.snapshot_directory import SnapshotDirectory, write_whole
from hugepool.snapshot_index import FORMAT, Index, SavedObject
from hugepool_common.checksum import checksum_of_buffers, checksum_of_file
from hugepool_common.errors import SnapshotError
from hugepool_common.spec import ArraySpec

Held = dict[str, bytes]
"""Names of vectors of float64, and their bytes."""


def saved(name: str, content: bytes, number: int) -> SavedObject:
    return SavedObject(
        f"{number:04}.data",
        ArraySpec(name, (len(content) // 8,), "<f8"),
        len(content),
        checksum_of_buffers([memoryview(content)]),
    )


def save_held(path: Path, held: Held) -> None:
    """Write a snapshot, every file in two pieces."""
    with SnapshotDirectory(str(path), writing=True) as disk, disk.writing(100) as writer:
        objects = []
        for number, (name, content) in enumerate(held.items()):
            half = len(content) // 2
            with writer.data(f"{number:04}.data") as fd:
                write_whole(fd, memoryview(content)[half:], half)
                write_whole(fd, memoryview(content)[:half], 0)
            objects.append(saved(name, content, number))
        writer.commit(Index(FORMAT, tuple(objects)))


def extents(spec: ArraySpec) -> list[tuple[int, int]]:
    """Where the parts of an object lie in its file."""
    lengths = [part.nbytes for part in spec.parts]
    return [(sum(lengths[:number]), nbytes) for number, nbytes in enumerate(lengths)]


def read_held(path: Path) -> Held | None:
    """What a restore would bring: all of it whole, or nothing because nothing is there."""
    held = {}
    with SnapshotDirectory(str(path), writing=False) as disk:
        try:
            snapshot = disk.open_current()
        except SnapshotError as error:
            if error.message == "the directory holds no snapshot":
                return None
            raise
        with snapshot:
            for one in snapshot.index.objects:
                fd = snapshot.open_data(one)
                content = os.pread(fd, one.nbytes + 1, 0)
                found = checksum_of_file(fd, extents(one.spec))
                os.close(fd)
                if found != one.checksum:
                    raise SnapshotError("damaged")
                held[one.name] = content
    return held
