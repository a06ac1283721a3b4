"""Files of arrays in and out: straight into shared memory, and hostile ones leave nothing."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import hugepool
from hugepool.cli import hugepool as group
from support.extras import need, sparse


@pytest.fixture(scope="module")
def pool() -> Iterator[hugepool.Pool]:
    with hugepool.connect("embedded") as pool:
        yield pool


@pytest.fixture(autouse=True)
def no_arrays_left(pool: hugepool.Pool) -> Iterator[None]:
    yield
    for info in pool.list():
        pool.destroy(info.spec.name)


def get(pool: hugepool.Pool, name: str, path: Path) -> None:
    """``hugepool get``."""
    done = CliRunner().invoke(group, ["get", name, str(path), "--address", pool.address])
    assert done.exit_code == 0, done.output


ENDINGS = [".npy", ".npz", ".safetensors", ".arrow", ".feather"]


def need_for(ending: str) -> None:
    """What a format needs, or the test is skipped."""
    if ending in (".arrow", ".feather"):
        need("pyarrow")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "u2", "i1", "?"])
def test_out_and_in_again(pool: hugepool.Pool, tmp_path: Path, ending: str, dtype: str) -> None:
    need_for(ending)
    source = np.random.default_rng(1).integers(0, 2, 1000).astype(dtype)
    pool.put("x", source)
    get(pool, "x", tmp_path / f"x{ending}")
    seen: list[tuple[int, int]] = []
    again = pool.load("y", tmp_path / f"x{ending}", progress=lambda *done: seen.append(done))
    assert again.sealed
    assert again.dtype == source.dtype
    np.testing.assert_array_equal(again.array, source)
    assert seen[-1] == (source.nbytes, source.nbytes)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 0, 5), (1, 2, 3, 4)])
def test_shapes(pool: hugepool.Pool, tmp_path: Path, ending: str, shape: tuple[int, ...]) -> None:
    source = np.arange(int(np.prod(shape)), dtype="f4").reshape(shape)
    pool.put("x", source)
    get(pool, "x", tmp_path / f"x{ending}")
    again = pool.load("y", tmp_path / f"x{ending}")
    assert again.array.shape == shape
    np.testing.assert_array_equal(again.array, source)


def test_an_empty_column(pool: hugepool.Pool, tmp_path: Path) -> None:
    need_for(".arrow")
    pool.put("x", np.zeros(0))
    get(pool, "x", tmp_path / "x.arrow")
    assert pool.load("y", tmp_path / "x.arrow").array.shape == (0,)


@pytest.mark.parametrize("ending", ENDINGS)
def test_there_is_no_second_copy(pool: hugepool.Pool, tmp_path: Path, ending: str) -> None:
    need_for(ending)
    source = np.random.default_rng(1).random(12_000_000)  # 96 MB
    pool.put("x", source)
    get(pool, "x", tmp_path / f"x{ending}")
    del source
    allocated = 0
    if ending in (".arrow", ".feather"):
        arrow = importlib.import_module("pyarrow")
        allocated = arrow.default_memory_pool().max_memory()
    tracemalloc.start()  # NumPy's memory too
    try:
        again = pool.load("y", tmp_path / f"x{ending}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < again.nbytes / 2
    if ending in (".arrow", ".feather"):
        assert arrow.default_memory_pool().max_memory() - allocated < again.nbytes / 2


def test_a_large_array_of_fortran_order(pool: hugepool.Pool, tmp_path: Path) -> None:
    source = np.asfortranarray(np.arange(6_000_000, dtype="f8").reshape(3000, 2000))
    np.save(tmp_path / "x.npy", source)  # more than one chunk
    tracemalloc.start()
    try:
        x = pool.load("x", tmp_path / "x.npy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(x.array, source)
    assert peak < source.nbytes / 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_array_of_an_archive(pool: hugepool.Pool, tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.npz", a=np.arange(5), b=np.asfortranarray(np.eye(3)[:, :2]))
    assert pool.load("a", tmp_path / "x.npz", member="a").array.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(
        pool.load("b", tmp_path / "x.npz", member="b").array, np.eye(3)[:, :2]
    )
    with pytest.raises(hugepool.InvalidSpecError, match=r"which of its arrays.*had a, b.*member="):
        pool.load("c", tmp_path / "x.npz")
    with pytest.raises(hugepool.InvalidSpecError, match=r"no single array 'c'"):
        pool.load("c", tmp_path / "x.npz", member="c")


# Matrices -----------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("index", ["i4", "i8"])
def test_a_matrix_streams_from_its_archive(
    pool: hugepool.Pool, tmp_path: Path, compressed: bool, index: str
) -> None:
    scipy_sparse = sparse()
    source = scipy_sparse.random_array((4000, 3000), density=0.3, format="csr", rng=1)
    source.indptr, source.indices = source.indptr.astype(index), source.indices.astype(index)
    scipy_sparse.save_npz(tmp_path / "A.npz", source, compressed=compressed)
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        A = pool.load("A", tmp_path / "A.npz", progress=lambda *done: seen.append(done))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < A.nbytes / 2
    assert seen[-1][0] == seen[-1][1]
    assert A.indices.dtype == np.int32
    assert (A.as_scipy() != source).nnz == 0


def save_csr(path: Path, **changes: Any) -> None:
    """A 3 x 4 matrix as SciPy saves it, with some of it changed."""
    parts = {
        "format": np.array(b"csr"),
        "shape": np.array([3, 4]),
        "indptr": np.array([0, 1, 2, 3]),
        "indices": np.array([0, 1, 3]),
        "data": np.ones(3),
    }
    np.savez(path, **{**parts, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"indices": np.array([0, 1, 4])},
        {"indices": np.array([0, -1, 3])},
        {"indices": np.array([0, 2**32 + 1, 3])},  # 1, if its upper half were lost
        {"indptr": np.array([0, 2, 1, 3])},
        {"indptr": np.array([0, 1, 2, 4])},
        {"indptr": np.array([0, 1, 2])},
        {"indptr": np.array([0.0, 1, 2, 3])},
        {"indptr": np.array([[0, 1], [2, 3]])},
        {"data": np.ones(2)},
        {"data": np.array(["a", "b", "c"])},
        {"shape": np.array([3])},
        {"shape": np.array([-3, 4])},
        {"shape": np.array([2**62, 4])},
        {"shape": np.zeros(100_000, int)},
        {"shape": np.array(["3", "4"])},
    ],
)
def test_a_hostile_matrix_leaves_nothing(
    pool: hugepool.Pool, tmp_path: Path, changes: dict[str, Any]
) -> None:
    save_csr(tmp_path / "good.npz")
    pool.load("good", tmp_path / "good.npz")
    pool.destroy("good")
    save_csr(tmp_path / "A.npz", **changes)
    with pytest.raises((hugepool.InvalidMatrixError, hugepool.InvalidSpecError)):
        pool.load("A", tmp_path / "A.npz")
    assert pool.list() == ()


# Matrix Market ------------------------------------------------------------------

COORDINATES = b"%%MatrixMarket matrix coordinate pattern general\n3 3 2\n1 1"
DENSE = b"%%MatrixMarket matrix array real general\n"


@pytest.mark.parametrize(
    "content",
    [
        COORDINATES + b"\0\n3 3\n",
        COORDINATES + b"\n3 3\n\0",
        b"\0" + COORDINATES,
        DENSE + b"2 1\n1\n\0",
    ],
)
@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress])
def test_bytes_that_are_no_text_are_not_shown_to_a_parser_without_bounds(
    pool: hugepool.Pool, tmp_path: Path, content: bytes, pack: Any
) -> None:
    path = text_matrix(tmp_path, content, pack)
    with pytest.raises(hugepool.InvalidMatrixError, match="no text"):
        pool.load("A", path)
    assert pool.list() == ()


@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress])
def test_words_behind_the_last_number_need_no_end_of_line(
    pool: hugepool.Pool, tmp_path: Path, pack: Any
) -> None:
    A = pool.load("A", text_matrix(tmp_path, COORDINATES + b"\n3 3 and more", pack))
    assert A.as_scipy().toarray().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (0, 0)])
def test_a_dense_matrix_of_nothing(
    pool: hugepool.Pool, tmp_path: Path, shape: tuple[int, int]
) -> None:
    A = pool.load("A", text_matrix(tmp_path, DENSE + b"%d %d\n" % shape, None))
    assert (A.shape, A.nnz) == (shape, 0)


def text_matrix(directory: Path, content: bytes, pack: Any) -> Path:
    """A file of a Matrix Market text, perhaps packed."""
    sparse()
    ending = {None: "", gzip.compress: ".gz", bz2.compress: ".bz2"}[pack]
    path = directory / f"A.mtx{ending}"
    path.write_bytes(content if pack is None else pack(content))
    return path


# Headers of .npy ----------------------------------------------------------------


def npy(header: bytes, version: bytes = b"\1\0") -> bytes:
    """A .npy file of a header, whatever that says, and 8 bytes of data."""
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + bytes(8)


def described(shape: str, descr: str = "'<f8'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()


HEADERS = {
    "length cut": b"\x93NUMPY\1\0\7",
    "later version": npy(described("(1,)"), b"\3\0"),
    "open bracket": npy(b"((("),
    "indent": npy(b"  x\n y"),
    "deep": npy(b"-" * 9000 + b"1"),
    "keys of two kinds": npy(b"{1: 2, 'a': 3}"),
    "unhashable": npy(b"{[]: 1}"),
    "empty tuple": npy(described("(1,)", "()")),
    "odd fields": npy(described("(1,)", "[1]")),
    "negative": npy(described("(-1, -1)")),
    "more digits than Python shows": npy(described(f"(0x{'f' * 8000},)")),
    "many extents": npy(described(f"({'4611686018427387904,' * 400})")),
    "objects": npy(described("(1,)", "'|O'")),
    "nothing in an item": npy(described("(9,)", "'|V0'")),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_a_hostile_npy_header_leaves_nothing(
    pool: hugepool.Pool, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(hugepool.InvalidSpecError):
        pool.load("x", tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(hugepool.InvalidSpecError):
        pool.load("x", tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "A.npz", "w") as archive:
        for member in ("format", "shape", "indptr", "indices", "data"):
            archive.writestr(f"{member}.npy", content)
    with pytest.raises((hugepool.InvalidMatrixError, hugepool.InvalidSpecError)):
        pool.load("A", tmp_path / "A.npz")
    assert pool.list() == ()


def test_a_header_as_long_as_a_bomb_is_not_read(pool: hugepool.Pool, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(b" " * 100_000_000, b"\2\0"))
    assert (tmp_path / "x.npz").stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(hugepool.InvalidSpecError, match="a header of 100000000 bytes"):
            pool.load("x", tmp_path / "x.npz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("both", [False, True])
def test_a_member_that_cannot_be_so_long_has_no_room_made_for_it(
    pool: hugepool.Pool, tmp_path: Path, method: int, both: bool
) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("x.npy", npy(described("(10_000_000,)")))
        archive.filelist[0].file_size = 80_000_500
        if both:
            archive.filelist[0].compress_size = 80_000_500
    made: list[tuple[int, int]] = []
    with pytest.raises(hugepool.InvalidSpecError, match=r"cannot be in|beyond the end"):
        pool.load("x", tmp_path / "x.npz", progress=lambda *done: made.append(done))
    assert made == []


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zeros_that_are_nearly_nothing_in_the_file_are_read(
    pool: hugepool.Pool, tmp_path: Path, method: int
) -> None:
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", method, compresslevel=9) as archive,
        archive.open("x.npy", "w") as member,
    ):
        np.lib.format.write_array(member, np.zeros(4_000_000))
    x = pool.load("x", tmp_path / "x.npz")
    assert x.shape == (4_000_000,) and not x.array.any()


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_an_archive_with_a_changed_byte_is_an_error_or_another_array(
    pool: hugepool.Pool, tmp_path: Path, method: int
) -> None:
    saved = io.BytesIO()
    np.save(saved, np.arange(50.0))
    with zipfile.ZipFile(tmp_path / "good.npz", "w", method) as archive:
        archive.writestr("x.npy", saved.getvalue())
    good = (tmp_path / "good.npz").read_bytes()
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(changed)
        try:
            pool.load("x", tmp_path / "x.npz", member="x")
        except (hugepool.InvalidSpecError, hugepool.NotEnoughMemoryError):
            pass
        else:
            pool.destroy("x")
    assert pool.list() == ()


# safetensors --------------------------------------------------------------------


def tensors(header: Any, data: bytes = bytes(8)) -> bytes:
    """A safetensors file of a header, whatever that says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**changes: Any) -> dict[str, Any]:
    """The header of a tensor of two F32, with some of it changed."""
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def test_its_own_library_reads_ours_and_we_read_its(pool: hugepool.Pool, tmp_path: Path) -> None:
    need("safetensors.numpy")
    library = importlib.import_module("safetensors.numpy")
    source = {"w": np.arange(6, dtype="f4").reshape(2, 3), "b": np.arange(4, dtype="i8")}
    library.save_file(source, tmp_path / "model.safetensors", metadata={"by": "test"})
    for name, value in source.items():
        again = pool.load(name, tmp_path / "model.safetensors", member=name)
        np.testing.assert_array_equal(again.array, value)
        get(pool, name, tmp_path / f"{name}.safetensors")
        np.testing.assert_array_equal(
            library.load_file(tmp_path / f"{name}.safetensors")[name], value
        )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        tensors(b"not json"),
        tensors(b"[" * 100_000),
        tensors(b"[]"),
        tensors(b'{"t": 1}'),
        tensors(b'{"t":{"dtype":"F32"}, "t":{}}'),
        tensors(one(dtype="F128")),
        tensors(one(dtype=["F32"])),
        tensors(one(dtype="BF16", shape=[4])),
        tensors(one(shape=[3])),
        tensors(one(shape=[-2])),
        tensors(one(shape=[2.0])),
        tensors(one(shape=[True, 2])),
        tensors(one(shape=2)),
        tensors(one(shape=[2**40, 2**40], data_offsets=[0, 2**82])),
        tensors(one(data_offsets=[0, 16], shape=[4])),
        tensors(one(data_offsets=[8, 0])),
        tensors(one(shape=[1] * 65 + [2])),
        tensors(one(shape=[2**63, 0], data_offsets=[0, 0])),
        tensors(one(dtype="F128", data_offsets=[0, 10**4300 - 1])),
        tensors(one(data_offsets=[0, 4], shape=[1])),
        tensors(one(data_offsets=[4, 8], shape=[1])),
        tensors({**one(), "u": one()["t"]}),
        tensors(one(), bytes(7)),
        tensors(one(), bytes(9)),
    ],
)
def test_a_hostile_safetensors_file_leaves_nothing(
    pool: hugepool.Pool, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "t.safetensors").write_bytes(tensors(one()))
    pool.load("good", tmp_path / "t.safetensors")
    pool.destroy("good")
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(hugepool.InvalidSpecError, match=r"t\.safetensors"):
        pool.load("t", tmp_path / "t.safetensors", member="t")
    assert pool.list() == ()


