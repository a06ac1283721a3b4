"""How many examples property tests try: fewer where code is slowed on purpose, more in a soak."""

from __future__ import annotations

import os

FACTOR_VARIABLE = "HUGEPOOL_EXAMPLES_FACTOR"


def examples(count: int) -> int:
    """How many examples this run is to try where others try `count`: at least five."""
    return max(int(count * float(os.environ.get(FACTOR_VARIABLE, "1"))), 5)
