"""The operands that a worker maps: held between jobs, let go when their segments are destroyed."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hugepool.kernels.base import Array, CsrArrays, Operand, PlanArrays
from hugepool_common import linux
from hugepool_common import mapping as mapped
from hugepool_common.errors import ArrayBusyError
from hugepool_common.messages import PartOperand, View
from hugepool_common.spec import ArraySpec, Segment

log = logging.getLogger("hugepool.worker")


@dataclass(slots=True)
class Held:
    """An operand as this process has it, and what of it is huge.

    Parameters
    ----------
    operand
        As kernels take it.
    mapped_bytes, huge_bytes
        Bytes of shared memory mapped, or of the heap copy, and those on huge pages.
    mapping
        Where the arrays lie; None for a heap copy.
    copies
        The heap copy's arrays by role; None for a mapping.
    stale
        Whether what was copied may have changed since.
    """

    operand: Operand
    mapped_bytes: int
    huge_bytes: int
    mapping: mapped.Mapping | None = None
    copies: dict[str, Array] | None = None
    stale: bool = False


class HeldOperands:
    """Operands by segment, mapped once and kept until :meth:`drop`.

    Parameters
    ----------
    check_owner
        Raises if a segment is not one that our coordinator may hand out.
    """

    def __init__(self, check_owner: Callable[[Segment], None]) -> None:
        self._check_owner = check_owner
        self._held: dict[tuple[int, bool, View], Held] = {}

    def hold(self, operand: PartOperand) -> Held:
        """Map an operand, or take it as it is already mapped.

        Raises
        ------
        HugepoolError
            As :meth:`hugepool_common.mapping.Mapping.open`.
        """
        key = (operand.segment.segment_id, operand.writable, operand.view)
        held = self._held.get(key)
        if held is None:
            self._check_owner(operand.segment)
            held = self._held[key] = _take(operand)
        elif held.stale and held.copies is not None:
            _copy_again(operand, held.copies)
        held.stale = not operand.sealed
        return held

    def drop(self, segment_id: int) -> None:
        """Let go of a segment in every way that it is held."""
        for key in [key for key in self._held if key[0] == segment_id]:
            mapping = self._held.pop(key).mapping
            if mapping is not None:
                _unmap(mapping)

    def drop_all(self) -> None:
        """Let go of every segment: nobody knows any more that we have to be told."""
        for segment_id in {segment_id for segment_id, _, _ in self._held}:
            self.drop(segment_id)

    def clear(self) -> None:
        """Forget all of them; their mappings go with the last array over them."""
        self._held.clear()


def operand_over(spec: ArraySpec, arrays: Mapping[str, Array]) -> Operand:
    """The arrays of an object, by the roles of its parts, as kernels take it."""
    if spec.kind == "array":
        return arrays["array"]
    if spec.kind == "plan":
        return PlanArrays(arrays)
    rows, columns = spec.shape
    return CsrArrays(arrays["indptr"], arrays["indices"], arrays["data"], (rows, columns))


def _unmap(mapping: mapped.Mapping) -> None:
    try:
        mapping.close()
    except ArrayBusyError:
        # An error that is part of a reference cycle keeps the kernel's frames, and
        # so its arrays, until the collector comes by.
        gc.collect()
        try:
            mapping.close()
        except ArrayBusyError as error:
            log.warning("a destroyed array stays mapped until its last view goes: %s", error)


def _take(operand: PartOperand) -> Held:
    mapping = mapped.Mapping.open(
        operand.segment, writable=operand.writable, private=operand.view == "private"
    )
    arrays: dict[str, Array] = {part.role: mapping.array(part) for part in operand.spec.parts}
    if operand.view != "heap":
        report = mapping.report(operand.segment.backing, operand.segment.page_size)
        operands = operand_over(operand.spec, arrays)
        return Held(operands, mapping.length, report.huge_bytes, mapping)
    copies = {role: np.array(array) for role, array in arrays.items()}
    arrays.clear()
    mapping.close()
    return Held(
        operand_over(operand.spec, copies),
        sum(copy.nbytes for copy in copies.values()),
        sum(_huge_bytes_of(copy) for copy in copies.values()),
        copies=copies,
    )


def _copy_again(operand: PartOperand, copies: dict[str, Array]) -> None:
    """Bring a heap copy up to date in place, in the pages that it has."""
    with mapped.Mapping.open(operand.segment) as mapping:
        for part in operand.spec.parts:
            np.copyto(copies[part.role], mapping.array(part))


def _huge_bytes_of(array: Array) -> int:
    """Bytes of a heap array that transparent huge pages map, by whole base pages inside it."""
    page = os.sysconf("SC_PAGESIZE")
    start = -(-array.ctypes.data // page) * page
    stop = (array.ctypes.data + array.nbytes) // page * page
    if stop <= start:
        return 0
    try:
        return linux.scan_huge(start, stop - start)[0]
    except OSError:  # kernel before 6.7; smaps tells of whole VMAs, so it may not say
        return linux.read_smaps(start, stop - start)[0]
