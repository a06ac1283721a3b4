"""Power failures: what a program did to a directory, and every disk that could be left of it.

:func:`recording` notes what is asked of the operating system below one directory.
:func:`disks_after` then tells what a power failure after the first n of these acts may leave: what
was synced is there, and of the rest any part. The model is harsher than most file
systems: entries of directories and writes to files are lost or kept one by one, in any
combination; a write may be torn, or be there as zeros; of a rename only half may be there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_COMBINATIONS = 600
"""Of what was not synced, at one moment."""


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that was done: ``create``, ``mkdir``, ``write``, ``sync``, ``rename`` ...

    Paths are relative to the directory that is watched; its own is the empty one.
    """

    verb: str
    path: str
    target: str = ""
    offset: int = 0
    data: bytes = b""


@contextlib.contextmanager
def recording(root: Path) -> Iterator[list[Act]]:
    """Note what this process does to the files below a directory, from whatever thread."""
    acts: list[Act] = []
    paths: dict[int, str] = {}
    lock = threading.RLock()  # rubbish that is collected meanwhile may close its files
    real: dict[str, Any] = {
        name: getattr(os, name)
        for name in ("open", "close", "mkdir", "rmdir", "unlink", "rename", "pwrite", "fsync")
    }

    def inside(path: Any, dir_fd: int | None) -> str | None:
        base = str(root) if dir_fd is None else paths.get(dir_fd)
        if base is None:
            return None
        whole = os.path.normpath(os.path.join(base, os.fspath(path)))
        return whole if Path(whole).is_relative_to(root) else None

    def relative(whole: str) -> str:
        name = os.path.relpath(whole, root)
        return "" if name == "." else name

    def note(verb: str, whole: str, **facts: Any) -> None:
        acts.append(Act(verb, relative(whole), **facts))

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with lock:
            whole = inside(path, dir_fd)
            made = whole is not None and flags & os.O_CREAT and not os.path.lexists(whole)
            fd: int = real["open"](path, flags, mode, dir_fd=dir_fd)
            if whole is not None:
                paths[fd] = whole
                if made:
                    note("create", whole)
            return fd

    def close(fd: int) -> None:
        with lock:
            paths.pop(fd, None)
            real["close"](fd)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        with lock:
            count: int = real["pwrite"](fd, data, offset)
            if fd in paths:
                note("write", paths[fd], offset=offset, data=bytes(data[:count]))
            return count

    def fsync(fd: int) -> None:
        with lock:
            real["fsync"](fd)
            if fd in paths:
                note("sync", paths[fd])

    def entry(verb: str) -> Any:
        def act(path: Any, *arguments: Any, dir_fd: int | None = None) -> None:
            with lock:
                whole = inside(path, dir_fd)
                real[verb](path, *arguments, dir_fd=dir_fd)
                if whole is not None:
                    note(verb, whole)

        return act

    def rename(
        source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        with lock:
            whole, to = inside(source, src_dir_fd), inside(target, dst_dir_fd)
            real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if whole is not None and to is not None:
                note("rename", whole, target=relative(to))

    watched = {
        "open": open_,
        "close": close,
        "pwrite": pwrite,
        "fsync": fsync,
        "rename": rename,
        **{verb: entry(verb) for verb in ("mkdir", "rmdir", "unlink")},
    }
    for name, act in watched.items():
        setattr(os, name, act)
    try:
        yield acts
    finally:
        for name, act in real.items():
            setattr(os, name, act)


@dataclass(slots=True)
class _File:
    synced: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class _Directory:
    synced: dict[str, _File | _Directory] = field(default_factory=dict)
    pending: list[dict[str, _File | _Directory | None]] = field(default_factory=list)
    """Changes of entries, in order; None takes one away."""

    def now(self) -> dict[str, _File | _Directory]:
        return _changed(self.synced, self.pending)


Disk = dict[str, Any]
"""Names to bytes, or to the Disk of a directory."""


def disk_at(path: Path) -> Disk:
    """What a directory holds."""
    return {
        entry.name: disk_at(entry) if entry.is_dir() else entry.read_bytes()
        for entry in path.iterdir()
    }


def write_disk(disk: Disk, path: Path) -> Path:
    """Make a directory that holds this."""
    path.mkdir()
    for name, content in disk.items():
        if isinstance(content, dict):
            write_disk(content, path / name)
        else:
            (path / name).write_bytes(content)
    return path


def disks_after(
    before: Disk, acts: Sequence[Act], *, seed: int = 0, most: int = MOST_COMBINATIONS
) -> Iterator[Disk]:
    """Every disk that a power failure may leave after these acts; the one with all first.

    Parameters
    ----------
    before
        What was there, all synced.
    acts
        As :func:`recording` noted them.
    seed
        For what is drawn by chance.
    most
        Combinations of what was not synced; beyond it they are drawn by chance.
    """
    root = _loaded(before)
    for act in acts:
        _apply(root, act)
    yield _kept(root, None)
    places = list(_places(root))
    choices = [range(count) for count in (_ways(place) for place in places)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total <= most:
        chosen: Any = itertools.product(*choices)
    else:
        chance = random.Random(seed)
        # All of one way, each single one lost, and the rest by chance.
        chosen = [tuple(min(way, len(one) - 1) for one in choices) for way in range(4)]
        for number in range(len(choices)):
            for way in choices[number]:
                chosen.append(tuple(way if n == number else 0 for n in range(len(choices))))
        while len(chosen) < most:
            chosen.append(tuple(chance.choice(choice) for choice in choices))
    seen = set()
    for ways in chosen:
        disk = _kept(root, {id(place[0]): {} for place in places} | _by_owner(places, ways))
        key = _key(disk)
        if key not in seen:
            seen.add(key)
            yield disk


_Place = tuple[Any, int]
"""A file or directory, and which of its pending changes."""


def _loaded(disk: Disk) -> _Directory:
    return _Directory(
        {
            name: _loaded(content) if isinstance(content, dict) else _File(content)
            for name, content in disk.items()
        }
    )


def _changed(
    entries: dict[str, _File | _Directory], changes: Sequence[dict[str, Any]]
) -> dict[str, _File | _Directory]:
    entries = dict(entries)
    for change in changes:
        for name, node in change.items():
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node
    return entries


def _find(root: _Directory, path: str) -> Any:
    node: Any = root
    for name in path.split("/") if path else []:
        node = node.now()[name]
    return node


def _apply(root: _Directory, act: Act) -> None:
    parent_path, _, name = act.path.rpartition("/")
    match act.verb:
        case "create":
            _find(root, parent_path).pending.append({name: _File()})
        case "mkdir":
            _find(root, parent_path).pending.append({name: _Directory()})
        case "unlink" | "rmdir":
            _find(root, parent_path).pending.append({name: None})
        case "rename":
            parent = _find(root, parent_path)
            target_path, _, target = act.target.rpartition("/")
            assert target_path == parent_path
            parent.pending.append({target: parent.now()[name], name: None})
        case "write":
            _find(root, act.path).pending.append((act.offset, act.data))
        case "sync":
            node = _find(root, act.path)
            if isinstance(node, _File):
                node.synced = _written(node.synced, node.pending)
            else:
                node.synced = node.now()
            node.pending = []
        case _:
            raise AssertionError(act)


def _places(root: _Directory) -> Iterator[_Place]:
    """Every change that was not synced, of everything that may still be reached."""
    seen: set[int] = set()

    def visit(node: Any) -> Iterator[_Place]:
        if id(node) in seen:
            return
        seen.add(id(node))
        for number in range(len(node.pending)):
            yield node, number
        if isinstance(node, _Directory):
            nodes = list(node.synced.values())
            nodes += [new for change in node.pending for new in change.values() if new is not None]
            for below in nodes:
                yield from visit(below)

    yield from visit(root)


def _ways(place: _Place) -> int:
    """How many fates a change may have; way 0 is that it is kept, way 1 that it is lost."""
    node, number = place
    if isinstance(node, _File):
        return 4  # torn, or zeros
    return 3 if len(node.pending[number]) > 1 else 2  # half a rename


def _by_owner(places: Sequence[_Place], ways: Sequence[int]) -> dict[int, dict[int, int]]:
    found: dict[int, dict[int, int]] = {}
    for (node, number), way in zip(places, ways, strict=True):
        found.setdefault(id(node), {})[number] = way
    return found


def _kept(node: Any, ways: dict[int, dict[int, int]] | None) -> Any:
    fates = (ways or {}).get(id(node), {})
    if isinstance(node, _File):
        writes = []
        for number, (offset, data) in enumerate(node.pending):
            way = fates.get(number, 0)
            if way == 2:
                data = data[: len(data) // 2]
            elif way == 3:
                data = bytes(len(data))
            if way != 1:
                writes.append((offset, data))
        return _written(node.synced, writes)
    changes = []
    for number, change in enumerate(node.pending):
        way = fates.get(number, 0)
        if way == 2:
            changes.append({name: new for name, new in change.items() if new is not None})
        elif way == 0:
            changes.append(change)
    return {name: _kept(below, ways) for name, below in _changed(node.synced, changes).items()}


def _key(disk: Disk) -> int:
    return hash(
        tuple(
            (name, _key(content) if isinstance(content, dict) else content)
            for name, content in sorted(disk.items())
        )
    )


def _written(content: bytes, writes: Sequence[tuple[int, bytes]]) -> bytes:
    whole = bytearray(content)
    for offset, data in writes:
        if len(whole) < offset + len(data):
            whole.extend(bytes(offset + len(data) - len(whole)))
        whole[offset : offset + len(data)] = data
    return bytes(whole)
