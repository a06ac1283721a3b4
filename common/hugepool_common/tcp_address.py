"""Addresses of coordinators over TCP: of this machine alone.

What is said over TCP is neither encrypted nor signed, so both sides keep to loopback interfaces:
the coordinator listens nowhere else, and a client that would connect elsewhere is told to have
ssh carry the connection.
"""

from __future__ import annotations

from hugepool_common.errors import InvalidSpecError

SCHEME = "tcp"


def loopback_address(text: str) -> str:
    """The ZeroMQ address of ``[HOST:]PORT``; the host is 127.0.0.1 where none is given.

    Raises
    ------
    InvalidSpecError
        It is no such text, or other machines are, or could be, at the other end.
    """
    import ipaddress  # only where there is such an address

    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host in ("", "localhost") else host
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InvalidSpecError(
            f"{text!r} is no address for clients over TCP",
            needed="[HOST:]PORT, such as 127.0.0.1:8378",
        )
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidSpecError(
            "over TCP a coordinator and its clients meet on one machine only: nothing that is said "
            "there is encrypted, and whoever connects is let in",
            needed="an address of 127.0.0.0/8, such as 127.0.0.1:8378",
            had=text,
            remedy=f"listen at 127.0.0.1:{port}; on another machine run "
            f"ssh -L {port}:127.0.0.1:{port} COORDINATORS-MACHINE and connect to "
            f"tcp://127.0.0.1:{port} there",
        )
    return f"{SCHEME}://{host}:{int(port)}"


def host_and_port(address: str) -> tuple[str, int]:
    """What to connect to for ``tcp://HOST:PORT``.

    Raises
    ------
    InvalidSpecError
        As :func:`loopback_address`.
    """
    host, _, port = (
        loopback_address(address.partition("://")[2]).partition("://")[2].rpartition(":")
    )
    return host, int(port)
