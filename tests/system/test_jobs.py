"""Jobs that are waited for later, and threads that share a pool."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool import background, notebook
from hugepool.calls import Call
from hugepool_common.messages import ArrayInfo
from support.host import settles
from support.service import Service, said

N = 1000


@pytest.fixture(name="pool")
def embedded() -> Any:
    with hugepool.connect("embedded") as made:
        yield made


@pytest.fixture(name="busy")
def pool_with_stopped_worker() -> Any:
    """A pool whose only worker is stopped, so that its jobs begin and do not end; and a way on."""
    with hugepool.connect("embedded") as made:
        made.start_workers(1)
        (worker,) = made.stats().workers
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            yield made, lambda: os.kill(worker.pid, signal.SIGCONT)
        finally:
            os.kill(worker.pid, signal.SIGCONT)


def temporaries(pool: hugepool.Pool, kept: set[str]) -> set[str]:
    return {info.spec.name for info in pool.list()} - kept


def test_a_job_gives_what_the_call_returns(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(float(N)))
    job = pool.submit(pool.gather, x, [3, 1, 4], workers=2)
    assert isinstance(job, hugepool.Job)
    result = job.result()
    assert result.array.tolist() == [3.0, 1.0, 4.0]
    assert result.timings is not None and len(result.timings.parts) == 2
    assert job.done() and job.wait(0) and not job.running() and job.exception() is None
    assert job.progress() == (2, 2)
    assert repr(job) == "<Job gather done>"
    assert not job.cancel() and not job.cancelled()  # it has ended
    assert job.result() is result


def test_errors_are_those_of_the_call(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(float(N)))
    job = pool.submit(pool.gather, x, [0, N], workers=1)
    with pytest.raises(hugepool.IndexOutOfRangeError, match="1000 at position 1") as caught:
        job.result(timeout=60)
    assert job.exception() is caught.value and caught.value.position == 1
    assert repr(job) == "<Job gather failed: IndexOutOfRangeError>"
    with pytest.raises(hugepool.ArrayNotFoundError):
        pool.submit(pool.matvec, "none", "x").result()
    with pytest.raises(TypeError):
        pool.submit(pool.gather, x).result()  # type: ignore[call-arg]


def test_others_wait_for_jobs_as_for_any_future(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.arange(float(N)))
    jobs = [pool.submit(pool.gather, x, np.full(5, n), workers=2) for n in range(10)]
    for job in concurrent.futures.as_completed(jobs, timeout=60):
        assert job.result().array.tolist() == [jobs.index(job)] * 5  # type: ignore[arg-type]
    assert concurrent.futures.wait(jobs).not_done == set()


def test_a_pool_answers_while_a_job_is_under_way(busy: Any) -> None:
    pool, go_on = busy
    x = pool.put("x", np.arange(float(N)))
    out = pool.create("out", 2)
    first = pool.submit(pool.gather, x, [1, 2], out, workers=1)
    second = pool.submit(pool.gather, x, [5], workers=1)
    assert settles(lambda: pool.stats().jobs_running == 2)
    assert first.running() and not first.done() and not first.wait(0)
    assert first.progress() == (0, 1) and repr(first) == "<Job gather running, 0 of 1 parts done>"
    with pytest.raises(TimeoutError, match="0 of 1 parts done"):
        first.result(timeout=0.01)
    with pool.attach("x") as other:
        assert other.array[7] == 7
    go_on()
    assert first.result(60) is out and out.array.tolist() == [1.0, 2.0]
    assert second.result(60).array.tolist() == [5.0]


def test_progress_tells_parts_while_some_are_done(pool: hugepool.Pool) -> None:
    """Of two workers one is stopped: the other's part is told of before the job ends."""
    x = pool.put("x", np.arange(float(N)))
    out = pool.create("out", 4)
    pool.gather(x, [0, 1, 2, 3], out, workers=2)  # both have mapped what they need
    stopped = pool.stats().workers[0].pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        job = pool.submit(pool.gather, x, [4, 5, 6, 7], out, workers=2)
        assert settles(lambda: job.progress() == (1, 2)), job
        assert not job.done()
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert job.result(60) is out and job.progress() == (2, 2)


def test_a_cancelled_job_leaves_nothing(busy: Any) -> None:
    pool, _ = busy
    x = pool.put("x", np.arange(float(N)))
    job = pool.submit(pool.gather, x, [1, 2], workers=1)
    assert settles(lambda: pool.stats().jobs_running == 1)
    assert job.cancel() and job.cancelled() and job.done() and job.cancel()
    assert repr(job) == "<Job gather cancelled>"
    for kind in (hugepool.CancelledError, concurrent.futures.CancelledError):
        with pytest.raises(kind):
            job.result()
    assert concurrent.futures.wait([job], 60).not_done == set()
    assert settles(lambda: pool.stats().jobs_running == 0)
    assert settles(lambda: not temporaries(pool, {"x"}))


