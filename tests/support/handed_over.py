"""What other processes do with handles that are passed to them; they import it by its name."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def span(array: Any) -> tuple[int, int]:
    """First address of an ndarray's bytes, and the one behind its last."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)


def mapped(handle: Any) -> tuple[int, int]:
    """Where a handle's mapping lies in this process, as the kernel tells of its file."""
    path = handle.info.segment.path
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps]
    spans = [
        [int(end, 16) for end in line[0].split("-")]
        for line in lines
        if len(line) > 5 and line[5] == path
    ]
    ours = [
        (low, high) for low, high in spans if low <= span(whole(handle))[0] < high
    ]  # of several mappings of the same file, this handle's
    assert len(ours) == 1, spans
    return ours[0]


def whole(handle: Any) -> Any:
    """An ndarray of a handle: its array, or the values of a matrix."""
    return handle.array if handle.spec.kind == "array" else handle.data


def inside(handle: Any, low: int, high: int) -> bool:
    """Whether addresses lie within the mapping of a handle in this process."""
    begin, end = mapped(handle)
    return begin <= low <= high <= end and high > low


def look(handle: Any) -> dict[str, Any]:
    """What a receiver sees of a handle, and how it is mapped there."""
    array = whole(handle)
    return {
        "pid": os.getpid(),
        "kind": type(handle).__name__,
        "sum": float(array.sum()),
        "inside": inside(handle, *span(array)),
        "huge": handle.pages.huge_bytes,
        "length": handle.pages.length,
        "writable": handle.writable,
    }


def look_and_tell(handle: Any, answers: Any) -> None:
    """:func:`look` for a bare process, which detaches as well."""
    answers.put(look(handle))
    handle.detach()


def write_one(handle: Any, row: int, value: float) -> int:
    """Write one element of an array that is open."""
    handle.array[row] = value
    return os.getpid()


def multiply(matrix: Any, vector: Any) -> float:
    """The sum of a product."""
    return float((matrix.as_scipy() @ vector.array).sum())
