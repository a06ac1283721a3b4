"""Addresses over TCP: of this machine, or refused with what to do."""

from __future__ import annotations

import pytest

from hugepool_common.errors import InvalidSpecError
from hugepool_common.tcp_address import host_and_port, loopback_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8378", "tcp://127.0.0.1:8378"),
        (":8378", "tcp://127.0.0.1:8378"),
        ("localhost:0", "tcp://127.0.0.1:0"),
        ("127.3.2.1:65535", "tcp://127.3.2.1:65535"),
    ],
)
def test_what_is_of_this_machine(text: str, address: str) -> None:
    assert loopback_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:8378", "192.168.1.7:8378", "*:8378", "example.org:8378", "[::]:8378", "::1:8378"],
)
def test_what_others_could_reach_is_refused_and_told_why(text: str) -> None:
    with pytest.raises(InvalidSpecError, match="nothing that is said there is encrypted") as caught:
        loopback_address(text)
    assert caught.value.had == text
    assert "ssh -L 8378:127.0.0.1:8378" in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "x", "127.0.0.1:", "127.0.0.1:x", "1:65536", "1:-1", "1:\u0663"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpecError, match="no address for clients over TCP"):
        loopback_address(text)


def test_an_address_is_taken_apart() -> None:
    assert host_and_port("tcp://localhost:8378") == ("127.0.0.1", 8378)
    with pytest.raises(InvalidSpecError):
        host_and_port("tcp://10.0.0.1:8378")
