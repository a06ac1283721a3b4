"""Files of a user that are read whole, and so must be small: settings, the results of a run."""

from __future__ import annotations

import os
import stat

from hugepool_common.errors import InvalidSpecError
from hugepool_common.units import format_bytes

_NULL = os.makedev(1, 3)


def read_small_file(path: str, most_bytes: int) -> bytes:
    """The content of a file; ``/dev/null`` is an empty one.

    Raises
    ------
    InvalidSpecError
        It is a device, a pipe or a socket, which may never end; or it is too large.
    OSError
        It cannot be opened or read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait to be opened
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            return file.read()  # which says so
        if not stat.S_ISREG(found.st_mode) and found.st_rdev != _NULL:
            raise InvalidSpecError("this is no regular file", where=path)
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise InvalidSpecError(
            "the file is too large to be one of ours",
            needed=f"at most {format_bytes(most_bytes)}",
            where=path,
        )
    return content
