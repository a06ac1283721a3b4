"""Which faults each system call is given: SIGKILL everywhere, and the errors it may really have.

An error is injected only where the kernel could give it: a pipe to a living reader does
not run out of space, and ``close`` that "fails" without closing would leak by the test's
own doing. There only the kill is tried.
"""

from __future__ import annotations

import re

from support.tracing import Call

KILL = "KILL"

_ERRORS: dict[str, tuple[str, ...]] = {
    "openat": ("EMFILE", "EACCES", "EINTR", "EIO", "ENOMEM"),
    "ftruncate": ("ENOSPC", "EIO", "EINTR", "EPERM"),
    "fallocate": ("ENOSPC", "ENOMEM", "EINTR", "EIO"),
    "fchmod": ("EPERM", "EIO"),
    "fchmodat": ("EPERM", "EIO"),
    "chmod": ("EPERM", "EIO"),
    "fchown": ("EPERM", "EIO"),
    "fchownat": ("EPERM", "EIO"),
    "linkat": ("ENOSPC", "EPERM", "EIO"),
    "unlink": ("EPERM", "EIO", "EBUSY"),
    "unlinkat": ("EPERM", "EIO", "EBUSY"),
    "rename": ("ENOSPC", "EIO", "EACCES"),
    "renameat": ("ENOSPC", "EIO", "EACCES"),
    "renameat2": ("ENOSPC", "EIO", "EACCES"),
    "mkdir": ("ENOSPC", "EACCES", "ENOMEM"),
    "mkdirat": ("ENOSPC", "EACCES", "ENOMEM"),
    "rmdir": ("EBUSY", "EIO"),
    "symlink": ("ENOSPC", "EPERM", "EIO"),
    "symlinkat": ("ENOSPC", "EPERM", "EIO"),
    "readlink": ("EIO", "EACCES"),
    "readlinkat": ("EIO", "EACCES"),
    "flock": ("ENOLCK", "EINTR"),
    "newfstatat": ("EIO", "ENOMEM"),
    "fstat": ("EIO", "ENOMEM"),
    "statfs": ("EIO", "ENOMEM"),
    "fstatfs": ("EIO", "ENOMEM"),
    "getdents64": ("EIO",),
    "fsync": ("EIO", "ENOSPC"),
    "pidfd_open": ("EMFILE", "ENOMEM"),
    "bind": ("EACCES", "ENOSPC"),
    "chown": ("EPERM", "EIO"),
    "prlimit64": ("EPERM",),
    "mbind": ("EPERM", "ENOMEM", "EIO"),
}

_CREATES = re.compile(r"O_CREAT|O_TMPFILE")
_REGULAR = re.compile(r"^\d+</(?!dev/)")


def faults_of(call: Call) -> tuple[str, ...]:
    """What to try at a call, the kill first."""
    return (KILL, *_errors_of(call))


def _errors_of(call: Call) -> tuple[str, ...]:
    text = call.text
    if call.name == "openat" and _CREATES.search(text):
        return (*_ERRORS["openat"], "ENOSPC")
    if call.name in ("write", "writev", "pwrite64"):
        # To an eventfd, a socket or a pipe only the kill.
        return ("ENOSPC", "EIO", "EINTR") if _REGULAR.match(text) and ".log>" not in text else ()
    if call.name == "mmap":
        if "MAP_ANONYMOUS" in text:
            return ("ENOMEM",) if "MAP_NORESERVE" in text and "PROT_NONE" not in text else ()
        return ("ENOMEM", "EAGAIN")
    if call.name == "madvise":
        if "POPULATE" in text or "COLLAPSE" in text or re.search(r"0x19|0x17", text):
            return ("ENOMEM", "EAGAIN", "EBUSY", "EFAULT", "EINTR")
        return ("EINVAL",) if "HUGEPAGE" in text else ()
    if call.name == "fcntl":
        if "F_DUPFD" in text:
            return ("EMFILE",)
        if "F_SETLEASE" in text:
            return ("EAGAIN", "EACCES", "EINTR", "ENOLCK")
        if "LK" in text:
            return ("EAGAIN", "ENOLCK", "EINTR") if "F_SETLK" in text else ("ENOLCK", "EINTR")
        return ()
    if call.name == "ioctl":
        return () if "TCGETS" in text or "FIO" in text else ("ENOTTY", "EINTR", "ENOMEM")
    return _ERRORS.get(call.name, ())
