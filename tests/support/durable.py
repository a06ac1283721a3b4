"""Records and segment files as a coordinator would write them."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hugepool_common import paths
from hugepool_common.spec import ArraySpec, PageReport, Segment
from hugepool_server import manifests
from hugepool_server.manifests import Manifests
from hugepool_server.reclaim import SegmentDirectories
from hugepool_server.records import (
    ArrayRecord,
    CoordinatorRecord,
    Identity,
    SessionRecord,
)
from hugepool_server.recovery import Recovery, recover

BOOT = "3e2f6cd1-0b5c-4a39-9f0e-8a1f0b0c0d0e"
OTHER_BOOT = "11111111-2222-3333-4444-555555555555"
STORE = "0123456789abcdef"
TOKEN = "00112233445566778899aabbccddeeff"
LENGTH = 4096


def array_record(
    segment_id: int = (1 << 32) + 1,
    path: str = "",
    status: os.stat_result | None = None,
    **changes: Any,
) -> ArrayRecord:
    """A manifest of eight numbers, of the file with this status."""
    segment = Segment(
        segment_id=segment_id,
        path=path or f"/dev/shm/hugepool-0-{STORE}/{paths.segment_file_name(segment_id)}",
        device=status.st_dev if status else 25,
        inode=status.st_ino if status else 4711,
        owner_uid=status.st_uid if status else 0,
        length=LENGTH,
        page_size=4096,
        backing="shm-4k",
    )
    record = ArrayRecord(
        spec=ArraySpec("x", (8,), "<f8"),
        segment=segment,
        pages=PageReport("shm-4k", 4096, LENGTH, 0, LENGTH, "smaps"),
        creator=Identity(1000, 100, 4242),
        owner=TOKEN,
        created_ns=12345,
        generation=1,
        sealed=False,
        checksum="",
        boot_id=BOOT,
        epoch=1,
    )
    return msgspec.structs.replace(record, **changes)


def session_record(session: int = (1 << 32) + 1, **changes: Any) -> SessionRecord:
    """A session of process 4242."""
    record = SessionRecord(session, TOKEN, Identity(1000, 100, 4242), 99, "test", BOOT)
    return msgspec.structs.replace(record, **changes)


@dataclass
class Life:
    """One coordinator's life on a runtime directory, as far as files go."""

    run: Path
    place: Path
    """Stands for a mount."""
    boot: str = BOOT
    group: int | None = None
    segment_mode: int = 0o600
    record: CoordinatorRecord = field(init=False)
    directories: SegmentDirectories = field(init=False)
    manifests: Manifests = field(init=False)
    recovery: Recovery = field(init=False)
    gone: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        run = str(self.run)
        self.record = manifests.begin_epoch(run, self.boot, lambda: STORE)
        self.directories = SegmentDirectories(
            store=self.record.store, owner=run, group=self.group, made=self._made
        )
        try:
            self.gone = self.directories.adopt(self.record.directories)
            self.manifests = Manifests(run)
            self.recovery = recover(
                self.manifests,
                self.directories,
                (),
                boot=self.boot,
                segment_mode=self.segment_mode,
            )
        except BaseException:
            self.kill()
            raise

    def _made(self, path: str) -> None:
        known = dict.fromkeys((*self.record.directories, path))
        self.record = msgspec.structs.replace(self.record, directories=tuple(known))
        manifests.write_coordinator(str(self.run), self.record)

    def segment(self, number: int, *, mode: int = 0o600) -> tuple[int, Path]:
        """A segment's id and file, without a manifest."""
        segment_id = (self.record.epoch << 32) + number
        _, directory = self.directories.on(str(self.place))
        path = Path(directory) / paths.segment_file_name(segment_id)
        path.write_bytes(bytes(LENGTH))
        path.chmod(mode)
        return segment_id, path

    def array(self, number: int, *, mode: int = 0o600, **changes: Any) -> ArrayRecord:
        """A segment and its manifest, both written."""
        segment_id, path = self.segment(number, mode=mode)
        spec = ArraySpec(f"x{number}", (8,), "<f8")
        record = array_record(
            segment_id,
            str(path),
            path.stat(),
            **{"spec": spec, "boot_id": self.boot, "epoch": self.record.epoch, **changes},
        )
        self.manifests.write(record)
        return record

    def kill(self) -> None:
        """Let go of what the kernel takes from the dead, and of nothing else."""
        self.directories.close(keep=True)
        if hasattr(self, "manifests"):
            self.manifests.close()

    def manifest(self, record: ArrayRecord) -> Path:
        """The file of a manifest."""
        name = paths.manifest_name(record.segment.segment_id)
        return Path(paths.manifests_path(str(self.run))) / name


def list_renames(run: str, *lines: str, crc: int | None = None) -> None:
    """Leave a list of renames beside the manifests, as a killed coordinator does."""
    text = "".join(f"{line}\n" for line in lines).encode()
    crc = zlib.crc32(text) if crc is None else crc
    path = Path(paths.manifests_path(run)) / paths.RENAMES_NAME
    path.write_bytes(b"hugepool-renames 1 %08x\n" % crc + text)
