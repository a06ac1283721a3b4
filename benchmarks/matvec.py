"""Time ``A @ x`` by hugepool and by its peers, in one interleaved run on the same arrays.

    python benchmarks/matvec.py --size 1GB --matrix uniform,kronecker:22,stencil:128
    python benchmarks/matvec.py --size 1GB --transposed       # A.T @ x instead

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
from product_peers import PRODUCT_PEERS, TRANSPOSED_PEERS
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
        "--transposed",
        action="store_const",
        const="rmatvec",
        default="matvec",
        dest="operation",
        help="time A.T @ x",
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
    """Everything that multiplies with one matrix, or with its transpose, measured."""
    progress(f"making {text}")
    matrix, _ = make_matrix(text, options.nbytes, options.seed)
    operation = options.extra.operation
    transposed = operation == "rmatvec"
    taken, produced = matrix.shape if transposed else matrix.shape[::-1]
    kinds = len(setting.pools)
    shared = matrix.nbytes + 8 * sum(matrix.shape)
    forms = min(len(options.extra.forms), 2) * _PLAN_BYTES // 2 * matrix.nnz
    # Peers that keep a transpose make all of it in every process before they take their part.
    kept = (1 + max(options.workers)) * 2 * matrix.nbytes if transposed else 0
    setting.check_room(
        kinds * (shared + forms + stream_nbytes(matrix.nbytes))
        + 3 * matrix.nbytes
        + 32 * produced
        + kept
    )
    x = np.random.default_rng([options.seed, taken]).random(taken)
    references = _references(matrix, x, transposed)
    reference = references["exact"]
    objects = {pages: _share(setting, pages, matrix, x, produced) for pages in setting.pools}
    limits, streams, work = setting.limit_contenders(objects, matrix.nbytes)
    planned: list[Planned] = []
    entries_before = _entries_before(matrix) if transposed else matrix.indptr
    contenders = setting.peer_contenders(
        TRANSPOSED_PEERS if transposed else PRODUCT_PEERS,
        operation,
        objects,
        lambda workers: partition.by_nnz(entries_before, workers),
        reference,
    )
    for pages, roles in objects.items():
        out = array(roles, "out")
        contenders += one_shot_contenders(
            setting,
            f"pool.{operation}",
            pages,
            functools.partial(_product, operation, setting.pools[pages], roles),
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
    # The transposed product reads x in order, and *writes* at random: that limit is not measured.
    lines_of = 0 if transposed else 8 * taken
    found = entries(
        contenders, Work(matrix.nnz, "entry", nbytes, lines_of, work.lines, work.stream_nbytes)
    )
    contest = Contest(
        f"{text}{', transposed' if transposed else ''}: "
        f"{matrix.shape[0]:,} x {matrix.shape[1]:,}, {matrix.nnz:,} entries, "
        f"x {8 * taken / 1e6:,.1f} MB" + (f", y {8 * produced / 1e6:,.1f} MB" * transposed),
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


def _entries_before(matrix: CsrMatrix) -> np.ndarray[Any, Any]:
    """Entries before each column, and all of them: the transpose's row starts."""
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.concatenate([[0], np.cumsum(counts)])


def _references(
    matrix: CsrMatrix, x: np.ndarray[Any, Any], transposed: bool
) -> dict[str, Reference]:
    """SciPy's product, and what may differ by the storage of a plan: its rounding of values too."""
    sparse = import_sparse("the reference")
    shape, parts = matrix.shape, (matrix.indices, matrix.indptr)
    a = sparse.csr_array((matrix.data, *parts), shape=shape)
    # Two sums of k rounded products differ by at most 2 k eps of the sum of magnitudes.
    absolute = sparse.csr_array((np.abs(matrix.data), *parts), shape=shape)
    summed = np.diff(_entries_before(matrix) if transposed else matrix.indptr)
    expected = a.T @ x if transposed else a @ x
    magnitude = absolute.T @ np.abs(x) if transposed else absolute @ np.abs(x)
    bound = 2 * np.maximum(summed, 1) * np.finfo(np.float64).eps * magnitude
    said = f"SciPy's {'A.T' if transposed else 'A'} @ x"
    return {
        storage: Reference(expected, bound + rounding * magnitude, said)
        for storage, rounding in (("exact", 0.0), *_ROUNDINGS.items())
    }


def _share(
    setting: Setting, pages: str, matrix: CsrMatrix, x: np.ndarray[Any, Any], produced: int
) -> dict[str, SharedObject]:
    """The operands on a page kind, by role."""
    progress(f"sharing on {pages}")
    shared_x = setting.array(pages, "x", len(x))
    np.copyto(shared_x.array, x)
    return {
        "A": setting.pools[pages].put(setting.name("A"), matrix),
        "x": shared_x,
        "out": setting.array(pages, "out", produced),
    }


def _product(
    operation: str,
    pool: hugepool.Pool,
    roles: Mapping[str, SharedObject],
    out: SharedArray | None,
    workers: int,
) -> SharedArray:
    a = roles["A"]
    assert isinstance(a, SharedMatrix)
    multiply = pool.rmatvec if operation == "rmatvec" else pool.matvec
    return multiply(a, array(roles, "x"), out, workers=workers)


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

    def make(pool: hugepool.Pool) -> hugepool.SharedPlan:
        plan = pool.plan_rmatvec if options.extra.operation == "rmatvec" else pool.plan_matvec
        return plan(matrix, uses=USES, workers=workers, **choice)

    return build_plan(setting, form, pages, make)


if __name__ == "__main__":
    raise SystemExit(main())
