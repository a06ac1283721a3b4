"""Plans through the public API: real workers, every form, other processes, bad input."""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool import gather_builds, product_builds, products
from hugepool_common.units import round_up
from support.crews import crew_of, symmetric_grid
from support.extras import need
from support.service import Service

pytestmark = pytest.mark.timeout(900)  # kernels are compiled

GATHER_FORMS = ("direct", "binned")
MATVEC_FORMS = ("direct", "binned", "ordered", "narrow")


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[hugepool.Pool]:
    need("numba")
    with hugepool.connect("embedded") as pool:
        pool.start_workers(2)
        yield pool


@pytest.fixture
def pool(shared_pool: hugepool.Pool) -> Iterator[hugepool.Pool]:
    yield shared_pool
    for name in names(shared_pool):
        with contextlib.suppress(hugepool.ArrayNotFoundError):  # gone with another
            shared_pool.destroy(name)


def names(pool: hugepool.Pool) -> set[str]:
    gc.collect()
    pool.stats()  # what waits to be destroyed is sent with the next request
    return {info.spec.name for info in pool.list()}


def graph(rows: int, columns: int, per_row: int, seed: int = 3) -> Any:
    """A random matrix with an empty row, a full row and columns of uneven use."""
    sparse = importlib.import_module("scipy.sparse")
    random = np.random.default_rng(seed)
    counts = random.integers(0, 2 * per_row, rows)
    counts[rows // 2] = 0
    row = np.repeat(np.arange(rows), counts)
    column = (columns * random.random(len(row)) ** 3).astype(np.int64)
    row = np.concatenate([row, np.full(columns, rows // 3)])
    column = np.concatenate([column, np.arange(columns)])
    data = random.integers(-8, 9, len(row)).astype("f8")
    return sparse.csr_array((data, (row, column)), shape=(rows, columns))


@pytest.mark.parametrize("form", GATHER_FORMS)
@pytest.mark.parametrize("dtype", ["f8", "i4", "u8", "f4"])
def test_a_planned_gather_is_the_gather(pool: hugepool.Pool, form: Any, dtype: str) -> None:
    random = np.random.default_rng(1)
    source = random.integers(0, 1 << 30, 300_000).astype(dtype)
    idx = random.integers(0, len(source), (400, 1000))
    with pool.put("x", source) as x:
        plan = pool.plan_gather(idx, x, form=form)
        assert plan.choice == form
        np.testing.assert_array_equal(plan.run(x).array, source[idx])
        again = pool.create("again", idx.shape, dtype)
        assert plan.run("x", again, workers=1) is again
        np.testing.assert_array_equal(again.array, source[idx])
    pool.destroy("x")
    pool.destroy("again")


@pytest.mark.parametrize("form", MATVEC_FORMS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_planned_product_is_the_product(pool: hugepool.Pool, form: Any, workers: int) -> None:
    matrix = graph(90_000, 60_000, 5)
    x = np.random.default_rng(2).integers(-100, 100, 60_000).astype("f8")
    A = pool.put("A", matrix)
    plan = pool.plan_matvec(A, form=form, storage="auto", workers=workers)
    assert plan.choice == form
    result = plan.run(x, workers=workers)
    # Small integers: sums are exact in any order.
    np.testing.assert_array_equal(result.array, matrix @ x)
    x[5], x[17] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(plan.run(x, workers=workers).array, matrix @ x)
    pool.destroy("A")


@pytest.mark.parametrize("values", ["same", "own"])
@pytest.mark.parametrize("storage", ["exact", "compact"])
def test_a_matrix_of_repeated_rows_is_planned_as_one(
    pool: hugepool.Pool, values: str, storage: Any
) -> None:
    sparse = importlib.import_module("scipy.sparse")
    line = sparse.diags_array([-1.0, 4.0, -1.0], offsets=(-1, 0, 1), shape=(120, 120))
    matrix = sparse.csr_array(sparse.kronsum(line, line))
    if values == "own":
        matrix.data = np.random.default_rng(6).integers(1, 9, matrix.nnz).astype("f8")
    A = pool.put("A", matrix)
    plan = pool.plan_matvec(A, form="repeated", storage=storage)
    assert plan.describe().payload_nbytes < A.nbytes
    x = np.random.default_rng(7).random(120 * 120)
    np.testing.assert_array_equal(plan.run(x, workers=2).array, matrix @ x)


@pytest.mark.parametrize("storage", ["exact", "compact", "bfloat16"])
def test_half_of_a_symmetric_matrix_is_kept_and_described(
    pool: hugepool.Pool, storage: Any
) -> None:
    matrix = symmetric_grid(120)
    A = pool.put("A", matrix)
    plan = pool.plan_matvec(A, form="mirrored", storage=storage, name="p")
    report = plan.describe()
    kept = {"exact": "float64", "compact": "float32, rounded", "bfloat16": "bfloat16, rounded"}
    assert report.values == kept[storage] and f"values: {kept[storage]}" in str(report)
    whole = pool.plan_matvec(A, form="repeated", storage=storage)
    assert report.payload_nbytes < 0.75 * whole.describe().payload_nbytes
    x = np.random.default_rng(7).random(matrix.shape[1])
    shared_x, out = pool.put("x", x), pool.create("out", len(x))
    # Both read the same values in the same order.
    np.testing.assert_array_equal(plan.run(x, workers=2).array, whole.run(x).array)
    if storage == "exact":
        np.testing.assert_array_equal(plan.run(x).array, matrix @ x)
    attached = pool.attach("p")
    with crew_of(pool, 2) as crew:
        step = crew.prepare(attached, shared_x, out)
        step()
        np.testing.assert_array_equal(out.array, plan.run(x).array)
        step.release()
    attached.detach()


def test_an_asymmetric_matrix_is_not_halved_and_nothing_stays(pool: hugepool.Pool) -> None:
    matrix = symmetric_grid(120)
    matrix.data[7777] += 2.0**-40  # one of many, so that no sample need see it
    A = pool.put("A", matrix)
    before = names(pool)
    with pytest.raises(hugepool.InvalidSpecError, match="not symmetric"):
        pool.plan_matvec(A, form="mirrored")
    assert names(pool) == before
    plan = pool.plan_matvec(A)
    assert plan.choice != "mirrored" and "mirrored was not tried" in plan.describe().reason
    x = np.random.default_rng(7).random(matrix.shape[1])
    np.testing.assert_array_equal(plan.run(x).array, matrix @ x)


@pytest.mark.parametrize("form", GATHER_FORMS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_planned_product_with_the_transpose_is_that_product(
    pool: hugepool.Pool, form: Any, workers: int
) -> None:
    matrix = graph(60_000, 90_000, 5)
    x = np.random.default_rng(2).integers(-100, 100, 60_000).astype("f8")
    A = pool.put("A", matrix)
    plan = pool.plan_rmatvec(A, form=form, workers=workers, name="p")
    report = plan.describe()
    assert (report.operation, report.choice) == ("rmatvec", form)
    assert (report.shape, report.rows) == ((60_000, 90_000), 60_000)
    # Small integers: sums are exact in any order.
    np.testing.assert_array_equal(plan.run(x, workers=workers).array, matrix.T @ x)
    assert plan.nbytes == report.nbytes
    shared_x, out = pool.put("x", x), pool.create("out", 90_000)
    attached = pool.attach("p")
    with crew_of(pool, workers) as crew:
        step = crew.prepare(attached, shared_x, out)
        for _ in range(2):
            out.array[:] = np.nan
            step()
            np.testing.assert_array_equal(out.array, matrix.T @ x)
        step.release()
    attached.detach()
    x[5], x[17] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(plan.run(x, workers=workers).array, matrix.T @ x)
    with pytest.raises(hugepool.InvalidSpecError, match="does not fit"):
        plan.run(np.ones(90_000))
    plan.detach()
    del plan, step, attached
    pool.destroy("A")
    assert names(pool) == {"x", "out"}


def test_the_transpose_of_whatever_is_empty_or_narrow_is_planned(pool: hugepool.Pool) -> None:
    sparse = importlib.import_module("scipy.sparse")
    for rows, columns in ((0, 4), (3, 0), (3, 4), (1, 1), (1, 900), (900, 1)):
        matrix = sparse.csr_array((rows, columns), dtype="f8")
        if rows * columns >= 900:
            matrix = sparse.csr_array(np.arange(900.0).reshape(rows, columns))
        A = pool.put("A", matrix)
        for form in ("auto", *GATHER_FORMS):
            plan = pool.plan_rmatvec(A, form=form)  # type: ignore[arg-type]
            for workers in (1, 2):
                found = plan.run(np.ones(rows), workers=workers).array
                np.testing.assert_array_equal(found, matrix.T @ np.ones(rows))
        A.detach()
        pool.destroy("A")


def test_the_transpose_beside_a_small_cache_is_binned_if_that_is_faster(
    pool: hugepool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_builds, "last_level_cache_bytes", lambda: 1 << 16)
    matrix = graph(60_000, 90_000, 8)
    A = pool.put("A", matrix)
    report = pool.plan_rmatvec(A).describe()
    assert report.predicted_ns["binned"] > 0 and report.measured_ns["direct"] > 0
    assert "binned" in f"{report.choice} {report.reason}"
    complex_one = pool.put("C", (matrix * 1j).tocsr())
    with pytest.raises(hugepool.InvalidSpecError, match="real"):
        pool.plan_rmatvec(complex_one)


def test_rows_that_do_not_repeat_are_said_to(pool: hugepool.Pool) -> None:
    A = pool.put("A", graph(300, 200, 4))
    with pytest.raises(hugepool.InvalidSpecError, match="repeat"):
        pool.plan_matvec(A, form="repeated")


def test_a_small_source_is_gathered_directly_and_the_report_says_why(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(1000.0))
    plan = pool.plan_gather(np.arange(0, 1000, 3), x)
    report = plan.describe()
    assert (report.choice, report.entries, report.rows) == ("direct", 334, 1000)
    assert "cache" in report.reason
    assert "direct" in str(report) and "cache" in str(report)
    assert report.break_even == 0
    pool.destroy("x")


def test_beside_a_small_cache_all_that_may_win_is_judged(
    pool: hugepool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gather_builds, product_builds):
        monkeypatch.setattr(module, "last_level_cache_bytes", lambda: 1 << 16)
    random = np.random.default_rng(12)
    x = pool.put("x", random.random(300_000))
    idx = random.integers(0, 300_000, 1_000_000)
    matrix = graph(60_000, 90_000, 8)
    A = pool.put("A", matrix)
    vector = random.integers(-9, 9, 90_000).astype("f8")
    for plan, operand, want in (
        (pool.plan_gather(idx, x), x, x.array[idx]),
        (pool.plan_matvec(A), vector, matrix @ vector),
    ):
        report = plan.describe()
        assert report.predicted_ns["binned"] > 0
        assert report.measured_ns["direct"] > 0
        assert "binned" in report.reason
        np.testing.assert_array_equal(plan.run(operand).array, want)


def test_the_report_tells_the_bytes_that_are_held(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.random.default_rng(4).random(200_000))
    before = {info.spec.name for info in pool.list()}
    for form in GATHER_FORMS:
        plan = pool.plan_gather(np.arange(200_000)[::-1], x, name="p", form=form)  # type: ignore[arg-type]
        held = [info for info in pool.list() if info.spec.name not in before]
        assert sum(round_up(info.spec.nbytes, 64) for info in held) == pytest.approx(
            plan.describe().nbytes, abs=64 * len(held)
        )
        assert plan.nbytes == plan.describe().nbytes
        plan.detach()
        pool.destroy("p")
    assert names(pool) == before
    pool.destroy("x")


def with_long_rows(shape: str) -> Any:
    """A matrix of small integers, some of whose rows hold most of its entries."""
    sparse = importlib.import_module("scipy.sparse")
    random = np.random.default_rng(6)
    size = 4000
    others, every = np.arange(size), np.ones(size, np.int64)
    row, column = [others], [others]
    long_rows = {"arrow": (0,), "last row": (size - 1,), "two rows": (7, 1999)}[shape]
    for one in long_rows:
        row.append(np.repeat(one * every, 20))  # columns may come more than once
        column.append(np.tile(others, 20))
    row.append(others)
    column.append(long_rows[0] * every)
    indices, indptr = np.concatenate(column), np.concatenate(row)
    order = np.argsort(indptr, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(indptr, minlength=size))])
    data = random.integers(-8, 9, len(order)).astype("f8")
    return sparse.csr_array((data, indices[order], indptr), shape=(size, size))


@pytest.mark.parametrize("shape", ["arrow", "last row", "two rows"])
def test_a_direct_plan_cuts_rows_longer_than_a_part(
    pool: hugepool.Pool, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "CUT_ROWS_ENTRIES", 1000)
    matrix = with_long_rows(shape)
    long = np.diff(matrix.indptr) > 1000
    exact = np.random.default_rng(7).integers(-100, 100, 4000).astype("f8")
    rough = np.random.default_rng(8).standard_normal(4000)
    A = pool.put("A", matrix)
    before = names(pool)
    plan = pool.plan_matvec(A, form="direct", workers=3)
    x, out = pool.create("x", 4000), pool.create("y", 4000)
    for parts in (1, 2, 3, 4, 5, 3):
        for vector in (exact, rough):
            x.array[:], out.array[:] = vector, np.nan
            steps = plan.phases(x, out, parts)
            assert [len(step.rows) for step in steps] == [parts + 1] * len(steps)
            assert (len(steps) == 2) == (parts > (2 if shape == "two rows" else 1))
            done = pool.run_phases(steps)
            shares = [part.nnz for part in done.parts if part.nnz]
            assert sum(shares) == matrix.nnz
            assert max(shares) <= 1.25 * matrix.nnz / parts + 4000
            expected = matrix @ vector
            np.testing.assert_array_equal(out.array[~long], expected[~long])
            if vector is exact:  # small integers: sums are exact in any order
                np.testing.assert_array_equal(out.array, expected)
            for row in np.flatnonzero(long):
                begin, end = matrix.indptr[row : row + 2]
                terms = matrix.data[begin:end] * vector[matrix.indices[begin:end]]
                bound = len(terms) * 2.0**-52 * abs(terms).sum()
                assert abs(out.array[row] - math.fsum(terms)) <= bound
    assert plan.nbytes > plan.describe().nbytes
    x.array[:], out.array[:] = exact, np.nan
    np.testing.assert_array_equal(plan.run(x, workers=2).array, matrix @ exact)
    with crew_of(pool, 2) as crew:
        step = crew.prepare(plan, x, out)
        for _ in range(3):
            out.array[:] = np.nan
            step()
            np.testing.assert_array_equal(out.array, matrix @ exact)
            x.array[:] += 1
            exact += 1
        step.release()
    plan.detach()
    del plan, steps, step
    assert names(pool) == before | {"x", "y"}


def test_an_unnamed_plan_goes_with_its_handle(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(1000.0))
    before = names(pool)
    plan = pool.plan_gather([3, 1], x, form="binned")
    assert plan.run(x).array.tolist() == [3.0, 1.0]
    assert len(names(pool)) > len(before)
    del plan
    assert names(pool) == before
    pool.destroy("x")


def test_a_plan_is_attached_by_name_in_another_process(service: Service) -> None:
    need("numba")
    service.start()
    with hugepool.connect(service.address) as pool:
        matrix = graph(3000, 2000, 4)
        pool.put("A", matrix)
        idx = np.random.default_rng(5).integers(0, 2000, 5000)
        pool.put("x", np.arange(2000.0))
        for form in MATVEC_FORMS:
            pool.plan_matvec("A", name=f"A.{form}", form=form, storage="auto")  # type: ignore[arg-type]
        pool.plan_gather(idx, "x", name="g", form="binned")
        seen = service.run(
            "import hugepool, numpy as np\n"
            "with hugepool.connect() as pool:\n"
            "    A, x = pool.attach('A'), pool.attach('x')\n"
            "    want = A.as_scipy() @ x.array\n"
            f"    for form in {MATVEC_FORMS}:\n"
            "        plan = pool.attach(f'A.{form}')\n"
            "        assert plan.choice == form\n"
            "        assert np.array_equal(plan.run(x).array, want), form\n"
            "    print(int(pool.attach('g').run(x).array.sum()))\n"
        )
        assert seen.stderr == ""
        assert seen.stdout.split() == [str(idx.sum())]


def test_detaching_a_plan_leaves_the_matrix_to_its_owner(pool: hugepool.Pool) -> None:
    matrix = graph(50, 40, 3)
    A = pool.put("A", matrix)
    with pool.plan_matvec(A):
        pass
    assert A.nnz == matrix.nnz
    assert A.data.sum() == matrix.data.sum()


def test_a_plan_goes_with_its_matrix(pool: hugepool.Pool) -> None:
    before = names(pool)
    A = pool.put("A", graph(500, 400, 3))
    plans = [
        pool.plan_matvec(A, form=form, storage="auto", name=f"p-{form}")  # type: ignore[arg-type]
        for form in MATVEC_FORMS
    ]
    pool.destroy("A")
    pool.put("A", graph(500, 400, 3, seed=9))
    for plan in plans:
        with pytest.raises((hugepool.ArrayNotFoundError, hugepool.SegmentChangedError)):
            plan.run(np.ones(400))
        with pytest.raises(hugepool.ArrayNotFoundError):
            pool.attach(plan.name)
        plan.detach()
    A.detach()
    pool.destroy("A")
    assert names(pool) == before


def test_later_writes_to_the_index_change_nothing(pool: hugepool.Pool) -> None:
    idx = pool.create("idx", 100, "i8")
    idx.array[:] = np.arange(100)
    x = pool.put("x", np.arange(100.0))
    for form in GATHER_FORMS:
        plan = pool.plan_gather(idx, x, form=form)  # type: ignore[arg-type]
        idx.array[:] = 1 << 40
        np.testing.assert_array_equal(plan.run(x).array, np.arange(100.0))
        idx.array[:] = np.arange(100)
    pool.destroy("idx")
    pool.destroy("x")


@pytest.mark.parametrize("form", ["auto", *GATHER_FORMS])
@pytest.mark.parametrize("bad", [-1, 100, 1 << 40])
def test_an_index_out_of_range_is_named_and_nothing_stays(
    pool: hugepool.Pool, form: Any, bad: int
) -> None:
    x = pool.put("x", np.arange(100.0))
    before = names(pool)
    idx = np.arange(90)
    idx[37] = bad
    with pytest.raises(hugepool.IndexOutOfRangeError, match=rf"{bad} at position 37"):
        pool.plan_gather(idx, x, form=form, name="p")
    assert names(pool) == before
    pool.destroy("x")


def test_wrong_arguments_are_refused_and_nothing_stays(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(100.0))
    table = pool.put("table", np.zeros((10, 10)))
    A = pool.put("A", graph(50, 100, 3))
    before = names(pool)
    refused = hugepool.InvalidSpecError
    calls: list[Any] = [
        lambda: pool.plan_gather([1], table),
        lambda: pool.plan_gather([0.5], x),
        lambda: pool.plan_gather([1], x, uses=0),
        lambda: pool.plan_gather([1], x, form="ordered"),
        lambda: pool.plan_gather([1], x, name="no/name"),
        lambda: pool.plan_gather([1], x, name="n" * 120),
        lambda: pool.plan_gather([1], x, workers=0),
        lambda: pool.plan_gather([1], A),
        lambda: pool.plan_matvec(x),
        lambda: pool.plan_matvec(A, storage="tight"),  # type: ignore[arg-type]
        lambda: pool.plan_matvec(A, form="best"),  # type: ignore[arg-type]
        lambda: pool.plan_matvec(A, uses=-1),
        lambda: pool.plan_rmatvec(A, form="ordered"),
        lambda: pool.plan_rmatvec(A, storage="tight"),  # type: ignore[arg-type]
    ]
    for number, call in enumerate(calls):
        with pytest.raises(refused):
            call()
            pytest.fail(f"call {number} was let through")
        assert names(pool) == before
    with pytest.raises(hugepool.ArrayExistsError):
        pool.plan_gather([1], x, name="x")
    assert names(pool) == before
    plan = pool.plan_gather([1, 2], x)
    out = pool.create("out", 2)
    sealed = pool.put("sealed", np.zeros(2))
    for arguments in (
        (np.zeros(99),),
        (np.zeros(100, "f4"),),
        (x, sealed),
        (x, x),
        (x, pool.create("wide", 3)),
        (x, pool.create("ints", 2, "i8")),
    ):
        with pytest.raises(hugepool.HugepoolError):
            plan.run(*arguments)
    assert not out.array.any() and not sealed.array.any()
    del plan
    for name in names(pool):
        pool.destroy(name)


def test_an_open_matrix_cannot_be_planned(pool: hugepool.Pool) -> None:
    A = pool.put("A", graph(50, 100, 3), seal=False)
    with pytest.raises(hugepool.InvalidSpecError, match="seal"):
        pool.plan_matvec(A)
    pool.destroy("A")


def test_compact_storage_rounds_and_exact_does_not(pool: hugepool.Pool) -> None:
    matrix = graph(400, 300, 5)
    matrix.data += 1 / 3
    x = np.random.default_rng(8).random(300)
    A = pool.put("A", matrix)
    exact = pool.plan_matvec(A).run(x).array
    np.testing.assert_array_equal(exact, matrix @ x)
    compact = pool.plan_matvec(A, storage="compact", form="narrow").run(x).array
    bound = 2.0**-23 * (abs(matrix) @ abs(x))
    assert (abs(compact - exact) <= bound).all()
    assert (compact != exact).any()
    pool.destroy("A")


def test_empty_plans(pool: hugepool.Pool) -> None:
    sparse = importlib.import_module("scipy.sparse")
    x = pool.put("x", np.arange(4.0))
    for form in GATHER_FORMS:
        assert pool.plan_gather([], x, form=form).run(x).array.shape == (0,)  # type: ignore[arg-type]
    for rows, columns in ((0, 4), (3, 0), (3, 4), (1, 1)):
        A = pool.put("A", sparse.csr_array((rows, columns), dtype="f8"))
        for form in ("auto", *MATVEC_FORMS):
            plan = pool.plan_matvec(A, form=form, storage="auto")  # type: ignore[arg-type]
            assert plan.run(np.ones(columns)).array.tolist() == [0.0] * rows
        A.detach()
        pool.destroy("A")
    pool.destroy("x")


def test_a_named_plan_of_an_empty_or_0d_index_is_attached_and_run(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(9.0))
    for idx in (np.zeros(0, "i8"), np.zeros((0, 3), "i4"), np.array(4)):
        for form in GATHER_FORMS:
            pool.plan_gather(idx, x, name="p", form=form)  # type: ignore[arg-type]
            plan = pool.attach("p")
            np.testing.assert_array_equal(plan.run(x).array, np.take(x.array, idx))
            assert plan.describe().payload_nbytes > idx.nbytes // 2
            plan.detach()
            pool.destroy("p")


def test_a_plan_that_is_not_finished_is_said_to_be_under_way(pool: hugepool.Pool) -> None:
    with pool._record("p", 0), pytest.raises(hugepool.ArrayBusyError, match="still being made"):
        pool.attach("p")


def test_a_detached_plan_says_so(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(9.0))
    plan = pool.plan_gather([1], x, name="p", form="binned")
    plan.detach()
    with pytest.raises(hugepool.DetachedError, match="'p' is detached"):
        plan.run(x)


@pytest.mark.parametrize("uses", [True, 0, -3, 1.5])
def test_no_such_count_of_uses(pool: hugepool.Pool, uses: Any) -> None:
    x = pool.put("x", np.arange(9.0))
    with pytest.raises(hugepool.InvalidSpecError, match="uses"):
        pool.plan_gather([1], x, uses=uses)


def test_an_unknown_dtype_of_vectors_is_refused(pool: hugepool.Pool) -> None:
    A = pool.put("A", graph(50, 100, 3))
    for dtype in (object(), "O", ">f8"):
        with pytest.raises(hugepool.InvalidSpecError):
            pool.plan_matvec(A, dtype=dtype)  # type: ignore[arg-type]
