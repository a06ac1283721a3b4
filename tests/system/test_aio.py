"""The calls of a pool on asyncio: tasks, timeouts and cancellation for real."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

import hugepool
import hugepool.aio
from support.extras import need
from support.service import Service

N = 1000


def run_plain(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def run_uvloop(main: Coroutine[Any, Any, None]) -> None:
    need("uvloop")
    uvloop = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(name="run", params=[run_plain, run_uvloop], ids=["asyncio", "uvloop"])
def loops(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


async def settled(holds: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
    for _ in range(6000):
        if await holds():
            return True
        await asyncio.sleep(0.01)
    return False


async def running(pool: hugepool.aio.AsyncPool, count: int) -> bool:
    async def holds() -> bool:
        return (await pool.stats()).jobs_running == count

    return await settled(holds)


async def names(pool: hugepool.aio.AsyncPool) -> list[str]:
    return [info.spec.name for info in await pool.list()]


async def stop_worker(pool: hugepool.aio.AsyncPool) -> int:
    """Have one worker, and stop it, so that jobs do not end."""
    await pool.start_workers(1)
    (worker,) = (await pool.stats()).workers
    os.kill(worker.pid, signal.SIGSTOP)
    return worker.pid


def test_the_calls_are_those_of_the_pool(run: Run) -> None:
    async def main() -> None:
        async with hugepool.aio.connect("embedded") as pool:
            x = await pool.put("x", np.arange(float(N)))
            own = await pool.create("own", 3)
            own.array[:] = 1
            assert (await pool.seal(own)).sealed
            await pool.detach(own)
            assert await names(pool) == ["own", "x"]
            async with asyncio.TaskGroup() as tasks:
                found = [tasks.create_task(pool.gather(x, [n, n], workers=2)) for n in range(8)]
            assert [one.result().array.tolist() for one in found] == [[n, n] for n in range(8)]
            plan = await pool.plan_gather([5, 6], x, workers=1)
            assert (await pool.to_thread(plan.run, x)).array.tolist() == [5.0, 6.0]
            with pytest.raises(hugepool.IndexOutOfRangeError):
                await pool.gather(x, [N])
            with pytest.raises(hugepool.ArrayNotFoundError):
                await pool.attach("none")
            assert (await pool.publish("x", np.ones(2))).generation == 2
        assert pool.closed
        with pytest.raises(hugepool.DetachedError):
            await pool.list()

    run(main())


def test_connect_can_be_awaited_and_refused(run: Run, service: Service) -> None:
    async def main() -> None:
        with pytest.raises(hugepool.CoordinatorUnreachableError):
            await hugepool.aio.connect(service.address)
        service.start()
        pool = await hugepool.aio.connect(service.address)
        assert await names(pool) == []
        await pool.close()

    run(main())


def test_the_loop_goes_on_while_a_job_is_under_way(run: Run) -> None:
    async def main() -> None:
        async with hugepool.aio.connect("embedded") as pool:
            x = await pool.put("x", np.arange(float(N)))
            pid = await stop_worker(pool)
            job = asyncio.create_task(pool.gather(x, [1], workers=1))
            assert await running(pool, 1)
            for _ in range(20):
                await asyncio.sleep(0)
                assert not job.done()
            os.kill(pid, signal.SIGCONT)
            assert (await job).array.tolist() == [1.0]

    run(main())


def test_a_timeout_cancels_the_job_at_the_coordinator(run: Run) -> None:
    async def main() -> None:
        async with hugepool.aio.connect("embedded") as pool:
            x = await pool.put("x", np.arange(float(N)))
            pid = await stop_worker(pool)
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await pool.gather(x, [1, 2], workers=1)
                # All of it is over by now: nothing has to settle.
                assert (await pool.stats()).jobs_running == 0
                assert await names(pool) == ["x"]
                assert (await pool.describe("x")).reader_pids.count(os.getpid()) == 1
            finally:
                os.kill(pid, signal.SIGCONT)
            assert (await pool.gather(x, [1, 2], workers=1)).array.tolist() == [1.0, 2.0]

    run(main())


def test_a_group_takes_the_others_back_when_one_fails(run: Run) -> None:
    async def main() -> None:
        async with hugepool.aio.connect("embedded") as pool:
            x = await pool.put("x", np.arange(float(N)))
            pid = await stop_worker(pool)

            async def fail() -> None:
                assert await running(pool, 2)
                await pool.attach("none")

            try:
                with pytest.raises(ExceptionGroup) as caught:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(pool.gather(x, [1], workers=1))
                        tasks.create_task(pool.gather(x, [2], workers=1))
                        tasks.create_task(fail())
                assert caught.group_contains(hugepool.ArrayNotFoundError)
                assert (await pool.stats()).jobs_running == 0
                assert await names(pool) == ["x"]
            finally:
                os.kill(pid, signal.SIGCONT)

    run(main())


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.01, 0.1])
def test_a_cancelled_creation_leaves_nothing(run: Run, delay: float) -> None:
    """Wherever it is cancelled: before it is sent, under way, or when it is done."""

    async def main() -> None:
        async with hugepool.aio.connect("embedded") as pool:
            for make in (pool.create("x", 1 << 28, "u1"), pool.put("x", np.ones(1 << 24))):
                task = asyncio.create_task(make)
                await asyncio.sleep(delay)
                if not task.done():
                    task.cancel()
                    task.cancel()  # impatiently
                try:
                    made = await task
                except asyncio.CancelledError:
                    pass
                else:
                    made.detach()
                    await pool.destroy("x")
                assert await names(pool) == []
                assert (await pool.stats()).length == 0

    run(main())


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.002, 0.01])
def test_a_cancelled_attach_leaves_no_lease(run: Run, delay: float) -> None:
    async def main() -> None:
        async with hugepool.aio.connect("embedded") as pool:
            await pool.detach(await pool.put("x", np.ones(N)))
            held = []
            for _ in range(20):
                task = asyncio.create_task(pool.attach("x"))
                await asyncio.sleep(delay)
                task.cancel()
                try:
                    held.append(await task)
                except asyncio.CancelledError:
                    pass
            assert (await pool.describe("x")).array.readers == len(held)

    run(main())


def test_connecting_can_be_cancelled(run: Run, leak_check: None) -> None:
    async def main() -> None:
        for delay in (0, 0.01, 0.2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(delay):
                    await hugepool.aio.connect("embedded")
                    raise TimeoutError  # it was faster

    run(main())


def test_closing_takes_calls_back(run: Run, service: Service) -> None:
    async def main() -> None:
        service.start()
        service.spawn(sys.executable, "-m", "hugepool.worker", "--address", service.address)
        pool = await hugepool.aio.connect(service.address)

        async def worker_is_there() -> bool:
            return len((await pool.stats()).workers) == 1

        assert await settled(worker_is_there)
        x = await pool.put("x", np.arange(float(N)))
        (worker,) = (await pool.stats()).workers
        os.kill(worker.pid, signal.SIGSTOP)
        job = asyncio.create_task(pool.gather(x, [1], workers=1))
        assert await running(pool, 1)
        await pool.close()
        with pytest.raises(hugepool.CancelledError, match="closed"):
            await job

    run(main())


def test_a_timeout_holds_while_the_coordinator_is_away(run: Run, service: Service) -> None:
    async def main() -> None:
        service.start()
        async with hugepool.aio.connect(service.address) as pool:
            await pool.put("x", np.arange(float(N)))
            service.kill()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await pool.create("y", 10)
            service.start()
            assert await names(pool) == ["x"]

    run(main())


@pytest.mark.parametrize("ask", ["list", "attach", "describe"])
def test_what_only_asks_is_taken_back_while_the_coordinator_is_away(
    run: Run, service: Service, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "1000000")

    async def main() -> None:
        service.start()
        async with hugepool.aio.connect(service.address) as pool:
            await pool.detach(await pool.put("x", np.arange(float(N))))
            service.kill()
            task = asyncio.create_task(getattr(pool, ask)(*(["x"] if ask != "list" else [])))
            await asyncio.sleep(0.3)
            task.cancel()
            ended, _ = await asyncio.wait({task}, timeout=60)
            service.start()
            assert ended and task.cancelled()
            assert (await pool.describe("x")).array.readers == 0

    run(main())
