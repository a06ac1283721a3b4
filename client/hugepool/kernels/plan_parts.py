"""What the plans of a matrix have in common: a head, parts in one segment, bound kernels.

Each form lists its parts as (role, dtype code, number of elements), of which the first
is ``head``. Words of a head that all of them share:

====  ==========================================================
word  holds
====  ==========================================================
0     the form's number
1, 2  rows and columns of the matrix
3     its entries
4     bytes of one of its values: 4 or 8, both floating point
5     bytes of a value as the plan keeps it
6     1 if values were rounded for that, else 0
7 on  the form's own
====  ==========================================================

The parts must be those that were built: lengths are checked, contents are trusted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np

from hugepool.kernels.base import (
    Array,
    Bound,
    CsrArrays,
    Operands,
    PlanArrays,
    Work,
    check_length,
    check_rows,
    matrix,
    refuse_overlap,
    vector,
)
from hugepool.kernels.csr import CHANGED, refuse_failure
from hugepool_common.errors import InvalidSpecError

Part: TypeAlias = tuple[str, str, int]
"""Role, dtype code and number of elements of one array of a plan."""

HEAD_WORDS = 32
HEAD: Part = ("head", "<i8", HEAD_WORDS)
REAL_CODES = ("<f4", "<f8")
"""Dtypes of values and vectors that these plans take."""
MOST_ENTRIES = (1 << 32) - 1
"""Starts of rows are kept in 32 bits."""
LANES = 4
"""Rows whose sums are made side by side, each in the order of its entries."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix as a plan holds it: what the words 1 to 6 of a head say.

    Parameters
    ----------
    rows, columns, nnz
        Of the matrix.
    value_bytes
        Of one of its values.
    stored_bytes
        Of a value in the plan.
    rounded
        Whether values were rounded to fit these.
    """

    rows: int
    columns: int
    nnz: int
    value_bytes: int
    stored_bytes: int
    rounded: bool

    @property
    def groups(self) -> int:
        """Of :data:`LANES` rows each, the last perhaps of fewer."""
        return -(-self.rows // LANES)

    @property
    def value_code(self) -> str:
        """Dtype of the matrix's values."""
        return f"<f{self.value_bytes}"

    @property
    def stored_code(self) -> str:
        """Dtype of the values in the plan; the bits of a bfloat16 are kept as an integer."""
        return "<u2" if self.stored_bytes == 2 else f"<f{self.stored_bytes}"

    @property
    def values(self) -> str:
        """What values are kept as, in words."""
        kind = {2: "bfloat16", 4: "float32", 8: "float64"}[self.stored_bytes]
        return f"{kind}, rounded" if self.rounded else kind

    @property
    def words(self) -> tuple[int, ...]:
        """Words 1 to 6 of a head."""
        return (
            self.rows,
            self.columns,
            self.nnz,
            self.value_bytes,
            self.stored_bytes,
            int(self.rounded),
        )


def nbytes_of(parts: tuple[Part, ...]) -> int:
    """Bytes of the parts, without what lies between them."""
    return sum(np.dtype(code).itemsize * count for _, code, count in parts)


def real_matrix(operands: Operands) -> CsrArrays:
    """The matrix in the role ``A``, of float32 or float64 and at most 2**32 - 1 entries.

    Raises
    ------
    InvalidSpecError
        It has another dtype, is larger, or fails :func:`~hugepool.kernels.base.matrix`.
    InvalidMatrixError
        The lengths of its arrays contradict each other.
    """
    a = matrix(operands, "A", REAL_CODES)
    if a.nnz > MOST_ENTRIES or max(a.shape) > MOST_ENTRIES:
        raise InvalidSpecError(
            "the matrix is too large for 32-bit places",
            needed=f"at most {MOST_ENTRIES} rows, columns and entries",
            had=f"{a.shape[0]} x {a.shape[1]}, {a.nnz} entries",
            where="A",
        )
    return a


def plan_in(operands: Operands) -> PlanArrays:
    """The plan in the role ``plan``.

    Raises
    ------
    InvalidSpecError
        There is none.
    """
    plan = operands.get("plan")
    if not isinstance(plan, PlanArrays):
        raise InvalidSpecError("the operand must be a plan", had=type(plan).__name__, where="plan")
    return plan


def write_head(plan: PlanArrays, form: int, stored: Stored, *own: int) -> None:
    """Fill the head: the form, what it holds, then the form's own words."""
    head = vector(plan.arrays, "head", ("<i8",), writable=True)
    check_length(head, "head", HEAD_WORDS)
    head[:] = 0
    words = (form, *stored.words, *own)
    head[: len(words)] = words


