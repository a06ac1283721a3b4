"""Clients over TCP: what they do, and what becomes of them when they are cut off."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq

import hugepool
from hugepool_common import wire
from hugepool_common.errors import ErrorCode
from hugepool_common.messages import Failed, Hello, Welcome
from support.host import free_port, require, settles
from support.relay import Relay
from support.service import Service, said, tell

SOON = "5"
"""A lease that ends within a test, and not because this process was held up for a moment."""

LATE = "600"
"""One that does not."""

CLIENT = """
import sys, numpy as np, hugepool
pool = hugepool.connect()
x = pool.attach("x")
view = x.array
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except BaseException as error:
        print(type(error).__name__, flush=True)
"""


def served(service: Service, lease: str, port: int = 0) -> str:
    """Start a coordinator that takes clients over TCP; their address."""
    service.start("--tcp", f"127.0.0.1:{port}", "--lease", lease)
    assert service.process is not None
    return said(service.process)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


@pytest.fixture
def local(service: Service) -> Iterator[Callable[[], hugepool.Pool]]:
    """Connects by the socket in the runtime directory."""
    pools: list[hugepool.Pool] = []

    def connect() -> hugepool.Pool:
        pools.append(hugepool.connect(service.address))
        return pools[-1]

    yield connect
    for pool in pools:
        pool.close()


# What they do -----------------------------------------------------------------


def test_it_lists_attaches_and_computes_on_local_workers(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    address = served(service, LATE)
    values = np.arange(1000.0)
    here = local()
    here.put("x", values)
    service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "1")
    assert settles(lambda: len(here.stats().workers) == 1)
    with hugepool.connect(address) as pool:
        assert names(pool) == ["x"] and pool.stats().tcp == address
        x = pool.attach("x")
        np.testing.assert_array_equal(x.array, values)
        index = np.array([5, 999, 0])
        result = pool.gather(x, index, out="g", workers=1)
        np.testing.assert_array_equal(result.array, values[index])
        with pytest.raises(hugepool.NoWorkersError, match="can start none"):
            pool.gather(x, index, workers=2)
        with pytest.raises(hugepool.NotPermittedError, match="crew"):
            pool.crew(workers=1)
        with pytest.raises(hugepool.NotPermittedError):
            pool.destroy("x")
        pool.destroy("g")
        assert names(here) == ["x"]


def test_a_worker_is_refused(service: Service) -> None:
    address = served(service, LATE)
    worker = subprocess.run(
        [sys.executable, "-m", "hugepool", "worker", "--address", address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert worker.returncode == 1
    assert "a client over TCP can be no worker" in worker.stderr and "ipc://" in worker.stderr


def test_the_command_line_goes_by_the_same_address(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    address = served(service, LATE)
    local().put("x", np.arange(10.0)).detach()
    with hugepool.connect(address) as pool:
        x = pool.attach("x")
        told = subprocess.run(
            [sys.executable, "-m", "hugepool", "readers", "x", "--json", "--address", address],
            capture_output=True,
            check=True,
        )
        (reader,) = json.loads(told.stdout)
        assert (reader["command"], reader["pid"]) == ("over TCP", 0)
        assert x.array[3] == 3.0
    for where in (["--address", address], []):
        told = subprocess.run(
            [sys.executable, "-m", "hugepool", "status", "--json", *where],
            capture_output=True,
            check=True,
            env={**os.environ, "HUGEPOOL_ADDRESS": address},
        )
        facts = json.loads(told.stdout)
        assert (facts["address"], facts["tcp"]) == (address, address)


def test_memory_that_is_elsewhere_is_told_as_that(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    require("mounts", os.geteuid() == 0, "needs root for mounts of its own")
    address = served(service, LATE)
    local().put("x", np.arange(1000.0))
    script = """
import hugepool
pool = hugepool.connect()
print([info.spec.name for info in pool.list()])
for wanted in (lambda: pool.attach("x"), lambda: pool.put("y", [1.0]), lambda: pool.verify("x")):
    try:
        wanted()
    except hugepool.SegmentChangedError as error:
        print(error)
