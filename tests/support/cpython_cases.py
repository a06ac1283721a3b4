"""Run CPython's own tests of shared memory over our class: ``python -m support.cpython_cases``.

Takes a start method and names of tests; the exit status is unittest's. Nothing of CPython's is
in this repository: the tests are those of the interpreter that runs this, if it came with any.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import unittest
from multiprocessing import shared_memory
from typing import Any

import hugepool

cases: Any = importlib.import_module("test._test_multiprocessing")


class Named(hugepool.SharedMemory):
    """Ours, with names made up where the tests expect and replace that."""

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0) -> None:
        while name is None and create and size > 0:
            made = shared_memory._make_filename()  # type: ignore[attr-defined]
            try:
                super().__init__(made.lstrip("/"), create, size)
            except FileExistsError:
                continue
            self._name = made  # with the slash of shm_open, as the tests look at it
            return
        super().__init__(name, create, size)

    @property
    def name(self) -> str:
        """Without the slash."""
        return self._name.lstrip("/")

    def unlink(self) -> None:
        """By the name without the slash."""
        self._name, before = self.name, self._name
        try:
            super().unlink()
        finally:
            self._name = before

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.name,)


shared_memory.SharedMemory = Named  # type: ignore[assignment,misc]


class SharedMemoryCases(cases._TestSharedMemory, unittest.TestCase):  # type: ignore[misc]
    """As CPython makes it for each start method."""

    TYPE = "processes"
    Process: Any = multiprocessing.Process


if __name__ == "__main__":
    start, *names = sys.argv[1:]
    multiprocessing.set_start_method(start, force=True)
    suite = unittest.TestSuite(
        SharedMemoryCases(name) for name in names if hasattr(SharedMemoryCases, name)
    )
    outcome = unittest.TextTestRunner(verbosity=2).run(suite)
    print(outcome.testsRun)
    sys.exit(not outcome.wasSuccessful() or not outcome.testsRun)
