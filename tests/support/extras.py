"""Optional packages that some tests need."""

from __future__ import annotations

import importlib
from typing import Any

from support.host import require


def need(package: str) -> None:
    """Skip the test if a package cannot be imported; fail it if the machine must have it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        require(package, False, f"not installed: {error}")


def sparse() -> Any:
    """``scipy.sparse``, or the test is skipped."""
    need("scipy.sparse")
    return importlib.import_module("scipy.sparse")
