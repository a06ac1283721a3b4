"""Time how soon the death of a client is known, and how soon a killed coordinator is replaced.

    python benchmarks/restart.py --deaths 200 --restarts 10 --arrays 100 --sessions 8

*Death*: a client that holds an array which it has not sealed gets SIGKILL; it is over when its
session, and with it the array, is gone from the coordinator's counts, as another client
sees by asking again and again (the answer's way back included).

*Restart*: the coordinator gets SIGKILL, and another one is started on its runtime directory
with sealed arrays and live sessions, each with a lease on every array. *Bound* lasts from
the start of the process, the interpreter's own included, until it has said its address;
*resumed* until the last of the clients has an answer to a question that it asked meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

import hugepool
from contest import progress
from hugepool.bench.environment import read_environment
from hugepool_common.paths import RUNTIME_VARIABLE, address_of

VICTIMS = """
import os, signal, sys, hugepool
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if os.fork() == 0:
        pool = hugepool.connect(sys.argv[1])
        x = pool.create(line.strip(), shape=1000, dtype="f8")
        print(os.getpid(), flush=True)
        signal.pause()
"""
"""Begets a client for each line: a fork of what has imported all, and opened nothing."""

CLIENT = """
import sys, time, hugepool
pool = hugepool.connect(sys.argv[1])
held = [pool.attach(info.spec.name) for info in pool.list()]
total = sum(float(x.array.sum()) for x in held)
for line in sys.stdin:
    epoch = int(line)
    while pool.stats().epoch != epoch: pass
    now_ns = time.monotonic_ns()
    assert total == sum(float(x.array.sum()) for x in held)
    print(len(held), now_ns, flush=True)
"""

_DEATH_AIM_NS = 50_000_000
_RESTART_AIM_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """Samples of one thing, and what is hoped for."""

    name: str
    aim_ns: int | None
    judged_by: str
    samples_ns: tuple[int, ...]

    def percentile_ns(self, percent: int) -> int:
        """The smallest sample that so many percent do not exceed."""
        ordered = sorted(self.samples_ns)
        return ordered[-(-len(ordered) * percent // 100) - 1]

    @property
    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "aim_ns": self.aim_ns,
            "judged_by": self.judged_by,
            "p50_ns": self.percentile_ns(50),
            "p99_ns": self.percentile_ns(99),
            "max_ns": max(self.samples_ns),
            "samples_ns": self.samples_ns,
        }

    def __str__(self) -> str:
        words = [f"{self.name}: {len(self.samples_ns)} times"]
        for label, ns in (
            ("median", int(statistics.median(self.samples_ns))),
            ("p99", self.percentile_ns(99)),
            ("max", max(self.samples_ns)),
        ):
            words.append(f"{label} {ns / 1e6:.2f} ms")
        if self.aim_ns is not None:
            judged = self.percentile_ns(99) if self.judged_by == "p99" else max(self.samples_ns)
            verdict = "reached" if judged <= self.aim_ns else "MISSED"
            words.append(f"aim {self.judged_by} <= {self.aim_ns / 1e6:g} ms {verdict}")
        return ", ".join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deaths", type=int, default=200, help="clients to kill (200)")
    parser.add_argument("--restarts", type=int, default=10, help="coordinators to kill (10)")
    parser.add_argument("--arrays", type=int, default=100, help="sealed arrays to keep (100)")
    parser.add_argument("--sessions", type=int, default=8, help="clients that go on (8)")
    parser.add_argument("--elements", type=int, default=10_000, help="float64 in each array")
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hugepool-") as place:
        directory = os.path.join(place, "run")
        found = [*deaths(directory, options.deaths), *restarts(directory, options)]
    for one in found:
        print(one)
    environment = read_environment()
    print(f"{environment.cpu}, {environment.cpus} CPUs, load {environment.load_average}")
    if options.json:
        run = {
            "command": sys.argv,
            "environment": msgspec.to_builtins(environment),
            "found": [one.told for one in found],
        }
        with open(options.json, "w") as file:
            json.dump(run, file, indent=2)
    return 0


def deaths(directory: str, rounds: int) -> Iterator[Found]:
    """Kill clients, one after the other."""
    if rounds < 1:
        return
    samples = []
    address = address_of(directory)
    with (
        _coordinator(directory),
        hugepool.connect(address) as pool,
        _python(VICTIMS, address) as victims,
    ):
        for number in range(rounds):
            pid = int(_answer(victims, f"victim-{number}"))
            before = pool.stats()
            started_ns = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            while (now := pool.stats()).sessions >= before.sessions or now.arrays >= before.arrays:
                pass
            samples.append(time.monotonic_ns() - started_ns)
            if number % 50 == 49:
                progress(f"{number + 1} of {rounds} clients killed")
    yield Found("death of a client", _DEATH_AIM_NS, "p99", tuple(samples))


def restarts(directory: str, options: argparse.Namespace) -> Iterator[Found]:
    """Kill coordinators, each under the eyes of all clients."""
    if options.restarts < 1:
        return
    bound, resumed = [], []
    address = address_of(directory)
    with ExitStack() as ends:
        current = ends.enter_context(_coordinator(directory))
        owner = ends.enter_context(hugepool.connect(address))
        for number in range(options.arrays):
            owner.put(f"x{number}", np.arange(float(options.elements)))
        clients = [
            ends.enter_context(_python(CLIENT, address)) for _ in range(options.sessions - 1)
        ]
        for client in clients:
            _answer(client, str(owner.stats().epoch))
        for number in range(options.restarts):
            epoch = owner.stats().epoch + 1
            for client in clients:
                _tell(client, str(epoch))
            current.kill()
            current.wait()
            started_ns = time.monotonic_ns()
            current = ends.enter_context(_coordinator(directory))
            bound.append(time.monotonic_ns() - started_ns)
            stats = owner.stats()
            ends_ns = [time.monotonic_ns()]
            for client in clients:
                held, at_ns = _line(client).split()
                ends_ns.append(int(at_ns))
                _check(int(held), options.arrays, "leases")
            resumed.append(max(ends_ns) - started_ns)
            _check(stats.epoch, epoch, "epoch")
            _check(stats.arrays, options.arrays, "arrays")
            _check(stats.lost, 0, "lost arrays")
            _check(owner.stats().sessions, options.sessions, "sessions")
            progress(f"{number + 1} of {options.restarts} coordinators killed")
    what = f"{options.arrays} arrays, {options.sessions} sessions"
    yield Found(f"bound again, {what}", None, "max", tuple(bound))
    yield Found(f"all resumed, {what}", _RESTART_AIM_NS, "max", tuple(resumed))


@contextmanager
def _coordinator(directory: str) -> Iterator[subprocess.Popen[str]]:
    """One that has said its address."""
    command = (sys.executable, "-m", "hugepool_server", "--runtime-dir", directory)
    # Its warnings of what it took over are no news here.
    process = subprocess.Popen(
        [*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True
    )
    try:
        if not _line(process):
            raise SystemExit("the coordinator did not start")
        yield process
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def _python(script: str, address: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, RUNTIME_VARIABLE: ""}
    process = subprocess.Popen(
        [sys.executable, "-c", script, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _answer(process: subprocess.Popen[str], line: str) -> str:
    _tell(process, line)
    answer = _line(process)
    if not answer:
        raise SystemExit("a client ended")
    return answer


def _check(had: int, needed: int, what: str) -> None:
    if had != needed:
        raise SystemExit(f"{what}: {had} instead of {needed}")


if __name__ == "__main__":
    raise SystemExit(main())
