"""Jobs that are waited for later."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from hugepool import notebook
from hugepool.background import Background
from hugepool.calls import Call, TakenBack
from hugepool_common.errors import CancelledError, DetachedError, RequestTimeoutError

_T = TypeVar("_T")


class JobCancelledError(CancelledError, concurrent.futures.CancelledError):
    """The job was cancelled, by its own client or by the end of its pool."""


class JobProgress(NamedTuple):
    """How far a job is.

    Parameters
    ----------
    done
        Parts that workers have reported.
    parts
        Those that there are so far. What takes several steps, such as a product whose rows
        are cut, adds the parts of each when it begins. 0 where no worker has a part in it.
    """

    done: int
    parts: int


class Job(concurrent.futures.Future[_T]):
    """What :meth:`hugepool.Pool.submit` returns: a :class:`concurrent.futures.Future`.

    So it can be given to :func:`concurrent.futures.wait`, ``as_completed`` and
    :func:`asyncio.wrap_future`. It differs in that a job under way can be cancelled.

    Notes
    -----
    Any thread may use it. A forked child may not. When its pool is closed a job that is not
    done is cancelled; what a job that is done returned stays.
    """

    def __init__(
        self,
        background: Background,
        name: str,
        function: Callable[[], _T],
        undo: Callable[[Any], None],
    ) -> None:
        super().__init__()
        self._owner_pid = os.getpid()
        self._background = background
        self._name = name
        self._over = threading.Event()
        self._begun = False
        self.add_done_callback(_setter(self._over))

        def begin() -> _T:
            self._begun = True
            return function()

        def end(result: Any, error: BaseException | None) -> None:
            # In the thread that made the call, which may have been done as it was cancelled.
            if not self._end(result, error) and error is None:
                undo(result)

        self._call: Call = background.start(begin, end)

    @property
    def name(self) -> str:
        """Of the call, such as ``gather``."""
        return self._name

    def done(self) -> bool:
        """Whether it has ended: with a result, an error, or cancelled."""
        self._check_process()
        return super().done()

    def running(self) -> bool:
        """Whether it has begun and not ended."""
        self._check_process()
        return self._begun and not super().done()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        self._check_process()
        return super().cancelled()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, `timeout` seconds at most; whether it has ended."""
        self._check_process()
        return self._over.wait(timeout)

    def result(self, timeout: float | None = None) -> _T:
        """What the call returns; waits for it, `timeout` seconds at most.

        Raises
        ------
        JobCancelledError
            It was cancelled.
        RequestTimeoutError
            It has not ended by then. It goes on.
        HugepoolError
            Whatever the call itself raises.
        """
        self._await(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; else as :meth:`result`."""
        self._await(timeout)
        return super().exception()

    def cancel(self) -> bool:
        """Give the job up; False if it has ended already.

        Returns at once. The coordinator ends the job, and what was made for it is removed; a
        worker that is at a part finishes that part, so an `out` of yours may be written in part.
        """
        self._check_process()
        if not super().cancel():
            return False
        self._background.take_back(self._call)
        return True

    def progress(self) -> JobProgress:
        """How many parts are done, of how many."""
        self._check_process()
        return JobProgress(self._call.parts_done, self._call.parts)

    def __repr__(self) -> str:
        return f"<Job {self._name} {self._state_shown()}>"

    def _repr_html_(self) -> str:
        return notebook.table(f"Job {self._name}", {"state": self._state_shown()})

    def _state_shown(self) -> str:
        if os.getpid() != self._owner_pid:
            return "of the parent process"
        if super().cancelled():
            return "cancelled"
        if super().done():
            error = super().exception()
            return "done" if error is None else f"failed: {type(error).__name__}"
        if not self._begun:
            return "waiting"
        done, parts = self._call.parts_done, self._call.parts
        return f"running, {done} of {parts} parts done" if parts else "running"

    def _await(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            done, parts = self.progress()
            raise RequestTimeoutError(
                "the job has not ended",
                needed=f"its end within {timeout:g} s",
                had=f"{done} of {parts} parts done",
                where=self._name,
                remedy="wait again, or cancel() it",
            )
        if super().cancelled():
            raise JobCancelledError("the job was cancelled", where=self._name)

    def _end(self, result: Any, error: BaseException | None) -> bool:
        """Tell what came of the call; whether there is anybody who wants it."""
        if isinstance(error, TakenBack):
            super().cancel()  # by the pool's end, if by nobody before
        if not self.set_running_or_notify_cancel():
            return False
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)
        return True

    def _check_process(self) -> None:
        if os.getpid() != self._owner_pid:
            raise DetachedError(
                "this job belongs to the parent process",
                remedy="wait for it there",
            )


def _setter(over: threading.Event) -> Callable[[object], None]:
    """A callback that does not keep the job itself."""
    return lambda _: over.set()
