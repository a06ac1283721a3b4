"""The loops that build the plan of a binned product. Importing this module imports numba.

What the arrays hold is told by the module ``binned_product_layout``. For unsigned
arithmetic see the loops of the gather.

Every index is read once into a register, checked and used from there, so that a
process that writes to the matrix meanwhile cannot lead anything outside its arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from hugepool.kernels.csr import BAD_COLUMN, BAD_INDPTR, CHANGED, DONE

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_LONGEST = np.uint64(8)
"""Counts of a cell: of runs of 1, 2, ... 8 entries. As in the module of the layout."""


@register_jitable
def zero_runs(counts: Any, cells: Any, blocks: Any) -> None:
    """Begin to count the runs of `blocks` cells: a worker that died may have counted some."""
    for i in range(cells * _LONGEST, (cells + blocks) * _LONGEST):
        counts[i] = np.uint32(0)


@register_jitable
def add_run(counts: Any, cells: Any, source: Any, length: Any) -> None:
    """Count one run of `length` entries in a cell."""
    counts[(cells + source) * _LONGEST + (length - _ONE)] += np.uint32(1)


def count_products(
    indptr: Any,
    indices: Any,
    columns: int,
    source_bits: int,
    target_width: int,
    sources: int,
    counts: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Count the runs of each cell of some target blocks into `counts`, target-major.

    A run is up to 8 entries of one row, in one source block, that follow each other.
    Returns (DONE, 0, 0), (BAD_INDPTR, row, value) or (BAD_COLUMN, entry, value), the
    value as uint64.
    """
    limit = np.uint64(columns)
    shift = np.uint64(source_bits)
    width = np.uint64(target_width)
    blocks = np.uint64(sources)
    nnz = np.uint64(len(indices))
    rows = np.uint64(len(indptr) - 1)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        cells = block * blocks
        zero_runs(counts, cells, blocks)
        first = block * width
        start = np.uint64(indptr[first])
        if start > nnz:
            return BAD_INDPTR, np.int64(first), start
        for row in range(first, min(first + width, rows)):
            stop = np.uint64(indptr[row + _ONE])
            if stop < start or stop > nnz:
                return BAD_INDPTR, np.int64(row + _ONE), stop
            source = _ZERO
            length = _ZERO
            for entry in range(start, stop):
                column = np.uint64(indices[entry])
                if column >= limit:
                    return BAD_COLUMN, np.int64(entry), column
                here = column >> shift
                if here != source or length == _LONGEST:
                    if length != _ZERO:
                        add_run(counts, cells, source, length)
                    source = here
                    length = _ZERO
                length += _ONE
            if length != _ZERO:
                add_run(counts, cells, source, length)
            start = stop
    return DONE, np.int64(0), _ZERO


