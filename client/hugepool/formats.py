"""Files into shared memory: arrays straight into the mapping, matrices as checked arrays."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np

from hugepool.archive import Archive
from hugepool.arrow_file import ArrowFile
from hugepool.matrix import CsrSource, import_sparse
from hugepool.npy_stream import NpyStream, Progress
from hugepool.tensor_file import TensorFile
from hugepool_common.errors import (
    HugepoolError,
    InvalidMatrixError,
    InvalidSpecError,
    NotEnoughMemoryError,
)

_DAMAGED = (
    *(ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError),
    *(OSError, EOFError, zlib.error, lzma.LZMAError, struct.error, zipfile.BadZipFile),
    *(RuntimeError, AttributeError, SyntaxError, tokenize.TokenError),
)
"""What NumPy's and SciPy's readers and the decompressors raise over a damaged file."""

_TEXT_ENDINGS = (".mtx", ".mtx.gz", ".mtx.bz2")

ENDINGS = (".npy", ".npz", ".safetensors", ".arrow", ".feather", *_TEXT_ENDINGS)
"""How the files are named that can be read."""


def is_matrix_file(path: str) -> bool:
    """Whether the file's name says that it holds, or may hold, a sparse matrix."""
    return is_text_matrix(path) or path.lower().endswith(".npz")


def is_text_matrix(path: str) -> bool:
    """Whether the file's name says that it is a Matrix Market file."""
    return path.lower().endswith(_TEXT_ENDINGS)


