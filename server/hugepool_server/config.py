"""Settings of one coordinator, checked once, frozen."""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass

from hugepool_common.errors import InvalidSpecError
from hugepool_common.paths import runtime_directory
from hugepool_common.settings import Settings
from hugepool_common.tcp_address import loopback_address
from hugepool_common.units import parse_bytes


@dataclass(frozen=True, slots=True)
class Config:
    """What a coordinator is started with.

    Parameters
    ----------
    runtime_directory
        Directory of the socket; made when missing.
    group
        Numeric gid that may connect, make arrays and read those of all beside our own
        uid; its workers write results. None keeps everything to this uid.
    parent_pid
        Process whose end ends an embedded coordinator; None for a service.
    keep
        Leave arrays and sessions to the next coordinator when told to stop in order.
    quota_bytes, quota_bytes_per_user
        Most payload bytes of all arrays, and of one user's; 0 for no quota.
    checksums
        Whether sealing computes a checksum of the payload.
    tcp
        ZeroMQ address on a loopback interface that takes clients over TCP; empty for none.
    lease_ns
        How long a session over TCP lives without a sign of its client.
    """

    runtime_directory: str
    group: int | None = None
    parent_pid: int | None = None
    keep: bool = False
    quota_bytes: int = 0
    quota_bytes_per_user: int = 0
    checksums: bool = True
    tcp: str = ""
    lease_ns: int = 10_000_000_000

    @classmethod
    def checked(cls, settings: Settings, *, parent_pid: int | None = None) -> Config:
        """Build from what is set.

        Raises
        ------
        InvalidSpecError
            The group does not exist, clients over TCP are to come from elsewhere, or an embedded
            coordinator was asked to keep what ends with it.
        """
        if settings.keep and parent_pid is not None:
            raise InvalidSpecError("a coordinator that ends with its parent keeps nothing")
        group = settings.group
        gid = None
        if group:
            try:
                gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
            except KeyError:
                raise InvalidSpecError(
                    f"no group is called {group!r}", remedy=f"groupadd --system {group}"
                ) from None
        return cls(
            runtime_directory=os.path.abspath(runtime_directory(settings.runtime_dir)),
            group=gid,
            parent_pid=parent_pid,
            keep=settings.keep,
            quota_bytes=parse_bytes(settings.quota or "0"),
            quota_bytes_per_user=parse_bytes(settings.quota_per_user or "0"),
            checksums=settings.checksums,
            tcp=loopback_address(settings.tcp) if settings.tcp else "",
            lease_ns=round(settings.lease_s * 1e9),
        )

    @property
    def durable(self) -> bool:
        """Whether arrays and sessions outlive the coordinator's process."""
        return self.parent_pid is None

    @property
    def directory_mode(self) -> int:
        """Mode of the runtime directory.

        Members of a group may enter it, not read it: who can open a directory can
        also lock it, and so keep a coordinator from starting.
        """
        return 0o700 if self.group is None else 0o710

    @property
    def socket_umask(self) -> int:
        """Umask under which the socket is bound."""
        return 0o177 if self.group is None else 0o117

    @property
    def segment_mode(self) -> int:
        """Mode of a segment's file until it is sealed."""
        return 0o600 if self.group is None else 0o660

    @property
    def sealed_mode(self) -> int:
        """Mode of a segment's file once it is sealed."""
        return 0o400 if self.group is None else 0o440
