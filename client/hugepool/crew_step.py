"""Steps of a crew as one process has them: phases with kernels bound to mapped operands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from hugepool import kernels
from hugepool.array import SharedArray, SharedObject
from hugepool.crew_control import (
    HandedArray,
    HandedPhase,
    HandedStep,
    Participant,
    operand_of,
)
from hugepool.kernels.base import Bound, Kernel, Operands
from hugepool.kernels.native import NativeCall
from hugepool.phases import Phase
from hugepool_common.errors import DetachedError, InvalidSpecError, JobFailedError

Lock: TypeAlias = AbstractContextManager[Any]


class Planned(Protocol):
    """What a crew can prepare: a plan, or anything else that consists of phases.

    Every phase must give the same again if it is run twice on the same input: after a
    death the phase under way is repeated. A plan that has a ``lock`` has it held during
    every step.
    """

    def phases(self, x: SharedArray, out: SharedArray, parts: int) -> Sequence[Phase]:
        """The phases of one step, each cut into `parts` parts."""


class Stepping(Protocol):
    """What a step asks of its crew."""

    def take_step(self, number: int, last: int, lock: Lock) -> None:
        """Carry out the phases ``[0, last)`` of a step, with the plan's lock held."""

    def release(self, step: CrewStep) -> None:
        """Have everybody forget a step."""


class Binding:
    """A phase of a step as one process has it.

    Parameters
    ----------
    kernel, operands
        What to run on what.
    rows
        Bounds of the parts, one a seat.

    Raises
    ------
    InvalidSpecError
        The kernel is not one that can be bound.
    """

    def __init__(self, kernel: Kernel, operands: Operands, rows: Sequence[int]) -> None:
        bind = getattr(kernel, "bind", None)
        if bind is None:
            raise InvalidSpecError(
                f"a crew cannot run {kernel.name} ({kernel.implementation})",
                needed="a compiled kernel",
                remedy='pip install "hugepool[compute]", or run it by pool.run',
            )
        self._kernel = kernel
        self._operands = operands
        self._rows = rows
        self._bound: Bound = bind(operands)

    def calls(self, seats: Sequence[int]) -> list[NativeCall]:
        """The calls that do the parts of these seats; none for an empty part."""
        ranges = [(self._rows[seat], self._rows[seat + 1]) for seat in seats]
        return [NativeCall(self._bound, *rows) for rows in ranges if rows[0] != rows[1]]

    def blame(self, *seats: int) -> None:
        """Run parts that failed once more, for the error.

        Raises
        ------
        HugepoolError
            Always.
        """
        for seat in seats:
            self._kernel(self._operands, self._rows[seat], self._rows[seat + 1])
        raise JobFailedError(
            f"{self._kernel.name} failed, and did not when it was run again",
            where=f"pid {os.getpid()}",
            remedy="let nobody write to its operands meanwhile",
        )


class CrewStep:
    """A prepared step. Made by :meth:`hugepool.crew.Crew.prepare`; call it to take it."""

    def __init__(
        self,
        crew: Stepping,
        number: int,
        plan: Planned,
        phases: tuple[Phase, ...],
        parts: int,
    ) -> None:
        self._crew = crew
        self.lock: Lock = getattr(plan, "lock", None) or contextlib.nullcontext()
        self.number = number
        self.phase_count = len(phases)
        self._released = False
        if not phases:
            raise InvalidSpecError("a step needs a phase", had="0")
        self._handles: list[SharedObject] = []
        self.bindings: list[Binding] = []
        writable: dict[int, bool] = {}
        handed = []
        for phase in phases:
            _check_phase(phase, parts)
            for role, handle in phase.operands.items():
                if not any(handle is known for known in self._handles):
                    self._handles.append(handle)
                index = self._index(handle)
                writable[index] = writable.get(index, False) or role in phase.writes
            numbers = {role: self._index(handle) for role, handle in phase.operands.items()}
            rows = tuple(int(bound) for bound in phase.rows)
            handed.append(HandedPhase(phase.kernel, phase.implementation, numbers, rows))
        operands = [operand_of(handle) for handle in self._handles]
        for told in handed:
            taken = {role: operands[index] for role, index in told.operands.items()}
            kernel = kernels.resolve(told.kernel, told.implementation)
            self.bindings.append(Binding(kernel, taken, told.rows))
        arrays = tuple(
            HandedArray(handle.name, handle.info.segment.segment_id, writable[index])
            for index, handle in enumerate(self._handles)
        )
        self.handed = HandedStep(arrays, tuple(handed))

    def __call__(self) -> None:
        """Take the step; returns when the output is complete.

        After Ctrl-C the output may be in part of this step and in part of the one before;
        the crew can be used as before.

        Raises
        ------
        HugepoolError
            A kernel failed; its error.
        JobFailedError
            A member hangs and cannot be killed.
        DetachedError
            The step is released, or the crew closed.
        """
        if self._released:
            raise released()
        self._crew.take_step(self.number, self.phase_count, self.lock)

    def release(self) -> None:
        """Let go of the arrays; the step can be taken no more."""
        self._crew.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = " released" if self._released else ""
        return f"<CrewStep of {self.phase_count} phases{state}>"

    def _index(self, handle: SharedObject) -> int:
        return next(n for n, known in enumerate(self._handles) if known is handle)

    def blame(self, phase: int, *seats: int) -> None:
        """Run parts of a phase that failed once more, for the error."""
        self.bindings[phase].blame(*seats)

    def lay(self, leader: Participant, vacant: Sequence[int]) -> None:
        """The leader's part of every phase, and those of vacant seats."""
        calls = [binding.calls([0, *vacant]) for binding in self.bindings]
        leader.lay_table(self.number, calls)

    def let_go(self) -> None:
        self._released = True
        self.bindings.clear()
        self._handles.clear()


def _check_phase(phase: Phase, parts: int) -> None:
    if len(phase.rows) != parts + 1:
        raise InvalidSpecError(
            "a phase has another number of parts than the crew",
            needed=f"{parts + 1} bounds",
            had=str(len(phase.rows)),
            where=phase.kernel,
        )
    for role in phase.writes & phase.operands.keys():
        target = phase.operands[role]
        if not target.writable:
            raise InvalidSpecError(
                f"operand {role} is read-only here",
                where=target.name,
                remedy="attach it with readonly=False",
            )
        for other, handle in phase.operands.items():
            same = handle.info.segment.segment_id == target.info.segment.segment_id
            if other != role and same:
                raise InvalidSpecError(
                    f"operands {role} and {other} of {phase.kernel} are one array",
                    where=target.name,
                    remedy="write into an array of its own",
                )


def released() -> DetachedError:
    """The error of a step that is over."""
    return DetachedError("the step is released", remedy="prepare it again")
