"""Bytes and their names.

``K M G T`` and ``KiB MiB GiB TiB`` count in powers of 1024, ``kB MB GB TB`` in
powers of 1000, as NumPy's and Dask's users read them. Page sizes are names of
their own (``4K``, ``2M``, ``1G``; PostgreSQL's ``2MB`` is taken for ``2M``).
"""

from __future__ import annotations

import re

from hugepool_common.errors import InvalidSpecError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_SCALE = {
    "": 1,
    "b": 1,
    **{
        letter + tail: 1024**power
        for power, letter in enumerate("kmgt", 1)
        for tail in ("", "i", "ib")
    },
    **{letter + "b": 1000**power for power, letter in enumerate("kmgt", 1)},
}
_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][0-9]{1,2})?)\s*([A-Za-z]*)\s*\Z")
_PAGE_NAMES = {"4k": 4 * KIB, "4kb": 4 * KIB, "2m": 2 * MIB, "2mb": 2 * MIB, "1g": GIB, "1gb": GIB}


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as ``400MB``, ``2M``, ``1GiB`` or ``5e7``.

    Raises
    ------
    InvalidSpecError
        The text is no number of bytes.
    """
    match = _BYTES.match(text)
    scale = _SCALE.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise InvalidSpecError(
            f"{text!r} is not a number of bytes", remedy="write it as 400MB, 2M or 1GiB"
        )
    return int(float(match[1]) * scale) if not match[1].isdigit() else int(match[1]) * scale


def parse_page_size(text: str) -> int | None:
    """Read ``auto`` (None), ``4K``, ``2M`` or ``1G`` as bytes.

    Raises
    ------
    InvalidSpecError
        The text names none of these.
    """
    if text.lower() == "auto":
        return None
    try:
        return _PAGE_NAMES[text.lower()]
    except KeyError:
        raise InvalidSpecError(
            f"{text!r} is not a page size", remedy="use auto, 4K, 2M or 1G"
        ) from None


def page_size_name(page_size: int) -> str:
    """Name a page size in bytes: ``4K``, ``2M``, ``1G``."""
    for unit, letter in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if page_size >= unit and page_size % unit == 0:
            return f"{page_size // unit}{letter}"
    return str(page_size)


def format_bytes(count: int | float) -> str:
    """Show a number of bytes to three digits in decimal units: ``400 MB``."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if abs(count) >= 0.9995 * 1000**power:
            return f"{count / 1000**power:.3g} {unit}"
    return f"{int(count)} B"


def round_up(count: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `count`."""
    return -(-count // step) * step
