"""What a client may do with shared objects, against a private coordinator."""

from __future__ import annotations

import bz2
import gc
import gzip
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool_common.paths import ADDRESS_VARIABLE


@pytest.fixture(scope="module")
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_arrays_left(pool: hugepool.Pool) -> Iterator[None]:
    yield
    for info in pool.list():
        pool.destroy(info.spec.name)


def test_create_gives_zeros_that_are_ours_to_write(pool: hugepool.Pool) -> None:
    with pool.create("x", (3, 4), "i4") as x:
        assert x.array.shape == (3, 4)
        assert x.array.dtype == np.dtype("i4")
        assert not x.array.any()
        x.array[1, 2] = 5
        y = pool.attach("x")
        assert y.array[1, 2] == 5
        assert not y.array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            y.array.flags.writeable = True
        y.detach()


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), 0, (1,) * 64, np.int64(3), [2, 2]])
@pytest.mark.parametrize("dtype", ["f8", np.float32, bool, "c16", "<i2"])
def test_shapes_and_dtypes_that_numpy_has(
    pool: hugepool.Pool, shape: object, dtype: object
) -> None:
    expected = np.zeros(shape, dtype)  # type: ignore[call-overload]
    x = pool.create("x", shape, dtype)  # type: ignore[arg-type]
    assert x.array.shape == expected.shape
    assert x.array.dtype == expected.dtype
    again = pool.attach("x")
    np.testing.assert_array_equal(again.array, expected)


@pytest.mark.parametrize(
    "name, shape, dtype",
    [
        ("", 1, "f8"),
        ("../x", 1, "f8"),
        ("a/b", 1, "f8"),
        ("x\n", 1, "f8"),
        ("x" * 129, 1, "f8"),
        ("\u00e9", 1, "f8"),
        ("x", -1, "f8"),
        ("x", (2, -3), "f8"),
        ("x", 2**63, "f8"),
        ("x", (2**40, 2**40), "f8"),
        ("x", (0, 2**40, 2**40), "f8"),
        ("x", 1.5, "f8"),
        ("x", True, "f8"),
        ("x", "3", "f8"),
        ("x", None, "f8"),
        ("x", (1,) * 65, "f8"),
        ("x", 1, "O"),
        ("x", 1, "U5"),
        ("x", 1, "f8,i4"),
        ("x", 1, ">f8"),
        ("x", 1, "no such dtype"),
        ("x", 1, "V0"),
    ],
)
def test_what_no_array_can_be_is_refused(
    pool: hugepool.Pool, name: str, shape: object, dtype: object
) -> None:
    with pytest.raises(hugepool.InvalidSpecError):
        pool.create(name, shape, dtype)  # type: ignore[arg-type]
    assert pool.list() == ()


def test_names_are_taken_once_and_free_again(pool: hugepool.Pool) -> None:
    pool.create("x", 4)
    with pytest.raises(FileExistsError):
        pool.create("x", 4)
    pool.destroy("x")
    with pytest.raises(KeyError):
        pool.attach("x")
    with pytest.raises(KeyError):
        pool.destroy("x")
    pool.create("x", 5)


def test_a_destroyed_array_stays_readable_where_it_is_mapped(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(10.0))
    array = x.array
    pool.destroy("x")
    del x
    np.testing.assert_array_equal(array, np.arange(10.0))


def test_seal_waits_for_no_view_but_refuses(pool: hugepool.Pool) -> None:
    x = pool.create("x", 10)
    tail = x.array[5:]
    with pytest.raises(BufferError, match="1 in this process"):
        x.seal()
    tail[0] = 7  # nothing has changed: still ours to write
    del tail
    x.seal()
    assert x.sealed
    assert x.array[5] == 7
    assert not x.array.flags.writeable
    with pytest.raises(PermissionError):
        pool.attach("x", readonly=False)


def test_seal_refuses_while_another_handle_maps_it_writable(pool: hugepool.Pool) -> None:
    x = pool.create("x", 10)
    other = pool.attach("x", readonly=False)
    with pytest.raises(BufferError):
        x.seal()
    x.array[0] = 1  # mapped as before
    other.detach()
    x.seal()


def test_detach_refuses_under_a_live_view(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(10.0))
    view = x.array[::2]
    with pytest.raises(BufferError):
        x.detach()
    del view
    x.detach()
    x.detach()
    with pytest.raises(hugepool.DetachedError):
        _ = x.array


