"""Crews of real worker processes: what they compute, and what they refuse."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import hugepool
from hugepool import crew_muster
from hugepool.array import SharedArray
from hugepool.crew import Crew, Norm
from hugepool.matrix import SharedMatrix
from hugepool.pool import Pool
from hugepool_common.errors import (
    ArrayBusyError,
    DetachedError,
    IndexOutOfRangeError,
    InvalidSpecError,
    JobFailedError,
    NoWorkersError,
)
from support.crews import Gather, Product, crew_of, dominant_matrix, power_iterates
from support.extras import need
from support.threads import interrupt_in

need("numba")

ROWS = 3000
WORKERS = [1, 2, 3, 4]


@dataclass(frozen=True)
class Shared:
    """Handles of one test."""

    A: SharedMatrix
    x: SharedArray
    y: SharedArray


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """A coordinator with three workers, so that the largest crew here has four participants."""
    with hugepool.connect("embedded") as made:
        made.start_workers(max(WORKERS) - 1)
        yield made


@pytest.fixture(scope="module")
def matrix() -> scipy.sparse.csr_array:
    """Of all tests here; shared anew by each."""
    return dominant_matrix(ROWS)


@pytest.fixture
def shared(pool: Pool, matrix: scipy.sparse.csr_array) -> Iterator[Shared]:
    """The matrix, and two vectors, for one test."""
    made = Shared(pool.put("A", matrix), pool.create("x", ROWS), pool.create("y", ROWS))
    made.x.array[:] = np.random.default_rng(2).random(ROWS)
    yield made
    for handle in (made.A, made.x, made.y):
        handle.detach()
        pool.destroy(handle.name)


@pytest.mark.parametrize("workers", WORKERS)
def test_steps_equal_scipys_product(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared, workers: Any
) -> None:
    x, y = shared.x, shared.y
    with crew_of(pool, workers) as crew:
        assert len(crew.members) == workers - 1
        step = crew.prepare(Product(shared.A), x, y)
        for round_ in range(50):
            x.array[:] = np.random.default_rng(round_).random(ROWS)
            y.array[:] = -1
            step()
            np.testing.assert_array_equal(y.array, matrix @ x.array)


def test_a_crew_and_a_job_give_the_same(pool: Pool, shared: Shared) -> None:
    A, x, y = shared.A, shared.x, shared.y
    expected = pool.matvec(A, x, y).array.copy()
    y.array[:] = 0
    with crew_of(pool, 2) as crew:
        crew.prepare(Product(A), x, y)()
    np.testing.assert_array_equal(y.array, expected)


def test_two_steps_are_taken_in_turns(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared
) -> None:
    x, y = shared.x, shared.y
    with pool.put("idx", np.arange(ROWS)[::-1].copy()) as idx, crew_of(pool, 3) as crew:
        product = crew.prepare(Product(shared.A), x, y)
        backwards = crew.prepare(Gather(idx), y, x)
        expected = x.array.copy()
        for _ in range(5):
            product()
            backwards()
            expected = (matrix @ expected)[::-1]
        np.testing.assert_array_equal(x.array, expected)
        product.release()
        backwards.release()
        crew.prepare(Product(shared.A), x, y).release()
        del product, backwards
    pool.destroy("idx")


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("steps", [1, 7, 500])
def test_iterate_is_the_power_method(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared, workers: Any, steps: int
) -> None:
    x = shared.x
    expected, expected_norm = power_iterates(matrix, x.array.copy(), steps)
    with crew_of(pool, workers) as crew:
        norm = crew.iterate(Product(shared.A), x, steps, "l2")
    np.testing.assert_allclose(x.array, expected, rtol=1e-9, atol=1e-12)
    assert norm == pytest.approx(expected_norm, rel=1e-12)


def test_iterates_are_the_same_bits_for_every_number_of_workers(pool: Pool, shared: Shared) -> None:
    x = shared.x
    start = x.array.copy()
    found = []
    for workers in WORKERS:
        x.array[:] = start
        with crew_of(pool, workers) as crew:
            found.append((crew.iterate(Product(shared.A), x, 30, "l2"), x.array.tobytes()))
    assert len(set(found)) == 1


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2), ("max", np.inf)])
def test_each_norm_is_numpys(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared, norm: Norm, order: float
) -> None:
    x = shared.x
    x.array[:] -= 0.5
    expected = np.linalg.norm(matrix @ x.array, order)
    with crew_of(pool, 2) as crew:
        assert crew.iterate(Product(shared.A), x, 1, norm) == pytest.approx(expected)
    assert np.linalg.norm(x.array, order) == pytest.approx(1)


def test_iterate_without_a_norm_divides_by_nothing(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared
) -> None:
    x = shared.x
    expected = matrix @ (matrix @ (matrix @ x.array))
    with crew_of(pool, 2) as crew:
        assert crew.iterate(Product(shared.A), x, 3) is None
    np.testing.assert_array_equal(x.array, expected)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_has_no_norm_stays_as_it_is(pool: Pool, shared: Shared, value: float) -> None:
    x = shared.x
    x.array[:] = value
    with crew_of(pool, 2) as crew:
        with pytest.raises(JobFailedError, match="cannot be normalised"):
            crew.iterate(Product(shared.A), x, 5, "l2")
        np.testing.assert_array_equal(x.array, np.full(ROWS, value))
        x.array[:] = 1
        assert crew.iterate(Product(shared.A), x, 5, "l2")


@pytest.mark.parametrize("position", [3, ROWS - 3])
def test_a_kernels_error_is_raised_and_the_crew_goes_on(
    pool: Pool, shared: Shared, position: int
) -> None:
    x, y = shared.x, shared.y
    with pool.create("idx", ROWS, "i8") as idx, crew_of(pool, 2) as crew:
        with crew.prepare(Gather(idx), x, y) as step:
            for _ in range(3):
                idx.array[position] = ROWS
                with pytest.raises(IndexOutOfRangeError) as caught:
                    step()
                assert caught.value.position == position
                del caught
                idx.array[position] = 1
                step()
                np.testing.assert_array_equal(y.array, x.array[idx.array])
        assert crew.losses == ()
        del step
    pool.destroy("idx")


def test_ctrl_c_ends_a_long_run_and_not_the_crew(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared
) -> None:
    x, y = shared.x, shared.y
    with crew_of(pool, 2) as crew:
        step = crew.prepare(Product(shared.A), x, y)
        with pytest.raises(KeyboardInterrupt):
            thread = interrupt_in("take_step", 0.5)
            crew.iterate(Product(shared.A), x, 1 << 40, "l2")
        thread.join()
        step()
        np.testing.assert_array_equal(y.array, matrix @ x.array)
        assert crew.losses == ()


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True, 1000])
def test_a_crew_of_no_possible_size_is_refused(pool: Pool, workers: Any) -> None:
    with pytest.raises(InvalidSpecError):
        Crew(pool.address, workers=workers)


def test_a_crew_without_enough_workers_says_so(pool: Pool) -> None:
    with pytest.raises(NoWorkersError, match="registered"):
        Crew(pool.address, workers=max(WORKERS) + 1)
    with crew_of(pool, max(WORKERS)) as crew:
        assert len(crew.members) == max(WORKERS) - 1


def test_one_array_is_not_both_input_and_output(pool: Pool, shared: Shared) -> None:
    with crew_of(pool, 1) as crew, pytest.raises(InvalidSpecError, match="output"):
        crew.prepare(Product(shared.A), shared.x, shared.x)


def test_a_kernel_that_is_not_compiled_is_refused(pool: Pool, shared: Shared) -> None:
    with (
        pool.put("idx", np.arange(ROWS)) as idx,
        crew_of(pool, 2) as crew,
        pytest.raises(InvalidSpecError, match="cannot run"),
    ):
        crew.prepare(Gather(idx, "take"), shared.x, shared.y)
    pool.destroy("idx")


def test_what_is_read_only_here_is_not_written(pool: Pool, shared: Shared) -> None:
    with (
        pool.attach("y") as y,
        crew_of(pool, 2) as crew,
        pytest.raises(InvalidSpecError, match="read-only"),
    ):
        crew.prepare(Product(shared.A), shared.x, y)


def test_arrays_stay_attached_while_a_step_holds_them(pool: Pool, shared: Shared) -> None:
    x = shared.x
    with crew_of(pool, 2) as crew:
        step = crew.prepare(Product(shared.A), x, shared.y)
        with pytest.raises(ArrayBusyError):
            x.detach()
        step()
        step.release()
        with pytest.raises(DetachedError):
            step()


def test_a_detached_handle_is_not_prepared(pool: Pool, shared: Shared) -> None:
    y = pool.attach("y", readonly=False)
    y.detach()
    with crew_of(pool, 2) as crew, pytest.raises(DetachedError):
        crew.prepare(Product(shared.A), shared.x, y)


def test_a_closed_crew_takes_no_step(pool: Pool, shared: Shared) -> None:
    x, y = shared.x, shared.y
    with crew_of(pool, 2) as crew:
        step = crew.prepare(Product(shared.A), x, y)
    assert crew.closed
    crew.close()
    for attempt in (
        step,
        lambda: crew.prepare(Product(shared.A), x, y),
        lambda: crew.iterate(Product(shared.A), x, 1),
    ):
        with pytest.raises(DetachedError):
            attempt()


def test_workers_are_idle_after_a_crew(
    pool: Pool, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_muster, "CLOSE_TIMEOUT_S", 120.0)
    with crew_of(pool, 3):
        assert sum(worker.busy for worker in pool.stats().workers) == 2
    assert not any(worker.busy for worker in pool.stats().workers)


def test_pinned_participants_are_let_go_again(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared
) -> None:
    before = os.sched_getaffinity(0)
    with crew_of(pool, 2, pin=True) as crew:
        assert len(os.sched_getaffinity(0)) == 1
        crew.prepare(Product(shared.A), shared.x, shared.y)()
    assert os.sched_getaffinity(0) == before
    np.testing.assert_array_equal(shared.y.array, matrix @ shared.x.array)


def test_empty_parts_and_more_workers_than_rows(pool: Pool) -> None:
    small = scipy.sparse.csr_array(np.array([[2.0, 0], [0, 3.0]]))
    A, x, y = pool.put("small", small), pool.put("sx", np.ones(2)), pool.create("sy", 2)
    with crew_of(pool, 4) as crew:
        with crew.prepare(Product(A), x, y) as step:
            step()
        assert crew.iterate(Product(A), y, 0, "l2") is None
    np.testing.assert_array_equal(y.array, [2, 3])
    for handle in (A, x, y):
        handle.detach()
        pool.destroy(handle.name)


@pytest.mark.parametrize("form", ["direct", "binned", "ordered", "narrow"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_plan_of_every_form_is_stepped(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared, form: Any, workers: int
) -> None:
    with (
        pool.plan_matvec(shared.A, form=form) as plan,
        pool.crew(workers=workers) as crew,
        crew.prepare(plan, shared.x, shared.y) as step,
    ):
        for factor in (1.0, 3.0):
            shared.x.array[:] *= factor
            step()
            np.testing.assert_allclose(shared.y.array, matrix @ shared.x.array, rtol=1e-13, atol=0)


@pytest.mark.parametrize("form", ["direct", "binned"])
def test_a_planned_gather_is_stepped(pool: Pool, shared: Shared, form: Any) -> None:
    idx = np.random.default_rng(11).integers(0, ROWS, 5000)
    with pool.create("out", 5000) as out, pool.plan_gather(idx, shared.x, form=form) as plan:
        with pool.crew(workers=2) as crew, crew.prepare(plan, shared.x, out) as step:
            step()
        np.testing.assert_array_equal(out.array, shared.x.array[idx])
    pool.destroy("out")


def test_a_job_does_not_wait_for_the_members_of_a_crew() -> None:
    with hugepool.connect("embedded") as pool:
        x = pool.put("x", np.arange(100.0))
        with pool.crew(workers=2) as crew:
            (member,) = crew.members
            assert pool.gather(x, [3, 4], workers=1).array.tolist() == [3.0, 4.0]
            assert {worker.pid for worker in pool.stats().workers} > {member}
            with pool.crew(workers=2) as other:
                assert set(other.members).isdisjoint(crew.members)


def test_crews_that_pin_one_thread_restore_its_cpus_when_the_last_ends(pool: Pool) -> None:
    before = os.sched_getaffinity(0)
    first, second = pool.crew(workers=2, pin=True), pool.crew(workers=2, pin=True)
    first.close()
    assert len(os.sched_getaffinity(0)) == 1
    with pool.crew(workers=1, pin=True):
        pass
    second.close()
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("workers", [0, -1, 129, 1.0, True, "2"])
def test_a_pool_makes_no_crew_of_such_a_size(pool: Pool, workers: Any) -> None:
    with pytest.raises(InvalidSpecError, match="workers"):
        pool.crew(workers=workers)


def test_threads_that_use_one_plan_in_a_crew_and_in_jobs_do_not_disturb_each_other(
    pool: Pool, matrix: scipy.sparse.csr_array, shared: Shared
) -> None:
    other_x, other_y = pool.create("other-x", ROWS), pool.create("other-y", ROWS)
    other_x.array[:] = 7.0
    wrong: list[str] = []
    want, other_want = matrix @ shared.x.array, matrix @ other_x.array
    with (
        pool.plan_matvec(shared.A, form="binned") as plan,
        pool.crew(workers=2) as crew,
        crew.prepare(plan, shared.x, shared.y) as step,
    ):

        def jobs() -> None:
            for _ in range(30):
                plan.run(other_x, other_y, workers=1)
                if not np.allclose(other_y.array, other_want):
                    wrong.append("job")

        thread = threading.Thread(target=jobs)
        thread.start()
        while thread.is_alive():
            step()
            if not np.allclose(shared.y.array, want):
                wrong.append("step")
        thread.join()
    assert not wrong
    for handle in (other_x, other_y):
        handle.detach()
        pool.destroy(handle.name)


def test_an_error_under_way_is_not_hidden_by_a_prepared_step(pool: Pool, shared: Shared) -> None:
    plan = pool.plan_matvec(shared.A, form="binned")
    with pool.crew(workers=2) as crew, pytest.raises(ZeroDivisionError), plan:
        step = crew.prepare(plan, shared.x, shared.y)
        raise ZeroDivisionError
    assert "released" in repr(step)
    plan.detach()


def test_a_plan_stays_whole_while_a_step_is_prepared_with_it(pool: Pool, shared: Shared) -> None:
    plan = pool.plan_matvec(shared.A, form="binned")
    with pool.crew(workers=2) as crew:
        step = crew.prepare(plan, shared.x, shared.y)
        held = plan.nbytes
        with pytest.raises(ArrayBusyError, match="release the step"):
            plan.detach()
        assert plan.nbytes == held
        step()
        step.release()
        plan.detach()


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf"), "x", None])
def test_no_such_patience(pool: Pool, patience: Any) -> None:
    with pytest.raises(InvalidSpecError, match="patience"):
        pool.crew(workers=2, patience_s=patience)


def test_names_and_ndarrays_are_no_operands_of_a_step(pool: Pool, shared: Shared) -> None:
    with pool.plan_matvec(shared.A) as plan, pool.crew(workers=1) as crew:
        calls: tuple[Any, ...] = ((plan, "x", shared.y), (plan, shared.x, np.ones(ROWS)))
        for arguments in (*calls, ("plan", shared.x, shared.y)):
            with pytest.raises(InvalidSpecError):
                crew.prepare(*arguments)


def executable_mappings() -> int:
    with open("/proc/self/maps", encoding="ascii") as lines:
        return sum(" r-xp " in line for line in lines)


def test_crews_leave_no_code_behind(pool: Pool) -> None:
    with pool.crew(workers=2):
        pass
    gc.collect()  # what earlier tests left must not go meanwhile
    before = executable_mappings()
    for _ in range(3):
        with pool.crew(workers=2):
            pass
    gc.collect()
    assert executable_mappings() <= before


def test_workers_started_while_a_crew_pins_its_leader_are_not_pinned() -> None:
    before = os.sched_getaffinity(0)
    with hugepool.connect("embedded") as pool, pool.crew(workers=1, pin=True):
        pool.start_workers(1)
        (worker,) = pool.stats().workers
        assert os.sched_getaffinity(worker.pid) == before
        assert len(os.sched_getaffinity(0)) == 1
        with hugepool.connect("embedded") as other:
            assert os.sched_getaffinity(other.stats().pid) == before
