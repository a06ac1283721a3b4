"""``--group``: members of a group share a coordinator; the kernel keeps out everybody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hugepool
from support.host import require
from support.service import Service

MEMBER_UID = OTHER_UID = 65534
GROUP = 54321  # any number; nobody else is in it


@pytest.fixture
def group_service() -> Iterator[Service]:
    require("unprivileged", os.geteuid() == 0, "needs root to become other users")
    # Not under pytest's own directory, which other users may not enter.
    directory = Path(tempfile.mkdtemp(prefix="hugepool-test-"))
    directory.chmod(0o755)
    made = Service(directory / "run").start("--group", str(GROUP))
    yield made
    made.close()
    shutil.rmtree(directory)


def as_user(service: Service, script: str, *, gid: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("setpriv", f"--reuid={MEMBER_UID}", f"--regid={gid}", "--clear-groups"),
            *(sys.executable, "-c", script),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        cwd="/",
        env={
            "HUGEPOOL_ADDRESS": service.address,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # a tree that is not installed
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


def test_a_member_reads_what_is_sealed_and_the_kernel_refuses_a_write(
    group_service: Service,
) -> None:
    with hugepool.connect(group_service.address) as pool:
        x = pool.put("x", np.arange(5.0))
        done = as_user(
            group_service,
            "import os, hugepool\n"
            "x = hugepool.connect().attach('x')\n"
            "print(x.array.sum(), x.array.flags.writeable)\n"
            "try: os.open(x.info.segment.path, os.O_RDWR)\n"
            "except PermissionError: print('refused')\n",
            gid=GROUP,
        )
        assert done.stdout == "10.0 False\nrefused\n", done.stderr
        assert x.array[0] == 0


def test_a_member_creates_fills_and_seals(group_service: Service) -> None:
    done = as_user(
        group_service,
        "import numpy as np, hugepool\n"
        "with hugepool.connect() as pool:\n"
        "    x = pool.put('theirs', np.arange(7.0))\n"
        "    print(x.sealed, oct(__import__('os').stat(x.info.segment.path).st_mode))\n",
        gid=GROUP,
    )
    assert done.stdout == "True 0o100440\n", done.stderr
    with hugepool.connect(group_service.address) as pool:
        np.testing.assert_array_equal(pool.attach("theirs").array, np.arange(7.0))


def test_another_user_s_array_is_not_ours_to_write_or_destroy(group_service: Service) -> None:
    with hugepool.connect(group_service.address) as pool:
        pool.create("mine", 5)
        done = as_user(
            group_service,
            "import hugepool\n"
            "pool = hugepool.connect()\n"
            "for call in (lambda: pool.attach('mine', readonly=False),\n"
            "             lambda: pool.destroy('mine'), pool.shutdown):\n"
            "    try: call()\n"
            "    except hugepool.NotPermittedError as error: print(error)\n",
            gid=GROUP,
        )
        written, destroyed, stopped = done.stdout.splitlines()
        assert "only its creator's user may write" in written
        assert "may destroy" in destroyed
        for told in (written, destroyed):
            assert "as that user, or make a copy" in told
        assert "needed uid 0, had" in stopped
        assert "ask whoever runs it" in stopped
        assert [info.spec.name for info in pool.list()] == ["mine"]


def test_who_is_not_in_the_group_cannot_connect(group_service: Service) -> None:
    done = as_user(
        group_service,
        "import hugepool\ntry: hugepool.connect()\nexcept ConnectionError as error: print(error)\n",
        gid=OTHER_UID,
    )
    assert "Permission denied" in done.stdout, done.stderr
    assert "join the coordinator's group" in done.stdout


def test_a_service_that_keeps_us_out_is_not_called_absent(group_service: Service) -> None:
    directory = group_service.address.removeprefix("ipc://").rpartition("/")[0]
    done = as_user(
        group_service,
        "import os, sys\n"
        f"os.environ |= {{'HUGEPOOL_ADDRESS': '', 'HUGEPOOL_RUNTIME_DIR': {directory!r}}}\n"
        "sys.argv = ['hugepool', 'ls']\n"
        "from hugepool.cli import main\n"
        "main()\n",
        gid=OTHER_UID,
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "may not connect to the coordinator: Permission denied" in line
    assert "join the coordinator's group" in line
