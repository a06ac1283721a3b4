"""Settings of one coordinator, checked once, frozen."""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass

from hugepool_common.errors import InvalidSpecError
from hugepool_common.paths import runtime_directory
from hugepool_common.units import parse_bytes


@dataclass(frozen=True, slots=True)
class Config:
    """What a coordinator is started with.

    Parameters
    ----------
    runtime_directory
        Directory of the socket; made when missing.
    group
        Numeric gid that may connect, attach and write unsealed arrays beside
        our own uid; None keeps everything to this uid.
    parent_pid
        Process whose end ends an embedded coordinator; None for a service.
    keep
        Leave arrays and sessions to the next coordinator when told to stop in order.
    quota_bytes, quota_bytes_per_user
        Most payload bytes of all arrays, and of one user's; 0 for no quota.
    checksums
        Whether sealing computes a checksum of the payload.
    """

    runtime_directory: str
    group: int | None = None
    parent_pid: int | None = None
    keep: bool = False
    quota_bytes: int = 0
    quota_bytes_per_user: int = 0
    checksums: bool = True

    @classmethod
    def checked(
        cls,
        *,
        directory: str | None,
        group: str | None,
        parent_pid: int | None = None,
        keep: bool = False,
        quota: str | None = None,
        quota_per_user: str | None = None,
        checksums: bool = True,
    ) -> Config:
        """Build from command-line text.

        Raises
        ------
        InvalidSpecError
            The group does not exist, a quota is no number of bytes or none at all, or
            an embedded coordinator was asked to keep what ends with it.
        """
        if keep and parent_pid is not None:
            raise InvalidSpecError("a coordinator that ends with its parent keeps nothing")
        gid = None
        if group is not None:
            try:
                gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
            except KeyError:
                raise InvalidSpecError(
                    f"no group is called {group!r}",
                    remedy=f"groupadd --system {group}" if group else "name a group",
                ) from None
        return cls(
            runtime_directory=os.path.abspath(directory or runtime_directory()),
            group=gid,
            parent_pid=parent_pid,
            keep=keep,
            quota_bytes=_quota(quota),
            quota_bytes_per_user=_quota(quota_per_user),
            checksums=checksums,
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


def _quota(text: str | None) -> int:
    if text is None:
        return 0
    nbytes = parse_bytes(text)
    if nbytes == 0:
        raise InvalidSpecError("a quota of nothing", remedy="leave it out for no quota")
    return nbytes
