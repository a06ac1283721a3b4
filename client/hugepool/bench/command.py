"""``hugepool bench``: options in, one run, results out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hugepool_common.errors import InvalidMatrixError, InvalidSpecError, NotEnoughMemoryError
from hugepool_common.units import parse_bytes

if TYPE_CHECKING:
    from hugepool.bench.matrices import CsrMatrix
    from hugepool.bench.measure import Progress
    from hugepool.bench.options import BenchOptions
    from hugepool.bench.reproduce import Article
    from hugepool.bench.results import Benchmark

_QUICK_BYTES = 32_000_000
_QUICK_GATHERS = 1_000_000


class UsageError(click.ClickException):
    """Wrong usage, told in one line."""

    exit_code = 2


@click.command("bench")
@click.option("--size", metavar="BYTES", help="Bytes of x.  [default: 256MB]")
@click.option("--gathers", metavar="N", help="Gathers per run.  [default: 1e7]")
@click.option("--workers", metavar="LIST", help="Numbers of worker processes, such as 1,2.")
@click.option("--backing", "backings", multiple=True, metavar="NAME", help="Only this page kind.")
@click.option("--pattern", "patterns", multiple=True, metavar="NAME", help="Only this pattern.")
@click.option(
    "--kernel", "kernels", multiple=True, metavar="NAME", help="hugepool, numpy, take or scipy."
)
@click.option("--matrix", metavar="FILE", help="Multiply by this .mtx, .mtx.gz or .npz matrix.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Measured rounds.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--output", metavar="FILE", help="Also write the JSON there.")
@click.option("--plot", metavar="FILE", help="Also draw a PNG.")
@click.option("--html", metavar="FILE", help="Also write one self-contained page.")
@click.option("--reproduce", is_flag=True, help="Measure the rows of the first article.")
@click.option("--quick", is_flag=True, help="Small: 32 MB and 1e6 gathers unless given.")
def bench_command(
    size: str | None,
    gathers: str | None,
    workers: str | None,
    backings: tuple[str, ...],
    patterns: tuple[str, ...],
    kernels: tuple[str, ...],
    matrix: str | None,
    repeats: int,
    seed: int,
    as_json: bool,
    output: str | None,
    plot: str | None,
    html: str | None,
    reproduce: bool,
    quick: bool,
) -> None:
    """Measure gathers and sparse products on every page kind of this host.

    Page kinds: heap shm-4k tmpfs-huge shm-collapse hugetlbfs-2m hugetlbfs-1g. Patterns:
    random stride zipf sequential (gathers), uniform kronecker stencil (matrices). Every
    result is checked before it is timed. What this host cannot give is listed with the
    reason. --backing, --pattern and --kernel may be repeated.

    \b
    Examples:
      hugepool bench
      hugepool bench --pattern random --size 4GB --workers 1
      hugepool bench --matrix graph.mtx.gz --html graph.html
    """
    from hugepool.bench.options import BACKINGS, PATTERNS, BenchOptions, default_workers

    for path in (output, plot, html):
        _check_directory(path)
    _check_reproduce(reproduce, plot, html, matrix, backings, patterns, kernels)
    try:
        options = BenchOptions(
            nbytes=parse_bytes(size) if size else (_QUICK_BYTES if quick else 256_000_000),
            gathers=_count(gathers) if gathers else (_QUICK_GATHERS if quick else 10_000_000),
            workers=_counts(workers) if workers else default_workers(),
            backings=tuple(name for name in BACKINGS if name in backings) or BACKINGS,
            patterns=tuple(dict.fromkeys(patterns)) or (() if matrix else PATTERNS),
            kernels=tuple(dict.fromkeys(kernels)),
            matrix=matrix,
            repeats=repeats,
            seed=seed,
        )
        for name in backings:
            _check_backing(name, BACKINGS)
        loaded = _read_matrix(matrix)
    except InvalidSpecError as error:
        raise UsageError(str(error)) from None
    _check_extras(plot)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    command = ("hugepool", *sys.argv[1:])
    found: Article | Benchmark
    with _progress() as progress:
        if reproduce:
            found = _run_article(
                options, command, started, size or quick, gathers or quick, progress
            )
        else:
            found = _run_suite(options, loaded, command, started, progress)
    _write(found, as_json, output, plot, html)


def _run_suite(
    options: BenchOptions,
    matrix: CsrMatrix | None,
    command: tuple[str, ...],
    started: str,
    progress: Progress,
) -> Benchmark:
    import hugepool
    from hugepool.bench.environment import read_environment
    from hugepool.bench.results import Benchmark
    from hugepool.bench.statistics import RULE
    from hugepool.bench.suite import Suite

    environment = read_environment()
    with hugepool.connect("embedded") as pool:
        suite = Suite(pool, options, matrix, progress)
        suite.prepare()
        pool.start_workers(max(options.workers), cpus=sorted(os.sched_getaffinity(0)))
        suite.run()
    if not suite.cells:
        raise NotEnoughMemoryError(
            "none of the page kinds asked for could be measured",
            had="; ".join(one.fact for one in suite.missing) or "no such kernel for these patterns",
            remedy="use a smaller --size, or see hugepool doctor for more pages",
        )
    return Benchmark(
        command,
        started,
        environment,
        _shown_options(options),
        tuple(suite.cells),
        tuple(suite.limits),
        tuple(suite.missing),
        tuple(suite.notes),
        RULE,
    )


def _run_article(
    options: BenchOptions,
    command: tuple[str, ...],
    started: str,
    sized: object,
    counted: object,
    progress: Progress,
) -> Article:
    import hugepool
    from hugepool.bench.reproduce import ELEMENTS, check_memory, reproduce
    from hugepool_common.pages import read_host

    elements = options.elements if sized else ELEMENTS
    gathers = options.gathers if counted else ELEMENTS
    check_memory(elements, gathers, read_host().memory_headroom_bytes)
    with hugepool.connect("embedded") as pool:
        pool.start_workers(1, cpus=sorted(os.sched_getaffinity(0))[:1])
        return reproduce(
            pool,
            command,
            started,
            elements=elements,
            gathers=gathers,
            repeats=options.repeats,
            seed=options.seed,
            progress=progress,
        )


def _write(
    found: Article | Benchmark,
    as_json: bool,
    output: str | None,
    plot: str | None,
    html: str | None,
) -> None:
    from hugepool.bench.results import Benchmark
    from hugepool.bench.table import print_article, print_benchmark, terminal

    if output:
        Path(output).write_bytes(found.to_json())
    if isinstance(found, Benchmark):
        if plot:
            from hugepool.bench.plot import write_plot

            write_plot(found, plot)
        if html:
            from hugepool.bench.html import render_page

            Path(html).write_text(render_page(found), encoding="utf-8")
    if as_json:
        click.echo(found.to_json().decode(), nl=False)
    elif isinstance(found, Benchmark):
        print_benchmark(found, terminal())
    else:
        print_article(found, terminal())


# Options --------------------------------------------------------------------------


def _count(text: str) -> int:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 1 <= value < 2**48 or value != int(value):
        raise InvalidSpecError(f"{text!r} is not a count", remedy="write it as 10000000 or 1e7")
    return int(value)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(piece.strip()) for piece in text.split(",")}))


def _check_backing(name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise InvalidSpecError(f"unknown backing {name!r}", needed="one of " + " ".join(choices))


def _check_directory(path: str | None) -> None:
    """Find out before a long run that its result can be written."""
    if path is None:
        return
    directory = Path(path).resolve().parent
    if not directory.is_dir() or not os.access(directory, os.W_OK) or Path(path).is_dir():
        raise UsageError(f"cannot write {path}: no writable directory {directory}")


def _check_reproduce(reproduce: bool, *others: object) -> None:
    if reproduce and any(others):
        raise UsageError(
            "--reproduce has its own rows: it goes with --size, --gathers, --repeats, --seed, "
            "--json and --output only"
        )


def _check_extras(plot: str | None) -> None:
    if plot:
        from hugepool.bench.plot import import_matplotlib

        import_matplotlib()


def _read_matrix(path: str | None) -> CsrMatrix | None:
    if path is None:
        return None
    import numpy as np

    from hugepool.bench.matrices import CsrMatrix
    from hugepool.formats import is_matrix_file, read_matrix

    if not is_matrix_file(path):
        raise InvalidSpecError(f"{path} is no matrix file", needed=".mtx, .mtx.gz or .npz")
    source = read_matrix(path)
    if not len(source.data) or source.data.dtype.kind not in "iuf":
        raise InvalidMatrixError("the matrix holds nothing to multiply with", where=path)
    data = np.ascontiguousarray(source.data, np.float64)
    return CsrMatrix(source.indptr, source.indices, data, source.shape)


def _shown_options(options: BenchOptions) -> dict[str, str | int | list[str | int] | None]:
    return {
        "nbytes": options.nbytes,
        "gathers": options.gathers,
        "workers": list(options.workers),
        "backings": list(options.backings),
        "patterns": list(options.patterns),
        "kernels": list(options.kernels),
        "matrix": options.matrix,
        "repeats": options.repeats,
        "seed": options.seed,
    }


@contextmanager
def _progress() -> Iterator[Progress]:
    """A status line on standard error if that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))