def read_head(plan: PlanArrays, form: int) -> tuple[Stored, list[int]]:
    """What the head says, and the words from 7 on.

    Raises
    ------
    InvalidSpecError
        The plan has no head, is of another form, or holds what no plan holds.
    """
    head = vector(plan.arrays, "head", ("<i8",))
    check_length(head, "head", HEAD_WORDS)
    words = [int(word) for word in head]
    if words[0] != form:
        raise InvalidSpecError(
            "the plan is of another form", needed=str(form), had=str(words[0]), where="head"
        )
    rows, columns, nnz, value_bytes, stored_bytes, rounded = words[1:7]
    stored = Stored(rows, columns, nnz, value_bytes, stored_bytes, bool(rounded))
    if min(words[1:]) < 0 or stored.value_bytes not in (4, 8) or stored_bytes not in (2, 4, 8):
        raise InvalidSpecError("the head of the plan makes no sense", where="head")
    return stored, words[7:]


def parts_in(
    plan: PlanArrays, parts: tuple[Part, ...], *, writable: bool = False
) -> dict[str, Array]:
    """The plan's arrays by role, without the head, checked against the list of its parts.

    Raises
    ------
    InvalidSpecError
        One is missing, or has another dtype or length, or is read-only where it must
        be written.
    """
    found = {}
    for role, code, count in parts:
        if role != "head":
            found[role] = vector(plan.arrays, role, (code,), writable=writable)
            check_length(found[role], role, count)
    return found


def source_in(operands: Operands, stored: Stored) -> CsrArrays:
    """The matrix in the role ``A``, which must be the one that was looked at.

    Raises
    ------
    InvalidSpecError, InvalidMatrixError
        It is another one, by its shape, dtype or number of entries.
    """
    a = real_matrix(operands)
    found = (*a.shape, a.data.itemsize)
    needed = (stored.rows, stored.columns, stored.value_bytes)
    if found != needed or a.nnz < stored.nnz:
        raise InvalidSpecError(
            "the plan was begun for another matrix",
            needed=f"{needed}, {stored.nnz} entries",
            had=f"{found}, {a.nnz} entries",
            where="A",
        )
    return a


def source_vector(operands: Operands, role: str, length: int) -> Array:
    """A float32 or float64 vector of this length.

    Raises
    ------
    InvalidSpecError
        It is not.
    """
    x = vector(operands, role, REAL_CODES)
    check_length(x, role, length)
    return x


def target_vector(operands: Operands, stored: Stored, x: Array) -> Array:
    """``out``: the dtype that NumPy gives the product, one element a row, writable.

    Raises
    ------
    InvalidSpecError
        It is not.
    """
    result = np.result_type(np.dtype(stored.value_code), x)
    out = vector(operands, "out", (result.str,), writable=True)
    check_length(out, "out", stored.rows)
    return out


def product_operands(
    operands: Operands,
    parts: tuple[Part, ...],
    stored: Stored,
    *,
    role: str = "x",
    length: int | None = None,
) -> tuple[dict[str, Array], Array, Array]:
    """The arrays of a plan by role, the vector that is multiplied, and ``out``.

    Parameters
    ----------
    operands
        ``plan``, ``out`` and the vector.
    parts
        The plan's.
    stored
        The matrix.
    role, length
        Of the vector, where it is not ``x`` as the caller gave it.

    Raises
    ------
    InvalidSpecError
        One does not fit, or ``out`` overlaps another.
    """
    found = parts_in(plan_in(operands), parts)
    taken = source_vector(operands, role, stored.columns if length is None else length)
    out = target_vector(operands, stored, taken)
    refuse_overlap(out, **{role: taken}, **found)
    return found, taken, out


def refuse_fill(outcome: tuple[int, int, int], a: CsrArrays) -> None:
    """Raise what a build found wrong with a matrix, if anything.

    Raises
    ------
    InvalidMatrixError, IndexOutOfRangeError
        The matrix contradicts itself.
    InvalidSpecError
        It is not what was looked at before.
    """
    if outcome[0] == CHANGED:
        refuse_changed(f"A, near row {int(outcome[1])}")
    refuse_failure(outcome, a)


def refuse_changed(where: str) -> NoReturn:
    """Raise for a matrix that somebody writes to.

    Raises
    ------
    InvalidSpecError
        Always.
    """
    raise InvalidSpecError(
        "the matrix was written to while its plan was built",
        where=where,
        remedy="seal the matrix first",
    )


class BoundKernel(ABC):
    """A kernel that is a compiled loop and its arguments."""

    implementation = "numba"

    @abstractmethod
    def bind(self, operands: Operands) -> Bound:
        """Check the operands once, for any number of calls."""

    def prepare(self, operands: Operands) -> None:
        """Check the operands and compile for their dtypes."""
        bound = self.bind(operands)
        bound.loop.prepare(*bound.arguments, 0, 0)

    def call(self, operands: Operands, row_start: int, row_stop: int) -> Any:
        """Check the operands and the range, and run the loop; gives what it returns."""
        bound = self.bind(operands)
        check_rows(row_start, row_stop, bound.rows)
        return bound.loop(*bound.arguments, int(row_start), int(row_stop))


def build_work(stored: Stored, entries: int, rows: int, index_bytes: int) -> Work:
    """What it takes to copy so many entries and rows of a matrix into a plan."""
    entry = index_bytes + stored.value_bytes + stored.stored_bytes + 4
    return Work(rows, entries, entries * entry + rows * 2 * index_bytes)
