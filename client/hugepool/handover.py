"""Handles that go to other processes: pickled as name and identity, attached again there.

The bytes stay where they are. What is pickled is who to ask (the coordinator's address),
for what (the name) and which object that was (its segment). A generation that was superseded
since is found for as long as somebody has it; what is gone is an error and never other data.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

from hugepool.address import local_service
from hugepool.connection import EMBEDDED, connect
from hugepool.listener import probe
from hugepool.pool import Pool
from hugepool_common.errors import (
    ArrayNotFoundError,
    ArraySealedError,
    CoordinatorUnreachableError,
    HugepoolError,
    SegmentChangedError,
)
from hugepool_common.paths import ADDRESS_VARIABLE
from hugepool_common.settings import read_settings
from hugepool_common.spec import Segment

_SEGMENT_FACTS = ("segment_id", "path", "device", "inode", "owner_uid", "length")

_lock = threading.Lock()
_pools: dict[tuple[int, str], Pool] = {}
"""By process and address: a forked child finds none of its parent's, which it cannot use."""


def _renew_lock() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def pool_at(address: str | None = None) -> Pool:
    """The session of this process for handles that came by themselves; opened when needed.

    It stays open until the process ends.

    Parameters
    ----------
    address
        Of the coordinator. Default: as :func:`hugepool.connect` finds it. If that starts a
        private one, it lasts as long as this process, and ``$HUGEPOOL_ADDRESS`` is set so that
        children which are started from now on find it too.

    Raises
    ------
    CoordinatorUnreachableError
        Nobody answers there.
    """
    if address is None:
        settings = read_settings()
        address = settings.address or local_service(settings)
    pid = os.getpid()
    with _lock:
        found = None if address is None else _pools.get((pid, address))
        if found is None or found.closed:
            _forget_ended(pid)
            found = connect(address or EMBEDDED)
            if address is None:
                os.environ[ADDRESS_VARIABLE] = found.address
            _pools[pid, found.address] = found
        return found


def _forget_ended(pid: int) -> None:
    """Let go of sessions whose coordinator is no more, so that a long-lived worker keeps few."""
    for key in [key for key in _pools if key[0] == pid]:
        try:
            probe(key[1])
        except CoordinatorUnreachableError:
            del _pools[key]


@dataclass(frozen=True, slots=True)
class Handover:
    """What of a handle goes to another process.

    Parameters
    ----------
    address
        Of the coordinator.
    name
        Of the object.
    generation
        Of the object, for messages.
    writable
        Whether it was mapped for writing, and so will be there unless it is sealed by then.
    identity
        The file behind it; see :class:`hugepool_common.spec.Segment`.
    """

    address: str
    name: str
    generation: int
    writable: bool
    identity: tuple[int | str, ...]

    def attach(self) -> Any:
        """Attach the object that was handed over, and no other, in this process.

        Returns
        -------
        SharedArray or SharedMatrix

        Raises
        ------
        ArrayNotFoundError
            It was destroyed since.
        SegmentChangedError
            It is gone, and the name stands for another object now.
        CoordinatorUnreachableError
            The coordinator has ended.
        """
        try:
            handle = self._attach()
        except ArrayNotFoundError:
            raise ArrayNotFoundError(
                f"{self.name!r} was destroyed after its handle was passed on",
                where=self.address,
                remedy="keep the name until the receiver has attached; a result that was made "
                "without a name goes with its last handle",
            ) from None
        if identity_of(handle.info.segment) != self.identity:
            generation = handle.generation
            handle.detach()
            raise SegmentChangedError(
                f"{self.name!r} stands for another object since its handle was passed on",
                needed=f"generation {self.generation}, segment {self.identity[0]}",
                had=f"generation {generation}, segment {handle.info.segment.segment_id}",
                where=self.address,
                remedy="pass the name instead of a handle to follow what is published under it",
            )
        return handle

    def _attach(self) -> Any:
        try:
            return self._attach_at(pool_at(self.address))
        except CoordinatorUnreachableError:
            # The session of before ended with its coordinator: is there another by now?
            with _lock:
                _forget_ended(os.getpid())
                _pools.pop((os.getpid(), self.address), None)
            return self._attach_at(pool_at(self.address))

    def _attach_at(self, pool: Pool) -> Any:
        segment_id = int(self.identity[0])
        if self.writable:
            try:
                return pool.attach_passed(self.name, segment_id, readonly=False)
            except ArraySealedError:
                pass  # since it was passed on
        return pool.attach_passed(self.name, segment_id, readonly=True)


def identity_of(segment: Segment) -> tuple[int | str, ...]:
    """What tells a segment from every other, also of a coordinator that came later."""
    return tuple(getattr(segment, fact) for fact in _SEGMENT_FACTS)


class LostHandle:
    """What arrives in the place of a handle that could not be attached: its use is the error.

    To raise while pickle is at work would end the workers of an executor, and make a
    ``multiprocessing.Pool`` wait for ever. So the error is raised in the task instead, by
    whatever the task does with the handle, and goes back to the sender as its outcome.

    Parameters
    ----------
    name
        Of the object.
    error
        Why it could not be attached.
    """

    def __init__(self, name: str, error: HugepoolError) -> None:
        self._name = name
        self._error = error

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # a question such as hasattr(), not a use
            raise AttributeError(f"{self!r} has no {attribute}")
        raise self._error.with_traceback(None)  # of this use alone, not of all before

    def _refuse(self, *_: object, **__: object) -> Any:
        raise self._error.with_traceback(None)

    __array__ = __len__ = __getitem__ = __iter__ = __enter__ = _refuse
    __dlpack__ = __dlpack_device__ = _refuse

    def __exit__(self, *_: object) -> None:
        """Nothing was entered."""

    def __reduce__(self) -> Any:
        raise self._error

    def __repr__(self) -> str:
        return f"<LostHandle {self._name!r}: {self._error}>"


def attach_again(*facts: Any) -> Any:
    """Attach what :func:`reduced` took down; what pickle calls in the receiver.

    Returns
    -------
    SharedArray, SharedMatrix or LostHandle
    """
    handover = Handover(*facts)
    try:
        return handover.attach()
    except HugepoolError as error:
        # Without its traceback, whose frames would keep what they attached.
        return LostHandle(handover.name, error.with_traceback(None))


def reduced(handle: Any, address: str) -> tuple[object, ...]:
    """How pickle is to take a handle down; for ``SharedObject.__reduce__``."""
    info = handle.info
    facts = (address, handle.name, info.generation, handle.writable, identity_of(info.segment))
    return attach_again, facts
