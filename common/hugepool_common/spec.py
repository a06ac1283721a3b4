"""What an array is: its name, shape, dtype and layout, checked with our own integers.

Nothing here imports NumPy: a shape or dtype from a socket is refused before any
code that would trust it sees it (``numpy.ndarray`` accepts negative offsets,
object dtypes over foreign bytes and 2**40-element strings).
"""

from __future__ import annotations

import math
import operator
import re
from typing import Literal, get_args

import msgspec

from hugepool_common.errors import InvalidSpecError
from hugepool_common.units import page_size_name, round_up

HugePages = Literal["try", "on", "off"]
PageSize = Literal["auto", "4K", "2M", "1G"]
Kind = Literal["array", "csr", "plan"]

ITEM_SIZES: dict[str, int] = {
    "|b1": 1,
    "|i1": 1,
    "|u1": 1,
    "<i2": 2,
    "<u2": 2,
    "<f2": 2,
    "<i4": 4,
    "<u4": 4,
    "<f4": 4,
    "<i8": 8,
    "<u8": 8,
    "<f8": 8,
    "<c8": 8,
    "<c16": 16,
}
"""The dtypes that may be shared, as NumPy's ``dtype.str``, with their item sizes in bytes."""

INDEX_DTYPES = ("<i4", "<i8")
"""The dtypes of ``indptr`` and ``indices``; both arrays of a matrix share one."""

MAX_DIMENSIONS = 64
MAX_EXTENT = 1 << 48
"""Largest length of one axis, and of a segment in bytes."""

PART_ALIGNMENT = 4096
"""Every part of an object starts at a multiple of this many bytes in its segment."""

