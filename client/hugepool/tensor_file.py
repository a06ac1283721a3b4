"""safetensors: a length, a JSON header, and tensors that stream straight into an array.

The format's own library makes arrays of its own, which would be a second copy. The header is
read here, with every fact of it checked before anything is made.
"""

from __future__ import annotations

import json
import math
import os
import struct
from typing import Any, BinaryIO

import numpy as np

from hugepool.npy_stream import Progress, byte_view, read_whole
from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import ITEM_SIZES, MAX_DIMENSIONS

DTYPES = {
    "BOOL": "|b1",
    "I8": "|i1",
    "U8": "|u1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "I64": "<i8",
    "U64": "<u8",
    "F64": "<f8",
    "C64": "<c8",
}
"""The format's names of dtypes, and ours. It has no complex128; NumPy has no BF16 or F8."""

_MAX_HEADER = 100_000_000  # bytes, as the format's own library allows
_LENGTH = struct.Struct("<Q")


class TensorFile:
    """An open safetensors file whose header was read. A context manager that closes it.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidSpecError
        No such file, or shorter or longer than its header says.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  closed by __exit__
        try:
            self._tensors = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            raise self._bad("it is too short for one")
        (length,) = _LENGTH.unpack(start)
        if length > min(_MAX_HEADER, size - _LENGTH.size):
            raise self._bad(f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(self._file.read(length), object_pairs_hook=_no_twins)
        except (ValueError, RecursionError) as error:
            raise self._bad(f"its header is no JSON: {error}") from None
        if not isinstance(header, dict):
            raise self._bad("its header is no JSON object")
        header.pop("__metadata__", None)
        self._base = _LENGTH.size + length
        tensors = {name: self._tensor(name, facts) for name, facts in header.items()}
        end = 0
        for _, _, begin, stop in sorted(tensors.values(), key=lambda facts: facts[2:]):
            if begin != end:
                raise self._bad("its tensors overlap, or leave holes")
            end = stop
        if self._base + end != size:
            raise InvalidSpecError(
                "the file is cut short" if self._base + end > size else "the file is too long",
                needed=f"{self._base + end} bytes",
                had=f"{size}",
                where=self._path,
            )
        return tensors

    def _tensor(self, name: str, facts: Any) -> tuple[str, tuple[int, ...], int, int]:
        try:
            dtype, shape, (begin, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
            numbers = [*shape, begin, end]
            # Bounded before they are multiplied or told: JSON has numbers of any length.
            if type(dtype) is not str or len(shape) > MAX_DIMENSIONS:
                raise TypeError
            if any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
                raise TypeError
        except (TypeError, KeyError, ValueError):
            raise self._bad(f"{name[:80]!r} is not described as a tensor") from None
        code = DTYPES.get(dtype, "")
        if begin > end or (code and math.prod(shape) * ITEM_SIZES[code] != end - begin):
            raise self._bad(f"{name[:80]!r} is not as long as its shape says")
        return dtype, tuple(shape), begin, end

    def _bad(self, why: str) -> InvalidSpecError:
        return InvalidSpecError(f"not a safetensors file: {why}", where=self._path)

    @property
    def members(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def header(self, member: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype code of a tensor.

        Raises
        ------
        InvalidSpecError
            Its dtype is one that NumPy lacks.
        """
        dtype, shape, _, _ = self._tensors[member]
        if dtype not in DTYPES:
            raise InvalidSpecError(
                f"tensor {member!r} has a dtype that cannot be shared",
                needed=" ".join(DTYPES),
                had=dtype[:40],
                where=self._path,
                remedy="convert it with the library that wrote it, such as to F32 or U16",
            )
        return shape, DTYPES[dtype]

    def read_into(
        self, member: str, array: np.ndarray[Any, Any], progress: Progress | None = None
    ) -> None:
        """Fill an array of the tensor's shape and dtype.

        Raises
        ------
        InvalidSpecError
            The file has become shorter.
        """
        self._file.seek(self._base + self._tensors[member][2])
        read_whole(self._file, byte_view(array), self._path, progress)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def tensor_header(name: str, code: str, shape: tuple[int, ...], nbytes: int) -> bytes:
    """What a safetensors file of one tensor has before the data, 8-byte aligned.

    Raises
    ------
    InvalidSpecError
        The format has no such dtype.
    """
    names = {ours: theirs for theirs, ours in DTYPES.items()}
    if code not in names:
        raise InvalidSpecError(
            f"safetensors has no {np.dtype(code)}", remedy="write it to a .npy file"
        )
    facts = {"dtype": names[code], "shape": shape, "data_offsets": (0, nbytes)}
    text = json.dumps({name: facts}).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text
