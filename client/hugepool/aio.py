"""The calls of a pool for programs on asyncio.

>>> import asyncio, hugepool.aio
>>> async def main():
...     async with hugepool.aio.connect() as pool, asyncio.TaskGroup() as tasks:
...         x = await pool.put("x", range(1000))
...         for index in ([1, 2], [3, 4]):
...             tasks.create_task(pool.gather(x, index))

Each call is made by the synchronous client in a thread of its own; calls under way at once share
one session. A task that is cancelled takes its call back: the coordinator ends the job, or the
creation, and what was made or leased for it is given back, before the ``CancelledError`` goes on.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

from hugepool import connection, notebook
from hugepool.array import SharedObject
from hugepool.background import Background, Over
from hugepool.calls import TakenBack
from hugepool.plan import SharedPlan
from hugepool.pool import Pool
from hugepool_common.errors import CancelledError, HugepoolError
from hugepool_common.spec import HugePages, PageSize

_P = ParamSpec("_P")
_T = TypeVar("_T")
_H = TypeVar("_H", bound=SharedObject)
_Undo = Callable[[Pool, Any], None]
_Ended: TypeAlias = tuple[Any, BaseException | None]


def connect(
    address: str | None = None,
    *,
    huge_pages: HugePages | None = None,
    page_size: PageSize | None = None,
) -> Connecting:
    """Open a session: ``async with connect() as pool``, or ``pool = await connect()``.

    Parameters
    ----------
    address, huge_pages, page_size
        As of :func:`hugepool.connect`, whose errors it raises.
    """
    return Connecting(
        functools.partial(connection.connect, address, huge_pages=huge_pages, page_size=page_size)
    )


class Connecting:
    """A session that is to be opened; made by :func:`connect`."""

    def __init__(self, opening: Callable[[], Pool]) -> None:
        self._opening = opening
        self._pool: AsyncPool | None = None

    def __await__(self) -> Generator[Any, None, AsyncPool]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncPool:
        self._pool = await self._open()
        return self._pool

    async def __aexit__(self, *_: object) -> None:
        assert self._pool is not None
        await self._pool.close()

    async def _open(self) -> AsyncPool:
        ended = _in_thread(self._opening)
        try:
            pool, error = await asyncio.shield(ended)
        except asyncio.CancelledError:
            pool, _ = await _to_its_end(ended)
            if pool is not None:
                await _to_its_end(_in_thread(pool.close))
            raise
        if error is not None:
            raise error
        return AsyncPool(pool)


def _leave_it(pool: Pool, result: Any) -> None:
    """What was done stays done; a handle that was made for the call is given back."""
    if isinstance(result, SharedObject):
        result.detach()


def _destroy_it(pool: Pool, made: SharedObject | SharedPlan) -> None:
    """What was made under a name goes."""
    pool.undo_making(made)


def _awaited(
    method: Callable[Concatenate[Pool, _P], _T], undo: _Undo = _leave_it
) -> Callable[Concatenate[AsyncPool, _P], Coroutine[Any, Any, _T]]:
    """A method of the synchronous pool, to be awaited.

    Parameters
    ----------
    method
        Of :class:`hugepool.Pool`.
    undo
        What is done to its result where nobody waits for that any more.
    """

    @functools.wraps(method)
    async def call(self: AsyncPool, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._call(functools.partial(method, self.pool), undo, args, kwargs)

    return call


class AsyncPool:
    """A session with a coordinator, whose calls are awaited. Made by :func:`connect`.

    The methods take, return and raise what those of :class:`hugepool.Pool` of the same name do.
    A crew takes no part in this: its steps are taken by the thread that calls them.

    Parameters
    ----------
    pool
        The session itself.

    Notes
    -----
    Handles are plain ones. Their arrays are read and written as ever; ``seal`` and ``detach``
    of a handle ask the coordinator and wait, so await those of the pool. ``progress=`` callbacks
    are called in a thread.
    """

    create = _awaited(Pool.create, _destroy_it)
    put = _awaited(Pool.put, _destroy_it)
    load = _awaited(Pool.load, _destroy_it)
    attach = _awaited(Pool.attach)
    publish = _awaited(Pool.publish)
    destroy = _awaited(Pool.destroy)
    list = _awaited(Pool.list)
    describe = _awaited(Pool.describe)
    verify = _awaited(Pool.verify)
    snapshot = _awaited(Pool.snapshot)
    restore = _awaited(Pool.restore)
    gather = _awaited(Pool.gather)
    scatter_add = _awaited(Pool.scatter_add)
    matvec = _awaited(Pool.matvec)
    matmat = _awaited(Pool.matmat)
    rmatvec = _awaited(Pool.rmatvec)
    run = _awaited(Pool.run)
    plan_gather = _awaited(Pool.plan_gather, _destroy_it)
    plan_matvec = _awaited(Pool.plan_matvec, _destroy_it)
    plan_rmatvec = _awaited(Pool.plan_rmatvec, _destroy_it)
    run_plan = _awaited(Pool.run_plan)
    start_workers = _awaited(Pool.start_workers)
    stats = _awaited(Pool.stats)
    shutdown = _awaited(Pool.shutdown)

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def pool(self) -> Pool:
        """The same session, to be used from threads."""
        return self._pool

    @property
    def address(self) -> str:
        """Where other processes connect to the same arrays."""
        return self._pool.address

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._pool.closed

    async def seal(self, handle: _H) -> _H:
        """``handle.seal()``."""
        await self.to_thread(handle.seal)
        return handle

    async def detach(self, handle: SharedObject | SharedPlan) -> None:
        """``handle.detach()``."""
        await self.to_thread(handle.detach)

    async def to_thread(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Call anything in a thread, such as ``plan.run``: as :func:`asyncio.to_thread`.

        What it asks of this session is taken back if the awaiting task is cancelled.
        """
        return await self._call(function, _leave_it, args, kwargs)

    async def close(self) -> None:
        """End the session; see :meth:`hugepool.Pool.close`. Calls under way are taken back."""
        ended = _in_thread(self._pool.close)
        try:
            _, error = await asyncio.shield(ended)
        except asyncio.CancelledError:
            await _to_its_end(ended)
            raise
        if error is not None:
            raise error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncPool {self.address}{' closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        state = "closed" if self.closed else "open"  # the rest would have to be asked for
        return notebook.table("AsyncPool", {"address": self.address, "state": state})

    async def _call(
        self,
        function: Callable[..., _T],
        undo: _Undo,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> _T:
        background: Background = self._pool.background
        ended, over = _awaitable()
        call = background.start(functools.partial(function, *args, **kwargs), over)
        try:
            result, error = await asyncio.shield(ended)
        except asyncio.CancelledError:
            background.take_back(call)
            result, error = await _to_its_end(ended)
            given = [*args, *kwargs.values()]
            if error is None and not any(result is one for one in given):
                await _to_its_end(_in_thread(functools.partial(_try, undo, self._pool, result)))
            raise
        if isinstance(error, TakenBack):
            raise CancelledError("the pool was closed meanwhile", where=self.address)
        if error is not None:
            raise error
        done: _T = result
        return done


def _try(undo: _Undo, pool: Pool, result: Any) -> None:
    try:
        undo(pool, result)
    except HugepoolError:
        pass  # somebody looks at it, or there is nobody to be told: the session's end does it


def _awaitable() -> tuple[asyncio.Future[_Ended], Over]:
    """A future, and what is to be called in another thread to set it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_Ended] = loop.create_future()

    def settle(outcome: _Ended) -> None:
        if not ended.done():
            ended.set_result(outcome)

    def over(result: Any, error: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(settle, (result, error))
        except RuntimeError:
            pass  # the loop is closed: nobody waits

    return ended, over


def _in_thread(function: Callable[[], Any]) -> asyncio.Future[_Ended]:
    """Begin a call that is no request of a session: its opening, or its end."""
    ended, over = _awaitable()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:
            over(None, error)
        else:
            over(result, None)

    threading.Thread(target=work, name="hugepool-session", daemon=True).start()
    return ended


async def _to_its_end(ended: asyncio.Future[_Ended]) -> _Ended:
    """What came of it, whoever cancels this task meanwhile; it is being cancelled already."""
    while not ended.done():
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            pass
    return ended.result()
