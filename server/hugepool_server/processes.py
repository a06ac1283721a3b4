"""What ``/proc`` tells of another process, for whom its pid alone is not enough."""

from __future__ import annotations

import os

_STATE, _START = 0, 19  # fields 3 and 22 of proc_pid_stat(5), counted after the name


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if it cannot be seen."""
    fields = _stat(pid)
    return int(fields[_START]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Whether a process does not run until it is told to: SIGSTOP, or a debugger."""
    fields = _stat(pid)
    return bool(fields) and fields[_STATE] in ("T", "t")


def writers_of(device: int, inode: int) -> list[int]:
    """The pids of all that map a file writable and shared, as far as they can be looked at."""
    wanted = [f"{os.major(device):02x}:{os.minor(device):02x}", str(inode)]
    found = []
    try:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    except OSError:  # no descriptor is left to look with
        return []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as lines:
                # Address, protection, offset, device, inode, path.
                fields = (line.split(maxsplit=5) for line in lines)
                if any(area[3:5] == wanted and area[1][1::2] == "ws" for area in fields):
                    found.append(pid)
        except OSError:  # it is dead, or another user's
            continue
    return found


def _stat(pid: int) -> list[str]:
    if pid <= 0:
        return []
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name stands in brackets, and may hold brackets and blanks itself.
            return file.read().rpartition(")")[2].split()
    except OSError:  # it is dead, or hidden, or no descriptor is left to look with
        return []
