"""What a client made for the moment goes with it, however it ends, and whoever is killed too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hugepool
from hugepool.channel import Channel
from hugepool_common.messages import CreateArray, Seal
from hugepool_common.spec import ArraySpec
from support.host import settles
from support.service import Service, said

pytestmark = pytest.mark.usefixtures("patience")

TEMPORARY = """
import sys, numpy as np, hugepool
pool = hugepool.connect()
shared = pool.put("t", np.arange(1000.0), temporary=True)
pool.put("stays", np.arange(10.0))
pool.create("writable", 10, temporary=True)
print(shared.info.segment.path, flush=True)
sys.stdin.read()
"""

PUBLISHER = """
import os, signal, sys, numpy as np, hugepool
from hugepool.array import SharedObject
pool = hugepool.connect()
def die(self, name):
    print(self.info.segment.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
SharedObject.publish_as = die
pool.publish("x", np.arange(1000.0))
"""


def names(pool: hugepool.Pool) -> list[str]:
    return [info.spec.name for info in pool.list()]


@pytest.mark.parametrize("also", ["nobody", "coordinator"])
def test_a_killed_client_leaves_what_it_meant_to_leave(service: Service, also: str) -> None:
    service.start()
    client = service.python(TEMPORARY)
    path = said(client)
    assert os.path.exists(path)
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["stays", "t", "writable"]
        if also == "coordinator":
            service.kill()
        client.kill()
        client.wait()
        if also == "coordinator":
            service.start()
        assert settles(lambda: names(pool) == ["stays"])
        assert settles(lambda: not os.path.exists(path))


def test_it_stays_over_a_restart_while_its_client_lives(service: Service) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        with hugepool.connect(service.address) as owner:
            shared = owner.put("t", np.arange(1000.0), temporary=True)
            service.restart()
            np.testing.assert_array_equal(shared.array, np.arange(1000.0))
            assert owner.describe("t").array.sealed
            assert names(pool) == ["t"]
        assert settles(lambda: names(pool) == [])


def test_what_was_forgotten_before_a_restart_goes_with_the_next_request(service: Service) -> None:
    """It is sent to a coordinator whose end nobody has noticed yet, and so once more."""
    service.start()
    with hugepool.connect(service.address) as pool:
        shared = pool.put("t", np.arange(1000.0), temporary=True)
        shared.destroy_with_handle()
        path = shared.info.segment.path
        del shared
        service.restart()
        assert names(pool) == []
        assert settles(lambda: not os.path.exists(path))


def test_a_reader_keeps_what_a_killed_client_left(service: Service) -> None:
    service.start()
    client = service.python(TEMPORARY)
    path = Path(said(client))
    with hugepool.connect(service.address) as pool:
        with pool.attach("t") as shared:
            client.kill()
            client.wait()
            assert settles(lambda: "writable" not in names(pool))
            assert names(pool) == ["stays", "t"]
            np.testing.assert_array_equal(shared.array, np.arange(1000.0))
        assert settles(lambda: names(pool) == ["stays"])
        assert settles(lambda: not path.exists())


def test_a_publisher_that_is_killed_before_the_name_is_given_leaves_nothing(
    service: Service,
) -> None:
    service.start()
    publisher = service.python(PUBLISHER)
    path = said(publisher)
    publisher.wait()
    with hugepool.connect(service.address) as pool:
        assert settles(lambda: names(pool) == [])
        assert settles(lambda: not os.path.exists(path))
        made = pool.publish("x", np.arange(10.0))
        assert pool.describe("x").array.generation == 1
    with hugepool.connect(service.address) as pool:
        assert names(pool) == ["x"], "what was published is there to stay"
        assert made.spec == ArraySpec("x", (10,), "<f8")


@pytest.mark.parametrize("lost", [CreateArray, Seal])
def test_one_whose_reply_never_came_goes_with_the_next_request(
    service: Service, monkeypatch: pytest.MonkeyPatch, lost: type
) -> None:
    service.start()
    with hugepool.connect(service.address) as pool, monkeypatch.context() as patch:
        pool.put("x", np.arange(10.0))
        request, away = Channel.request, False

        def cut_off(self: Channel, message: Any, *words: Any, **options: Any) -> Any:
            """Done, but the coordinator ends before it says so, and until the next one is there."""
            nonlocal away
            if not away:
                reply = request(self, message, *words, **options)
                away = isinstance(message, lost)
            if away:
                raise hugepool.CoordinatorUnreachableError("the coordinator ended")
            return reply

        patch.setattr(Channel, "request", cut_off)
        with pytest.raises(hugepool.CoordinatorUnreachableError):
            pool.gather("x", [1, 2, 3])
        patch.undo()
        assert names(pool) == ["x"]
