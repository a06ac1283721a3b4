"""Who lives and who does not, with real processes; and what a coordinator does not fall for."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

import hugepool
from hugepool_common import paths, wire
from hugepool_common.messages import (
    Bind,
    Bound,
    CreateArray,
    Failed,
    FromCoordinator,
    Hello,
    Message,
    Stats,
    Welcome,
)
from hugepool_common.spec import ArraySpec
from support.host import require, settles
from support.service import Service, said, state, tell

CLIENT = """
import ctypes, os, signal, subprocess, sys, hugepool
pool = hugepool.connect({address!r})
x = pool.create("x", shape=1000, dtype="f8")
print(os.getpid(), flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


def client_of(service: Service, *prefix: str) -> subprocess.Popen[str]:
    """A client that has made ``x`` and not sealed it, and does what it is told."""
    return service.python(CLIENT.format(address=service.address), prefix=prefix)


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


class Raw:
    """A client that says what it is told to, in any order."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.connect(address)
        self._number = 0

    def send(self, message: Message, flags: int = 0) -> int:
        self._number += 1
        self._socket.send_multipart(wire.encode(self._number, message), flags)
        return self._number

    def receive(self) -> tuple[int, FromCoordinator]:
        return wire.decode_from_coordinator(self._socket.recv_multipart())

    def unread(self) -> int:
        """How many answers are there to be read, of all that were sent so far."""
        count = 0
        while self._socket.poll(1000):
            self._socket.recv_multipart()
            count += 1
        return count

    def ask(self, message: Message) -> FromCoordinator:
        number = self.send(message)
        while True:
            found, answer = self.receive()
            if found == number:
                return answer

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def raw(service: Service) -> Iterator[Raw]:
    """A raw client of a coordinator that runs."""
    service.start()
    made = Raw(service.address)
    yield made
    made.close()


# Death ------------------------------------------------------------------------


def test_a_child_that_lives_on_does_not_keep_its_dead_parent_s_arrays(service: Service) -> None:
    service.start()
    client = client_of(service)
    said(client)
    child = int(tell(client, "print(os.fork() or signal.pause(), flush=True)"))
    try:
        with hugepool.connect(service.address) as pool:
            assert names(pool) == ["x"]
            client.kill()
            client.wait()
            assert settles(lambda: names(pool) == [])
            assert pool.stats().sessions == 1
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_a_client_becomes_by_exec_has_no_session(service: Service) -> None:
    service.start()
    client = client_of(service)
    pid = int(said(client))
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["x"]
        assert tell(client, "os.execlp('sh', 'sh', '-c', 'echo new; read x')") == "new"
        assert settles(lambda: names(pool) == [])
        assert client.poll() is None
        assert client.pid == pid


def test_a_stopped_client_keeps_what_it_has(service: Service) -> None:
    service.start()
    client = client_of(service)
    said(client)
    with hugepool.connect(service.address) as pool:
        client.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # two looks at all locks
        assert names(pool) == ["x"]
        assert pool.stats().sessions == 2
        client.send_signal(signal.SIGCONT)
        assert tell(client, "x.array[:] = 7; x.seal()") == "done"
        assert pool.attach("x").array[999] == 7


@pytest.mark.parametrize("where", ["coordinator", "client", "both"])
def test_deaths_are_seen_across_pid_namespaces(service: Service, where: str) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root for pid namespaces")
    apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    service.start(prefix=apart if where != "client" else ())
    client = client_of(service, *(apart if where != "coordinator" else ()))
    pid = int(said(client))
    assert (pid == 1) == (where != "coordinator")
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["x"]
        time.sleep(1.5)  # a look at all locks finds all well
        assert names(pool) == ["x"]
        client.kill()
        client.wait()
        assert settles(lambda: names(pool) == [])
        assert pool.stats().sessions == 1
    service.kill()  # unshare passes no SIGTERM on


def test_a_client_seen_from_nowhere_is_taken_over_by_its_lock(service: Service) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root for pid namespaces")
    apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    service.start(prefix=apart)
    client = client_of(service)
    said(client)
    with hugepool.connect(service.address) as pool:
        service.restart(prefix=apart)
        assert names(pool) == ["x"]
        assert pool.stats().sessions == 2
        assert tell(client, "x.array[:] = 7; x.seal()") == "done"
        client.kill()
        client.wait()
        assert settles(lambda: pool.stats().sessions == 1)
        assert names(pool) == ["x"]
    service.kill()  # unshare passes no SIGTERM on


def test_a_stopped_worker_is_noticed_and_waited_for(service: Service) -> None:
    service.start()
    service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "1")
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: len(pool.stats().workers) == 1, 60)
        pool.put("x", np.arange(100.0))
        worker = pool.stats().workers[0].pid
        os.kill(worker, signal.SIGSTOP)
        client = service.python(
            "import hugepool\n"
            "with hugepool.connect() as pool:\n"
            "    print(pool.gather('x', [7], workers=1).array[0], flush=True)\n"
        )
        assert settles(lambda: pool.stats().jobs_running == 1)
        assert pool.stats().jobs_waiting == 0
        assert settles(lambda: pool.stats().jobs_waiting == 1, 60)
        assert [one.pid for one in pool.stats().workers] == [worker]
        os.kill(worker, signal.SIGCONT)
        assert said(client) == "7.0"
        assert pool.stats().jobs_waiting == 0


# Binding ----------------------------------------------------------------------


def test_before_the_lock_is_held_nothing_can_be_asked(raw: Raw) -> None:
    welcome = raw.ask(Hello("raw", "0"))
    assert isinstance(welcome, Welcome)
    assert welcome.token
    for request in (Stats(), CreateArray(ArraySpec("x", (10,), "<f8"))):
        refused = raw.ask(request)
        assert isinstance(refused, Failed)
        assert "not bound" in refused.message
    refused = raw.ask(Bind())
    assert isinstance(refused, Failed)
    assert "not locked" in refused.message


def test_another_s_lock_binds_nobody(raw: Raw, service: Service) -> None:
    welcome = raw.ask(Hello("raw", "0"))
    assert isinstance(welcome, Welcome)
    holder = service.python(
        "import fcntl, os, sys\n"
        f"fd = os.open({welcome.token!r}, os.O_RDWR)\n"
        "fcntl.lockf(fd, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    assert said(holder) == "locked"
    refused = raw.ask(Bind())
    assert isinstance(refused, Failed)
    assert settles(lambda: not os.path.exists(welcome.token))


def test_a_token_is_removed_with_its_session(raw: Raw, service: Service) -> None:
    tokens = Path(paths.tokens_path(str(service.directory)))
    welcome = raw.ask(Hello("raw", "0"))
    assert isinstance(welcome, Welcome)
    fd = os.open(welcome.token, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert isinstance(raw.ask(Bind()), Bound)
    assert os.listdir(tokens) == [os.path.basename(welcome.token)]
    os.close(fd)  # lets go
    assert settles(lambda: os.listdir(tokens) == [])
    refused = raw.ask(Stats())
    assert isinstance(refused, Failed)
    assert "Hello" in refused.message


def test_a_peer_that_never_reads_delays_nobody(raw: Raw, service: Service) -> None:
    welcome = raw.ask(Hello("raw", "0"))
    assert isinstance(welcome, Welcome)
    fd = os.open(welcome.token, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert isinstance(raw.ask(Bind()), Bound)
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        assert service.process is not None
        before = resident_kib(service.process.pid)
        sent = 0
        while sent < 20_000:  # far more answers than it has room for
            try:
                raw.send(Stats(), zmq.NOBLOCK)
                sent += 1
            except zmq.Again:
                assert pool.stats().sessions == 2
        for _ in range(100):
            pool.attach("x").detach()
        assert pool.stats().sessions == 2, "what it holds stays: it may be stopped"
        assert resident_kib(service.process.pid) - before < 64 * 1024
        assert x.array[999] == 999
        # What found no room is not kept for it: it was not told, and is to ask again.
        assert raw.unread() < sent / 2
        os.close(fd)
        assert settles(lambda: pool.stats().sessions == 1)


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


# Descriptors ------------------------------------------------------------------


def test_too_few_descriptors_are_refused_at_the_start(service: Service) -> None:
    process = service.begin(prefix=("prlimit", "--nofile=200:200"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert "may open too few files" in err
    assert "LimitNOFILE" in err
    assert not service.directory.exists()


def test_the_limit_is_raised_and_promises_no_more_sessions_than_it_is_good_for(
    service: Service,
) -> None:
    service.start(prefix=("prlimit", "--nofile=64:400"))
    assert service.process is not None
    assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (400, 400)
    # 400 less a quarter less 64, by three.
    pools = [hugepool.connect(service.address) for _ in range(78)]
    with pytest.raises(hugepool.NotEnoughMemoryError, match="session"):
        hugepool.connect(service.address)
    pools.pop().close()
    pools.append(hugepool.connect(service.address))
    assert pools[0].stats().sessions == 78
    for pool in pools:
        pool.close()


def test_a_rush_of_connections_turns_newcomers_away_and_harms_nobody(service: Service) -> None:
    service.start(prefix=("prlimit", "--nofile=256:256"))
    rush: list[socket.socket] = []
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        path = paths.socket_path(str(service.directory))
        for _ in range(195):
            rush.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            rush[-1].connect(path)
        with pytest.raises(hugepool.NotEnoughMemoryError, match="descriptors"):
            hugepool.connect(service.address)
        assert names(pool) == ["x"]
        for one in rush:
            one.close()

        def welcome() -> bool:
            try:
                hugepool.connect(service.address).close()
            except hugepool.NotEnoughMemoryError:
                return False
            return True

        assert settles(welcome)
        assert x.array[999] == 999


# Sleep ------------------------------------------------------------------------


def wakes(pid: int) -> int:
    """How often the loop's thread has gone to sleep."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_a_coordinator_that_nobody_uses_sleeps(service: Service) -> None:
    service.start()
    assert service.process is not None
    pid = service.process.pid
    hugepool.connect(service.address).close()
    assert settles(lambda: settled(pid))
    before = wakes(pid)
    time.sleep(3)
    assert wakes(pid) == before


def settled(pid: int) -> bool:
    """Whether the loop has slept for a while longer than any of its intervals."""
    before = wakes(pid)
    if state(pid) != "S":  # it is not for want of a CPU that it does nothing
        return False
    time.sleep(1.2)
    return wakes(pid) == before and state(pid) == "S"


# The end ----------------------------------------------------------------------


def test_a_second_signal_ends_it_at_once_and_the_next_one_finds_all(service: Service) -> None:
    service.start()
    client = client_of(service)
    said(client)
    with hugepool.connect(service.address) as pool:
        pool.put("y", [1.0])
        assert service.process is not None
        # A writer of its own keeps the seal, and so the first signal, waiting.
        path = next(info for info in pool.list() if info.spec.name == "x").segment.path
        writer = os.open(path, os.O_RDWR)
        begin_a_seal(client, path)
        service.process.send_signal(signal.SIGTERM)
        assert settles(lambda: takes_nobody(service))
        # It waits for the seal two seconds at most; stopped it does so for as long as we take.
        service.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # no part of the same gesture
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGCONT)
        assert service.process.wait(60) == -signal.SIGTERM
        os.close(writer)
        service.start()
        assert set(names(pool)) == {"x", "y"}


