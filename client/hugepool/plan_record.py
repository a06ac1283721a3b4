"""What is written down of a plan, and the segments that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from hugepool.array import SharedObject
from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import Member
from hugepool_common.units import format_bytes

RECORD = "record"
RECORD_BYTES = 8192
"""Room for what is told of a plan; the reason is one sentence."""


class PlanReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan does and why.

    Parameters
    ----------
    operation
        ``gather``, ``matvec`` or ``rmatvec``.
    choice
        The form that runs take: ``direct``, ``binned``, ``ordered``,
        ``repeated``, ``mirrored`` or ``narrow``.
    reason
        Why, in one sentence.
    shape
        Of the index, or of the matrix.
    rows
        Elements of x.
    entries
        Indices, or stored entries of the matrix.
    workers
        Worker processes that the times are of.
    measured_ns
        The median run of each form that was tried: kernels' time, from the first start
        to the last end of each phase.
    predicted_ns
        What was expected of each form before it was built.
    build_ns
        Time that the chosen form took to build, without compiling; 0 for ``direct``
        over a matrix as it is.
    trial_ns
        Time that the whole planning took, trials, and builds that were dropped, included.
    payload_nbytes, scratch_nbytes
        Bytes that the plan holds, and that each handle holds besides when it runs.
    break_even
        Runs after which the build is paid for; 0 if there was none, None if never.
    values
        As what the plan keeps the values of a matrix, such as ``float32, rounded``; empty
        where it reads the matrix itself.
    """

    operation: str
    choice: str
    reason: str
    shape: tuple[int, ...]
    rows: int
    entries: int
    workers: int
    measured_ns: dict[str, int]
    predicted_ns: dict[str, int]
    build_ns: int
    trial_ns: int
    payload_nbytes: int
    scratch_nbytes: int
    break_even: int | None
    values: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes held by the plan and one handle that runs it."""
        return self.payload_nbytes + self.scratch_nbytes

    def __str__(self) -> str:
        what = " x ".join(f"{extent:,}" for extent in self.shape)
        lines = [
            f"{self.operation} plan of {what} ({self.entries:,} entries): {self.choice}",
            f"  why: {self.reason}",
            f"  holds {format_bytes(self.payload_nbytes)}, and "
            f"{format_bytes(self.scratch_nbytes)} in each process that runs it",
        ]
        if self.values:
            lines.append(f"  values: {self.values}")
        for form in dict.fromkeys((*self.measured_ns, *self.predicted_ns)):
            times = [
                f"{word} {ns / 1e6:,.2f} ms ({ns / max(self.entries, 1):.2f} ns each)"
                for word, ns in (
                    ("measured", self.measured_ns.get(form)),
                    ("predicted", self.predicted_ns.get(form)),
                )
                if ns is not None
            ]
            lines.append(f"  {form}: {', '.join(times)} on {self.workers} worker(s)")
        if self.build_ns:
            even = "never" if self.break_even is None else f"after {self.break_even} runs"
            lines.append(f"  built in {self.build_ns / 1e6:,.1f} ms; paid for {even}")
        return "\n".join(lines)


class PlanFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a record holds: all that a process needs to run the plan.

    Parameters
    ----------
    report
        As users see it.
    x_dtype, out_dtype
        Dtype codes of what the plan takes and gives.
    payload
        Name of the payload; empty if the form needs none.
    matrix, matrix_segment
        Name and segment of the matrix; empty and 0 for a gather.
    scratch
        The arrays that a handle needs to run.
    """

    report: PlanReport
    x_dtype: str
    out_dtype: str
    payload: str = ""
    matrix: str = ""
    matrix_segment: int = 0
    scratch: tuple[Member, ...] = ()

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the result."""
        shape = self.report.shape
        return {"matvec": shape[:1], "rmatvec": shape[1:]}.get(self.report.operation, shape)


class PlanSegment(SharedObject):
    """A record or a payload: 1-D ndarrays by role."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """The members."""
        return {member.role: self._array(member.role) for member in self.spec.members}

    @property
    def is_record(self) -> bool:
        """Whether this tells of a plan."""
        return any(member.role == RECORD for member in self.spec.members)

    def read_record(self) -> PlanFacts:
        """What it tells.

        Raises
        ------
        InvalidSpecError
            It is not finished, or no record of this version.
        """
        raw = bytes(self.arrays[RECORD]).rstrip(b"\0")
        try:
            return msgspec.json.decode(raw, type=PlanFacts)
        except msgspec.DecodeError as error:
            raise InvalidSpecError(
                "the plan cannot be read", had=str(error), where=self.name, remedy="plan anew"
            ) from None

    def write_record(self, facts: PlanFacts) -> None:
        """Tell of a plan, once; the reason is cut to what there is room for."""
        raw = msgspec.json.encode(facts)
        self.arrays[RECORD][: len(raw)] = np.frombuffer(raw, np.uint8)
