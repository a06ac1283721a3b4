"""The thread that keeps a session over TCP alive."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hugepool.fence import Fence
from hugepool_common.errors import (
    DetachedError,
    HugepoolError,
    LeaseExpiredError,
    NotEnoughMemoryError,
)

_SOON_S = 0.2
"""After a renewal that failed the next one is tried so soon."""


class Renewal:
    """Renews a session until it is stopped, or over.

    It runs beside the threads that work: one that computes does not delay it. What does is
    what keeps every thread of the process from running, such as SIGSTOP.

    Parameters
    ----------
    fence
        Of the session.
    renew
        Does it once; may wait.

    Raises
    ------
    NotEnoughMemoryError
        This process can have no further thread.
    """

    def __init__(self, fence: Fence, renew: Callable[[], None]) -> None:
        self._fence = fence
        self._renew = renew
        self._stopped = threading.Event()
        # Not one that the interpreter waits for: the pool's end stops it.
        self._thread = threading.Thread(target=self._run, name="hugepool-renewal", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NotEnoughMemoryError(
                f"no thread can be begun to keep the session over TCP alive: {error}",
                needed="1 thread",
                had="0",
                remedy="raise the limits on memory or processes, or connect over ipc://",
            ) from None

    def stop(self) -> None:
        """Renew no more. Does not wait for the renewal under way."""
        self._stopped.set()

    def _run(self) -> None:
        wait_s = self._fence.renewal_s
        while not self._stopped.wait(wait_s):
            try:
                self._renew()
                wait_s = self._fence.renewal_s
            except (LeaseExpiredError, DetachedError):
                return  # whoever uses the session next is told
            except HugepoolError:
                wait_s = min(_SOON_S, self._fence.renewal_s)
