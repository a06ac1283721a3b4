"""CSR matrices: one named object of three arrays in one segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hugepool.array import SharedObject, called
from hugepool_common.errors import InvalidMatrixError, InvalidSpecError, MissingExtraError
from hugepool_common.spec import ITEM_SIZES

if TYPE_CHECKING:
    import scipy.sparse


_OF_SCIPY = frozenset(
    [
        *("T", "diagonal", "dot", "max", "mean", "min", "multiply", "ndim", "size", "sum"),
        *("toarray", "tocoo", "tocsc", "tocsr", "todense", "transpose"),
    ]
)
"""What people who know SciPy's matrices look for."""


class SharedMatrix(SharedObject):
    """A CSR matrix in shared memory: ``shape``, ``nnz`` and three plain ndarrays."""

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return self.spec.nnz

    @property
    def indptr(self) -> np.ndarray[Any, Any]:
        """Row starts, ``rows + 1`` of them."""
        return self._array("indptr")

    @property
    def indices(self) -> np.ndarray[Any, Any]:
        """Column of every stored entry."""
        return self._array("indices")

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """Value of every stored entry."""
        return self._array("data")

    def as_scipy(self) -> scipy.sparse.csr_array[Any]:
        """The matrix as ``scipy.sparse.csr_array`` over the same memory, without a copy.

        Raises
        ------
        MissingExtraError
            SciPy is not installed.
        """
        return csr_array(self.shape, self.indptr, self.indices, self.data)

    # To NumPy this is no operand: A @ x comes back here instead of a 0-d array of objects.
    __array_ufunc__ = None

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray[Any, Any]:
        raise TypeError(
            f"the matrix {self.name!r} is no array of NumPy's; .as_scipy() is it without a copy, "
            "and .indptr, .indices and .data are its arrays"
        )

    def __matmul__(self, other: Any) -> Any:
        raise TypeError(
            f"no {self.name} @ {called(other)}: write pool.matvec({self.name}, x), or "
            "pool.matmat of several vectors, on workers; or .as_scipy() @ x in this process"
        )

    def __rmatmul__(self, other: Any) -> Any:
        raise TypeError(
            f"no {called(other)} @ {self.name}: write pool.rmatvec({self.name}, x) on "
            "workers, or x @ .as_scipy() in this process"
        )

    def _instead_of(self, attribute: str) -> str:
        return f"write .as_scipy().{attribute}" if attribute in _OF_SCIPY else ""

    def _compute_with(self) -> str:
        return "compute with .as_scipy()"

    def _shown(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]} {self.dtype} nnz={self.nnz}"


def csr_array(
    shape: tuple[int, ...],
    indptr: np.ndarray[Any, Any],
    indices: np.ndarray[Any, Any],
    data: np.ndarray[Any, Any],
) -> scipy.sparse.csr_array[Any]:
    """A SciPy matrix over three arrays, without a copy.

    Raises
    ------
    MissingExtraError
        SciPy is not installed.
    """
    # Set, not given to the constructor: that copies arrays which are small
    # views of a large base (scipy.sparse prunes them), as all of ours are.
    matrix = import_sparse("as_scipy()").csr_array(shape, dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return cast("scipy.sparse.csr_array[Any]", matrix)


def import_sparse(what: str) -> Any:
    """``scipy.sparse``, or the error that names the extra.

    Raises
    ------
    MissingExtraError
        SciPy is not installed.
    """
    try:
        import scipy.sparse
    except ImportError:
        raise MissingExtraError(
            f"{what} needs SciPy", remedy="pip install 'hugepool[compute]'"
        ) from None
    return scipy.sparse


@dataclass(frozen=True, slots=True)
class CsrSource:
    """The three arrays of a matrix that is to be shared, checked.

    Parameters
    ----------
    indptr, indices
        1-D, one integer dtype for both (int32 or int64).
    data
        1-D, of a dtype that can be shared.
    shape
        ``(rows, columns)``.
    """

    indptr: np.ndarray[Any, Any]
    indices: np.ndarray[Any, Any]
    data: np.ndarray[Any, Any]
    shape: tuple[int, int]

    @classmethod
    def checked(
        cls,
        indptr: np.ndarray[Any, Any],
        indices: np.ndarray[Any, Any],
        data: np.ndarray[Any, Any],
        shape: tuple[int, int],
    ) -> CsrSource:
        """Validate a CSR structure once, before anything is shared.

        Raises
        ------
        InvalidMatrixError
            A wrong length, a falling ``indptr``, or a column out of range;
            names the first bad position.
        InvalidSpecError
            A dtype that cannot be shared.
        """
        rows, columns = int(shape[0]), int(shape[1])
        for role, array in (("indptr", indptr), ("indices", indices)):
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise InvalidMatrixError(
                    f"{role} must be a 1-D array of integers",
                    had=f"{array.ndim}-D {array.dtype}",
                )
        if data.dtype.str not in ITEM_SIZES or data.ndim != 1:
            raise InvalidSpecError(
                "data must be a 1-D array of a dtype that can be shared",
                needed=" ".join(ITEM_SIZES),
                had=f"{data.ndim}-D {data.dtype}",
            )
        _check_structure(indptr, indices, data, rows, columns)
        narrow = max(rows, columns, len(indices)) < 2**31
        index_dtype = np.dtype("<i4" if narrow else "<i8")
        return cls(
            np.ascontiguousarray(indptr, index_dtype),
            np.ascontiguousarray(indices, index_dtype),
            np.ascontiguousarray(data),
            (rows, columns),
        )


def _check_structure(
    indptr: np.ndarray[Any, Any],
    indices: np.ndarray[Any, Any],
    data: np.ndarray[Any, Any],
    rows: int,
    columns: int,
) -> None:
    if rows < 0 or columns < 0:
        raise InvalidMatrixError("a matrix has no negative extent", had=f"{rows} x {columns}")
    if len(indptr) != rows + 1:
        raise InvalidMatrixError(
            "indptr has the wrong length", needed=str(rows + 1), had=str(len(indptr))
        )
    if len(indices) != len(data):
        raise InvalidMatrixError(
            "indices and data differ in length", had=f"{len(indices)} and {len(data)}"
        )
    if indptr[0] != 0 or indptr[-1] != len(indices):
        raise InvalidMatrixError(
            "indptr must begin with 0 and end with nnz",
            needed=f"0 and {len(indices)}",
            had=f"{indptr[0]} and {indptr[-1]}",
        )
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        row = int(falls.argmax())
        raise InvalidMatrixError(
            "indptr must not fall", had=f"{indptr[row]} then {indptr[row + 1]}", where=f"row {row}"
        )
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
        position = int(((indices < 0) | (indices >= columns)).argmax())
        raise InvalidMatrixError(
            "a column is out of range",
            needed=f"0 to {columns - 1}",
            had=str(indices[position]),
            where=f"indices[{position}]",
        )
