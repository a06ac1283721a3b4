"""The real daemon, real workers and unrelated client processes, through the public API."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

import hugepool
from hugepool_common import wire
from hugepool_common.messages import Failed, Hello, Stats
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


def wait_for(condition: object, timeout_s: float = 20.0) -> None:
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
    assert workers.wait(20) == 0  # workers end with their coordinator


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
        assert killer.wait(20) == 0


def test_a_job_without_workers_left_fails_and_says_so(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(10.0))
        with pytest.raises(hugepool.NoWorkersError, match="hugepool worker"):
            pool.run("gather", {"x": x, "idx": x, "out": x}, (0, 10), writes=())


def test_a_killed_coordinator_is_an_error_at_once_and_leaves_nothing_after_a_restart(
    service: Service,
) -> None:
    service.start()
    pool = hugepool.connect(service.address)
    x = pool.put("x", np.arange(500_000.0))
    kept = x.array
    directory = segment_directory(x)
    assert len(list(directory.iterdir())) == 1
    service.kill()
    with pytest.raises(hugepool.CoordinatorUnreachableError):
        pool.list()
    assert kept[-1] == 499_999.0  # what is mapped stays readable
    pool.close()
    service.start()
    with hugepool.connect(service.address) as pool:
        assert names(pool) == []
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
        assert second.wait(20) == 5
        assert second.stderr is not None
        assert "another coordinator is running" in second.stderr.read()
        assert names(pool) == ["x"]


def test_malformed_frames_are_answered_or_dropped_and_the_daemon_lives(service: Service) -> None:
    service.start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
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
    maker = service.spawn(
        sys.executable,
        "-c",
        "import hugepool\n"
        "pool = hugepool.connect()\n"
        "seen = []\n"
        "pool.create('big', 200_000_000, 'f8', backing='shm-4k',\n"
        "            progress=lambda *done: seen.append(done))\n"
        "print(len(seen), all(total == seen[0][1] for _, total in seen))\n",
    )
    served = 0
    with hugepool.connect(service.address) as pool:
        while maker.poll() is None:
            pool.stats()
            served += 1
    assert maker.returncode == 0
    assert maker.stdout is not None
    count, consistent = maker.stdout.read().split()
    assert int(count) >= 1
    assert consistent == "True"
    assert served > 20


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