def test_a_cancelled_creation_gives_its_name_and_memory_back(pool: hugepool.Pool) -> None:
    job = pool.submit(pool.create, "big", 1 << 30, "u1")
    assert settles(lambda: job.running() or job.done())
    assert job.cancel() or job.result() is not None
    if job.cancelled():
        assert settles(lambda: not pool.list() and pool.stats().length == 0)
        pool.create("big", 10)


def test_a_job_that_waits_for_a_thread_is_cancelled_unbegun(busy: Any) -> None:
    pool, _ = busy
    x = pool.put("x", np.arange(float(N)))
    begun = [pool.submit(pool.gather, x, [1], workers=1) for _ in range(32)]
    last = pool.submit(pool.gather, x, [1], workers=1)
    assert settles(lambda: pool.stats().jobs_running == 32)
    assert not last.running() and repr(last) == "<Job gather waiting>"
    assert last.cancel()
    for job in begun:
        assert job.cancel()
    assert settles(lambda: not temporaries(pool, {"x"}))


def test_closing_the_pool_cancels_and_keeps_results(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_LINGER_S", 1e6)  # none ends by itself
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 120.0)
    service.start()
    before = threading.enumerate()  # those of earlier pools may be about to end
    service.spawn(sys.executable, "-m", "hugepool.worker", "--address", service.address)
    pool = hugepool.connect(service.address)
    assert settles(lambda: len(pool.stats().workers) == 1, 60)
    x = pool.put("x", np.arange(float(N)))
    ended = pool.submit(pool.gather, x, [2], workers=1)
    result = ended.result()
    (worker,) = pool.stats().workers
    os.kill(worker.pid, signal.SIGSTOP)
    job = pool.submit(pool.gather, x, [1], workers=1)
    assert settles(lambda: pool.stats().jobs_running == 1)
    pool.close()
    with pytest.raises(hugepool.JobCancelledError):
        job.result(60)
    assert ended.result() is result and result.array.tolist() == [2.0]
    assert not ended.cancel() and ended.progress() == (1, 1)
    with pytest.raises(hugepool.DetachedError):
        pool.submit(pool.list)
    ours = [one for one in threading.enumerate() if one not in before]
    assert not [one for one in ours if one.name == "hugepool-call"]


def test_a_coordinator_killed_meanwhile(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPOOL_RECONNECT_S", "1000")  # the next one may take its time to start
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(float(N)))
        out = pool.create("out", 1)
        pool.start_workers(1)
        (worker,) = pool.stats().workers
        os.kill(worker.pid, signal.SIGSTOP)
        job = pool.submit(pool.gather, x, [7], out, workers=1)
        assert settles(lambda: pool.stats().jobs_running == 1)
        service.restart()
        os.kill(worker.pid, signal.SIGCONT)
        with pytest.raises(hugepool.JobInterruptedError, match="submit it again"):
            job.result(60)
        assert pool.submit(pool.gather, x, [7], out, workers=1).result(60).array[0] == 7


