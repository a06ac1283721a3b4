"""The thread of a leader that sees members end, also while the leader computes."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_VACANCY_POLL_MS = 100

_M = TypeVar("_M")


@dataclass(frozen=True, slots=True, eq=False)
class _Watched(Generic[_M]):
    """One member; its own, for the number of its descriptor may be another's by and by."""

    member: _M


class MemberWatch(Generic[_M]):
    """Watches the pidfds of a crew's members.

    Parameters
    ----------
    on_end
        Called in the watching thread with each member whose process ended.
    on_vacancy
        Called there every 100 ms while `vacancies` is set; True ends that.
    """

    def __init__(self, on_end: Callable[[_M], None], on_vacancy: Callable[[], bool]) -> None:
        self._on_end = on_end
        self._on_vacancy = on_vacancy
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched[_M]] = {}
        self._vacancies = False
        self._stopping = False
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="hugepool-watch", daemon=True)
        self._thread.start()

    def add(self, member: _M, pidfd: int) -> None:
        """Watch one more process."""
        with self._lock:
            self._watched[pidfd] = _Watched(member)
        self._nudge()

    def remove(self, pidfd: int) -> None:
        """Watch a process no more; its descriptor may be closed then."""
        with self._lock:
            self._watched.pop(pidfd, None)
        self._nudge()

    def look_for_joiners(self) -> None:
        """A seat is vacant: see whether somebody takes it."""
        self._vacancies = True
        self._nudge()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._nudge()
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _nudge(self) -> None:
        try:
            os.write(self._writer, b".")
        except BlockingIOError:
            pass  # it is full of nudges

    def _run(self) -> None:
        while not self._stopping:
            poller = select.poll()
            poller.register(self._reader, select.POLLIN)
            with self._lock:
                watched = dict(self._watched)
            for pidfd in watched:
                poller.register(pidfd, select.POLLIN)
            ready = poller.poll(_VACANCY_POLL_MS if self._vacancies else None)
            for fd, event in ready:
                if fd == self._reader:
                    os.read(fd, 4096)
                elif not event & select.POLLNVAL:
                    self._note_end(fd, watched[fd])
            if self._vacancies:
                self._vacancies = False  # first: another may be vacant by the time it is answered
                if not self._on_vacancy():
                    self._vacancies = True

    def _note_end(self, pidfd: int, ended: _Watched[_M]) -> None:
        with self._lock:
            # Since the poll it may have been closed, and its number given to a newcomer.
            if self._watched.get(pidfd) is not ended:
                return
            del self._watched[pidfd]
        self._on_end(ended.member)
