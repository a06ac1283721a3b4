"""What a person at a terminal sees while a call takes longer than a second.

Nothing is shown, started or imported unless stderr is a terminal, nor for other threads than
the main one.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from hugepool_common.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY_S = 1.0


class Waiting:
    """A line on stderr that appears after one second and goes when the call ends.

    Parameters
    ----------
    what
        What is waited for, such as ``making x``.

    Notes
    -----
    A context manager. :meth:`update` turns the line into a bar; it may be called
    from any thread.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._shown: Progress | None = None
        self._task: TaskID | None = None
        self._done: tuple[int, int] | None = None
        self._over = False

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Note how far it is, in bytes."""
        with self._lock:
            self._done = (done_bytes, total_bytes)
            if self._shown is not None and self._task is not None:
                self._shown.update(self._task, completed=done_bytes, total=total_bytes)

    def __enter__(self) -> Waiting:
        # A call in another thread runs behind what the main thread shows or asks.
        if (
            sys.stderr is not None
            and threading.current_thread() is threading.main_thread()
            and sys.stderr.isatty()
        ):
            self._timer = threading.Timer(DELAY_S, self._show)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:
                self._timer = None  # there is no thread to be had: nothing is shown
            except BaseException:  # Ctrl-C: the block is not entered, and so never left
                self._timer.cancel()
                self._over = True
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            try:
                self._timer.join()
            finally:  # Ctrl-C: it may be about to show something, which is to be shown no more
                with self._lock:
                    self._over = True
                    if self._shown is not None:
                        self._shown.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        # No markup: what is waited for may have a file's name, with brackets.
        words = TextColumn("{task.description}", markup=False)
        columns = [SpinnerColumn(), words, TimeElapsedColumn()]
        with self._lock:
            if self._over:
                return
            done, total = self._done or (0, 0)
            if total:
                columns[2:2] = [BarColumn(), DownloadColumn()]
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._shown.add_task(
                printable(self._what), completed=done, total=total or None
            )
            self._shown.start()
