"""The operands of one case on one backing: made, filled, and destroyed again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from hugepool.array import SharedArray, SharedObject
from hugepool.bench.cases import Case
from hugepool.bench.options import BASELINE, HEAP
from hugepool.matrix import SharedMatrix
from hugepool.pool import Pool
from hugepool_common.errors import HugepoolError
from hugepool_common.messages import View

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the operands of a table row lie, and how workers see them.

    Parameters
    ----------
    label
        Name in the table: a backing, ``heap``, or ``private`` for MAP_PRIVATE.
    rung
        Backing of the shared segments behind it.
    view
        What the workers make of them.
    """

    label: str
    rung: str
    view: View


def placement(backing: str) -> Placement:
    """Placement of a name of :data:`hugepool.bench.options.BACKINGS`."""
    if backing == HEAP:
        return Placement(HEAP, BASELINE, "heap")
    return Placement(backing, backing, "shared")


@dataclass(slots=True)
class OperandSet:
    """Arrays of one case on one rung, by role; destroyed by :meth:`destroy`.

    Roles are the kernels' own (``x``, ``idx``, ``A``, ``out``) and, for the bandwidth
    limits, ``stream_a``, ``stream_b`` and ``stream_out``.
    """

    pool: Pool
    rung: str
    objects: dict[str, SharedObject] = field(default_factory=dict)
    _owned: list[SharedObject] = field(default_factory=list)

    @classmethod
    def of_case(cls, pool: Pool, rung: str, case: Case, x: SharedArray | None = None) -> OperandSet:
        """Copy a case's inputs to a rung.

        Parameters
        ----------
        x
            An x of this rung that already holds the values; it stays the caller's.

        Raises
        ------
        NotEnoughPagesError, NotEnoughMemoryError
            The rung cannot hold them; nothing was kept.
        """
        made = cls(pool, rung)
        try:
            made._fill(case, x)
        except BaseException:
            made.destroy()
            raise
        return made

    def _fill(self, case: Case, x: SharedArray | None) -> None:
        self.objects["x"] = make_x(self.pool, self.rung, case) if x is None else x
        if x is None:
            self._owned.append(self.objects["x"])
        if case.matrix is not None:
            name = _new_name("A", self.rung)
            self._keep("A", self.pool.put(name, case.matrix, backing=self.rung))
        elif case.idx is not None:
            np.copyto(self._array("idx", len(case.idx), "i8").array, case.idx)
        self._array("out", case.out_elements)
        length = case.stream_elements
        self._array("stream_a", length).array.fill(1.0)
        self._array("stream_b", length).array.fill(2.0)
        if length == case.out_elements:
            self.objects["stream_out"] = self.objects["out"]
        else:
            self._array("stream_out", length)

    def _array(self, role: str, length: int, dtype: str = "f8") -> SharedArray:
        made = self.pool.create(
            _new_name(role.replace("_", "-"), self.rung), length, dtype, backing=self.rung
        )
        self._keep(role, made)
        return made

    def _keep(self, role: str, made: SharedObject) -> None:
        self.objects[role] = made
        self._owned.append(made)

    def array(self, role: str) -> SharedArray:
        """The dense array of a role."""
        found = self.objects[role]
        assert isinstance(found, SharedArray)
        return found

    def matrix(self) -> SharedMatrix:
        """The matrix."""
        found = self.objects["A"]
        assert isinstance(found, SharedMatrix)
        return found

    def destroy(self) -> None:
        """Unmap and remove everything that this set made."""
        self.objects.clear()
        while self._owned:
            drop(self.pool, self._owned.pop())


def make_x(pool: Pool, rung: str, case: Case) -> SharedArray:
    """An x on a rung with the case's values."""
    x = pool.create(_new_name("x", rung), case.x_elements, "f8", backing=rung)
    case.fill_x(x.array)
    return x


def drop(pool: Pool, made: SharedObject) -> None:
    """Unmap and remove one object; one that is gone already is no error."""
    name = made.name
    try:
        made.detach()
        pool.destroy(name)
    except HugepoolError:
        # On the way out of an error the session may be over; the coordinator then
        # removes what it made.
        pass


def _new_name(role: str, rung: str) -> str:
    return f"bench-{role}-{rung}-{next(_numbers)}"
