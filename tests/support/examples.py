"""How many examples property tests try: fewer where the code they run is made slow on purpose."""

from __future__ import annotations

import os

DIVISOR_VARIABLE = "HUGEPOOL_EXAMPLES_DIVISOR"


def examples(count: int) -> int:
    """Of `count` examples, as many as this run is to try: at least five."""
    return max(count // int(os.environ.get(DIVISOR_VARIABLE, "1")), 5)