print([info.spec.name for info in pool.list()])
"""
    mounts = 'mount -t tmpfs none /dev/shm && mount -t tmpfs none /mnt && exec "$@"'
    told = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounts, "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HUGEPOOL_ADDRESS": address},
    )
    first, *errors, last = told.stdout.splitlines()
    assert (first, last) == ("['x']", "['x']")
    assert len(errors) == 3
    assert all("TCP brings none" in error for error in errors), errors


# Who is let in ----------------------------------------------------------------


@pytest.mark.parametrize("where", ["0.0.0.0:0", "192.0.2.1:8378", "example.org:1"])
def test_it_listens_where_nobody_else_could_come_from(service: Service, where: str) -> None:
    process = service.begin("--tcp", where)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert "ssh -L" in error and where in error
    assert not (service.directory / "hugepool.sock").exists()


def test_a_port_that_is_taken_is_told(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = service.begin("--tcp", str(port))
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "in use" in error and str(port) in error


def test_nobody_is_there(service: Service) -> None:
    port = free_port()
    with pytest.raises(hugepool.CoordinatorUnreachableError, match="--tcp PORT"):
        hugepool.connect(f"tcp://127.0.0.1:{port}")
    with pytest.raises(hugepool.InvalidSpecError, match="encrypted"):
        hugepool.connect("tcp://192.0.2.1:8378")


def test_who_could_be_spoken_for_is_refused(service: Service) -> None:
    """ZeroMQ's own routing ids are numbers in a row: anybody could take one over."""
    address = served(service, LATE)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for routing_id, kind in ((b"", Failed), (b"x" * 15, Failed), (b"x" * 16, Welcome)):
            with context.socket(zmq.DEALER) as dealer:
                if routing_id:
                    dealer.setsockopt(zmq.ROUTING_ID, routing_id)
                dealer.connect(address)
                dealer.send_multipart(wire.encode(7, Hello("raw", "0")))
                assert dealer.poll(60_000)
                number, reply = wire.decode_from_coordinator(dealer.recv_multipart())
            assert number == 7 and isinstance(reply, kind)
            if isinstance(reply, Failed):
                assert reply.code == ErrorCode.PROTOCOL and "ROUTING_ID" in reply.needed
    finally:
        context.destroy(linger=0)


# The lease --------------------------------------------------------------------


