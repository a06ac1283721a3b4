"""Arrays made, attached and destroyed by the hundred thousand: nothing grows.

A durable coordinator and a client are real processes. All along, memory of their own,
descriptors, locks, files and free pages are read in both; a straight line through
the readings after a warm-up must be level within what readings scatter::

    python tests/faults/leaks.py --cycles 1000000 --report leaks.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.nursery import Nursery, TooSlow
from support.world import ANSWER_S, Client, World, eventually, locks_of

READINGS = 60
WARM_UP = 0.25
"""Part of the cycles in which caches fill."""

MEMORY_NOISE = 1 << 20
"""Bytes that an allocator may come to hold over a whole run without a leak."""

HUGE_EVERY = 10
EXACT = ("coordinator_fds", "client_fds", "coordinator_locks", "client_locks", "files", "room")


def reading(world: World, client: Client, told: dict[str, Any]) -> dict[str, int]:
    """All gauges, with no array there."""
    assert world.coordinator is not None
    remains = world.remains()
    pid = world.coordinator.pid
    return {
        "client_rss": told["rss"],
        "client_fds": told["fds"],
        "coordinator_rss": world.rss_bytes(pid),
        "coordinator_fds": world.descriptors(),
        "coordinator_locks": locks_of(pid),
        "client_locks": locks_of(client.child.pid),
        "files": len(remains.segments) + len(remains.manifests) + len(remains.strays),
        "tokens": len(remains.tokens),
        "room": -sum(world.room().blocks),
    }


def growth(cycles: list[int], values: list[int]) -> tuple[float, float]:
    """What a line through the readings rises by after the warm-up, and how they scatter."""
    first = int(len(cycles) * WARM_UP)
    x, y = np.asarray(cycles[first:], "f8"), np.asarray(values[first:], "f8")
    slope, offset = np.polyfit(x - x.mean(), y, 1)
    scatter = float(np.std(y - (slope * (x - x.mean()) + offset)))
    return float(slope * (x[-1] - x[0])), scatter


def run(cycles: int, sessions: int) -> dict[str, Any]:
    """Churn and judge; ``wrong`` in the report says what grew."""
    began = time.monotonic()
    readings: dict[str, list[int]] = {}
    at: list[int] = []
    with tempfile.TemporaryDirectory(prefix="hpl-") as place:
        root = Path(place)
        (root / "logs").mkdir()
        with World(root, Nursery(root / "logs")) as world:
            world.start()
            client = world.client()
            step = max(1, cycles // READINGS)
            for first in range(0, cycles, step):
                client.tell("churn", first=first, count=step, huge_every=HUGE_EVERY)
                answer = client.answer(ANSWER_S + step * 0.1)
                if answer is None or "ok" not in answer:
                    return {"wrong": [f"cycle {first}: {answer}\n{client.child.tail()}"]}
                for _ in range(sessions):  # and clients that come and die or go
                    visitor = world.client("visitor")
                    if first % (2 * step):
                        visitor.child.kill()
                    visitor.close()
                gauges: dict[str, int] = {}

                def quiet(told: dict[str, Any] = answer["ok"]) -> bool:
                    nonlocal gauges
                    gauges = reading(world, client, told)
                    return not readings or all(
                        gauges[name] <= readings[name][0] for name in (*EXACT, "tokens")
                    )

                eventually(quiet, 30.0)
                at.append(first + step)
                for name, value in gauges.items():
                    readings.setdefault(name, []).append(value)
                _progress(first + step, cycles, began)
    wrong = []
    fitted = {}
    for name, values in readings.items():
        rise, scatter = growth(at, values)
        fitted[name] = {"first": values[0], "last": values[-1], "rise": rise, "scatter": scatter}
        if name.endswith("_rss"):
            if rise > MEMORY_NOISE + 4 * scatter:
                wrong.append(f"{name} rises by {rise:.0f} bytes in {cycles} cycles")
        elif max(values[1:], default=0) > values[0]:
            wrong.append(f"{name} grew from {values[0]} to {max(values)}")
    return {
        "cycles": cycles,
        "seconds": round(time.monotonic() - began, 1),
        "wrong": wrong,
        "fitted": fitted,
        "readings": {"at": at, **readings},
    }


def _progress(done: int, total: int, began: float) -> None:
    if sys.stderr.isatty():
        seconds = time.monotonic() - began
        print(f"{done}/{total} cycles {seconds:.0f} s", end="\r", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 if nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cycles", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="without effect: nothing is random")
    parser.add_argument("--sessions", type=int, default=1, help="visitors per reading")
    parser.add_argument("--report", "--json", type=Path, help="write everything here, as JSON")
    chosen = parser.parse_args(arguments)
    import hugepool_server.cli
    import hugepool_server.daemon  # noqa: F401  forked, not imported, by the coordinator

    try:
        report = run(chosen.cycles, chosen.sessions)
    except TooSlow as error:
        report = {"wrong": [str(error)]}
    if chosen.report:
        chosen.report.write_text(json.dumps(report, indent=1))
    print(json.dumps({key: value for key, value in report.items() if key != "readings"}, indent=1))
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