# Arrow --------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_of_a_table(pool: hugepool.Pool, tmp_path: Path, compression: str) -> None:
    need("pyarrow.feather")
    arrow = importlib.import_module("pyarrow")
    feather = importlib.import_module("pyarrow.feather")
    table = arrow.table(
        {
            "a": np.arange(10_000, dtype="i4"),
            "b": np.arange(10_000) / 7,
            "flag": arrow.array([True, False] * 5000),
            "text": ["x"] * 10_000,
            "gaps": arrow.array([1.0, None] * 5000),
            "when": arrow.array([1] * 10_000, arrow.timestamp("s")),
        }
    )
    path = tmp_path / "t.feather"
    feather.write_feather(table, path, compression=compression, chunksize=1024)
    assert pool.load("a", path, member="a").array.tolist() == list(range(10_000))
    np.testing.assert_array_equal(pool.load("b", path, member="b").array, np.arange(10_000) / 7)
    assert pool.load("flag", path, member="flag").array[:3].tolist() == [True, False, True]
    for column, why in (
        ("text", "not of numbers"),
        ("when", "not of numbers"),
        ("gaps", "missing"),
        ("none", "no single array"),
    ):
        with pytest.raises(hugepool.InvalidSpecError, match=why):
            pool.load("x", path, member=column)
    assert [info.spec.name for info in pool.list()] == ["a", "b", "flag"]