def test_one_that_does_nothing_keeps_its_session(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    address = served(service, SOON)
    here = local()
    with hugepool.connect(address) as pool:
        made = pool.create("mine", 10)
        time.sleep(2.5 * float(SOON))
        made.array[:] = 7.0
        made.seal()
        assert names(here) == ["mine"]
    assert settles(lambda: here.stats().sessions == 1)


@pytest.mark.parametrize("way", ["both ways", "what it says", "what it is told"])
def test_cut_off_it_stops_before_the_coordinator_lets_go(
    service: Service, local: Callable[[], hugepool.Pool], way: str
) -> None:
    address = served(service, SOON)
    here = local()
    here.put("x", np.arange(10.0))
    with Relay(address) as relay, hugepool.connect(relay.address) as pool:
        x, mine = pool.attach("x"), pool.create("mine", 10)
        view = x.array
        assert here.stats().sessions == 2
        seen_gone = []
        used = 0.0

        def watch() -> None:
            while here.stats().sessions == 2:
                time.sleep(0.01)
            seen_gone.append(time.monotonic())

        relay.passes_up = way == "what it is told"
        relay.passes_down = way == "what it says"
        watcher = threading.Thread(target=watch)
        watcher.start()
        with pytest.raises(hugepool.LeaseExpiredError):
            while True:
                began = time.monotonic()
                assert x.array[3] == 3.0
                used = began
                time.sleep(0.002)
        watcher.join(60)
        assert 0 < used < seen_gone[0]
        assert names(here) == ["x"], "what it had not sealed is gone"
        # It is over for good, though the way is free again.
        relay.passes_up = relay.passes_down = True
        uses: list[Callable[[], object]] = [
            pool.list,
            lambda: x.array,
            x.byte_views,
            lambda: mine.array,
            mine.seal,
            lambda: pool.gather("x", np.array([1]), out="g"),
            lambda: pool.attach("x"),
            lambda: pool.put("y", np.arange(3)),
        ]
        for use in uses:
            with pytest.raises(hugepool.LeaseExpiredError):
                use()
        np.testing.assert_array_equal(view, np.arange(10.0))
        del view
        x.detach()
        mine.detach()
    assert here.stats().sessions == 1


def test_who_waits_for_an_answer_is_told_too(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    address = served(service, SOON)
    with Relay(address) as relay, hugepool.connect(relay.address) as pool:
        relay.cut()
        with pytest.raises(hugepool.LeaseExpiredError):
            pool.list()


def test_one_that_was_stopped_for_longer_is_refused_at_once(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    address = served(service, SOON)
    here = local()
    here.put("x", np.arange(10.0))
    client = service.python(CLIENT, HUGEPOOL_ADDRESS=address)
    assert said(client) == "ready"
    assert tell(client, "x.array.sum()") == "45.0"
    client.send_signal(signal.SIGSTOP)
    assert settles(lambda: here.stats().sessions == 1)
    client.send_signal(signal.SIGCONT)
    for use in ("x.array.sum()", "pool.list()", "pool.attach('x')"):
        assert tell(client, use) == "LeaseExpiredError"
    assert tell(client, "view.sum()") == "45.0"
    assert here.stats().sessions == 1, "no new session was begun in silence"


# Going on ---------------------------------------------------------------------


def test_a_lost_link_is_made_again_within_the_lease(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    address = served(service, LATE)
    here = local()
    here.put("x", np.arange(10.0))
    with Relay(address) as relay, hugepool.connect(relay.address) as pool:
        x, mine = pool.attach("x"), pool.create("mine", 10)
        relay.drop()
        assert names(pool) == ["mine", "x"]
        assert here.stats().sessions == 2
        mine.array[:] = 1.0
        mine.seal()
        assert x.array[3] == 3.0
        assert here.describe("x").array.readers == 1


def test_a_coordinator_that_is_killed_is_followed_within_the_lease(
    service: Service, local: Callable[[], hugepool.Pool]
) -> None:
    port = free_port()
    address = served(service, LATE, port)
    local().put("x", np.arange(10.0))
    with hugepool.connect(address) as pool:
        x, mine = pool.attach("x"), pool.create("mine", 10)
        service.kill()
        assert x.array[3] == 3.0
        assert served(service, SOON, port) == address
        assert names(pool) == ["mine", "x"]
        assert pool.stats().epoch == 2
        mine.array[:] = 1.0
        mine.seal()
        x.detach()
        assert pool.stats().sessions == 2, "ours, and the local one that has not come back"


def test_a_coordinator_that_comes_too_late_is_not(service: Service) -> None:
    port = free_port()
    with hugepool.connect(served(service, SOON, port)) as pool:
        mine = pool.create("mine", 10)
        service.kill()
        with pytest.raises(hugepool.LeaseExpiredError):
            pool.list()
        served(service, SOON, port)
        with pytest.raises(hugepool.LeaseExpiredError):
            mine.seal()
        with hugepool.connect(service.address) as here:
            assert settles(lambda: here.stats().sessions == 1)
            assert names(here) == []


def test_another_coordinator_at_the_address_is_no_successor(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    port = free_port()
    other = Service(tmp_path_factory.mktemp("other") / "run")
    with hugepool.connect(served(service, LATE, port)) as pool:
        service.kill()
        try:
            served(other, LATE, port)
            with pytest.raises(hugepool.LeaseExpiredError):
                pool.list()
        finally:
            other.close()
