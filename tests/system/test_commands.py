"""``hugepool`` at work: each command used rightly, its facts; and wrongly, its line and status."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool_common.pages import read_host
from hugepool_common.units import GIB, MIB
from support.commands import HUGEPOOL, Done, Shell
from support.extras import sparse
from support.host import Mounts, require, settles
from support.service import Service, said, state, tell

ROOT = Path(__file__).parents[2]
GRAPH = str(ROOT / "tests/data/debian-depends.mtx.gz")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One coordinator for all of these tests."""
    made = Service(tmp_path_factory.mktemp("commands") / "run").start("--quota", "2GB")
    yield made
    made.close()


@pytest.fixture
def shell(running: Service) -> Iterator[Shell]:
    """A shell at the coordinator, which has no arrays before and after."""
    yield Shell(HUGEPOOL_ADDRESS=running.address)
    with hugepool.connect(running.address) as pool:
        for info in pool.list():
            pool.destroy(info.spec.name)


def test_an_array_of_one_value_is_made_and_stays(shell: Shell, running: Service) -> None:
    done = shell.succeed("create", "x", "1e3", "--fill", "2.5")
    assert done.out.startswith("<SharedArray 'x' (1000,) float64 8 kB sealed, ")
    made = shell.succeed("create", "mask", "500x20", "--dtype", "bool", "--json").json
    assert (made["name"], made["shape"], made["dtype"]) == ("mask", [500, 20], "|b1")
    assert (made["nbytes"], made["state"], made["sealed"]) == (10_000, "sealed", True)
    shell.succeed("create", "one", "()", "--fill", "-7", "--dtype", "int16")
    with hugepool.connect(running.address) as pool:
        assert pool.attach("x").array.tolist() == [2.5] * 1000
        assert not pool.attach("mask").array.any()
        assert pool.attach("one").array[()] == -7


def test_small_pages_can_be_asked_for(shell: Shell) -> None:
    assert (
        "shm-4k (4K pages), 0 % huge"
        in shell.succeed("create", "x", "1e6", "--huge-pages", "off").out
    )
    made = shell.succeed("create", "y", "1e6", "--backing", "shm-4k", "--json").json
    assert (made["backing"], made["page_size"], made["huge_bytes"]) == ("shm-4k", 4096, 0)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["x", "many"], 2, "'many' is not a shape"),
        (["x", "1.5"], 2, "'1.5' is not a shape"),
        (["x", ""], 2, "is not a shape"),
        (["x", "1e30"], 2, "out of range"),
        (["../x", "5"], 2, "not an array name"),
        (["x", "5", "--dtype", "O"], 2, "cannot be shared"),
        (["x", "5", "--dtype", "float65"], 2, "not a dtype"),
        (["x", "5", "--dtype", "u1", "--fill", "256"], 2, "no element of dtype uint8"),
        (["x", "5", "--fill", "much"], 2, "no element of dtype float64"),
        (["x", "5", "--page-size", "3M"], 2, "--page-size"),
        (["x"], 2, "Missing argument 'SHAPE'"),
        (["x", "5", "--backing", "shm-5k"], 2, "shm-5k"),
        (["x", "1e9"], 1, "quota"),
        (["taken", "5"], 1, "taken"),
    ],
)
def test_what_cannot_be_made(shell: Shell, arguments: list[str], status: int, words: str) -> None:
    shell.succeed("create", "taken", "3")
    assert words in shell.refuse(status, "create", *arguments)
    assert [row["name"] for row in shell.succeed("ls").rows] == ["taken"]


