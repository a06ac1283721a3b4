"""Optional packages that some tests need."""

from __future__ import annotations

import importlib
import os

import pytest


def need(package: str) -> None:
    """Skip the test if a package is not installed; fail it if ``HUGEPOOL_REQUIRE`` names it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        if package in os.environ.get("HUGEPOOL_REQUIRE", "").split(","):
            pytest.fail(f"{package} is required here: {error}")
        pytest.skip(f"{package} is not installed: {error}")
