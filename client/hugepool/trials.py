"""Trials: the forms that a plan could have compete, on the workers that will run it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hugepool import forms
from hugepool.array import SharedArray, SharedObject
from hugepool.phases import Phase, elapsed_ns
from hugepool.plan_record import PlanReport
from hugepool.timings import JobTimings
from hugepool_common.errors import InvalidSpecError, MissingExtraError, NotEnoughMemoryError
from hugepool_common.pages import read_host
from hugepool_common.spec import Member
from hugepool_common.units import format_bytes

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25
_TIMED_NS = 100_000_000
"""Timed runs of each form: so many that they take this long together, within these bounds.

Forms are run in turns and their medians compared: what a user will see of them, not what
each does at its best.
"""
_WORTH_TRYING = 1.3
"""A form is built although it is predicted to take this many times as long as the direct one."""
_MOST_MEMORY = 0.8


@dataclass(frozen=True)
class Built:
    """A form that can run.

    Parameters
    ----------
    form
        Its name.
    payload
        What runs read besides x; None if nothing.
    scratch
        What a handle needs to run.
    build_ns
        Time that it took, without compiling.
    values
        As what it keeps the values of a matrix; empty if it does not.
    """

    form: str
    payload: SharedObject | None
    scratch: tuple[Member, ...]
    build_ns: int
    values: str = ""


@dataclass(frozen=True)
class Proposal:
    """A form that could be built.

    Parameters
    ----------
    form
        Its name.
    build
        Builds it; its payload is sealed.
    refusal
        Why it cannot be built; empty if it can.
    unwise
        Why it cannot win, so that only who asks for it gets it; empty if it may.
    predicted_ns
        Expected time of a run; 0 where there is nothing to predict from.
    build_cost_ns
        Expected time of the build.
    most_nbytes
        What it may hold at most, while it is built and after.
    """

    form: str
    build: Callable[[], Built]
    refusal: str = ""
    unwise: str = ""
    predicted_ns: int = 0
    build_cost_ns: int = 0
    most_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Hope:
    """What a caller wants of a plan: a form, or ``auto``, and how many runs; None if not known."""

    form: str
    uses: int | None


class TrialSession(Protocol):
    """What trials ask of the pool."""

    def make_scratch(self, members: Sequence[Member]) -> dict[str, SharedArray]:
        """Arrays for one handle, destroyed with it."""

    def run_phases(self, steps: Sequence[Phase]) -> JobTimings:
        """Run phases as jobs."""

    def destroy(self, name: str) -> None:
        """Remove a name."""


@dataclass
class _Entrant:
    built: Built
    phases: tuple[Phase, ...]
    scratch: dict[str, SharedArray]
    cut: dict[str, SharedArray]
    times_ns: list[int] = field(default_factory=list)


class Trials:
    """Forms built and timed for one plan.

    Parameters
    ----------
    session
        Runs them.
    report
        The operation, its size and how many workers.
    operands
        x, out, and the matrix if there is one.
    """

    def __init__(
        self, session: TrialSession, report: PlanReport, operands: Mapping[str, SharedObject]
    ) -> None:
        self._session = session
        self._report = report
        self._operands = dict(operands)
        self._entrants: dict[str, _Entrant] = {}
        self._kept: _Entrant | None = None
        self._cut_nbytes = 0
        self.reason = ""

    @property
    def measured_ns(self) -> dict[str, int]:
        """The median run of each form that was timed."""
        return {
            form: int(statistics.median(one.times_ns))
            for form, one in self._entrants.items()
            if one.times_ns
        }

    @property
    def scratch(self) -> dict[str, SharedArray]:
        """Of the form that was kept."""
        assert self._kept is not None, "nothing was decided"
        return self._kept.scratch

    @property
    def scratch_nbytes(self) -> int:
        """What a handle holds of it that runs on as many workers."""
        return sum(one.nbytes for one in self.scratch.values()) + self._cut_nbytes

    @property
    def break_even(self) -> int | None:
        """Runs after which the build of what was kept is paid for; None if never."""
        assert self._kept is not None, "nothing was decided"
        build_ns, measured = self._kept.built.build_ns, self.measured_ns
        if self._kept.built.form == forms.DIRECT:
            return 0
        gain_ns = measured.get(forms.DIRECT, 0) - measured[self._kept.built.form]
        return math.ceil(build_ns / gain_ns) if gain_ns > 0 else None

    def decide(self, proposals: Sequence[Proposal], hope: Hope) -> Built:
        """Build what may win, time it, keep the fastest and drop the others.

        Parameters
        ----------
        proposals
            The direct form first.
        hope
            What the caller wants.

        Raises
        ------
        InvalidSpecError
            The form that was asked for is out of the question.
        NotEnoughMemoryError
            It does not fit into the memory that is free.
        """
        direct, *others = proposals
        self._enter(direct)
        passed_over = []
        if hope.form == forms.DIRECT:
            passed_over = ["it was asked for"]
        elif hope.form != "auto":
            self._enter_wanted(others, hope.form)
        else:
            if any(not (one.refusal or one.unwise) for one in others):
                self._time()  # what the others are judged by
            for proposal in others:
                why_not = proposal.refusal or proposal.unwise
                why_not = why_not or self._why_not(proposal, hope.uses)
                if not why_not:
                    try:
                        self._enter(proposal)
                        continue
                    except (MemoryError, MissingExtraError, InvalidSpecError) as error:
                        why_not = str(error)
                passed_over.append(f"{proposal.form} was not tried: {why_not}")
        if len(self._entrants) > 1:
            self._time()
            fastest_ns = max(min(self.measured_ns.values()), 1)
            rounds = min(max(_TIMED_NS // fastest_ns, _FEWEST_ROUNDS), _MOST_ROUNDS)
            for _ in range(rounds - 1):
                self._time()
        return self._keep(hope, passed_over)

    def _enter_wanted(self, proposals: Sequence[Proposal], form: str) -> None:
        for proposal in proposals:
            if proposal.form == form:
                if proposal.refusal:
                    raise InvalidSpecError(f"no plan of form {form} here", had=proposal.refusal)
                self._check_memory(proposal)
                self._enter(proposal)
                return
        raise InvalidSpecError(
            f"no plan of form {form} here", needed=" or ".join(one.form for one in proposals)
        )

    def _why_not(self, proposal: Proposal, uses: int | None) -> str:
        direct_ns = self.measured_ns[forms.DIRECT]
        predicted_ns = proposal.predicted_ns
        if predicted_ns > _WORTH_TRYING * direct_ns:
            return (
                f"a run is predicted to take {predicted_ns / 1e6:.3g} ms, "
                f"a direct one took {direct_ns / 1e6:.3g}"
            )
        if uses is not None and uses * (direct_ns - predicted_ns) <= proposal.build_cost_ns:
            return f"{uses} uses are predicted not to pay for its build"
        try:
            self._check_memory(proposal)
        except NotEnoughMemoryError as error:
            return str(error)
        return ""

    @staticmethod
    def _check_memory(proposal: Proposal) -> None:
        host = read_host()
        room = host.memory_available_bytes
        if host.memory_limit is not None:
            room = min(room, host.memory_limit.headroom_bytes)
        room = int(room * _MOST_MEMORY)
        if proposal.most_nbytes > room:
            raise NotEnoughMemoryError(
                f"a plan of form {proposal.form} does not fit into the memory that is free",
                needed=format_bytes(proposal.most_nbytes),
                had=format_bytes(room),
                remedy="plan with form='direct'",
            )

    def _enter(self, proposal: Proposal) -> None:
        built = proposal.build()
        scratch = self._session.make_scratch(built.scratch)
        operands: dict[str, SharedObject] = {**self._operands, **scratch}
        if built.payload is not None:
            operands["plan"] = built.payload
        operation, parts = self._report.operation, max(self._report.workers, 1)
        cut = forms.cut_scratch(operation, built.form, operands, parts, self._session.make_scratch)
        steps = forms.phases(operation, built.form, operands | cut, parts)
        entrant = self._entrants[built.form] = _Entrant(built, steps, scratch, cut)
        # The first run maps its operands and touches their pages: it tells nothing.
        self._session.run_phases(entrant.phases)

    def _time(self) -> None:
        for entrant in self._entrants.values():
            timings = self._session.run_phases(entrant.phases)
            entrant.times_ns.append(elapsed_ns(entrant.phases, timings))

    def _keep(self, hope: Hope, passed_over: Sequence[str]) -> Built:
        measured = self.measured_ns
        if hope.form != "auto":
            form, why = hope.form, "it was asked for"
        elif len(measured) > 1:
            form = min(measured, key=lambda one: measured[one])
            slower = sorted(set(measured) - {form}, key=lambda one: measured[one])
            ratios = [
                f"{measured[one] / measured[form]:.2f} times as fast as {one}" for one in slower
            ]
            why = "; ".join(["measured " + " and ".join(ratios), *passed_over])
        else:
            form, why = forms.DIRECT, "; ".join(passed_over)
        self.reason = why[:1000]
        self._kept = self._entrants[form]
        self._cut_nbytes = sum(array.nbytes for array in self._kept.cut.values())
        for other, entrant in self._entrants.items():
            for array in entrant.cut.values():
                array.detach()
            if other != form:
                for array in entrant.scratch.values():
                    array.detach()
                payload = entrant.built.payload
                if payload is not None:
                    self._session.destroy(payload.name)
                    payload.detach()
        return self._kept.built
