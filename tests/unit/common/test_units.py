from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugepool_common.errors import InvalidSpecError
from hugepool_common.units import (
    GIB,
    KIB,
    MIB,
    format_bytes,
    page_size_name,
    parse_bytes,
    parse_page_size,
    round_up,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4k", 4 * KIB),
        ("2M", 2 * MIB),
        ("2MiB", 2 * MIB),
        ("2MB", 2_000_000),
        (" 400 MB ", 400_000_000),
        ("1.5G", 3 * GIB // 2),
        ("5e7", 50_000_000),
        ("24682416k", 24682416 * KIB),
    ],
)
def test_bytes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "M", "-1", "1 X", "1MM", "0x10", "1e999", "50%", "1.2.3"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpecError):
        parse_bytes(text)


@given(st.integers(0, 2**60))
def test_plain_numbers_are_exact(count: int) -> None:
    assert parse_bytes(str(count)) == count


def test_page_sizes_have_names() -> None:
    for name, page_size in (("4K", 4 * KIB), ("2M", 2 * MIB), ("1G", GIB)):
        assert parse_page_size(name) == page_size
        assert page_size_name(page_size) == name
    assert parse_page_size("2MB") == 2 * MIB
    assert parse_page_size("auto") is None
    with pytest.raises(InvalidSpecError):
        parse_page_size("3M")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (400_000_000, "400 MB"), (2 * MIB, "2.1 MB")],
)
def test_bytes_are_shown(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 2**60), st.integers(1, 2**31))
def test_rounding_up_is_the_next_multiple(count: int, step: int) -> None:
    rounded = round_up(count, step)
    assert rounded % step == 0
    assert 0 <= rounded - count < step
