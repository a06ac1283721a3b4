"""Generations, declared rows, and what a seal makes sure of."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import hugepool
from hugepool_common.checksum import checksum_of_buffers
from hugepool_common.spec import ArraySpec
from support.extras import sparse
from support.host import settles
from support.service import Service


@pytest.fixture(scope="module")
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_arrays_left(pool: hugepool.Pool) -> Iterator[None]:
    yield
    for info in pool.list():
        pool.destroy(info.spec.name)


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


# Generations --------------------------------------------------------------------


def test_readers_keep_the_generation_that_they_attached(pool: hugepool.Pool) -> None:
    with hugepool.connect(pool.address) as other:
        first = pool.publish("x", np.arange(10.0))
        assert (first.name, first.generation, first.sealed) == ("x", 1, True)
        reader = other.attach("x")
        second = pool.publish("x", np.arange(20.0))
        assert (second.name, second.generation) == ("x", 2)
        np.testing.assert_array_equal(reader.array, np.arange(10.0))
        assert reader.generation == 1
        assert len(other.attach("x").array) == 20
        assert names(pool) == ["x"]
        path = reader.info.segment.path
        assert path != second.info.segment.path
        first.detach()
        assert other.stats().arrays and os.path.exists(path)
        reader.detach()
        assert settles(lambda: not os.path.exists(path)), "nobody holds it, and it stays"
        assert os.path.exists(second.info.segment.path)


def test_a_sealed_handle_is_published_itself(pool: hugepool.Pool) -> None:
    pool.publish("x", np.zeros(4))
    made = pool.create("next", 6)
    made.array[:] = 3
    with pytest.raises(hugepool.InvalidSpecError, match="not sealed"):
        pool.publish("x", made)
    made.seal()
    inode = made.info.segment.inode
    assert pool.publish("x", made) is made
    assert (made.name, made.generation, made.info.segment.inode) == ("x", 2, inode)
    assert names(pool) == ["x"]
    pool.create("next", 2)  # the name is free
    assert pool.attach("x").array.tolist() == [3] * 6
    with pytest.raises(TypeError, match="pages are chosen"):
        pool.publish("x", made, page_size="4K")
    with pytest.raises(hugepool.InvalidSpecError, match="in place of itself"):
        pool.publish("x", made)


def test_matrices_and_arrays_take_turns_under_a_name(pool: hugepool.Pool) -> None:
    matrix = sparse().random_array((30, 40), density=0.2, format="csr", rng=1)
    pool.publish("x", np.zeros(4))
    A = pool.publish("x", matrix)
    assert isinstance(A, hugepool.SharedMatrix)
    assert (pool.attach("x").as_scipy() != matrix).nnz == 0
    assert pool.publish("x", np.zeros(())).generation == 3


def test_a_publication_that_fails_leaves_nothing(pool: hugepool.Pool) -> None:
    with pytest.raises(hugepool.InvalidSpecError):
        pool.publish("x", np.array(["text"]))
    with pytest.raises(hugepool.InvalidSpecError):
        pool.publish("../x", np.zeros(3))
    assert names(pool) == []
    mine = pool.create("x", 3)
    with pytest.raises(hugepool.ArrayBusyError, match="not sealed"):
        pool.publish("x", np.zeros(3))
    assert names(pool) == ["x"]
    mine.array[:] = 1
    mine.seal()
    with pytest.raises(hugepool.NotEnoughPagesError):
        pool.publish("x", np.zeros(3), page_size="1G", huge_pages="on", backing="hugetlbfs-1g")
    assert pool.attach("x").array.tolist() == [1, 1, 1]
    assert pool.attach("x").generation == 1


def test_a_result_that_is_published_stays_without_its_handle(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(8.0))
    result = pool.gather(x, np.array([1, 1]), workers=1)
    pool.publish("chosen", result.seal())
    del result
    gc.collect()
    assert names(pool) == ["chosen", "x"]
    assert pool.attach("chosen").array.tolist() == [1, 1]


PUBLISHER = """
import hugepool, numpy as np, sys
pool = hugepool.connect()
done = []
while len(done) < 40:
    try:
        done.append(pool.publish("hot", np.full(100, int(sys.argv[1]))).generation)
    except hugepool.ArrayBusyError:
        pass  # the other one is at it
