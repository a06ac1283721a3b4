"""Which matrices may keep their float64 values as float32."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hugepool.kernels.base import Array

Storage = Literal["exact", "compact"]
"""``exact``: only if nothing is lost. ``compact``: values may be rounded, see :func:`stored_as`."""

_BLOCK = 1 << 16
_ROUNDING = 2.0**-24
"""Half a unit in the last place of float32, relative."""


def stored_as(data: Array, storage: Storage) -> tuple[int, bool]:
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

    Parameters
    ----------
    data
        float32 or float64, shape (nnz,).
    storage
        Whether rounding is allowed.

    Returns
    -------
    tuple of int and bool
        4 or 8, and True if a value changes.
    """
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
