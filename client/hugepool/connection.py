"""Finding a coordinator: the address given, a local service, or a private child."""

from __future__ import annotations

import os
import sys

from hugepool.channel import Channel
from hugepool.children import EmbeddedCoordinator
from hugepool.listener import probe
from hugepool.pool import Pool
from hugepool_common.errors import (
    CoordinatorUnreachableError,
    UnsupportedPlatformError,
)
from hugepool_common.paths import ADDRESS_VARIABLE, default_addresses, service_address
from hugepool_common.spec import HugePages, PageSize, check_policy

EMBEDDED = "embedded"
"""The address that always starts a private coordinator."""


def connect(
    address: str | None = None,
    *,
    huge_pages: HugePages = "try",
    page_size: PageSize = "auto",
) -> Pool:
    """Open a session with a coordinator.

    Parameters
    ----------
    address
        ``ipc://PATH`` of a running one, or ``"embedded"`` for a private one. Default:
        ``$HUGEPOOL_ADDRESS``, else the local service's socket if somebody listens
        there, else a private coordinator, a child process that ends with this one.
    huge_pages
        ``try`` (fall to 4 KiB pages and say why), ``on`` (fail instead) or ``off``.
    page_size
        ``auto``, ``4K``, ``2M`` or ``1G``.

    Returns
    -------
    Pool

    Raises
    ------
    CoordinatorUnreachableError
        Nobody answers at the address.
    InvalidSpecError
        An argument has no such value.
    UnsupportedPlatformError
        This is not Linux.
    """
    if sys.platform != "linux":
        raise UnsupportedPlatformError(
            "hugepool needs Linux: huge pages, memfds and pidfds are its kernel's", had=sys.platform
        )
    check_policy(huge_pages, page_size)
    address = address or os.environ.get(ADDRESS_VARIABLE) or _local_service()
    coordinator = EmbeddedCoordinator() if address in (None, EMBEDDED) else None
    if coordinator is not None:
        address = coordinator.address
    assert address is not None
    try:
        channel = Channel(address)
    except BaseException:
        if coordinator is not None:
            coordinator.stop()
        raise
    return Pool(channel, coordinator=coordinator, huge_pages=huge_pages, page_size=page_size)


def local_address(address: str | None) -> str:
    """Address of a running coordinator: the given one, ``$HUGEPOOL_ADDRESS``, or a local service.

    Raises
    ------
    CoordinatorUnreachableError
        There is none.
    """
    found = address or os.environ.get(ADDRESS_VARIABLE) or _local_service()
    if found is None:
        raise CoordinatorUnreachableError(
            "no coordinator runs here",
            where=" or ".join(default_addresses()),
            remedy="start one with: hugepool serve",
        )
    probe(found)
    return found


def _local_service() -> str | None:
    """Address of a local coordinator that accepts connections of this user.

    A directory below ``/tmp`` may have been made by anybody: only a coordinator of
    this user or of root is taken there. ``/run`` is root's, and what listens in its
    ``hugepool`` was put there by root.
    """
    for address in default_addresses():
        try:
            listener = probe(address)
        except CoordinatorUnreachableError:
            continue
        if listener.uid in (os.geteuid(), 0) or address == service_address():
            return address
    return None
