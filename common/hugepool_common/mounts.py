"""The hugetlbfs and tmpfs mounts that this process sees, from ``/proc/self/mountinfo``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hugepool_common.errors import InvalidSpecError
from hugepool_common.units import parse_bytes

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountLine:
    """One line of ``mountinfo``, as far as it matters here."""

    path: str
    """Mount point, unescaped."""
    device: int
    root: str
    """Directory of the file system that is mounted there."""
    kind: str
    """File system type."""
    options: Mapping[str, str]
    """Of the mount and the file system together; an option without a value maps to ``""``."""


@dataclass(frozen=True, slots=True)
class HugetlbfsMount:
    """A place for files of huge pages."""

    path: str
    page_size: int
    limit_bytes: int | None
    """Mount option ``size=``; None without."""
    claimed_bytes: int
    """Mount option ``min_size=``: taken from the pool when mounted."""
    available_bytes: int | None
    """What is left of `limit_bytes`; None without a limit."""
    writable: bool
    """By this process."""


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """A place for files of shared memory."""

    path: str
    huge: str
    """Mount option ``huge=``: never, advise, within_size or always."""
    limit_bytes: int
    available_bytes: int
    writable: bool
    """By this process."""


@dataclass(frozen=True, slots=True)
class Room:
    """What ``stat`` and ``statvfs`` say of a mounted directory."""

    device: int
    block_bytes: int
    total_bytes: int
    available_bytes: int
    writable: bool


def measure(path: str) -> Room | None:
    """Look at a directory; None if it cannot be reached."""
    try:
        device = os.stat(path).st_dev
        room = os.statvfs(path)
    except OSError:
        return None
    return Room(
        device,
        room.f_bsize,
        room.f_blocks * room.f_bsize,
        room.f_bavail * room.f_bsize,
        os.access(path, os.W_OK | os.X_OK, effective_ids=True),
    )


def parse_mountinfo(text: str) -> list[MountLine]:
    """Read ``mountinfo``; lines that do not follow proc(5) are left out."""
    found = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, kinds = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(kinds) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        if not (major.isdigit() and minor.isdigit()):
            continue
        found.append(
            MountLine(
                path=_unescaped(fields[4]),
                device=os.makedev(int(major), int(minor)),
                root=_unescaped(fields[3]),
                kind=kinds[0],
                options={**_options(kinds[2]), **_options(fields[5])},
            )
        )
    return found


def read_mounts(
    lines: list[MountLine],
    default_huge_page_size: int,
    look: Callable[[str], Room | None] = measure,
) -> tuple[tuple[HugetlbfsMount, ...], tuple[TmpfsMount, ...]]:
    """The mounts that can really be reached, a path at most once.

    Parameters
    ----------
    lines
        From :func:`parse_mountinfo`.
    default_huge_page_size
        Bytes, for a hugetlbfs mount that does not say.
    look
        Measures a path.
    """
    # By path, so that a later mount over an earlier one hides it; and where the
    # device under the path is another one, the mount is hidden by one above.
    hugetlbfs: dict[str, HugetlbfsMount] = {}
    tmpfs: dict[str, TmpfsMount] = {}
    for line in lines:
        if line.kind not in ("hugetlbfs", "tmpfs"):
            continue
        room = look(line.path)
        if room is None or room.device != line.device:
            continue
        if line.kind == "hugetlbfs":
            tmpfs.pop(line.path, None)
            hugetlbfs[line.path] = _hugetlbfs(line, room, default_huge_page_size)
        else:
            hugetlbfs.pop(line.path, None)
            tmpfs[line.path] = TmpfsMount(
                path=line.path,
                huge=line.options.get("huge", "never"),
                limit_bytes=room.total_bytes,
                available_bytes=room.available_bytes,
                writable=room.writable and "ro" not in line.options,
            )
    return tuple(hugetlbfs.values()), tuple(tmpfs.values())


def mount_under(path: str, mount_paths: list[str]) -> str | None:
    """The deepest of the mount points that `path` lies on, or None."""
    inside = [
        mount
        for mount in mount_paths
        if os.path.commonpath([mount, os.path.abspath(path)]) == mount
    ]
    return max(inside, key=len, default=None)


def _hugetlbfs(line: MountLine, room: Room, default_huge_page_size: int) -> HugetlbfsMount:
    page_size = _option_bytes(line, "pagesize") or default_huge_page_size
    limit = _option_bytes(line, "size")
    return HugetlbfsMount(
        path=line.path,
        page_size=page_size,
        limit_bytes=limit,
        claimed_bytes=_option_bytes(line, "min_size") or 0,
        available_bytes=room.available_bytes if limit is not None else None,
        writable=room.writable and "ro" not in line.options,
    )


def _option_bytes(line: MountLine, name: str) -> int | None:
    try:
        return parse_bytes(line.options[name])
    except (KeyError, InvalidSpecError):
        return None


def _options(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in text.split(","))}


def _unescaped(text: str) -> str:
    # Escapes are bytes of the path's encoding, so they are put back as bytes.
    raw = _ESCAPE.sub(
        lambda match: chr(int(match[1], 8) & 0xFF), os.fsencode(text).decode("latin1")
    )
    return os.fsdecode(raw.encode("latin1"))
