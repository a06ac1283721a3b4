"""Text that a terminal only shows."""

from __future__ import annotations

import pytest

from hugepool_common.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gather [red] naïve 数据 é×²", "gather [red] naïve 数据 é×²"),
        ("two\nlines", "two\nlines"),
        ("wide\u3000and\u00a0fixed", "wide\u3000and\u00a0fixed"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten\x08\x7f\x00", "over\\rwritten\\x08\\x7f\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("no UTF-8: \udcff", "no UTF-8: \\udcff"),
    ],
)
def test_what_is_no_character_to_be_seen_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.encode()
