"""The real daemon, real workers and unrelated client processes, through the public API."""

from __future__ import annotations

import gc
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

import hugepool
from hugepool_common import wire
from hugepool_common.messages import ArrayCreated, Cancelled, Failed, Hello, Sealed, Stats
from support.host import require
from support.service import Service

OWNER = """
import signal, numpy as np, hugepool
with hugepool.connect() as pool:
    x = pool.create("x", shape=1000, dtype="f8")
    x.array[:] = np.arange(1000)
    {seal}
    print("ready", flush=True)
    signal.pause()
"""


def wait_for(condition: object, timeout_s: float = 60.0) -> None:
    """Poll until ``condition()`` holds; a system test may wait, but never asserts how long."""
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def segment_directory(shared: hugepool.SharedArray) -> Path:
    """Where the coordinator of an array keeps its segments."""
    return Path(shared.info.segment.path).parent


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


def test_attach_from_an_unrelated_process_sees_the_same_bytes(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        source = np.random.default_rng(1).random(300_000)
        x = pool.put("x", source)
        assert x.sealed
        seen = service.run(
            "import hugepool, hashlib\n"
            "x = hugepool.connect().attach('x')\n"
            "print(x.shape, x.dtype, x.array.flags.writeable, x.sealed)\n"
            "print(hashlib.sha256(x.array).hexdigest())\n"
        )
        import hashlib

        assert seen.stderr == ""
        assert seen.stdout.splitlines() == [
            "(300000,) float64 False True",
            hashlib.sha256(source.tobytes()).hexdigest(),
        ]


def test_jobs_on_workers_of_the_command_line(service: Service) -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    service.start()
    workers = service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "2")
    with hugepool.connect(service.address) as pool:
        wait_for(lambda: len(pool.stats().workers) == 2)
        A = scipy_sparse.random_array((5000, 4000), density=0.002, format="csr", rng=7)
        x = np.random.default_rng(2).random(4000)
        y = pool.matvec(pool.put("A", A), pool.put("x", x), out="y", workers=2)
        np.testing.assert_array_equal(y.array, A @ x)
        assert y.timings is not None
        assert len({part.pid for part in y.timings.parts}) == 2
        assert y.timings.nnz == A.nnz
        assert all(part.wall_ns > 0 and part.mapped_bytes > 0 for part in y.timings.parts)
        assert all(part.tlb_misses is not None or part.tlb_note for part in y.timings.parts)

        idx = np.random.default_rng(3).integers(0, 4000, 10_001)
        g = pool.gather("x", idx, out="g", workers=2)
        np.testing.assert_array_equal(g.array, x[idx])
        assert names(pool) == ["A", "g", "x", "y"]  # the temporary index is gone
        assert pool.stats().jobs_done == 2
    assert service.stop() == 0
    assert workers.wait(60) == 0  # workers end with their coordinator


