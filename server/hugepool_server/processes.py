"""What ``/proc`` tells of another process, for whom its pid alone is not enough."""

from __future__ import annotations

_STATE, _START = 0, 19  # fields 3 and 22 of proc_pid_stat(5), counted after the name


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if it cannot be seen."""
    fields = _stat(pid)
    return int(fields[_START]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Whether a process does not run until it is told to: SIGSTOP, or a debugger."""
    fields = _stat(pid)
    return bool(fields) and fields[_STATE] in ("T", "t")


def _stat(pid: int) -> list[str]:
    if pid <= 0:
        return []
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name stands in brackets, and may hold brackets and blanks itself.
            return file.read().rpartition(")")[2].split()
    except OSError:  # it is dead, or hidden, or no descriptor is left to look with
        return []
