"""Changes of a host that need root: told as commands, done, and undone.

What is done is first written to a journal with the value of before, so that undoing
restores exactly that, also after a change that was cut off half-way. None of these
changes outlives a reboot, and the journal in ``/run`` does not either.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from typing import Literal, Protocol

import msgspec

from hugepool_common.errors import HugepoolError, NotPermittedError
from hugepool_common.kernel_files import read_kernel_file
from hugepool_common.mounts import parse_mountinfo
from hugepool_common.units import MIB

JOURNAL = "/run/hugepool-setup.json"

_SYSCTL = "/proc/sys/"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_MOUNT_TIMEOUT_S = 60.0
_LASTING_OPTIONS = ("uid", "gid", "mode", "pagesize")


class _Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="change"):
    """One thing that a root shell would do in one line."""


class SetValue(_Change, frozen=True, tag="set"):
    """Write a value to a file of the kernel."""

    path: str
    value: str

    @property
    def command(self) -> str:
        """For a root shell."""
        if self.path.startswith(_SYSCTL):
            name = self.path.removeprefix(_SYSCTL).replace("/", ".")
            return f"sysctl {name}={self.value}"
        return f"echo {self.value} > {shlex.quote(self.path)}"

    def before(self) -> str:
        """What is there; of a choice the word that is chosen."""
        return _current_value(self.path)

    def apply(self) -> None:
        """Do it."""
        _write_value(self.path, self.value)

    def undo(self, before: str, after: str | None) -> None:
        """Bring back what was there.

        Raises
        ------
        HugepoolError
            Somebody else has changed it since: it is left alone.
        """
        now = _current_value(self.path)
        if now == before:
            return
        if after is not None and now != after:
            raise HugepoolError("somebody has changed it since", had=now, where=self.path)
        _write_value(self.path, before)


class Remount(_Change, frozen=True, tag="remount"):
    """Give a mount another value of one option; a size is in bytes."""

    path: str
    option: Literal["size", "huge"]
    value: str

    @property
    def command(self) -> str:
        """For a root shell."""
        value = self.value
        if self.option == "size" and int(value) % MIB == 0:
            value = f"{int(value) // MIB}M"
        return f"mount -o remount,{self.option}={value} {shlex.quote(self.path)}"

    def before(self) -> str:
        """The value that the mount has."""
        if self.option == "size":
            room = os.statvfs(self.path)
            return str(room.f_blocks * room.f_frsize)
        return _mount_options(self.path).get("huge", "never")

    def apply(self) -> None:
        """Do it."""
        self._set(self.value)

    def undo(self, before: str, after: str | None) -> None:
        """Bring back the value of before.

        Raises
        ------
        HugepoolError
            Somebody else has changed it since, or the mount is fuller than it was large.
        """
        now = self.before()
        if now == before:
            return
        if after is not None and now != after:
            raise HugepoolError(
                f"somebody has changed {self.option}= since", had=now, where=self.path
            )
        self._set(before)

    def _set(self, value: str) -> None:
        _run("mount", "-o", f"remount,{self.option}={value}", self.path)


class MakeMount(_Change, frozen=True, tag="mount"):
    """Make a directory and mount a file system there."""

    kind: Literal["hugetlbfs", "tmpfs"]
    options: str
    path: str

    @property
    def command(self) -> str:
        """For a root shell."""
        path = shlex.quote(self.path)
        return f"mkdir -p {path} && mount -t {self.kind} -o {self.options} none {path}"

    def before(self) -> str:
        """The deepest directory of the path that is there: what is below it will be ours."""
        if _mount_options(self.path):
            raise HugepoolError("something is mounted there already", where=self.path)
        there = self.path
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        return there

    def apply(self) -> None:
        """Do it."""
        os.makedirs(self.path, mode=0o755, exist_ok=True)
        _run("mount", "-t", self.kind, "-o", self.options, "none", self.path)

    def found(self) -> str:
        """What is mounted there, on top: by this it is known again."""
        return next(reversed(_mounts_at(self.path)), "")

    def undo(self, before: str, after: str | None) -> None:
        """Unmount, and remove the directories that were made.

        Raises
        ------
        HugepoolError
            It is in use; or what is mounted there is somebody else's, which is left alone.
        """
        mounts = _mounts_at(self.path)
        if after is None and mounts and not mounts[-1].startswith(f"{self.kind} "):
            raise HugepoolError("another file system is mounted there", had=mounts[-1])
        if after and mounts and mounts[-1] != after:
            if after in mounts:
                raise _CommandFailedError("something else is mounted over it", where=self.path)
            raise HugepoolError(
                "somebody has mounted something else there since", had=mounts[-1], where=self.path
            )
        if mounts:
            _run("umount", self.path)
        directory = self.path
        while len(directory) > len(before):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:
                break  # somebody else has put something there
            directory = os.path.dirname(directory)


Change = SetValue | Remount | MakeMount


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change in the journal.

    Parameters
    ----------
    change
        What was to be done.
    before
        What was there.
    after
        What was there when it was done; None if it was cut off.
    """

    change: Change
    before: str
    after: str | None = None


