"""``.npz`` archives: their arrays and SciPy's matrices, a member at a time into shared memory."""

from __future__ import annotations

import io
import lzma
import os
import struct
import zipfile
import zlib
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from hugepool.npy_stream import NpyStream, Progress
from hugepool_common.errors import HugepoolError, InvalidMatrixError, InvalidSpecError
from hugepool_common.spec import ArraySpec

_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, RuntimeError),
    *(ValueError, TypeError, IndexError, OverflowError, MemoryError, lzma.LZMAError, struct.error),
)
"""What ``zipfile`` and NumPy raise over a damaged, encrypted or unknown kind of archive."""

_MOST_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""Bytes that a byte of an archive can stand for: deflate has 258 for two bits at best."""

_CSR_ROLES = ("indptr", "indices", "data")


class Archive:
    """An open ``.npz`` file. A context manager that closes it.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidSpecError
        It is no archive.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  closed by __exit__
        try:
            self._archive = zipfile.ZipFile(self._file)
        except _DAMAGED as error:
            self._file.close()
            raise InvalidSpecError(f"not a .npz file: {error}", where=path) from None

    @property
    def members(self) -> list[str]:
        """Names of the arrays."""
        names = self._archive.namelist()
        return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]

    @property
    def holds_csr(self) -> bool:
        """Whether it is a CSR matrix as SciPy saves it, whose members can be read one by one."""
        members = set(self.members)
        if not {*_CSR_ROLES, "shape"} <= members:
            return False
        return "format" not in members or self.small("format").tolist() in (b"csr", "csr")

    @property
    def holds_sparse(self) -> bool:
        """Whether it is a matrix of any format as SciPy saves it."""
        return "format" in self.members or self.holds_csr

    def small(self, member: str) -> np.ndarray[Any, Any]:
        """A member of a few bytes.

        Raises
        ------
        InvalidMatrixError
            It is large, or cannot be read.
        """
        try:
            info = self._archive.getinfo(f"{member}.npy")
            if info.file_size > 4096:
                raise ValueError(f"{info.file_size} bytes")
            with self._archive.open(info) as stream:
                content = io.BytesIO(stream.read(4096))
            NpyStream(content, info.file_size, member)  # NumPy makes room before it reads
            content.seek(0)
            return cast(
                "np.ndarray[Any, Any]", np.lib.format.read_array(content, allow_pickle=False)
            )
        except (*_DAMAGED, KeyError) as error:
            raise InvalidMatrixError(
                f"{member} cannot be read: {error}", where=self._path
            ) from None

    def read_into(
        self, member: str, array: np.ndarray[Any, Any], progress: Progress | None = None
    ) -> None:
        """Fill an array with a member, through no more than a chunk beside it.

        Raises
        ------
        InvalidSpecError
            The archive is damaged, or cut short.
        """
        with self._opened(member) as (stream, header):
            header.read_into(array, progress)
            if stream.read(1):  # what follows the data; at its end the checksum is compared
                raise InvalidSpecError(f"{member} is longer than its header says", where=self._path)

    def header(self, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of a member.

        Raises
        ------
        InvalidSpecError
            There is none of this name, or it is no array.
        """
        with self._opened(member) as (_, header):
            return header.shape, header.dtype

    def csr_spec(self, name: str) -> ArraySpec:
        """What the matrix is, from the members' headers alone.

        Raises
        ------
        InvalidMatrixError
            They contradict each other.
        InvalidSpecError
            No matrix can be like that.
        """
        shape = self.small("shape")
        if shape.shape != (2,) or shape.dtype.kind not in "iu":
            raise InvalidMatrixError("shape is no pair of integers", where=self._path)
        rows, columns = (int(extent) for extent in shape)
        found = {role: self.header(role) for role in _CSR_ROLES}
        for role, (extents, dtype) in found.items():
            if len(extents) != 1 or (role != "data" and dtype.kind not in "iu"):
                raise InvalidMatrixError(
                    f"{role} is not 1-D" if len(extents) != 1 else f"{role} is not of integers",
                    had=f"{extents} {dtype}",
                    where=self._path,
                )
        nnz = found["indices"][0][0]
        if min(rows, columns) < 0 or found["indptr"][0][0] != rows + 1:
            raise InvalidMatrixError(
                "indptr has the wrong length",
                needed=f"{rows + 1}",
                had=f"{found['indptr'][0][0]}",
                where=self._path,
            )
        if found["data"][0][0] != nnz:
            raise InvalidMatrixError(
                "indices and data differ in length",
                had=f"{nnz} and {found['data'][0][0]}",
                where=self._path,
            )
        index = "<i4" if max(rows, columns, nnz) < 2**31 else "<i8"
        spec = ArraySpec(name, (rows, columns), found["data"][1].str, "csr", nnz, index)
        return spec.checked()

    def read_csr(self, matrix: Any, progress: Progress | None = None) -> None:
        """Fill the three arrays of a matrix of :meth:`csr_spec`; its seal checks the structure.

        Raises
        ------
        InvalidMatrixError
            The archive is damaged, or a value cannot be an index.
        """
        total = sum(getattr(matrix, role).nbytes for role in _CSR_ROLES)
        done = 0
        try:
            for role in _CSR_ROLES:
                array = getattr(matrix, role)
                base = done

                def on_part(part: int, whole: int, base: int = base, n: int = array.nbytes) -> None:
                    if progress is not None:
                        progress(base + n * part // max(whole, 1), total)

                self.read_into(role, array, on_part)
                done += array.nbytes
        except InvalidSpecError as error:
            raise InvalidMatrixError(f"no matrix can be read: {error}", where=self._path) from None

    def _opened(self, member: str) -> _OpenMember:
        return _OpenMember(self._archive, member, f"{self._path}: {member}")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()
        self._file.close()


class _OpenMember:
    """A member that is being read; what is wrong with the archive becomes our error."""

    def __init__(self, archive: zipfile.ZipFile, member: str, where: str) -> None:
        self._archive = archive
        self._member = member
        self._where = where

    def __enter__(self) -> tuple[BinaryIO, NpyStream]:
        try:
            info = self._archive.getinfo(f"{self._member}.npy")
        except KeyError:
            raise InvalidSpecError(
                f"the file holds no {self._member!r}", where=self._where
            ) from None
        try:
            self._check_length(info)
            self._stream: BinaryIO = cast("BinaryIO", self._archive.open(info))
            try:
                return self._stream, NpyStream(self._stream, info.file_size, self._where)
            except BaseException:
                self._stream.close()
                raise
        except _DAMAGED as error:
            raise self._told(error) from None

    def _check_length(self, info: zipfile.ZipInfo) -> None:
        """Refuse a length that cannot be, before room is made for so much."""
        ratio = _MOST_RATIOS.get(info.compress_type)
        if ratio is not None and info.file_size > ratio * info.compress_size:
            raise zipfile.BadZipFile(
                f"{info.file_size} bytes cannot be in {info.compress_size} of the file"
            )
        assert self._archive.fp is not None
        size = os.fstat(self._archive.fp.fileno()).st_size
        if info.header_offset + info.compress_size > size:
            raise zipfile.BadZipFile("a member reaches beyond the end of the file")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        if isinstance(error, _DAMAGED):
            raise self._told(error) from None

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, HugepoolError):
            return error
        return InvalidSpecError(f"the archive is damaged: {error}", where=self._where)
