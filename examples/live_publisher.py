"""A publisher replaces an array again and again while readers in other processes use it.

Each generation holds one value throughout: a reader that saw two would have a torn array.

    python examples/live_publisher.py [generations]
"""

import asyncio
import sys

import numpy as np

import hugepool.aio

READERS, ELEMENTS = 3, 500_000
READER = """
import sys, hugepool
seen, torn, last = set(), 0, int(sys.argv[2])
with hugepool.connect(sys.argv[1]) as pool:
    print("ready", flush=True)
    while last not in seen:
        with pool.attach("live") as live:
            torn += not (live.array == live.generation).all()
            seen.add(live.generation)
print(len(seen), torn)
"""


async def read(address, generations, ready):
    command = (sys.executable, "-c", READER, address, str(generations))
    reader = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert await reader.stdout.readline() == b"ready\n"
    await ready.wait()
    seen, torn = (await reader.stdout.read()).split()
    await reader.wait()
    return int(seen), int(torn)


async def main():
    generations = int(sys.argv[1]) if sys.argv[1:] else 20
    async with hugepool.aio.connect() as pool, asyncio.timeout(120):
        await pool.publish("live", np.full(ELEMENTS, 1))
        async with asyncio.TaskGroup() as tasks:
            ready = asyncio.Barrier(READERS + 1)
            reading = (read(pool.address, generations, ready) for _ in range(READERS))
            readers = [*map(tasks.create_task, reading)]
            await ready.wait()
            for generation in range(2, generations + 1):
                await pool.publish("live", np.full(ELEMENTS, generation))
        print("reader  generations seen  torn")
        for number, reader in enumerate(readers):
            seen, torn = reader.result()
            assert torn == 0
            print(f"{number:<6}  {f'{seen} of {generations}':<16}  {torn}")
        await pool.destroy("live")


if __name__ == "__main__":
    asyncio.run(main())