def begin_a_seal(client: subprocess.Popen[str], path: str) -> None:
    """Have a client seal ``x``, which somebody else writes to; the coordinator is at it then."""
    before = os.stat(path)
    assert client.stdin is not None
    seal = "try: x.seal()\nexcept hugepool.HugepoolError as error: print(repr(error), flush=True)"
    client.stdin.write(f"exec({seal!r})\n")
    client.stdin.flush()
    # Again and again it takes the permission to write away, and gives it back.
    assert settles(lambda: os.stat(path).st_ctime_ns != before.st_ctime_ns)


def takes_nobody(service: Service) -> bool:
    """Whether the coordinator has heard that it is to end."""
    try:
        hugepool.connect(service.address).close()
    except hugepool.CoordinatorUnreachableError:
        return True
    return False


def test_a_signal_given_twice_by_one_hand_is_one(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        path = pool.put("x", np.arange(1000.0)).info.segment.path
        assert service.process is not None
        pid = service.process.pid
        service.process.send_signal(signal.SIGSTOP)  # so that both come at once
        assert settles(lambda: state(pid) == "T")
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGINT)
        service.process.send_signal(signal.SIGCONT)
        assert service.process.wait(60) == 0
    assert not os.path.exists(path)
    assert not service.directory.exists()


@pytest.mark.parametrize("busy", ["making", "sealing", "job"])
def test_it_ends_in_order_whatever_is_under_way(service: Service, busy: str) -> None:
    service.start()
    client = client_of(service)
    said(client)
    with hugepool.connect(service.address) as pool:
        path = pool.put("y", np.arange(1000.0)).info.segment.path
        directory = os.path.dirname(path)
        writer = -1
        assert client.stdin is not None
        if busy == "making":
            there = len(os.listdir(directory))
            client.stdin.write("pool.create('big', 250_000_000, backing='shm-4k')\n")
            client.stdin.flush()
            assert settles(lambda: len(os.listdir(directory)) > there or growing(directory))
        elif busy == "sealing":
            mine = next(info for info in pool.list() if info.spec.name == "x").segment.path
            writer = os.open(mine, os.O_RDWR)
            begin_a_seal(client, mine)
        else:
            workers = service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "1")
            assert settles(lambda: len(pool.stats().workers) == 1)
            worker = pool.stats().workers[0].pid
            os.kill(worker, signal.SIGSTOP)
            client.stdin.write("pool.gather('y', [1, 2, 3], workers=1)\n")
            client.stdin.flush()
            assert settles(lambda: pool.stats().jobs_running == 1)
        started_ns = time.monotonic_ns()
        assert service.stop() == 0
        took_s = (time.monotonic_ns() - started_ns) / 1e9
        if busy == "job":
            os.kill(worker, signal.SIGCONT)
            assert workers.wait(60) == 0
        if writer >= 0:
            os.close(writer)
            # It was not the patience with the writer that ended first.
            assert "CancelledError" in said(client)
    assert took_s < 10  # the promise is 5, the machine may be busy
    assert not os.path.exists(directory)
    assert not service.directory.exists()


def growing(directory: str) -> bool:
    """Whether pages are being filled, perhaps of a file without a name."""
    before = os.statvfs(directory).f_bfree
    time.sleep(0.05)
    return os.statvfs(directory).f_bfree < before - 1000
