"""The pool: a client's session with one coordinator, its arrays, its jobs and its children."""

from __future__ import annotations

import itertools
import math
import operator
import os
import time
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hugepool import partition
from hugepool.array import SharedArray, SharedObject
from hugepool.channel import Channel
from hugepool.children import EmbeddedCoordinator
from hugepool.jobs import JobRunner
from hugepool.matrix import SharedMatrix
from hugepool.store import ArrayStore
from hugepool.timings import JobTimings
from hugepool_common.errors import ArrayNotFoundError, InvalidSpecError
from hugepool_common.messages import (
    Counted,
    ReportTiming,
    Shutdown,
    ShuttingDown,
    Stats,
    Timing,
    TimingReported,
    View,
)
from hugepool_common.spec import ArraySpec, HugePages, PageSize, check_label

_INDEX_CODES = ("<i4", "<i8", "<u4", "<u8")


class Pool(ArrayStore):
    """A session with a coordinator. Made by :func:`hugepool.connect`; a context manager.

    Parameters
    ----------
    channel
        The open session.
    coordinator
        The private coordinator that ends with this pool, if there is one.
    huge_pages
        ``try`` falls to 4 KiB pages with the reasons recorded, ``on`` fails
        instead, ``off`` asks for 4 KiB.
    page_size
        ``auto``, ``4K``, ``2M`` or ``1G``.

    Notes
    -----
    One request is under way at a time: threads that share a pool wait for each
    other. A forked child must call :func:`hugepool.connect` for itself.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        coordinator: EmbeddedCoordinator | None = None,
        huge_pages: HugePages = "try",
        page_size: PageSize = "auto",
    ) -> None:
        super().__init__(channel, huge_pages, page_size)
        self._jobs = JobRunner(channel)
        self._temporary = itertools.count(1)
        self._finalizer = weakref.finalize(
            self, _end, os.getpid(), channel, self._jobs, coordinator
        )

    @property
    def address(self) -> str:
        """Where other processes connect to the same arrays."""
        return self._channel.address

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._channel.closed

    def close(self) -> None:
        """End the session, the workers it started, and its private coordinator if it has one.

        What is mapped stays mapped; unsealed arrays of this session are destroyed.
        """
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pool {self.address}{' closed' if self.closed else ''}>"

    def stats(self) -> Counted:
        """Totals, workers and the newest timings of the coordinator."""
        return self._channel.request(Stats(), Counted)

    def shutdown(self) -> None:
        """Ask the coordinator to drain and end; its arrays go with it."""
        self._channel.request(Shutdown(), ShuttingDown)

    # Computing ----------------------------------------------------------------

    def start_workers(self, count: int, cpus: Sequence[int] | None = None) -> None:
        """Start worker processes that end with this pool; see :meth:`JobRunner.start`."""
        self._jobs.start(count, cpus)

    def run(
        self,
        kernel: str,
        operands: Mapping[str, SharedObject | str],
        rows: Sequence[int],
        *,
        implementation: str = "auto",
        writes: Collection[str] = ("out",),
        views: Mapping[str, View] | None = None,
    ) -> JobTimings:
        """Run any kernel over a partition of rows; see :meth:`JobRunner.run`."""
        return self._jobs.run(
            kernel, operands, rows, implementation=implementation, writes=writes, views=views
        )

    def gather(
        self,
        x: SharedArray | str,
        idx: SharedArray | npt.ArrayLike,
        out: SharedArray | str | None = None,
        *,
        workers: int | None = None,
        implementation: str = "auto",
    ) -> SharedArray:
        """``out[...] = x[idx]`` on worker processes.

        Parameters
        ----------
        x
            Handle or name of an array of at least one axis; rows are taken along the first.
        idx
            Integers ``0 <= i < len(x)``: a handle, a name, or anything that NumPy makes an
            array of, which is shared for the call.
        out
            Handle or name of the result, of shape ``idx.shape + x.shape[1:]`` and x's
            dtype; made when there is none of that name. With None the result has a
            name of its own and is destroyed with its last handle.
        workers
            How many; missing ones are started. Default: all that are registered.

        Returns
        -------
        SharedArray
            The result, with ``timings``.

        Raises
        ------
        IndexOutOfRangeError
            Names the first bad position; `out` may hold results before it.
        """
        count = self._jobs.worker_count(workers)
        x_spec = self._spec(x)
        with self._shared(_as_indices(idx), "idx") as (shared_idx, idx_spec):
            if not x_spec.shape or np.dtype(idx_spec.dtype).kind not in "iu":
                raise InvalidSpecError(
                    "gather takes an array of one axis or more and integer indices",
                    had=f"x {x_spec.shape} {x_spec.dtype}, idx {idx_spec.dtype}",
                )
            shape = idx_spec.shape + x_spec.shape[1:]
            rows = partition.by_rows(math.prod(idx_spec.shape), count)
            with self._output(out, shape, x_spec.dtype, (x_spec, idx_spec)) as result:
                operands = {"x": x, "idx": shared_idx, "out": result}
                result.timings = self._jobs.run(
                    "gather", operands, rows, implementation=implementation
                )
                return result

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
        matrix = self.attach(A) if isinstance(A, str) else A
        if not isinstance(matrix, SharedMatrix):
            raise InvalidSpecError(
                "A is no shared matrix",
                needed="a SharedMatrix or its name",
                had=repr(matrix)[:80],
                remedy="share a SciPy matrix with pool.put first",
            )
        with self._shared(x, "x") as (shared_x, x_spec):
            if x_spec.shape != (matrix.shape[1],):
                raise InvalidSpecError(
                    "x does not fit the matrix",
                    needed=f"({matrix.shape[1]},)",
                    had=f"{x_spec.shape}",
                )
            dtype = np.result_type(matrix.dtype, np.dtype(x_spec.dtype)).str
            rows = partition.by_nnz(matrix.indptr, count)
            with self._output(out, matrix.shape[:1], dtype, (matrix.spec, x_spec)) as result:
                operands = {"A": matrix, "x": shared_x, "out": result}
                result.timings = self._jobs.run(
                    "matvec", operands, rows, implementation=implementation
                )
                return result

    @contextmanager
    def timed(self, label: str, items: int = 0) -> Iterator[None]:
        """Report the time of a block to the coordinator.

        Parameters
        ----------
        label
            Name of the step.
        items
            How many things it worked on, for a rate.
        """
        check_label(label, items)
        started_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        yield
        self._channel.request(
            ReportTiming(
                Timing(
                    label,
                    pid=os.getpid(),
                    elements=operator.index(items),
                    started_ns=started_ns,
                    wall_ns=time.monotonic_ns() - started_ns,
                    cpu_ns=time.thread_time_ns() - cpu_ns,
                )
            ),
            TimingReported,
        )

    # Within -------------------------------------------------------------------

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
        shared = self.put(self._temporary_name(role), operand)
        try:
            yield shared, shared.spec
        finally:
            shared.detach()
            self.destroy(shared.name)

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
            result = made = self.create(self._temporary_name("out"), shape, dtype)
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
                self.destroy(made.name)
            raise


def _as_indices(idx: Any) -> Any:
    """Indices as kernels take them; handles and names stay as they are.

    NumPy indexes with every integer dtype in either byte order, and with ``[]``.
    """
    if isinstance(idx, (str, SharedObject)):
        return idx
    array = np.asarray(idx)
    if array.size == 0 and array.dtype == np.float64 and not isinstance(idx, np.ndarray):
        return array.astype(np.int64)
    if array.dtype.kind in "iu" and array.dtype.str not in _INDEX_CODES:
        return array.astype(np.int64)
    return array


def _end(
    owner_pid: int, channel: Channel, jobs: JobRunner, coordinator: EmbeddedCoordinator | None
) -> None:
    """Close everything of a pool; in a forked child nothing of it is ours to end."""
    if os.getpid() != owner_pid:
        return
    jobs.stop()
    channel.close()
    if coordinator is not None:
        coordinator.stop()
