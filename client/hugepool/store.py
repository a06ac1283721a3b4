"""The named objects of a session: made, filled, loaded, attached, listed, destroyed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np

from hugepool import formats
from hugepool.archive import Archive
from hugepool.arguments import dtype_code, extents_of, rows_range
from hugepool.array import SharedArray, SharedObject, doomed
from hugepool.channel import Channel
from hugepool.holdings import Doomed
from hugepool.matrix import CsrSource, SharedMatrix
from hugepool.plan_record import PlanSegment
from hugepool.progress import Waiting
from hugepool_common.errors import (
    ArrayBusyError,
    CoordinatorUnreachableError,
    HugepoolError,
    IndexOutOfRangeError,
    InvalidMatrixError,
    InvalidSpecError,
    RequestTimeoutError,
)
from hugepool_common.messages import (
    ArrayCreated,
    ArrayInfo,
    Attach,
    Attached,
    CreateArray,
    CreateProgress,
    Describe,
    Described,
    Destroy,
    Destroyed,
    List,
    Listed,
    Message,
)
from hugepool_common.spec import (
    ITEM_SIZES,
    ArraySpec,
    HugePages,
    PageSize,
    check_name,
    check_policy,
    check_shape,
)

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all while an array is made or read."""

DISCARD_TIMEOUT_S = 2.0
"""How long the end of a failed call waits for what it made to be gone."""

_S = TypeVar("_S", bound=SharedObject)

_HANDLES: dict[str, type[SharedObject]] = {
    "array": SharedArray,
    "csr": SharedMatrix,
    "plan": PlanSegment,
}


class Policy(TypedDict, total=False):
    """How an array is to be backed, and who hears of its progress.

    Keys
    ----
    huge_pages
        ``try``, ``on`` or ``off``; default: the pool's.
    page_size
        ``auto``, ``4K``, ``2M`` or ``1G``; default: the pool's.
    backing
        Exactly this rung (``hugetlbfs-2m``, ``hugetlbfs-1g``, ``tmpfs-huge``,
        ``shm-collapse``, ``shm-4k``) or fail.
    progress
        Called with ``(done_bytes, total_bytes)``.
    temporary
        Whether the object goes with this process, however that ends, even when it is
        sealed; until it is published. Who else has attached it keeps it as long. Default:
        a sealed object stays until somebody destroys it.
    """

    huge_pages: HugePages
    page_size: PageSize
    backing: str
    progress: Progress | None
    temporary: bool


