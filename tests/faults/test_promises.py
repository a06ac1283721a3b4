"""What only real processes show: what the dead leave, pids used again, clocks, strange words."""

from __future__ import annotations

import ast
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

import hugepool
import hugepool_common
import hugepool_server
from hugepool_common import wire
from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    Bind,
    Bound,
    Counted,
    Failed,
    FromCoordinator,
    Goodbye,
    GoodbyeSaid,
    Hello,
    List,
    Stats,
    Welcome,
)
from support.extras import need
from support.host import require, settles
from support.service import Service

HOLDER = """
import signal, hugepool
pool = hugepool.connect()
x = pool.attach("x")
mine = pool.create("mine", 1000)
print("ready", flush=True)
signal.pause()
"""

PACKAGES = (hugepool, hugepool_common, hugepool_server)


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


# What the dead leave ----------------------------------------------------------


GATHERER = """
import os, signal, hugepool, numpy as np
pool = hugepool.connect()
x = pool.attach("x")
pool.start_workers(1)
for worker in pool.stats().workers:
    os.kill(worker.pid, signal.SIGSTOP)
print("ready", flush=True)
pool.gather(x, np.arange(10), out="g", workers=1)
"""


def test_a_client_killed_in_a_job_leaves_none_of_its_temporaries(service: Service) -> None:
    need("numba")
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0))
        victim = service.spawn(sys.executable, "-c", GATHERER)
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        assert settles(lambda: pool.stats().jobs_running == 1)
        worker = pool.stats().workers[0].pid
        assert len(names(pool)) == 3  # x, its index and its result
        victim.kill()
        os.kill(worker, signal.SIGCONT)
        assert settles(lambda: names(pool) == ["x"]), names(pool)


def test_a_temporary_that_outlives_its_coordinator_is_destroyed_by_the_next(
    service: Service,
) -> None:
    service.start("--keep")
    with hugepool.connect(service.address) as pool:
        made = pool.put("temporary", [1.0], seal=False)
        assert service.stop() == 0
        pool.discard(made)  # there is nobody to be told
        service.start("--keep")
        assert settles(lambda: not names(pool))


REUSED_PID = """
import os, signal, subprocess, sys, time
from pathlib import Path
import hugepool

run = sys.argv[1]
HOLDER = sys.argv[2]


def coordinator():
    made = subprocess.Popen([sys.executable, "-m", "hugepool_server", "--runtime-dir", run],
                            stdout=subprocess.PIPE, text=True)
    made.stdout.readline()
    return made


def sleeper_with_pid(pid):
    # Nobody else forks in this namespace, so the next child has the number.
    for _ in range(100):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            time.sleep(100)
        if child == pid:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise SystemExit("the pid cannot be had again")


os.environ["HUGEPOOL_ADDRESS"] = f"ipc://{run}/hugepool.sock"
first = coordinator()
pool = hugepool.connect()
pool.put("x", [1.0])
client = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
client.stdout.readline()
assert [info.spec.name for info in pool.list()] == ["mine", "x"]
first.kill()
first.wait()
client.kill()
client.wait()
sleeper = sleeper_with_pid(client.pid)
second = coordinator()
pids = pool.describe("x").reader_pids  # takes up the session of the one that lives
found = [info.spec.name for info in pool.list()]
os.kill(sleeper, 0)
os.kill(sleeper, signal.SIGKILL)
print(found, client.pid in pids)
pool.close()
second.terminate()
second.wait()
"""


def test_a_pid_that_is_used_again_does_not_revive_a_session(tmp_path: Path) -> None:
    """Its client dies while no coordinator runs, and somebody else gets the number."""
    require("mounts", os.geteuid() == 0, "needs root for a pid namespace")
    done = subprocess.run(
        [
            *("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSED_PID),
            *(str(tmp_path / "run"), HOLDER),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout == "['x'] False\n", done.stderr


# The clock --------------------------------------------------------------------


def test_no_decision_depends_on_the_wall_clock() -> None:
    """A clock that is set, by an administrator or by NTP, changes nothing: nobody reads it."""
    wall = {
        *("time", "time_ns", "localtime", "gmtime", "ctime", "strftime"),
        *("CLOCK_REALTIME", "CLOCK_TAI"),
    }
    found = []
    for package in PACKAGES:
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Attribute | ast.ImportFrom):
                    continue
                of_time = isinstance(node, ast.Attribute) and (
                    isinstance(node.value, ast.Name)
                    and (
                        (node.value.id == "time" and node.attr in wall)
                        or node.value.id == "datetime"
                    )
                )
                imported = isinstance(node, ast.ImportFrom) and (
                    node.module == "datetime"
                    or (node.module == "time" and {name.name for name in node.names} & wall)
                )
                if of_time or imported:
                    found.append(f"{path.relative_to(root.parent)}:{node.lineno}")
    # People read when a benchmark was run and since when there is no coordinator: no decision.
    assert [place for place in found if not {"bench", "live"} & set(Path(place).parts)] == []


# Peers that misbehave ---------------------------------------------------------


class RawSession:
    """A session by hand, frame by frame."""

    def __init__(self, service: Service, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self.socket.connect(service.address)
        welcome = self.ask(wire.encode(1, Hello("raw", "0")))
        assert isinstance(welcome, Welcome)
        self._token = os.open(welcome.token, os.O_RDWR | os.O_CLOEXEC)
        fcntl.lockf(self._token, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert isinstance(self.ask(wire.encode(2, Bind())), Bound)

    def ask(self, frames: list[bytes]) -> FromCoordinator:
        """Send frames and take what comes."""
        self.socket.send_multipart(frames)
        return wire.decode_from_coordinator(self.socket.recv_multipart())[1]

    def close(self) -> None:
        """Leave."""
        assert isinstance(self.ask(wire.encode(3, Goodbye())), GoodbyeSaid)
        self.socket.close()
        self.let_go()

    def let_go(self) -> None:
        """Free the lock, which ends the session too."""
        os.close(self._token)


@contextmanager
def raw_session(service: Service) -> Iterator[RawSession]:
    """In a context of its own."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    session = RawSession(service, context)
    try:
        yield session
        session.close()
    finally:
        session.socket.close()
        context.term()


@pytest.mark.parametrize("strange", ["version", "number", "field", "type", "trailing", "missing"])
def test_what_is_unknown_is_a_typed_error_and_the_session_goes_on(
    service: Service, strange: str
) -> None:
    service.start()
    with raw_session(service) as session:
        version, correlation, body = wire.encode(7, List("abc"))
        frames = {
            "version": [bytes([version[0] + 1]), correlation, body],
            "number": [version, correlation, b"\x81\xa1m\x63"],  # {"m": 99}
            "field": [version, correlation, b"\x83" + body[1:] + b"\xa4more\x01"],
            "type": [version, correlation, b"\x82\xa1m\x08\xa5after\x01"],
            "trailing": [version, correlation, body + b"\xc0"],
            "missing": [version, correlation, b"\x81\xa5after\xa0"],
        }[strange]
        refusal = session.ask(frames)
        assert isinstance(refusal, Failed)
        assert refusal.code == ErrorCode.PROTOCOL, refusal
        assert isinstance(session.ask(wire.encode(8, Stats())), Counted)