def place_products(
    indptr: Any,
    indices: Any,
    data: Any,
    columns: int,
    source_bits: int,
    target_width: int,
    sources: int,
    targets: int,
    longest: int,
    line_elements: int,
    cell: Any,
    home: Any,
    lines: Any,
    src: Any,
    val: Any,
    dst: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write the entries of some target blocks into their cells and pad these.

    Returns as :func:`count_products`, or (CHANGED, row, 0) where the entries are
    not those that were counted.
    """
    limit = np.uint64(columns)
    shift = np.uint64(source_bits)
    mask = (_ONE << shift) - _ONE
    width = np.uint64(target_width)
    blocks = np.uint64(sources)
    stride = np.uint64(targets)
    most = np.uint64(longest)
    lanes = np.uint64(line_elements)
    nnz = np.uint64(min(len(indices), len(data)))
    rows = np.uint64(len(indptr) - 1)
    # Per source block and length of run: where the next one's entries and its value
    # go, and where the room for values ends.
    at = np.empty(sources * longest, np.uint64)
    to = np.empty(sources * longest, np.uint64)
    end = np.empty(sources * longest, np.uint64)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        for s in range(blocks):
            q = s * stride + block
            k = np.uint64(cell[q])
            o = np.uint64(home[q])
            for c in range(most):
                at[s * most + c] = k
                to[s * most + c] = o
                count = np.uint64(lines[q * most + c]) * lanes
                k += count * (c + _ONE)
                o += count
                end[s * most + c] = o
        first = block * width
        start = np.uint64(indptr[first])
        if start > nnz:
            return BAD_INDPTR, np.int64(first), start
        for row in range(first, min(first + width, rows)):
            stop = np.uint64(indptr[row + _ONE])
            if stop < start or stop > nnz:
                return BAD_INDPTR, np.int64(row + _ONE), stop
            entry = start
            while entry < stop:
                column = np.uint64(indices[entry])
                if column >= limit:
                    return BAD_COLUMN, np.int64(entry), column
                source = column >> shift
                following = entry + _ONE
                while (
                    following < stop
                    and following - entry < most
                    and np.uint64(indices[following]) >> shift == source
                ):
                    following += _ONE
                length = following - entry
                which = source * most + (length - _ONE)
                o = to[which]
                if o >= end[which]:
                    return CHANGED, np.int64(row), _ZERO
                k = at[which]
                dst[o] = row - first
                to[which] = o + _ONE
                # A line holds the first entries of its runs, the next line the second.
                at[which] = k + _ONE
                if (o + _ONE) % lanes == _ZERO:
                    at[which] += (length - _ONE) * lanes
                while entry < following:
                    # Read again: it may have been written to since.
                    column = np.uint64(indices[entry])
                    if column >= limit or column >> shift != source:
                        return CHANGED, np.int64(row), _ZERO
                    src[k] = column & mask
                    val[k] = data[entry]
                    k += lanes
                    entry += _ONE
            start = stop
        for kind in range(blocks * most):
            if end[kind] - to[kind] >= lanes:
                return CHANGED, np.int64(first), _ZERO
            below = (kind % most + _ONE) * lanes
            k = at[kind]
            for pad in range(to[kind], end[kind]):
                # To a place behind the block's rows: 0 * x is no number where x is not finite.
                dst[pad] = width
                for place in range(k, k + below, lanes):
                    src[place] = _ZERO
                    val[place] = 0.0
                k += _ONE
    return DONE, np.int64(0), _ZERO


def count_transposed(
    indptr: Any,
    indices: Any,
    columns: int,
    source_bits: int,
    target_width: int,
    targets: int,
    counts: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Count the entries of each cell of some source blocks of A.T, source-major.

    Returns as :func:`count_products`. All runs have one entry: those of one column do
    not follow each other.
    """
    limit = np.uint64(columns)
    width = _ONE << np.uint64(source_bits)
    across = np.uint64(target_width)
    blocks = np.uint64(targets)
    nnz = np.uint64(len(indices))
    rows = np.uint64(len(indptr) - 1)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        cells = block * blocks
        zero_runs(counts, cells, blocks)
        first = block * width
        start = np.uint64(indptr[first])
        if start > nnz:
            return BAD_INDPTR, np.int64(first), start
        for row in range(first, min(first + width, rows)):
            stop = np.uint64(indptr[row + _ONE])
            if stop < start or stop > nnz:
                return BAD_INDPTR, np.int64(row + _ONE), stop
            for entry in range(start, stop):
                column = np.uint64(indices[entry])
                if column >= limit:
                    return BAD_COLUMN, np.int64(entry), column
                add_run(counts, cells, column // across, _ONE)
            start = stop
    return DONE, np.int64(0), _ZERO


def place_transposed(
    indptr: Any,
    indices: Any,
    data: Any,
    columns: int,
    source_bits: int,
    target_width: int,
    targets: int,
    line_elements: int,
    cell: Any,
    home: Any,
    lines: Any,
    src: Any,
    val: Any,
    dst: Any,
    row_start: int,
    row_stop: int,
) -> tuple[Any, Any, Any]:
    """Write the entries of some source blocks of A.T into their cells and pad these.

    Returns as :func:`place_products`.
    """
    limit = np.uint64(columns)
    width = _ONE << np.uint64(source_bits)
    across = np.uint64(target_width)
    blocks = np.uint64(targets)
    lanes = np.uint64(line_elements)
    nnz = np.uint64(min(len(indices), len(data)))
    rows = np.uint64(len(indptr) - 1)
    at = np.empty(targets, np.uint64)
    to = np.empty(targets, np.uint64)
    end = np.empty(targets, np.uint64)
    for block in range(np.uint64(row_start), np.uint64(row_stop)):
        for d in range(blocks):
            q = block * blocks + d
            at[d] = np.uint64(cell[q])
            to[d] = np.uint64(home[q])
            end[d] = to[d] + np.uint64(lines[q]) * lanes
        first = block * width
        start = np.uint64(indptr[first])
        if start > nnz:
            return BAD_INDPTR, np.int64(first), start
        for row in range(first, min(first + width, rows)):
            stop = np.uint64(indptr[row + _ONE])
            if stop < start or stop > nnz:
                return BAD_INDPTR, np.int64(row + _ONE), stop
            for entry in range(start, stop):
                column = np.uint64(indices[entry])
                if column >= limit:
                    return BAD_COLUMN, np.int64(entry), column
                target = column // across
                k = at[target]
                o = to[target]
                if o >= end[target]:
                    return CHANGED, np.int64(row), _ZERO
                src[k] = row - first
                val[k] = data[entry]
                dst[o] = column - target * across
                at[target] = k + _ONE
                to[target] = o + _ONE
            start = stop
        for d in range(blocks):
            if end[d] - to[d] >= lanes:
                return CHANGED, np.int64(first), _ZERO
            k = at[d]
            for pad in range(to[d], end[d]):
                dst[pad] = across
                src[k] = _ZERO
                val[k] = 0.0
                k += _ONE
    return DONE, np.int64(0), _ZERO
