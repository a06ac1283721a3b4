"""Optional packages that some tests need."""

from __future__ import annotations

import importlib

from support.host import require


def need(package: str) -> None:
    """Skip the test if a package cannot be imported; fail it if the machine must have it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        require(package, False, f"not installed: {error}")
