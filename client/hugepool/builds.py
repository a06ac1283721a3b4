"""Building the payload of a plan: what every form has in common.

Building is work for the workers wherever it goes over all entries; what this process does
between two jobs is small. A payload is sealed before it is used.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from hugepool.array import SharedArray, SharedObject
from hugepool.kernels.base import Array
from hugepool.kernels.plan_parts import Part, Stored
from hugepool.kernels.samples import copy_ns_per_byte
from hugepool.phases import Phase, elapsed_ns
from hugepool.plan_record import PlanSegment
from hugepool.timings import JobTimings
from hugepool.trials import Built
from hugepool_common.errors import HugepoolError
from hugepool_common.spec import ArraySpec, Member

_SLOWER_THAN_COPY = 1.5
"""The two phases reach about two thirds of the bandwidth of a plain copy."""

_S = TypeVar("_S", bound=SharedObject)


class BuildSession(Protocol):
    """What a build asks of the pool."""

    def make_payload(self, kind: type[_S], spec: ArraySpec) -> _S:
        """A writable named object."""

    @contextmanager
    def _spare(self, role: str, shape: tuple[int, ...], dtype: str) -> Iterator[SharedArray]:
        """Zeros for as long as this lasts."""

    def run_phases(self, steps: Sequence[Phase]) -> JobTimings:
        """Run phases as jobs."""

    def destroy(self, name: str) -> None:
        """Remove a name."""


class Build:
    """One build under way: its payload's name, its workers, and the time it has taken."""

    def __init__(self, session: BuildSession, record: PlanSegment, form: str, workers: int) -> None:
        self.session = session
        self.form = form
        self.workers = workers
        self.taken_ns = 0
        self._record = record

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what this process does."""
        began_ns = time.monotonic_ns()
        yield
        self.taken_ns += time.monotonic_ns() - began_ns

    def run(self, *steps: Phase) -> None:
        """Have workers do it, and count their kernels' time: not their compiling."""
        self.taken_ns += elapsed_ns(steps, self.session.run_phases(steps))

    def payload(self, shape: tuple[int, ...], dtype: str, parts: Sequence[Part]) -> PlanSegment:
        """A payload of these parts."""
        members = tuple(Member(*part) for part in parts)
        spec = ArraySpec(self._name, shape, dtype, "plan", members=members, made_of=self._made_of)
        with self.timed():
            return self.session.make_payload(PlanSegment, spec)

    def array(self, shape: tuple[int, ...], dtype: str) -> SharedArray:
        """A payload that is one array."""
        spec = ArraySpec(self._name, shape, dtype, made_of=self._made_of)
        with self.timed():
            return self.session.make_payload(SharedArray, spec)

    def done(self, payload: SharedObject, *scratch: Member, stored: Stored | None = None) -> Built:
        """Seal it."""
        payload.seal()
        values = "" if stored is None else stored.values
        return Built(self.form, payload, scratch, self.taken_ns, values)

    @contextmanager
    def or_nothing(self, payload: SharedObject) -> Iterator[None]:
        """Leave no payload behind after an error, and do not hide that error."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(HugepoolError):  # what is in use now goes with the record
                self.session.destroy(payload.name)
            raise

    @property
    def _name(self) -> str:
        return f"{self._record.name}.{self.form}"

    @property
    def _made_of(self) -> int:
        return self._record.info.segment.segment_id


def predict_ns(nbytes: int, x: Array, workers: int) -> int:
    """Of a run that moves so many bytes; on several workers at best, so that none is missed."""
    return int(nbytes * copy_ns_per_byte(x) * _SLOWER_THAN_COPY / workers)