def test_files_come_in_and_go_out_the_same(shell: Shell, tmp_path: Path) -> None:
    """Through every format, of a dense array and of a matrix."""
    values = np.arange(600_000.0).reshape(200, 3000)
    np.save(tmp_path / "in.npy", values)
    assert "(200, 3000) float64" in shell.succeed("put", "x", str(tmp_path / "in.npy")).out
    done = shell.succeed("get", "x", str(tmp_path / "out.npy"))
    assert done.out == "" and "4.8 MB" in done.err
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "in.npy").read_bytes()
    sparse()
    import scipy.io
    import scipy.sparse

    shell.succeed("put", "A", GRAPH)
    wanted = scipy.sparse.csr_array(scipy.io.mmread(GRAPH))
    for ending in (".npz", ".mtx", ".mtx.gz"):
        path = str(tmp_path / f"out{ending}")
        shell.succeed("get", "A", path)
        read = scipy.sparse.load_npz(path) if ending == ".npz" else scipy.io.mmread(path)
        assert abs(scipy.sparse.csr_array(read) - wanted).max() == 0, ending
        assert shell.succeed("put", f"B{ending}", path, "--json").json["nnz"] == 299_188
    assert isinstance(scipy.sparse.load_npz(tmp_path / "out.npz"), scipy.sparse.csr_array)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("in.npy", "out.mtx", "out.mtx.gz", "out.npy", "out.npz")
    ]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_arrays_without_elements_or_axes_go_out(
    shell: Shell, running: Service, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with hugepool.connect(running.address) as pool:
        pool.put("x", np.full(shape, 3, "i2"))
    shell.succeed("get", "x", str(tmp_path / "x.npy"))
    found = np.load(tmp_path / "x.npy")
    assert (found.shape, found.dtype) == (shape, np.dtype("i2"))


def test_what_is_not_sealed_goes_out_with_a_warning(
    shell: Shell, running: Service, tmp_path: Path
) -> None:
    with hugepool.connect(running.address) as pool:
        pool.create("x", 300_000).array[:] = 5.0
        done = shell.succeed("get", "x", str(tmp_path / "x.npy"))
        assert "x is not sealed" in done.err
        assert np.load(tmp_path / "x.npy").tolist() == [5.0] * 300_000


def test_a_file_that_is_there_is_kept(shell: Shell, tmp_path: Path) -> None:
    shell.succeed("create", "x", "5")
    target = tmp_path / "x.npy"
    target.write_text("mine")
    assert "--force" in shell.refuse(1, "get", "x", str(target))
    assert target.read_text() == "mine"
    shell.succeed("get", "x", str(target), "--force")
    assert np.load(target).tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("name", "file", "status", "words"),
    [
        ("nothing", "x.npy", 1, "hugepool ls"),
        ("x", "x.csv", 2, ".npy, .npz"),
        ("x", "x.mtx", 2, "write it to a .npy file"),
        ("x", "nowhere/x.npy", 1, "No such file or directory"),
        ("../x", "x.npy", 2, "not an array name"),
    ],
)
def test_a_failed_get_leaves_nothing(
    shell: Shell, tmp_path: Path, name: str, file: str, status: int, words: str
) -> None:
    shell.succeed("create", "x", "5")
    assert words in shell.refuse(status, "get", name, str(tmp_path / file))
    assert list(tmp_path.iterdir()) == []


def test_damage_that_is_found_on_the_way_out_leaves_no_file(
    shell: Shell, running: Service, tmp_path: Path
) -> None:
    with hugepool.connect(running.address) as pool:
        x = pool.put("x", np.arange(1e6), backing="shm-4k")
        path = x.info.segment.path
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(5_000_000)
        file.write(b"\1")
    assert "not those that were sealed" in shell.refuse(1, "get", "x", str(tmp_path / "x.npy"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "status", "words"),
    [
        ("none.npy", 1, "No such file or directory"),
        ("bad.npy", 2, "not a .npy file"),
        ("bad.npz", 2, "not a .npz file"),
    ],
)
def test_a_file_that_cannot_be_put(
    shell: Shell, tmp_path: Path, file: str, status: int, words: str
) -> None:
    (tmp_path / "bad.npy").write_text("what is this")
    (tmp_path / "bad.npz").write_text("what is this")
    assert words in shell.refuse(status, "put", "x", str(tmp_path / file))
    assert shell.succeed("ls").rows == []


