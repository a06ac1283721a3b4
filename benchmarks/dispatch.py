"""Time one small step: how long until workers have multiplied a matrix of 1000 rows, and say so.

    python benchmarks/dispatch.py --size 1000 --workers 2 --steps 1000

``--size`` is the number of rows; there are 8 entries in each. Every way has the rows split among
as many workers, on the same arrays, and is checked against SciPy's result first. Steps of
one way follow each other, as in a solver; the ways take turns by rounds of ``--steps``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from contest import (
    Contender,
    Entry,
    Missing,
    Sample,
    Work,
    entries,
    progress,
    ratios,
    verified,
)
from dispatch_peers import WAYS, Operands, Way
from hugepool import kernels, partition
from hugepool.bench.cases import Reference
from hugepool.bench.matrices import uniform
from hugepool.matrix import SharedMatrix, import_sparse
from options import Options, read_options
from ours import (
    Planned,
    array,
    build_plan,
    let_go,
    one_shot_contenders,
    plan_contenders,
    timed_call,
)
from report import Contest, new_run, publish
from setting import Setting

ENTRIES_PER_ROW = 8
_ALONE, _EMPTY = "kernel, largest part", "kernel, no row"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    options = read_options(
        __doc__,
        size="1000",
        size_help="rows of the matrix",
        oversubscribed=True,
        add=lambda parser: parser.add_argument(
            "--steps", type=_steps, default=500, help="in a round (500)"
        ),
        arguments=arguments,
    )
    with Setting(options) as setting:
        contest = _contest(setting, options)
    publish(new_run([contest], setting.missing, setting.backings), options)
    return 0


def _steps(text: str) -> int:
    number = int(float(text))
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _contest(setting: Setting, options: Options) -> Contest:
    rows = max(1, options.nbytes)
    matrix = uniform(rows, ENTRIES_PER_ROW * rows, options.seed)
    x = np.random.default_rng(options.seed).random(rows)
    sparse = import_sparse("the reference")
    whole = sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    bound = ENTRIES_PER_ROW * 2.0**-51 * (abs(whole) @ x)
    reference = Reference(whole @ x, bound, "SciPy's A @ x")
    pages = next(iter(setting.pools))
    pool = setting.pools[pages]
    roles: dict[str, Any] = {
        "A": pool.put(setting.name("A"), matrix),
        "x": setting.array(pages, "x", rows),
        "out": setting.array(pages, "out", rows),
    }
    np.copyto(roles["x"].array, x)
    out = array(roles, "out")

    contenders, planned = _ours(setting, options, roles, pages, reference)
    with ExitStack() as stack:
        for workers in options.workers:
            cuts = partition.by_nnz(matrix.indptr, workers)
            contenders += _alone(roles, cuts, pages)
            operands = Operands(
                setting.main.address,
                roles["A"].name,
                roles["x"].name,
                out.name,
                tuple(cuts),
                tuple(setting.cpus),
            )
            contenders += _ways(setting, options, stack, operands, pages, reference, out.array)
        contenders = verified(contenders, setting.missing)
        _measure(contenders, options.rounds, options.extra.steps)
    found = entries(contenders, Work(1, "step", matrix.nbytes + 16 * rows, 8 * rows, 1, {}))
    title = f"one step: {rows:,} rows, {matrix.nnz:,} entries; {options.rounds} rounds of "
    contest = Contest(
        title + f"{options.extra.steps} steps, times of whole calls",
        "step",
        1,
        matrix.nbytes + 16 * rows,
        tuple(found),
        tuple(ratios(found)),
        notes=tuple(_over_work(found)),
    )
    let_go(setting, planned, contenders, list(roles.values()))
    return contest


def _ours(
    setting: Setting, options: Options, roles: dict[str, Any], pages: str, reference: Reference
) -> tuple[list[Contender], list[Planned]]:
    """A job for each step, the same of a plan, and a crew's step; whole calls count."""
    x, out = array(roles, "x"), array(roles, "out")

    def multiply(target: Any, workers: int) -> Any:
        return setting.pools[pages].matvec(roles["A"], x, target, workers=workers)

    found = one_shot_contenders(
        setting, "pool.matvec", pages, multiply, out, options.workers, reference
    )
    contenders = [one for one in found if one.result == "existing"]
    plan = build_plan(
        setting, "direct", pages, lambda pool: pool.plan_matvec(roles["A"], form="direct")
    )
    if plan is not None:
        contenders += plan_contenders(setting, plan, x, out, options.workers, reference)
    for one in contenders:
        one.run = _whole_call(one.run)
    return contenders, [] if plan is None else [plan]


