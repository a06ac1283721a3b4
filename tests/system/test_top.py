"""``hugepool top`` and its page: the same picture, seen to change while two workers work."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hugepool
from support.browser import Browser
from support.commands import HUGEPOOL, Shell
from support.host import free_port, settles
from support.service import Service, said, tell

WORK = """
import numpy as np, hugepool
pool = hugepool.connect()
pool.put("values", np.arange(4_000_000.0))
pool.put("index", np.arange(4_000_000)[::-1].copy())
pool.create("out", 4_000_000)
print("made", flush=True)
while True:
    for _ in range(int(input())):
        pool.gather("values", "index", out="out", workers=2)
    print("done", flush=True)
"""
"""Two workers' jobs, as many as it is told: long enough that a look at any moment finds one."""

LIMIT_S = 60.0
"""How long a change may take to be seen on a machine that has much else to do."""


@pytest.fixture
def working(service: Service) -> Iterator[subprocess.Popen[str]]:
    """A coordinator with two workers, and a process that gives them work."""
    service.start()
    process = at_work(service)
    assert tell(process, "1") == "done"
    yield process


def at_work(service: Service) -> subprocess.Popen[str]:
    """Two workers, and the process that gives them work."""
    service.spawn(*HUGEPOOL, "worker", "-n", "2")
    with hugepool.connect(service.address) as pool:  # who finds none starts some of its own
        assert settles(lambda: len(pool.stats().workers) == 2, LIMIT_S)
    process = service.python(WORK)
    assert said(process) == "made"
    return process


@pytest.fixture
def shell(service: Service) -> Shell:
    return Shell(HUGEPOOL_ADDRESS=service.address, NO_COLOR="1")


def page_of(process: subprocess.Popen[str]) -> str:
    """URL of a page, as a coordinator's log tells it."""
    assert process.stderr is not None
    line = process.stderr.readline()
    return re.fullmatch(r"hugepoold: INFO: status page at (http://\S+/)\n", line)[1]  # type: ignore[index]