def test_the_list(shell: Shell, running: Service) -> None:
    empty = shell.succeed("ls")
    assert empty.out == (
        "name\tkind\tdtype\tshape\tbytes\tbacking\thuge %\treaders\tgeneration\tstate\n"
    )
    shell.succeed("create", "weights-1", "500x20", "--dtype", "f4")
    shell.succeed("put", "A", GRAPH)
    with hugepool.connect(running.address) as pool:
        x = pool.create("x", 100_000)
        rows = shell.succeed("ls").rows
        assert [row["name"] for row in rows] == ["A", "weights-1", "x"]
        assert {**rows[1], "backing": "", "huge %": ""} == {
            "name": "weights-1",
            "kind": "array",
            "dtype": "<f4",
            "shape": "500x20",
            "bytes": "40000",
            "backing": "",
            "huge %": "",
            "readers": "0",
            "generation": "1",
            "state": "sealed",
        }
        assert (rows[0]["kind"], rows[0]["shape"]) == ("csr", "63436x63436")
        assert (rows[2]["readers"], rows[2]["state"]) == ("1", "open")
        told = {one["name"]: one for one in shell.succeed("ls", "--json").json}
        assert told["x"]["huge_bytes"] == x.pages.huge_bytes
        assert told["x"]["length"] == x.pages.length
        assert told["A"]["nnz"] == 299_188
        assert told["weights-1"]["checksum"].startswith("crc32-16M:")
        assert [one["name"] for one in shell.succeed("ls", "w*", "--json").json] == ["weights-1"]
        assert [row["name"] for row in shell.succeed("ls", "[Ax]").rows] == ["A", "x"]
    assert "see all names with: hugepool ls" in shell.refuse(1, "ls", "q*")


def test_the_list_is_not_cut_short_at_eighty_columns(shell: Shell) -> None:
    name = "a-name-of-which-nothing-may-be-cut." * 3
    shell.succeed("create", name, "1e6")
    shell.succeed("create", "x", "5")
    heading, *rows = shell.at_a_terminal("ls", NO_COLOR="1").splitlines()
    assert [row.split()[0] for row in rows] == [name, "x"]
    end = heading.index("BYTES") + len("BYTES")
    assert [row[:end].rsplit("  ", 1)[1] for row in rows] == ["8 MB", "40 B"]
    assert "\x1b" not in heading
    assert "\x1b[1m" in shell.at_a_terminal("ls")


@pytest.mark.parametrize("columns", [80, 60, 40])
def test_a_narrow_terminal_loses_columns_from_the_right(shell: Shell, columns: int) -> None:
    shell.succeed("put", "A", GRAPH)
    shell.succeed("create", "ones", "1e6")
    seen = shell.at_a_terminal("ls", columns=columns, NO_COLOR="1").splitlines()
    *table, note = seen
    assert [line.split()[0] for line in table] == ["NAME", "A", "ones"]
    assert max(map(len, table)) <= columns
    assert "left out" in note and note.endswith("generation, state")
    seen = shell.at_a_terminal("top", "--once", columns=columns, NO_COLOR="1").splitlines()
    names = [line.split()[0] for line in seen if line][-3:]
    assert sorted(names) == ["A", "NAME", "ones"]
    assert max(map(len, seen)) <= columns
    assert not any("\x1b" in line for line in seen)


def test_names_that_are_not_there_are_told_on_stderr(shell: Shell) -> None:
    shell.succeed("create", "x", "5")
    for command in ("verify", "warm"):
        assert "no array has this name (at nope)" in shell.refuse(1, command, "nope")
        done = shell(command, "x", "nope")
        assert done.status == 1 and "nope" in done.err
        assert [row["name"] for row in done.rows] == ["x"]
        told = shell(command, "nope", "--json")
        assert told.status == 1 and told.json == [] and "nope" in told.err