class _Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    boot_id: str
    entries: tuple[Entry, ...]


class Tell(Protocol):
    """Hears of what is done."""

    def __call__(self, text: str, /) -> object: ...


class Setup:
    """Changes that are done and can be undone.

    Parameters
    ----------
    journal
        File in which they are noted.
    """

    def __init__(self, journal: str = JOURNAL) -> None:
        self._journal = journal

    def apply(self, change: Change) -> str:
        """Do a change, noted before and after; what is there then.

        Raises
        ------
        NotPermittedError
            This is not root.
        HugepoolError, OSError
            It cannot be done. It can be undone, if anything was done.
        """
        if os.geteuid():
            raise _needs_root(self._journal)
        entries = self.entries()
        entry = Entry(change, change.before())
        self._write((*entries, entry))
        change.apply()
        after = change.found() if isinstance(change, MakeMount) else change.before()
        self._write((*entries, msgspec.structs.replace(entry, after=after)))
        return after

    def undo(self, tell: Tell) -> bool:
        """Undo all changes, the last one first; whether everything is as it was.

        Parameters
        ----------
        tell
            Hears of each change that is undone, and of each that cannot be.

        Notes
        -----
        What is busy stays in the journal. What somebody else has changed since is not
        ours any more: it is told, left alone and forgotten.
        """
        busy: list[Entry] = []
        clean = True
        for entry in reversed(self.entries()):
            command = entry.change.command
            try:
                entry.change.undo(entry.before, entry.after)
                tell(f"undone: {command}")
            except (HugepoolError, OSError) as error:
                clean = False
                tell(f"left: {command}: {error}")
                if isinstance(error, _CommandFailedError):
                    busy.insert(0, entry)
        self._write(tuple(busy))
        return clean

    def entries(self) -> tuple[Entry, ...]:
        """What was done since the machine started, and was not undone."""
        try:
            with open(self._journal, "rb") as file:
                found = msgspec.json.decode(file.read(), type=_Journal)
        except FileNotFoundError:
            return ()
        except PermissionError:
            raise _needs_root(self._journal) from None
        except msgspec.MsgspecError as error:
            raise HugepoolError(
                f"the journal of changes cannot be read: {error}",
                where=self._journal,
                remedy="undo by hand what it lists, and remove it",
            ) from None
        return found.entries if found.boot_id == _boot_id() else ()

    def _write(self, entries: tuple[Entry, ...]) -> None:
        if not entries:
            try:
                os.unlink(self._journal)
            except FileNotFoundError:
                pass
            return
        text = msgspec.json.format(msgspec.json.encode(_Journal(_boot_id(), entries)), indent=2)
        temporary = f"{self._journal}.tmp"
        try:
            with open(temporary, "wb", opener=_private) as file:
                file.write(text + b"\n")
            os.replace(temporary, self._journal)
        except PermissionError:
            raise _needs_root(self._journal) from None


class _CommandFailedError(HugepoolError):
    """``mount`` or ``umount`` refused; it may not another time."""


def _needs_root(where: str) -> NotPermittedError:
    return NotPermittedError(
        "changing the host needs root",
        where=where,
        had=f"uid {os.geteuid()}",
        remedy="run it with sudo, or the commands that it prints without --apply",
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _boot_id() -> str:
    return read_kernel_file(_BOOT_ID).strip()


def _current_value(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else text.strip()


def _write_value(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(value)
    except PermissionError:
        raise _needs_root(path) from None
    except OSError as error:
        raise HugepoolError(
            f"the kernel refused the value: {error.strerror}", needed=value, where=path
        ) from None


def _mount_options(path: str) -> dict[str, str]:
    """Options of what is mounted at a path, the topmost one; empty if nothing is."""
    found: dict[str, str] = {}
    for line in parse_mountinfo(read_kernel_file("/proc/self/mountinfo")):
        if line.path == path:
            found = {"type": line.kind, **line.options}
    return found


def _mounts_at(path: str) -> list[str]:
    """What is mounted at a path, the topmost last: kind, device, and what no remount changes.

    The device alone would not do: the next mount is given the number of one that is gone.
    """
    return [
        " ".join(
            [
                line.kind,
                f"{os.major(line.device)}:{os.minor(line.device)}",
                *(f"{name}={line.options.get(name, '')}" for name in _LASTING_OPTIONS),
            ]
        )
        for line in parse_mountinfo(read_kernel_file("/proc/self/mountinfo"))
        if line.path == path
    ]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MOUNT_TIMEOUT_S)
    except FileNotFoundError:
        raise HugepoolError(f"there is no {command[0]} here", remedy="install mount") from None
    except subprocess.TimeoutExpired:
        raise _CommandFailedError(f"{command[0]} does not end", where=command[-1]) from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise _CommandFailedError(f"{command[0]} refused: {said}", where=command[-1])
