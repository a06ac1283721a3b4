from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugepool_common.errors import InvalidSpecError
from hugepool_common.spec import (
    BY_LENGTH,
    INDEX_DTYPES,
    ITEM_SIZES,
    ArraySpec,
    Fall,
    Member,
    PageReport,
    check_dtype,
    check_name,
    check_shape,
)


@pytest.mark.parametrize("name", ["x", "A", "0", "a.b-c_d", "x" * 128])
def test_names_that_are_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-x", "_x", "a/b", "../x", "a\0", "a\n", "x" * 129, "ä", "a b", 7, None, b"x"],
)
def test_names_that_are_refused(name: object) -> None:
    with pytest.raises(InvalidSpecError):
        check_name(name)


def test_item_sizes_are_numpys() -> None:
    for code, item_size in ITEM_SIZES.items():
        assert numpy.dtype(code).str == code
        assert numpy.dtype(code).itemsize == item_size


@pytest.mark.parametrize("dtype", ["O", "|O", "f8,O", "V0", "S5", ">f8", "float64", "", 8, None])
def test_dtypes_that_cannot_be_shared(dtype: object) -> None:
    with pytest.raises(InvalidSpecError):
        check_dtype(dtype)


@pytest.mark.parametrize("shape", [(), (0,), (1 << 40, 0), (1 << 44,), [3, 4]])
def test_shapes_that_are_allowed(shape: Any) -> None:
    assert check_shape(shape, 8) == tuple(shape)


@pytest.mark.parametrize(
    "shape",
    [
        (-1,),
        (True,),
        (1.0,),
        ("1",),
        (numpy.int64(3),),
        (1 << 49,),
        (1 << 24, 1 << 24),
        (0, 1 << 40, 1 << 40),
        (1,) * 65,
        5,
        None,
        "12",
    ],
)
def test_shapes_that_are_refused(shape: object) -> None:
    with pytest.raises(InvalidSpecError):
        check_shape(shape, 8)


def many_members(number: int, count: int = 1) -> tuple[Member, ...]:
    return tuple(Member(f"m{k}", "|u1", count) for k in range(number))


@pytest.mark.parametrize(
    "spec",
    [
        ArraySpec("A", (2,), "<f8", "csr", 1, "<i4"),
        ArraySpec("A", (2, 2), "<f8", "csr", -1, "<i4"),
        ArraySpec("A", (2, 2), "<f8", "csr", 1, "<u4"),
        ArraySpec("A", (2, 1 << 40), "<f8", "csr", 1, "<i4"),
        ArraySpec("A", (1 << 48, 2), "<f8", "csr", 1, "<i8"),
        ArraySpec("A", (2, 2), "<f8", "array", 1),
        ArraySpec("A", (2, 2), "<f8", "array", 0, "<i4"),
        ArraySpec("a/b", (2, 2), "<f8"),
        ArraySpec("A", (2, 2), "<f8", members=(Member("head", "<i8", 1),)),
        ArraySpec("A", (2, 2), "<f8", made_of=-1),
        ArraySpec("P", (2, 2), "<f8", "plan"),
        ArraySpec("P", (2, 2), "<f8", "plan", 1, members=(Member("head", "<i8", 1),)),
        ArraySpec("P", (2, 2), "<f8", "plan", members=(Member("head", "<i8", 1),), made_of=-1),
        ArraySpec("P", (2, 2), "<f8", "plan", members=(Member("head", "<i8", 1),) * 2),
        ArraySpec("P", (2, 2), "<f8", "plan", members=(Member("head", "<i8", -1),)),
        ArraySpec("P", (2, 2), "<f8", "plan", members=(Member("head", "O", 1),)),
        ArraySpec("P", (2, 2), "<f8", "plan", members=(Member("../x", "<i8", 1),)),
        ArraySpec("P", (2, 2), "<f8", "plan", members=(Member("x" * 17, "<i8", 1),)),
        ArraySpec("P", (2,), "<f8", "plan", members=many_members(13)),
        ArraySpec("P", (2,), "<f8", "plan", members=many_members(9, 1 << 45)),
    ],
)
def test_specs_that_contradict_themselves(spec: ArraySpec) -> None:
    with pytest.raises(InvalidSpecError):
        spec.checked()


@given(
    rows=st.integers(0, 10**6),
    columns=st.integers(0, 10**6),
    nnz=st.integers(0, 10**7),
    dtype=st.sampled_from(sorted(ITEM_SIZES)),
    index_dtype=st.sampled_from(INDEX_DTYPES),
)
def test_parts_of_a_matrix_neither_overlap_nor_leave_the_segment(
    rows: int, columns: int, nnz: int, dtype: str, index_dtype: str
) -> None:
    spec = ArraySpec("A", (rows, columns), dtype, "csr", min(nnz, rows * columns), index_dtype)
    spec.checked()
    end = 0
    for part in spec.parts:
        assert part.offset % 4096 == 0
        assert part.offset >= end
        end = part.offset + part.nbytes
    assert end == spec.nbytes


@given(st.lists(st.tuples(st.sampled_from(sorted(ITEM_SIZES)), st.integers(0, 10**9)), max_size=12))
def test_members_of_a_plan_neither_overlap_nor_leave_the_segment(
    members: list[tuple[str, int]],
) -> None:
    head = Member("head", "<i8", 32)
    others = [Member(f"m{k}", dtype, count) for k, (dtype, count) in enumerate(members[:11])]
    spec = ArraySpec("P", (3, 4), "<f8", "plan", members=(head, *others), made_of=7).checked()
    end = 0
    for part, member in zip(spec.parts, spec.members, strict=True):
        assert (part.role, part.dtype, part.shape) == (member.role, member.dtype, (member.count,))
        assert part.offset % 4096 == 0
        assert part.offset >= end
        end = part.offset + part.nbytes
    assert end == spec.nbytes


def test_a_report_says_why_it_is_not_huge() -> None:
    fall = Fall("hugetlbfs-2m", "mmap", 12, "0 of 2 pages are free", "sysctl vm.nr_hugepages=2")
    huge = PageReport("shm-collapse", 2 << 20, 4 << 20, 4 << 20, 4 << 20, "pagemap_scan", (fall,))
    small = PageReport("shm-4k", 4096, 4096, 0, 4096, "smaps", (fall,))
    assert str(huge) == "shm-collapse (2M pages), 100 % huge"
    assert str(small) == ("shm-4k (4K pages), 0 % huge because hugetlbfs-2m: 0 of 2 pages are free")
    short = Fall("hugetlbfs-2m", BY_LENGTH, 0, "arrays under 1 MiB take small pages")
    small = PageReport("shm-4k", 4096, 4096, 0, 4096, "smaps", (short,))
    assert str(small).endswith("0 % huge because arrays under 1 MiB take small pages")
    assert PageReport("shm-4k", 4096, 0, 0, 0, "smaps").huge_fraction == 0.0