def test_gather_of_rows_and_of_indices_with_axes(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        table = np.random.default_rng(4).random((500, 16), dtype=np.float32)
        idx = np.random.default_rng(5).integers(0, 500, (7, 11))
        out = pool.gather(pool.put("table", table), idx, workers=2)
        np.testing.assert_array_equal(out.array, table[idx])


@pytest.mark.parametrize("bad, position", [(4000, 9_999), (-1, 0), (2**62, 5_000)])
def test_a_bad_index_names_its_position_and_harms_nothing(
    service: Service, bad: int, position: int
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(4000.0))
        idx = np.zeros(10_000, np.int64)
        idx[position] = bad
        with pytest.raises(hugepool.IndexOutOfRangeError) as caught:
            pool.gather("x", idx, out="g", workers=2)
        assert caught.value.position == position
        assert str(bad) in str(caught.value)
        assert names(pool) == ["x"]
        np.testing.assert_array_equal(pool.gather("x", idx * 0, out="g").array, 0)


def test_a_dead_client_loses_what_it_had_not_sealed(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        for seal, left in (("", []), ("x.seal()", ["x"])):
            owner = service.spawn(sys.executable, "-c", OWNER.format(seal=seal))
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            assert names(pool) == ["x"]
            before = pool.stats().sessions
            os.kill(owner.pid, signal.SIGKILL)
            wait_for(lambda before=before: pool.stats().sessions == before - 1)
            assert names(pool) == left


def test_a_killed_worker_s_part_is_done_by_another(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(1000.0))
        pool.start_workers(2)
        first = min(pool.stats().workers, key=lambda worker: worker.worker)
        os.kill(first.pid, signal.SIGSTOP)  # takes its part and never answers
        killer = service.spawn(
            sys.executable,
            "-c",
            "import os, sys, time, hugepool\n"
            "pool = hugepool.connect()\n"
            "while not any(worker.busy for worker in pool.stats().workers): time.sleep(0.01)\n"
            f"os.kill({first.pid}, 9)\n",
        )
        g = pool.gather("x", np.arange(1000)[::-1].copy(), workers=2)
        np.testing.assert_array_equal(g.array, np.arange(1000.0)[::-1])
        assert g.timings is not None
        assert first.pid not in {part.pid for part in g.timings.parts}
        assert killer.wait(60) == 0


def test_a_job_without_workers_left_fails_and_says_so(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(10.0))
        with pytest.raises(hugepool.NoWorkersError, match="hugepool worker"):
            pool.run("gather", {"x": x, "idx": x, "out": x}, (0, 10), writes=())


def test_a_killed_coordinator_is_an_error_at_once_for_who_does_not_wait(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "0")
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.put("x", np.arange(500_000.0))
    pool.create("open", 10)
    kept = x.array
    directory = segment_directory(x)
    service.kill()
    with pytest.raises(hugepool.CoordinatorUnreachableError):
        pool.list()
    assert kept[-1] == 499_999.0  # what is mapped stays readable
    pool.close()
    service.start()
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["x"]  # what nobody had sealed went with its owner
        pool.destroy("x")
        assert service.stop() == 0
    assert not directory.exists()
    assert kept[-1] == 499_999.0


def test_sigterm_leaves_no_file(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(500_000.0))
        pool.create("y", 10)
        assert segment_directory(x).exists()
        assert service.stop() == 0
    assert not service.directory.exists()
    assert not segment_directory(x).exists()


def test_a_second_coordinator_is_refused_and_the_first_unharmed(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", [1.0, 2.0])
        second = service.spawn(
            sys.executable, "-m", "hugepool", "serve", "--runtime-dir", str(service.directory)
        )
        assert second.wait(60) == 5
        assert second.stderr is not None
        assert "another coordinator is running" in second.stderr.read()
        assert names(pool) == ["x"]


def test_malformed_frames_are_answered_or_dropped_and_the_daemon_lives(service: Service) -> None:
    service.start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 60_000)
    socket.connect(service.address)
    try:
        rng = np.random.default_rng(6)
        for length in (0, 1, 7, 100, 4000):
            socket.send_multipart([b"\x01", length.to_bytes(8, "little"), rng.bytes(length)])
            correlation, reply = wire.decode_from_coordinator(socket.recv_multipart())
            assert correlation == length
            assert isinstance(reply, Failed)
        for frames in ([b""], [b"", b""], [rng.bytes(3)] * 5, [b"\x01", b"short", b"\x80"]):
            socket.send_multipart(frames)
        good = wire.encode(77, Hello("test", "0"))
        socket.send_multipart([b"\x09", *good[1:]])
        correlation, reply = wire.decode_from_coordinator(socket.recv_multipart())
        assert correlation == 77
        assert isinstance(reply, Failed)
        assert "version" in reply.message
        socket.send_multipart(wire.encode(78, Stats()))  # before Hello
        correlation, reply = wire.decode_from_coordinator(socket.recv_multipart())
        assert correlation == 78
        assert isinstance(reply, Failed)
    finally:
        socket.close()
        context.term()
    with hugepool.connect(service.address) as pool:
        assert names(pool) == []


def test_others_are_served_while_pages_are_made(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        # If we are held up ourselves, the array is made before we have asked.
        assert any(_served_meanwhile(service, pool) for _ in range(5))


def _served_meanwhile(service: Service, pool: hugepool.Pool) -> bool:
    """Whether requests were answered while a large array was made."""
    maker = service.python(
        "import hugepool\n"
        "def progress(done, total):\n"
        "    if done < total: print('making', flush=True)\n"
        "pool = hugepool.connect()\n"
        "pool.create('big', 250_000_000, 'f8', backing='shm-4k', progress=progress)\n"
        "print('made', flush=True)\n"
        "input()\n"
    )
    assert maker.stdin is not None and maker.stdout is not None
    pool.list()
    assert maker.stdout.readline() == "making\n"
    # Answered before the end: an array under way is not listed, a made one is.
    before = names(pool)
    # Small ones do not queue behind it, neither their pages nor their seals.
    small = pool.put("small", [1.0])
    after = names(pool)
    assert small.sealed and set(before) <= {"big"} and {*after} - {"big"} == {"small"}
    small.detach()
    pool.destroy("small")
    while (line := maker.stdout.readline()) == "making\n":
        pass
    assert line == "made\n"
    assert names(pool) == ["big"]
    maker.communicate("\n")
    wait_for(lambda: names(pool) == [])
    return before == [] and after == ["small"]


def test_a_destroyed_array_s_pages_are_free_for_the_next(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        for _ in range(3):
            x = pool.create("x", 100_000_000, backing="shm-4k")
            path = x.info.segment.path
            x.detach()
            pool.destroy("x")
            pool.create("y", 10)  # made after what was destroyed before it has gone
            assert not os.path.exists(path)
            pool.destroy("y")


def test_a_forked_child_is_told_that_the_pool_is_not_its_own(service: Service) -> None:
    service.start()
    done = service.run(
        "import os, hugepool\n"
        "pool = hugepool.connect()\n"
        "x = pool.put('x', [1.0])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        pool.list()\n"
        "    except hugepool.DetachedError as error:\n"
        "        os._exit(7 if 'child' in str(error) else 8)\n"
        "    os._exit(9)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "print([info.spec.name for info in pool.list()])\n"
    )
    assert (done.stdout, done.returncode) == ("['x']\n", 0), done.stderr


def test_a_child_forked_during_a_request_does_not_hang(service: Service) -> None:
    service.start()
    done = service.run(
        "import os, threading, time, hugepool\n"
        "pool = hugepool.connect()\n"
        "begun = threading.Event()\n"
        "maker = threading.Thread(target=lambda: pool.create(\n"
        "    'big', 200_000_000, backing='shm-4k', progress=lambda *_: begun.set()))\n"
        "maker.start()\n"
        "begun.wait()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        pool.list()\n"
        "    except hugepool.DetachedError:\n"
        "        os._exit(7)\n"
        "    os._exit(9)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "maker.join()\n"
    )
    assert done.stdout == "7\n", done.stderr


FORKS = """
import os, warnings, numpy as np, hugepool
warnings.simplefilter("ignore")
wait, go_on = os.pipe()
children = []

def fork(written=None):
    child = os.fork()
    if child == 0:
        try:
            if written is not None:
                assert not written.any()
                written[...] = 9
                assert (written == 9).all()
            os.close(go_on)
            os.read(wait, 1)
            os._exit(0)
        finally:
            os._exit(1)
    children.append(child)

def fork_and_copy(target, source):
    target[...] = source
    fork(target)

np.copyto = fork_and_copy
progress = lambda done, total: fork()
pool = hugepool.connect()
values = np.ones(100_000)
where = os.environ["PLACE"]
np.save(where + "/x.npy", values)
{act}
assert sealed.sealed and (sealed.array == 1).all()
assert children
os.close(go_on)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
print("fine")
"""


@pytest.mark.parametrize(
    "act",
    [
        "sealed = pool.put('x', values)",
        "sealed = pool.publish('x', values)",
        "sealed = pool.load('x', where + '/x.npy', progress=progress)",
        "pool.put('x', values).detach(); pool.snapshot(where + '/saved'); pool.destroy('x')\n"
        "pool.restore(where + '/saved', progress=progress); sealed = pool.attach('x')",
    ],
    ids=["put", "publish", "load", "restore"],
)
def test_a_fork_beside_it_does_not_keep_a_value_from_being_sealed(
    service: Service, tmp_path: Path, act: str
) -> None:
    """The child lives on, and finds nothing amiss."""
    service.start()
    done = service.run(FORKS.format(act=act), PLACE=str(tmp_path))
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_what_a_failing_callback_interrupts_is_taken_back(service: Service) -> None:
    service.start()

    def fail(done_bytes: int, total_bytes: int) -> None:
        raise RuntimeError("enough")

    with hugepool.connect(service.address) as pool:
        with pytest.raises(RuntimeError, match="enough"):
            pool.create("big", 250_000_000, backing="shm-4k", progress=fail)
        assert names(pool) == []
        pool.create("big", 10)


def test_a_callback_may_ask_the_pool(service: Service) -> None:
    service.start()
    seen = []
    with hugepool.connect(service.address) as pool:
        pool.create(
            "big",
            250_000_000,
            backing="shm-4k",
            progress=lambda *_: seen.append(pool.stats().arrays),
        )
        assert seen
        assert names(pool) == ["big"]


def test_an_unsealed_array_outlives_its_coordinator_here(service: Service) -> None:
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.create("x", 1000)
    x.array[:] = np.arange(1000)
    assert service.stop() == 0
    with pytest.raises(hugepool.CoordinatorUnreachableError):
        x.seal()
    assert x.array[999] == 999
    x.array[0] = 5  # as writable as before
    pool.close()
    with pytest.raises(hugepool.DetachedError, match="closed"):
        x.seal()
    assert x.array[0] == 5


def test_a_handle_keeps_its_private_coordinator() -> None:
    x = hugepool.connect("embedded").create("x", 10)
    gc.collect()
    x.array[:] = 3
    assert x.seal().sealed


def test_a_job_whose_every_worker_dies_gives_up(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(1000.0))
        pool.start_workers(4)
        for worker in pool.stats().workers:
            os.kill(worker.pid, signal.SIGSTOP)
        killer = service.spawn(
            *(sys.executable, "-c"),
            "import os, time, hugepool\n"
            "pool = hugepool.connect()\n"
            "for _ in range(3):\n"
            "    while not (busy := [w.pid for w in pool.stats().workers if w.busy]):\n"
            "        time.sleep(0.01)\n"
            "    os.kill(busy[0], 9)\n"
            "    while busy[0] in [w.pid for w in pool.stats().workers]: time.sleep(0.01)\n",
        )
        with pytest.raises(hugepool.JobFailedError, match="every worker that ran part 0"):
            pool.gather("x", np.arange(10), workers=1)
        assert killer.wait(60) == 0
        (left,) = pool.stats().workers
        os.kill(left.pid, signal.SIGCONT)


def test_heap_copies_follow_what_is_not_sealed(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(1)
        x, idx = pool.create("x", 10), pool.put("idx", np.arange(10))
        out = pool.create("out", 10)
        for value in (1.0, 2.0):
            x.array[:] = value
            pool.run("gather", {"x": x, "idx": idx, "out": out}, (0, 10), views={"x": "heap"})
            np.testing.assert_array_equal(out.array, value)


@pytest.mark.parametrize("implementation", ["auto", "take"])
def test_a_user_s_mistake_costs_no_worker(service: Service, implementation: str) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(2)
        before = [worker.pid for worker in pool.stats().workers]
        pool.put("x", np.arange(10.0))
        for _ in range(3):
            with pytest.raises(hugepool.IndexOutOfRangeError):
                pool.gather("x", np.array([1, 2, 20]), implementation=implementation)
            with pytest.raises(hugepool.InvalidSpecError):
                pool.gather("x", np.array([1, 2]), implementation="nonsense")
            g = pool.gather("x", np.array([1, 2, 3]), implementation=implementation)
            np.testing.assert_array_equal(g.array, [1, 2, 3])
            pool.destroy(g.name)
        pool.destroy("x")
        assert [worker.pid for worker in pool.stats().workers] == before


def test_an_error_of_another_kind_in_a_worker_is_a_failed_job(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(1)
        x = pool.put("x", np.arange(10.0))
        pool.destroy("x")
        del x
        x = pool.put("x", np.arange(10.0))
        os.unlink(x.info.segment.path)
        with pytest.raises(hugepool.HugepoolError, match="destroyed"):
            pool.gather("x", np.arange(3), workers=1)


def test_a_coordinator_that_does_not_answer_is_told_with_what_to_do(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    assert service.process is not None
    service.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr("hugepool.session.HELLO_TIMEOUT_S", 0.1)
    with pytest.raises(hugepool.RequestTimeoutError, match="whether it is stopped"):
        hugepool.connect(service.address)
    service.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("named", [False, True])
def test_a_socket_of_another_user_is_trusted_only_where_it_was_named(named: bool) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become other users")
    directory = Path(tempfile.mkdtemp(prefix="hugepool-test-"))
    directory.chmod(0o777)
    run = directory / "hugepool"
    planted = subprocess.Popen(
        [
            *("setpriv", "--reuid=64001", "--regid=64003", "--clear-groups"),
            *(sys.executable, "-m", "hugepool_server", "--group", "64003"),
            *("--runtime-dir", str(run)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        assert planted.stdout is not None
        address = planted.stdout.readline().strip()
        place = {"HUGEPOOL_RUNTIME_DIR": str(run)} if named else {"XDG_RUNTIME_DIR": str(directory)}
        done = subprocess.run(
            [
                *("setpriv", "--reuid=64002", "--regid=64003", "--clear-groups"),
                *(sys.executable, "-c"),
                "from hugepool.address import local_address\n"
                "try: print(local_address(None))\n"
                "except ConnectionError as error: print('none:', error)\n",
            ],
            capture_output=True,
            text=True,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # a tree that is not installed
                "PYTHONDONTWRITEBYTECODE": "1",
                **place,
            },
        )
        assert done.returncode == 0, done.stderr
        assert (done.stdout.strip() == address) == named, done.stdout
    finally:
        planted.terminate()
        planted.communicate()
        shutil.rmtree(directory)


def test_a_coordinator_s_death_is_seen_from_another_pid_namespace(service: Service) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root for a pid namespace")
    service.start()
    client = service.spawn(
        *("unshare", "--pid", "--fork", sys.executable, "-c"),
        "import sys, hugepool\n"
        "pool = hugepool.connect()\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    while True: pool.list()\n"
        "except hugepool.CoordinatorUnreachableError: print('seen')\n",
        HUGEPOOL_RECONNECT_S="0",
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    service.kill()
    assert client.stdout.readline() == "seen\n"


def test_ctrl_c_at_any_moment_leaves_a_working_session(service: Service) -> None:
    service.start()
    client = service.spawn(
        *(sys.executable, "-c"),
        # A handler of our own, which interrupts only while the loop is under way.
        "import signal, hugepool\n"
        "armed = late = False\n"
        "def interrupt(*_):\n"
        "    global armed, late\n"
        "    late, was_armed, armed = not armed, armed, False\n"
        "    if was_armed: raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGINT, interrupt)\n"
        "pool = hugepool.connect()\n"
        "x = pool.put('x', [1.0])\n"
        "print('ready', flush=True)\n"
        "for caught in range(200):\n"
        "    try:\n"
        "        armed = True\n"
        "        if late: interrupt()\n"
        "        while True: pool.attach('x').detach()\n"
        "    except KeyboardInterrupt:\n"
        "        print('caught', flush=True)\n"
        "pool.create('y', 10)\n"
        "print([info.spec.name for info in pool.list()])\n",
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    for number in range(200):
        time.sleep(0.0005 * (number % 7))  # somewhere else in the exchange each time
        client.send_signal(signal.SIGINT)
        line = client.stdout.readline()
        assert line == "caught\n", client.communicate()
    assert client.stdout.readline() == "['x', 'y']\n"


def test_a_time_out_signal_at_any_moment_leaves_a_working_session(service: Service) -> None:
    service.start()
    done = service.run(
        "import signal, hugepool\n"
        "class Alarm(Exception): pass\n"
        "armed = False\n"
        "def ring(*_):\n"
        "    global armed\n"
        "    if armed:\n"
        "        armed = False\n"
        "        raise Alarm\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "pool = hugepool.connect()\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.003, 0.0031)\n"
        "for rung in range(150):\n"
        "    try:\n"
        "        armed = True\n"
        "        while True: pool.stats()\n"
        "    except Alarm: pass\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(pool.stats().sessions)\n"
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_an_interrupted_seal_leaves_no_writable_mapping(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.create("x", 1000)
        x.array[:] = 1
        decode = wire.decode_from_coordinator

        def interrupted(frames: list[bytes]) -> object:
            correlation, message = decode(frames)
            if isinstance(message, Sealed):
                signal.raise_signal(signal.SIGINT)
            return correlation, message

        monkeypatch.setattr(wire, "decode_from_coordinator", interrupted)
        with pytest.raises(KeyboardInterrupt):
            x.seal()
        monkeypatch.undo()
        assert not x.writable
        assert not x.array.flags.writeable
        assert pool.attach("x").sealed
        assert x.seal().sealed


def test_an_array_granted_to_an_interrupted_call_is_given_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        decode = wire.decode_from_coordinator

        def interrupted(frames: list[bytes]) -> object:
            correlation, message = decode(frames)
            if isinstance(message, (ArrayCreated, Cancelled)):
                signal.raise_signal(signal.SIGINT)  # and once more while it is given up
            return correlation, message

        monkeypatch.setattr(wire, "decode_from_coordinator", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.create("x", 1000)
        monkeypatch.undo()
        assert names(pool) == []


def test_a_worker_s_death_does_not_keep_others_from_starting(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(2)
        first = pool.stats().workers[0].pid
        killer = service.spawn(
            *(sys.executable, "-c"),
            f"import os, time; time.sleep(0.15); os.kill({first}, 9)",
        )
        pool.start_workers(1)
        assert killer.wait(60) == 0
        wait_for(lambda: len(pool.stats().workers) == 2)
        pool.start_workers(1)
        assert not _runs(first)
        assert not os.path.exists(f"/proc/{first}"), "a zombie was kept"


def test_a_hangup_loses_nothing_and_is_told(service: Service) -> None:
    """A closed terminal, or a "reload" of somebody who knows other services."""
    service.start()
    with hugepool.connect(service.address) as pool:
        path = pool.put("x", np.arange(500_000.0)).info.segment.path
        assert service.process is not None
        for _ in range(5):
            service.process.send_signal(signal.SIGHUP)
        told = service.process.communicate(timeout=60)[1]
        assert service.process.returncode == 128 + signal.SIGHUP  # systemd starts the next one
    assert told.count("SIGHUP") == 1
    assert os.path.exists(path)
    service.start()
    with hugepool.connect(service.address) as pool:
        np.testing.assert_array_equal(pool.attach("x").array, np.arange(500_000.0))
    assert service.stop() == 0
    assert not os.path.exists(path)
    assert os.listdir(service.directory) == []


def test_a_private_coordinator_leaves_nothing_at_a_hangup() -> None:
    with hugepool.connect("embedded") as pool:
        path = pool.put("x", np.arange(5.0)).info.segment.path
        pid = pool.stats().pid
        with open(os.pidfd_open(pid), "rb") as ended:
            os.kill(pid, signal.SIGHUP)
            assert select.select([ended], [], [], 60)[0]
    assert not os.path.exists(path)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    service: Service, number: signal.Signals
) -> None:
    """As ``nohup`` has it, and a shell for what runs in the background."""
    service.start(prefix=["env", f"--ignore-signal={number.name.removeprefix('SIG')}"])
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    assert int(ignored.split()[1], 16) & 1 << (number - 1)
    service.process.send_signal(number)
    service.process.send_signal(signal.SIGTERM)
    told = service.process.communicate(timeout=60)[1]
    assert service.process.returncode == 0
    assert number.name not in told
    assert told.count("SIGTERM: ends in order") == 1
    assert not service.directory.exists()


def test_nothing_is_imported_from_the_working_directory(service: Service, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('planted')")
    (tmp_path / "msgspec.py").write_text("raise SystemExit('planted')")
    process = subprocess.Popen(
        [
            f"{sysconfig.get_path('scripts')}/hugepool",
            *("serve", "--runtime-dir", str(service.directory)),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == service.address
    process.terminate()
    process.communicate()


def test_users_own_timings_reach_the_coordinator(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        with pool.timed("my step", items=12):
            pass
        (timing,) = pool.stats().timings
        assert (timing.label, timing.elements, timing.pid) == ("my step", 12, os.getpid())
        assert timing.wall_ns > 0


def test_an_embedded_coordinator_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import os, sys, numpy, hugepool\n"
        "pool = hugepool.connect('embedded')\n"
        "x = pool.put('x', numpy.arange(300_000.0))\n"
        "pool.start_workers(1)\n"
        "print(pool.stats().pid, pool.stats().workers[0].pid, x.info.segment.path, flush=True)\n"
        "import signal; signal.pause()\n"
    )
    alone = Service(tmp_path)
    parent = alone.spawn(
        *(sys.executable, "-c", script),
        HUGEPOOL_ADDRESS="",
        TMPDIR=str(tmp_path),
        XDG_RUNTIME_DIR="",
    )
    try:
        assert parent.stdout is not None
        coordinator, worker, segment = parent.stdout.readline().split()
        assert os.path.exists(segment)
        parent.kill()
        for pid in (coordinator, worker):
            wait_for(lambda pid=pid: not _runs(int(pid)))
        assert not os.path.exists(os.path.dirname(segment))
        assert list(tmp_path.iterdir()) == []
    finally:
        alone.close()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_number_of_workers_is_known_without_asking_and_never_wrong(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        source = np.arange(1000.0)
        x, idx = pool.put("x", source), pool.put("idx", np.arange(1000)[::-1])
        out = pool.create("out", 1000)

        def parts(workers: int | None = None) -> int:
            out.array[:] = 0
            pool.gather(x, idx, out, workers=workers)
            np.testing.assert_array_equal(out.array, source[::-1])
            assert out.timings is not None
            return len({part.pid for part in out.timings.parts})

        pool.start_workers(1)
        assert [parts(), parts(1), parts()] == [1, 1, 1]
        # A worker that is dead is replaced, however shortly before the next job it died.
        for _ in range(3):
            (worker,) = pool.stats().workers
            assert parts(1) == 1
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            assert parts(1) == 1
            assert [one.pid for one in pool.stats().workers] != [worker.pid]
        # One that joins from elsewhere takes part in what comes next.
        workers = service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "1")
        wait_for(lambda: parts() == 2)
        assert parts(1) == 1
        workers.terminate()
        workers.wait()
        wait_for(lambda: parts() == 1)


def test_progress_of_a_small_array_is_told_too(service: Service) -> None:
    service.start()
    told: list[tuple[int, int]] = []
    with hugepool.connect(service.address) as pool:
        pool.create("x", 512, progress=lambda *done: told.append(done))
    assert told == [(4096, 4096)]
