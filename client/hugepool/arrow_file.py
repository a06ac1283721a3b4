"""Arrow and Feather files: a column, one record batch at a time, into an array and out of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from hugepool.npy_stream import CHUNK_BYTES, Progress
from hugepool_common.errors import InvalidSpecError, MissingExtraError
from hugepool_common.spec import ITEM_SIZES


def import_arrow(what: str) -> Any:
    """``pyarrow``, or the error that names the extra.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise MissingExtraError(
            f"{what} needs pyarrow", remedy="pip install 'hugepool[arrow]'"
        ) from None
    return pyarrow


class ArrowFile:
    """An open Arrow IPC file, which Feather (version 2) is too. A context manager.

    It is read, not mapped: a file that is cut short meanwhile is an error, where a mapping of
    it would end the process. One record batch is in memory beside the array.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidSpecError
        No such file.
    MissingExtraError
        pyarrow is not installed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        os.stat(path)  # FileNotFoundError as everywhere in Python
        self._arrow = import_arrow("reading Arrow files")
        self._errors = (self._arrow.ArrowException, OSError, ValueError)
        try:
            self._file = self._arrow.OSFile(path)
            try:
                self._reader = self._arrow.ipc.open_file(self._file)
                self._names: list[str] = self._reader.schema.names  # all that are UTF-8
            except BaseException:
                self._file.close()
                raise
        except self._errors as error:
            raise InvalidSpecError(f"not an Arrow file: {error}", where=path) from None

    @property
    def members(self) -> list[str]:
        """Names of the columns."""
        return list(self._names)

    def header(self, member: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype code of a column; the rows of all batches are counted.

        Raises
        ------
        InvalidSpecError
            Its type is none that can be shared.
        """
        schema = self._reader.schema
        kind = schema.field(self._names.index(member)).type
        try:
            code = np.dtype(kind.to_pandas_dtype()).str
            numeric = self._arrow.types.is_primitive(kind) and not self._arrow.types.is_temporal(
                kind
            )
        except NotImplementedError:
            code, numeric = "", False
        if not numeric or code not in ITEM_SIZES:
            raise InvalidSpecError(
                f"column {member!r} is not of numbers that can be shared",
                had=str(kind)[:80],
                where=self._path,
            )
        return (sum(len(batch) for batch in self._batches(member)),), code

    def read_into(
        self, member: str, array: np.ndarray[Any, Any], progress: Progress | None = None
    ) -> None:
        """Fill an array of the column's length and dtype.

        Raises
        ------
        InvalidSpecError
            A value is missing, or the file is damaged or has changed.
        """
        done = 0
        for batch in self._batches(member):
            column = batch.column(0)
            if column.null_count:
                raise InvalidSpecError(
                    f"column {member!r} has values that are missing",
                    needed="none",
                    had=f"{column.null_count} of {len(column)}",
                    where=self._path,
                )
            if done + len(column) > len(array):
                raise InvalidSpecError("the file became longer", where=self._path)
            array[done : done + len(column)] = column.to_numpy(zero_copy_only=False)
            done += len(column)
            if progress is not None:
                progress(done * array.itemsize, array.nbytes)
        if done != len(array):
            raise InvalidSpecError("the file became shorter", where=self._path)

    def _batches(self, member: str) -> Iterator[Any]:
        """The batches of one column, each checked against its own buffers."""
        ipc = self._arrow.ipc
        place = self._names.index(member)
        try:
            with self._arrow.OSFile(self._path) as file:
                options = ipc.IpcReadOptions(included_fields=[place])
                reader = ipc.open_file(file, options=options)
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    batch.validate()
                    yield batch
        except self._errors as error:
            if isinstance(error, InvalidSpecError):
                raise
            raise InvalidSpecError(
                f"the Arrow file is damaged: {error}", where=self._path
            ) from None

    def __enter__(self) -> ArrowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_arrow(
    output: BinaryIO, name: str, array: np.ndarray[Any, Any], progress: Progress
) -> None:
    """Write an array as the only column of an Arrow file, in batches over its own memory.

    Raises
    ------
    InvalidSpecError
        It has several axes, or a dtype that Arrow lacks.
    """
    arrow = import_arrow("writing Arrow files")
    if array.ndim != 1 or array.dtype.kind == "c":
        raise InvalidSpecError(
            f"{name!r} is no column of an Arrow file",
            needed="one axis, and no complex numbers",
            had=f"{array.ndim} axes of {array.dtype}",
            remedy="write it to a .npy file",
        )
    kind = arrow.from_numpy_dtype(array.dtype)
    schema = arrow.schema([arrow.field(name, kind, nullable=False)])
    rows = max(1, CHUNK_BYTES // array.itemsize)
    with arrow.ipc.new_file(arrow.PythonFile(output, mode="w"), schema) as writer:
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            writer.write_batch(arrow.record_batch([arrow.array(part)], schema=schema))
            progress((start + len(part)) * array.itemsize, array.nbytes)
