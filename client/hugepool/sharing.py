"""The operands of one call: found by name, shared for as long as it lasts, or made for it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hugepool.array import SharedArray, SharedObject
from hugepool.channel import Channel
from hugepool.matrix import SharedMatrix
from hugepool.store import ArrayStore
from hugepool_common.errors import ArrayNotFoundError, InvalidSpecError
from hugepool_common.spec import ArraySpec, HugePages, PageSize

_INDEX_CODES = ("<i4", "<i8", "<u4", "<u8")


class OperandStore(ArrayStore):
    """A session that takes handles, names and plain arrays alike.

    Parameters
    ----------
    channel
        The open session.
    huge_pages, page_size
        Policy of arrays that state none of their own, results among them.
    """

    def __init__(self, channel: Channel, huge_pages: HugePages, page_size: PageSize) -> None:
        super().__init__(channel, huge_pages, page_size)
        self._temporary = itertools.count(1)

    def _spec(self, operand: SharedObject | str) -> ArraySpec:
        if isinstance(operand, SharedObject):
            return operand.spec
        if not isinstance(operand, str):
            raise InvalidSpecError(
                "the operand is neither a handle nor a name",
                had=type(operand).__name__,
                remedy="share it with pool.put first",
            )
        return self.describe(operand).array.spec

    @contextmanager
    def _shared(
        self, operand: SharedArray | str | np.ndarray[Any, Any], role: str
    ) -> Iterator[tuple[SharedArray | str, ArraySpec]]:
        """An operand and its spec; a plain ndarray is shared for as long as this lasts."""
        if isinstance(operand, (str, SharedObject)):
            yield operand, self._spec(operand)
            return
        shared = self.put(self._temporary_name(role), operand, temporary=True)
        try:
            with shared:
                yield shared, shared.spec
        finally:
            self.discard(shared)

    def _temporary_name(self, role: str) -> str:
        return f"{role}-{os.getpid()}-{self._channel.welcome.session}-{next(self._temporary)}"

    @contextmanager
    def _output(
        self,
        out: SharedArray | str | None,
        shape: tuple[int, ...],
        dtype: str,
        inputs: tuple[ArraySpec, ...],
    ) -> Iterator[SharedArray]:
        """The array to write; one that is made here is removed again if the job fails."""
        made = None
        if isinstance(out, SharedArray):
            result = out
        elif out is None:
            result = made = self.create(self._temporary_name("out"), shape, dtype, temporary=True)
            result.destroy_with_handle()
        elif isinstance(out, str):
            try:
                result = self.attach(out, readonly=False)
            except ArrayNotFoundError:
                result = made = self.create(out, shape, dtype)
        else:
            raise InvalidSpecError(
                "out is neither a handle nor a name",
                had=type(out).__name__,
                remedy="make it with pool.create, or give a name",
            )
        if result.name in [spec.name for spec in inputs]:
            raise InvalidSpecError("the output may not be an input too", where=result.name)
        if result.spec.kind != "array" or (result.shape, result.spec.dtype) != (shape, dtype):
            raise InvalidSpecError(
                "the output array does not fit",
                needed=f"{shape} {dtype}",
                had=f"{result.shape} {result.spec.dtype}",
                where=result.name,
            )
        try:
            yield result
        except BaseException:
            if made is not None and out is not None:
                self.discard(made)
            raise

    @contextmanager
    def _spare(self, role: str, shape: tuple[int, ...], dtype: str) -> Iterator[SharedArray]:
        """An array that is gone when this ends."""
        spare = self.create(self._temporary_name(role), shape, dtype, temporary=True)
        try:
            yield spare
        finally:
            self.discard(spare)

    def _matrix_handle(self, A: SharedMatrix | str) -> SharedMatrix:
        matrix = self.attach(A) if isinstance(A, str) else A
        if not isinstance(matrix, SharedMatrix):
            raise InvalidSpecError(
                "A is no shared matrix",
                needed="a SharedMatrix or its name",
                had=repr(matrix)[:80],
                remedy="share a SciPy matrix with pool.put first",
            )
        return matrix


def as_indices(idx: Any) -> Any:
    """Indices as kernels take them; handles and names stay as they are.

    NumPy indexes with every integer dtype in either byte order, and with ``[]``.

    Parameters
    ----------
    idx
        Anything that NumPy makes an array of.
    """
    if isinstance(idx, (str, SharedObject)):
        return idx
    array = np.asarray(idx)
    if array.size == 0 and array.dtype == np.float64 and not isinstance(idx, np.ndarray):
        return array.astype(np.int64)
    if array.dtype.kind in "iu" and array.dtype.str not in _INDEX_CODES:
        return array.astype(np.int64)
    return array
