"""Which arrays are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

Array = dict[str, Any]
"""An array as :class:`~hugepool.live.picture.Picture` has it."""

_KEYS: dict[str, Callable[[Array], Any]] = {
    "bytes": lambda array: -array["nbytes"],
    "name": lambda array: array["name"],
    "huge": lambda array: huge_fraction(array),
    "readers": lambda array: -array["readers"],
    "newest": lambda array: -array["created_ns"],
}
SORTS = tuple(_KEYS)
"""Names of the orders: the largest, first, least huge, most read or newest array comes first."""


def huge_fraction(array: Array) -> float:
    """Share of an array's pages that were proved huge, from 0 to 1."""
    return float(array["huge_bytes"] / array["length"]) if array["length"] else 0.0


def selected(
    arrays: Sequence[Array], *, sort: str = "bytes", reverse: bool = False, pattern: str = ""
) -> list[Array]:
    """The arrays whose names match a pattern, in order.

    Parameters
    ----------
    sort
        One of :data:`SORTS`; equal ones are in order of their names.
    reverse
        The other way round.
    pattern
        With ``* ? [...]`` as in a shell; without any of them, a part of the name.
    """
    if pattern and not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    found = [array for array in arrays if not pattern or fnmatchcase(array["name"], pattern)]
    key = _KEYS[sort]
    return sorted(found, key=lambda array: (key(array), array["name"]), reverse=reverse)
