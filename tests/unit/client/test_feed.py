"""The thread that looks: what becomes of those who wait for its pictures when a look fails."""

from __future__ import annotations

import threading
import time

import pytest

from hugepool.live.feed import Feed
from hugepool.live.picture import Picture
from hugepool.live.watcher import Watcher
from support.host import settles

LIMIT_S = 60.0


class Stumbling(Watcher):
    """Fails at its first looks, in a way that nobody has thought of; then finds nobody.

    Attributes
    ----------
    seen
        Whether somebody has seen the picture of the failures: the next one waits for that.
    """

    failures = 2
    closed = 0

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.seen = threading.Event()

    def look(self) -> Picture:
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError("integer\x1b modulo by zero")
        assert self.seen.wait(LIMIT_S)
        return super().look()

    def close(self) -> None:
        self.closed += 1
        super().close()
        if self.failures:
            raise OSError("and closing fails too")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_look_that_fails_is_told_and_the_next_one_is_taken(wanted: bool) -> None:
    watcher = Stumbling("ipc:///nowhere/hugepool.sock")
    first = Picture("ipc:///nowhere/hugepool.sock", 0.0, "running", "", time.time())
    with Feed(watcher, first=first, interval_s=0.01, wanted=wanted) as feed:
        if not wanted:
            feed.join()
        known = int(wanted)
        said: list[tuple[str, str]] = []
        while not said or said[-1][0] != "absent":
            news = feed.wait(known, LIMIT_S)
            assert news is not None and not feed.ended
            known, picture = news
            said.append((picture.state, picture.said))
            watcher.seen.set()
    assert said[0] == ("silent", "looking failed: ZeroDivisionError: integer\\x1b modulo by zero")
    assert "hugepool serve" in said[-1][1]
    assert feed.ended and settles(lambda: watcher.closed > 2)
