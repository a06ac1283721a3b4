"""The computations that workers run: gathers, sparse products, and the limits they run against.

A kernel is found by name with :func:`resolve` and called with operands in named
roles and a row range. What each takes is told by its module: ``gather``, ``scatter``
(``scatter_add``), ``spmv`` (``matvec``), ``split`` (``matvec_split``, ``add_carries``),
``matmat``, ``transposed`` (``rmatvec``, ``sum_parts``) and ``stream`` (``copy``, ``triad``,
``sum``, ``random_lines``).

Nothing here imports numba or SciPy until a kernel that needs them is resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from hugepool.kernels import normalise
from hugepool.kernels.base import CsrArrays, Kernel, Operands, Work, last_level_cache_bytes
from hugepool.kernels.binned import CountCells, EmptyBins, FillBins, FillCells
from hugepool.kernels.binned_product import CountProducts, FillProducts, PlaceProducts, SumBins
from hugepool.kernels.compiler import import_numba
from hugepool.kernels.gather import FancyGather, NumbaGather, TakeGather
from hugepool.kernels.matmat import NumbaMatmat, NumpyMatmat, ScipyMatmat
from hugepool.kernels.mirrored import CheckMirrored, FillMirrored, MatvecMirrored
from hugepool.kernels.narrow import FillNarrow, MatvecNarrow
from hugepool.kernels.ordered import FillOrdered, MatvecOrdered, OrderX
from hugepool.kernels.repeated import FillRepeated, MatvecRepeated
from hugepool.kernels.scatter import NumbaScatterAdd, NumpyScatterAdd
from hugepool.kernels.split import AddCarries, NumbaMatvecSplit, RowwiseMatvecSplit
from hugepool.kernels.spmv import NumbaMatvec, NumpyMatvec, ScipyMatvec, import_scipy_sparse
from hugepool.kernels.stream import (
    RandomLines,
    numba_copy,
    numba_sum,
    numba_triad,
    numpy_copy,
    numpy_sum,
    numpy_triad,
)
from hugepool.kernels.transposed import NumbaRmatvec, NumpyRmatvec, ScipyRmatvec, SumParts
from hugepool_common.errors import InvalidSpecError, MissingExtraError

__all__ = [
    "CsrArrays",
    "Kernel",
    "Operands",
    "Work",
    "adds_in_place",
    "available",
    "last_level_cache_bytes",
    "names",
    "resolve",
]

_KERNELS: dict[str, dict[str, Callable[[], Kernel]]] = {
    "gather": {
        "numba": NumbaGather,
        "take": TakeGather,
        "fancy": FancyGather,
        "fancy-store": lambda: FancyGather(store=True),
    },
    "matvec": {"numba": NumbaMatvec, "scipy": ScipyMatvec, "numpy": NumpyMatvec},
    "matvec_split": {
        "numba": NumbaMatvecSplit,
        "scipy": lambda: RowwiseMatvecSplit("scipy"),
        "numpy": lambda: RowwiseMatvecSplit("numpy"),
    },
    "add_carries": {"numba": AddCarries, "numpy": lambda: AddCarries("numpy")},
    "matmat": {"numba": NumbaMatmat, "scipy": ScipyMatmat, "numpy": NumpyMatmat},
    "rmatvec": {"numba": NumbaRmatvec, "scipy": ScipyRmatvec, "numpy": NumpyRmatvec},
    "sum_parts": {"numba": SumParts, "numpy": lambda: SumParts("numpy")},
    "scatter_add": {"numba": NumbaScatterAdd, "numpy": NumpyScatterAdd},
    "count_cells": {"numba": CountCells},
    "fill_cells": {"numba": FillCells},
    "fill_bins": {"numba": FillBins},
    "empty_bins": {"numba": EmptyBins},
    "count_products": {"numba": CountProducts},
    "place_products": {"numba": PlaceProducts},
    "fill_products": {"numba": FillProducts},
    "sum_bins": {"numba": SumBins},
    "fill_ordered": {"numba": FillOrdered},
    "order_x": {"numba": OrderX},
    "matvec_ordered": {"numba": MatvecOrdered},
    "fill_repeated": {"numba": FillRepeated},
    "matvec_repeated": {"numba": MatvecRepeated},
    "fill_mirrored": {"numba": FillMirrored},
    "check_mirrored": {"numba": CheckMirrored},
    "matvec_mirrored": {"numba": MatvecMirrored},
    "fill_narrow": {"numba": FillNarrow},
    "matvec_narrow": {"numba": MatvecNarrow},
    **{name: {"numba": make} for name, make in normalise.kernels().items()},
    "copy": {"numba": numba_copy, "numpy": numpy_copy},
    "triad": {"numba": numba_triad, "numpy": numpy_triad},
    "sum": {"numba": numba_sum, "numpy": numpy_sum},
    "random_lines": {"numba": RandomLines},
}
"""Implementations of every kernel, the one that ``auto`` takes first."""


def adds_in_place(kernel: str, roles: Collection[str]) -> bool:
    """Whether a kernel with operands in these roles adds to what its output held before.

    A part of it that was half done cannot be done again. All others write each row anew.
    """
    return kernel == "scatter_add" and "base" not in roles


def names() -> list[str]:
    """All kernels."""
    return list(_KERNELS)


def resolve(kernel: str, implementation: str = "auto") -> Kernel:
    """Find a kernel by name.

    Parameters
    ----------
    kernel
        One of :func:`names`.
    implementation
        Which code; ``auto`` takes numba if it is installed, else the best without.

    Raises
    ------
    InvalidSpecError
        No such kernel or implementation.
    MissingExtraError
        It needs a package that is not installed.
    """
    choices = _implementations(kernel)
    if implementation == "auto":
        found = available(kernel)
        # With none, the first one's error says what to install. Errors are not kept:
        # one in a variable holds its frames, and these hold arrays.
        return _resolved(kernel, found[0] if found else next(iter(choices)))
    if implementation not in choices:
        raise InvalidSpecError(
            f"{kernel} has no implementation {implementation!r}",
            needed=f"one of auto {' '.join(choices)}",
        )
    return _resolved(kernel, implementation)


def available(kernel: str) -> list[str]:
    """Implementations that :func:`resolve` gives here, best first.

    Raises
    ------
    InvalidSpecError
        No such kernel.
    """
    found = []
    for implementation in _implementations(kernel):
        try:
            _resolved(kernel, implementation)
        except MissingExtraError:
            continue
        found.append(implementation)
    return found


def _implementations(kernel: str) -> dict[str, Callable[[], Kernel]]:
    if kernel not in _KERNELS:
        raise InvalidSpecError(f"no kernel {kernel!r}", needed=f"one of {' '.join(_KERNELS)}")
    return _KERNELS[kernel]


def _resolved(kernel: str, implementation: str) -> Kernel:
    if implementation == "numba":
        import_numba()
    elif implementation == "scipy":
        import_scipy_sparse()
    return _KERNELS[kernel][implementation]()
