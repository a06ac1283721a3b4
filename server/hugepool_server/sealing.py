"""What the coordinator makes sure of before an object is sealed: its structure, its checksum.

A sealed matrix is trusted by kernels that check no index any more, so each index is
checked here, after the last writer has let go. One pass over the file serves the
check and the checksum.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

from hugepool_common.checksum import checksum_of_file
from hugepool_common.errors import (
    HugepoolError,
    IndexOutOfRangeError,
    InvalidMatrixError,
    InvalidSpecError,
)
from hugepool_common.mapping import CancelFlag
from hugepool_common.segment_file import open_segment
from hugepool_common.spec import ArraySpec, Segment


def check_sealed(
    segment: Segment,
    spec: ArraySpec,
    *,
    cancel: CancelFlag | None = None,
    checksums: bool = True,
) -> str:
    """Check what nobody writes any more, and tell the checksum of its payload.

    Parameters
    ----------
    segment
        The file, which nobody may have open for writing.
    spec
        What lies in it. The indices of a matrix are checked, the arrays of others
        have nothing that could be wrong.
    cancel
        Looked at all the time.
    checksums
        With False nothing is read but what has to be checked.

    Returns
    -------
    str
        As :mod:`hugepool_common.checksum` writes it; empty without `checksums`.

    Raises
    ------
    InvalidMatrixError
        ``indptr`` does not begin with 0, falls, or does not end with ``nnz``.
    IndexOutOfRangeError
        A column is negative or too large; `position` is that of the first one.
    SegmentChangedError
        The file is not the segment, or is shorter.
    CancelledError
        `cancel` was set.
    """
    if spec.nbytes > segment.length:
        raise InvalidSpecError(
            f"{spec.name!r} does not fit in its segment",
            needed=f"{spec.nbytes} bytes",
            had=f"{segment.length}",
            where=segment.path,
        )
    check = _CsrCheck(spec) if spec.kind == "csr" else None
    extents = [(part.offset, part.nbytes) for part in spec.parts]
    fd = open_segment(segment, writable=False)
    try:
        if not checksums:
            extents = [] if check is None else extents[:2]
        checksum = checksum_of_file(
            fd,
            extents,
            where=segment.path,
            look=None if check is None else check.look,
            cancel=cancel,
        )
    finally:
        os.close(fd)
    if check is not None:
        check.conclude()
    return checksum if checksums else ""


@dataclass(slots=True)
class _CsrCheck:
    """The structure of a matrix, looked at in slices that come in any order.

    Every fault is kept until all slices were seen, so that the first one is told,
    whichever thread was faster.
    """

    spec: ArraySpec
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ends: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Of the slices of ``indptr``, by their first row: rows, first and last value."""
    _faults: list[tuple[int, int, HugepoolError]] = field(default_factory=list)

    def look(self, part: int, offset: int, view: memoryview) -> None:
        """Check a slice of ``indptr`` or ``indices``."""
        if part > 1:
            return
        import numpy

        values = numpy.frombuffer(view, self.spec.index_dtype)
        position = offset // values.itemsize
        if part == 0:
            self._look_at_rows(values, position)
        else:
            self._look_at_columns(values, position)

    def conclude(self) -> None:
        """Raise the first fault there is, if any."""
        previous = 0
        for row, (count, first, last) in sorted(self._ends.items()):
            if row == 0 and first != 0:
                self._fault(0, 0, self._wrong_end("must begin with 0", "0", first, 0))
            elif first < previous:
                self._fault(0, row, self._fall(row, previous, first))
            previous = last
            if row + count == self.spec.shape[0] + 1 and last != self.spec.nnz:
                self._fault(
                    0,
                    row + count,
                    self._wrong_end("must end with nnz", str(self.spec.nnz), last, row + count - 1),
                )
        if self._faults:
            raise min(self._faults, key=lambda fault: fault[:2])[2]

    def _look_at_rows(self, values: Any, row: int) -> None:
        with self._lock:
            self._ends[row] = len(values), int(values[0]), int(values[-1])
        falls = values[1:] < values[:-1]
        if falls.any():
            at = int(falls.argmax())
            fault = self._fall(row + at + 1, int(values[at]), int(values[at + 1]))
            self._fault(0, row + at + 1, fault)

    def _look_at_columns(self, values: Any, position: int) -> None:
        columns = self.spec.shape[1]
        # As unsigned numbers the negative ones are the largest: one comparison finds both.
        unsigned = values.view(f"<u{values.itemsize}")
        if int(unsigned.max()) < columns:
            return
        at = int((unsigned >= columns).argmax())
        self._fault(
            1,
            position + at,
            IndexOutOfRangeError(
                "a column is out of range",
                needed=f"0 to {columns - 1}" if columns else "none, for the matrix has no columns",
                had=str(values[at]),
                where=f"indices[{position + at}] of {self.spec.name!r}",
                position=position + at,
            ),
        )

    def _fault(self, part: int, position: int, error: HugepoolError) -> None:
        with self._lock:
            self._faults.append((part, position, error))

    def _fall(self, row: int, before: int, value: int) -> InvalidMatrixError:
        return InvalidMatrixError(
            "indptr must not fall",
            needed=f"at least {before}",
            had=str(value),
            where=f"indptr[{row}] of {self.spec.name!r}",
        )

    def _wrong_end(self, rule: str, needed: str, had: int, row: int) -> InvalidMatrixError:
        return InvalidMatrixError(
            f"indptr {rule}",
            needed=needed,
            had=str(had),
            where=f"indptr[{row}] of {self.spec.name!r}",
        )
