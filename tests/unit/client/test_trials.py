"""How a plan's form is chosen, with runs whose times the test says."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hugepool import forms
from hugepool.phases import Phase
from hugepool.plan_record import PlanReport
from hugepool.timings import JobTimings
from hugepool.trials import Built, Hope, Proposal, Trials
from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError
from hugepool_common.messages import Timing
from hugepool_common.spec import Member

MS = 1_000_000
AUTO = Hope("auto", None)


class Course:
    """A session whose runs take as long as a test says, by the kernel's name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **times_ms: int) -> None:
        self.times_ms = times_ms
        self.built: list[str] = []
        self.runs: list[str] = []
        self.destroyed: list[str] = []
        monkeypatch.setattr(forms, "phases", lambda _, form, *__: (Phase(form, {}, (0, 1)),))
        monkeypatch.setattr(forms, "cut_scratch", lambda *_: {})
        blank = PlanReport("matvec", "", "", (9, 9), 9, 99, 1, {}, {}, 0, 0, 0, 0, None)
        self.trials = Trials(cast(Any, self), blank, {})

    def make_scratch(self, members: Sequence[Member]) -> dict[str, Any]:
        return {}

    def destroy(self, name: str) -> None:
        self.destroyed.append(name)

    def run_phases(self, steps: Sequence[Phase]) -> JobTimings:
        (step,) = steps
        self.runs.append(step.kernel)
        timing = Timing(step.kernel, wall_ns=self.times_ms[step.kernel] * MS)
        return JobTimings(1, (timing,), 0)

    def proposal(self, form: str, build_ms: int = 0, **known: Any) -> Proposal:
        def build() -> Built:
            self.built.append(form)
            payload = SimpleNamespace(name=form, detach=lambda: None)
            return Built(form, cast(Any, payload), (), build_ms * MS)

        return Proposal(form, build, **known)


def test_the_fastest_is_kept_and_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(monkeypatch, direct=30, binned=10, ordered=20)
    proposals = [
        course.proposal("direct"),
        course.proposal("binned", build_ms=90),
        course.proposal("ordered", build_ms=5),
    ]
    kept = course.trials.decide(proposals, AUTO)
    assert kept.form == "binned"
    assert course.destroyed == ["direct", "ordered"]
    assert course.trials.measured_ns == {"direct": 30 * MS, "binned": 10 * MS, "ordered": 20 * MS}
    assert course.trials.break_even == 5, "90 ms of build, 20 ms gained by each run"
    assert "2.00 times as fast as ordered" in course.trials.reason
    assert "3.00 times as fast as direct" in course.trials.reason


def test_a_build_that_does_not_win_is_dropped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(monkeypatch, direct=10, binned=11)
    kept = course.trials.decide([course.proposal("direct"), course.proposal("binned", 50)], AUTO)
    assert kept.form == "direct"
    assert course.destroyed == ["binned"]
    assert course.trials.break_even == 0


@pytest.mark.parametrize(
    ("known", "uses", "why"),
    [
        ({"predicted_ns": 14 * MS}, None, "predicted to take 14 ms"),
        ({"predicted_ns": 5 * MS, "build_cost_ns": 100 * MS}, 20, "20 uses"),
        ({"unwise": "x is small"}, None, "x is small"),
        ({"refusal": "complex numbers"}, None, "complex numbers"),
        ({"most_nbytes": 1 << 60}, None, "does not fit"),
    ],
)
def test_what_cannot_win_is_not_built_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], uses: int | None, why: str
) -> None:
    course = Course(monkeypatch, direct=10, binned=1)
    proposals = [course.proposal("direct"), course.proposal("binned", **known)]
    assert course.trials.decide(proposals, Hope("auto", uses)).form == "direct"
    assert course.built == ["direct"]
    assert course.trials.reason.startswith("binned was not tried: ")
    assert why in course.trials.reason


def test_enough_uses_pay_for_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(monkeypatch, direct=10, binned=1)
    known = {"predicted_ns": 5 * MS, "build_cost_ns": 100 * MS}
    proposals = [course.proposal("direct"), course.proposal("binned", **known)]
    assert course.trials.decide(proposals, Hope("auto", 21)).form == "binned"


def test_nothing_is_timed_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(monkeypatch, direct=10, binned=1)
    proposals = [course.proposal("direct"), course.proposal("binned", unwise="small")]
    course.trials.decide(proposals, AUTO)
    assert course.runs == ["direct"], "the run that touches the pages"


def test_a_form_that_was_asked_for_is_built_though_unwise(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(monkeypatch, direct=10, binned=20)
    proposals = [course.proposal("direct"), course.proposal("binned", 5, unwise="small")]
    assert course.trials.decide(proposals, Hope("binned", None)).form == "binned"
    assert course.trials.break_even is None, "it is slower: it never pays"


def test_a_form_that_was_asked_for_and_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = Course(monkeypatch, direct=10, binned=20)
    refused = [course.proposal("direct"), course.proposal("binned", refusal="complex numbers")]
    with pytest.raises(InvalidSpecError, match="complex numbers"):
        course.trials.decide(refused, Hope("binned", None))
    large = [course.proposal("direct"), course.proposal("binned", most_nbytes=1 << 60)]
    with pytest.raises(NotEnoughMemoryError, match="form='direct'"):
        course.trials.decide(large, Hope("binned", None))
    assert "binned" not in course.built


def test_a_form_that_fails_to_fit_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(monkeypatch, direct=10)

    def build() -> Built:
        raise NotEnoughMemoryError("no pages")

    proposals = [course.proposal("direct"), Proposal("binned", build)]
    assert course.trials.decide(proposals, AUTO).form == "direct"
    assert "no pages" in course.trials.reason
