"""The words of ``hugepool bench``, read and refused before anything is started."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from hugepool_common.errors import InvalidMatrixError, InvalidSpecError

if TYPE_CHECKING:
    from hugepool.bench.matrices import CsrMatrix
    from hugepool.bench.options import BenchOptions
    from hugepool.bench.results import OptionValue

_MOST_WORKERS = 1024
_T = TypeVar("_T")


class UsageError(click.ClickException):
    """Wrong usage, told in one line."""

    exit_code = 2


def given(text: str | None, read: Callable[[str], _T], default: _T) -> _T:
    """An option's value; an empty one is read too, and refused."""
    return default if text is None else read(text)


def count(text: str) -> int:
    """A whole number such as ``1e7``, at least 1."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 1 <= value < 2**48 or value != int(value):
        raise InvalidSpecError(f"{text!r} is not a count", remedy="write it as 10000000 or 1e7")
    return int(value)


def counts(text: str) -> tuple[int, ...]:
    """Numbers such as ``1,2`` or ``1-4,8``, rising, none twice."""
    found: set[int] = set()
    for piece in text.split(","):
        first, dash, last = (part.strip() for part in piece.partition("-"))
        wrong = InvalidSpecError(
            f"{piece.strip()!r} is no number or range of workers",
            needed=f"as 2 or 1-4, at most {_MOST_WORKERS}",
        )
        try:
            low = count(first)
            high = count(last) if dash else low
        except InvalidSpecError:
            raise wrong from None
        if not low <= high <= _MOST_WORKERS:
            raise wrong
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def seconds(text: str) -> float:
    """A time to spend, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidSpecError(f"{text!r} is no time", needed="seconds, as 30")
    return value


def check_backing(name: str, choices: tuple[str, ...]) -> None:
    """Refuse a page kind that nobody has."""
    if name not in choices:
        raise InvalidSpecError(f"unknown backing {name!r}", needed="one of " + " ".join(choices))


def check_alone(context: click.Context, option: str, beside: tuple[str, ...]) -> None:
    """Refuse every option but `beside` next to `option`; both as on the command line."""
    for parameter in context.command.params:
        named = parameter.opts[0]
        source = context.get_parameter_source(parameter.name or "")
        if source is ParameterSource.COMMANDLINE and named not in (option, *beside):
            raise UsageError(f"{option} goes with {' and '.join(beside)} only, not with {named}")


def check_outputs(paths: Mapping[str, str | None]) -> None:
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
    real = os.path.realpath(path)
    if os.path.exists(path) and not os.access(path, os.W_OK):
        return os.strerror(errno.EACCES)
    # It is written beside and renamed; a device or pipe is written as it is.
    if (os.path.isfile(real) or not os.path.exists(real)) and not os.access(directory, os.W_OK):
        return f"{directory}: {os.strerror(errno.EACCES)}"
    return ""


def check_reproduce(reproduce: bool, *others: object) -> None:
    """Refuse choices beside ``--reproduce`` that it does not take."""
    if reproduce and any(others):
        raise UsageError(
            "--reproduce has its own rows: it goes with --size, --gathers, --repeats, --seed, "
            "--json and --output only"
        )


def check_extras(plot: str | None, options: BenchOptions) -> None:
    """Refuse what an extra is missing for, by its name."""
    from hugepool import kernels
    from hugepool.bench.options import KERNELS

    for name in options.kernels:
        for kernel, choices in KERNELS[name].items():
            if not set(choices) & set(kernels.available(kernel)):
                kernels.resolve(kernel, choices[0])  # says which extra has it
    if plot is not None:
        from hugepool.bench.drawing import import_matplotlib

        import_matplotlib()


def read_matrix(path: str | None) -> CsrMatrix | None:
    """The matrix of ``--matrix`` as float64, or None without one."""
    if path is None:
        return None
    import numpy as np

    from hugepool import formats
    from hugepool.bench.matrices import CsrMatrix

    if not formats.is_matrix_file(path):
        raise InvalidSpecError(f"{path!r} is no matrix file", needed=".mtx, .mtx.gz or .npz")
    source = formats.read_matrix(path)
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


def shown_options(options: BenchOptions) -> dict[str, OptionValue]:
    """The choices of a run, as its JSON has them."""
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
        "sweep_s": options.sweep_s,
    }
