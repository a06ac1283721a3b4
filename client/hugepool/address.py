"""Where a running coordinator is found, without one being started."""

from __future__ import annotations

import os

from hugepool.listener import START_REMEDY, NotAdmittedError, probe
from hugepool_common.errors import CoordinatorUnreachableError
from hugepool_common.paths import default_addresses, service_address
from hugepool_common.settings import Settings, read_settings


def local_address(address: str | None) -> str:
    """Address of a running coordinator: the given one, the one that is set, or a local service.

    Raises
    ------
    CoordinatorUnreachableError
        There is none.
    NotAdmittedError
        There seems to be one, that this user may not connect to.
    """
    settings = read_settings()
    found: str | None = address or settings.address
    refusals: list[NotAdmittedError] = []
    if not found:
        found = local_service(settings, refusals)
    if found is None:
        if refusals:
            raise refusals[0]
        raise CoordinatorUnreachableError(
            "no coordinator runs here",
            where=" or ".join(default_addresses(settings.runtime_dir)),
            remedy=START_REMEDY,
        )
    probe(found)
    return found


def local_service(settings: Settings, refusals: list[NotAdmittedError] | None = None) -> str | None:
    """Address of a local coordinator that accepts connections of this user.

    Parameters
    ----------
    settings
        Where it may be.
    refusals
        Takes the errors of those that do not accept them.

    Notes
    -----
    A directory below ``/tmp`` may have been made by anybody: only a coordinator of
    this user or of root is taken there. ``/run`` is root's, and what listens in its
    ``hugepool`` was put there by root. A directory that was named is as good as an address:
    whoever lets its group in is meant, whichever user that is.
    """
    named = bool(settings.runtime_dir)
    for address in default_addresses(settings.runtime_dir):
        try:
            listener = probe(address)
        except NotAdmittedError as error:
            if refusals is not None:
                refusals.append(error)
            continue
        except CoordinatorUnreachableError:
            continue
        if named or listener.uid in (os.geteuid(), 0) or address == service_address():
            return address
    return None
