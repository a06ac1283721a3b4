"""One process publishes as fast as it can, three read: no read may see two generations.

Every element of a generation is its number. ``HUGEPOOL_SOAK_READS=1000000`` reads a
million times.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

import hugepool
from support.host import settles
from support.service import Service

READS = int(os.environ.get("HUGEPOOL_SOAK_READS", "20000"))
READERS = 3

PUBLISHER = """
import hugepool, numpy as np, sys
pool = hugepool.connect()
elements = int(sys.argv[1])
generation = 1
while True:
    generation += 1
    made = pool.publish("hot", np.full(elements, generation, "f8"))
    assert made.generation == generation, (made.generation, generation)
    made.detach()
    if generation % 100 == 0:
        print(generation, flush=True)
"""

IN_PLACE = """
import hugepool, numpy as np
pool = hugepool.connect()
hot = pool.create("open", 100_000)
print("ready", flush=True)
value = 0
while True:
    value += 1
    hot.array[:] = value
"""

IN_PLACE_READER = """
import hugepool, time
array = hugepool.connect().attach("open").array
torn, until = False, time.monotonic() + 60
while not torn and time.monotonic() < until:
    torn = bool((array != array[0]).any())
print(int(torn))
"""

READER = """
import hugepool, sys, time
pool = hugepool.connect()
reads, torn, backwards, newest = int(sys.argv[1]), 0, 0, 0
seen = set()
until = time.monotonic() + 120
# A publisher that has no CPU for a while publishes nothing: it is read on.
while reads > 0 or (len(seen) <= 20 and time.monotonic() < until):
    reads -= 1
    handle = pool.attach("hot")
    array = handle.array
    torn += not (array == handle.generation).all()
    backwards += handle.generation < newest
    newest = max(newest, handle.generation)
    seen.add(handle.generation)
    del array
    handle.detach()
print(torn, backwards, len(seen), newest)
"""


def test_what_is_written_in_place_is_torn(service: Service) -> None:
    """The reads of this file see what generations keep from happening."""
    service.start()
    writer = service.spawn(sys.executable, "-c", IN_PLACE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    done = service.run(IN_PLACE_READER)
    assert int(done.stdout) > 0, done.stderr


@pytest.mark.timeout(900 + READS // 100)
@pytest.mark.parametrize("elements", [512, 100_000])
def test_no_read_is_torn(service: Service, elements: int) -> None:
    service.start()
    with hugepool.connect(service.address) as pool:
        pool.publish("hot", np.full(elements, 1.0)).detach()
        publisher = service.spawn(sys.executable, "-c", PUBLISHER, str(elements))
        each = READS // READERS // 2
        readers = [service.spawn(sys.executable, "-c", READER, str(each)) for _ in range(READERS)]
        told = []
        for reader in readers:
            out, err = reader.communicate()
            assert reader.returncode == 0, err
            told.append([int(word) for word in out.split()])
        assert publisher.poll() is None, publisher.communicate()[1]
        publisher.kill()
        publisher.communicate()
        assert [torn for torn, *_ in told] == [0] * READERS
        assert [backwards for _, backwards, *_ in told] == [0] * READERS
        # It was hot: readers met many generations, and most reads a fresh one.
        assert all(generations > 20 for _, _, generations, _ in told), told
        # All of them are gone but the last, and what the publisher died over.
        assert settles(lambda: pool.stats().arrays <= 2), "superseded generations stayed"
        directory = os.path.dirname(pool.describe("hot").array.segment.path)
        assert settles(lambda: len(os.listdir(directory)) <= 3), os.listdir(directory)
