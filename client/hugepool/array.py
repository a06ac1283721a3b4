"""Named shared objects as a client holds them: what all have in common, and SharedArray."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hugepool import notebook
from hugepool.channel import Channel
from hugepool.holdings import Doomed
from hugepool.lease import Lease
from hugepool.timings import JobTimings
from hugepool_common.errors import (
    ArrayBusyError,
    ArrayLostError,
    CoordinatorUnreachableError,
    DetachedError,
    HugepoolError,
    InvalidSpecError,
    RequestTimeoutError,
)
from hugepool_common.mapping import Mapping
from hugepool_common.messages import (
    ArrayInfo,
    Describe,
    Described,
    Destroy,
    Publish,
    Published,
    Seal,
    Sealed,
)
from hugepool_common.spec import ArraySpec, PageReport, Part, check_name
from hugepool_common.units import format_bytes


def _refusing(symbol: str, *, reflected: bool = False) -> Callable[[Any, Any], Any]:
    """An operator of handles, which are no arrays: says what to write instead."""

    def operator(self: SharedObject, other: Any) -> Any:
        # What knows arrays, such as an ndarray or a Dask array, has its own answer to a handle.
        if type(other) not in _PLAIN and not isinstance(other, (SharedObject, list, tuple)):
            return NotImplemented
        if isinstance(other, SharedObject) and type(other) is not type(self) and not reflected:
            return NotImplemented  # a matrix knows better what to write
        raise self._no_operator(symbol, other, reflected)

    return operator


_PLAIN = (bool, int, float, complex)


class SharedObject:
    """A lease and a mapping of one named object in this process.

    Leaving (:meth:`detach`) and removing the name (``pool.destroy``) are two
    operations, as ``close`` and ``unlink`` of :mod:`multiprocessing.shared_memory`.

    Attributes
    ----------
    timings
        Reports of the job that last wrote this object through this handle, or None.

    Notes
    -----
    Pickled, it is its name and which object that was; whoever unpickles it attaches that
    object. If there is none such any more, what arrives raises the error when it is used.
    A forked child may use the arrays of its copy and detach it; for all else it attaches
    again. Threads may read the arrays freely; sealing and detaching are for one thread.
    """

    def __init__(
        self,
        channel: Channel,
        lease: int,
        info: ArrayInfo,
        *,
        writable: bool,
        session: object = None,
        rows: tuple[int, int] | None = None,
        forked: bool = True,
    ) -> None:
        self._channel = channel
        self._forked = forked  # whether a forked child is to have it while it is writable
        self._session = session  # kept alive: its end would end the coordinator it started
        self._lease = Lease(channel, lease)
        self._info = info
        self._rows = rows
        self.timings: JobTimings | None = None
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._mapping: Mapping | None = None
        self._destroyer: weakref.finalize[..., object] | None = None
        try:
            self._map(writable)
        except BaseException:
            self._lease.release()
            raise

    def _map(self, writable: bool) -> None:
        segment = self._info.segment
        self._channel.check_owner(segment)
        forked = self._forked or not writable
        mapping = Mapping.open(segment, writable=writable, forked=forked)
        self._mapping, former = mapping, self._mapping
        self._arrays = {}
        if former is not None:
            former.close()
        self.prove()

    @property
    def spec(self) -> ArraySpec:
        """Name, shape, dtype and layout."""
        return self._info.spec

    @property
    def info(self) -> ArrayInfo:
        """What the coordinator told when this handle was made or sealed."""
        return self._info

    @property
    def name(self) -> str:
        """The name that any process may attach by."""
        return self.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return np.dtype(self.spec.dtype)

    @property
    def nbytes(self) -> int:
        """Payload in bytes."""
        return self.spec.nbytes

    @property
    def sealed(self) -> bool:
        """Whether the bytes can change no more, as far as this handle knows."""
        return self._info.sealed

    @property
    def generation(self) -> int:
        """How often something was published under the name, this one included."""
        return self._info.generation

    @property
    def checksum(self) -> str:
        """Of the payload, as ``pool.verify`` computes it again; empty until it is sealed."""
        return self._info.checksum

    @property
    def lost(self) -> bool:
        """Whether the coordinator knows this object no more: what is mapped here is all there is.

        After a restart of the coordinator, if the name was destroyed or its file was
        removed from outside. The arrays can still be read.
        """
        return self._lease.lost

    def check_known(self) -> None:
        """Refuse to name this object to the coordinator, which may call another one so now.

        Raises
        ------
        ArrayLostError
            It was lost in a restart of the coordinator.
        """
        if self.lost:
            raise ArrayLostError(
                f"{self.name!r} was lost when the coordinator was restarted",
                where=self._info.segment.path,
                remedy="its arrays can still be read here: put a copy under a name",
            )

    @property
    def rows(self) -> tuple[int, int] | None:
        """The rows ``[start, stop)`` that this handle declared its own, if it did."""
        return self._rows

    @property
    def writable(self) -> bool:
        """Whether this process maps the segment for writing."""
        return self._attached().writable

    @property
    def pages(self) -> PageReport:
        """How *this process* maps the segment: proved when it was attached."""
        return self._pages

    def destroy_with_handle(self) -> None:
        """Have the name removed when this handle is detached or forgotten."""
        self._destroyer = weakref.finalize(self, self._channel.post_later, doomed(self))
        self._destroyer.atexit = False  # the session's end does it

    def prove(self) -> PageReport:
        """Look again how this process maps the segment and return the new report."""
        segment = self._info.segment
        self._pages = self._attached().report(
            segment.backing, segment.page_size, self._info.pages.reasons
        )
        return self._pages

    def seal(self) -> Self:
        """Make the object immutable for ever and let others rely on it.

        Our own mapping becomes read-only. The coordinator checks, by a file
        lease, that nobody maps the segment writable.

        Raises
        ------
        ArrayBusyError
            Writable views of it live in this process (``del`` them first), or
            another process maps it writable.
        NotPermittedError
            The object belongs to another user.
        """
        if self.sealed:
            return self
        self._channel.request(Describe(self.name), Described)  # is there anybody to ask?
        self.check_known()
        self._refuse_live_arrays("seal")
        was_writable = self.writable
        if was_writable:
            # The data is never without a mapping: this one may be its last.
            self._map(False)
        try:
            self._info = self._channel.request(
                Seal(self.name, self._info.segment.segment_id), Sealed, of=self._lease.claim
            ).array
        except (CoordinatorUnreachableError, RequestTimeoutError):
            raise
        except HugepoolError:
            # A refusal. After anything else, such as Ctrl-C, the seal may have been done:
            # the mapping stays read-only, and seal() may be called again.
            if was_writable:
                self._map_again()
            raise
        return self

    def publish_as(self, name: str) -> Self:
        """Give the sealed object another name, in one step; see ``pool.publish``.

        Raises
        ------
        InvalidSpecError
            It is not sealed, or no array can have this name.
        NotPermittedError
            This object, or what has the name now, belongs to another user.
        """
        check_name(name)
        self._attached()
        if not self.sealed:
            raise InvalidSpecError(
                f"{self.name!r} is not sealed: only what changes no more can be published",
                remedy="call seal() first",
            )
        self.check_known()
        publish = Publish(name, self.name, self._info.segment.segment_id)
        self._info = self._channel.request(publish, Published, of=self._lease.claim).array
        if self._destroyer is not None:  # it was to go with this handle
            self._destroyer.detach()
            self._destroyer = None
        return self

    def detach(self) -> None:
        """Unmap, and give the lease back. The name stays.

        Raises
        ------
        ArrayBusyError
            Views of it live in this process; nothing has changed.
        """
        if self._mapping is None:
            return
        self._refuse_live_arrays("detach")
        self._mapping.close()
        self._mapping = None
        if self._destroyer is not None:
            self._destroyer()
        self._lease.release()

    @property
    def in_use(self) -> bool:
        """Whether arrays over it are alive in this process, besides those it keeps itself."""
        if self._mapping is None:
            return False
        self._arrays.clear()
        return self._mapping.live_arrays() > 0

    def _map_again(self) -> None:
        try:
            self._map(True)
        except (HugepoolError, OSError):
            pass  # the file is gone: what we have can still be read

    def _refuse_live_arrays(self, verb: str) -> None:
        mapping = self._attached()
        self._arrays.clear()
        alive = mapping.live_arrays()
        if alive:
            raise ArrayBusyError(
                f"cannot {verb} {self.name!r} while arrays over it are in use",
                needed="no live view",
                had=f"{alive} in this process",
                remedy="del the names bound to .array, its slices and what was made from them",
            )

    def _attached(self) -> Mapping:
        if self._mapping is None:
            raise DetachedError(
                f"{self.name!r} is detached", remedy=f"call pool.attach({self.name!r})"
            )
        return self._mapping

    def _array(self, role: str) -> np.ndarray[Any, Any]:
        self._channel.check_lease()
        if role not in self._arrays:
            part = next(part for part in self.spec.parts if part.role == role)
            self._arrays[role] = self._attached().array(part)
        return self._arrays[role]

    def byte_views(self) -> list[memoryview]:
        """The parts of the object as bytes, in order and without a copy; padding is in none."""
        mapping = self._attached()
        self._channel.check_lease()
        return [
            mapping.array(Part(part.role, "|u1", (part.nbytes,), part.offset)).data
            for part in self.spec.parts
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.detach()
        else:  # views in the traceback's frames must not hide the error
            try:
                self.detach()
            except ArrayBusyError:
                pass

    def __reduce__(self) -> tuple[object, ...]:
        if self._rows is not None:
            raise TypeError(
                f"rows {self._rows} of {self.name!r} are this process's to write: pass the name, "
                "and attach other rows on the far side"
            )
        self._attached()
        self._channel.check_lease()
        self.check_known()
        # By name, for to attach again is for a layer above this one.
        handover = importlib.import_module("hugepool.handover")
        reduced: tuple[object, ...] = handover.reduced(self, self._channel.address)
        return reduced

    if not TYPE_CHECKING:  # for whom every attribute would be there

        def __getattr__(self, name: str) -> Any:
            # Only for what is not found; whoever looks for a protocol's method gets a plain answer.
            hint = "" if name.startswith("_") else self._instead_of(name)
            raise AttributeError(
                f"{type(self).__name__!r} has no attribute {name!r}{f'; {hint}' if hint else ''}",
                name=name,
                obj=self,
            )

    def _instead_of(self, attribute: str) -> str:
        """What to write instead of an attribute that handles do not have; empty if unknown."""
        return ""

    def _no_operator(self, symbol: str, other: object, reflected: bool) -> TypeError:
        left, right = called(self), called(other)
        if reflected:
            left, right = right, left
        return TypeError(
            f"no {left} {symbol} {right}: a handle is no array; {self._compute_with()}"
        )

    def _compute_with(self) -> str:
        return "compute with the arrays that it has"

    __add__, __radd__ = _refusing("+"), _refusing("+", reflected=True)
    __sub__, __rsub__ = _refusing("-"), _refusing("-", reflected=True)
    __mul__, __rmul__ = _refusing("*"), _refusing("*", reflected=True)
    __truediv__, __rtruediv__ = _refusing("/"), _refusing("/", reflected=True)
    __pow__, __rpow__ = _refusing("**"), _refusing("**", reflected=True)
    __matmul__, __rmatmul__ = _refusing("@"), _refusing("@", reflected=True)

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        if self._mapping is None:
            state = "detached"
        return (
            f"<{type(self).__name__} {self.name!r} {self._shown()} "
            f"{format_bytes(self.nbytes)} {state}, {self._pages}>"
        )

    def _repr_html_(self) -> str:
        state = "sealed" if self.sealed else "open"
        if self._mapping is None:
            state = "detached"
        return notebook.table(
            type(self).__name__, notebook.object_rows(self.spec, self._pages, state)
        )

    def _shown(self) -> str:
        return f"{self.shape} {self.dtype}"


def called(value: object) -> str:
    """How an operand is called in an error."""
    return value.name if isinstance(value, SharedObject) else type(value).__name__


def doomed(made: SharedObject) -> Doomed:
    """How this very object is destroyed, whatever has its name or its number by then."""
    return Doomed(Destroy(made.name, made._info.segment.segment_id), made._lease.claim)


class SharedArray(SharedObject):
    """A dense array in shared memory.

    Where rows were declared (``pool.attach(name, readonly=False, rows=(a, b))``) the
    array, its length and its DLPack are those rows; ``shape`` and ``nbytes`` are the whole.
    Made by ``pool.create``, ``pool.attach``, ``pool.put`` and as the result of
    ``pool.gather`` and ``pool.matvec``.
    """

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """A plain ``numpy.ndarray`` over the mapping, C order; read-only unless writable here.

        It keeps the mapping alive, also after the handle is gone.
        """
        whole = self._array("array")
        return whole if self._rows is None else whole[slice(*self._rows)]

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        return np.asarray(self.array, dtype=dtype, copy=copy)

    def __dlpack__(self, **wanted: Any) -> Any:
        """A DLPack capsule over the mapping, which it keeps alive; never a copy unless asked.

        Parameters
        ----------
        **wanted
            ``stream``, ``max_version``, ``dl_device`` and ``copy``, as the array API standard
            has them; they are NumPy's to judge.

        Raises
        ------
        BufferError
            The array is read-only and the consumer asked for a DLPack before version 1.0,
            which has no way to say so.
        """
        return self.array.__dlpack__(**wanted)

    def __dlpack_device__(self) -> tuple[int, int]:
        """``(1, 0)``: the processor's own memory."""
        kind, number = self.array.__dlpack_device__()
        return int(kind), int(number)

    def __buffer__(self, flags: int) -> memoryview:
        """The buffer protocol, which Python asks of classes from 3.12 on.

        Before, ``memoryview(x.array)`` is the same.
        """
        return self.array.data

    def __arrow_array__(self, type: Any = None) -> Any:
        """A ``pyarrow.Array`` over the mapping, without a copy; of bools one of bits, a copy."""
        import pyarrow  # it is pyarrow that calls this

        return pyarrow.array(self.array, type=type)

    def __len__(self) -> int:
        return len(self.array)

    def _instead_of(self, attribute: str) -> str:
        return f"write .array.{attribute}" if hasattr(np.ndarray, attribute) else ""

    def _compute_with(self) -> str:
        return "compute with its .array"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> Any:
        """``array[key]``: with it, what takes blocks of array-likes, such as Dask, takes this."""
        return self.array[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)
