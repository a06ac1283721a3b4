"""Finding a coordinator: the address given, a local service, or a private child."""

from __future__ import annotations

import sys

from hugepool.address import local_service
from hugepool.channel import Channel
from hugepool.children import EmbeddedCoordinator
from hugepool.pool import Pool
from hugepool_common.errors import UnsupportedPlatformError
from hugepool_common.settings import read_settings
from hugepool_common.spec import HugePages, PageSize, check_policy

EMBEDDED = "embedded"
"""The address that always starts a private coordinator."""


def connect(
    address: str | None = None,
    *,
    huge_pages: HugePages | None = None,
    page_size: PageSize | None = None,
) -> Pool:
    """Open a session with a coordinator.

    Parameters
    ----------
    address
        ``ipc://PATH`` of a running one, or ``"embedded"`` for a private one, or
        ``tcp://127.0.0.1:PORT`` of one that takes clients over TCP. Default: the
        setting (``$HUGEPOOL_ADDRESS``), else the local service's socket if somebody
        listens there, else a private coordinator, a child process that ends with this one.
    huge_pages
        ``try`` (fall to 4 KiB pages and say why), ``on`` (fail instead) or ``off``.
        Default: the setting, which is ``try`` unless it was set.
    page_size
        ``auto``, ``4K``, ``2M`` or ``1G``. Default: the setting, which is ``auto``.

    Returns
    -------
    Pool

    Raises
    ------
    CoordinatorUnreachableError
        Nobody answers at the address.
    InvalidSpecError
        An argument, or a setting, has no such value.
    NotEnoughMemoryError
        This process, or the coordinator, has too few descriptors, threads or too little
        address space left.
    UnsupportedPlatformError
        This is not Linux.
    """
    if sys.platform != "linux":
        raise UnsupportedPlatformError(
            "hugepool needs Linux: huge pages, memfds and pidfds are its kernel's", had=sys.platform
        )
    settings = read_settings()
    huge_pages, page_size = huge_pages or settings.huge_pages, page_size or settings.page_size
    check_policy(huge_pages, page_size)
    address = address or settings.address or local_service(settings)
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