def test_a_column_whose_name_is_no_utf_8(pool: hugepool.Pool, tmp_path: Path) -> None:
    need_for(".arrow")
    pool.put("name-of-a-column", np.ones(3))
    path = tmp_path / "x.arrow"
    get(pool, "name-of-a-column", path)
    path.write_bytes(path.read_bytes().replace(b"name-of-a", b"name-\xff\xfe-a"))
    with pytest.raises(hugepool.InvalidSpecError, match="not an Arrow file"):
        pool.load("x", path)


def test_arrow_reads_what_we_write(pool: hugepool.Pool, tmp_path: Path) -> None:
    need("pyarrow.feather")
    feather = importlib.import_module("pyarrow.feather")
    source = np.arange(5_000_000, dtype="f8")  # several batches
    pool.put("x", source)
    get(pool, "x", tmp_path / "x.feather")
    table = feather.read_table(tmp_path / "x.feather")
    assert table.column_names == ["x"]
    np.testing.assert_array_equal(table["x"].to_numpy(), source)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_cut_anywhere_leaves_nothing(
    pool: hugepool.Pool, tmp_path: Path, ending: str
) -> None:
    need_for(ending)
    pool.put("x", np.arange(500.0))
    path = tmp_path / f"x{ending}"
    get(pool, "x", path)
    pool.destroy("x")
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(hugepool.InvalidSpecError, match=path.name):
            pool.load("x", path)
        assert pool.list() == ()


@pytest.mark.parametrize("ending", [".arrow", ".npz"])
def test_a_file_with_a_changed_byte_is_an_error_or_another_array(
    pool: hugepool.Pool, tmp_path: Path, ending: str
) -> None:
    need_for(ending)
    pool.put("x", np.arange(50.0))
    path = tmp_path / f"x{ending}"
    get(pool, "x", path)
    pool.destroy("x")
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 80)):
        changed = bytes([content[position] ^ 0x55])
        path.write_bytes(content[:position] + changed + content[position + 1 :])
        try:
            pool.load("x", path)
        except (hugepool.InvalidSpecError, hugepool.NotEnoughMemoryError):
            pass
        else:
            pool.destroy("x")
        assert pool.list() == ()