def test_json_where_something_is_printed(shell: Shell, running: Service, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(3.0))
    told = shell.succeed("publish", "v", str(tmp_path / "v.npy"), "--json").json
    assert (told["name"], told["generation"], told["state"]) == ("v", 1, "sealed")
    with hugepool.connect(running.address) as pool:
        pool.create("w", 5).detach()
        (told,) = shell.succeed("seal", "w", "--json").json
        assert told["name"] == "w" and told["checksum"]


def test_infinity_is_filled_in_only_if_it_was_written(shell: Shell) -> None:
    assert "1e400" in shell.refuse(2, "create", "x", "3", "--fill", "1e400")
    shell.succeed("create", "x", "3", "--fill", "-inf")


def test_files_of_an_unknown_kind(shell: Shell, tmp_path: Path) -> None:
    line = shell.refuse(2, "put", "x", str(ROOT / "README.md"))
    assert "'.md' is not known" in line and ".safetensors" in line and ".mtx.gz" in line
    os.mkfifo(tmp_path / "pipe.npy")
    assert "no pipe" in shell.refuse(2, "put", "x", str(tmp_path / "pipe.npy"))
    np.savez(tmp_path / "empty.npz")
    assert "holds no array" in shell.refuse(2, "put", "x", str(tmp_path / "empty.npz"))


def test_get_on_a_full_disk_names_the_file(shell: Shell, mounts: Mounts) -> None:
    shell.succeed("create", "x", "1e5")
    target = os.path.join(mounts.tmpfs("size=64k"), "x.npy")
    assert shell.refuse(1, "get", "x", target).endswith(f"No space left on device: {target}")
    assert os.listdir(os.path.dirname(target)) == []


def test_everything_known_of_one_array(shell: Shell, running: Service) -> None:
    shell.succeed("put", "A", GRAPH)
    facts = shell.succeed("stat", "A").fields
    told = shell.succeed("stat", "A", "--json").json
    with hugepool.connect(running.address) as pool:
        info = pool.describe("A").array
    assert facts["shape"] == "63436x63436" and told["shape"] == [63436, 63436]
    assert facts["path"] == told["path"] == info.segment.path
    assert facts["checksum"] == told["checksum"] == info.checksum
    assert int(facts["huge_bytes"]) == told["huge_bytes"] == info.pages.huge_bytes
    assert told["reasons"] == [
        {name: getattr(fall, name) for name in ("rung", "call", "errno", "reason", "remedy")}
        for fall in info.pages.reasons
    ]
    assert (facts["sealed"], facts["lost"], facts["index_dtype"]) == ("true", "false", "<i4")
    seen = shell.at_a_terminal("stat", "A")
    assert "3.85 MB (3847584 bytes)" in seen and " ago" in seen


def test_who_has_an_array(shell: Shell, running: Service) -> None:
    shell.succeed("create", "x", "5")
    assert shell.succeed("readers", "x").rows == []
    with hugepool.connect(running.address) as pool:
        y = pool.create("y", (100, 2))
        holders = [pool.attach("x"), pool.attach("y", readonly=False, rows=(10, 20))]
        (reader,) = shell.succeed("readers", "x").rows
        command = Path("/proc/self/comm").read_text().strip()
        assert (reader["pid"], reader["uid"]) == (str(os.getpid()), str(os.geteuid()))
        assert (reader["command"], reader["access"], reader["rows"]) == (command, "read", "")
        owner, writer = shell.succeed("readers", "y", "--json").json
        assert owner["writable"] and owner["rows"] is None and owner["pid"] == os.getpid()
        assert writer["writable"] and writer["rows"] == [10, 20]
        assert shell.succeed("readers", "y").rows[1]["rows"] == "10:20"
        del holders, y