def test_repr_shows_the_pages(pool: hugepool.Pool) -> None:
    text = repr(pool.create("x", 10, huge_pages="off"))
    assert "'x' (10,) float64 80 B open, shm-4k (4K pages), 0 % huge" in text


def test_a_matrix_is_one_object_without_a_copy(pool: hugepool.Pool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    source = sparse.random_array((300, 200), density=0.05, format="coo", rng=1)
    A = pool.put("A", source)
    assert (A.shape, A.nnz, A.sealed) == ((300, 200), source.nnz, True)
    B = pool.attach("A").as_scipy()
    np.testing.assert_array_equal(B.toarray(), source.toarray())
    C = pool.attach("A")
    assert np.shares_memory(C.as_scipy().data, C.data)
    assert np.shares_memory(C.as_scipy().indices, C.indices)
    assert np.shares_memory(C.as_scipy().indptr, C.indptr)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_empty_matrices(pool: hugepool.Pool, shape: tuple[int, int]) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    A = pool.put("A", sparse.csr_array(shape))
    y = pool.matvec(A, np.ones(shape[1]), workers=1)
    np.testing.assert_array_equal(y.array, np.zeros(shape[0]))


def test_a_contradictory_matrix_is_refused_and_nothing_shared(pool: hugepool.Pool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for part, place, value, error in (
        ("indices", 3, 99, "indices\\[3\\]"),
        ("indices", 0, -1, "indices\\[0\\]"),
        ("indptr", 2, 1000, "fall"),
        ("indptr", -1, 3, "fall"),
        ("indptr", -1, 99, "end with nnz"),
    ):
        matrix = sparse.csr_array(np.ones((4, 5)))
        getattr(matrix, part)[place] = value
        with pytest.raises(hugepool.InvalidMatrixError, match=error):
            pool.put("A", matrix)
        assert pool.list() == ()


def test_load_npy_without_a_second_copy(pool: hugepool.Pool, tmp_path: Path) -> None:
    source = np.random.default_rng(1).random((100, 7)).astype("f4")
    np.save(tmp_path / "x.npy", source)
    seen: list[tuple[int, int]] = []
    x = pool.load("x", tmp_path / "x.npy", progress=lambda *done: seen.append(done))
    np.testing.assert_array_equal(x.array, source)
    assert x.sealed
    assert seen[-1] == (source.nbytes, source.nbytes)


def test_load_matrices(pool: hugepool.Pool, tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    from scipy.io import mmwrite

    source = sparse.random_array((30, 20), density=0.2, format="csr", rng=1)
    mmwrite(tmp_path / "a.mtx", source)
    (tmp_path / "b.mtx.gz").write_bytes(gzip.compress((tmp_path / "a.mtx").read_bytes()))
    sparse.save_npz(tmp_path / "c.npz", source)
    sparse.save_npz(tmp_path / "d.npz", source.tocoo())
    for name in ("a.mtx", "b.mtx.gz", "c.npz", "d.npz"):
        matrix = pool.load(name, tmp_path / name)
        np.testing.assert_allclose(matrix.as_scipy().toarray(), source.toarray(), rtol=1e-15)


def test_files_that_hold_something_else(pool: hugepool.Pool, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pool.load("x", tmp_path / "absent.npy")
    with pytest.raises(FileNotFoundError):
        pool.load("x", tmp_path / "absent.mtx")
    for name in ("x.npy", "x.mtx", "x.npz", "x.mtx.gz"):
        (tmp_path / name).write_bytes(b"something else altogether")
        with pytest.raises(ValueError):
            pool.load("x", tmp_path / name)
    np.save(tmp_path / "cut.npy", np.arange(1000.0))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-8])
    with pytest.raises(hugepool.InvalidSpecError, match="cut short"):
        pool.load("x", tmp_path / "cut.npy")
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    fortran = pool.load("fortran", tmp_path / "fortran.npy")
    np.testing.assert_array_equal(fortran.array, np.arange(6.0).reshape(2, 3))
    pool.destroy("fortran")
    np.save(tmp_path / "object.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(hugepool.InvalidSpecError):
        pool.load("x", tmp_path / "object.npy")
    assert pool.list() == ()


@pytest.mark.parametrize("name", ["x.mtx.gz", "x.mtx.bz2", "x.npz"])
def test_damaged_files_are_named(pool: hugepool.Pool, tmp_path: Path, name: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    text = b"%%MatrixMarket matrix coordinate real general\n3 3 2\n1 1 1.0\n2 3 2.5\n"
    path = tmp_path / name
    if name.endswith(".npz"):
        sparse.save_npz(path, sparse.csr_array(np.eye(30)))
    else:
        path.write_bytes((gzip if name.endswith("gz") else bz2).compress(text))
    pool.load("good", path)
    pool.destroy("good")
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            pool.load("x", path)
        except (hugepool.InvalidMatrixError, hugepool.InvalidSpecError) as error:
            assert str(path) in str(error)
        else:
            pool.destroy("x")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((hugepool.InvalidMatrixError, hugepool.InvalidSpecError), match=name):
        pool.load("x", path)
    assert pool.list() == ()


def test_a_file_that_claims_too_much_is_an_error(pool: hugepool.Pool, tmp_path: Path) -> None:
    pytest.importorskip("scipy.sparse")
    claims = "%%MatrixMarket matrix coordinate real general\n100000000000 3 1\n1 1 1.0\n"
    (tmp_path / "x.mtx").write_text(claims)
    with pytest.raises(hugepool.HugepoolError):
        pool.load("x", tmp_path / "x.mtx")
    np.savez(tmp_path / "x.npz", indptr=[0], indices=[], data=[], shape=[-1, 5])
    with pytest.raises(hugepool.InvalidMatrixError):
        pool.load("x", tmp_path / "x.npz")


def test_entries_may_repeat_as_in_scipy(pool: hugepool.Pool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    repeated = sparse.csr_array(([1.0, 1.0, 1.0], [0, 0, 0], [0, 3]), shape=(1, 1))
    A = pool.put("A", repeated)
    assert pool.matvec(A, np.ones(1), workers=1).array[0] == 3.0


def test_operands_that_do_not_fit(pool: hugepool.Pool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    A = pool.put("A", sparse.csr_array(np.eye(4)))
    x = pool.put("x", np.arange(4.0))
    cases: tuple[Callable[[], object], ...] = (
        lambda: pool.matvec(A, np.ones(5)),
        lambda: pool.matvec("x", x),
        lambda: pool.matvec(A, x, workers=0),
        lambda: pool.gather(x, np.ones(3)),
        lambda: pool.gather(x, np.zeros(3, int), out="x"),
        lambda: pool.gather(pool.put("s", np.float64(1)), np.zeros(3, int)),
        lambda: pool.matvec(A, x, implementation="no such one"),
    )
    for case in cases:
        with pytest.raises((hugepool.InvalidSpecError, hugepool.ArraySealedError)):
            case()
    wrong = pool.create("wrong", 9)
    with pytest.raises(hugepool.InvalidSpecError, match="does not fit"):
        pool.matvec(A, x, out="wrong")
    assert not wrong.array.any()
    assert [info.spec.name for info in pool.list()] == ["A", "s", "wrong", "x"]


def test_a_handle_stands_for_its_array_not_for_its_name(pool: hugepool.Pool) -> None:
    old = pool.put("v", np.arange(10.0))
    writable = pool.create("w", 3)
    for name in ("v", "w"):
        pool.destroy(name)
    pool.put("v", np.full(10, -7.0))
    replaced = pool.create("w", 2)
    with pytest.raises(hugepool.SegmentChangedError, match="another has its name"):
        pool.gather(old, [1, 2, 3])
    with pytest.raises(hugepool.SegmentChangedError):
        writable.seal()
    writable.array[:] = 4  # still ours, as it was
    assert not pool.attach("w").sealed
    replaced.seal()
    np.testing.assert_array_equal(old.array, np.arange(10.0))


def test_a_result_without_a_name_goes_with_its_last_handle(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(100.0))
    for _ in range(5):
        kept = pool.gather(x, np.arange(50)).array
    gc.collect()
    assert [info.spec.name for info in pool.list()] == ["x"]
    np.testing.assert_array_equal(kept, np.arange(50.0))
    result = pool.gather(x, [3])
    assert len(pool.list()) == 2
    result.detach()
    assert len(pool.list()) == 1


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", "<u2", "<i4", "<u4", "<u8", ">i8", ">i4"])
def test_indices_of_every_integer_dtype(pool: hugepool.Pool, dtype: str) -> None:
    x = pool.put("x", np.arange(100.0))
    idx = np.array([3, 1, 99, 0], dtype)
    np.testing.assert_array_equal(pool.gather(x, idx, workers=np.int64(1)).array, idx)  # type: ignore[arg-type]
    assert pool.gather(x, []).array.shape == (0,)


def test_what_no_operand_can_be(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(4.0))
    out = np.zeros(1)
    for case in (
        lambda: pool.gather(x, [1], out=out),  # type: ignore[arg-type]
        lambda: pool.gather(np.arange(4.0), [1]),  # type: ignore[arg-type]
        lambda: pool.gather(x, np.array([True])),
        lambda: pool.matvec(np.eye(4), x),  # type: ignore[arg-type]
        lambda: pool.create("y", 3, page_size="2m"),  # type: ignore[arg-type]
        lambda: pool.create("y", 3, huge_pages=True),  # type: ignore[arg-type]
        lambda: pool.put("y", np.ma.masked_array([1.0], [True])),
        lambda: pool.timed("", 1).__enter__(),
        lambda: pool.timed("step", -1).__enter__(),
        lambda: pool.timed("step", 2**70).__enter__(),
        lambda: pool.timed("\ud800", 1).__enter__(),
    ):
        with pytest.raises(hugepool.InvalidSpecError):
            case()
    with pytest.raises(TypeError, match="hugepages"):
        pool.create("y", 3, hugepages="on")  # type: ignore[call-arg]
    assert [info.spec.name for info in pool.list()] == ["x"]
    with pool.timed("step", np.int64(4)):  # type: ignore[arg-type]
        pass


def test_bad_structures_of_other_formats_never_reach_scipy_s_conversions(
    pool: hugepool.Pool, tmp_path: Path
) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for kind in ("csc", "bsr", "coo", "csr"):
        matrix = sparse.random_array((30, 30), density=0.2, format=kind, rng=1)
        places = matrix.coords[1] if kind == "coo" else matrix.indices
        places.flags.writeable = True
        places[-1] = 99_999_999
        with pytest.raises(hugepool.InvalidMatrixError):
            pool.put("A", matrix)
        np.savez(
            tmp_path / "a.npz",
            format=kind.encode(),
            shape=(30, 30),
            data=matrix.data,
            **(
                {"row": matrix.coords[0], "col": matrix.coords[1]}
                if kind == "coo"
                else {"indices": matrix.indices, "indptr": matrix.indptr}
            ),
        )
        with pytest.raises(hugepool.InvalidMatrixError):
            pool.load("A", tmp_path / "a.npz")
    for shape in ((5,), (2, 3, 4)):
        with pytest.raises(hugepool.InvalidMatrixError, match="two axes"):
            pool.put("A", sparse.coo_array(np.ones(shape)))
    assert pool.list() == ()


def test_room_behind_the_last_entry_is_left_out(pool: hugepool.Pool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    roomy = sparse.csr_array(np.eye(3))
    roomy.indices = np.append(roomy.indices, [0, 0]).astype(np.int32)
    roomy.data = np.append(roomy.data, [9.0, 9.0])
    assert pool.put("A", roomy).nnz == 3


def test_an_output_is_used_again(pool: hugepool.Pool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    A = pool.put("A", sparse.csr_array(np.eye(4) * 2))
    first = pool.matvec(A, np.ones(4), out="y", workers=1)
    second = pool.matvec(A, np.full(4, 3.0), out="y", workers=1)
    third = pool.matvec(A, np.full(4, 4.0), out=second, workers=1)
    assert third is second
    np.testing.assert_array_equal(first.array, 8.0)  # the same memory


def test_a_result_can_be_sealed_while_workers_still_hold_it(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(10.0))
    for _ in range(20):
        g = pool.gather(x, np.arange(5), out="g", workers=1)
        g.seal()
        pool.destroy("g")


OPERATIONS: list[tuple[Callable[[hugepool.Pool], object], str]] = [
    (lambda pool: pool.attach("x") + 1, r"no x \+ int.*\.array"),
    (lambda pool: 1 - pool.attach("x"), r"no int - x.*\.array"),
    (lambda pool: pool.attach("x") @ pool.attach("x"), r"no x @ x.*\.array"),
    (lambda pool: pool.attach("A") @ np.ones(3), r"no A @ ndarray.*pool\.matvec\(A, x\).*as_scipy"),
    (lambda pool: pool.attach("A") @ pool.attach("x"), r"no A @ x: write pool\.matvec"),
    (lambda pool: pool.attach("x") @ pool.attach("A"), r"no x @ A: write pool\.rmatvec"),
    (lambda pool: np.ones(3) @ pool.attach("A"), r"no ndarray @ A: write pool\.rmatvec"),
    (lambda pool: 2 * pool.attach("A"), r"no int \* A.*as_scipy"),
    (lambda pool: np.asarray(pool.attach("A")), r"the matrix 'A' is no array.*as_scipy"),
    (lambda pool: pool.put("B", pool.attach("A")), r"the matrix 'A' is no array.*as_scipy"),
    (pickle.dumps, r"session of this process.*pool\.address"),
]


@pytest.mark.parametrize(("operation", "words"), OPERATIONS)
def test_what_a_handle_is_not_asked_names_what_to_write(
    pool: hugepool.Pool, operation: Callable[[hugepool.Pool], object], words: str
) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    pool.put("x", np.arange(3.0))
    pool.put("A", sparse.eye_array(3, format="csr"))
    with pytest.raises(TypeError, match=words):
        operation(pool)


def test_who_knows_arrays_computes_with_a_handle_of_one(pool: hugepool.Pool) -> None:
    x, v = pool.put("x", np.arange(3.0)), np.ones(3)
    for found in (x + v, v + x, x + np.float64(1)):
        np.testing.assert_array_equal(found, [1, 2, 3])
    assert x @ v == 3 and v @ x == 3
    with pytest.raises(AttributeError, match=r"write \.array\.sum"):
        x.sum()
    with pytest.raises(AttributeError, match=r"no attribute 'som'$"):
        x.som()
    A = pool.put("A", pytest.importorskip("scipy.sparse").eye_array(3, format="csr"))
    with pytest.raises(AttributeError, match=r"write \.as_scipy\(\)\.T"):
        A.T  # noqa: B018


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (">f8", "array.astype('<f8')"),
        (">u2", "array.astype('<u2')"),
        ("M8[ns]", "array.view('i8')"),
        ([("a", "f8"), ("b", "i4")], "array['a']"),
        ("U3", ""),
    ],
)
def test_a_dtype_that_cannot_be_shared_says_what_can(
    pool: hugepool.Pool, dtype: Any, remedy: str
) -> None:
    with pytest.raises(hugepool.InvalidSpecError, match="cannot be shared") as caught:
        pool.put("x", np.zeros(3, dtype))
    assert caught.value.remedy.endswith(remedy) and bool(caught.value.remedy) == bool(remedy)


def test_a_mask_is_no_index_but_stands_for_one(pool: hugepool.Pool) -> None:
    pool.put("x", np.arange(3.0))
    with pytest.raises(hugepool.InvalidSpecError, match="flatnonzero"):
        pool.gather("x", [True, False, True])


def test_a_taken_name_points_to_publish(pool: hugepool.Pool) -> None:
    pool.put("x", np.arange(3.0))
    with pytest.raises(hugepool.ArrayExistsError, match=r"made \(at x\); .* or publish it"):
        pool.put("x", np.arange(3.0))


def test_pages_of_one_mebibyte_and_more_say_what_they_are(pool: hugepool.Pool) -> None:
    x = pool.create("x", 1 << 20)
    assert x.pages.length >= 8 << 20
    assert x.pages.present_bytes == x.pages.length
    if x.pages.huge_bytes < x.pages.length:
        assert x.pages.reasons
    assert x.prove() == x.pages


def test_connect_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(hugepool.InvalidSpecError):
        hugepool.connect("embedded", huge_pages="maybe")  # type: ignore[arg-type]
    with pytest.raises(hugepool.InvalidSpecError):
        hugepool.connect("tcp://10.1.2.3:5555")
    with pytest.raises(ConnectionError, match="hugepool serve"):
        hugepool.connect("ipc:///nowhere/at/all.sock")
    monkeypatch.setenv(ADDRESS_VARIABLE, "ipc:///nowhere/else.sock")
    with pytest.raises(hugepool.CoordinatorUnreachableError, match="nowhere/else"):
        hugepool.connect()


def test_a_closed_pool_says_so(tmp_path: Path) -> None:
    pool = hugepool.connect("embedded")
    kept = pool.put("x", np.arange(3.0)).array
    pool.close()
    pool.close()
    with pytest.raises(hugepool.DetachedError):
        pool.list()
    np.testing.assert_array_equal(kept, [0, 1, 2])
