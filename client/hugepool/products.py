"""Products of shared matrices, each computed once by worker processes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from hugepool import partition
from hugepool.array import SharedArray, SharedObject
from hugepool.channel import Channel
from hugepool.jobs import JobRunner
from hugepool.matrix import SharedMatrix
from hugepool.sharing import OperandStore
from hugepool.timings import JobTimings
from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import HugePages, PageSize

CUT_ROWS_ABOVE = 1.25
"""Rows are cut where the largest part would otherwise have so many times a fair share of work."""

CUT_ROWS_ENTRIES = 1 << 20
"""And so many entries more than that share: fewer take less time than another job."""

_CutKey: TypeAlias = tuple[int, str]
_Cut: TypeAlias = tuple[SharedArray, SharedArray]


def pays_to_cut(indptr: np.ndarray[Any, Any], rows: Sequence[int]) -> bool:
    """Whether parts with these bounds are so uneven that rows are better cut."""
    ratio, entries = partition.excess(indptr, rows)
    return ratio > CUT_ROWS_ABOVE and entries >= CUT_ROWS_ENTRIES


def parts_of_transposed(matrix: SharedMatrix, workers: int) -> int:
    """Parts of a product with the transpose: no more than entries to a column.

    Each has a result of its own, and to add more of them would take longer.
    """
    return max(1, min(workers, matrix.nnz // max(matrix.shape[1], 1)))


def refuse_complex(dtype: str) -> None:
    """Refuse a product with the transpose of which it is not clear whether it conjugates.

    Raises
    ------
    InvalidSpecError
        The result would be complex.
    """
    if np.dtype(dtype).kind == "c":
        raise InvalidSpecError(
            "rmatvec is for real numbers",
            had=dtype,
            remedy="share A.T.tocsr() or A.conj().T.tocsr(), whichever is meant",
        )


class Products(OperandStore):
    """What a session can multiply its matrices with; :class:`hugepool.Pool` is one.

    Parameters
    ----------
    channel
        The open session.
    huge_pages, page_size
        Policy of arrays that state none of their own, results among them.
    """

    def __init__(self, channel: Channel, huge_pages: HugePages, page_size: PageSize) -> None:
        super().__init__(channel, huge_pages, page_size)
        self._jobs = JobRunner(channel)
        self._cuts: weakref.WeakKeyDictionary[SharedMatrix, dict[_CutKey, _Cut]] = (
            weakref.WeakKeyDictionary()
        )
        self._cutting = threading.Lock()

    def matvec(
        self,
        A: SharedMatrix | str,
        x: SharedArray | str | np.ndarray[Any, Any],
        out: SharedArray | str | None = None,
        *,
        workers: int | None = None,
        implementation: str = "auto",
    ) -> SharedArray:
        """``out[:] = A @ x`` on worker processes, rows split so that each has equally many entries.

        Equal to SciPy's result bit for bit, but for a row that is cut: where one row
        makes a worker's part larger than 1.25 fair shares, several compute it. Such a row of
        n entries is off by at most ``n u / (1 - n u) * sum |a x|``, u being half the dtype's
        ``eps``.

        Parameters
        ----------
        A
            Handle or name of a CSR matrix.
        x
            Vector of ``A.shape[1]`` elements; an ndarray is shared for the call.
        out
            Handle or name of the result, ``A.shape[0]`` elements of the common dtype of
            A and x; made when there is none of that name. With None the result has a
            name of its own and is destroyed with its last handle.
        workers
            How many; missing ones are started. Default: all that are registered.

        Returns
        -------
        SharedArray
            The result, with ``timings``.

        Raises
        ------
        InvalidSpecError
            Shapes or dtypes do not fit.
        InvalidMatrixError, IndexOutOfRangeError
            The matrix contradicts itself.
        """
        count = self._jobs.worker_count(workers)
        matrix = self._matrix_handle(A)
        with self._shared(x, "x") as (shared_x, x_spec):
            _check_shape("x", x_spec.shape, (matrix.shape[1],))
            dtype = _result_dtype(matrix, x_spec.dtype)
            rows = partition.by_nnz(matrix.indptr, count)
            with self._output(out, matrix.shape[:1], dtype, (matrix.spec, x_spec)) as result:
                operands = {"A": matrix, "x": shared_x, "out": result}
                if pays_to_cut(matrix.indptr, rows):
                    result.timings = self._matvec_split(
                        operands, matrix, (count, dtype), implementation
                    )
                else:
                    result.timings = self._jobs.run(
                        "matvec", operands, rows, implementation=implementation
                    )
                return result

    def matmat(
        self,
        A: SharedMatrix | str,
        X: SharedArray | str | np.ndarray[Any, Any],
        out: SharedArray | str | None = None,
        *,
        workers: int | None = None,
        implementation: str = "auto",
    ) -> SharedArray:
        """``out[:] = A @ X``: the product with several vectors at once, the columns of X.

        One pass over A serves them all. Equal to SciPy's result bit for bit.

        Parameters
        ----------
        A
            Handle or name of a CSR matrix.
        X
            Array of shape ``(A.shape[1], k)``; an ndarray is shared for the call.
        out
            Handle or name of the result, of shape ``(A.shape[0], k)`` and the common
            dtype of A and X; made when there is none of that name. With None the result
            has a name of its own and is destroyed with its last handle.
        workers
            How many; missing ones are started. Default: all that are registered.

        Returns
        -------
        SharedArray
            The result, with ``timings``.

        Raises
        ------
        InvalidSpecError
            Shapes or dtypes do not fit.
        InvalidMatrixError, IndexOutOfRangeError
            The matrix contradicts itself.
        """
        count = self._jobs.worker_count(workers)
        matrix = self._matrix_handle(A)
        with self._shared(X, "X") as (shared_x, x_spec):
            if len(x_spec.shape) != 2:
                raise InvalidSpecError(
                    "X is no table of vectors",
                    needed=f"({matrix.shape[1]}, vectors)",
                    had=str(x_spec.shape),
                    where="X",
                    remedy="use matvec for one vector",
                )
            _check_shape("X", x_spec.shape, (matrix.shape[1], x_spec.shape[1]))
            shape = matrix.shape[0], x_spec.shape[1]
            dtype = _result_dtype(matrix, x_spec.dtype)
            rows = partition.by_nnz(matrix.indptr, count)
            with self._output(out, shape, dtype, (matrix.spec, x_spec)) as result:
                operands = {"A": matrix, "X": shared_x, "out": result}
                result.timings = self._jobs.run(
                    "matmat", operands, rows, implementation=implementation
                )
                return result

    def rmatvec(
        self,
        A: SharedMatrix | str,
        x: SharedArray | str | np.ndarray[Any, Any],
        out: SharedArray | str | None = None,
        *,
        workers: int | None = None,
        implementation: str = "auto",
    ) -> SharedArray:
        """``out[:] = A.T @ x`` of a real matrix, which stays as it is stored.

        With one worker equal to SciPy's result bit for bit. With more, each sums its
        rows for itself, in temporary memory of `out`'s size, and the sums are added in
        the order of the rows: an element with n entries is off by at most
        ``n u / (1 - n u) * sum |a x|``, u being half the dtype's ``eps``. There are no more
        parts than the matrix has entries to a column, lest adding take longer.

        Parameters
        ----------
        A
            Handle or name of a CSR matrix.
        x
            Vector of ``A.shape[0]`` elements; an ndarray is shared for the call.
        out
            Handle or name of the result, ``A.shape[1]`` elements of the common dtype of
            A and x; made when there is none of that name. With None the result has a
            name of its own and is destroyed with its last handle.
        workers
            How many; missing ones are started. Default: all that are registered.

        Returns
        -------
        SharedArray
            The result, with ``timings``.

        Raises
        ------
        InvalidSpecError
            Shapes or dtypes do not fit, or a dtype is complex.
        InvalidMatrixError, IndexOutOfRangeError
            The matrix contradicts itself.
        """
        count = self._jobs.worker_count(workers)
        matrix = self._matrix_handle(A)
        columns = matrix.shape[1]
        parts = parts_of_transposed(matrix, count)
        bounds = np.array(partition.by_nnz(matrix.indptr, parts), np.int64)
        with self._shared(x, "x") as (shared_x, x_spec), self._shared(bounds, "b") as (cut, _):
            _check_shape("x", x_spec.shape, (matrix.shape[0],))
            dtype = _result_dtype(matrix, x_spec.dtype)
            refuse_complex(dtype)
            with self._output(out, (columns,), dtype, (matrix.spec, x_spec)) as result:
                operands = {"A": matrix, "x": shared_x, "bounds": cut}
                if parts == 1:
                    result.timings = self._jobs.run(
                        "rmatvec",
                        operands | {"partial": result},
                        (0, 1),
                        implementation=implementation,
                        writes=("partial",),
                    )
                    return result
                with self._spare("partial", (parts, columns), dtype) as partial:
                    result.timings = together(
                        self._jobs.run(
                            "rmatvec",
                            operands | {"partial": partial},
                            range(parts + 1),
                            implementation=implementation,
                            writes=("partial",),
                        ),
                        self._jobs.run(
                            "sum_parts",
                            {"partial": partial, "out": result},
                            partition.by_rows(columns, count),
                        ),
                    )
                return result

    # Within -------------------------------------------------------------------

    def _matvec_split(
        self,
        operands: Mapping[str, SharedObject | str],
        matrix: SharedMatrix,
        key: _CutKey,
        implementation: str,
    ) -> JobTimings:
        """A product whose parts may cut a row."""
        parts = key[0]
        with self._cutting:  # two threads' products must not share the carries
            bounds, carry = self._cut(matrix, key)
            cutting = {**operands, "bounds": bounds, "carry": carry}
            adding = {role: cutting[role] for role in ("A", "bounds", "carry", "out")}
            return together(
                self._jobs.run(
                    "matvec_split",
                    cutting,
                    range(parts + 1),
                    implementation=implementation,
                    writes=("carry", "out"),
                ),
                self._jobs.run("add_carries", adding, (0, parts)),
            )

    def _cut(self, matrix: SharedMatrix, key: _CutKey) -> _Cut:
        """Bounds and carries for a number of parts and a dtype, kept with the matrix's handle.

        To share two small arrays anew takes longer than many a product.
        """
        kept = self._cuts.setdefault(matrix, {})
        if key not in kept:
            parts, dtype = key
            ends = np.array(partition.merge_path(matrix.indptr, parts), np.int64)
            bounds = self.put(self._temporary_name("bounds"), ends, temporary=True)
            bounds.destroy_with_handle()
            carry = self.create(self._temporary_name("carry"), 2 * parts, dtype, temporary=True)
            carry.destroy_with_handle()
            kept[key] = bounds, carry
        return kept[key]


def _check_shape(role: str, shape: tuple[int, ...], needed: tuple[int, ...]) -> None:
    if shape != needed:
        raise InvalidSpecError(
            f"{role} does not fit the matrix", needed=str(needed), had=str(shape), where=role
        )


def _result_dtype(matrix: SharedMatrix, dtype: str) -> str:
    return np.result_type(matrix.dtype, np.dtype(dtype)).str


def together(*jobs: JobTimings) -> JobTimings:
    """The timings of jobs that ran one after another."""
    parts = tuple(part for job in jobs for part in job.parts)
    return JobTimings(jobs[-1].job, parts, sum(job.dispatch_ns for job in jobs))
