"""Computations over shared arrays, each sent once to worker processes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hugepool import kernels, partition
from hugepool.array import SharedArray, SharedObject
from hugepool.products import Products, together
from hugepool.sharing import as_indices as as_indices
from hugepool.timings import JobTimings
from hugepool_common.errors import InvalidSpecError
from hugepool_common.messages import View

FEW_INDICES = 8
"""A scatter-add with less than one index in so many elements takes no workers.

A worker may die half-way, and what it added cannot be told from what it did not.
So workers write to a copy, whose cost is that of the whole array.
"""


class Computing(Products):
    """What a session can compute over its named objects; :class:`hugepool.Pool` is one."""

    def start_workers(self, count: int, cpus: Sequence[int] | None = None) -> None:
        """Start worker processes that end with this pool, and wait until they are registered.

        Parameters
        ----------
        count
            How many more.
        cpus
            Pin worker ``k`` to ``cpus[k % len(cpus)]``; None leaves them to the kernel.

        Raises
        ------
        NoWorkersError
            One ended, or took longer than two minutes to start.
        """
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
        """Run a kernel once over the partition `rows` and wait for its timings.

        Parameters
        ----------
        kernel, implementation
            One of :mod:`hugepool.kernels`, such as ``gather``, and one of its
            implementations; ``auto`` takes the fastest that is there.
        operands
            Role to handle or name.
        rows
            Partition bounds: part ``k`` is ``[rows[k], rows[k + 1])`` and goes to a worker
            of its own as long as there are idle ones.
        writes
            Roles that the kernel writes.
        views
            Role to ``shared`` (default), ``heap`` or ``private``.

        Raises
        ------
        NoWorkersError
            No worker is registered, or the last one died and none came within 30 s.
        JobInterruptedError
            The coordinator was restarted meanwhile; what is written may be so in part.
        JobFailedError
            Too many workers died at one part; or one did and the kernel adds to what the
            output held; or a worker has been stopped for 40 s.
        IndexOutOfRangeError, InvalidMatrixError, InvalidSpecError
            What a worker's kernel refused.
        """
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
        with self._shared(as_indices(idx), "idx") as (shared_idx, idx_spec):
            if not x_spec.shape or np.dtype(idx_spec.dtype).kind not in "iu":
                raise InvalidSpecError(
                    "gather takes an array of one axis or more and integer indices",
                    had=f"x {x_spec.shape} {x_spec.dtype}, idx {idx_spec.dtype}",
                    remedy="of a mask, gather by np.flatnonzero(mask)"
                    if idx_spec.dtype == "|b1"
                    else "",
                )
            shape = idx_spec.shape + x_spec.shape[1:]
            rows = partition.by_rows(math.prod(idx_spec.shape), count)
            with self._output(out, shape, x_spec.dtype, (x_spec, idx_spec)) as result:
                operands = {"x": x, "idx": shared_idx, "out": result}
                result.timings = self._jobs.run(
                    "gather", operands, rows, implementation=implementation
                )
                return result

    def scatter_add(
        self,
        out: SharedArray | str,
        idx: SharedArray | npt.ArrayLike,
        values: SharedArray | npt.ArrayLike,
        *,
        workers: int | None = None,
        implementation: str = "auto",
    ) -> SharedArray:
        """``out[idx] += values``, where an index that comes twice is added to twice.

        The same as ``numpy.add.at(out, idx, values)`` bit for bit, whatever the number of
        workers. `out` changes only after all sums are there, so neither a bad index nor
        a worker's death leaves it half done; this takes temporary memory of its size.
        With few indices (less than one for 8 elements) the calling process adds by itself,
        and ``timings`` is None.

        Parameters
        ----------
        out
            Handle or name of a writable 1-D array.
        idx
            Integers ``0 <= i < len(out)``: a handle, a name, or anything that NumPy makes
            an array of, which is shared for the call.
        values
            As many as indices: a handle or name of an array of `out`'s dtype, or
            anything that NumPy can cast to it and broadcast to the shape of `idx`.
        workers
            How many; missing ones are started. Default: all that are registered.

        Returns
        -------
        SharedArray
            `out`, with ``timings``.

        Raises
        ------
        IndexOutOfRangeError
            Names the first bad position; nothing is written.
        InvalidSpecError
            Shapes or dtypes do not fit.
        """
        target = self.attach(out, readonly=False) if isinstance(out, str) else out
        if not isinstance(target, SharedArray) or len(target.shape) != 1:
            raise InvalidSpecError(
                "out is no shared array of one axis", had=repr(target)[:80], where="out"
            )
        index = as_indices(idx)
        shape = index.shape if isinstance(index, np.ndarray) else self._spec(index).shape
        addends = _addends(values, target, shape)
        if target.name in (_name(index), _name(addends)):
            raise InvalidSpecError("the output may not be an input too", where=target.name)
        if math.prod(shape) * FEW_INDICES < target.shape[0]:
            self._scatter_here(target, index, addends, implementation)
            return target
        with (
            self._shared(index, "idx") as (shared_idx, _),
            self._shared(addends, "values") as (shared_values, _),
        ):
            operands = {"idx": shared_idx, "values": shared_values}
            rows = partition.by_rows(target.shape[0], self._jobs.worker_count(workers))
            with self._spare("sums", target.shape, target.spec.dtype) as sums:
                target.timings = together(
                    self._jobs.run(
                        "scatter_add",
                        operands | {"base": target, "out": sums},
                        rows,
                        implementation=implementation,
                    ),
                    self._jobs.run("sum_parts", {"partial": sums, "out": target}, rows),
                )
            return target

    def _scatter_here(
        self, target: SharedArray, index: Any, addends: Any, implementation: str
    ) -> None:
        """Add in this process."""
        # numpy.add.at needs no half second to import and compile.
        chosen = "numpy" if implementation == "auto" else implementation
        writable = target if target.writable else self.attach(target.name, readonly=False)
        operands = {
            "idx": self._local(index),
            "values": self._local(addends),
            "out": writable.array,
        }
        kernels.resolve("scatter_add", chosen)(operands, 0, target.shape[0])
        target.timings = None

    def _local(self, operand: SharedArray | str | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = self.attach(operand) if isinstance(operand, str) else operand
        if isinstance(found, SharedArray):
            return found.array
        return np.ascontiguousarray(found)


def _name(operand: Any) -> str | None:
    if isinstance(operand, str):
        return operand
    return operand.name if isinstance(operand, SharedObject) else None


def _addends(values: Any, target: SharedArray, shape: tuple[int, ...]) -> Any:
    """What is to be added, as `target` has it; handles and names stay as they are."""
    if isinstance(values, (str, SharedObject)):
        return values
    array = np.asarray(values)
    if not np.can_cast(array.dtype, target.dtype, "same_kind"):
        raise InvalidSpecError(
            "values cannot be cast to the dtype of out",
            needed=str(target.dtype),
            had=str(array.dtype),
            where="values",
        )
    try:
        return np.broadcast_to(array, shape).astype(target.dtype)
    except ValueError:
        raise InvalidSpecError(
            "values do not fit idx", needed=str(shape), had=str(array.shape), where="values"
        ) from None