def _ways(
    setting: Setting,
    options: Options,
    stack: ExitStack,
    operands: Operands,
    pages: str,
    reference: Reference,
    out: Any,
) -> list[Contender]:
    """How others hand a step to processes."""
    made = []
    for kind in WAYS:
        if not options.wants(kind.name):
            continue
        progress(f"starting {kind.name} with {operands.parts}")
        try:
            with setting.unpinned():
                way: Way = stack.enter_context(kind(operands))
        except Exception as error:  # of a package that is not there, or does not start here
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            setting.missing.append(Missing(kind.name, reason, workers=operands.parts))
            continue
        run = functools.partial(_call, way.step)
        made.append(
            Contender(
                kind.name, "peer", pages, operands.parts, "existing", run, run, out, reference
            )
        )
    return made


def _alone(roles: Any, cuts: Sequence[int], pages: str) -> list[Contender]:
    """Our kernel in this process on the largest part, and on no row at all.

    The difference is what every way has to do besides its own work: the second has all
    the cost of a call from Python.
    """
    kernel = kernels.resolve("matvec")
    a = roles["A"]
    assert isinstance(a, SharedMatrix)
    matrix = kernels.CsrArrays(a.indptr, a.indices, a.data, (a.shape[0], a.shape[1]))
    private = np.empty(a.shape[0])
    operands = {"A": matrix, "x": roles["x"].array, "out": private}
    kernel.prepare(operands)
    start, stop = max(itertools.pairwise(cuts), key=lambda cut: cut[1] - cut[0])
    bind = getattr(kernel, "bind", None)
    workers = len(cuts) - 1

    def part(name: str, first: int, last: int) -> Contender:
        if bind is None:
            run = functools.partial(_call, lambda: kernel(operands, first, last))
        else:
            bound = bind(operands)
            run = functools.partial(_call, lambda: bound.loop(*bound.arguments, first, last))
        return Contender(name, "limit", pages, workers, "", run, note=kernel.implementation)

    return [part(_ALONE, start, stop), part(_EMPTY, start, start)]


def _call(step: Callable[[], object]) -> Sample:
    """One call, its CPU time not asked for: that would cost more than the step."""
    started_ns = time.perf_counter_ns()
    step()
    elapsed_ns = time.perf_counter_ns() - started_ns
    return Sample(elapsed_ns, elapsed_ns)


def _whole_call(run: Callable[[], Sample]) -> Callable[[], Sample]:
    """The same with the whole call as what counts: the way there and back is the subject here."""
    if isinstance(run, functools.partial) and run.func is timed_call:
        return functools.partial(_call, run.args[0])

    def timed() -> Sample:
        sample = run()
        return Sample(sample.call_ns, sample.call_ns, sample.cpu_share, sample.workers)

    return timed


def _measure(contenders: Sequence[Contender], rounds: int, steps: int) -> None:
    """Rounds of many steps each; the first steps of a round are not counted."""
    for contender in contenders:
        contender.settle()
    for number in range(rounds):
        for contender in contenders if number % 2 else reversed(contenders):
            for _ in range(min(20, steps)):
                contender.run()
            contender.samples += [contender.run() for _ in range(steps)]
        progress(f"round {number + 1} of {rounds}")


def _over_work(found: Sequence[Entry]) -> list[str]:
    """What each way takes beyond the kernel that runs in it, in its middle step."""
    middle = {(one.name, one.workers): one.per_item_ns.median for one in found}
    alone = {
        workers: max(0.0, middle[_ALONE, workers] - middle[_EMPTY, workers])
        for workers in {one.workers for one in found}
    }
    return [
        f"{one.name}, {one.workers}: p50 {one.per_item_ns.median / 1e3:.2f} us, of which "
        f"{(one.per_item_ns.median - alone[one.workers]) / 1e3:.2f} us are not the kernel; "
        f"p99 {one.p99_ns / 1e3:.2f} us"
        for one in found
        if one.group != "limit"
    ]


if __name__ == "__main__":
    raise SystemExit(main())