MAX_MEMBERS = 12
"""Most arrays in one plan."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,15}")
_CHECKSUM = re.compile(r"crc32-16M:[0-9a-f]{16}")


def check_name(name: object) -> str:
    """Return `name` if an array may have it.

    Raises
    ------
    InvalidSpecError
        It is not 1 to 128 characters of ``A-Za-z0-9._-`` that begin with a letter or digit.
    """
    if type(name) is not str or not _NAME.fullmatch(name):
        raise InvalidSpecError(
            f"{_shown(name)} is not an array name",
            needed="1 to 128 of A-Z a-z 0-9 . _ - beginning with a letter or digit",
        )
    return name


def check_dtype(dtype: object) -> str:
    """Return the dtype code if arrays of it may be shared.

    Raises
    ------
    InvalidSpecError
        It is not one of :data:`ITEM_SIZES` (objects, strings, records and
        big-endian numbers are refused).
    """
    if type(dtype) is not str or dtype not in ITEM_SIZES:
        raise InvalidSpecError(
            f"dtype {_shown(dtype)} cannot be shared", needed=f"one of {' '.join(ITEM_SIZES)}"
        )
    return dtype


def check_shape(shape: object, item_size: int) -> tuple[int, ...]:
    """Return `shape` as a tuple of ints if an array of it can exist.

    A 0-d shape ``()`` is one element; an axis may be 0.

    Raises
    ------
    InvalidSpecError
        An extent is no int, is negative or over 2**48, there are more than 64
        axes, or the array would pass 2**48 bytes.
    """
    if not isinstance(shape, (tuple, list)):
        raise InvalidSpecError(f"shape {_shown(shape)} is not a tuple of ints")
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidSpecError(
            "too many dimensions", needed=f"at most {MAX_DIMENSIONS}", had=str(len(shape))
        )
    for extent in shape:
        if type(extent) is not int:
            raise InvalidSpecError(f"shape {_shown(shape)} holds {_shown(extent)}, not an int")
        if not 0 <= extent <= MAX_EXTENT:
            raise InvalidSpecError(
                f"shape {_shown(shape)} has an extent out of range",
                needed="0 to 2**48",
                had=str(extent)[:40],
            )
    # Over the axes that count: a zero elsewhere must not hide an overflow that
    # NumPy would refuse later.
    if math.prod(extent for extent in shape if extent) * item_size > MAX_EXTENT:
        raise InvalidSpecError(
            f"an array of shape {_shown(shape)} is too large", needed="at most 2**48 bytes"
        )
    return tuple(shape)


def is_checksum(text: str) -> bool:
    """Whether a text is a checksum as :mod:`hugepool_common.checksum` writes it."""
    return _CHECKSUM.fullmatch(text) is not None


def check_label(label: object, items: object) -> None:
    """Refuse what cannot be told of a timing.

    Raises
    ------
    InvalidSpecError
        The label is no text of 1 to 64 characters, or `items` no count below 2**63.
    """
    if type(label) is not str or not 1 <= len(label) <= 64 or not label.isprintable():
        raise InvalidSpecError(f"{_shown(label)} is not a label", needed="1 to 64 characters")
    try:
        count = operator.index(items)  # type: ignore[arg-type]
    except TypeError:
        count = -1
    if not 0 <= count < 1 << 63:
        raise InvalidSpecError(f"items={_shown(items)} is not a count")


def check_policy(huge_pages: object, page_size: object, backing: object = "") -> None:
    """Refuse a wish for pages that has no meaning.

    Raises
    ------
    InvalidSpecError
        An option has no such value.
    """
    for option, value, choices in (
        ("huge_pages", huge_pages, get_args(HugePages)),
        ("page_size", page_size, get_args(PageSize)),
    ):
        if value not in choices:
            raise InvalidSpecError(
                f"{option}={_shown(value)} is not a choice", needed=" or ".join(choices)
            )
    if type(backing) is not str:
        raise InvalidSpecError(f"backing={_shown(backing)} is not the name of a rung")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Part(msgspec.Struct, frozen=True):
    """One ndarray inside a segment.

    Its role is ``array``; ``indptr``, ``indices`` or ``data`` of a matrix; or a member's of a plan.
    """

    role: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Payload in bytes."""
        return self.count * ITEM_SIZES[self.dtype]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A 1-D array of a plan: its role, dtype code and number of elements."""

    role: str
    dtype: str
    count: int

    def check(self) -> None:
        """Refuse a member that cannot be.

        Raises
        ------
        InvalidSpecError
            Its role is no short lower-case word, or no array can have its dtype and length.
        """
        if not _ROLE.fullmatch(self.role):
            raise InvalidSpecError(f"{_shown(self.role)} is not a role")
        check_shape((self.count,), ITEM_SIZES[check_dtype(self.dtype)])


class ArraySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of a named object, from which its layout follows on every side alike.

    Parameters
    ----------
    name
        1 to 128 of ``A-Za-z0-9._-``, beginning with a letter or digit.
    shape
        Of the array, or ``(rows, columns)`` of a matrix or of what a plan was made from.
    dtype
        Of the elements, or of a matrix's ``data``, or of what a plan computes.
    kind
        ``array``, ``csr`` for a compressed-sparse-row matrix of three parts in one
        segment, or ``plan`` for an analysed index or matrix.
    nnz
        Stored entries of a matrix; 0 for arrays and plans.
    index_dtype
        Of ``indptr`` and ``indices``; empty for arrays and plans. One dtype for both,
        because SciPy copies a matrix whose two differ.
    members
        The arrays of a plan; empty for others.
    made_of
        Number of the segment that the object was made from and goes with; 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "array"
    nnz: int = 0
    index_dtype: str = ""
    members: tuple[Member, ...] = ()
    made_of: int = 0

    def checked(self) -> ArraySpec:
        """Return self if such an object can exist.

        Raises
        ------
        InvalidSpecError
            A field is out of its range or contradicts another.
        """
        check_name(self.name)
        item_size = ITEM_SIZES[check_dtype(self.dtype)]
        if not 0 <= self.made_of < 1 << 63:
            raise InvalidSpecError("no such segment", had=_shown(self.made_of))
        if self.kind != "csr" and (self.nnz or self.index_dtype):
            raise InvalidSpecError("only a matrix has nnz and an index dtype")
        if self.kind == "plan":
            self._check_plan()
            return self
        if self.members:
            raise InvalidSpecError("only a plan has members")
        if self.kind == "array":
            check_shape(self.shape, item_size)
            return self
        check_shape(self.shape, 0)  # the product of the extents takes no memory
        if len(self.shape) != 2:
            raise InvalidSpecError("a matrix has two axes", had=str(len(self.shape)))
        if self.index_dtype not in INDEX_DTYPES:
            raise InvalidSpecError(
                f"index dtype {_shown(self.index_dtype)} is not supported",
                needed=" or ".join(INDEX_DTYPES),
            )
        check_shape((self.nnz,), max(item_size, ITEM_SIZES[self.index_dtype]))
        check_shape((self.shape[0] + 1,), ITEM_SIZES[self.index_dtype])
        index_limit = (1 << 31) - 1 if self.index_dtype == "<i4" else (1 << 63) - 1
        if max(*self.shape, self.nnz) > index_limit:
            raise InvalidSpecError(
                "the matrix is too large for 32-bit indices",
                had=f"{self.shape[0]} x {self.shape[1]}, nnz {self.nnz}",
                remedy="use index dtype <i8",
            )
        return self

    def _check_plan(self) -> None:
        check_shape(self.shape, 0)
        if not 1 <= len(self.members) <= MAX_MEMBERS:
            raise InvalidSpecError(
                "no such plan", needed=f"1 to {MAX_MEMBERS} members", had=str(len(self.members))
            )
        for member in self.members:
            member.check()
        if len({member.role for member in self.members}) < len(self.members):
            raise InvalidSpecError("two members of a plan have one role")
        check_shape((self.nbytes,), 1)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The ndarrays of the object with their byte offsets in the segment."""
        if self.kind == "array":
            return (Part("array", self.dtype, self.shape, 0),)
        placed: list[Part] = []
        offset = 0
        members = [(member.role, member.dtype, member.count) for member in self.members] or [
            ("indptr", self.index_dtype, self.shape[0] + 1),
            ("indices", self.index_dtype, self.nnz),
            ("data", self.dtype, self.nnz),
        ]
        for role, dtype, count in members:
            part = Part(role, dtype, (count,), offset)
            placed.append(part)
            offset = round_up(offset + part.nbytes, PART_ALIGNMENT)
        return tuple(placed)

    @property
    def nbytes(self) -> int:
        """Payload in bytes, up to the end of the last part."""
        last = self.parts[-1]
        return last.offset + last.nbytes


