"""Tokens, with real processes at the other end of the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugepool_common import paths
from hugepool_common.errors import NotEnoughMemoryError, NotPermittedError
from hugepool_server import records
from hugepool_server.processes import is_stopped, start_ticks
from hugepool_server.records import OVER_TCP, Identity, SessionRecord
from hugepool_server.tokens import Tokens
from support.host import Descriptors, require, settles
from support.locker import EXEC, FORK, Locker

BOOT = "00000000-1111-2222-3333-444444444444"
OTHER_BOOT = "99999999-1111-2222-3333-444444444444"


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    """Of a fresh runtime directory."""
    made = Tokens(str(tmp_path), BOOT)
    yield made
    made.close()


def me(pid: int) -> Identity:
    return Identity(os.geteuid(), os.getegid(), pid)


def test_a_session_is_bound_by_its_own_process_alone(
    tokens: Tokens, locker: Callable[..., Locker]
) -> None:
    client, other = locker(), locker()
    path = tokens.make(1, me(client.pid), "test")
    assert not tokens.check(1)
    other.lock(path)
    assert not tokens.check(1), "another process holds the lock"
    other.kill()
    client.lock(path)
    assert tokens.check(1)
    assert not tokens.check(2)
    client.kill()
    assert not tokens.check(1)


def test_looking_takes_no_lock_from_anybody(
    tokens: Tokens, tmp_path: Path, locker: Callable[..., Locker]
) -> None:
    client = locker()
    client.lock(tokens.make(1, me(client.pid), "test"))
    again = Tokens(str(tmp_path), BOOT)
    assert [one.session for one in again.read()] == [1]
    again.close(keep=True)
    assert tokens.check(1)


def test_a_token_can_be_found_by_nobody_else(tokens: Tokens, tmp_path: Path) -> None:
    path = tokens.make(1, me(os.getpid()), "test")
    assert os.path.dirname(path) == paths.tokens_path(str(tmp_path))
    assert paths.is_token(os.path.basename(path))
    assert os.stat(path).st_mode & 0o7777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o7777 == 0o700
    assert tokens.make(2, me(os.getpid()), "test") != path
    assert tokens.name_of(1) == os.path.basename(path)
    assert tokens.knows(tokens.name_of(1))
    assert not tokens.knows("")


def test_a_group_may_lock_a_token_and_list_none(tmp_path: Path) -> None:
    tokens = Tokens(str(tmp_path), BOOT, group=os.getegid())
    path = tokens.make(1, me(os.getpid()), "test")
    assert os.stat(path).st_mode & 0o7777 == 0o660
    assert os.stat(path).st_gid == os.getegid()
    assert os.stat(os.path.dirname(path)).st_mode & 0o7777 == 0o710
    tokens.close()
    assert os.listdir(tmp_path) == []


def test_a_fork_does_not_keep_its_dead_parent_s_session(
    tokens: Tokens, locker: Callable[..., Locker]
) -> None:
    # The child of a dead client lives on, with the descriptor that the lock was taken by.
    client = locker(FORK)
    client.lock(tokens.make(1, me(client.pid), "test"))
    client.tell("fork")
    child = int(client.said())
    assert client.said() == "done"
    assert tokens.check(1)
    client.kill()
    try:
        os.kill(child, 0)
        assert not tokens.check(1)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_never_counts_as_the_client(
    tokens: Tokens, locker: Callable[..., Locker]
) -> None:
    client = locker(FORK)
    path = tokens.make(1, me(client.pid), "test")
    client.lock(path)
    client.tell("fork")
    child = int(client.said())
    try:
        tokens.make(2, me(child), "test")
        assert tokens.check(1)
        assert not tokens.check(2)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stopped_process_keeps_its_lock(tokens: Tokens, locker: Callable[..., Locker]) -> None:
    client = locker()
    client.lock(tokens.make(1, me(client.pid), "test"))
    assert not is_stopped(client.pid)
    client.process.send_signal(signal.SIGSTOP)
    assert settles(lambda: is_stopped(client.pid))
    assert tokens.check(1)
    client.process.send_signal(signal.SIGCONT)
    assert settles(lambda: not is_stopped(client.pid))
    assert tokens.check(1)


def test_what_a_process_becomes_by_exec_is_not_the_client(
    tokens: Tokens, locker: Callable[..., Locker]
) -> None:
    client = locker(EXEC)
    client.lock(tokens.make(1, me(client.pid), "test"))
    assert tokens.check(1)
    client.tell("exec")
    assert client.said() == "1"
    assert client.process.poll() is None
    assert not tokens.check(1)


def test_a_closed_descriptor_lets_go(tokens: Tokens, locker: Callable[..., Locker]) -> None:
    client = locker("os.close(os.open(path, os.O_RDONLY))")  # any descriptor of the file
    client.lock(tokens.make(1, me(client.pid), "test"))
    assert tokens.check(1)
    client.tell("close")
    assert client.said() == "done"
    assert not tokens.check(1)


def test_the_lock_alone_counts_where_the_pid_is_unknown(
    tokens: Tokens, locker: Callable[..., Locker]
) -> None:
    client = locker()
    path = tokens.make(1, me(0), "test")
    assert not tokens.check(1)
    client.lock(path)
    assert tokens.check(1)
    client.kill()
    assert not tokens.check(1)


def test_a_holder_in_a_sibling_pid_namespace_has_no_pid_here(tmp_path: Path) -> None:
    require("unprivileged", os.geteuid() == 0, "needs root for pid namespaces")
    run = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c")
    looker = (
        "import sys\n"
        "from hugepool_server.tokens import Tokens\n"
        "from hugepool_server.records import Identity\n"
        f"tokens = Tokens({str(tmp_path)!r}, {BOOT!r})\n"
        "print(tokens.make(1, Identity(0, 0, 0), 'far'), flush=True)\n"
        "for line in sys.stdin: print(tokens.check(1), flush=True)\n"
    )
    coordinator = subprocess.Popen(
        [*run, looker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    client = Locker("pass", "unshare", "--pid", "--fork", "--kill-child")
    try:
        assert coordinator.stdin is not None
        assert coordinator.stdout is not None
        path = coordinator.stdout.readline().strip()

        def check() -> str:
            assert coordinator.stdin is not None
            assert coordinator.stdout is not None
            coordinator.stdin.write("\n")
            coordinator.stdin.flush()
            return coordinator.stdout.readline().strip()

        assert check() == "False"
        client.lock(path)
        assert check() == "True"
        client.kill()
        assert settles(lambda: check() == "False")
    finally:
        client.close()
        assert coordinator.stdin is not None
        coordinator.stdin.close()
        coordinator.wait(60)
        assert coordinator.stdout is not None
        coordinator.stdout.close()


def test_a_reused_pid_revives_nobody(tmp_path: Path) -> None:
    """The session's process is dead, and its pid is another's, which locks another token."""
    require("unprivileged", os.geteuid() == 0, "needs root for pid namespaces")
    script = f"""
import fcntl, os, sys
from hugepool_server.processes import start_ticks
from hugepool_server.records import Identity
from hugepool_server.tokens import Tokens

tokens = Tokens({str(tmp_path)!r}, {BOOT!r})

def start(want=None):
    if want is not None:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(want - 1))
    order, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        path = os.read(order[0], 4096).decode()
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(told[1], b"locked")
        os.read(order[0], 1)
        os._exit(0)
    def lock(path):
        os.write(order[1], path.encode())
        assert os.read(told[0], 6) == b"locked"
    return pid, lock

first, lock = start()
path = tokens.make(1, Identity(0, 0, first), "first")
lock(path)
assert tokens.check(1)
ticks = start_ticks(first)
os.kill(first, 9)
os.waitpid(first, 0)
again, lock = start(first)
assert again == first, (first, again)
assert not tokens.check(1)
lock(tokens.make(2, Identity(0, 0, again), "second"))
assert not tokens.check(1)
assert tokens.check(2)
after = Tokens({str(tmp_path)!r}, {BOOT!r})
assert [one.session for one in after.read()] == [2]
os.kill(again, 9)
os.waitpid(again, 0)
print("well")
"""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=200,
    )
    require("pid reuse", "ns_last_pid" not in done.stderr, "ns_last_pid cannot be written")
    assert done.stdout == "well\n", done.stderr


# What the next coordinator finds ----------------------------------------------


def test_the_living_are_taken_over_and_the_dead_removed(
    tmp_path: Path, locker: Callable[..., Locker]
) -> None:
    before = Tokens(str(tmp_path), BOOT)
    clients = [locker() for _ in range(4)]
    made = [before.make(number, me(one.pid), "test") for number, one in enumerate(clients, 7)]
    for client, path in zip(clients[:3], made[:3], strict=True):
        client.lock(path)
    clients[1].kill()
    clients[2].process.send_signal(signal.SIGSTOP)
    before.close(keep=True)
    after = Tokens(str(tmp_path), BOOT)
    found = {one.session: one for one in after.read()}
    assert sorted(found) == [7, 9], "the dead, and one that never locked its token"
    assert found[7].identity == me(clients[0].pid)
    assert found[7].token == os.path.basename(made[0])
    assert found[7].start_ticks == start_ticks(clients[0].pid)
    assert [os.path.exists(path) for path in made] == [True, False, True, False]
    assert after.check(7)
    assert after.check(9)
    clients[0].kill()
    assert not after.check(7)
    after.forget(7)
    assert not os.path.exists(made[0])
    after.forget(7)
    after.close()
    assert os.listdir(tmp_path) == []


def rewrite(path: str, **changes: object) -> None:
    """Change the record in a token, and nothing else: a new file would lose the lock."""
    with open(path, "rb") as file:
        record = records.decode(SessionRecord, file.read())
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    with open(path, "r+b") as file:
        file.truncate()
        file.write(records.encode(SessionRecord(**{**fields, **changes})))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: rewrite(path, boot_id=OTHER_BOOT),
        lambda path: rewrite(path, token="0" * 32),
        lambda path: rewrite(path, start_ticks=start_ticks(os.getpid()) + 1_000_000),
        lambda path: rewrite(path, identity=me(os.getpid())),
        lambda path: Path(path).write_bytes(b""),
        lambda path: Path(path).write_bytes(Path(path).read_bytes()[:-20]),
        lambda path: Path(path).write_bytes(bytes(range(256)) * 1000),
    ],
    ids=["another boot", "another name", "another start", "another pid", "empty", "cut", "noise"],
)
def test_a_token_that_is_not_what_it_says_is_removed(
    tmp_path: Path, locker: Callable[..., Locker], harm: Callable[[str], object]
) -> None:
    before = Tokens(str(tmp_path), BOOT)
    client = locker()
    path = before.make(1, me(client.pid), "test")
    client.lock(path)
    before.close(keep=True)
    harm(path)
    after = Tokens(str(tmp_path), BOOT)
    assert after.read() == ()
    assert not os.path.exists(path)
    after.close()


@pytest.mark.parametrize("call", ["open", "lock", "began"])
def test_what_cannot_be_looked_at_is_not_dead(
    tmp_path: Path,
    locker: Callable[..., Locker],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """The start is refused rather than a session ended; only when it began may be unknown."""
    before = Tokens(str(tmp_path), BOOT)
    client = locker()
    path = before.make(1, me(client.pid), "test")
    client.lock(path)
    before.close(keep=True)
    after = Tokens(str(tmp_path), BOOT)

    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    target = {"open": "os.open", "lock": "fcntl.fcntl", "began": "builtins.open"}[call]
    descriptors = Descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(target, refused)
        if call == "began":
            found = [one.session for one in after.read()]
        else:
            with pytest.raises(OSError, match="denied"):
                after.read()
    if call != "began":
        assert not descriptors.opened()
        found = [one.session for one in after.read()]
    assert found == [1]
    assert os.path.exists(path)
    after.close()


def test_of_two_tokens_with_one_number_one_is_taken(
    tmp_path: Path, locker: Callable[..., Locker]
) -> None:
    before = Tokens(str(tmp_path), BOOT)
    clients = locker(), locker()
    for number, client in enumerate(clients, 1):
        path = before.make(number, me(client.pid), "test")
        client.lock(path)
    rewrite(path, session=1)
    before.close(keep=True)
    after = Tokens(str(tmp_path), BOOT)
    assert [one.session for one in after.read()] == [1]
    after.close()


def test_what_is_no_token_is_left_alone(tmp_path: Path) -> None:
    directory = Path(paths.tokens_path(str(tmp_path)))
    Tokens(str(tmp_path), BOOT).close(keep=True)
    target = tmp_path / "precious"
    target.write_text("mine")
    (directory / "notes.txt").write_text("mine")
    (directory / ("a" * 32)).symlink_to(target)
    os.mkfifo(directory / ("b" * 32))
    (directory / ("c" * 32)).mkdir()
    tokens = Tokens(str(tmp_path), BOOT)
    assert tokens.read() == ()
    tokens.close()
    assert target.read_text() == "mine"
    assert (directory / "notes.txt").read_text() == "mine"
    assert (directory / ("c" * 32)).is_dir()


def test_a_token_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    tokens = Tokens(str(tmp_path), BOOT)
    with pytest.raises(ValueError, match="record"):
        tokens.make(-1, me(os.getpid()), "test")
    assert os.listdir(paths.tokens_path(str(tmp_path))) == []
    assert not tokens.check(-1)
    tokens.close()


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    descriptors = Descriptors()
    tokens = Tokens(str(tmp_path), BOOT)
    for number in range(1, 20):
        tokens.make(number, me(os.getpid()), "test")
    for number in range(1, 10):
        tokens.forget(number)
    assert len(descriptors.opened()) == 1 + 10
    tokens.close()
    assert not descriptors.opened()


def test_start_ticks_tell_processes_apart(locker: Callable[..., Locker]) -> None:
    client = locker()
    assert start_ticks(client.pid) >= start_ticks(os.getpid()) > 0
    assert start_ticks(0) == 0
    client.close()
    assert start_ticks(client.pid) == 0
    assert not is_stopped(client.pid)


def test_a_name_with_brackets_does_not_confuse() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import os\n"
            "from hugepool_server.processes import start_ticks\n"
            "before = start_ticks(os.getpid())\n"
            "open('/proc/self/comm', 'w').write(') T 1 (x')\n"
            "print(start_ticks(os.getpid()) - before)\n",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n", done.stderr


def test_over_tcp_nothing_is_locked_and_the_next_one_knows_the_name(tmp_path: Path) -> None:
    first = Tokens(str(tmp_path), BOOT, group=os.getegid())
    who = OVER_TCP.of_session(3)
    path = Path(first.make(3, who, "far", 5_000))
    assert path.stat().st_mode & 0o777 == 0o600, "a secret, of the group too"
    assert first.knows(path.name) and first.name_of(3) == path.name
    first.close(keep=True)
    second = Tokens(str(tmp_path), BOOT)
    assert second.read() == (SessionRecord(3, path.name, who, 0, "far", BOOT, 5_000),)
    second.close(keep=True)
    after_a_reboot = Tokens(str(tmp_path), OTHER_BOOT)
    assert after_a_reboot.read() == ()
    assert not path.exists()
    after_a_reboot.close()


def test_a_process_does_not_see_its_own_lock(tokens: Tokens) -> None:
    """So a client in the coordinator's own process could not be bound."""
    path = tokens.make(1, me(os.getpid()), "test")
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not tokens.check(1)
    os.close(fd)


def test_without_its_directory_there_is_no_token_and_no_session(
    tokens: Tokens,
) -> None:
    directory = Path(tokens.make(1, me(os.getpid()), "test")).parent
    shutil.rmtree(directory)
    with pytest.raises(NotPermittedError, match="start the coordinator anew") as caught:
        tokens.make(2, me(os.getpid()), "test")
    assert caught.value.where == str(directory)
    assert tokens.name_of(2) == ""
    assert not tokens.is_there


def test_without_a_descriptor_there_is_no_token(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(NotEnoughMemoryError, match="RLIMIT_NOFILE"):
            tokens.make(1, me(os.getpid()), "test")
    assert tokens.name_of(1) == ""