FORKER = """
import os, hugepool
pool = hugepool.connect()
job = pool.submit(pool.create, "x", 10)
job.result()
if os.fork() == 0:
    for call in (job.done, job.result, job.cancel, job.wait, job.progress, job.running,
                 lambda: pool.submit(pool.list)):
        try:
            call()
            print("done", flush=True)
        except hugepool.DetachedError as error:
            print("parent" in str(error), flush=True)
    print(repr(job), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_child_is_refused(service: Service) -> None:
    service.start()
    child = service.python(FORKER)
    assert [said(child) for _ in range(8)] == ["True"] * 7 + ["<Job create of the parent process>"]
    assert child.wait(60) == 0


def test_threads_share_a_session(pool: hugepool.Pool) -> None:
    """Each has the answers to its own requests, and nothing is left of them."""
    x = pool.put("x", np.arange(float(N)))
    pool.start_workers(2)
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                with pool.create(f"own-{number}-{turn}", 10) as own:
                    found: ArrayInfo = pool.describe(own.name).array
                    got = pool.gather(x, [number, turn], workers=1).array
                    if found.spec.name != own.name or got.tolist() != [number, turn]:
                        wrong.append((number, turn))
                pool.destroy(f"own-{number}-{turn}")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert settles(lambda: not temporaries(pool, {"x"}))
    assert pool.describe("x").reader_pids.count(os.getpid()) == 1


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(found: Any) -> _Texts:
    parser = _Texts()
    parser.feed(found._repr_html_())
    assert parser.tags <= {"table", "caption", "b", "tbody", "tr", "th", "td"}
    assert parser.attributes <= {"style"}
    return parser


def test_notebooks_show_tables(pool: hugepool.Pool) -> None:
    x = pool.put("x", np.zeros(300_000))
    texts = shown(x).texts
    assert texts[0] == "SharedArray"
    told = dict(zip(texts[1::2], texts[2::2], strict=True))
    assert (told["name"], told["dtype"], told["shape"]) == ("x", "<f8", "(300000,)")
    assert told["bytes"] == "2.4 MB (2400000)" and told["state"] == "sealed"
    assert x.pages.backing in told["backing"] and "% huge" in told["backing"]
    job = pool.submit(pool.describe, "<b>&")
    with pytest.raises(hugepool.InvalidSpecError):
        job.result()
    assert shown(job).texts == ["Job describe", "state", "failed: InvalidSpecError"]
    texts = shown(pool).texts
    assert texts[:3] == ["Pool", "address", pool.address] and "1, 2.4 MB" in texts
    x.detach()
    assert shown(x).texts[-1] == "detached"
    pool.close()
    assert shown(pool).texts[-1] == "closed"


def test_what_a_notebook_shows_is_escaped() -> None:
    parser = _Texts()
    parser.feed(notebook.table("<i>t", {"<script>": "<img src=x>&"}))
    assert not parser.tags & {"script", "img", "i"}
    assert parser.texts == ["<i>t", "<script>", "<img src=x>&"]


def test_a_call_that_was_done_as_it_was_cancelled_is_undone(pool: hugepool.Pool) -> None:
    """The array is there, and the call is about to return it."""
    make: Any
    for make, arguments in ((pool.create, (1000,)), (pool.put, (np.arange(1000.0),))):
        made, go_on = threading.Event(), threading.Event()

        def progress(done: int, total: int, made: Any = made, go_on: Any = go_on) -> None:
            if done == total:
                made.set()
                go_on.wait(60)

        job = pool.submit(make, "x", *arguments, progress=progress)
        assert made.wait(60) and [info.spec.name for info in pool.list()] == ["x"]
        assert job.cancel()
        go_on.set()
        assert concurrent.futures.wait([job], 60).not_done == set()
        assert settles(lambda: not pool.list())


def test_a_pool_closed_as_a_thread_looks_up_is_told_as_closed(busy: Any) -> None:
    """A thread that has seen that the pool is open finds it closed when it is at the socket."""
    pool, _ = busy
    channel = pool.background._channel
    x = pool.put("x", np.arange(float(N)))
    pool.submit(pool.gather, x, [1], workers=1)

    class Closing(Call):
        armed = False

        def check(self) -> None:
            if self.armed and channel._place.taken_by_another:
                self.armed = False
                closer = threading.Thread(target=channel.close)
                closer.start()
                closer.join()

    call = Closing()
    outcome: list[object] = []

    def work() -> None:
        with channel.making(call):
            try:
                pool.gather(x, [2], workers=1)
            except BaseException as error:
                outcome.append(error)

    def looked() -> bool:
        with contextlib.suppress(hugepool.DetachedError):
            pool.stats()
        return not call.armed

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert settles(lambda: pool.stats().jobs_running == 2)
    call.armed = True
    assert settles(looked)
    thread.join(60)
    # The goodbye's answer comes after that of the job, which may be seen before.
    assert isinstance(outcome[0], hugepool.DetachedError | hugepool.CancelledError), outcome
    assert "closed" in str(outcome[0])


THREADLESS = """
import resource, threading, hugepool
pool = hugepool.connect()
threading.stack_size(1 << 28)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 26), resource.RLIM_INFINITY))
try:
    pool.submit(pool.list)
except MemoryError as error:
    print(type(error).__name__, flush=True)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(pool.submit(pool.list).result(), flush=True)
pool.close()
print(pool.closed, flush=True)
"""


def test_a_process_that_can_have_no_thread_is_told_so(service: Service) -> None:
    service.start()
    child = service.python(THREADLESS)
    assert [said(child) for _ in range(3)] == ["NotEnoughMemoryError", "()", "True"]
    assert child.wait(60) == 0


STARTER = """
import os, signal, threading, time, hugepool
pool = hugepool.connect()
threading.Thread(target=pool.start_workers, args=(1,)).start()

