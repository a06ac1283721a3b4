"""Plans: an index or a matrix analysed once, used many times.

A plan is two named objects: a record, which has the plan's name and says in JSON what
was chosen and why, and the payload that a run reads. The payload goes with the record,
and the record of a matrix's plan goes with the matrix. What a run writes besides its
result, such as bins, belongs to a handle, so that two processes can use one plan.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from hugepool import forms
from hugepool.array import SharedArray, SharedObject
from hugepool.matrix import SharedMatrix
from hugepool.phases import Phase
from hugepool.plan_record import PlanFacts, PlanReport, PlanSegment
from hugepool_common.errors import (
    ArrayBusyError,
    DetachedError,
    InvalidSpecError,
    SegmentChangedError,
)
from hugepool_common.spec import Member
from hugepool_common.units import format_bytes


class PlanSession(Protocol):
    """What a plan asks of the pool that it belongs to."""

    def make_scratch(self, members: Sequence[Member]) -> dict[str, SharedArray]:
        """Arrays for one handle, destroyed with it."""

    def run_plan(
        self, plan: SharedPlan, x: Any, out: Any = None, *, workers: int | None = None
    ) -> SharedArray:
        """Run all phases as jobs."""


class SharedPlan:
    """A plan as one process holds it. Made by ``pool.plan_gather``, ``pool.plan_matvec`` and
    ``pool.plan_rmatvec``.

    Other processes get theirs with ``pool.attach(plan.name)``. A context manager that
    detaches.

    Notes
    -----
    Runs of one handle share its bins: threads, and steps of crews, wait for each other.
    Processes that attached the plan do not disturb each other.

    Attributes
    ----------
    lock
        Held while a run uses the bins.
    """

    def __init__(
        self,
        session: PlanSession,
        record: PlanSegment,
        facts: PlanFacts,
        payload: SharedObject | None,
        matrix: SharedMatrix | None,
        scratch: dict[str, SharedArray] | None = None,
        *,
        lent: bool = False,
    ) -> None:
        self._session = session
        self._record = record
        self._facts = facts
        self._payload = payload
        self._matrix = matrix
        self._scratch = scratch
        self._cuts: dict[int, dict[str, SharedArray]] = {}  # by the number of parts
        self._detached = False
        self._lent = lent  # the matrix is the caller's own handle
        self.lock = threading.Lock()

    @property
    def name(self) -> str:
        """Any process may attach the plan by it."""
        return self._record.name

    @property
    def record(self) -> SharedObject:
        """The object that has the plan's name."""
        return self._record

    @property
    def facts(self) -> PlanFacts:
        """What the record holds."""
        return self._facts

    @property
    def choice(self) -> str:
        """The form that runs take."""
        return self._facts.report.choice

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the index, or of the matrix."""
        return self._facts.report.shape

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory held by the plan and, once it ran, by this handle."""
        held: list[SharedObject] = [self._record]
        held += [self._payload] if self._payload is not None else []
        for scratch in (self._scratch or {}, *self._cuts.values()):
            held += scratch.values()
        return sum(one.nbytes for one in held)

    def describe(self) -> PlanReport:
        """What was chosen and why, what it holds, and what was measured."""
        return self._facts.report

    def run(
        self,
        x: SharedArray | str | np.ndarray[Any, Any],
        out: SharedArray | str | None = None,
        *,
        workers: int | None = None,
    ) -> SharedArray:
        """Compute on worker processes, each phase a job.

        Parameters
        ----------
        x
            1-D, of the plan's length and dtype; an ndarray is shared for the call.
        out
            Handle or name of the result; made when there is none of that name. With
            None the result has a name of its own and is destroyed with its last handle.
        workers
            How many; missing ones are started. Default: all that are registered.

        Returns
        -------
        SharedArray
            The result, with ``timings`` of all phases.

        Raises
        ------
        InvalidSpecError
            An array does not fit; nothing is written then.
        SegmentChangedError, ArrayNotFoundError
            The matrix was destroyed, or what was built for the plan; a direct plan of a
            matrix has nothing built, and runs as long as the matrix is there.
        DetachedError
            The plan is detached.
        """
        return self._session.run_plan(self, x, out, workers=workers)

    def phases(self, x: SharedArray, out: SharedArray, parts: int) -> tuple[Phase, ...]:
        """What one run consists of, cut into `parts` parts.

        Raises
        ------
        InvalidSpecError
            `x` or `out` does not fit the plan, or both are one array.
        """
        if self._detached:
            raise DetachedError(
                f"the plan {self.name!r} is detached", remedy=f"call pool.attach({self.name!r})"
            )
        self._check(x, out)
        if self._scratch is None:
            self._scratch = self._session.make_scratch(self._facts.scratch)
        operands: dict[str, SharedObject] = {"x": x, "out": out, **self._scratch}
        if self._payload is not None:
            operands["plan"] = self._payload
        if self._matrix is not None:
            operands["A"] = self._matrix
        report = self._facts.report
        if parts not in self._cuts:
            self._cuts[parts] = forms.cut_scratch(
                report.operation, report.choice, operands, parts, self._session.make_scratch
            )
        operands |= self._cuts[parts]
        return forms.phases(report.operation, report.choice, operands, parts)

    def _check(self, x: SharedArray, out: SharedArray) -> None:
        facts = self._facts
        for role, array, shape, dtype in (
            ("x", x, (facts.report.rows,), facts.x_dtype),
            ("out", out, facts.out_shape, facts.out_dtype),
        ):
            if not isinstance(array, SharedArray) or (array.shape, array.spec.dtype) != (
                shape,
                dtype,
            ):
                had = getattr(array, "spec", None)
                raise InvalidSpecError(
                    f"{role} does not fit the plan",
                    needed=f"{shape} {dtype}",
                    had=f"{had.shape} {had.dtype}" if had else type(array).__name__,
                    where=role,
                )
        if x.info.segment.segment_id == out.info.segment.segment_id:
            raise InvalidSpecError("the output may not be an input too", where=out.name)
        if out.sealed:
            raise InvalidSpecError("out is sealed", where=out.name)
        matrix = self._matrix
        if matrix is not None and matrix.info.segment.segment_id != facts.matrix_segment:
            raise SegmentChangedError(
                "the plan was made for another generation of its matrix",
                where=facts.matrix,
                remedy="plan anew",
            )

    def destroy_with_handle(self) -> None:
        """Have the plan removed when this handle is detached or forgotten."""
        self._record.destroy_with_handle()

    def detach(self) -> None:
        """Let go of all of it. The plan stays under its name.

        Raises
        ------
        ArrayBusyError
            A crew's step is prepared with it; nothing has changed.
        """
        scratch = [*(self._scratch or {}).values()]
        scratch += [one for cut in self._cuts.values() for one in cut.values()]
        own = None if self._lent else self._matrix
        held = [one for one in (*scratch, self._payload, own, self._record) if one is not None]
        if any(one.in_use for one in held):
            raise ArrayBusyError(
                "a step is prepared with the plan",
                where=self.name,
                remedy="release the step, or close its crew, before the plan is detached",
            )
        self._scratch, self._cuts, self._detached = None, {}, True
        for one in held:
            one.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.detach()
        except ArrayBusyError:
            if kind is None:  # else it must not hide the error under way
                raise

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"pass the name {self.name!r} and attach it on the far side")

    def __repr__(self) -> str:
        report = self._facts.report
        return (
            f"<SharedPlan {self.name!r} {report.operation} {report.shape} "
            f"{report.choice} {format_bytes(report.nbytes)}>"
        )