class ArrayStore:
    """What a session can do with named objects; :class:`hugepool.Pool` is one.

    Parameters
    ----------
    channel
        The open session.
    huge_pages, page_size
        Policy of arrays that state none of their own.
    """

    def __init__(self, channel: Channel, huge_pages: HugePages, page_size: PageSize) -> None:
        self._channel = channel
        self._huge_pages: HugePages = huge_pages
        self._page_size: PageSize = page_size

    def create(
        self,
        name: str,
        shape: int | Sequence[int],
        dtype: Any = "f8",
        **policy: Unpack[Policy],
    ) -> SharedArray:
        """Make an array of zeros, writable by this client until it is sealed.

        Parameters
        ----------
        name
            1 to 128 of ``A-Za-z0-9._-``, beginning with a letter or digit.
        shape
            Extents; an int for one axis, ``()`` for one element. C order.
        dtype
            A bool, integer, float or complex dtype in native byte order.
        **policy
            See :class:`hugepool.store.Policy`.

        Raises
        ------
        InvalidSpecError
            No array can have this name, shape or dtype.
        ArrayExistsError
            The name is taken.
        NotEnoughPagesError
            Huge pages were demanded and are not to be had; says how to get them.
        NotEnoughMemoryError
            No page kind has room. Nothing was kept.
        """
        return self._make(SharedArray, _array_spec(name, shape, dtype), policy)

    def attach(
        self, name: str, readonly: bool = True, *, rows: tuple[int, int] | None = None
    ) -> Any:
        """Map a named object into this process, without a copy.

        Parameters
        ----------
        name
            As it was created.
        readonly
            With False the mapping is writable, while the object is not sealed.
        rows
            Rows ``[start, stop)`` of an array that this process alone will write; the
            handle's ``array`` is these rows. Ranges that writers declare may not overlap.
            A promise among writers: the kernel keeps nobody from writing elsewhere.

        Returns
        -------
        SharedArray or SharedMatrix

        Raises
        ------
        ArrayNotFoundError
            No such name.
        ArrayLostError
            The name is known and its memory is gone.
        ArraySealedError
            ``readonly=False`` for a sealed object.
        ArrayBusyError
            Another process has declared some of these rows; names it.
        InvalidSpecError
            The object has no such rows, or is no array.
        """
        own = None if rows is None else rows_range(rows, readonly)
        return self._attach(Attach(check_name(name), bool(readonly), own))

    def attach_passed(self, name: str, segment_id: int, *, readonly: bool) -> Any:
        """Map the object of a handle that was passed on, whatever has its name by now.

        Parameters
        ----------
        name, segment_id
            Of the handle.
        readonly
            As of :meth:`attach`.

        Raises
        ------
        SegmentChangedError
            Nobody kept it, and another object has the name.
        HugepoolError
            As :meth:`attach`.
        """
        return self._attach(Attach(check_name(name), readonly, segment_id=segment_id))

    def _attach(self, request: Attach) -> Any:
        attached = self._channel.request(request, Attached)
        return _HANDLES[attached.array.spec.kind](
            self._channel,
            attached.lease,
            attached.array,
            writable=not request.readonly,
            session=self,
            rows=request.rows,
        )

    def put(self, name: str, value: Any, *, seal: bool = True, **policy: Unpack[Policy]) -> Any:
        """Copy an array, or a SciPy sparse matrix of any format, into shared memory and seal it.

        Returns
        -------
        SharedArray or SharedMatrix

        Raises
        ------
        InvalidMatrixError
            A matrix whose structure contradicts itself; nothing is shared.
        HugepoolError
            As :meth:`create`.
        """
        if formats.is_sparse(value):
            return self._put_matrix(name, formats.csr_source(value), seal, policy)
        if isinstance(value, np.ma.MaskedArray):
            raise InvalidSpecError(
                "a masked array cannot be shared", remedy="put value.filled(...) and the mask"
            )
        source = np.asarray(value)
        spec = _array_spec(name, source.shape, source.dtype)
        shared = self._make(SharedArray, spec, policy, forked=not seal)
        with Waiting(f"filling {name}"):
            return self._filled(shared, lambda: np.copyto(shared.array, source), seal)

    def load(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        member: str | None = None,
        **policy: Unpack[Policy],
    ) -> Any:
        """Read a file into a sealed array or matrix.

        Arrays (``.npy``, ``.npz``, ``.safetensors``, ``.arrow``, ``.feather``) and SciPy's CSR
        ``.npz`` go straight into shared memory; other matrices (``.mtx``, ``.mtx.gz``,
        ``.npz`` of other formats) are made in this process first.

        Parameters
        ----------
        name
            Of the new object.
        path
            The file; its ending says what it holds.
        member
            Name of the array, tensor or column, where a file holds several.
        **policy
            As of :meth:`create`.

        Returns
        -------
        SharedArray or SharedMatrix

        Raises
        ------
        FileNotFoundError
            No such file.
        InvalidSpecError, InvalidMatrixError
            The file does not hold what its ending says, or no such member. Nothing is left.
        MissingExtraError
            Arrow files need pyarrow, Matrix Market files SciPy.
        """
        path = os.fspath(path)
        check_name(name)
        if formats.is_text_matrix(path):
            return self._load_parsed(name, path, policy)
        with formats.open_arrays(path) as file:
            if member is None and isinstance(file, Archive) and file.holds_sparse:
                if file.holds_csr:
                    return self._load_csr(name, path, file, policy)
                return self._load_parsed(name, path, policy)
            one = formats.chosen(file, member, path)
            shape, dtype = file.header(one)
            spec = _array_spec(name, shape, dtype)
            shared = self._make(SharedArray, spec, policy, forked=False)
            with Waiting(f"reading {path}") as waiting:
                progress = policy.get("progress") or waiting.update
                return self._filled(
                    shared, lambda: file.read_into(one, shared.array, progress), True
                )

    def _load_parsed(self, name: str, path: str, policy: Policy) -> SharedMatrix:
        with Waiting(f"reading {path}") as waiting:
            source = formats.read_matrix(path, policy.get("progress") or waiting.update)
        return self._put_matrix(name, source, True, policy)

    def _load_csr(self, name: str, path: str, file: Archive, policy: Policy) -> SharedMatrix:
        shared = self._make(SharedMatrix, file.csr_spec(name), policy, forked=False)
        try:
            with Waiting(f"reading {path}") as waiting:
                progress = policy.get("progress") or waiting.update
                return self._filled(shared, lambda: file.read_csr(shared, progress), True)
        except (
            InvalidMatrixError,
            IndexOutOfRangeError,
        ) as error:  # the coordinator's, at the seal
            if path in str(error):
                raise
            raise InvalidMatrixError(f"no matrix can be read: {error}", where=path) from None

    def publish(self, name: str, value: Any, **policy: Unpack[Policy]) -> Any:
        """Let a name stand for something new, in one step: a *generation* of it.

        Who has the generation before attached keeps reading that one, whole; it goes
        with its last handle. Who attaches from now on gets the new one.

        Parameters
        ----------
        name
            What others attach by. It need not exist yet.
        value
            An array or sparse matrix, which is copied and sealed as by :meth:`put`; or a
            sealed handle, whose object then has this name instead of its own.
        **policy
            As of :meth:`put`, for values that are copied.

        Returns
        -------
        SharedArray or SharedMatrix
            The handle that was given, or a new one; ``generation`` counts.

        Raises
        ------
        InvalidSpecError
            The handle is not sealed.
        NotPermittedError
            What has the name now belongs to another user.
        HugepoolError
            As :meth:`put`. Nothing is left behind, and the name is as before.

        Notes
        -----
        A copied value is sealed under a name of the form ``NAME.new-...`` and then has its
        own; if this process is killed just between the two, it goes.
        """
        check_name(name)
        if isinstance(value, SharedObject):
            if policy:
                raise TypeError("pages are chosen when an object is made, not when it is published")
            return value.publish_as(name)
        temporary = temporary_name(name)
        policy["temporary"] = True
        made = self.put(temporary, value, **policy)
        try:
            return made.publish_as(name)
        except BaseException:
            self.discard(made)
            raise

    def make_blank(self, spec: ArraySpec, **policy: Unpack[Policy]) -> SharedObject:
        """Make an array or matrix of zeros, whose structure is only checked at its seal.

        It is for this process alone to fill: a child forked before the seal sees zeros.

        Parameters
        ----------
        spec
            Name, shape, dtype and layout.
        **policy
            As of :meth:`create`.
        """
        return self._make(_HANDLES[spec.kind], spec.checked(), policy, forked=False)

    def discard(self, *made: SharedObject) -> None:
        """Destroy what was made here and is of no use; later, if nobody answers now.

        Only these very objects, under the names that they were made under: whatever came
        in their place, or was published meanwhile, is not touched.
        """
        self._discard([doomed(one) for one in made])

    def _discard(self, made: Sequence[Doomed]) -> None:
        left = list(made)
        try:
            for one in made:
                if self._channel.silent:
                    break
                try:
                    self._channel.request(
                        one.destroy, Destroyed, timeout_s=DISCARD_TIMEOUT_S, of=one.claim
                    )
                except (CoordinatorUnreachableError, RequestTimeoutError):
                    break
                except ArrayBusyError:
                    continue  # its seal, or a job, is under way
                except HugepoolError:
                    pass  # it went with its coordinator, or has another name by now
                left.remove(one)
        finally:
            # The coordinator that answers next, this one or another, has them: tell it then.
            for one in left:
                self._channel.post_later(one)

    def destroy(self, name: str) -> None:
        """Remove a name. Who maps the array keeps reading; its pages go with the last mapping.

        Raises
        ------
        ArrayNotFoundError
            No such name.
        ArrayBusyError
            A running job uses it.
        """
        self._channel.request(Destroy(check_name(name)), Destroyed)

    def list(self) -> tuple[ArrayInfo, ...]:
        """All named objects, in order of their names."""
        found: list[ArrayInfo] = []
        while True:
            page = self._channel.request(List(found[-1].spec.name if found else ""), Listed)
            found += page.arrays
            if not page.more:
                return tuple(found)

    def describe(self, name: str) -> Described:
        """One object, and the pids that hold leases on it."""
        return self._channel.request(Describe(check_name(name)), Described)

    def _make(self, kind: type[_S], spec: ArraySpec, policy: Policy, *, forked: bool = True) -> _S:
        # What is only filled and sealed here is kept from forked children: a fork at the
        # wrong moment would keep it writable, and the seal refused, for the child's life.
        unknown = set(policy) - set(Policy.__annotations__)
        if unknown:
            raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}")
        request = CreateArray(
            spec,
            policy.get("huge_pages") or self._huge_pages,
            policy.get("page_size") or self._page_size,
            policy.get("backing") or "",
            temporary=bool(policy.get("temporary")),
        )
        check_policy(request.huge_pages, request.page_size, request.backing)
        with Waiting(f"making {spec.name}") as waiting:
            progress = policy.get("progress") or waiting.update
            told_bytes = 0

            def on_notice(notice: Message) -> None:
                nonlocal told_bytes
                if isinstance(notice, CreateProgress):
                    told_bytes = notice.done_bytes
                    progress(notice.done_bytes, notice.total_bytes)

            try:
                created = self._channel.request(request, ArrayCreated, on_notice=on_notice)
            except (CoordinatorUnreachableError, RequestTimeoutError):
                if request.temporary:  # it may have been made, and nobody else has its name
                    self._channel.post_later(Destroy(spec.name))
                raise
        # Now, for a handle that cannot be made gives the lease back.
        claim = self._channel.claim(created.lease)
        try:
            length = created.array.segment.length
            if told_bytes < length:  # notices are few, and a small array has none
                progress(length, length)
            return kind(
                self._channel,
                created.lease,
                created.array,
                writable=True,
                session=self,
                forked=forked,
            )
        except BaseException:
            # Nobody would ever fill it.
            destroy = Destroy(spec.name, created.array.segment.segment_id)
            self._discard([Doomed(destroy, claim)])
            raise

    def _put_matrix(self, name: str, source: CsrSource, seal: bool, policy: Policy) -> SharedMatrix:
        spec = ArraySpec(
            check_name(name),
            source.shape,
            source.data.dtype.str,
            "csr",
            len(source.indices),
            source.indices.dtype.str,
        ).checked()
        shared = self._make(SharedMatrix, spec, policy, forked=not seal)

        def fill() -> None:
            np.copyto(shared.indptr, source.indptr)
            np.copyto(shared.indices, source.indices)
            np.copyto(shared.data, source.data)

        with Waiting(f"filling {name}"):
            return self._filled(shared, fill, seal)

    def _filled(self, shared: _S, fill: Callable[[], None], seal: bool) -> _S:
        try:
            fill()
            if seal:
                shared.seal()
        except BaseException:
            self.discard(shared)  # half an array must not stay under the name
            raise
        return shared


def _array_spec(name: str, shape: int | Sequence[int], dtype: Any) -> ArraySpec:
    code = dtype_code(dtype)
    extents = check_shape(extents_of(shape), ITEM_SIZES[code])
    return ArraySpec(check_name(name), extents, code)


def temporary_name(name: str) -> str:
    """A name that nobody has, for what will be published as `name`."""
    return f"{name[:100]}.new-{secrets.token_hex(8)}"
