"""What it costs to start: CPU time of ``hugepool ls`` and others, and of ``import hugepool``.

Every case is a fresh interpreter, and the cases take turns. What counts is the user and
system time of the process by wait4(2): unlike the wall time, which is told beside it, it
does not grow much with what else the machine does. The first line is the interpreter
alone, which is in all others too.

All of them find bytecode, as those of an installed package do: pip writes it. It lies
in a directory of this run, so that neither PYTHONDONTWRITEBYTECODE nor a source tree that
cannot be written to has every start compile the sources.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import msgspec

import hugepool
from contest import progress
from hugepool.bench.environment import read_environment
from hugepool_common.paths import ADDRESS_VARIABLE, address_of

_COMMAND = ("-m", "hugepool")
CASES: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "import hugepool": ("-c", "import hugepool"),
    "hugepool.connect looked up": ("-c", "import hugepool; hugepool.connect"),
    "hugepool --help": (*_COMMAND, "--help"),
    "hugepool config": (*_COMMAND, "config"),
    "hugepool ls": (*_COMMAND, "ls"),
    "hugepool status": (*_COMMAND, "status"),
    "hugepool stat": (*_COMMAND, "stat", "x0"),
}
"""Arguments of the interpreter."""

AIMS_NS = {"hugepool ls": 150_000_000}
"""Median CPU time that is hoped for."""


@dataclass(slots=True)
class Found:
    """Samples of one case."""

    name: str
    cpu_ns: list[int] = field(default_factory=list)
    wall_ns: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        cpu, wall = statistics.median(self.cpu_ns), statistics.median(self.wall_ns)
        words = f"{self.name:28} CPU {cpu / 1e6:5.0f} ms"
        words += f" ({min(self.cpu_ns) / 1e6:.0f}-{max(self.cpu_ns) / 1e6:.0f})"
        words += f", wall {wall / 1e6:.0f} ms"
        if self.name in AIMS_NS:
            aim_ns = AIMS_NS[self.name]
            words += f", aim {aim_ns / 1e6:.0f} ms {'reached' if cpu <= aim_ns else 'MISSED'}"
        return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="starts of each case (20)")
    parser.add_argument("--arrays", type=int, default=100, help="arrays to list (100)")
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.arrays < 1:
        parser.error("rounds and arrays are 1 or more")
    with tempfile.TemporaryDirectory(prefix="hugepool-") as place:
        bytecode = os.path.join(place, "bytecode")
        found = measured(os.path.join(place, "run"), bytecode, options.rounds, options.arrays)
    for one in found:
        print(one)
    environment = read_environment()
    print(f"{environment.cpu}, {environment.cpus} CPUs, load {environment.load_average}")
    if options.json:
        run = {
            "command": sys.argv,
            "environment": msgspec.to_builtins(environment),
            "found": [asdict(one) for one in found],
        }
        with open(options.json, "w") as file:
            json.dump(run, file, indent=2)
    return 0


def measured(directory: str, bytecode: str, rounds: int, arrays: int) -> list[Found]:
    """Start every case so many times, at a coordinator that has some arrays."""
    address = address_of(directory)
    environment = {**os.environ, ADDRESS_VARIABLE: address, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    found = {name: Found(name) for name in CASES}
    command = (sys.executable, "-m", "hugepool_server", "--runtime-dir", directory)
    coordinator = subprocess.Popen(
        [*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert coordinator.stdout is not None
        if not coordinator.stdout.readline():
            raise SystemExit("the coordinator did not start")
        with hugepool.connect(address) as pool:
            for number in range(arrays):
                pool.put(f"x{number}", [1.0])
        for number in range(-1, rounds):  # the first round writes the bytecode
            for name, words in CASES.items():
                cpu_ns, wall_ns = _started(words, environment)
                if number >= 0:
                    found[name].cpu_ns.append(cpu_ns)
                    found[name].wall_ns.append(wall_ns)
            if number % 5 == 4:
                progress(f"{number + 1} of {rounds} rounds")
    finally:
        coordinator.terminate()
        coordinator.communicate()
    return list(found.values())


def _started(words: Sequence[str], environment: dict[str, str]) -> tuple[int, int]:
    """CPU and wall time of one interpreter."""
    began_ns = time.monotonic_ns()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *words],
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    wall_ns = time.monotonic_ns() - began_ns
    if status != 0:
        raise SystemExit(f"{' '.join(words)} failed")
    return int((usage.ru_utime + usage.ru_stime) * 1e9), wall_ns


if __name__ == "__main__":
    raise SystemExit(main())
