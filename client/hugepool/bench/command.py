"""``hugepool bench``: options in, one run, results out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import click

from hugepool.bench.arguments import (
    UsageError,
    check_alone,
    check_backing,
    check_extras,
    check_outputs,
    check_reproduce,
    count,
    counts,
    given,
    read_matrix,
    seconds,
    shown_options,
)
from hugepool_common.errors import HugepoolError, InvalidSpecError
from hugepool_common.units import parse_bytes

if TYPE_CHECKING:
    from hugepool.bench.matrices import CsrMatrix
    from hugepool.bench.measure import Progress
    from hugepool.bench.options import BenchOptions
    from hugepool.bench.reproduce import Article
    from hugepool.bench.results import Benchmark

_QUICK_BYTES = 32_000_000
_QUICK_GATHERS = 1_000_000
_REPEATS = 5


@click.command("bench")
@click.option("--size", metavar="BYTES", help="Bytes of x.  [default: 256MB]")
@click.option("--gathers", metavar="N", help="Gathers per run.  [default: 1e7]")
@click.option("--workers", metavar="LIST", help="Numbers of worker processes, as 1,2 or 1-4.")
@click.option("--backing", "backings", multiple=True, metavar="NAME", help="Only this page kind.")
@click.option("--pattern", "patterns", multiple=True, metavar="NAME", help="Only this pattern.")
@click.option(
    "--kernel", "kernels", multiple=True, metavar="NAME", help="hugepool, numpy, take or scipy."
)
@click.option("--matrix", metavar="FILE", help="Multiply by this .mtx, .mtx.gz or .npz matrix.")
@click.option("--repeats", type=int, help="Measured rounds.  [default: 5; 12 with --reproduce]")
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--output", metavar="FILE", help="Also write the JSON there.")
@click.option("--sweep", metavar="SECONDS", help="Also gather from growing arrays, so long.")
@click.option("--plot", metavar="FILE", help="Also draw a PNG, or an SVG if named so.")
@click.option("--html", metavar="FILE", help="Also write one self-contained page, with pictures.")
@click.option("--compare", nargs=2, metavar="OLD NEW", help="Compare two files of --output.")
@click.option("--reproduce", is_flag=True, help="Measure the rows of the first article.")
@click.option("--quick", is_flag=True, help="Small: 32 MB and 1e6 gathers unless given.")
@click.pass_context
def bench_command(
    context: click.Context,
    size: str | None,
    gathers: str | None,
    workers: str | None,
    backings: tuple[str, ...],
    patterns: tuple[str, ...],
    kernels: tuple[str, ...],
    matrix: str | None,
    repeats: int | None,
    seed: int,
    as_json: bool,
    output: str | None,
    sweep: str | None,
    plot: str | None,
    html: str | None,
    compare: tuple[str, str] | None,
    reproduce: bool,
    quick: bool,
) -> None:
    """Measure gathers and sparse products on every page kind of this host.

    Page kinds: heap shm-4k tmpfs-huge shm-collapse hugetlbfs-2m hugetlbfs-1g. Patterns:
    random stride zipf sequential (gathers), uniform kronecker stencil (matrices). Every
    result is checked before it is timed. What this host cannot give is listed with the
    reason. --backing, --pattern and --kernel may be repeated. --compare measures nothing:
    it tells what has changed from one run to another beyond the noise of both.

    \b
    Examples:
      hugepool bench
      hugepool bench --sweep 30 --html bench.html --output bench.json
      hugepool bench --compare before.json after.json
      hugepool bench --pattern random --size 4GB --workers 1
      hugepool bench --matrix graph.mtx.gz --html graph.html
    """
    from hugepool.bench.options import (
        BACKINGS,
        BenchOptions,
        default_patterns,
        default_workers,
    )
    from hugepool.bench.reproduce import REPEATS

    if compare is not None:
        check_alone(context, "--compare", ("--json",))
        _compare(*compare, as_json)
        return
    check_outputs({"--output": output, "--plot": plot, "--html": html})
    check_reproduce(reproduce, plot, html, sweep, matrix, backings, patterns, kernels)
    try:
        options = BenchOptions(
            nbytes=given(size, parse_bytes, _QUICK_BYTES if quick else 256_000_000),
            gathers=given(gathers, count, _QUICK_GATHERS if quick else 10_000_000),
            workers=given(workers, counts, default_workers()),
            backings=tuple(name for name in BACKINGS if name in backings) or BACKINGS,
            patterns=tuple(dict.fromkeys(patterns))
            or (() if matrix is not None else default_patterns(kernels)),
            kernels=tuple(dict.fromkeys(kernels)),
            matrix=matrix,
            repeats=repeats if repeats is not None else REPEATS if reproduce else _REPEATS,
            seed=seed,
            sweep_s=given(sweep, seconds, 0.0),
        )
        for name in backings:
            check_backing(name, BACKINGS)
        loaded = read_matrix(matrix)
    except InvalidSpecError as error:
        raise UsageError(str(error)) from None
    check_extras(plot, options)
    as_given = quick or any(one is not None for one in (size, gathers, matrix))
    if not (as_given or sys.stderr.isatty()):
        click.echo(
            "hugepool: this takes some minutes on a quiet machine and longer on a busy one; "
            "--quick takes seconds",
            err=True,
        )
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    command = ("hugepool", *sys.argv[1:])
    found: Article | Benchmark
    with _progress() as progress:
        if reproduce:
            found = _run_article(
                options,
                command,
                started,
                sized=quick or size is not None,
                counted=quick or gathers is not None,
                progress=progress,
            )
        else:
            found = _run_suite(options, loaded, command, started, progress)
    write_results(found, as_json, output, plot, html)


def _run_suite(
    options: BenchOptions,
    matrix: CsrMatrix | None,
    command: tuple[str, ...],
    started: str,
    progress: Progress,
) -> Benchmark:
    import hugepool
    from hugepool.bench.environment import read_environment
    from hugepool.bench.peak import peak_gflops
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
        raise suite.nothing_measured()
    products = any(cell.unit == "nnz" for cell in suite.cells)
    return Benchmark(
        command,
        started,
        environment,
        shown_options(options),
        tuple(suite.cells),
        tuple(suite.limits),
        tuple(suite.missing),
        tuple(suite.notes),
        RULE,
        tuple(suite.sweep),
        peak_gflops() if products else None,
    )


def _run_article(
    options: BenchOptions,
    command: tuple[str, ...],
    started: str,
    *,
    sized: bool,
    counted: bool,
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


def _compare(old: str, new: str, as_json: bool) -> None:
    from hugepool.bench.comparison import compare_runs, read_run
    from hugepool.bench.comparison_table import print_comparison
    from hugepool.bench.table import terminal

    found = compare_runs(read_run(old), read_run(new))
    if as_json:
        click.echo(found.to_json().decode(), nl=False)
    else:
        print_comparison(found, old, new, terminal())


def write_results(
    found: Article | Benchmark,
    as_json: bool,
    output: str | None,
    plot: str | None,
    html: str | None,
) -> None:
    """Write the files that were asked for, and show what was found on standard output.

    Raises
    ------
    HugepoolError
        A file could not be written: the one of before is there, untouched.
    """
    from hugepool.bench.results import Benchmark
    from hugepool.bench.table import print_article, print_benchmark, terminal

    failures = []
    for path, write in ((output, _write_json), (plot, _write_plot), (html, _write_html)):
        if path is not None:
            try:
                with _opened(path) as file:
                    write(found, file, path)
            except OSError as error:
                failures.append(f"cannot write {path}: {error.strerror or error}")
    # What was measured is shown whatever became of the files.
    if as_json:
        click.echo(found.to_json().decode(), nl=False)
    elif isinstance(found, Benchmark):
        print_benchmark(found, terminal())
    else:
        print_article(found, terminal())
    if failures:
        raise HugepoolError("; ".join(failures))


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """What is written to a file, whole or not at all; a device or pipe takes it as it comes."""
    from hugepool.finished_file import finished

    real = os.path.realpath(path)  # of a link, where it leads is what is replaced
    if os.path.exists(real) and not os.path.isfile(real):
        with open(path, "wb") as device:
            yield device
        return
    with finished(real, replace=True) as output:
        yield output


def _write_json(found: Article | Benchmark, output: BinaryIO, path: str) -> None:
    output.write(found.to_json())


def _write_plot(found: Article | Benchmark, output: BinaryIO, path: str) -> None:
    from hugepool.bench.plot import write_plot
    from hugepool.bench.results import Benchmark

    assert isinstance(found, Benchmark)  # --reproduce refuses --plot and --html
    write_plot(found, output, "svg" if path.lower().endswith(".svg") else "png")


def _write_html(found: Article | Benchmark, output: BinaryIO, path: str) -> None:
    from hugepool.bench.html import render_page
    from hugepool.bench.results import Benchmark

    assert isinstance(found, Benchmark)
    output.write(render_page(found).encode())


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
