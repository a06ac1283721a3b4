"""The small files in which the kernel tells about itself: ``/proc``, ``/sys``, control groups."""

from __future__ import annotations

import os

_CHUNK = 1 << 16


def read_kernel_file(path: str) -> str:
    """The text of a file; empty where it cannot be read.

    Bytes that are no UTF-8 become surrogates, as :func:`os.fsdecode` makes them.
    """
    # Not by open(): its buffer and decoder cost several times what the file does.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        chunks = []
        while chunk := os.read(fd, _CHUNK):
            chunks.append(chunk)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return b"".join(chunks).decode("utf-8", "surrogateescape")