BY_LENGTH = "nbytes"
"""The `call` of a fall that is for the array's length alone: nothing refused it."""


class Fall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a rung of the ladder was not used.

    Parameters
    ----------
    rung
        The backing that was tried or probed.
    call
        The system call or probe that refused, such as ``mmap`` or ``mountinfo``.
    errno
        Its error number, 0 for a probe without one.
    reason
        What it means here.
    remedy
        The command that would mend it; empty when nothing would.
    """

    rung: str
    call: str
    errno: int
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        # That an array is small is no fault of the rung that it would have gone to.
        return self.reason if self.call == BY_LENGTH else f"not {self.rung}: {self.reason}"


class PageReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many bytes of a segment one process maps with huge pages, and why not more.

    Parameters
    ----------
    backing
        The rung that the segment stands on: ``hugetlbfs-1g``, ``hugetlbfs-2m``,
        ``tmpfs-huge``, ``shm-collapse`` or ``shm-4k``.
    page_size
        Bytes per page that the backing promises.
    length
        Bytes of the mapping, a multiple of `page_size`.
    huge_bytes
        Bytes mapped by huge page-table entries *in the reporting process*.
    present_bytes
        Bytes that have a page at all there.
    method
        How it was proved: ``pagemap_scan`` or ``smaps``.
    reasons
        The rungs that were passed over on the way down.
    """

    backing: str
    page_size: int
    length: int
    huge_bytes: int
    present_bytes: int
    method: str
    reasons: tuple[Fall, ...] = ()

    @property
    def huge_fraction(self) -> float:
        """Share of the mapping that is huge, 0.0 to 1.0."""
        return self.huge_bytes / self.length if self.length else 0.0

    def __str__(self) -> str:
        text = (
            f"{self.backing} ({page_size_name(self.page_size)} pages), "
            f"{100 * self.huge_fraction:.4g} % huge"
        )
        if self.huge_bytes < self.length and self.reasons:
            last = self.reasons[-1]
            text += f" because {last if last.call == BY_LENGTH else f'{last.rung}: {last.reason}'}"
        return text


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a segment lies and how to know that a file is really it.

    Parameters
    ----------
    segment_id
        Number unique in its coordinator.
    path
        Absolute path of the file.
    device, inode, owner_uid
        As ``fstat`` must give them.
    length
        File length in bytes, a multiple of `page_size`.
    page_size
        Bytes per page that the backing promises.
    backing
        The rung; see :class:`PageReport`.
    """

    segment_id: int
    path: str
    device: int
    inode: int
    owner_uid: int
    length: int
    page_size: int
    backing: str
