"""What other processes do with blocks of shared memory; they import it by its name."""

from __future__ import annotations

import numpy as np

import hugepool


def write_by_name(name: str, text: bytes) -> None:
    """Attach a block by its name, write its first bytes, and close it."""
    block = hugepool.SharedMemory(name)
    assert block.buf is not None
    block.buf[: len(text)] = text
    block.close()


def write_to(block: hugepool.SharedMemory, text: bytes) -> None:
    """Write the first bytes of a block that was passed, and close it."""
    assert block.buf is not None
    block.buf[: len(text)] = text
    block.close()


def total(block: hugepool.SharedMemory) -> tuple[float, int]:
    """The sum of a block as float64, and the bytes of it that are mapped huge here."""
    assert block.buf is not None
    return float(np.frombuffer(block.buf, "f8").sum()), block.pages.huge_bytes
