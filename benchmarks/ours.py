"""Our contenders: one call of the pool, plans over jobs and in crews; and how plans chose."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import hugepool
from contest import Contender, Entry, Missing, Sample, progress
from hugepool.array import SharedArray, SharedObject
from hugepool.bench.cases import Reference
from hugepool_common.errors import HugepoolError
from report import PlanNote
from setting import Setting

USES = 1000
"""What plans are told: enough that every form pays that is faster at all."""


def one_shot_contenders(
    setting: Setting,
    name: str,
    pages: str,
    call: Callable[[SharedArray | None, int], SharedArray],
    out: SharedArray,
    workers: Sequence[int],
    reference: Reference,
) -> list[Contender]:
    """A call of the pool, into `out` and with a new result every time.

    Parameters
    ----------
    call
        Takes the result's array or None, and the number of workers; gives the result.
    """

    def timed(target: SharedArray | None, count: int) -> Sample:
        started_ns = time.monotonic_ns()
        result = call(target, count)
        call_ns = time.monotonic_ns() - started_ns
        assert result.timings is not None
        return Sample.of_job(result.timings, call_ns, whole_call=target is None)

    def store_fresh(count: int) -> None:
        np.copyto(out.array, call(None, count).array)

    made = []
    for count in workers:
        existing = functools.partial(timed, out, count)
        fresh = functools.partial(timed, None, count)
        store = functools.partial(store_fresh, count)
        for shown, result, run, keep in (
            (f"{name}(out)", "existing", existing, existing),
            (name, "fresh", fresh, store),
        ):
            made.append(
                Contender(shown, "hugepool", pages, count, result, run, keep, out.array, reference)
            )
    return made


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan that was built, and the names of its contenders."""

    form: str
    pages: str
    plan: hugepool.SharedPlan
    build_ns: int
    steps: list[Any] = field(default_factory=list)

    @property
    def by_crew(self) -> str:
        """Name of the contender that runs it in a crew."""
        return f"plan {self.form} (crew)"

    @property
    def by_jobs(self) -> str:
        """Name of the contender that runs it over ZeroMQ."""
        return f"plan {self.form} (jobs)"


def build_plan(
    setting: Setting, form: str, pages: str, make: Callable[[hugepool.Pool], hugepool.SharedPlan]
) -> Planned | None:
    """Build one, or note why there is none.

    Parameters
    ----------
    form
        As the contender is to be called.
    make
        Has a pool plan it.
    """
    progress(f"building plan {form} on {pages}")
    started_ns = time.monotonic_ns()
    try:
        plan = make(setting.pools[pages])
    except HugepoolError as error:
        setting.missing.append(Missing(f"plan {form}", f"{type(error).__name__}: {error}", pages))
        return None
    return Planned(form, pages, plan, time.monotonic_ns() - started_ns)


def plan_contenders(
    setting: Setting,
    planned: Planned,
    x: SharedArray,
    out: SharedArray,
    workers: Sequence[int],
    reference: Reference,
) -> list[Contender]:
    """The plan over jobs with every number of workers, and in every crew."""
    plan, pages = planned.plan, planned.pages
    made = []

    def run_jobs(count: int) -> Sample:
        started_ns = time.monotonic_ns()
        plan.run(x, out, workers=count)
        call_ns = time.monotonic_ns() - started_ns
        assert out.timings is not None
        return Sample.of_job(out.timings, call_ns)

    def add(name: str, count: int, run: Callable[[], Sample]) -> None:
        made.append(
            Contender(
                name, "hugepool", pages, count, "existing", run, run, out.array, reference,
                planned.build_ns,
            )
        )  # fmt: skip

    for count in workers:
        add(planned.by_jobs, count, functools.partial(run_jobs, count))
    for (kind, count), crew in setting.crews.items():
        if kind != pages:
            continue
        try:
            step = crew.prepare(plan, x, out)
        except HugepoolError as error:
            text = f"{type(error).__name__}: {error}"
            setting.missing.append(Missing(planned.by_crew, text, pages, count))
            continue
        planned.steps.append(step)
        add(planned.by_crew, count, functools.partial(timed_call, step))
    return made


def timed_call(call: Callable[[], object]) -> Sample:
    """One call, by the caller's clock; the caller works in it from beginning to end."""
    cpu_ns, started_ns = time.thread_time_ns(), time.monotonic_ns()
    call()
    elapsed_ns = time.monotonic_ns() - started_ns
    return Sample(elapsed_ns, elapsed_ns, (time.thread_time_ns() - cpu_ns) / max(1, elapsed_ns))


def plan_notes(planned: Sequence[Planned], found: Sequence[Entry]) -> list[PlanNote]:
    """Descriptions, and for plans that chose for themselves how good the choice was."""
    notes = []
    for one in planned:
        report = one.plan.describe()
        name, workers = _measured_as(one, found)
        note = PlanNote(
            f"plan {one.form}",
            one.pages,
            workers,
            str(report),
            report.choice,
            report.nbytes,
            report.build_ns,
            report.break_even,
        )
        times = {
            other.form: _median(_measured_as(other, found), other.pages, found)
            for other in planned
            if other.pages == one.pages and other.form not in ("compact", "bfloat16")
        }
        mine = _median((name, workers), one.pages, found)
        rivals = {form: ns for form, ns in times.items() if form != one.form and ns}
        if mine and rivals and one.form == "auto":
            best = min(rivals, key=lambda form: rivals[form])
            # Of one form two plans were measured: the same code is not compared with itself.
            chosen = rivals.get(note.choice or "", mine)
            note = _with(note, best_form=best, behind_best=chosen / rivals[best])
        direct = times.get("direct", 0.0)
        if mine and note.build_ns and direct > mine:
            note = _with(note, measured_break_even=note.build_ns / (direct - mine))
        notes.append(note)
    return notes


def let_go(
    setting: Setting,
    planned: list[Planned],
    contenders: list[Contender],
    objects: Sequence[SharedObject],
) -> None:
    """Give all memory of a contest back, so that the next one finds it."""
    contenders.clear()
    steps = [step for one in planned for step in one.steps]
    while steps:
        steps.pop().release()
    planned.clear()
    gc.collect()  # a plan without a name goes with its last handle
    try:
        setting.drop(objects)
    except HugepoolError as error:  # the next contest may still fit
        setting.missing.append(Missing("memory", f"was not given back: {error}"))


def array(roles: Mapping[str, SharedObject], role: str) -> SharedArray:
    """The dense array of a role."""
    found = roles[role]
    assert isinstance(found, SharedArray)
    return found


def _with(note: PlanNote, **changes: Any) -> PlanNote:
    values = {name: getattr(note, name) for name in PlanNote.__struct_fields__} | changes
    return PlanNote(**values)


def _measured_as(one: Planned, found: Sequence[Entry]) -> tuple[str, int]:
    """Contender of a plan with the most workers, a crew's if there is one."""
    for name in (one.by_crew, one.by_jobs):
        counts = [
            entry.workers for entry in found if (entry.name, entry.pages) == (name, one.pages)
        ]
        if counts:
            return name, max(counts)
    return "", 0


def _median(which: tuple[str, int], pages: str, found: Sequence[Entry]) -> float:
    for entry in found:
        if (entry.name, entry.workers, entry.pages) == (*which, pages):
            return statistics.median(entry.samples_ns)
    return 0.0