def test_more_readers_than_fit_one_message(shell: Shell, running: Service) -> None:
    shell.succeed("create", "x", "5")
    with hugepool.connect(running.address) as pool:
        held = [pool.attach("x") for _ in range(300)]
        told = shell.succeed("readers", "x", "--json").json
        assert len({one["lease"] for one in told}) == len(held)


def test_names_are_removed_as_far_as_they_can_be(shell: Shell) -> None:
    for name in ("a", "b", "c"):
        shell.succeed("create", name, "5")
    done = shell("rm", "a", "nothing", "b")
    assert (done.status, done.out) == (1, "")
    assert done.err.count("\n") == 1 and "nothing" in done.err and "hugepool ls" in done.err
    assert [row["name"] for row in shell.succeed("ls").rows] == ["c"]
    assert shell.succeed("rm", "--force", "nothing", "c").err == ""
    assert shell.succeed("ls").rows == []


def test_another_process_seals_what_its_maker_has_let_go(shell: Shell, running: Service) -> None:
    maker = running.python(
        "import hugepool\n"
        "pool = hugepool.connect()\n"
        "x = pool.create('x', 1000)\n"
        "x.array[:] = 1.0\n"
        "print('made', flush=True); input()\n"
        "x.detach(); print('let go', flush=True); input()\n"
    )
    assert said(maker) == "made"
    assert f"a writable lease of pid {maker.pid}" in shell.refuse(1, "seal", "x")
    assert tell(maker) == "let go"
    (sealed,) = shell.succeed("seal", "x").rows
    assert (sealed["name"], sealed["bytes"]) == ("x", "8000")
    tell(maker)
    maker.wait(60)
    (row,) = shell.succeed("ls", "x").rows
    assert row["state"] == "sealed", "it went with its maker"
    assert shell.succeed("stat", "x").fields["checksum"] == sealed["checksum"]
    assert shell.succeed("seal", "x").rows == [sealed]


def test_pages_are_brought_in_and_proved(shell: Shell, running: Service) -> None:
    shell.succeed("create", "x", "1e6")
    shell.succeed("create", "y", "5")
    with hugepool.connect(running.address) as pool:
        pages = pool.attach("x").pages
    x, y = shell.succeed("warm").rows
    assert (x["name"], x["bytes"], x["backing"]) == ("x", str(pages.length), pages.backing)
    assert x["huge bytes"] == str(pages.huge_bytes) and x["result"] == "ok"
    assert (y["backing"], y["huge bytes"]) == ("shm-4k", "0")
    (told,) = shell.succeed("warm", "x", "--json").json
    assert told["present_bytes"] == told["length"] == pages.length and told["ok"]
    done = shell("warm", "nothing", "y")
    assert done.status == 1 and [row["name"] for row in done.rows] == ["y"]
    assert "nothing" in done.err and "hugepool ls" in done.err
    done = shell("warm", "nothing", "y", "--json")
    assert done.status == 1 and [one["name"] for one in done.json] == ["y"]


def test_the_coordinator_on_one_screen(shell: Shell, running: Service) -> None:
    shell.succeed("create", "x", "1e6")
    assert running.process is not None
    facts = shell.succeed("status").fields
    assert facts["address"] == running.address
    assert (facts["pid"], facts["epoch"]) == (str(running.process.pid), "1")
    assert (facts["arrays"], facts["nbytes"], facts["workers"]) == ("1", "8000000", "0")
    assert (facts["quota_bytes"], facts["durable"]) == ("2000000000", "true")
    told = shell.succeed("status", "--json").json
    assert told["workers"] == [] and told["uptime_ns"] > 0 and told["user_quota_bytes"] == 0
    seen = shell.at_a_terminal("status")
    assert "2 GB" in seen and "arrays outlive this process" in seen
    assert len(seen.splitlines()) < 24


