"""Handles that are passed to other processes: by name and identity, never by value."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

import hugepool
from support.extras import need, sparse
from support.handed_over import inside, look, look_and_tell, multiply, span, write_one
from support.host import require
from support.service import Service

COUNT = 400_000  # 3.2 MB of float64: two huge pages where there are any
STARTS = ["fork", "spawn", "forkserver"]

# Python 3.12 and later; a pool's own thread holds nothing that a child needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork")


@pytest.fixture(scope="module")
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_arrays_left(pool: hugepool.Pool) -> Iterator[None]:
    yield
    for info in pool.list():
        pool.destroy(info.spec.name)


@pytest.fixture
def ones(pool: hugepool.Pool) -> hugepool.SharedArray:
    """A sealed array of ones, on huge pages."""
    made = pool.create("ones", COUNT)
    made.array[:] = 1.0
    require("collapse", made.pages.huge_bytes == made.pages.length, f"no huge pages: {made.pages}")
    return made.seal()


def check_look(seen: dict[str, Any], *, same_process: bool = False) -> None:
    assert (seen["pid"] == os.getpid()) is same_process
    assert seen["kind"] == "SharedArray"
    assert seen["sum"] == COUNT
    assert seen["inside"]
    assert seen["huge"] == seen["length"] >= COUNT * 8
    assert not seen["writable"]


@pytest.mark.parametrize("start", STARTS)
def test_a_process_is_passed_a_handle(ones: hugepool.SharedArray, start: Any) -> None:
    context = multiprocessing.get_context(start)
    answers = context.Queue()
    child = context.Process(target=look_and_tell, args=(ones, answers))
    child.start()
    check_look(answers.get(timeout=200))
    child.join(200)
    assert child.exitcode == 0  # detached as well, in a forked child's copy too
    assert ones.array.sum() == COUNT


@pytest.mark.parametrize("start", STARTS)
def test_a_process_pool_is_passed_handles(ones: hugepool.SharedArray, start: Any) -> None:
    with multiprocessing.get_context(start).Pool(1) as processes:
        for seen in processes.map(look, [ones, ones]):
            check_look(seen)


@pytest.mark.parametrize("start", STARTS)
def test_an_executor_is_passed_a_handle_to_write(pool: hugepool.Pool, start: Any) -> None:
    x = pool.create("x", COUNT)
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        pids = set(executor.map(write_one, [x] * 4, range(4), [1.0, 2.0, 3.0, 4.0]))
    assert os.getpid() not in pids
    assert x.array[:5].tolist() == [1.0, 2.0, 3.0, 4.0, 0.0]
    x.seal()  # nobody maps it for writing any more


def test_a_matrix_is_passed(pool: hugepool.Pool) -> None:
    A = pool.put("A", sparse().csr_array(np.arange(12.0).reshape(3, 4)))
    x = pool.put("x", np.ones(4))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(multiply, A, x).result(200) == 66.0


def test_joblib_passes_handles(ones: hugepool.SharedArray) -> None:
    need("joblib")
    joblib = importlib.import_module("joblib")
    seen = joblib.Parallel(n_jobs=2)(joblib.delayed(look)(ones) for _ in range(3))
    for one in seen:
        check_look(one)
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def cluster() -> Iterator[Any]:
    need("distributed")
    distributed = importlib.import_module("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.filterwarnings("default")  # Dask's own
def test_dask_passes_handles_and_takes_blocks_of_them(
    ones: hugepool.SharedArray, cluster: Any
) -> None:
    check_look(cluster.submit(look, ones).result(200))
    need("dask.array")
    dask_array = importlib.import_module("dask.array")
    whole = dask_array.from_array(ones, chunks=COUNT // 4)
    assert len(whole.dask) >= 4
    assert float(whole.sum().compute()) == COUNT
    graph = pickle.dumps(dict(whole.dask))
    assert len(graph) < 20_000  # the handle's name travels, not its bytes


def test_pickled_here_it_is_another_handle_on_the_same_bytes(ones: hugepool.SharedArray) -> None:
    for again in (pickle.loads(pickle.dumps(ones)), copy.deepcopy(ones)):
        check_look(look(again), same_process=True)
        assert span(again.array) != span(ones.array)
        assert again.info.segment == ones.info.segment
        again.detach()
    assert inside(ones, *span(ones.array))


def test_a_handle_that_wrote_reads_once_it_is_sealed(pool: hugepool.Pool) -> None:
    x = pool.create("x", 10)
    passed = pickle.dumps(x)
    again = pickle.loads(passed)
    assert again.writable
    again.detach()
    x.seal()
    assert not pickle.loads(passed).writable


def test_what_was_destroyed_meanwhile_is_an_error(ones: hugepool.SharedArray) -> None:
    passed = pickle.dumps(ones)
    ones._session.destroy("ones")  # type: ignore[attr-defined]
    arrived = pickle.loads(passed)
    uses: list[Callable[[], object]] = [
        lambda: arrived.array,
        lambda: arrived.pages,
        lambda: arrived.detach(),
        lambda: arrived[0],
        lambda: len(arrived),
        lambda: list(arrived),
        lambda: np.asarray(arrived),
        lambda: np.from_dlpack(arrived),
        lambda: arrived.__enter__(),
        lambda: pickle.dumps(arrived),
    ]
    for use in uses:
        with pytest.raises(hugepool.ArrayNotFoundError, match="was destroyed after its handle"):
            use()
    assert "'ones'" in repr(arrived)
    assert not hasattr(arrived, "__dask_graph__")  # to ask is no use


def test_an_error_that_is_raised_again_and_again_keeps_one_trace(
    ones: hugepool.SharedArray, pool: hugepool.Pool
) -> None:
    passed = pickle.dumps(ones)
    pool.destroy(ones.name)
    lost = pickle.loads(passed)
    lengths = []
    for use in (len, len, np.asarray, lambda one: one.array, lambda one: one.array):
        try:
            use(lost)
        except hugepool.ArrayNotFoundError as error:
            lengths.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(lengths) == 5 and max(lengths) <= 3


def test_what_was_superseded_meanwhile_is_that_very_generation_while_somebody_has_it(
    pool: hugepool.Pool,
) -> None:
    first = pool.publish("x", np.zeros(5))
    passed = pickle.dumps(first)
    pool.publish("x", np.ones(5))
    arrived = pickle.loads(passed)
    assert (arrived.array.sum(), arrived.generation) == (0, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor.submit(look, first).result(200)["sum"] == 0
    first.detach()
    assert pickle.loads(passed).generation == 1, "who received it keeps it"
    arrived.detach()
    with pytest.raises(
        hugepool.SegmentChangedError, match=r"another has its name.*attach 'x' anew"
    ):
        pickle.loads(passed).array  # noqa: B018  its use is the error
    assert pickle.loads(pickle.dumps(pool.attach("x"))).generation == 2


def test_what_was_published_meanwhile_is_the_same_under_its_new_name(pool: hugepool.Pool) -> None:
    made = pool.put("next", np.full(5, 3.0))
    passed = pickle.dumps(made)
    made.publish_as("x")
    pool.put("next", np.ones(5))
    arrived = pickle.loads(passed)
    assert (arrived.name, arrived.array.sum()) == ("x", 15)


def test_an_error_in_a_worker_reaches_the_sender_and_the_worker_goes_on(
    pool: hugepool.Pool,
) -> None:
    x = pool.put("x", np.ones(5))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        failed = executor.submit(look, Stale(x, pool))
        with pytest.raises(hugepool.ArrayNotFoundError, match="after its handle was passed on"):
            failed.result(200)
        again = pool.put("x", np.ones(5))
        assert executor.submit(look, again).result(200)["sum"] == 5
    with context.Pool(1) as processes:  # would wait for ever for a task whose worker ended
        failing = processes.apply_async(look, [Stale(again, pool)])
        with pytest.raises(hugepool.ArrayNotFoundError, match="after its handle was passed on"):
            failing.get(200)


class Stale:
    """An argument whose array is destroyed when it has been pickled."""

    def __init__(self, handle: hugepool.SharedArray, pool: hugepool.Pool) -> None:
        self._handle, self._pool = handle, pool

    def __reduce__(self) -> tuple[object, ...]:
        taken = self._handle.__reduce__()
        self._pool.destroy(self._handle.name)
        return taken


def test_handles_that_cannot_be_passed_say_so_when_they_are_pickled(pool: hugepool.Pool) -> None:
    pool.create("x", (10, 2))
    rows = pool.attach("x", readonly=False, rows=(0, 5))
    with pytest.raises(TypeError, match="this process's to write"):
        pickle.dumps(rows)
    gone = pool.attach("x")
    gone.detach()
    with pytest.raises(hugepool.DetachedError):
        pickle.dumps(gone)


def test_a_coordinator_that_ended_is_an_error_and_the_next_one_is_found(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.ones(5))
        first = pickle.dumps(x)
        pickle.loads(first).detach()  # a session of this process stays open
    service.stop()
    with pytest.raises(hugepool.CoordinatorUnreachableError):
        len(pickle.loads(first))
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.full(5, 2.0))
        assert pickle.loads(pickle.dumps(x)).array.sum() == 10
        with pytest.raises(hugepool.SegmentChangedError):
            len(pickle.loads(first))


def test_a_handle_outlives_a_killed_durable_coordinator(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.ones(5))
        passed = pickle.dumps(x)
        service.restart()
        assert pickle.loads(passed).array.sum() == 5