def children(tid):
    try:
        return open(f"/proc/self/task/{tid}/children").read()
    except FileNotFoundError:
        return ""  # a thread that has ended since

while not any(map(children, os.listdir("/proc/self/task"))):
    time.sleep(0.001)
if os.fork() == 0:
    signal.alarm(60)
    for call in (lambda: pool.gather("x", [1]), lambda: pool.start_workers(1)):
        try:
            call()
        except hugepool.DetachedError as error:
            print("parent" in str(error), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_child_forked_while_workers_are_started_is_refused(service: Service) -> None:
    service.start()
    child = service.python(STARTER)
    assert [said(child) for _ in range(2)] == ["True"] * 2
    assert child.wait(120) == 0


INTERRUPTED = """
import os, signal, sys, threading, time, hugepool
from hugepool import background
pool = hugepool.connect("embedded")
address = pool.address.removeprefix("ipc://")
pool.start_workers(1)
background.STOP_TIMEOUT_S = 1000.0
job = pool.submit(time.sleep, 1000)
while not job.running():
    time.sleep(0.01)
main = threading.main_thread().ident

def waits_for_the_job():
    frame = sys._current_frames()[main]
    while frame is not None and frame.f_code is not background.Background.stop.__code__:
        frame = frame.f_back
    return frame is not None

def interrupt():
    while not waits_for_the_job():
        time.sleep(0.01)
    time.sleep(0.3)
    signal.pthread_kill(main, signal.SIGALRM)

signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    threading.Thread(target=interrupt, daemon=True).start()
    pool.close()
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(pool.closed, os.path.exists(address), flush=True)
os._exit(0)
"""


def test_a_close_that_is_interrupted_ends_everything(service: Service) -> None:
    child = service.python(INTERRUPTED)
    assert [said(child) for _ in range(2)] == ["interrupted", "True False"]
    assert child.wait(60) == 0


EVERYWHERE = """
import os, signal, sys, threading, hugepool
pool = hugepool.connect()
channel = pool.background._channel
ask = {{"asks": pool.stats, "takes in": channel.take_in, "flushes": channel.flush}}["{what}"]
pool.stats()
files = ("channel.py", "place.py", "calls.py", "threading.py")

def stats_in_another_thread():
    thread = threading.Thread(target=pool.stats, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()

def interrupted_at(point):
    left = point
    def look(frame, event, argument):
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(files):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)
    sys.setprofile(look)
    try:
        ask()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return left <= 0

point = 1
while interrupted_at(point):
    if not stats_in_another_thread():
        print("stuck after", point, flush=True)
        os._exit(1)
    point += 1
print("never stuck", point > 10, flush=True)
"""


@pytest.mark.parametrize("what", ["asks", "takes in", "flushes"])
def test_no_ctrl_c_keeps_other_threads_waiting(service: Service, what: str) -> None:
    """Wherever it comes in a call, the place at the socket is left to others."""
    service.start()
    child = service.python(EVERYWHERE.format(what=what))
    assert said(child) == "never stuck True"
    assert child.wait(60) == 0


INTERRUPTED_GOODBYE = """
import signal, sys, hugepool
from hugepool.channel import Channel
watcher = hugepool.connect()

def interrupted_at(point):
    left = point
    def look(frame, event, argument):
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith("channel.py"):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)
    channel = Channel(watcher.address)
    sys.setprofile(look)
    try:
        channel.close()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    if channel.closed and not channel._closed:
        print("left open after", point, flush=True)
        sys.exit(1)
    channel.close()
    return left <= 0

point = 1
while interrupted_at(point):
    point += 1
print("never left open", point > 10, flush=True)
"""


def test_a_goodbye_that_is_interrupted_ends_the_session_all_the_same(service: Service) -> None:
    """A pool closes its session once, so whatever has begun to close it has closed it."""
    service.start()
    child = service.python(INTERRUPTED_GOODBYE)
    assert said(child) == "never left open True"
    assert child.wait(60) == 0


def test_ctrl_c_as_an_answer_is_taken_in_gives_back_what_it_granted(
    pool: hugepool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until the place is had, and is heard just then."""
    place = pool.background._channel._place
    come_back = place.come_back

    def interrupted() -> None:
        monkeypatch.setattr(place, "come_back", come_back)
        come_back()
        raise KeyboardInterrupt

    pool.put("x", np.arange(10.0)).detach()
    for ask in (lambda: pool.attach("x"), lambda: pool.create("y", 10)):
        monkeypatch.setattr(place, "come_back", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert [info.spec.name for info in pool.list()] == ["x"]
    assert pool.describe("x").reader_pids == ()
    assert not pool.background._channel._ledger._requests