def test_a_long_name_of_many_bytes_is_written_too(shell: Shell, tmp_path: Path) -> None:
    shell.succeed("create", "x", "5")
    target = tmp_path / ("数" * 80 + ".npy")
    shell.succeed("get", "x", str(target))
    assert np.load(target).tolist() == [0.0] * 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_told_to_end_nothing_is_left_of_a_file(
    shell: Shell, tmp_path: Path, running: Service, number: signal.Signals
) -> None:
    shell.succeed("create", "x", "2e7")
    target = tmp_path / "x.npz"
    for _ in range(20):
        getting = _stopped_at_writing(shell, target)
        if not target.exists():
            break
        getting.kill()  # it was through before it was stopped: there is nothing to interrupt
        getting.communicate()
        for file in tmp_path.iterdir():
            file.unlink()
    assert [file.suffix for file in tmp_path.iterdir()] == [".tmp"], "it never was at writing"
    getting.send_signal(number)
    getting.send_signal(signal.SIGCONT)
    _, told = getting.communicate(timeout=60)
    assert getting.returncode == (130 if number == signal.SIGINT else 128 + number), told
    assert list(tmp_path.iterdir()) == []


def _stopped_at_writing(shell: Shell, target: Path) -> subprocess.Popen[bytes]:
    """A command that writes an array to a file, stopped when there is something of it."""
    command = [*HUGEPOOL, "get", "x", str(target)]
    getting = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE)
    assert settles(lambda: any(target.parent.iterdir()) or getting.poll() is not None)
    getting.send_signal(signal.SIGSTOP)
    assert settles(lambda: getting.poll() is not None or state(getting.pid) == "T")
    return getting


STRANGE = """
import ctypes, sys, hugepool
from hugepool.channel import Channel
from hugepool_common.messages import Attach, Attached
ctypes.CDLL(None).prctl(15, b"\\x1b[2Jme\\xff")  # PR_SET_NAME
channel = Channel(sys.stdin.readline().strip(), client="\\x1b]0;owned\\x07 [red]")
channel.request(Attach("x"), Attached)
print("attached", flush=True)
sys.stdin.readline()
"""
"""A client that gives itself a name with commands for the terminal of whoever reads it."""


def test_names_that_clients_give_themselves_are_only_shown(shell: Shell, running: Service) -> None:
    shell.succeed("create", "x", "5")
    strange = running.python(STRANGE)
    assert tell(strange, running.address) == "attached"
    (row,) = shell.succeed("readers", "x").rows
    assert row["client"] == "\\x1b]0;owned\\x07 [red]"
    assert row["command"].startswith("\\x1b[2Jme")
    seen = shell.at_a_terminal("readers", "x", NO_COLOR="1")
    assert "\x1b" not in seen and "\x07" not in seen and "owned\\x07 [red]" in seen
    strange.kill()


def test_a_file_does_not_command_the_terminal_by_what_it_holds(
    shell: Shell, tmp_path: Path
) -> None:
    members: dict[str, Any] = {"\x1b]0;owned\x07": np.ones(1), "other": np.ones(1)}
    np.savez(tmp_path / "x.npz", **members)
    line = shell.refuse(2, "put", "x", str(tmp_path / "x.npz"))
    assert "had \\x1b]0;owned\\x07, other" in line
    absent = os.fsencode(tmp_path) + b"/\x1b[31m\xff.npy"
    line = shell.refuse(1, "put", "x", os.fsdecode(absent))
    assert line.endswith("/\\x1b[31m\\udcff.npy")


def _require_to_run(done: Done) -> None:
    reachable = "No module named" not in done.err and done.status not in (126, 127)
    require("unprivileged", reachable, "another user may not execute this environment")