class NpyFile:
    """An open ``.npy`` file, which holds one array and no name for it. A context manager.

    Raises
    ------
    InvalidSpecError
        No ``.npy`` file, or shorter than its header says.
    """

    members = ("",)

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  closed by __exit__
        try:
            self._stream = NpyStream(self._file, os.fstat(self._file.fileno()).st_size, path)
        except BaseException:
            self._file.close()
            raise

    def header(self, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype."""
        return self._stream.shape, self._stream.dtype

    def read_into(
        self, member: str, array: np.ndarray[Any, Any], progress: Progress | None = None
    ) -> None:
        """Fill a C-ordered array of this shape and dtype, a chunk at a time."""
        self._stream.read_into(array, progress)

    def __enter__(self) -> NpyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class ArrayFile(Protocol):
    """An open file of arrays, each of which can be read straight into an array."""

    @property
    def members(self) -> Sequence[str]:
        """Names of its arrays."""

    def header(self, member: str) -> tuple[tuple[int, ...], Any]:
        """Shape and dtype of one."""

    def read_into(
        self, member: str, array: np.ndarray[Any, Any], progress: Progress | None = None
    ) -> None:
        """Fill an array of this shape and dtype."""

    def __enter__(self) -> ArrayFile: ...

    def __exit__(self, *_: object) -> None: ...


def open_arrays(path: str) -> ArrayFile:
    """A file of arrays, by its ending; what has no known one is taken for ``.npy``.

    Raises
    ------
    FileNotFoundError
        No such file.
    InvalidSpecError
        It does not hold what its ending says.
    MissingExtraError
        Arrow files need pyarrow.
    """
    check_regular(path)
    ending = os.path.splitext(path.lower())[1]
    try:
        return _ARRAY_FILES.get(ending, NpyFile)(path)
    except InvalidSpecError as error:
        if ending in _ARRAY_FILES or ending == ".npy":
            raise
        raise InvalidSpecError(
            f"the ending {ending!r} is not known, and the file is no .npy file either",
            needed=f"a file named {' '.join(ENDINGS)}",
            where=path,
        ) from error


def check_regular(path: str) -> None:
    """Refuse what cannot be read more than once, or from anywhere: a pipe, a device.

    Raises
    ------
    FileNotFoundError
        There is nothing of this name.
    IsADirectoryError
        It is a directory.
    InvalidSpecError
        It is no file.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise InvalidSpecError(
            "only a regular file can be read into shared memory, no pipe and no device",
            where=path,
            remedy="write the data to a file first",
        )


def chosen(file: ArrayFile, member: str | None, path: str) -> str:
    """The member that was asked for, or the only one.

    Raises
    ------
    InvalidSpecError
        There is none, or nobody said which.
    """
    if member is None and len(file.members) == 1:
        return file.members[0]
    if member is not None and member and list(file.members).count(member) == 1:
        return member
    if not file.members:
        raise InvalidSpecError("the file holds no array", where=path)
    shown = ", ".join(name[:40] for name in file.members[:20]) or "none"
    raise InvalidSpecError(
        f"the file holds no single array {member!r}" if member else "which of its arrays?",
        needed="one of its names",
        had=shown,
        where=path,
        remedy="" if file.members == NpyFile.members else "name one with member=",
    )


_ARRAY_FILES: dict[str, Callable[[str], ArrayFile]] = {
    ".npz": Archive,
    ".safetensors": TensorFile,
    ".arrow": ArrowFile,
    ".feather": ArrowFile,
}


def read_matrix(path: str, progress: Progress | None = None) -> CsrSource:
    """Read ``.mtx``, ``.mtx.gz``, ``.mtx.bz2`` or SciPy's ``.npz`` as checked CSR.

    A Matrix Market *pattern* becomes ones in float64; symmetric storage is expanded.

    Parameters
    ----------
    path
        The file.
    progress
        Called with the bytes of a Matrix Market file that were read.

    Raises
    ------
    InvalidMatrixError
        The file holds no matrix, or a contradictory one.
    MissingExtraError
        ``.mtx`` needs SciPy.
    """
    check_regular(path)
    try:
        if path.lower().endswith(".npz"):
            return _read_npz(path)
        import_sparse("reading Matrix Market files")
        from scipy.io import mminfo, mmread

        with _opened_text(path, None) as text:
            rows, columns, _, layout, _, _ = mminfo(text)
        if layout == "array" and not rows * columns:  # SciPy's parser divides by the rows
            return csr_source(np.zeros((rows, columns)))
        with _opened_text(path, progress) as text:
            return csr_source(mmread(text, spmatrix=False))
    except HugepoolError:
        raise
    except _DAMAGED as error:
        raise InvalidMatrixError(f"no matrix can be read: {error}", where=path) from None


class _CountedReader(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file = file
        self._progress = progress
        self._total = os.fstat(file.fileno()).st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        if self._progress is not None:
            self._progress(self._file.tell(), self._total)
        return count


class _TextReader:
    """Text as SciPy's parser may see it, whose C++ code has no bounds.

    A zero byte in a line, or something behind the last number of a file that does not end with
    an end of line, would have it read beyond its buffer.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._last = b"\n"

    def read(self, count: int) -> bytes:
        piece = self._file.read(count)
        if b"\0" in piece:
            raise ValueError("it is no text: it has a byte that is zero")
        if not piece and self._last != b"\n":
            piece = b"\n"
        self._last = piece[-1:] or self._last
        return piece


@contextmanager
def _opened_text(path: str, progress: Progress | None) -> Iterator[Any]:
    with open(path, "rb") as file:
        counted = _CountedReader(file, progress)
        opened = _OPENERS.get(os.path.splitext(path.lower())[1], io.BufferedReader)
        with opened(counted) as text:
            yield _TextReader(text)


_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open}


def _read_npz(path: str) -> CsrSource:
    # An open file: given a path, NumPy leaves the file open when the archive is damaged.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        missing = {"indptr", "indices", "data", "shape"} - set(archive.files)
        if not missing:
            kind = archive["format"].item() if "format" in archive.files else b"csr"
            if kind in (b"csr", "csr"):
                rows, columns = (int(extent) for extent in archive["shape"])
                return CsrSource.checked(
                    archive["indptr"], archive["indices"], archive["data"], (rows, columns)
                )
    # another sparse format, which SciPy knows how to turn into CSR
    with open(path, "rb") as file:
        return csr_source(import_sparse("reading this .npz file").load_npz(file))


def csr_source(matrix: Any) -> CsrSource:
    """Checked CSR arrays of a SciPy sparse matrix or array of any format, or of a 2-D ndarray.

    Raises
    ------
    InvalidMatrixError
        It is no matrix, or its structure contradicts itself.
    """
    if isinstance(matrix, np.ndarray):
        matrix = import_sparse("a dense matrix file").csr_array(matrix)
    if not hasattr(matrix, "tocsr"):
        raise InvalidMatrixError(
            f"{type(matrix).__name__} is no sparse matrix", needed="a scipy.sparse matrix or array"
        )
    if len(matrix.shape) != 2:
        raise InvalidMatrixError("a matrix has two axes", had=f"shape {matrix.shape}")
    try:
        _check_before_conversion(matrix)
        csr = matrix.tocsr() if matrix.format != "csr" else matrix
    except MemoryError as error:
        raise NotEnoughMemoryError(
            "the matrix does not fit in memory as CSR",
            needed=f"{matrix.shape[0] + 1} row starts and {matrix.nnz} entries",
            had=str(error),
        ) from None
    # SciPy allows room behind the last entry.
    used = int(csr.indptr[-1]) if len(csr.indptr) else 0
    spare = 0 <= used < len(csr.indices)
    return CsrSource.checked(
        csr.indptr,
        csr.indices[:used] if spare else csr.indices,
        csr.data[:used] if spare else csr.data,
        csr.shape,
    )


def _check_before_conversion(matrix: Any) -> None:
    """SciPy's conversions trust the structure: a bad one would be a fault in its C++ code."""
    try:
        if matrix.format in ("csc", "bsr"):
            matrix.check_format(full_check=True)
        elif matrix.format == "coo" and matrix.nnz:
            for coordinate, extent in zip((matrix.row, matrix.col), matrix.shape, strict=True):
                if not 0 <= int(coordinate.min()) <= int(coordinate.max()) < extent:
                    raise ValueError("a coordinate is out of range")
    except ValueError as error:
        raise InvalidMatrixError(f"the {matrix.format} structure is bad: {error}") from None


def is_sparse(value: object) -> bool:
    """Whether a value is a SciPy sparse matrix or array, told without importing SciPy."""
    return hasattr(value, "tocsr") and hasattr(value, "nnz")
