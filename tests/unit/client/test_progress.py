"""The line that is shown while something takes long."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from hugepool import progress

WAITING = """
import time
from hugepool import progress
progress.DELAY_S = 0.0
with progress.Waiting("reading a[/b]/[red]\\x1b[2J.npy") as waiting:
    waiting.update(1, 2)
    while waiting._shown is None:
        time.sleep(0.01)
print("done")
"""


def test_names_of_files_are_neither_markup_nor_commands() -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        timeout=200,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
    )
    os.close(follower)
    seen = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert (done.returncode, done.stdout) == (0, "done\n"), seen
    assert r"reading a[/b]/[red]\x1b[2J.npy" in seen


INTERRUPTED = """
import threading
from hugepool import progress
progress.DELAY_S = 0.0
show, join = progress.Waiting._show, threading.Thread.join
shows, goes_on = threading.Event(), threading.Event()

def late(waiting):
    shows.set()
    goes_on.wait()
    show(waiting)

def interrupted(thread, timeout=None):
    shows.wait()
    threading.Thread.join = join
    raise KeyboardInterrupt

progress.Waiting._show = late
waiting = progress.Waiting("reading")
try:
    with waiting:
        threading.Thread.join = interrupted
except KeyboardInterrupt:
    goes_on.set()
    waiting._timer.join()
print(waiting._shown is None or not waiting._shown.live.is_started)
"""


def test_nothing_is_shown_after_ctrl_c_as_the_line_was_about_to_be() -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        timeout=200,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(follower)
    os.close(leader)
    assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True))
    )


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_as_a_call_begins_shows_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(timer: threading.Thread) -> None:
        start(timer)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Timer, "start", interrupted)
    waiting = progress.Waiting("reading")
    with pytest.raises(KeyboardInterrupt), waiting:
        pass
    assert waiting._timer is not None
    assert waiting._timer.finished.is_set()
    waiting._timer.join()
    assert waiting._shown is None


@pytest.mark.usefixtures("terminal")
def test_a_call_goes_on_where_there_is_no_thread_to_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refused)
    with progress.Waiting("reading") as waiting:
        waiting.update(1, 2)
