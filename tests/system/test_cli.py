"""The installed ``hugepool`` and ``hugepoold``: streams, exit statuses, one-line errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import hugepool
from hugepool.worker import parse_cpus
from support.service import Service

SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "command", [["hugepool"], ["hugepool", "worker"], ["hugepool", "serve"], ["hugepoold"]]
)
def test_help(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", ["hugepool", "hugepoold"])
def test_version(command: str) -> None:
    assert hugepool.__version__ in run(command, "--version").stdout


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["hugepool", "nonsense"], 2, "No such command"),
        (["hugepool", "worker", "-n", "0"], 2, "0 is not in the range"),
        (["hugepool", "worker", "--cpus", "a-b"], 2, "is not a list"),
        (["hugepool", "worker"], 3, "hugepool serve"),
        (["hugepool", "worker", "--address", "ipc:///nowhere.sock"], 3, "hugepool serve"),
        (["hugepool", "worker", "--cpus", "1-0"], 2, "is not a list"),
        (["hugepool", "worker", "--cpus", ""], 2, "is not a list"),
        (["hugepool", "worker", "--cpus", "0-99999"], 2, "not there for us"),
        (["hugepool", "worker", "--cpus", "0-99999999999"], 2, "is not a list"),
        (["hugepool", "worker", "--address", "http://nowhere"], 2, "ipc://PATH"),
        (["hugepoold", "--group", "no-such-group"], 2, "groupadd"),
        (["hugepool", "serve", "--nonsense"], 2, "see: hugepool serve --help"),
        (["hugepool", "serve", "--runtime-dir", "/dev/null"], 1, "HUGEPOOL_RUNTIME_DIR"),
        (["hugepool", "serve", "--runtime-dir", "/proc/self"], 1, "HUGEPOOL_RUNTIME_DIR"),
        (["hugepoold", "--runtime-dir", "/proc/nowhere"], 1, "runtime directory"),
        (["hugepoold", "--runtime-dir", "/proc"], 1, "no file can be made"),
        (["hugepoold", "--runtime-dir", "/" + "x" * 200], 2, "HUGEPOOL_RUNTIME_DIR"),
    ],
)
def test_wrong_use_is_one_line_and_the_right_status(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    done = run(*arguments, HUGEPOOL_RUNTIME_DIR=str(tmp_path / "run"))
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_serve_prints_its_address_and_ends_on_a_signal(service: Service) -> None:
    process = service.spawn(
        str(SCRIPTS / "hugepool"), "serve", "--runtime-dir", str(service.directory)
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == service.address
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not service.directory.exists()


@pytest.mark.parametrize(
    ("prefix", "mount", "said"),
    [
        ((), "/dev/shm/hugepool-nowhere", "there is no such directory"),
        ((), "/proc/self", "on neither hugetlbfs nor tmpfs"),
        (("prlimit", "--fsize=1000000"), "", "at most 1000000 bytes, so larger arrays are refused"),
    ],
)
def test_what_keeps_arrays_from_being_made_is_told_at_the_start(
    service: Service, prefix: tuple[str, ...], mount: str, said: str
) -> None:
    service.start(*(["--mount", mount] if mount else []), prefix=prefix)
    assert service.process is not None
    service.process.terminate()
    told = service.process.communicate(timeout=60)[1]
    assert any("WARNING" in line and said in line for line in told.splitlines()), told


def test_workers_are_pinned_and_end_with_their_command(service: Service) -> None:
    service.start()
    cpu = min(os.sched_getaffinity(0))
    process = service.spawn(
        sys.executable, "-m", "hugepool", "worker", "-n", "2", "--cpus", str(cpu)
    )
    with hugepool.connect(service.address) as pool:
        while len(pool.stats().workers) < 2:
            assert process.poll() is None
        for worker in pool.stats().workers:
            assert worker.cpus == (cpu,)
            assert os.sched_getaffinity(worker.pid) == {cpu}
        process.terminate()
        assert process.wait(60) == 0
        while pool.stats().workers:
            pass


@pytest.mark.parametrize(
    "victim, status, said",
    [("coordinator", 3, "coordinator ended"), ("worker", 1, "SIGKILL"), ("command", 130, "")],
)
def test_the_end_of_workers_has_a_status(
    service: Service, victim: str, status: int, said: str
) -> None:
    service.start()
    process = service.spawn(
        *(sys.executable, "-m", "hugepool", "worker", "-n", "1"), HUGEPOOL_RECONNECT_S="0.1"
    )
    with hugepool.connect(service.address) as pool:
        while not (workers := pool.stats().workers):
            assert process.poll() is None
        if victim == "worker":
            os.kill(workers[0].pid, signal.SIGKILL)
        elif victim == "command":
            process.send_signal(signal.SIGINT)
        else:
            service.kill()
    assert process.wait(60) == status
    assert process.stderr is not None
    assert said in process.stderr.read()


@pytest.mark.parametrize("text, cpus", [("0", (0,)), ("0-1", (0, 1)), ("1,0-0", (1, 0))])
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    allowed = os.sched_getaffinity(0)
    if not set(cpus) <= allowed:
        pytest.skip(f"the machine lets us run on {sorted(allowed)} only")
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("command", ["hugepool --version", "hugepool doctor --json"])
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_are_no_traceback(command: str, closed: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{SCRIPTS}/{command} {closed}"], capture_output=True, text=True
    )
    assert done.returncode in ((0, 4) if "doctor" in command else (0,))
    assert "Traceback" not in done.stderr
