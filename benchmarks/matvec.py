"""Time ``A @ x`` by hugepool and by its peers, in one interleaved run on the same arrays.

    python benchmarks/matvec.py --size 1GB --matrix uniform,kronecker:22,stencil:128

``--size`` counts the entries of each matrix, 12 bytes each; a colon gives a matrix its own
parameter instead: entries, scale, edge of the cube, copies of the graph. Every result
is compared with SciPy's before anything is timed.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import hugepool
from contest import Work, entries, measure, progress, ratios, scalings, verified
from hugepool import partition
from hugepool.array import SharedArray, SharedObject
from hugepool.bench.cases import Reference
from hugepool.bench.matrices import CsrMatrix
from hugepool.matrix import SharedMatrix, import_sparse
from matrices import RECIPES, make_matrix
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
from peers import PRODUCT_PEERS
from report import Contest, new_run, publish
from setting import Setting, stream_nbytes

FORMS = (
    "auto",
    "direct",
    "binned",
    "ordered",
    "repeated",
    "mirrored",
    "narrow",
    "compact",
    "bfloat16",
)
_PLAN_BYTES = 36
"""Of an entry, in all forms together, at most."""
_ROUNDINGS = {"compact": 2.0**-24, "bfloat16": 2.0**-8}
"""Storages that round, and by how much a value."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    options = read_options(
        __doc__,
        size="960MB",
        size_help="bytes of each matrix's entries, 12 each",
        add=add_options,
        arguments=arguments,
    )
    with Setting(options) as setting:
        contests = [product_contest(setting, options, text) for text in options.extra.matrix]
    publish(new_run(contests, setting.missing, setting.backings), options)
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this program alone."""
    parser.add_argument(
        "--matrix",
        type=matrix_names,
        default=("uniform", "kronecker", "stencil"),
        help=f"such as uniform,kronecker:22; of {' '.join(RECIPES)}",
    )
    parser.add_argument(
        "--forms", type=_forms, default=("auto", "direct"), help=f"of plans: {','.join(FORMS)}"
    )


def matrix_names(text: str) -> tuple[str, ...]:
    """Names of matrices, with or without parameters, from a list with commas."""
    names = tuple(text.split(","))
    for name in names:
        if name.partition(":")[0] not in RECIPES:
            raise argparse.ArgumentTypeError(f"{name!r} is not of {' '.join(RECIPES)}")
    return names


def _forms(text: str) -> tuple[str, ...]:
    names = tuple(word for word in text.split(",") if word)
    if not set(names) <= set(FORMS):
        raise argparse.ArgumentTypeError(f"{text!r} is not of {','.join(FORMS)}")
    return names


def product_contest(setting: Setting, options: Options, text: str) -> Contest:
    """Everything that multiplies with one matrix, measured."""
    progress(f"making {text}")
    matrix, _ = make_matrix(text, options.nbytes, options.seed)
    kinds = len(setting.pools)
    shared = matrix.nbytes + 8 * sum(matrix.shape)
    forms = min(len(options.extra.forms), 2) * _PLAN_BYTES // 2 * matrix.nnz
    setting.check_room(
        kinds * (shared + forms + stream_nbytes(matrix.nbytes))
        + 3 * matrix.nbytes
        + 32 * matrix.shape[0]
    )
    x = np.random.default_rng([options.seed, matrix.shape[1]]).random(matrix.shape[1])
    references = _references(matrix, x)
    reference = references["exact"]
    objects = {pages: _share(setting, pages, matrix, x) for pages in setting.pools}
    limits, streams, work = setting.limit_contenders(objects, matrix.nbytes)
    planned: list[Planned] = []
    contenders = setting.peer_contenders(
        PRODUCT_PEERS,
        "matvec",
        objects,
        lambda workers: partition.by_nnz(matrix.indptr, workers),
        reference,
    )
    for pages, roles in objects.items():
        out = array(roles, "out")
        contenders += one_shot_contenders(
            setting,
            "pool.matvec",
            pages,
            functools.partial(_matvec, setting.pools[pages], roles),
            out,
            options.workers,
            reference,
        )
        for form in options.extra.forms:
            made = _planned(setting, options, pages, form, roles)
            if made is not None:
                planned.append(made)
                bound = references.get(form, reference)
                contenders += plan_contenders(
                    setting, made, array(roles, "x"), out, options.workers, bound
                )
    contenders = verified(contenders, setting.missing) + limits
    progress(f"{len(contenders)} contenders verified")
    measure(contenders, options.rounds)
    nbytes = matrix.nbytes + 8 * sum(matrix.shape)
    found = entries(
        contenders,
        Work(matrix.nnz, "entry", nbytes, 8 * matrix.shape[1], work.lines, work.stream_nbytes),
    )
    contest = Contest(
        f"{text}: {matrix.shape[0]:,} x {matrix.shape[1]:,}, {matrix.nnz:,} entries, "
        f"x {8 * matrix.shape[1] / 1e6:,.1f} MB",
        "entry",
        matrix.nnz,
        nbytes,
        tuple(found),
        tuple(ratios(found)),
        tuple(scalings(found)),
        tuple(plan_notes(planned, found)),
    )
    let_go(
        setting, planned, contenders, [*streams, *(o for r in objects.values() for o in r.values())]
    )
    return contest


def _references(matrix: CsrMatrix, x: np.ndarray[Any, Any]) -> dict[str, Reference]:
    """SciPy's product, and what may differ by the storage of a plan: its rounding of values too."""
    sparse = import_sparse("the reference")
    shape, parts = matrix.shape, (matrix.indices, matrix.indptr)
    expected = sparse.csr_array((matrix.data, *parts), shape=shape) @ x
    # Two sums of k rounded products differ by at most 2 k eps of the sum of magnitudes.
    magnitude = sparse.csr_array((np.abs(matrix.data), *parts), shape=shape) @ np.abs(x)
    entries_of_row = np.maximum(np.diff(matrix.indptr), 1)
    bound = 2 * entries_of_row * np.finfo(np.float64).eps * magnitude
    return {
        storage: Reference(expected, bound + rounding * magnitude, "SciPy's A @ x")
        for storage, rounding in (("exact", 0.0), *_ROUNDINGS.items())
    }


def _share(
    setting: Setting, pages: str, matrix: CsrMatrix, x: np.ndarray[Any, Any]
) -> dict[str, SharedObject]:
    """The operands on a page kind, by role."""
    progress(f"sharing on {pages}")
    shared_x = setting.array(pages, "x", len(x))
    np.copyto(shared_x.array, x)
    return {
        "A": setting.pools[pages].put(setting.name("A"), matrix),
        "x": shared_x,
        "out": setting.array(pages, "out", matrix.shape[0]),
    }


def _matvec(
    pool: hugepool.Pool,
    roles: Mapping[str, SharedObject],
    out: SharedArray | None,
    workers: int,
) -> SharedArray:
    a = roles["A"]
    assert isinstance(a, SharedMatrix)
    return pool.matvec(a, array(roles, "x"), out, workers=workers)


def _planned(
    setting: Setting,
    options: Options,
    pages: str,
    form: str,
    roles: Mapping[str, SharedObject],
) -> Planned | None:
    workers = max(options.workers)
    matrix = roles["A"]
    assert isinstance(matrix, SharedMatrix)
    choice: dict[str, Any] = {"storage": form} if form in _ROUNDINGS else {"form": form}
    return build_plan(
        setting,
        form,
        pages,
        lambda pool: pool.plan_matvec(matrix, uses=USES, workers=workers, **choice),
    )


if __name__ == "__main__":
    raise SystemExit(main())