print(*done)
"""


def test_publishers_take_turns(pool: hugepool.Pool) -> None:
    environment = {**os.environ, "HUGEPOOL_ADDRESS": pool.address}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(number)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in (1, 2)
    ]
    told = [
        [int(word) for word in process.communicate(timeout=240)[0].split()] for process in processes
    ]
    assert [len(own) for own in told] == [40, 40]
    assert all(own == sorted(own) for own in told)
    assert sorted(told[0] + told[1]) == list(range(1, 81)), "a generation was lost or given twice"
    assert pool.attach("hot").generation == 80
    assert names(pool) == ["hot"]


# Rows ---------------------------------------------------------------------------


def test_writers_of_disjoint_rows(pool: hugepool.Pool) -> None:
    made = pool.create("x", (10, 3))
    with hugepool.connect(pool.address) as one, hugepool.connect(pool.address) as two:
        lower = one.attach("x", readonly=False, rows=(0, 4))
        upper = two.attach("x", readonly=False, rows=(4, 10))
        assert lower.rows == (0, 4) and made.rows is None
        assert lower.array.shape == (4, 3) and len(upper) == 6 and upper.shape == (10, 3)
        lower.array[:] = 1
        upper.array[...] = 2
        for rows in [(3, 5), (0, 10), (9, 10), (4, 5)]:
            with pytest.raises(hugepool.ArrayBusyError, match=str(os.getpid())):
                one.attach("x", readonly=False, rows=rows)
        lower.detach()
        with two.attach("x", readonly=False, rows=(0, 2)) as again:
            again.array[:] = 5
        upper.detach()
    np.testing.assert_array_equal(made.array[:, 0], [5, 5, 1, 1, 2, 2, 2, 2, 2, 2])
    made.seal()


@pytest.mark.parametrize(
    "rows", [(0, 11), (-1, 3), (3, 2), (2, 2), 5, "ab", (1, 2, 3), (0.5, 1), (None, None)]
)
def test_rows_that_are_none(pool: hugepool.Pool, rows: object) -> None:
    made = pool.create("x", 10)
    with pytest.raises(hugepool.InvalidSpecError):
        pool.attach("x", readonly=False, rows=rows)  # type: ignore[arg-type]
    assert pool.describe(made.name).array.readers == 1


def test_who_has_no_rows_to_declare(pool: hugepool.Pool) -> None:
    pool.create("x", 10)
    pool.create("scalar", ())
    pool.put("A", sparse().eye_array(5, format="csr"), seal=False)
    with pytest.raises(hugepool.InvalidSpecError, match="only a writer"):
        pool.attach("x", rows=(0, 1))
    for name in ("scalar", "A"):
        with pytest.raises(hugepool.InvalidSpecError, match="rows"):
            pool.attach(name, readonly=False, rows=(0, 1))


# Seals --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), 0, 7, (200, 3)])
def test_a_sealed_handle_knows_its_checksum(pool: hugepool.Pool, shape: object) -> None:
    x = pool.create("x", shape, "f4")  # type: ignore[arg-type]
    assert x.checksum == ""
    x.array[...] = 1.5
    content = memoryview(x.array.tobytes())
    x.seal()
    assert x.checksum == checksum_of_buffers([content])
    assert pool.attach("x").checksum == x.checksum == pool.list()[0].checksum


@pytest.mark.parametrize(
    "role, position, value, kind",
    [
        ("indices", 2, 4, hugepool.IndexOutOfRangeError),
        ("indices", 0, -1, hugepool.IndexOutOfRangeError),
        ("indptr", 0, 1, hugepool.InvalidMatrixError),
        ("indptr", 1, 3, hugepool.InvalidMatrixError),
        ("indptr", 3, 2, hugepool.InvalidMatrixError),
    ],
)
def test_a_matrix_that_is_none_is_not_sealed_and_stays_ours(
    pool: hugepool.Pool, role: str, position: int, value: int, kind: type[Exception]
) -> None:
    A = pool.make_blank(ArraySpec("A", (3, 4), "<f8", "csr", 3, "<i4"))
    assert isinstance(A, hugepool.SharedMatrix)
    A.indptr[:] = [0, 1, 2, 3]
    A.indices[:] = [0, 3, 2]
    good = int(getattr(A, role)[position])
    getattr(A, role)[position] = value
    with pytest.raises(kind) as caught:
        A.seal()
    if isinstance(caught.value, hugepool.IndexOutOfRangeError):
        assert caught.value.position == position
    assert not A.sealed and A.writable
    getattr(A, role)[position] = good
    assert A.seal().checksum


# Over a restart -----------------------------------------------------------------


def test_generations_and_checksums_outlive_the_coordinator(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        old = pool.publish("x", np.arange(4.0))
        new = pool.publish("x", np.arange(5.0))
        gone = pool.put("gone", np.arange(6.0), backing="shm-4k")
        service.kill()
        os.unlink(gone.info.segment.path)
        service.start()
        found = pool.attach("x")
        assert (found.generation, found.checksum) == (2, new.checksum)
        assert pool.verify("x").checksum == new.checksum
        assert gone.lost and not (new.lost or old.lost)
        assert old.array.tolist() == [0, 1, 2, 3] and gone.array.tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(hugepool.ArrayLostError):
            pool.verify("gone")
        assert pool.publish("x", np.arange(6.0)).generation == 3
        assert pool.publish("gone", np.arange(7.0)).array[6] == 6
        assert names(pool) == ["gone", "x"]