def test_a_member_of_the_group_may_not_end_what_is_another_s() -> None:
    require("unprivileged", os.geteuid() == 0, "needs root to become another user")
    directory = Path(tempfile.mkdtemp(prefix="hugepool-test-"))
    directory.chmod(0o755)
    grouped = Service(directory / "run").start("--group", "65534")
    try:
        owner = Shell(HUGEPOOL_ADDRESS=grouped.address, PYTHONDONTWRITEBYTECODE="1")
        owner.succeed("create", "x", "5")
        listed = owner("ls", prefix=NOBODY)
        _require_to_run(listed)
        assert [row["name"] for row in listed.rows] == ["x"]
        refused = owner("rm", "x", prefix=NOBODY)
        assert refused.status == 1
        assert "only its creator's user may destroy" in refused.err
        assert owner("seal", "x", prefix=NOBODY).status == 1
    finally:
        grouped.close()
        shutil.rmtree(directory)


def test_pages_of_each_size(shell: Shell) -> None:
    told = {one["page_size"]: one for one in shell.succeed("plan", "400MB", "--json").json}
    assert (told[4096]["pages"], told[4096]["length"]) == (97_657, 400_003_072)
    if 2 * MIB in told:
        assert told[2 * MIB]["pages"] == 191
    rows = shell.succeed("plan", "3MB", "1GiB", "1").rows
    pages = {row["pages of"]: row["pages"] for row in rows}
    assert pages["4K"] == str(733 + 262_144 + 1)
    if "2M" in pages:
        assert pages["2M"] == str(2 + 512 + 1)
    assert all(int(one["missing_pages"]) == 0 for one in shell.succeed("plan", "0", "--json").json)
    assert "write it as 400MB" in shell.refuse(2, "plan", "much")
    assert "Missing argument 'SIZE" in shell.refuse(2, "plan")


def test_what_no_memory_holds_has_no_command(shell: Shell) -> None:
    done = shell.succeed("plan", "900TB", "--json")
    assert done.json and all(row["command"] == "" for row in done.json)
    assert all(row["reason"].startswith("this machine has ") for row in done.json)
    (line,) = done.err.splitlines()
    assert "900 TB do not fit in 4K" in line and "this machine has " in line


def test_the_command_for_missing_pages_names_all_that_there_must_be(shell: Shell) -> None:
    pool = read_host().pool(2 * MIB)
    require("hugetlbfs", pool is not None, "this kernel has no pool of 2 MiB pages")
    assert pool is not None
    size = str(pool.available_bytes + GIB)
    rows = {one["page_size"]: one for one in shell.succeed("plan", size, "--json").json}
    found = rows[2 * MIB]
    assert found["missing_pages"] == found["pages"] - found["available_pages"] > 0
    assert found["reason"] == ""
    assert found["command"].rpartition("=")[0] == "sysctl vm.nr_hugepages"
    assert int(found["command"].rpartition("=")[2]) >= found["pages"]
    if GIB in rows and not rows[GIB]["reason"]:
        assert "hugepages-1048576kB/nr_hugepages" in rows[GIB]["command"]


def test_a_reader_who_has_enough_is_no_error(shell: Shell, running: Service) -> None:
    with hugepool.connect(running.address) as pool:
        for number in range(700):
            pool.put(f"array-of-a-long-name-{number:0100}", np.zeros(1))
        piped = subprocess.run(
            ["bash", "-c", 'set -o pipefail; "$@" | head -1', "bash", *HUGEPOOL, "ls"],
            capture_output=True,
            text=True,
            env=shell.environment,
        )
    assert piped.stdout.startswith("name\tkind")
    assert piped.stderr == ""


def test_a_signal_ends_a_command_at_once(running: Service) -> None:
    assert running.process is not None
    running.process.send_signal(signal.SIGSTOP)
    try:
        waiting = running.spawn(*HUGEPOOL, "ls")
        while "connect" not in _waits_in(waiting.pid):
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(60) == 130
        assert waiting.stderr is not None
        assert "Traceback" not in waiting.stderr.read()
    finally:
        running.process.send_signal(signal.SIGCONT)


def _waits_in(pid: int) -> str:
    """``connect`` once a process has a socket open: it has begun to ask."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(entry.path))
        except OSError:
            continue
    return "connect" if any(target.startswith("socket:") for target in found) else ""
