"""``hugepool.SharedMemory``: the standard library's class of this name, on verified huge pages."""

from __future__ import annotations

import errno
import os
import secrets
from typing import TYPE_CHECKING, Any

from hugepool.handover import pool_at
from hugepool_common.errors import ArrayExistsError, ArrayNotFoundError, InvalidSpecError

if TYPE_CHECKING:
    from hugepool.array import SharedArray
    from hugepool.pool import Pool
    from hugepool_common.spec import PageReport


class SharedMemory:
    """A block of bytes that other processes attach by name.

    In the place of ``multiprocessing.shared_memory.SharedMemory``: the same calls, the
    same exceptions. The block is an array of a coordinator, writable and never sealed, so
    ``pool.list()`` and ``hugepool ls`` show it.

    Parameters
    ----------
    name
        1 to 128 of ``A-Za-z0-9._-``, beginning with a letter or digit. None, when a block is
        created, makes one up.
    create
        Whether to make a block of zeros; else the one of this name is attached.
    size
        Bytes of a new block, at least 1. Ignored otherwise.
    track
        As in the standard library; no tracker is needed. A block that is created is always
        tracked: it goes with the process that made it, when no other process has it. One
        that is attached never is.
    pool
        The session to use. Default: one of this process for all blocks, with the coordinator
        that :func:`hugepool.connect` finds. If that must start a private one, it ends with
        this process, whose children find it by ``$HUGEPOOL_ADDRESS``.

    Raises
    ------
    FileExistsError
        ``create`` with a name that is taken.
    FileNotFoundError
        No block has this name.
    ValueError
        The name or size cannot be; or a new block is to be untracked, which would be a
        block that nobody owns: seal an array for that.
    NotEnoughMemoryError
        There is no room. The standard library would crash at a later write.
    PermissionError
        The name is that of a sealed array, or another user's.

    Notes
    -----
    As with the standard library, several processes that write the same bytes are their own
    affair. A forked child may use and close its copy.
    """

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        track: bool = True,
        pool: Pool | None = None,
    ) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create and size == 0:
            raise ValueError("'size' must be a positive number different from zero")
        if create and not track:
            raise ValueError(
                "a block is its creator's: one that outlives every process must be sealed; "
                "use pool.put() for it"
            )
        if name is None and not create:
            raise ValueError("'name' can only be None if create=True")
        self._pid = os.getpid()
        self._pool = pool or pool_at()
        self._address = self._pool.address
        self._name = f"shm-{secrets.token_hex(8)}" if name is None else name
        self._array: SharedArray | None = self._made(size) if create else self._attached()
        self._pages = self._array.pages
        whole = self._array.array.reshape(-1).view("u1")
        self._size = len(whole)
        self._buf: memoryview | None = whole.data

    def _made(self, size: int) -> SharedArray:
        try:
            return self._pool.create(self._name, size, "u1")
        except ArrayExistsError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._name) from None

    def _attached(self) -> SharedArray:
        try:
            found: Any = self._pool.attach(self._name, readonly=False)
        except ArrayNotFoundError:
            raise self._absent() from None
        if found.spec.kind != "array":
            found.detach()
            raise InvalidSpecError(f"{self._name!r} is no single block", needed="an array")
        array: SharedArray = found
        return array

    def _absent(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name)

    @property
    def name(self) -> str:
        """What other processes attach it by."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes, exactly as many as were asked for when it was created."""
        return self._size

    @property
    def buf(self) -> memoryview | None:
        """The bytes, writable; None once it is closed."""
        return self._buf

    @property
    def pages(self) -> PageReport:
        """How this process maps it: the proof of huge pages."""
        return self._pages

    def close(self) -> None:
        """Unmap it here; the name stays.

        Raises
        ------
        BufferError
            Something still uses the memory: a slice of ``buf``, or an array over it.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._array is not None:
            self._array.detach()
            self._array = None

    def unlink(self) -> None:
        """Remove the name. Who has it attached keeps it; the memory goes with the last.

        Raises
        ------
        FileNotFoundError
            No block has this name any more.
        """
        ours = os.getpid() == self._pid and not self._pool.closed
        pool = self._pool if ours else pool_at(self._address)
        try:
            pool.destroy(self._name)
        except ArrayNotFoundError:
            raise self._absent() from None

    def __reduce__(self) -> tuple[object, ...]:
        return _attach_again, (type(self), self._name, self._address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, size={self._size})"


def _attach_again(kind: type[SharedMemory], name: str, address: str) -> SharedMemory:
    """What pickle calls in the receiver."""
    return kind(name, pool=pool_at(address))
