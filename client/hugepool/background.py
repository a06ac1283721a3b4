"""Threads that make calls for others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from hugepool.calls import Call, TakenBack
from hugepool.channel import Channel
from hugepool_common.errors import NotEnoughMemoryError

MOST_AT_ONCE = 32
"""Calls under way at once; further ones wait for a thread."""

STOP_TIMEOUT_S = 10.0

_LINGER_S = 5.0
"""How long a thread waits for another call before it ends."""

_T = TypeVar("_T")
Over = Callable[[Any, BaseException | None], None]
"""Called in the thread that made a call, with what it returned or with what it raised."""


class Background:
    """Makes calls of the synchronous client in threads of its own.

    Parameters
    ----------
    channel
        The session that the calls use, and at which they are taken back.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # Entered again by the pool's finalizer, which may run wherever one of them allocates.
        self._lock = threading.RLock()
        self._came = threading.Condition(self._lock)
        self._queue: deque[tuple[Call, Callable[[], Any], Over]] = deque()
        self._calls: set[Call] = set()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._stopped = False

    def start(self, function: Callable[[], _T], over: Over) -> Call:
        """Make a call; it waits where :data:`MOST_AT_ONCE` are under way.

        Raises
        ------
        DetachedError
            The pool is closed, or this is a forked child.
        NotEnoughMemoryError
            This process can have no further thread.
        """
        self._channel.check_usable()
        call = Call()
        asked = (call, function, over)
        with self._lock:
            try:
                self._queue.append(asked)
                self._calls.add(call)
                self._have_thread()
            except BaseException:  # nobody has the call
                if asked in self._queue:
                    self._queue.remove(asked)
                self._calls.discard(call)
                raise
        return call

    def _have_thread(self) -> None:
        """See that what was queued last is begun as soon as there is a thread for it."""
        if self._idle >= len(self._queue):
            self._came.notify()
        elif len(self._threads) < MOST_AT_ONCE:
            # Not one that the interpreter waits for: the pool's end takes calls back.
            thread = threading.Thread(target=self._work, name="hugepool-call", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except BaseException as error:
                if thread.ident is None:  # one that never began is not to be waited for
                    self._threads.discard(thread)
                if not isinstance(error, RuntimeError):
                    raise
                if not self._threads:  # else another one makes the call when it can
                    raise NotEnoughMemoryError(
                        f"no thread can be begun for the call: {error}",
                        needed="1 thread",
                        had="0",
                        remedy="raise the limits on memory or processes, or call it directly",
                    ) from None

    def take_back(self, call: Call) -> None:
        """Have a call end. Does not wait for that."""
        self._channel.take_back(call)

    def stop(self) -> None:
        """Take back every call, and wait until they have ended."""
        with self._lock:
            self._stopped = True
            calls, threads = list(self._calls), list(self._threads)
            self._came.notify_all()
        for call in calls:
            self.take_back(call)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for thread in threads:
            if thread is not threading.current_thread():  # whose call held the last reference
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._queue:
                    if self._stopped or not self._came.wait(_LINGER_S):
                        break
                self._idle -= 1
                if not self._queue:
                    self._threads.discard(threading.current_thread())
                    return
                call, function, over = self._queue.popleft()
            self._make(call, function, over)
            # Kept by this frame they would live until the next call comes.
            del call, function, over

    def _make(self, call: Call, function: Callable[[], Any], over: Over) -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            with self._channel.making(call):
                call.check()
                result = function()
        except TakenBack:
            failure = TakenBack()  # not the one whose traceback holds the handles that it had
        except BaseException as error:
            failure = error
        if isinstance(failure, TakenBack):
            self._channel.flush()
        with self._lock:
            self._calls.discard(call)
        try:
            over(result, failure)
        finally:
            del result, failure
