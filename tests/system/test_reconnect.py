"""Clients and workers whose coordinator is killed: they wait for the next one and go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool import jobs
from hugepool.children import EmbeddedCoordinator
from hugepool.link import Link
from hugepool.session import Session
from hugepool.succession import Succession
from support.host import require, settles
from support.service import Service, said, tell

pytestmark = pytest.mark.usefixtures("patience")

STRANGER = 54321
"""Number of a user that there is not."""

FOR_EVER = "3600"
"""A patience that fails the test by its time limit wherever somebody waits in vain."""

CLIENT = """
import signal, sys, numpy as np, hugepool
pool = hugepool.connect()
print("ready", flush=True)
for line in sys.stdin:
    try:
        exec(line)
        print("done", flush=True)
    except BaseException as error:
        print(type(error).__name__, flush=True)
"""


@contextmanager
def started_soon(service: Service) -> Iterator[None]:
    """The next coordinator comes while the block is under way."""
    timer = threading.Timer(0.3, service.start)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.fixture
def slow_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job waits for the workers that there were however long they take to come back."""
    monkeypatch.setattr(jobs, "RETURN_TIMEOUT_S", 60.0)


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


# Requests ---------------------------------------------------------------------


def test_whatever_is_asked_waits_for_the_next_coordinator(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(1000.0))
        open_array = pool.create("open", 10)
        asked: list[Callable[[], object]] = [
            pool.list,
            partial(pool.attach, "x"),
            partial(pool.create, "made", 10),
            open_array.seal,
            partial(pool.destroy, "made"),
            pool.stats,
        ]
        for ask in asked:
            service.kill()
            with started_soon(service):
                ask()
        assert names(pool) == ["open", "x"]
        assert pool.stats().epoch == 7


def test_an_array_being_made_is_made_by_the_next_coordinator(service: Service) -> None:
    service.start()
    killed: list[int] = []

    def kill_once(done_bytes: int, total_bytes: int) -> None:
        if not killed and done_bytes < total_bytes:
            killed.append(done_bytes)
            service.restart()

    with hugepool.connect(service.address) as pool:
        big = pool.create("big", 100_000_000, "u1", backing="shm-4k", progress=kill_once)
        if not killed:
            pytest.skip("the array was made before it could be told of its progress")
        big.array[::4096] = 1
        assert int(big.array.sum(dtype="u8")) == -(-100_000_000 // 4096)
        assert names(pool) == ["big"]
        assert pool.describe("big").array.readers == 1
        big.seal()


def test_a_callback_s_own_request_is_carried_over_with_the_one_it_is_of(service: Service) -> None:
    service.start()
    seen: list[int] = []

    def ask(done_bytes: int, total_bytes: int) -> None:
        if not seen and done_bytes < total_bytes:
            service.restart()
            seen.append(pool.stats().epoch)

    with hugepool.connect(service.address) as pool:
        pool.create("big", 100_000_000, "u1", backing="shm-4k", progress=ask)
        if not seen:
            pytest.skip("the array was made before it could be told of its progress")
        assert seen == [2]
        assert names(pool) == ["big"]


def test_threads_that_wait_go_on_together(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0))
        service.kill()
        found: list[list[str]] = []
        threads = [threading.Thread(target=lambda: found.append(names(pool))) for _ in range(4)]
        for thread in threads:
            thread.start()
        service.start()
        for thread in threads:
            thread.join()
        assert found == [["x"]] * 4
        assert pool.stats().sessions == 1


def test_ctrl_c_ends_the_waiting_and_not_the_session(service: Service) -> None:
    service.start()
    client = service.python(CLIENT, HUGEPOOL_RECONNECT_S=FOR_EVER)
    assert said(client) == "ready"
    assert tell(client, "x = pool.create('x', 1000); x.array[:] = 7") == "done"
    service.kill()
    for ask in ("pool.list()", "pool.create('y', 10)"):
        alarm = "signal.setitimer(signal.ITIMER_REAL, 0.3); "
        alarm = "signal.signal(signal.SIGALRM, signal.default_int_handler); " + alarm
        assert tell(client, alarm + ask) == "KeyboardInterrupt"
    service.start()
    assert tell(client, "x.seal(); assert x.array[999] == 7") == "done"
    assert tell(client, "pool.create('y', 10).seal()") == "done"
    assert tell(client, "assert [i.spec.name for i in pool.list()] == ['x', 'y']") == "done"


