from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hugepool_common.checksum import SLICE_BYTES, checksum_of_buffers
from hugepool_common.errors import (
    CancelledError,
    IndexOutOfRangeError,
    InvalidMatrixError,
    InvalidSpecError,
    SegmentChangedError,
)
from hugepool_common.spec import ArraySpec, Member, Segment
from hugepool_common.units import round_up
from hugepool_server.sealing import check_sealed
from support.host import Descriptors

Make = Callable[..., Segment]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make a segment that holds these parts."""
    paths: list[str] = []

    def segment_with(spec: ArraySpec, *parts: np.ndarray[Any, Any], fill: bytes = b"\0") -> Segment:
        length = round_up(max(spec.nbytes, 1), 4096)
        paths.append(f"/dev/shm/hugepool-test-{os.getpid()}-{len(paths)}.segment")
        fd = os.open(paths[-1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        os.write(fd, fill * length)
        for part, array in zip(spec.parts, parts, strict=True):
            assert array.dtype.str == part.dtype and array.size == part.count
            os.pwrite(fd, array.tobytes(), part.offset)
        status = os.fstat(fd)
        os.close(fd)
        return Segment(
            *(1, paths[-1], status.st_dev, status.st_ino, status.st_uid),
            *(length, 4096, "shm-4k"),
        )

    yield segment_with
    for path in paths:
        os.unlink(path)


def matrix_spec(rows: int, columns: int, nnz: int, index_dtype: str = "<i4") -> ArraySpec:
    return ArraySpec("A", (rows, columns), "<f8", "csr", nnz, index_dtype)


def csr(
    make: Make, indptr: Any, indices: Any, columns: int, index_dtype: str = "<i4"
) -> tuple[Segment, ArraySpec]:
    indptr, indices = np.asarray(indptr, index_dtype), np.asarray(indices, index_dtype)
    spec = matrix_spec(len(indptr) - 1, columns, len(indices), index_dtype)
    return make(spec, indptr, indices, np.ones(len(indices))), spec


def as_bytes(*arrays: np.ndarray[Any, Any]) -> list[memoryview]:
    return [memoryview(array.tobytes()) for array in arrays]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (7,), (300, 1000)])
def test_an_array_has_the_checksum_of_its_bytes(make: Make, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype="<f4").reshape(shape)
    spec = ArraySpec("x", shape, "<f4")
    assert check_sealed(make(spec, values), spec) == checksum_of_buffers(as_bytes(values))


def test_padding_counts_for_nothing(make: Make) -> None:
    spec = ArraySpec(
        "p", (3,), "<f8", "plan", members=(Member("a", "|i1", 3), Member("b", "<i8", 2))
    )
    parts = np.array([1, 2, 3], "|i1"), np.array([4, 5], "<i8")
    found = {check_sealed(make(spec, *parts, fill=fill), spec) for fill in (b"\0", b"\xff")}
    assert found == {checksum_of_buffers(as_bytes(*parts))}


@pytest.mark.parametrize("index_dtype", ["<i4", "<i8"])
@pytest.mark.parametrize(
    "indptr, indices, columns",
    [([0], [], 0), ([0], [], 5), ([0, 0, 0], [], 0), ([0, 2, 2, 3], [0, 4, 2], 5)],
)
def test_a_good_matrix_passes(
    make: Make, indptr: list[int], indices: list[int], columns: int, index_dtype: str
) -> None:
    segment, spec = csr(make, indptr, indices, columns, index_dtype)
    parts = np.asarray(indptr, index_dtype), np.asarray(indices, index_dtype), np.ones(len(indices))
    assert check_sealed(segment, spec) == checksum_of_buffers(as_bytes(*parts))
    assert check_sealed(segment, spec, checksums=False) == ""


@pytest.mark.parametrize("index_dtype", ["<i4", "<i8"])
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize(
    "indptr, nnz, said",
    [
        ([1, 3], 3, "indptr must begin with 0 .needed 0, had 1, at indptr.0. of 'A'"),
        ([-1, 3], 3, "must begin with 0"),
        ([0, 2], 3, "indptr must end with nnz .needed 3, had 2, at indptr.1."),
        ([0, 4], 3, "must end with nnz"),
        ([1], 0, "must begin with 0"),
        ([0], 1, "must end with nnz"),
        ([0, 2, 1, 3], 3, "indptr must not fall .needed at least 2, had 1, at indptr.2."),
        ([0, 3, -(2**31), 3], 3, "must not fall"),
    ],
)
def test_a_bad_indptr_is_refused(
    make: Make, indptr: list[int], nnz: int, said: str, index_dtype: str, checksums: bool
) -> None:
    segment, spec = csr(make, indptr, [0] * nnz, 1, index_dtype)
    with pytest.raises(InvalidMatrixError, match=said):
        check_sealed(segment, spec, checksums=checksums)


@pytest.mark.parametrize("index_dtype", ["<i4", "<i8"])
@pytest.mark.parametrize(
    "indices, columns, position, had",
    [
        ([0, 5, -1], 5, 1, "5"),
        ([0, 4, -1], 5, 2, "-1"),
        ([-(2**31), 9, 9], 5, 0, str(-(2**31))),
        ([0, 0, 0], 0, 0, "0"),
    ],
)
def test_the_first_bad_column_is_told(
    make: Make, indices: list[int], columns: int, position: int, had: str, index_dtype: str
) -> None:
    segment, spec = csr(make, [0, 1, 3], indices, columns, index_dtype)
    with pytest.raises(IndexOutOfRangeError, match="column is out of range") as caught:
        check_sealed(segment, spec)
    assert (caught.value.position, caught.value.had) == (position, had)


def test_faults_across_slices_are_found_and_the_first_is_told(make: Make) -> None:
    count = 20 * (SLICE_BYTES // 4) + 10  # more than one chunk, so several threads
    border = 3 * (SLICE_BYTES // 4)  # first row of a slice: its fall shows in no slice alone
    indptr = np.arange(count, dtype="<i4")
    indices = np.zeros(count - 1, "<i4")
    indices[::7] = 9
    segment, spec = csr(make, indptr, indices, 10)
    check_sealed(segment, spec)
    indptr[border] = border - 2
    indptr[border + 1 :] -= 1
    indptr[-1] = count - 1
    segment, spec = csr(make, indptr, indices, 10)
    with pytest.raises(InvalidMatrixError, match=rf"indptr\[{border}\]"):
        check_sealed(segment, spec)
    indices[[700_000, 999_999, 2_000_000]] = 10
    segment, spec = csr(make, np.arange(count), indices, 10)
    for _ in range(5):
        with pytest.raises(IndexOutOfRangeError) as caught:
            check_sealed(segment, spec)
        assert caught.value.position == 700_000


def test_a_file_that_is_another_or_shorter_is_an_error(make: Make) -> None:
    segment, spec = csr(make, [0, 1], [0], 1)
    os.truncate(segment.path, 4096)
    with pytest.raises(SegmentChangedError):
        check_sealed(segment, spec)
    spec = matrix_spec(1, 1, 10_000)
    with pytest.raises(InvalidSpecError, match="does not fit"):
        check_sealed(segment, spec)


def test_it_can_be_cancelled(make: Make) -> None:
    segment, spec = csr(make, [0, 1], [0], 1)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        check_sealed(segment, spec, cancel=cancel)


def test_nothing_stays_open(make: Make) -> None:
    segment, spec = csr(make, [0, 1], [3], 1)
    descriptors = Descriptors()
    with pytest.raises(IndexOutOfRangeError):
        check_sealed(segment, spec)
    assert not descriptors.opened()
