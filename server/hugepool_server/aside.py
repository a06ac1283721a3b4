"""Acts put aside, to be begun again in a moment: what waits for others holds no thread.

Were it to wait on one of the threads that do the work, a few clients that wait would
keep all others waiting. Here one thread looks after all that is put aside, and is there
only while there is something.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_LOOK_S = 0.01
_LONGEST_NS = 100_000_000
"""Between two tries of an act that has waited for long."""


class Aside:
    """What is to be begun again, and the thread that does so.

    Parameters
    ----------
    stopping
        Once it is set nothing waits any longer: everything is begun at once.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._lock = threading.Lock()
        self._acts: list[tuple[int, Callable[[], None]]] = []
        self._watched = False

    def __repr__(self) -> str:
        return f"<Aside: {len(self._acts)} acts>"

    def put(self, again: Callable[[], None], waited_ns: int) -> None:
        """Have something begun again soon, and the less often the longer it has waited.

        Parameters
        ----------
        again
            Is called on our thread, once. It must be quick and may not raise.
        waited_ns
            For how long it has waited.

        Raises
        ------
        RuntimeError
            No thread can be started. `again` is not called.
        """
        due_ns = time.monotonic_ns() + min(waited_ns // 4, _LONGEST_NS)
        with self._lock:
            if not self._watched:
                # Should it fail: what it has queued by then watches later, and finds nothing.
                self._pool.submit(self._watch)
                self._watched = True
            self._acts.append((due_ns, again))

    def stop(self) -> None:
        """End the thread; `stopping` is set."""
        self._pool.shutdown(wait=True)

    def _watch(self) -> None:
        while True:
            stopping = self._stopping.wait(_LOOK_S)
            now_ns = time.monotonic_ns()
            with self._lock:
                due = [again for due_ns, again in self._acts if stopping or due_ns <= now_ns]
                self._acts = [act for act in self._acts if not stopping and act[0] > now_ns]
                if not due and not self._acts:
                    self._watched = False
                    return
            for again in due:
                again()