# Nobody comes -----------------------------------------------------------------


def test_who_comes_too_late_is_still_found(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "0.1")
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        service.kill()
        for _ in range(3):
            with pytest.raises(hugepool.CoordinatorUnreachableError, match="hugepool serve"):
                pool.list()
        service.start()
        assert names(pool) == ["x"]
        assert not x.lost
        assert pool.describe("x").array.readers == 1


def test_a_private_coordinator_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", FOR_EVER)
    coordinator = EmbeddedCoordinator()
    pool = hugepool.connect(coordinator.address)
    x = pool.put("x", np.arange(1000.0))
    os.kill(coordinator.pid, signal.SIGKILL)
    with pytest.raises(hugepool.CoordinatorUnreachableError):
        pool.list()
    assert x.array[999] == 999
    pool.close()
    coordinator.stop()


def test_one_that_stopped_in_order_is_not_waited_for_but_its_successor_is_taken(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", FOR_EVER)
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        y = pool.create("y", 1000)
        assert service.stop() == 0
        with pytest.raises(hugepool.CoordinatorUnreachableError):
            pool.list()
        service.start()
        assert names(pool) == []
        # Its numbers begin anew: these arrays are others, under the same numbers.
        pool.put("x", np.zeros(10))
        pool.create("y", 10)
        assert x.lost
        assert x.array[999] == 999
        with pytest.raises(hugepool.ArrayLostError, match="copy"):
            y.seal()
        x.detach()
        y.detach()
        assert [pool.describe(name).array.readers for name in ("x", "y")] == [0, 0]


def test_nothing_is_waited_for_to_give_back_what_is_held(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", FOR_EVER)
    service.start()
    pool = hugepool.connect(service.address)
    pool.put("x", np.arange(1000.0)).detach()
    kept, given = pool.attach("x"), pool.attach("x")
    service.kill()
    given.detach()
    service.start()
    assert pool.describe("x").array.readers == 1
    service.kill()
    kept.detach()
    pool.close()
    service.start()
    with hugepool.connect(service.address) as other:
        # The session ended with its token's lock, though its process lives.
        assert settles(lambda: other.stats().sessions == 1)
        assert other.describe("x").array.readers == 0


def test_what_is_given_back_after_a_restart_is_so_without_a_further_request(
    service: Service,
) -> None:
    """Its client may have noticed nothing of the restart, and compute for hours from here on."""
    service.start()
    with hugepool.connect(service.address) as pool, hugepool.connect(service.address) as other:
        with other.publish("x", np.arange(1000.0)) as first:
            path = first.info.segment.path
            held = pool.attach("x")
        other.publish("x", np.arange(1000.0)).detach()
        service.restart()
        assert names(other) == ["x"]
        assert os.path.exists(path)
        held.detach()
        assert settles(lambda: not os.path.exists(path))


def test_another_user_s_coordinator_is_not_taken_for_ours(service: Service) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become another user")
    service.start()
    with hugepool.connect(service.address) as pool:
        service.kill()
        path = service.address.removeprefix("ipc://")
        os.unlink(path)
        planted = socket.socket(socket.AF_UNIX)
        planted.bind(path)
        # The credentials that a client sees are those of listen().
        os.seteuid(64001)
        try:
            planted.listen()
        finally:
            os.seteuid(0)
        with planted, pytest.raises(hugepool.NotPermittedError, match="uid 64001"):
            pool.list()


# What is held -----------------------------------------------------------------


def test_every_lease_is_told_however_many_there_are(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0))
        pool.put("y", np.arange(10.0))
        handles = [pool.attach("xy"[number % 2]) for number in range(1201)]
        service.restart()
        assert pool.stats().epoch == 2
        assert [pool.describe(name).array.readers for name in "xy"] == [601, 600]
        for handle in handles:
            handle.detach()
        assert [pool.describe(name).array.readers for name in "xy"] == [0, 0]


def test_what_is_gone_is_marked_lost_and_stays_readable(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool, hugepool.connect(service.address) as other:
        x, y = pool.put("x", np.arange(1000.0)), pool.put("y", np.arange(1000.0))
        os.unlink(x.info.segment.path)
        service.restart()
        assert names(other) == ["x", "y"]
        assert not x.lost  # as far as anybody has asked
        with pytest.raises(hugepool.ArrayLostError, match="x"):
            pool.attach("x")
        assert (x.lost, y.lost) == (True, False)
        assert x.array[999] == 999
        with pytest.raises(hugepool.ArrayLostError):
            pool.gather(x, np.arange(3), workers=1)
        pool.destroy("x")
        pool.put("x", x.array).detach()
        x.detach()
        assert pool.describe("x").array.readers == 0


def test_declared_rows_stay_declared(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool, hugepool.connect(service.address) as other:
        pool.create("x", 100).array[:] = 0
        mine = pool.attach("x", readonly=False, rows=(0, 50))
        service.restart()
        assert names(pool) == names(other) == ["x"]
        with pytest.raises(hugepool.ArrayBusyError):
            other.attach("x", readonly=False, rows=(40, 60))
        theirs = other.attach("x", readonly=False, rows=(50, 100))
        mine.array[:], theirs.array[:] = 1, 2
        assert pool.attach("x").array.sum() == 50 + 100


# Tokens -----------------------------------------------------------------------


def test_channels_of_one_process_are_sessions_of_their_own(service: Service) -> None:
    service.start()
    pools = [hugepool.connect(service.address) for _ in range(3)]
    for number, pool in enumerate(pools):
        pool.create(f"x{number}", 10)
    pools.pop().close()
    service.restart()
    assert [names(pool) for pool in pools] == [["x0", "x1"]] * 2
    pools.pop().close()
    assert names(pools[0]) == ["x0"]
    pools[0].close()


FEW_DESCRIPTORS = """
import os, resource, hugepool
hugepool.connect().close()
first = os.dup(0)
os.close(first)
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
for spare in range(24):
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + spare, most))
    try:
        hugepool.connect(os.environ["HUGEPOOL_ADDRESS"]).close()
        print("connected", end=" ")
    except hugepool.NotEnoughMemoryError as error:
        assert "ulimit -n" in str(error)
        print("refused", end=" ")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    now = os.dup(0)
    os.close(now)
    assert now == first, "a descriptor was left open"
"""


def test_a_process_short_of_descriptors_is_refused_and_not_ended(service: Service) -> None:
    service.start()
    done = service.run(FEW_DESCRIPTORS)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert outcomes[0] == "refused"
    assert outcomes[-1] == "connected"
    assert outcomes == sorted(outcomes, reverse=True)


LITTLE = """
import os, resource, sys
import hugepool
from hugepool.connection import connect
kind, most = sys.argv[1], int(sys.argv[2])
if kind == "AS":
    with open("/proc/self/statm") as statm:
        most += int(statm.read().split()[0]) * resource.getpagesize()
limit = getattr(resource, "RLIMIT_" + kind)
resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
try:
    connect(os.environ["HUGEPOOL_ADDRESS"]).close()
    print("connected")
except hugepool.NotEnoughMemoryError as error:
    assert "ulimit" in str(error), error
    print("refused")
"""


def test_a_process_short_of_address_space_is_refused_and_not_ended(service: Service) -> None:
    service.start()
    outcomes = []
    for mib in (10, 18, 26, 34, 256):
        client = service.spawn(sys.executable, "-c", LITTLE, "AS", str(mib << 20))
        outcome, complaint = client.communicate()
        assert client.returncode == 0, complaint
        outcomes.append(outcome.strip())
    assert outcomes[0] == "refused"
    assert outcomes[-1] == "connected"
    assert outcomes == sorted(outcomes, reverse=True)


LITTLE_SERVER = """
import resource, sys
import hugepool_server.daemon
from hugepool_server.cli import main
with open("/proc/self/statm") as statm:
    most = int(statm.read().split()[0]) * resource.getpagesize() + (int(sys.argv.pop(1)) << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(main())
"""


@pytest.mark.parametrize("mib", [14, 22])
def test_a_coordinator_short_of_address_space_says_so(service: Service, mib: int) -> None:
    started = service.spawn(
        *(sys.executable, "-c", LITTLE_SERVER, str(mib)),
        *("--runtime-dir", str(service.directory)),
    )
    complaint = started.communicate(timeout=60)[1]
    assert started.returncode == 1, complaint
    assert "ulimit -v" in complaint
    assert "Traceback" not in complaint


def test_a_process_short_of_threads_is_refused_and_not_ended() -> None:
    require("unprivileged", os.geteuid() == 0, "root has as many threads as it likes")
    require("unprivileged", stranger_can_run(), "another user cannot read Python or this tree")
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, STRANGER, STRANGER)
        service = Service(Path(place) / "run")
        with closing(service):
            # It has three threads itself: one, and two of its ZeroMQ context.
            for most in range(1, 3):
                refused = service.begin(prefix=as_stranger(most))
                complaint = refused.communicate()[1]
                assert refused.returncode == 1, complaint
                assert "ulimit -u" in complaint
                assert "Traceback" not in complaint
            service.start(prefix=as_stranger(100))
            outcomes = []
            for most in range(4, 9):
                client = service.spawn(
                    *as_stranger(100), sys.executable, "-c", LITTLE, "NPROC", str(most)
                )
                outcome, complaint = client.communicate()
                assert client.returncode == 0, complaint
                outcomes.append(outcome.strip())
            assert outcomes[0] == "refused"
            assert outcomes[-1] == "connected"
            assert outcomes == sorted(outcomes, reverse=True)


def stranger_can_run() -> bool:
    """Whether a process of another user would run the code that is tested here."""
    script = "import hugepool; print(hugepool.__file__)"
    command = [*as_stranger(100), sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() == hugepool.__file__


def as_stranger(most: int) -> list[str]:
    """What starts a process as a user with no others, who may have so many threads."""
    identity = [f"--{kind}={STRANGER}" for kind in ("reuid", "regid")]
    # OpenBLAS has threads of its own, and ends the process itself if it gets none.
    return [
        "env",
        "OPENBLAS_NUM_THREADS=1",
        "prlimit",
        f"--nproc={most}",
        "setpriv",
        *identity,
        "--clear-groups",
    ]


FORKER = """
import multiprocessing, os, sys, hugepool
pool = hugepool.connect()
x = pool.create("x", 10)

def use(queue):
    said = []
    for call in (pool.list, lambda: pool.attach("x"), x.seal, x.detach, lambda: pool.put("y", [1])):
        try:
            call()
            said.append("done")
        except hugepool.DetachedError as error:
            said.append("connect" in str(error))
    pool.close()
    queue.put(said)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=use, args=(queue,))
    child.start()
    print(queue.get(), flush=True)
    child.join()
    print(pool.describe("x").array.readers, flush=True)
    if os.fork() == 0:
        sys.stdin.read()  # outlive the parent, with all its descriptors
        os._exit(0)
    print("forked", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_forked_child_is_not_the_client_and_cannot_keep_it_alive(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        client = service.python(FORKER)
        # Its copy of a mapping is its own to let go of; the lease is not.
        assert said(client) == "[True, True, True, 'done', True]"
        assert said(client) == "1"
        assert said(client) == "forked"
        assert settles(lambda: pool.stats().sessions == 1 and names(pool) == [])


# Workers and jobs -------------------------------------------------------------


@pytest.mark.usefixtures("slow_returns")
def test_workers_go_on_with_the_next_coordinator(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(2)
        x = pool.put("x", np.arange(1000.0))
        pool.gather(x, np.arange(10), workers=2)
        before = {worker.pid for worker in pool.stats().workers}
        for _ in range(2):
            service.restart()
            g = pool.gather(x, np.arange(100)[::-1].copy(), workers=2)
            np.testing.assert_array_equal(g.array, np.arange(100.0)[::-1])
            assert {worker.pid for worker in pool.stats().workers} == before
        # They let go of what is destroyed now, and of what they could write.
        g.seal()
        pool.destroy(g.name)


@pytest.mark.usefixtures("slow_returns")
def test_a_job_that_was_not_sent_is_not_interrupted(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(1)
        x, idx = pool.put("x", np.arange(10.0)), pool.put("idx", np.arange(10))
        out = pool.create("out", 10)
        service.restart()
        timings = pool.run("gather", {"x": x, "idx": idx, "out": out}, (0, 10))
        assert len(timings.parts) == 1
        np.testing.assert_array_equal(out.array, x.array)


def test_a_worker_that_nobody_comes_back_to_ends_as_ever(service: Service) -> None:
    service.start()
    worker = service.spawn(
        *(sys.executable, "-m", "hugepool.worker", "--address", service.address),
        HUGEPOOL_RECONNECT_S="0.1",
    )
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: len(pool.stats().workers) == 1)
    service.kill()
    assert worker.wait(60) == 3


def test_a_worker_that_waits_can_be_ended(service: Service) -> None:
    service.start()
    worker = service.spawn(
        *(sys.executable, "-m", "hugepool.worker", "--address", service.address),
        HUGEPOOL_RECONNECT_S=FOR_EVER,
    )
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: len(pool.stats().workers) == 1)
    service.kill()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


@pytest.mark.usefixtures("slow_returns")
def test_a_worker_s_report_of_an_interrupted_job_is_dropped(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(1)
        (worker,) = pool.stats().workers
        x = pool.put("x", np.arange(1000.0))
        idx = pool.put("idx", np.arange(1000))
        client = service.python(CLIENT)
        assert said(client) == "ready"
        os.kill(worker.pid, signal.SIGSTOP)
        assert client.stdin is not None
        client.stdin.write("pool.gather('x', pool.attach('idx').array, workers=1)\n")
        client.stdin.flush()
        assert settles(lambda: pool.stats().jobs_running == 1)
        service.restart()
        assert said(client) == "JobInterruptedError"
        os.kill(worker.pid, signal.SIGCONT)
        g = pool.gather(x, idx, workers=1)
        np.testing.assert_array_equal(g.array, x.array)
        stats = pool.stats()
        assert [found.pid for found in stats.workers] == [worker.pid]
        assert (stats.jobs_done, stats.jobs_failed) == (1, 0)


def test_a_command_of_workers_lasts_through_a_restart(service: Service, tmp_path: Path) -> None:
    service.start()
    command = subprocess.Popen(
        [sys.executable, "-m", "hugepool", "worker", "-n", "2", "--address", service.address],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with hugepool.connect(service.address) as pool:
            assert settles(lambda: len(pool.stats().workers) == 2)
            service.restart()
            assert settles(lambda: len(pool.stats().workers) == 2)
            assert command.poll() is None
            assert service.stop() == 0
        assert command.wait(60) == 0
    finally:
        command.kill()
        command.communicate()


def test_threads_that_make_and_ask_find_the_next_coordinator(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in peace, and none keeps the one that looks for it from being heard."""
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", FOR_EVER)
    counted: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            counted[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, counting)

    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0))
        service.kill()
        count(Succession, "follow")
        count(Session, "take_up")
        asked: list[hugepool.Job[Any]] = []
        for number in range(3):
            asked.append(pool.submit(pool.create, f"y{number}", 10))
            time.sleep(0.1)  # each comes while the others wait
            asked.append(pool.submit(pool.list))
        time.sleep(0.5)
        assert counted["follow"] <= 10 * len(asked), "each wakes the other without end"
        service.start()
        for job in asked:
            assert job.result(60) is not None
        assert counted["take_up"] == 1, "what began well was broken off"
        assert names(pool) == ["x", "y0", "y1", "y2"]


def test_a_job_waits_for_the_next_coordinator_as_any_request(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(10.0))
        pool.gather(x, [1], workers=1)
        service.kill()
        with started_soon(service):
            assert pool.gather(x, [2], workers=1).array.tolist() == [2.0]


def test_ctrl_c_as_the_end_is_noticed_leaves_a_session_that_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0))
        forget = Link._forget_coordinator

        def interrupted(link: Link) -> None:
            monkeypatch.setattr(Link, "_forget_coordinator", forget)
            signal.raise_signal(signal.SIGINT)
            forget(link)

        monkeypatch.setattr(Link, "_forget_coordinator", interrupted)
        service.kill()
        with pytest.raises(KeyboardInterrupt):
            pool.list()
        service.start()
        assert names(pool) == ["x"]
