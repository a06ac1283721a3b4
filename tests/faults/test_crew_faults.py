"""Crews whose members, leader or coordinator are killed or stopped: they go on or end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import hugepool
from hugepool.array import SharedArray
from hugepool.crew import Crew
from hugepool.matrix import SharedMatrix
from hugepool.pool import Pool
from support.crews import Product, crew_of, dominant_matrix, power_iterates, symmetric_grid
from support.extras import need
from support.host import settles
from support.service import Service

need("numba")

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("patience")]

ROWS = 3000
STEPS = 3000

LEADER = """
import numpy as np, hugepool
from hugepool.crew import Crew
from support.crews import Product
pool = hugepool.connect()
A, x = pool.attach("A"), pool.attach("x", readonly=False)
crew = Crew(pool.address, workers=2)
print("ready", flush=True)
crew.iterate(Product(A), x, 1 << 40, "l2")
"""


@pytest.fixture
def matrix() -> scipy.sparse.csr_array:
    return dominant_matrix(ROWS)


@pytest.fixture
def pool(matrix: scipy.sparse.csr_array) -> Iterator[Pool]:
    with hugepool.connect("embedded") as made:
        made.start_workers(2)
        yield made


def shared(pool: Pool, matrix: scipy.sparse.csr_array) -> tuple[SharedMatrix, SharedArray]:
    x = pool.create("x", ROWS)
    x.array[:] = 1
    return pool.put("A", matrix), x


def send_soon(pid: int, number: int) -> threading.Timer:
    """A signal while a run of some seconds is under way."""
    timer = threading.Timer(0.3, os.kill, (pid, number))
    timer.start()
    return timer


def run_until_lost(crew: Crew, product: Any, x: SharedArray, at_once: int = STEPS) -> int:
    """Iterate until the crew has lost a member; how many steps that took."""
    steps = 0
    while not crew.losses:
        crew.iterate(product, x, at_once, "l2")
        steps += at_once
    return steps


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_run_goes_on_without_a_member(
    pool: Pool, matrix: scipy.sparse.csr_array, number: int
) -> None:
    A, x = shared(pool, matrix)
    with crew_of(pool, 2) as crew:
        victim = crew.members[0]
        timer = send_soon(victim, number)
        steps = run_until_lost(crew, Product(A), x)
        timer.join()
        assert [loss.pid for loss in crew.losses] == [victim]
    expected, _ = power_iterates(matrix, np.ones(ROWS), steps)
    np.testing.assert_allclose(x.array, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("operation", "form"),
    [("matvec", "binned"), ("matvec", "mirrored"), ("rmatvec", "direct"), ("rmatvec", "binned")],
)
def test_a_run_of_a_plan_goes_on_without_a_member(pool: Pool, operation: str, form: Any) -> None:
    """What a dead member left half done in scratch or in out must not be counted twice."""
    matrix = symmetric_grid(60)
    rows = matrix.shape[0]
    A, x = pool.put("A", matrix), pool.create("x", rows)
    x.array[:] = np.random.default_rng(3).random(rows)
    begun = x.array.copy()
    planned = pool.plan_rmatvec if operation == "rmatvec" else pool.plan_matvec
    with planned(A, form=form) as plan, crew_of(pool, 2) as crew:
        assert plan.choice == form
        victim = crew.members[0]
        timer = send_soon(victim, signal.SIGKILL)
        steps = run_until_lost(crew, plan, x, STEPS // 10)
        timer.join()
        assert [loss.pid for loss in crew.losses] == [victim]
    expected, _ = power_iterates(matrix, begun, steps)
    np.testing.assert_allclose(x.array, expected, rtol=1e-9, atol=1e-12)


def test_another_worker_takes_the_seat(pool: Pool, matrix: scipy.sparse.csr_array) -> None:
    A, x = shared(pool, matrix)
    with (
        pool.create("y", ROWS) as y,
        crew_of(pool, 2) as crew,
        crew.prepare(Product(A), x, y) as step,
    ):

        def replaced(number: int) -> bool:
            y.array[:] = 0
            step()
            np.testing.assert_array_equal(y.array, matrix @ x.array)
            return len(crew.losses) == number and len(crew.members) == 1

        # SIGTERM is how a worker is ended in order; more often than any part may lose one.
        ways = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
        for number, way in enumerate(ways, 1):
            pool.start_workers(1)
            os.kill(crew.members[0], way)
            assert settles(partial(replaced, number), 60)


def test_a_member_that_dies_between_steps(pool: Pool, matrix: scipy.sparse.csr_array) -> None:
    A, x = shared(pool, matrix)
    with pool.create("y", ROWS) as y, crew_of(pool, 3) as crew:
        step = crew.prepare(Product(A), x, y)
        for victim in crew.members:
            os.kill(victim, signal.SIGKILL)
        step()
        np.testing.assert_array_equal(y.array, matrix @ x.array)

        def both_are_missed() -> bool:
            step()
            return len(crew.losses) == 2

        assert settles(both_are_missed)
        step.release()


def test_members_of_a_killed_leader_are_idle_again(
    service: Service, matrix: scipy.sparse.csr_array
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        A, x = shared(pool, matrix)
        pool.start_workers(1)
        (worker,) = pool.stats().workers
        tests = os.path.dirname(os.path.dirname(__file__))
        path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
        leader = service.spawn(sys.executable, "-c", LEADER, PYTHONPATH=path)
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        leader.kill()
        leader.wait()
        assert settles(lambda: not pool.stats().workers[0].busy)
        assert [found.pid for found in pool.stats().workers] == [worker.pid]
        x.array[:] = 1
        result = pool.matvec(A, x, workers=1)
        np.testing.assert_array_equal(result.array, matrix @ x.array)
        left = {"A", "x", result.name}
        assert settles(lambda: {info.spec.name for info in pool.list()} == left)


def test_steps_go_on_without_the_coordinator(
    service: Service, matrix: scipy.sparse.csr_array
) -> None:
    service.start()
    pool = hugepool.connect(service.address)
    A, x = shared(pool, matrix)
    y = pool.create("y", ROWS)
    with crew_of(pool, 2) as crew:
        step = crew.prepare(Product(A), x, y)
        service.kill()
        for _ in range(100):
            y.array[:] = 0
            step()
            np.testing.assert_array_equal(y.array, matrix @ x.array)
        assert crew.losses == ()
    pool.close()


def test_crews_go_on_with_the_next_coordinator(
    service: Service, matrix: scipy.sparse.csr_array
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        A, x = shared(pool, matrix)
        y = pool.create("y", ROWS)
        with crew_of(pool, 2) as crew:
            step = crew.prepare(Product(A), x, y)
            members = crew.members
            service.restart()
            step()
            np.testing.assert_array_equal(y.array, matrix @ x.array)
            x.array[:] = 2
            crew.iterate(Product(A), x, 10, "l2")  # its members attach what is new
            step()
            np.testing.assert_array_equal(y.array, matrix @ x.array)
            assert (crew.losses, crew.members) == ((), members)
        # The members are workers of the next coordinator now, and join another crew.
        assert settles(lambda: {worker.pid for worker in pool.stats().workers} == set(members))
        with crew_of(pool, 2) as crew:
            assert crew.members == members
            crew.prepare(Product(A), x, y)()
            np.testing.assert_array_equal(y.array, matrix @ x.array)
        assert settles(lambda: {info.spec.name for info in pool.list()} == {"A", "x", "y"})


def test_a_crew_is_left_by_its_members_while_there_is_no_coordinator(
    service: Service, matrix: scipy.sparse.csr_array
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        A, x = shared(pool, matrix)
        y = pool.create("y", ROWS)
        with crew_of(pool, 2) as crew:
            members = crew.members
            crew.prepare(Product(A), x, y)()
            service.kill()
        service.start()
        assert settles(lambda: {worker.pid for worker in pool.stats().workers} == set(members))
        assert settles(lambda: {info.spec.name for info in pool.list()} == {"A", "x", "y"})


def test_a_crew_outlives_its_pool_for_no_harm(matrix: scipy.sparse.csr_array) -> None:
    pool = hugepool.connect("embedded")
    pool.start_workers(1)
    A, x = shared(pool, matrix)
    y = pool.create("y", ROWS)
    crew = Crew(pool.address, workers=2)
    step = crew.prepare(Product(A), x, y)
    pool.close()
    step()
    np.testing.assert_array_equal(y.array, matrix @ x.array)
    crew.close()


def test_a_forked_child_cannot_order_members_about(
    pool: Pool, matrix: scipy.sparse.csr_array
) -> None:
    A, x = shared(pool, matrix)
    with pool.create("y", ROWS) as y, crew_of(pool, 2) as crew:
        step = crew.prepare(Product(A), x, y)
        child = os.fork()
        if child == 0:
            try:
                step()
            except hugepool.HugepoolError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        step()
        np.testing.assert_array_equal(y.array, matrix @ x.array)
        step.release()
