"""A named object to be read as a file: leased, open, and not mapped.

What only passes every byte once needs no mapping. And a file that somebody cuts short
is an error to who reads it, where a touch of the mapping would be SIGBUS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import msgspec

from hugepool.channel import Channel
from hugepool.lease import Lease
from hugepool_common.checksum import SLICE_BYTES, Look, checksum_of_file, read_whole
from hugepool_common.errors import ChecksumError, HugepoolError, InvalidSpecError
from hugepool_common.mapping import CancelFlag, Progress
from hugepool_common.messages import Attach, Attached
from hugepool_common.segment_file import open_segment, refusal
from hugepool_common.spec import Part, check_name


class VerifyReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``pool.verify`` read, and found to be as it was sealed.

    Parameters
    ----------
    name, generation
        Of the object, as it was attached.
    nbytes
        Payload bytes, all of which were read.
    checksum
        As it was sealed with, and as it is.
    wall_ns
        How long that took.
    """

    name: str
    generation: int
    nbytes: int
    checksum: str
    wall_ns: int


class LeasedFile:
    """A lease on an object, and its file. A context manager that gives both back.

    The object can be read to its end, whoever destroys it or publishes something else.

    Parameters
    ----------
    channel
        The session.
    name
        The object's.

    Attributes
    ----------
    info
        What the coordinator told.

    Raises
    ------
    ArrayNotFoundError
        No such name.
    SegmentChangedError
        Its file is gone, or is another one.
    NotEnoughMemoryError
        This process has no descriptor left for it.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        attached = channel.request(Attach(check_name(name)), Attached)
        self._lease = Lease(channel, attached.lease)
        self.info = attached.array
        try:
            channel.check_owner(self.info.segment)
            self._fd = open_segment(self.info.segment, writable=False)
        except BaseException as error:
            self._lease.release()
            if isinstance(error, OSError) and not isinstance(error, HugepoolError):
                raise refusal(error, self.info.segment.path, "opened") from error
            raise

    def read(
        self,
        *,
        look: Look | None = None,
        progress: Progress | None = None,
        cancel: CancelFlag | None = None,
    ) -> str:
        """Read the whole payload, and compare its checksum with that of the seal, if there is one.

        Parameters
        ----------
        look, progress, cancel
            As of :func:`hugepool_common.checksum.checksum_of_file`.

        Returns
        -------
        str
            The checksum.

        Raises
        ------
        ChecksumError
            It is not what was sealed.
        """
        info = self.info
        found = checksum_of_file(
            self._fd,
            [(part.offset, part.nbytes) for part in info.spec.parts],
            where=info.segment.path,
            look=look,
            progress=progress,
            cancel=cancel,
        )
        if info.checksum and found != info.checksum:
            raise ChecksumError(
                f"the bytes of {info.spec.name!r} are not those that were sealed",
                needed=info.checksum,
                had=found,
                where=info.segment.path,
                remedy="destroy it, and make or restore it again",
            )
        return found

    def slices(self, part: Part) -> Iterator[memoryview]:
        """The bytes of a part in order, each slice good until the next one.

        Raises
        ------
        SegmentChangedError
            The file ends before the part does.
        """
        buffer = memoryview(bytearray(min(SLICE_BYTES, part.nbytes)))
        for start in range(0, part.nbytes, SLICE_BYTES):
            view = buffer[: min(SLICE_BYTES, part.nbytes - start)]
            read_whole(self._fd, view, part.offset + start, self.info.segment.path)
            yield view

    def close(self) -> None:
        """Give the file and the lease back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def verify(channel: Channel, name: str, progress: Progress | None) -> VerifyReport:
    """Read a sealed object, and compare it with the checksum of its seal."""
    started_ns = time.monotonic_ns()
    with LeasedFile(channel, name) as file:
        info = file.info
        if not info.checksum:
            raise InvalidSpecError(
                f"{name!r} has no checksum to compare with",
                had="sealed by a coordinator that takes none" if info.sealed else "not sealed",
                remedy="" if info.sealed else "seal it first",
            )
        file.read(progress=progress)
    return VerifyReport(
        info.spec.name,
        info.generation,
        sum(part.nbytes for part in info.spec.parts),
        info.checksum,
        time.monotonic_ns() - started_ns,
    )
