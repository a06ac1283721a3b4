"""What all rungs share: the walk from an open nameless file to a published segment.

::

    directory -> O_TMPFILE -> reserve, populate -> prove -> mode, group -> link

The file has no name until it is whole, so a kill at any point before leaves
neither file nor pages, and a name always leads to a fully populated segment.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from hugepool_common.errors import HugepoolError, NotEnoughMemoryError
from hugepool_common.mapping import CancelFlag, Mapping, Progress
from hugepool_common.mounts import HugetlbfsMount, TmpfsMount
from hugepool_common.pages import Host
from hugepool_common.printable import printable
from hugepool_common.spec import Fall, PageReport, Segment
from hugepool_common.units import format_bytes, page_size_name, round_up
from hugepool_server.backends.filling import NoRoom
from hugepool_server.backends.unpublished import UnpublishedFile
from hugepool_server.reclaim import SegmentDirectories


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What to make.

    Parameters
    ----------
    segment_id
        Unique in this coordinator; names the file.
    nbytes
        Payload in bytes; the segment is rounded up to whole pages, at least one.
    file_mode
        Of the published file.
    group
        Group id of the published file; None leaves it.
    whole
        Refuse a segment of which not every byte is huge, instead of reporting it.
    """

    segment_id: int
    nbytes: int
    file_mode: int = 0o600
    group: int | None = None
    whole: bool = False


class RungRefused(Exception):
    """A rung cannot serve a request; nothing was kept. Never leaves the backends."""

    def __init__(self, fall: Fall) -> None:
        super().__init__(fall.reason)
        self.fall = fall


class Backend(ABC):
    """One rung of the ladder.

    Attributes
    ----------
    rung
        Its name.
    page_size
        Bytes per page that it promises.
    """

    rung: ClassVar[str]
    page_size: int

    def unusable(self, host: Host, nbytes: int) -> Fall | None:
        """Why a segment of so many payload bytes cannot be had here, by looking only."""
        try:
            self.place(host, self.length_of(nbytes))
        except RungRefused as refusal:
            return refusal.fall
        return None

    @abstractmethod
    def place(self, host: Host, length: int) -> HugetlbfsMount | TmpfsMount:
        """The mount to use.

        Raises
        ------
        RungRefused
            None will do.
        """

    @abstractmethod
    def fill(
        self,
        file: UnpublishedFile,
        length: int,
        request: SegmentRequest,
        mount: HugetlbfsMount | TmpfsMount,
        progress: Progress | None,
        cancel: CancelFlag | None,
    ) -> tuple[Mapping, list[Fall]]:
        """Give every byte of the file a page; the mapping, and what was not as it should be.

        Raises
        ------
        RungRefused, CancelledError
            It cannot; whatever was mapped is unmapped again.
        """

    def length_of(self, nbytes: int) -> int:
        """Bytes of a segment for a payload."""
        return round_up(max(nbytes, 1), self.page_size)

    def make(
        self,
        request: SegmentRequest,
        directories: SegmentDirectories,
        host: Host,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
    ) -> tuple[Segment, PageReport]:
        """Make, fill, prove and publish a segment.

        Raises
        ------
        RungRefused
            This rung cannot; the next may.
        CancelledError
            `cancel` was set.
        ArrayExistsError
            The segment id is taken in this directory.
        """
        length = self.length_of(request.nbytes)
        mount = self.place(host, length)
        with self.step("mkdir"):
            dir_fd, dir_path = directories.on(mount.path)
        with self.step("open"):
            unpublished = UnpublishedFile(dir_fd, dir_path, request.segment_id)
        with unpublished as file:
            try:
                with self.room(length, host):
                    report = self._filled(file, length, request, mount, progress, cancel)
            except NoRoom as refusal:
                raise self.refused("MemAvailable", str(refusal), error=errno.ENOMEM) from None
            with self.step("linkat"):
                status = file.publish(request.file_mode, request.group)
        segment = Segment(
            segment_id=request.segment_id,
            path=file.path,
            device=status.st_dev,
            inode=status.st_ino,
            owner_uid=status.st_uid,
            length=length,
            page_size=self.page_size,
            backing=self.rung,
        )
        return segment, report

    def room(self, length: int, host: Host) -> contextlib.AbstractContextManager[None]:
        """Hold what the fill of so many bytes needs beside pages of the rung.

        Parameters
        ----------
        length
            Bytes.
        host
            As it was when the place was chosen.

        Raises
        ------
        NoRoom
            On entering: there is not so much.
        """
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def step(self, call: str) -> Iterator[None]:
        """Turn what a system call refuses into a refusal of this rung."""
        try:
            yield
        except NotEnoughMemoryError as error:
            cause = error.__cause__
            number = (cause.errno if isinstance(cause, OSError) else None) or errno.EFAULT
            raise self.refused(call, error.message, error=number) from error
        except HugepoolError:
            raise
        except OSError as error:
            where = f" on {error.filename}" if error.filename else ""
            reason = f"{error.strerror or error}{where}"
            raise self.refused(call, reason, error=error.errno or 0) from error

    def refused(self, call: str, reason: str, *, error: int = 0, remedy: str = "") -> RungRefused:
        """The refusal of this rung, to be raised."""
        # A path may have bytes that are no UTF-8, and no message or record can carry those.
        return RungRefused(Fall(self.rung, call, error, printable(reason), printable(remedy)))

    def _filled(
        self,
        file: UnpublishedFile,
        length: int,
        request: SegmentRequest,
        mount: HugetlbfsMount | TmpfsMount,
        progress: Progress | None,
        cancel: CancelFlag | None,
    ) -> PageReport:
        mapping, falls = self.fill(file, length, request, mount, progress, cancel)
        with mapping:
            report = mapping.report(self.rung, self.page_size, falls)
        # A file with a hole must never get a name: a later touch could be SIGBUS.
        held_bytes = os.fstat(file.fd).st_blocks * 512
        if held_bytes < length or report.present_bytes != length:
            raise self.refused(
                "fstat",
                f"only {format_bytes(min(held_bytes, report.present_bytes))} "
                f"of {format_bytes(length)} have pages",
            )
        if request.whole and report.huge_bytes < length:
            raise self.refused(
                "PAGEMAP_SCAN",
                f"only {100 * report.huge_fraction:.4g} % of the segment is huge",
                remedy=falls[-1].remedy if falls else "",
            )
        return report

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.rung}, {page_size_name(self.page_size)} pages>"
