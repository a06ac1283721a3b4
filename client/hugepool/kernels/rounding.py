"""Which matrices may keep their values in fewer bytes, as float32 or bfloat16."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hugepool.kernels.base import Array
from hugepool.kernels.compiler import CompiledLoop

Storage = Literal["exact", "compact", "bfloat16"]
"""``exact``: only if nothing is lost. The others allow rounding, see :func:`stored_as`."""

_BLOCK = 1 << 16
_ROUNDING = 2.0**-24
"""Half a unit in the last place of float32, relative."""

_survey_rounding = CompiledLoop("hugepool.kernels.bfloat16", "survey_rounding")


def stored_as(data: Array, storage: Storage, *, fewest: int = 4) -> tuple[int, bool]:
    """How many bytes a value takes in a plan, and whether values are rounded for that.

    With ``exact`` a float64 becomes a float32 only if every value is one (of a NaN only
    that it is one). With ``compact`` values are rounded to the nearest float32, but only
    if each then keeps a relative error of at most 2**-24: a value beyond the range of
    float32, or so small that it has fewer digits there, keeps the whole matrix in
    float64. Sums are made in the dtype of the result in any case. So row i of a
    ``compact`` product differs from the exact sum by at most::

        (2**-24 + n u (1 + 2**-24) / (1 - n u)) * sum_j |a_ij x_j|

    n being its number of entries and u = 2**-53 for a float64 result, 2**-24 for a float32
    one (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1;
    products that underflow left aside).

    With ``bfloat16`` values are rounded to the nearest bfloat16, ties to even, if each then
    keeps a relative error of at most 2**-8, which takes that place in the bound; infinities
    and NaN stay what they are. Where one would lose more, this is ``compact``; so it is for a
    form that does not take bfloat16. Needs numba.

    Parameters
    ----------
    data
        float32 or float64, shape (nnz,).
    storage
        Whether rounding is allowed, and how far.
    fewest
        Bytes of a value that the form takes: 2 or 4.

    Returns
    -------
    tuple of int and bool
        2, 4 or 8, and True if a value changes.

    Raises
    ------
    MissingExtraError
        ``bfloat16`` without numba.
    """
    if storage == "bfloat16" and fewest == 2:
        change = int(_survey_rounding(np.ascontiguousarray(data)))
        if change < 2:
            return 2, change == 1
    if data.itemsize == 4:
        return 4, False
    rounded = False
    with np.errstate(all="ignore"):
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            kept = block.astype(np.float32).astype(np.float64)
            same = (kept == block) | (block != block)
            if same.all():
                continue
            if storage == "exact":
                return 8, False
            # An overflow makes the difference infinite, so it fails too.
            if not (same | (np.abs(kept - block) <= _ROUNDING * np.abs(block))).all():
                return 8, False
            rounded = True
    return 4, rounded
