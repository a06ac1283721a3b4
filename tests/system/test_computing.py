"""One-shot computations by worker processes, against NumPy and SciPy on the same data."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool import products
from support.extras import need
from support.host import settles
from support.service import Service

pytestmark = pytest.mark.usefixtures("leak_check")
Array = np.ndarray[Any, Any]


def _matrix(rows: int, columns: int, seed: int = 0, dtype: str = "<f8") -> Any:
    """Rows of 0 to 20 entries; columns in no order, some twice."""
    need("scipy")
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 21, rows))])
    nnz = int(indptr[-1])
    data = (rng.standard_normal(nnz) * 1000).astype(dtype)
    return csr_array((data, rng.integers(0, columns, nnz), indptr), shape=(rows, columns))


def _names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i8", "<i4"])
def test_products_with_several_vectors_and_with_the_transpose(service: Service, dtype: str) -> None:
    service.start()
    matrix = _matrix(500, 300, dtype=dtype)
    rng = np.random.default_rng(1)
    with hugepool.connect(service.address) as pool:
        A = pool.put("A", matrix)
        for width in (1, 2, 7, 64):
            x = (rng.standard_normal((300, width)) * 100).astype(dtype)
            result = pool.matmat("A", x, workers=2)
            assert result.dtype == dtype
            np.testing.assert_array_equal(result.array, matrix @ x)
            assert result.timings is not None
            assert result.timings.nnz == matrix.nnz
        y = (rng.standard_normal(500) * 100).astype(dtype)
        one = pool.rmatvec(A, y, out="one", workers=1)
        np.testing.assert_array_equal(one.array, matrix.T @ y)
        two = pool.rmatvec(A, pool.put("y", y), workers=2)
        np.testing.assert_allclose(two.array, matrix.T @ y, rtol=1e-4, atol=1e-2)
        assert two.timings is not None
        assert {part.label for part in two.timings.parts} == {"rmatvec", "sum_parts"}
        del result, two
        assert _names(pool) == ["A", "one", "y"]


@pytest.mark.parametrize("indices", [50, 5000])
def test_a_scatter_add_is_numpy_s(service: Service, indices: int) -> None:
    service.start()
    rng = np.random.default_rng(2)
    idx = rng.integers(0, 900, indices)
    values = rng.standard_normal(indices)
    with hugepool.connect(service.address) as pool:
        x = pool.create("x", 900)
        x.array[:] = rng.standard_normal(900)
        expected = x.array.copy()
        np.add.at(expected, idx, values)
        result = pool.scatter_add("x", idx, values, workers=2)
        assert result.array.tobytes() == expected.tobytes()
        np.add.at(expected, idx, 2)
        pool.scatter_add(x, pool.put("idx", idx.astype(np.int32)), 2)
        assert x.array.tobytes() == expected.tobytes()
        assert (x.timings is None) == (indices == 50)
        assert _names(pool) == ["idx", "x"]


def test_a_bad_index_of_a_scatter_add_changes_nothing(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.create("x", 900)
        for indices, bad in itertools.product((50, 5000), (900, -1, 2**40)):
            idx = np.arange(indices) % 900
            idx[indices - 2] = bad
            with pytest.raises(hugepool.IndexOutOfRangeError) as caught:
                pool.scatter_add(x, idx, np.ones(indices), workers=2)
            assert caught.value.position == indices - 2
            assert not x.array.any()
            assert _names(pool) == ["x"]


@pytest.mark.parametrize("implementation", ["numba", "scipy", "numpy"])
def test_a_row_longer_than_a_part_is_shared_by_workers(
    service: Service, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation != "numpy":
        need(implementation)
    need("scipy")
    monkeypatch.setattr(products, "CUT_ROWS_ENTRIES", 1000)
    from scipy.sparse import csr_array

    service.start()
    rng = np.random.default_rng(3)
    lengths = np.full(1000, 5)
    lengths[[0, 17, 999]] = 0
    lengths[500] = 100_000
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    nnz = int(indptr[-1])
    columns = rng.integers(0, 4000, nnz)
    matrix = csr_array((rng.standard_normal(nnz), columns, indptr), shape=(1000, 4000))
    x = rng.standard_normal(4000)
    with hugepool.connect(service.address) as pool:
        A = pool.put("A", matrix)
        for _ in range(2):
            result = pool.matvec(A, x, workers=3, implementation=implementation)
        assert result.timings is not None
        split = [part for part in result.timings.parts if part.label == "matvec_split"]
        shares = [part.nnz for part in split]
        assert len(shares) == 3
        assert sum(shares) == nnz
        assert max(shares) < 1.02 * nnz / 3
        expected = matrix @ x
        # The one long row is cut, and its sum in another order; every other is whole.
        whole = np.arange(1000) != 500
        if implementation != "numpy":
            assert (result.array[whole] == expected[whole]).all()
        np.testing.assert_allclose(result.array, expected, rtol=1e-10, atol=1e-9)
        start, stop = indptr[500:502]
        terms = matrix.data[start:stop] * x[columns[start:stop]]
        error = abs(float(result.array[500]) - math.fsum(terms))
        assert error <= 2 * len(terms) * 2.0**-53 * np.abs(terms).sum()
        kept = _names(pool)
        assert [name.split("-")[0] for name in kept] == ["A", "bounds", "carry", "out"]
        del result, A
        assert pool.matvec("A", x, workers=1).array.tobytes() == expected.tobytes()
        assert _names(pool) == ["A"]


def test_a_balanced_product_is_not_cut(service: Service) -> None:
    service.start()
    matrix = _matrix(50_000, 300)
    x = np.arange(300.0)
    with hugepool.connect(service.address) as pool:
        pool.put("A", matrix)
        result = pool.matvec("A", x, workers=2)
        assert result.timings is not None
        assert {part.label for part in result.timings.parts} == {"matvec"}
        assert (result.array == matrix @ x).all()


def test_matrices_smaller_than_the_crowd_of_workers(service: Service) -> None:
    need("scipy")
    from scipy.sparse import csr_array

    service.start()
    rng = np.random.default_rng(5)
    with hugepool.connect(service.address) as pool:
        for shape in ((0, 0), (0, 5), (5, 0), (1, 1), (1, 700), (700, 1), (2, 3)):
            matrix = csr_array(rng.standard_normal(shape) * (rng.random(shape) < 0.7))
            x, y = rng.standard_normal(shape[1]), rng.standard_normal(shape[0])
            X = rng.standard_normal((shape[1], 3))
            A = pool.put("A", matrix)
            cases: list[tuple[str, Array, Any]] = [
                ("matvec", x, matrix @ x),
                ("matmat", X, matrix @ X),
                ("matmat", X[:, :0], matrix @ X[:, :0]),
                ("rmatvec", y, matrix.T @ y),
            ]
            for name, operand, expected in cases:
                result = getattr(pool, name)(A, operand, workers=3)
                assert result.shape == expected.shape
                np.testing.assert_allclose(result.array, expected, rtol=1e-12, atol=1e-12)
            A.detach()
            pool.destroy("A")


def test_what_does_not_fit_is_refused_before_anything_is_written(service: Service) -> None:
    service.start()
    matrix = _matrix(40, 30)
    with hugepool.connect(service.address) as pool:
        A = pool.put("A", matrix)
        x = pool.create("x", 30)
        table = pool.put("table", np.ones((30, 2)))
        sealed = pool.put("sealed", np.ones(30))
        wrong = hugepool.InvalidSpecError
        cases: list[tuple[type[Exception], Callable[[], object]]] = [
            (wrong, lambda: pool.matmat(A, np.ones(30))),
            (wrong, lambda: pool.matmat(A, np.ones((29, 2)))),
            (wrong, lambda: pool.matmat(A, table, out=table)),
            (wrong, lambda: pool.matmat(A, table, out=x)),
            (wrong, lambda: pool.matmat(A, table, workers=0)),
            (wrong, lambda: pool.matmat("x", table)),
            (wrong, lambda: pool.rmatvec(A, np.ones(30))),
            (wrong, lambda: pool.rmatvec(A, np.ones(40, complex), out="new")),
            (wrong, lambda: pool.rmatvec(A, np.ones(40), out=table)),
            (wrong, lambda: pool.scatter_add(table, np.zeros(3, int), 1.0)),
            (wrong, lambda: pool.scatter_add(x, np.zeros(3), 1.0)),
            (wrong, lambda: pool.scatter_add(x, np.zeros(3, int), np.ones(2))),
            (wrong, lambda: pool.scatter_add(x, np.zeros(3, int), np.ones(3, complex))),
            (wrong, lambda: pool.scatter_add(x, np.zeros(30, int), x)),
            (wrong, lambda: pool.scatter_add(x, np.zeros(30, int), table)),
            (wrong, lambda: pool.scatter_add(x, np.zeros(30, int), "sealed", workers=0)),
            (hugepool.ArraySealedError, lambda: pool.scatter_add(sealed, [0], 1.0)),
            (hugepool.ArraySealedError, lambda: pool.scatter_add("sealed", [0] * 30, 1.0)),
            (hugepool.ArrayNotFoundError, lambda: pool.rmatvec("none", np.ones(40))),
            (hugepool.ArrayNotFoundError, lambda: pool.scatter_add("none", [0], 1.0)),
        ]
        for kind, call in cases:
            with pytest.raises(kind):
                call()
        assert not x.array.any()
        assert (sealed.array == 1).all()
        assert _names(pool) == ["A", "sealed", "table", "x"]


def test_a_part_that_adds_in_place_is_not_run_again(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.start_workers(2)
        x, idx = pool.create("x", 100), pool.put("idx", np.arange(100))
        ones = pool.put("ones", np.ones(100))
        operands = {"out": x, "idx": idx, "values": ones}
        pool.run("scatter_add", operands, (0, 50, 100))
        victim = min(pool.stats().workers, key=lambda worker: worker.worker)
        os.kill(victim.pid, signal.SIGSTOP)  # takes the first part; how far it got, who knows
        killer = service.spawn(
            *(sys.executable, "-c"),
            "import os, time, hugepool\n"
            "pool = hugepool.connect()\n"
            "while not any(w.busy for w in pool.stats().workers): time.sleep(0.01)\n"
            f"os.kill({victim.pid}, 9)\n",
        )
        with pytest.raises(hugepool.JobFailedError, match="cannot be run twice"):
            pool.run("scatter_add", operands, (0, 50, 100))
        assert killer.wait(60) == 0
        assert set(x.array[:50]) == {1.0}, "nobody may have added in its place"


def test_a_killed_worker_adds_nothing_twice(service: Service) -> None:
    service.start()
    rng = np.random.default_rng(6)
    idx = rng.integers(0, 1000, 3_000_000)
    with hugepool.connect(service.address) as pool:
        pool.start_workers(2)
        x = pool.create("x", 1000, "i8")
        shared = pool.put("idx", idx)
        ones = pool.put("ones", np.ones(len(idx), np.int64))
        pool.scatter_add(x, shared, ones)  # compiled, and mapped by both
        victim = pool.stats().workers[0].pid
        killer = service.spawn(
            "python3", "-c", f"import os, time; time.sleep(0.01); os.kill({victim}, 9)"
        )
        for _ in range(4):
            pool.scatter_add(x, shared, ones)
        assert killer.wait(60) == 0
        # It may have been killed only now, when all was added.
        assert settles(lambda: victim not in {worker.pid for worker in pool.stats().workers})
        assert (x.array == 5 * np.bincount(idx, minlength=1000)).all()
        assert os.getpid() != victim
