"""Time ``x[idx]`` by hugepool and by its peers, in one interleaved run on the same arrays.

    python benchmarks/gather.py --size 400MB --gathers 5e7 --rounds 7

``--size`` is that of x, float64. Every result is compared with NumPy's, bit for bit,
before anything is timed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import hugepool
from contest import Work, entries, measure, progress, ratios, scalings, verified
from gather_peers import GATHER_PEERS
from hugepool import partition
from hugepool.array import SharedArray, SharedObject
from hugepool.bench.cases import Reference
from hugepool.bench.patterns import GATHER_PATTERNS, make_indices
from options import Options, read_options
from ours import (
    USES,
    Planned,
    array,
    build_plan,
    let_go,
    one_shot_contenders,
    plan_contenders,
    plan_notes,
)
from report import Contest, new_run, publish
from setting import Setting, stream_nbytes

FORMS = ("auto", "direct", "binned")
_PLAN_BYTES = 24
"""Of an index, in all forms together, at most."""
_LINE_BYTES = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    options = read_options(
        __doc__, size="400MB", size_help="bytes of x", add=add_options, arguments=arguments
    )
    with Setting(options) as setting:
        contests = [gather_contest(setting, options, pattern) for pattern in options.extra.pattern]
    publish(new_run(contests, setting.missing, setting.backings), options)
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this program alone."""
    parser.add_argument(
        "--gathers", type=lambda text: int(float(text)), help="indices (one an element of x)"
    )
    parser.add_argument(
        "--pattern",
        type=_of("--pattern", tuple(GATHER_PATTERNS)),
        default=("random",),
        help=f"of {','.join(GATHER_PATTERNS)}",
    )
    parser.add_argument(
        "--forms", type=_of("--forms", FORMS), default=FORMS, help=f"of plans: {','.join(FORMS)}"
    )


def _of(name: str, choices: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word for word in text.split(",") if word)
        if not set(words) <= set(choices):
            raise argparse.ArgumentTypeError(f"{name} takes {','.join(choices)}")
        return words

    return parse


def gather_contest(setting: Setting, options: Options, pattern: str) -> Contest:
    """Everything that gathers in one pattern, measured."""
    elements = max(1, options.nbytes // 8)
    gathers = options.extra.gathers or elements
    kinds, forms = len(setting.pools), min(len(options.extra.forms), 2)
    each = 8 * elements + 16 * gathers + forms * _PLAN_BYTES * gathers
    each += stream_nbytes(16 * gathers)
    setting.check_room(kinds * each + 8 * elements + 3 * 8 * gathers)
    progress(f"making {pattern} indices")
    x = np.random.default_rng([options.seed, elements]).random(elements)
    idx = make_indices(pattern, elements, gathers, options.seed)
    reference = Reference(x[idx], None, "NumPy's x[idx]")
    objects = {pages: _share(setting, pages, x, idx) for pages in setting.pools}
    del x, idx
    limits, streams, work = setting.limit_contenders(objects, 16 * gathers)
    planned: list[Planned] = []
    contenders = setting.peer_contenders(
        GATHER_PEERS,
        "gather",
        objects,
        lambda workers: partition.by_rows(gathers, workers),
        reference,
    )
    for pages, roles in objects.items():
        out, source = array(roles, "out"), array(roles, "x")
        call = functools.partial(_gather, setting.pools[pages], roles)
        contenders += one_shot_contenders(
            setting, "pool.gather", pages, call, out, options.workers, reference
        )
        for form in options.extra.forms:
            made = build_plan(setting, form, pages, functools.partial(_plan, roles, form))
            if made is not None:
                planned.append(made)
                contenders += plan_contenders(
                    setting, made, source, out, options.workers, reference
                )
    contenders = verified(contenders, setting.missing) + limits
    progress(f"{len(contenders)} contenders verified")
    measure(contenders, options.rounds)
    nbytes = 16 * gathers + min(8 * elements, _LINE_BYTES * gathers)
    found = entries(
        contenders, Work(gathers, "gather", nbytes, 8 * elements, work.lines, work.stream_nbytes)
    )
    contest = Contest(
        f"{pattern}: {gathers:,} gathered from {elements:,} float64, {8 * elements / 1e6:,.1f} MB",
        "gather",
        gathers,
        nbytes,
        tuple(found),
        tuple(ratios(found)),
        tuple(scalings(found)),
        tuple(plan_notes(planned, found)),
    )
    made_here = [*streams, *(one for roles in objects.values() for one in roles.values())]
    let_go(setting, planned, contenders, made_here)
    return contest


def _share(
    setting: Setting, pages: str, x: npt.NDArray[Any], idx: npt.NDArray[Any]
) -> dict[str, SharedObject]:
    """The operands on a page kind, by role."""
    progress(f"sharing on {pages}")
    shared = {
        "x": setting.array(pages, "x", len(x)),
        "idx": setting.array(pages, "idx", len(idx), "i8"),
        "out": setting.array(pages, "out", len(idx)),
    }
    np.copyto(shared["x"].array, x)
    np.copyto(shared["idx"].array, idx)
    return dict(shared)


def _gather(
    pool: hugepool.Pool,
    roles: Mapping[str, SharedObject],
    out: SharedArray | None,
    workers: int,
) -> SharedArray:
    return pool.gather(array(roles, "x"), array(roles, "idx"), out, workers=workers)


def _plan(roles: Mapping[str, SharedObject], form: Any, pool: hugepool.Pool) -> hugepool.SharedPlan:
    return pool.plan_gather(array(roles, "idx"), source=array(roles, "x"), uses=USES, form=form)


if __name__ == "__main__":
    raise SystemExit(main())
