"""Jobs whose workers are killed, stopped, or of a coordinator that was killed itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

import hugepool
from hugepool.array import SharedArray
from hugepool_common.messages import WorkerInfo
from support.host import settles
from support.service import Service

SOURCE = np.arange(1000.0)
INDEX = np.arange(1000)[::-1].copy()


def start_worker(service: Service, pool: hugepool.Pool) -> WorkerInfo:
    """One more worker, nobody's child but the test's."""
    before = {worker.worker for worker in pool.stats().workers}
    service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "1")

    def new() -> list[WorkerInfo]:
        return [worker for worker in pool.stats().workers if worker.worker not in before]

    assert settles(lambda: bool(new()), 60)
    return new()[0]


@contextmanager
def gathering(service: Service, out: str) -> Iterator[Callable[[], Future[SharedArray]]]:
    """What begins a gather into `out` on two workers, in a thread with a session of its own."""
    with hugepool.connect(service.address) as client, ThreadPoolExecutor(1) as thread:
        x, idx = client.put("x", SOURCE).seal(), client.put("idx", INDEX).seal()
        result = client.create(out, 1000)

        def gather() -> SharedArray:
            return client.gather(x, idx, result, workers=2)

        yield lambda: thread.submit(gather)


def test_a_job_waits_for_a_worker_when_the_last_one_is_killed(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        workers = [start_worker(service, pool) for _ in range(2)]
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)  # they take their parts and never begin
        with gathering(service, "out") as gather:
            job = gather()
            assert settles(lambda: all(worker.busy for worker in pool.stats().workers))
            for worker in workers:
                os.kill(worker.pid, signal.SIGKILL)
            assert settles(lambda: pool.stats().jobs_waiting == 1)
            start_worker(service, pool)
            np.testing.assert_array_equal(job.result(60).array, SOURCE[::-1])
        assert pool.stats().jobs_waiting == 0


def test_a_stopped_worker_s_rows_wait_for_it(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        stopped, _ = start_worker(service, pool), start_worker(service, pool)
        os.kill(stopped.pid, signal.SIGSTOP)
        with gathering(service, "out") as gather:
            job = gather()
            # Its part is taken back after 10 s, and is not run beside it.
            assert settles(lambda: pool.stats().jobs_waiting == 1, 60)
            assert not job.done()
            os.kill(stopped.pid, signal.SIGCONT)
            np.testing.assert_array_equal(job.result(60).array, SOURCE[::-1])
        assert {worker.pid for worker in pool.stats().workers} >= {stopped.pid}


def test_what_a_worker_of_before_may_write_is_not_written_beside_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "1000")  # the next one may take its time to start
    service.start()
    with hugepool.connect(service.address) as pool:
        stopped, _ = start_worker(service, pool), start_worker(service, pool)
        os.kill(stopped.pid, signal.SIGSTOP)
        with gathering(service, "out") as gather:
            interrupted = gather()
            assert settles(lambda: any(worker.busy for worker in pool.stats().workers))
            service.restart()
            with pytest.raises(hugepool.JobInterruptedError):
                interrupted.result(60)
            start_worker(service, pool)
            again = gather()
            assert settles(lambda: pool.stats().jobs_waiting == 1)
            os.kill(stopped.pid, signal.SIGCONT)
            np.testing.assert_array_equal(again.result(60).array, SOURCE[::-1])
