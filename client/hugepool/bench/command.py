"""``hugepool bench``: options in, one run, results out."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from hugepool_common.errors import InvalidMatrixError, InvalidSpecError
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
_MOST_WORKERS = 1024
_T = TypeVar("_T")


class UsageError(click.ClickException):
    """Wrong usage, told in one line."""

    exit_code = 2


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
    repeats: int | None,
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
    from hugepool.bench.options import (
        BACKINGS,
        BenchOptions,
        default_patterns,
        default_workers,
    )
    from hugepool.bench.reproduce import REPEATS

    _check_outputs({"--output": output, "--plot": plot, "--html": html})
    _check_reproduce(reproduce, plot, html, matrix, backings, patterns, kernels)
    try:
        options = BenchOptions(
            nbytes=_given(size, parse_bytes, _QUICK_BYTES if quick else 256_000_000),
            gathers=_given(gathers, _count, _QUICK_GATHERS if quick else 10_000_000),
            workers=_given(workers, _counts, default_workers()),
            backings=tuple(name for name in BACKINGS if name in backings) or BACKINGS,
            patterns=tuple(dict.fromkeys(patterns))
            or (() if matrix is not None else default_patterns(kernels)),
            kernels=tuple(dict.fromkeys(kernels)),
            matrix=matrix,
            repeats=_repeats(repeats, REPEATS if reproduce else _REPEATS),
            seed=seed,
        )
        for name in backings:
            _check_backing(name, BACKINGS)
        loaded = _read_matrix(matrix)
    except InvalidSpecError as error:
        raise UsageError(str(error)) from None
    _check_extras(plot, options)
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
        raise suite.nothing_measured()
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


def _write(
    found: Article | Benchmark,
    as_json: bool,
    output: str | None,
    plot: str | None,
    html: str | None,
) -> None:
    from hugepool.bench.results import Benchmark
    from hugepool.bench.table import print_article, print_benchmark, terminal

    failures = []
    for path, write in ((output, _write_json), (plot, _write_plot), (html, _write_html)):
        if path is not None:
            try:
                write(found, path)
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
        raise click.ClickException("; ".join(failures))


def _write_json(found: Article | Benchmark, path: str) -> None:
    Path(path).write_bytes(found.to_json())


def _write_plot(found: Article | Benchmark, path: str) -> None:
    from hugepool.bench.plot import write_plot
    from hugepool.bench.results import Benchmark

    assert isinstance(found, Benchmark)  # --reproduce refuses --plot and --html
    write_plot(found, path)


def _write_html(found: Article | Benchmark, path: str) -> None:
    from hugepool.bench.html import render_page
    from hugepool.bench.results import Benchmark

    assert isinstance(found, Benchmark)
    Path(path).write_text(render_page(found), encoding="utf-8")


# Options --------------------------------------------------------------------------


def _given(text: str | None, read: Callable[[str], _T], default: _T) -> _T:
    """An option's value; an empty one is read too, and refused."""
    return default if text is None else read(text)


def _repeats(given: int | None, default: int) -> int:
    return default if given is None else given


def _count(text: str) -> int:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 1 <= value < 2**48 or value != int(value):
        raise InvalidSpecError(f"{text!r} is not a count", remedy="write it as 10000000 or 1e7")
    return int(value)


def _counts(text: str) -> tuple[int, ...]:
    """Numbers such as ``1,2`` or ``1-4,8``, rising, none twice."""
    found: set[int] = set()
    for piece in text.split(","):
        first, dash, last = (part.strip() for part in piece.partition("-"))
        wrong = InvalidSpecError(
            f"{piece.strip()!r} is no number or range of workers",
            needed=f"as 2 or 1-4, at most {_MOST_WORKERS}",
        )
        try:
            low = _count(first)
            high = _count(last) if dash else low
        except InvalidSpecError:
            raise wrong from None
        if not low <= high <= _MOST_WORKERS:
            raise wrong
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _check_backing(name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise InvalidSpecError(f"unknown backing {name!r}", needed="one of " + " ".join(choices))


def _check_outputs(paths: Mapping[str, str | None]) -> None:
    """Find out before a long run that its results can be written."""
    found: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        if not path:
            raise UsageError(f"{option} needs the name of a file")
        if reason := _not_writable(path):
            raise UsageError(f"cannot write {path}: {reason}")
        other = found.setdefault(os.path.realpath(path), option)
        if other != option:
            raise UsageError(f"{other} and {option} name the same file {path}")


def _not_writable(path: str) -> str:
    """Why a file cannot be written, as far as looking tells; else empty."""
    directory = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        return os.strerror(errno.EISDIR)
    if not os.path.isdir(directory):
        return f"{directory} is no directory"
    if not os.access(path if os.path.exists(path) else directory, os.W_OK):
        return os.strerror(errno.EACCES)
    return ""


def _check_reproduce(reproduce: bool, *others: object) -> None:
    if reproduce and any(others):
        raise UsageError(
            "--reproduce has its own rows: it goes with --size, --gathers, --repeats, --seed, "
            "--json and --output only"
        )


def _check_extras(plot: str | None, options: BenchOptions) -> None:
    from hugepool import kernels
    from hugepool.bench.options import KERNELS

    for name in options.kernels:
        for kernel, choices in KERNELS[name].items():
            if not set(choices) & set(kernels.available(kernel)):
                kernels.resolve(kernel, choices[0])  # says which extra has it
    if plot is not None:
        from hugepool.bench.plot import import_matplotlib

        import_matplotlib()


def _read_matrix(path: str | None) -> CsrMatrix | None:
    if path is None:
        return None
    import numpy as np

    from hugepool.bench.matrices import CsrMatrix
    from hugepool.formats import is_matrix_file, read_matrix

    if not is_matrix_file(path):
        raise InvalidSpecError(f"{path!r} is no matrix file", needed=".mtx, .mtx.gz or .npz")
    source = read_matrix(path)
    if source.data.dtype.kind not in "biuf":
        raise InvalidMatrixError(
            f"{source.data.dtype} matrices are not measured",
            needed="bool, integers or real floats, which are multiplied as float64",
            where=path,
        )
    if not len(source.data):
        raise InvalidMatrixError("the matrix has no stored entries to multiply with", where=path)
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
