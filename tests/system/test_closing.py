"""A pool that is closed by one thread while others are about to use it."""

from __future__ import annotations

import signal
import threading

import pytest

import hugepool
from hugepool import channel
from support.host import settles
from support.service import Service, said
from support.threads import frames_of

STARTING = """
import os, threading, hugepool
pool = hugepool.connect()

def children():
    found = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            found.update(open(f"/proc/self/task/{thread}/children").read().split())
        except FileNotFoundError:
            pass
    return found

def start():
    try:
        pool.start_workers(12)
    except hugepool.HugepoolError as error:
        print(type(error).__name__, flush=True)

thread = threading.Thread(target=start)
thread.start()
while not children():
    pass
pool.close()
thread.join()
print(children(), flush=True)
input()
"""


def test_workers_that_are_being_started_end_with_the_pool(service: Service) -> None:
    service.start()
    process = service.python(STARTING)
    assert said(process) == "DetachedError"
    assert said(process) == "set()"
    process.terminate()


LATE = """
import hugepool
from hugepool import jobs
pool = hugepool.connect()
wait = jobs.JobRunner._wait_registered
jobs.JobRunner._wait_registered = lambda self, *rest: (self.stop(), wait(self, *rest))
try:
    pool.start_workers(1)
except hugepool.HugepoolError as error:
    print(type(error).__name__, flush=True)
"""


def test_workers_that_ended_with_the_pool_are_not_told_as_broken(service: Service) -> None:
    """They end before the session does, and on a slow machine are seen to."""
    service.start()
    assert said(service.python(LATE)) == "DetachedError"


def test_a_request_while_another_thread_says_goodbye_is_told_that_the_pool_is_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator would answer it with an error of the protocol: the session is over."""
    monkeypatch.setattr(channel, "GOODBYE_TIMEOUT_S", 120.0)
    service.start()
    assert service.process is not None
    pool = hugepool.connect(service.address)
    x = pool.put("x", [1.0])
    refused: list[BaseException] = []

    def ask() -> None:
        for call in (pool.stats, lambda: pool.attach("x"), lambda: pool.destroy("x")):
            try:
                call()
            except BaseException as error:
                refused.append(error)
        x.detach()  # which is no error with a pool that is closed

    closer, asker = threading.Thread(target=pool.close), threading.Thread(target=ask, daemon=True)
    service.process.send_signal(signal.SIGSTOP)
    try:
        closer.start()
        assert settles(lambda: {"_say_goodbye", "wait"} <= {*frames_of(closer)}, 60)
        asker.start()
        asker.join(60)
        assert [type(error) for error in refused] == [hugepool.DetachedError] * 3
        assert not asker.is_alive() and closer.is_alive()
    finally:
        service.process.send_signal(signal.SIGCONT)
        closer.join(60)
    assert pool.closed
    with hugepool.connect(service.address) as other:
        assert other.attach("x").array.tolist() == [1.0]
