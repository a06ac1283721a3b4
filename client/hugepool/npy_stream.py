"""One ``.npy`` stream, of a file or of a member of an archive, straight into an array."""

from __future__ import annotations

import io
import struct
import tokenize
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from hugepool_common.errors import InvalidMatrixError, InvalidSpecError
from hugepool_common.spec import MAX_DIMENSIONS, MAX_EXTENT

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

CHUNK_BYTES = 2 << 20
"""Bytes read at once: the most that a conversion, or a decompressor, holds beside the array."""


_MAX_HEADER = 65_536  # bytes; NumPy itself reads no more than 10 000
_READERS: dict[tuple[int, int], tuple[struct.Struct, Callable[[BinaryIO], Any]]] = {
    (1, 0): (struct.Struct("<H"), np.lib.format.read_array_header_1_0),
    (2, 0): (struct.Struct("<I"), np.lib.format.read_array_header_2_0),
}
_BAD_HEADER = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, struct.error),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
)
"""What NumPy, and Python's own parser behind it, raise over a header that is none."""


def read_whole(
    file: BinaryIO, target: memoryview, where: str, progress: Progress | None = None
) -> None:
    """Fill a buffer from a file, a chunk at a time.

    Raises
    ------
    InvalidSpecError
        The file ends before the buffer does.
    """
    done = 0
    while done < len(target):
        count = file.readinto(target[done : done + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise InvalidSpecError(
                "the file is cut short",
                needed=f"{len(target)} bytes of data",
                had=f"{done}",
                where=where,
            )
        done += count
        if progress is not None:
            progress(done, len(target))


def byte_view(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


class NpyStream:
    """A ``.npy`` stream whose header was read; its data not yet.

    Parameters
    ----------
    file
        At the beginning of the stream; stays the caller's.
    nbytes
        How long the stream is.
    where
        For messages.

    Attributes
    ----------
    shape, dtype
        Of the array.

    Raises
    ------
    InvalidSpecError
        No ``.npy`` stream, or shorter than its header says.
    """

    def __init__(self, file: BinaryIO, nbytes: int, where: str) -> None:
        self._file = file
        self._where = where
        try:
            self.shape, fortran, self.dtype = _read_header(file)
        except _BAD_HEADER as error:
            told = " ".join(str(error).split())[:200]
            raise InvalidSpecError(f"not a .npy file: {told}", where=where) from None
        self._fortran = fortran and len(self.shape) > 1
        needed = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        had = nbytes - file.tell()
        if had < needed:
            raise InvalidSpecError(
                "the file is cut short",
                needed=f"{needed} bytes of data",
                had=f"{had}",
                where=where,
            )

    def read_into(self, array: np.ndarray[Any, Any], progress: Progress | None = None) -> None:
        """Fill a C-ordered array of this shape; of another dtype if it holds every value.

        Raises
        ------
        InvalidSpecError
            The stream ends too early.
        InvalidMatrixError
            The array's dtype has no such value.
        """
        if self._fortran:
            # The stream is the transpose in C order.
            self._read_converted(array.T, progress)
        elif array.dtype != self.dtype:
            self._read_converted(array, progress)
        else:
            read_whole(self._file, byte_view(array), self._where, progress)

    def _read_converted(self, target: np.ndarray[Any, Any], progress: Progress | None) -> None:
        """Fill an array of any order and dtype in the order of its indices."""
        count = max(1, CHUNK_BYTES // self.dtype.itemsize)
        chunk = np.empty(min(count, target.size), self.dtype)
        flat = target.reshape(-1) if target.flags.c_contiguous else target.flat
        for start in range(0, target.size, count):
            part = chunk[: min(count, target.size - start)]
            read_whole(self._file, byte_view(part), self._where)
            converted = part.astype(target.dtype, copy=False)
            if converted is not part and not np.array_equal(converted, part):
                raise InvalidMatrixError(
                    f"a value does not fit {target.dtype}",
                    had=f"{part[converted != part][0]}",
                    where=self._where,
                )
            flat[start : start + len(part)] = converted
            if progress is not None:
                progress((start + len(part)) * self.dtype.itemsize, target.size * part.itemsize)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is of Fortran order, and dtype."""
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"version {version} is not known")
    size, reader = _READERS[version]
    start = file.read(size.size)
    (length,) = size.unpack(start)
    if length > _MAX_HEADER:  # NumPy reads it all before it looks how long it is
        raise ValueError(f"a header of {length} bytes")
    shape, fortran, dtype = reader(io.BytesIO(start + file.read(length)))
    if len(shape) > MAX_DIMENSIONS or not all(0 <= extent <= MAX_EXTENT for extent in shape):
        raise ValueError("no array has such a shape")
    return shape, fortran, dtype