@contextmanager
def events(url: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Pictures as a browser is sent them."""
    with urllib.request.urlopen(url + "events", timeout=LIMIT_S) as answer:
        yield (
            json.loads(line.removeprefix(b"data: "))["picture"]
            for line in answer
            if line.startswith(b"data: ")
        )


def until(pictures: Iterator[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> Any:
    """The first picture of which something is true."""
    deadline = time.monotonic() + LIMIT_S
    for picture in pictures:
        if holds(picture):
            return picture
        assert time.monotonic() < deadline, picture
    raise AssertionError("there are no more pictures")


# Once, and by lines -----------------------------------------------------------


def test_once_shows_what_there_is(working: subprocess.Popen[str], shell: Shell) -> None:
    done = shell.succeed("top", "--once", "--sort", "name")
    assert done.err == ""
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if "<f8" in line or "<i8" in line]
    assert names == ["index", "out", "values"]
    assert [line for line in lines if line.startswith("2 workers, 0 busy; jobs: 0 running")]
    assert "3 arrays, 96 MB" in done.out
    (values,) = (line.split() for line in lines if line.startswith("values"))
    listed = {row["name"]: row for row in shell.succeed("ls").rows}["values"]
    assert values[5:] == [listed["backing"], listed["huge %"], listed["readers"]]
    assert "index" not in shell.succeed("top", "--once", "--filter", "va*").out


def test_one_document_has_what_ls_tells_and_more(
    working: subprocess.Popen[str], shell: Shell, service: Service
) -> None:
    told = shell.succeed("top", "--once", "--json", "--sort", "name").json
    assert (told["state"], told["address"], told["restarts"]) == ("running", service.address, 0)
    assert told["arrays"] == shell.succeed("ls", "--json").json
    assert [(one["busy"], one["parts_done"]) for one in told["workers"]] == [(False, 1)] * 2
    assert told["jobs"] == []
    assert told["totals"]["jobs_done"] == 1
    assert {mount["path"] for mount in told["mounts"]} >= {"/dev/shm"}
    assert all(0 <= m["taken_bytes"] <= m["total_bytes"] for m in told["mounts"] + told["pools"])


def test_lines_follow_a_job_on_two_workers_and_end_with_the_reader(
    working: subprocess.Popen[str], service: Service
) -> None:
    watching = service.spawn(*HUGEPOOL, "top", "--json")
    assert watching.stdout is not None
    lines = (json.loads(line) for line in watching.stdout)
    before = next(lines)
    assert before["totals"]["jobs_done"] == 1
    assert working.stdin is not None
    working.stdin.write("1000000\n")
    working.stdin.flush()
    at_work = until(lines, lambda one: bool(one["jobs"]) and bool(one["workers"][0]["job"]))
    (job,) = at_work["jobs"]
    assert (job["kernel"], job["parts"], job["pid"]) == ("gather", 2, working.pid)
    assert {one["job"] for one in at_work["workers"] if one["busy"]} <= {job["job"], None}
    until(
        lines,
        lambda one: all(w["rate_bytes_per_s"] and w["parts_per_s"] for w in one["workers"]),
    )
    assert until(lines, lambda one: one["totals"]["jobs_done"] > 2)["state"] == "running"
    working.terminate()
    idle = until(lines, lambda one: not one["totals"]["jobs_running"])
    assert idle["arrays"] != before["arrays"]  # the unsealed one went with its maker
    watching.stdout.close()
    with hugepool.connect(service.address) as pool:  # what it tells next finds nobody to read it
        pool.put("more", [1.0])
        assert settles(lambda: watching.poll() is not None, LIMIT_S)
    assert watching.returncode == 1


# On a terminal ----------------------------------------------------------------


class Screen:
    """``hugepool top`` on a terminal of 80 columns."""

    def __init__(
        self,
        service: Service,
        *options: str,
        start_new_session: bool = True,
        process_group: int | None = None,
        **changed: str,
    ) -> None:
        self.leader, follower = pty.openpty()
        environment = {"COLUMNS": "80", "LINES": "30", "TERM": "xterm", "NO_COLOR": "1", **changed}
        self.process = subprocess.Popen(
            [*HUGEPOOL, "top", *options],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**os.environ, "HUGEPOOL_ADDRESS": service.address, **environment},
            start_new_session=start_new_session,
            process_group=process_group,
        )
        os.close(follower)
        self.seen = self.drawn = ""

    def press(self, keys: str) -> None:
        os.write(self.leader, keys.encode())

    def shows(self, pattern: str) -> bool:
        """Whether a pattern is found in what is drawn from now on."""
        self.seen = ""
        deadline = time.monotonic() + LIMIT_S
        while not re.search(pattern, self.seen):
            if time.monotonic() > deadline or not self._read():
                return False
        return True

    def _read(self) -> bool:
        ready, _, _ = select.select([self.leader], [], [], LIMIT_S)
        try:
            piece = os.read(self.leader, 65536) if ready else b""
        except OSError:
            return False
        self.drawn += piece.decode(errors="replace")
        self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", piece.decode(errors="replace"))
        return bool(piece)

    def close(self) -> int:
        """Its exit status; ended if it has not."""
        if self.process.poll() is None:
            while self._read():
                pass
        os.close(self.leader)
        return self.process.wait(LIMIT_S)


def test_a_terminal_shows_jobs_as_they_are_done_and_obeys_keys(
    working: subprocess.Popen[str], service: Service
) -> None:
    screen = Screen(service)
    assert screen.shows("2 workers, 0 busy; jobs: 0 running, 0 waiting, 1 done")
    assert working.stdin is not None
    assert tell(working, "3") == "done"
    assert screen.shows("jobs: 0 running, 0 waiting, 4 done")
    assert screen.shows("by bytes")
    screen.press("s")
    assert screen.shows("by name")
    screen.press("p")
    assert screen.shows("PAUSED")
    assert tell(working, "1") == "done"
    assert screen.shows("PAUSED") and "4 done" in screen.seen
    assert "5 done" not in screen.seen
    screen.press("p")
    assert screen.shows("5 done")
    screen.press("/nothing-of-this\r")
    assert screen.shows("none of 3 matches nothing-of-this")
    screen.press("q")
    assert screen.close() == 0


def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(service: Service) -> None:
    service.start()
    screen = Screen(service)
    assert screen.shows("q quit")
    screen.process.send_signal(signal.SIGINT)
    assert screen.close() == 130
    assert "Traceback" not in screen.seen
    assert LEFT in screen.drawn and CURSOR in screen.drawn


LEFT, CURSOR = "\x1b[?1049l", "\x1b[?25h"
"""The screen of before, and the cursor."""


def takes_lines(terminal: int) -> bool:
    """Whether a terminal is as a shell leaves it: it echoes, and Enter ends a line."""
    wanted = termios.ICANON | termios.ECHO
    return bool(termios.tcgetattr(terminal)[3] & wanted == wanted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_leaves_the_terminal_as_it_was(
    service: Service, number: signal.Signals
) -> None:
    service.start()
    screen = Screen(service)
    assert screen.shows("q quit")
    assert not takes_lines(screen.leader)
    screen.process.send_signal(number)
    while screen._read():
        pass
    assert takes_lines(screen.leader)
    assert screen.close() == 128 + number
    assert LEFT in screen.drawn and CURSOR in screen.drawn and "Traceback" not in screen.drawn


def test_stopped_it_gives_the_terminal_back_and_goes_on(service: Service) -> None:
    service.start()
    # Of our session, and so with a parent that can let it go on: else it may not be stopped.
    screen = Screen(service, start_new_session=False, process_group=0)
    for _ in range(2):
        assert screen.shows("q quit")
        screen.drawn = ""
        screen.process.send_signal(signal.SIGTSTP)
        assert settles(lambda: state_of(screen.process.pid) == "T", LIMIT_S)
        assert takes_lines(screen.leader)
        while select.select([screen.leader], [], [], 0)[0] and screen._read():
            pass
        assert LEFT in screen.drawn and CURSOR in screen.drawn
        screen.process.send_signal(signal.SIGCONT)
    assert screen.shows("q quit")
    assert not takes_lines(screen.leader)
    screen.press("q")
    assert screen.close() == 0


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_a_terminal_that_cannot_draw_is_shown_one_picture(service: Service) -> None:
    service.start()
    screen = Screen(service, TERM="dumb")
    assert screen.shows("0 arrays")
    assert screen.close() == 0
    assert "\x1b" not in screen.drawn


def test_a_restart_and_a_stop_are_shown(service: Service) -> None:
    service.start()
    screen = Screen(service)
    assert screen.shows(r"running \d+ s")
    assert service.process is not None
    service.process.send_signal(signal.SIGSTOP)
    assert screen.shows(r"silent for \d+ s")
    service.process.send_signal(signal.SIGCONT)
    assert screen.shows(r"running \d+ s")
    service.kill()
    assert screen.shows(r"absent for \d+ s")
    service.start()
    assert screen.shows(r"running \d+ s  restarted")
    screen.press("q")
    assert screen.close() == 0


# The page ---------------------------------------------------------------------


def test_the_page_of_a_coordinator_follows_a_job_on_two_workers(service: Service) -> None:
    service.start("--http", "0")
    assert service.process is not None
    url = page_of(service.process)
    working = at_work(service)
    with events(url) as pictures:
        before = until(pictures, lambda one: len(one["arrays"]) == 3)
        assert before["totals"]["jobs_done"] == 0
        assert tell(working, "5") == "done"
        after = until(pictures, lambda one: one["totals"]["jobs_done"] == 5)
        assert [one["parts_done"] for one in after["workers"]] == [5, 5]
    with urllib.request.urlopen(url) as answer:
        assert b"<title>hugepool</title>" in answer.read()
    assert service.stop() == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(url)


def test_the_page_goes_with_a_coordinator_that_is_killed(service: Service) -> None:
    port = str(free_port())
    service.start("--http", port)
    assert service.process is not None
    url = page_of(service.process)
    with events(url) as pictures:
        assert next(pictures)["state"] == "running"
        service.kill()
        # Its stream ends, and its port is free for the page of the next coordinator.
        with pytest.raises((OSError, http.client.HTTPException, AssertionError)):
            until(pictures, lambda one: False)
    assert settles(lambda: free(int(port)), LIMIT_S)
    service.start("--http", port)
    assert page_of(service.process) == url
    with events(url) as pictures:
        assert next(pictures)["totals"]["epoch"] == 2


def free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def test_a_page_of_its_own_outlives_the_coordinator(service: Service) -> None:
    service.start()
    page = service.spawn(*HUGEPOOL, "top", "--http", "0", "--interval", "0.1")
    with events(said(page)) as pictures:
        first = until(pictures, lambda one: one["state"] == "running")
        service.kill()
        gone = until(pictures, lambda one: one["state"] == "absent")
        assert gone["said"] and gone["totals"] == first["totals"] | {
            "uptime_ns": gone["totals"]["uptime_ns"]
        }
        service.start()
        again = until(pictures, lambda one: one["state"] == "running")
        assert (again["restarts"], again["totals"]["epoch"]) == (1, 2)
        assert again["restarted"] is not None
    page.terminate()
    assert page.wait(LIMIT_S) == 0


def test_a_page_that_nobody_looks_at_has_no_session(service: Service) -> None:
    service.start()
    page = service.spawn(*HUGEPOOL, "top", "--http", "0")
    url = said(page)
    with hugepool.connect(service.address) as pool:
        assert pool.stats().sessions == 1
        with events(url) as pictures:
            assert next(pictures)["totals"]["sessions"] == 2
        assert settles(lambda: pool.stats().sessions == 1, LIMIT_S)


def test_a_browser_shows_a_job_as_it_is_done(service: Service, tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile")
    try:
        service.start("--http", "0")
        assert service.process is not None
        url = page_of(service.process)
        working = at_work(service)
        browser.look_like(width=390, height=844)
        browser.open(url)
        text = "document.body.innerText"
        assert settles(lambda: "index" in browser.value(text), LIMIT_S), browser.value(text)
        assert "jobs done" in browser.value(text)
        assert browser.value("document.documentElement.scrollWidth") <= 390
        assert tell(working, "7") == "done"
        figures = "document.getElementById('figures').innerText"
        assert settles(lambda: "7\njobs done" in browser.value(figures), LIMIT_S)
        filtered = "f = document.getElementById('filter'); f.value = 'v*'; f.oninput(); "
        assert "index" not in browser.value(filtered + text)
        names = "[...document.querySelectorAll('#arrays td.name')].map((td) => td.innerText).join()"
        for pattern, found in (
            *(
                ("[io]*", "index,out"),
                ("[!io]*", "values"),
                ("ou[s-u]", "out"),
                ("in[^d]ex", "index"),
            ),
            *(("[z-a]", ""), ("[", ""), ("o.t", ""), ("o(", ""), ("u", "out,values")),
        ):
            typed = f"f.value = '{pattern}'; f.oninput(); "
            sort = ".split(',').sort().join()"
            assert browser.value(typed + names + sort) == found, pattern
        colour = "getComputedStyle(document.body).backgroundColor"
        light = browser.value(colour)
        browser.look_like(width=1000, height=800, scheme="dark")
        assert browser.value(colour) != light
        service.kill()
        notice = "document.getElementById('notice').innerText"
        assert settles(lambda: "has ended" in browser.value(notice), LIMIT_S)
        service.start("--http", url.rstrip("/").rpartition(":")[2])
        state = "document.getElementById('state').innerText"
        assert settles(
            lambda: re.match(r"running .*, start 2", browser.value(state)) is not None, LIMIT_S
        ), browser.value(state)
    finally:
        browser.close()


# Used wrongly -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--once"], 3, "hugepool serve"),
        (["--json"], 3, "hugepool serve"),
        (["--http", "0"], 3, "hugepool serve"),
        (["--http", "nowhere:80"], 2, "needed PORT, or HOST:PORT"),
        (["--sort", "colour"], 2, "'colour' is not one of"),
        (["--interval", "0"], 2, "--interval"),
        (["--address", "http://x", "--once"], 2, "ipc://PATH"),
    ],
)
def test_one_line_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    shell = Shell(HUGEPOOL_ADDRESS=f"ipc://{tmp_path}/none.sock")
    assert words in shell.refuse(status, "top", *arguments)


def test_a_port_in_use_ends_both_commands_before_anything_is_touched(
    service: Service, shell: Shell
) -> None:
    service.start("--keep")
    with hugepool.connect(service.address) as pool:
        pool.put("x", [1.0])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = shell.refuse(1, "top", "--http", port)
        assert f"127.0.0.1:{port}" in line and "another port" in line
        assert service.stop() == 0
        for http_address, status in ((port, 1), ("example.org:80", 2)):
            refused = service.begin("--http", http_address)
            out, err = refused.communicate(timeout=LIMIT_S)
            assert (refused.returncode, out) == (status, ""), err
            (line,) = err.splitlines()
            assert line.startswith("hugepool: ")
    service.start("--keep")
    assert "x" in shell.succeed("ls").out


def test_a_second_coordinator_leaves_no_page_behind(service: Service) -> None:
    service.start()
    port = free_port()
    second = service.begin("--http", str(port))
    assert second.wait(LIMIT_S) == 5
    assert free(port)


def test_a_page_for_everybody_is_said_to_be_one(service: Service) -> None:
    service.start()
    page = service.spawn(*HUGEPOOL, "top", "--http", "0.0.0.0:0")
    assert said(page).startswith("http://0.0.0.0:")
    assert page.stderr is not None
    assert "sees names, sizes and process ids" in page.stderr.readline()


def test_what_top_needs_is_imported_when_it_is_needed() -> None:
    script = (
        "import sys, hugepool.live.command; "
        "print({m.partition('.')[0] for m in sys.modules} & {'rich', 'numpy', 'http'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
