"""Where the threads of this process are, so that a test acts when another one is far enough."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType

from support.host import settles


def frames_of(thread: threading.Thread) -> list[str]:
    """Names of the functions that a thread is in, the innermost first."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def interrupt_in(function: str, after_s: float) -> threading.Thread:
    """Send SIGINT to the main thread so many seconds after it is seen in a function; else not."""

    def interrupt() -> None:
        main = threading.main_thread()
        if settles(lambda: function in frames_of(main)):
            time.sleep(after_s)
            if function in frames_of(main) and main.ident is not None:
                signal.pthread_kill(main.ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread
