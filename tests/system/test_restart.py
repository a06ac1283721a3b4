"""A coordinator is killed, and the next one on its directory loses nothing and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

import hugepool
from hugepool_common import paths
from hugepool_server import records
from hugepool_server.records import ArrayRecord, CoordinatorRecord
from support.host import settles
from support.service import Service, said, tell

pytestmark = pytest.mark.usefixtures("patience")

OWNER = """
import sys, numpy as np, hugepool
pool = hugepool.connect()
x = pool.create("unsealed", shape=1000, dtype="f8")
x.array[:] = np.arange(1000)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


def segment_directory(shared: hugepool.SharedArray) -> Path:
    return Path(shared.info.segment.path).parent


def test_what_is_sealed_is_there_again_and_readers_notice_nothing(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        made = {f"x{number}": np.random.default_rng(number).random(5000) for number in range(20)}
        handles = {name: pool.put(name, values) for name, values in made.items()}
        before = {info.spec.name: info for info in pool.list()}
        epoch = pool.stats().epoch
        service.restart()
        for name, values in made.items():
            np.testing.assert_array_equal(handles[name].array, values)
        after = {info.spec.name: info for info in pool.list()}
        assert after.keys() == before.keys()
        for name, info in after.items():
            assert info.sealed
            assert info.segment == before[name].segment
            assert info.checksum == before[name].checksum
            assert info.creator_pid == os.getpid()
            np.testing.assert_array_equal(pool.attach(name).array, made[name])
        stats = pool.stats()
        assert (stats.epoch, stats.sessions, stats.lost) == (epoch + 1, 1, 0)
        directory = segment_directory(handles["x0"])
        assert service.stop() == 0
    assert not directory.exists()
    assert not paths_left(service)


def paths_left(service: Service) -> list[str]:
    """What is left in the runtime directory."""
    return os.listdir(service.directory) if service.directory.exists() else []


def test_leases_go_on_under_their_numbers(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool, hugepool.connect(service.address) as other:
        x = pool.put("x", np.arange(1000.0))
        held = [other.attach("x") for _ in range(3)]
        assert pool.describe("x").array.readers == 4
        service.restart()
        assert names(other) == names(pool) == ["x"]
        assert pool.describe("x").array.readers == 4
        for one in held:
            assert one.array[999] == 999
            one.detach()
        assert pool.stats().sessions == 2
        x.detach()
        (info,) = pool.list()
        assert info.readers == 0
        pool.destroy("x")
        assert names(pool) == []


def test_an_unsealed_array_of_a_living_session_survives_and_can_be_sealed(
    service: Service,
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.create("x", 1000)
        x.array[:500] = 1
        service.restart()
        x.array[500:] = 2
        assert names(pool) == ["x"]
        assert not pool.attach("x").sealed
        with pytest.raises(hugepool.ArrayExistsError):
            pool.create("x", 1000)
        assert x.seal().sealed
        service.restart()
        np.testing.assert_array_equal(pool.attach("x").array, [1.0] * 500 + [2.0] * 500)


def test_what_a_client_did_not_seal_goes_with_it_while_nobody_looks(service: Service) -> None:
    service.start()
    owner = service.python(OWNER)
    assert said(owner) == "ready"
    with hugepool.connect(service.address) as pool:
        pool.put("sealed", [1.0])
        path = Path(next(i for i in pool.list() if i.spec.name == "unsealed").segment.path)
        service.kill()
        owner.kill()
        owner.wait()
        assert path.exists()
        service.start()
        assert names(pool) == ["sealed"]
        assert not path.exists()
        assert pool.stats().sessions == 1


def test_what_a_client_did_not_seal_goes_with_it_after_a_restart(service: Service) -> None:
    service.start()
    owner = service.python(OWNER)
    assert said(owner) == "ready"
    service.restart()
    with hugepool.connect(service.address) as pool:
        # Dormant: it has not asked for anything since.
        assert names(pool) == ["unsealed"]
        owner.kill()
        owner.wait()
        assert settles(lambda: names(pool) == [])
        assert pool.stats().sessions == 1


def test_a_stopped_client_is_taken_over_and_goes_on(service: Service) -> None:
    service.start()
    owner = service.python(OWNER)
    assert said(owner) == "ready"
    owner.send_signal(signal.SIGSTOP)
    for _ in range(3):
        service.restart()
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["unsealed"]
        owner.send_signal(signal.SIGCONT)
        assert tell(owner, "x.seal()") == "done"
        assert pool.attach("unsealed").array[999] == 999
        assert pool.stats().sessions == 2


def test_a_job_is_interrupted_and_can_be_submitted_again(service: Service) -> None:
    service.start()
    service.spawn(sys.executable, "-m", "hugepool", "worker", "-n", "2")
    source = np.random.default_rng(5).random(100_000)
    idx = np.random.default_rng(6).integers(0, 100_000, 50_000)
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: len(pool.stats().workers) == 2)
        x, _ = pool.put("x", source), pool.put("idx", idx)
        workers = [worker.pid for worker in pool.stats().workers]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)  # so the job is under way for as long as we like
        client = service.python(
            "import sys, hugepool\n"
            "pool = hugepool.connect()\n"
            "for line in sys.stdin:\n"
            "    try:\n"
            "        g = pool.gather('x', pool.attach('idx').array, out='g', workers=2)\n"
            "        print('done', float(g.array.sum()), flush=True)\n"
            "    except hugepool.JobInterruptedError as error:\n"
            "        print('interrupted', 'again' in str(error), flush=True)\n"
        )
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
        assert settles(lambda: pool.stats().jobs_running == 1)
        service.kill()
        np.testing.assert_array_equal(x.array, source)
        service.start()
        assert said(client) == "interrupted True"
        np.testing.assert_array_equal(x.array, source)
        assert {"x", "idx"} <= set(names(pool))
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        assert settles(lambda: len(pool.stats().workers) == 2)
        assert {worker.pid for worker in pool.stats().workers} == set(workers)
        assert tell(client, "go") == f"done {source[idx].sum()}"


REGISTERING = """
import os, signal, sys
from hugepool import worker
from hugepool.channel import Channel
from hugepool_common.messages import RegisterWorker
request, stopped = Channel.request, []

def stop_before(self, message, *arguments, **options):
    if isinstance(message, RegisterWorker) and not stopped:
        stopped.append(os.kill(self.welcome.pid, signal.SIGSTOP))
        print("registering", flush=True)
    return request(self, message, *arguments, **options)

Channel.request = stop_before
sys.exit(worker.main(["--address", os.environ["HUGEPOOL_ADDRESS"]]))
"""


def test_a_worker_that_was_registering_reports_what_it_does(service: Service) -> None:
    """It asks the next coordinator what it had asked the one before, and is that one's worker."""
    service.start()
    assert said(service.python(REGISTERING)) == "registering"
    service.kill()
    service.start()
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: len(pool.stats().workers) == 1)
        x = pool.put("x", np.arange(1000.0))
        job = pool.submit(pool.gather, x, [7, 9], workers=1)
        np.testing.assert_array_equal(job.result(60).array, [7.0, 9.0])


def test_a_file_removed_from_outside_is_an_array_lost(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x, y = pool.put("x", np.arange(1000.0)), pool.put("y", np.arange(10.0))
        os.unlink(x.info.segment.path)
        os.rename(y.info.segment.path, y.info.segment.path + ".moved")
        shutil.copy(y.info.segment.path + ".moved", y.info.segment.path)  # another file
        service.restart()
        assert x.array[999] == 999  # what is mapped stays
        assert {info.spec.name: info.lost for info in pool.list()} == {"x": True, "y": True}
        for name in ("x", "y"):
            with pytest.raises(hugepool.ArrayLostError, match=name):
                pool.attach(name)
        assert pool.stats().lost == 2
        with pytest.raises(hugepool.ArrayExistsError):
            pool.create("x", 10)
        service.restart()
        assert pool.stats().lost == 2
        for name in ("x", "y"):
            pool.destroy(name)
        assert pool.put("x", [1.0, 2.0]).array.sum() == 3
        service.restart()
        assert names(pool) == ["x"]
        os.unlink(y.info.segment.path + ".moved")


def test_a_publication_survives_and_its_readers_keep_what_they_had(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        first = pool.put("x", np.full(1000, 1.0))
        reader = pool.attach("x")
        fresh = pool.create("fresh", 1000)
        fresh.array[:] = 2
        fresh.seal()
        pool.publish("x", fresh)
        service.restart()
        assert names(pool) == ["x"]
        assert pool.attach("x").array[0] == 2
        assert reader.array[0] == 1
        old = Path(first.info.segment.path)
        assert old.exists()
        first.detach()
        reader.detach()
        assert settles(lambda: not old.exists())
        service.restart()
        assert pool.attach("x").array[0] == 2


def test_numbers_are_never_given_twice(service: Service) -> None:
    service.start()
    seen = set()
    with hugepool.connect(service.address) as pool:
        for _ in range(4):
            x = pool.put("x", [1.0])
            seen.add(x.info.segment.segment_id)
            x.detach()
            pool.destroy("x")
            service.restart()
    assert len(seen) == 4


def test_destroyed_is_destroyed(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        path = pool.put("x", np.arange(2e6)).info.segment.path
        pool.destroy("x")
        service.restart()
        assert names(pool) == []
        assert not os.path.exists(path)


@pytest.mark.parametrize("harm", ["no socket", "no way to be told"])
def test_a_start_that_fails_loses_nothing(service: Service, harm: str) -> None:
    """It has taken everything over by then, and must leave it to the next one."""
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        mine = pool.create("mine", 1000)
        mine.array[:] = 7
        service.kill()
        socket = Path(paths.socket_path(str(service.directory)))
        if harm == "no socket":
            socket.unlink()
            (socket / "in the way").mkdir(parents=True)
            failed = service.begin()
        else:
            failed = service.begin("--ready-fd", "99")
        out, err = failed.communicate(timeout=60)
        assert (failed.returncode, out) == (1, "")
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith("hugepoold: cannot ")
        if socket.is_dir():
            shutil.rmtree(socket)
        service.start()
        assert set(names(pool)) == {"x", "mine"}
        assert x.array[999] == 999
        np.testing.assert_array_equal(mine.seal().array, np.full(1000, 7.0))
        stats = pool.stats()
        assert (stats.lost, stats.sessions) == (0, 1)


def test_kills_during_recovery_change_nothing(service: Service) -> None:
    service.start()
    owner = service.python(OWNER)
    assert said(owner) == "ready"
    with hugepool.connect(service.address) as pool:
        made = {f"x{number}": np.random.default_rng(number).random(100) for number in range(30)}
        for name, values in made.items():
            pool.put(name, values)
        service.kill()
        # Somewhere else in the start each time, and at last a whole one.
        started_ns = time.monotonic_ns()
        whole = service.begin()
        assert whole.stdout is not None
        assert whole.stdout.readline()
        whole_s = (time.monotonic_ns() - started_ns) / 1e9
        whole.kill()
        whole.wait()
        for step in range(16):
            victim = service.begin()
            time.sleep(whole_s * (0.25 + step * 0.05))
            victim.kill()
            victim.wait()
        service.start()
        assert set(names(pool)) == {*made, "unsealed"}
        for name, values in made.items():
            np.testing.assert_array_equal(pool.attach(name).array, values)
        assert pool.stats().lost == 0
        assert tell(owner, "x.seal()") == "done"
        assert pool.attach("unsealed").sealed


def test_what_was_kept_in_order_is_there_again(service: Service) -> None:
    service.start("--keep")
    owner = service.python(OWNER)
    assert said(owner) == "ready"
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        directory = segment_directory(x)
        assert service.stop() == 0
        assert len([*directory.glob("*.segment")]) == 2
        assert not os.path.exists(paths.socket_path(str(service.directory)))
        service.start("--keep")
        assert set(names(pool)) == {"x", "unsealed"}
        assert tell(owner, "x.seal()") == "done"
        assert pool.attach("unsealed").array[7] == 7
        np.testing.assert_array_equal(x.array, np.arange(1000.0))
        # And without it nothing stays.
        assert service.stop() == 0
        service.start()
        assert set(names(pool)) == {"x", "unsealed"}
        assert service.stop() == 0
    assert not directory.exists()
    assert paths_left(service) == []


def test_a_second_coordinator_changes_no_file(service: Service) -> None:
    service.start()

    def files() -> dict[str, tuple[int, bytes]]:
        found = {}
        for place, _, entries in os.walk(service.directory):
            for name in entries:
                path = Path(place, name)
                if path.is_file():
                    found[str(path)] = path.stat().st_ino, path.read_bytes()
        return found

    client = service.python(OWNER)
    assert said(client) == "ready"
    before = files()
    assert len(before) == 3  # the coordinator's record, a manifest, a token
    for _ in range(3):
        second = service.begin()
        assert second.wait(60) == 5
    assert files() == before
    assert tell(client, "print(pool.stats().epoch)") == "1"
    assert said(client) == "done"
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["unsealed"]


def test_a_record_that_was_damaged_is_put_away_with_its_segment_kept(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        pool.put("y", [1.0])
        manifest = Path(
            paths.manifests_path(str(service.directory)),
            paths.manifest_name(x.info.segment.segment_id),
        )
        service.kill()
        damaged = bytearray(manifest.read_bytes())
        damaged[-10] ^= 1
        manifest.write_bytes(damaged)
        service.start()
        assert names(pool) == ["y"]
        assert os.path.exists(x.info.segment.path)
        assert x.array[999] == 999
        assert Path(paths.quarantine_path(str(service.directory)), manifest.name).exists()
        shutil.rmtree(paths.quarantine_path(str(service.directory)))
        service.restart()
        assert not os.path.exists(x.info.segment.path), "an orphan now"


def test_what_is_in_quarantine_outlives_an_end_in_order_and_is_told(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        path, other = (pool.put(name, np.arange(9.0)).info.segment.path for name in ("x", "y"))
        name = paths.manifest_name(pool.describe("x").array.segment.segment_id)
    service.kill()
    os.truncate(service.directory / "arrays" / name, 0)
    for _ in range(2):
        service.start()
        with hugepool.connect(service.address) as pool:
            (trouble,) = pool.stats().troubles
            assert name in trouble
            assert "remove them there" in trouble
        assert service.stop() == 0
        assert os.path.exists(path)
        assert not os.path.exists(other)
    os.unlink(service.directory / "quarantine" / name)
    service.start()
    assert not os.path.exists(path)
    with hugepool.connect(service.address) as pool:
        assert pool.stats().troubles == ()
    assert service.stop() == 0
    assert os.listdir(service.directory) == []


def test_an_embedded_coordinator_leaves_a_dead_service_alone(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        x = pool.put("x", np.arange(1000.0))
        service.kill()
        with hugepool.connect("embedded") as private:
            private.put("y", [1.0])
            assert os.path.exists(x.info.segment.path)
        service.start()
        assert pool.attach("x").array[999] == 999


def test_nobody_comes_back_to_a_runtime_directory_that_was_removed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where no other coordinator of this machine looks, which would sweep it too.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        monkeypatch.setenv("HUGEPOOL_MOUNT", place)
        service.start()
        with hugepool.connect(service.address) as pool:
            x = pool.put("x", np.arange(1000.0))
            service.kill()
        shutil.rmtree(service.directory)
        assert os.path.exists(x.info.segment.path)
        assert x.info.segment.path.startswith(place)
        other = Service(service.directory.with_name("other"))
        other.start()
        assert other.stop() == 0
        other.close()
        assert os.listdir(place) == [], "swept by whoever starts next"


FORMER = """
import os, sys, numpy as np, hugepool
from hugepool.link import LinkEnded
from hugepool.session import Session

take_up = Session.take_up

def cut_off(self, *words):
    Session.take_up = take_up
    take_up(self, *words)
    raise LinkEnded

pool = hugepool.connect()
x = pool.put("x", np.arange(10.0))
print(x.info.segment.segment_id, flush=True)
for line in sys.stdin:
    exec(line)
    print([info.spec.name for info in pool.list()], flush=True)
"""


@pytest.mark.parametrize(
    "how",
    [
        "pool.list(); pool.discard(x)",
        "pool.list(); x.destroy_with_handle(); x.detach()",
        "x.destroy_with_handle(); x.detach(); Session.take_up = cut_off",
    ],
    ids=["discarded", "with its handle", "before a takeover that is cut off"],
)
def test_numbers_of_a_coordinator_that_is_no_more_destroy_nothing_of_another(
    service: Service, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its runtime directory was lost, and so the next one counts anew."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        monkeypatch.setenv("HUGEPOOL_MOUNT", place)
        service.start()
        former = service.python(FORMER)
        number = int(said(former))
        service.kill()
        shutil.rmtree(service.directory)
        service.start()
        with hugepool.connect(service.address) as pool:
            x = pool.put("x", np.arange(1000.0))
            assert x.info.segment.segment_id == number
            assert tell(former, how) == "['x']"
            assert pool.attach("x").array[999] == 999
        service.close()


@pytest.mark.parametrize("harm", ["another boot", "no record"])
def test_after_a_reboot_the_start_is_clean(service: Service, harm: str) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(1000.0))
        service.kill()
    record_path = service.directory / paths.COORDINATOR_NAME
    record = records.decode(CoordinatorRecord, record_path.read_bytes())
    if harm == "no record":
        record_path.unlink()
    else:
        rewrite_boots(service.directory)
    service.start()
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ([] if harm == "another boot" else ["x"])
        assert pool.stats().lost == 0
        assert pool.stats().epoch == record.epoch + 1
        assert pool.put("y", [1.0]).sealed


def rewrite_boots(directory: Path) -> None:
    """Make every record look as if it had been written before the machine was started."""
    boot = f"{0:08x}-0000-0000-0000-{0:012x}"
    path = directory / paths.COORDINATOR_NAME
    record = records.decode(CoordinatorRecord, path.read_bytes())
    path.write_bytes(records.encode(msgspec.structs.replace(record, boot_id=boot)))
    for path in directory.rglob("*.manifest"):
        manifest = records.decode(ArrayRecord, path.read_bytes())
        path.write_bytes(records.encode(msgspec.structs.replace(manifest, boot_id=boot)))


@pytest.mark.parametrize(
    "changes",
    [{"checksum": "z" * 500_000}, {"generation": (1 << 63) - 1}],
    ids=["a checksum that fits no frame", "a generation that none can follow"],
)
def test_a_manifest_that_says_what_cannot_be_is_put_away(
    service: Service, changes: dict[str, object]
) -> None:
    """Its CRC is right: somebody wrote it so."""
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.put("x", np.arange(10.0))
        pool.put("y", np.arange(3.0))
        segment = pool.describe("x").array.segment
        service.kill()
        path = service.directory / "arrays" / paths.manifest_name(segment.segment_id)
        told = json.loads(path.read_bytes().split(b"\n")[1]) | changes
        body = json.dumps(told, separators=(",", ":")).encode()
        path.write_bytes(b"hugepool-array 1 %08x\n%b\n" % (zlib.crc32(body), body))
        service.start()
        assert [info.spec.name for info in pool.list()] == ["y"]
        pool.put("x", np.ones(4))
        pool.publish("x", np.ones(4))
        assert pool.describe("x").array.generation == 2
        assert os.path.exists(segment.path)  # until a person has looked at its manifest
    os.unlink(service.directory / "quarantine" / path.name)
