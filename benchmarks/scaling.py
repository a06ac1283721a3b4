"""Time hugepool's gathers and products with 1 to n workers, beside the machine's own limits.

    python benchmarks/scaling.py --workers 1,2,4 --size 400MB

A second process gains at most what the memory gives it: the rows ``copy``, ``triad`` and
``random_lines`` say how much that is. ``--size`` is that of x for gathers and that of the
entries, 12 bytes each, for matrices.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence

from gather import gather_contest
from matvec import matrix_names, product_contest
from options import Options, read_options
from report import new_run, publish
from setting import Setting

_NOBODY = ("no peer has this in its name",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    options = _every_count(
        read_options(
            __doc__,
            size="400MB",
            size_help="bytes of x, and of each matrix's entries",
            add=_add_options,
            arguments=arguments,
        )
    )
    with Setting(options) as setting:
        contests = [gather_contest(setting, options, one) for one in options.extra.pattern]
        contests += [product_contest(setting, options, one) for one in options.extra.matrix]
    publish(new_run(contests, setting.missing, setting.backings), options)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    cpus = len(os.sched_getaffinity(0))
    parser.set_defaults(
        workers=tuple(range(1, cpus + 1)), peers=_NOBODY, pattern=("random",), gathers=None
    )
    parser.add_argument(
        "--matrix",
        type=matrix_names,
        default=("uniform", "kronecker", "stencil"),
        help="as in matvec.py",
    )
    parser.set_defaults(forms=("auto",), operation="matvec")


def _every_count(options: Options) -> Options:
    """With one worker among the counts, for that is what speed-ups are over."""
    return dataclasses.replace(options, workers=tuple(sorted({1, *options.workers})))


if __name__ == "__main__":
    raise SystemExit(main())
