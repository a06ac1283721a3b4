"""A publisher replaces an array again and again while readers in other processes use it.

Each generation holds one value throughout. A reader that saw two values in one array would have
seen a torn one: none does. What a reader holds stays whole until it lets go. On asyncio, a task for
each process.

    python examples/live_publisher.py [generations]
"""

import asyncio
import sys

import numpy as np

import hugepool
import hugepool.aio

READERS, ELEMENTS = 3, 500_000
READER = """
import sys, numpy as np, hugepool
seen, torn, last = set(), 0, int(sys.argv[2])
with hugepool.connect(sys.argv[1]) as pool:
    print("ready", flush=True)
    while last not in seen:
        with pool.attach("live") as live:
            values = np.unique(live.array)
            torn += len(values) != 1 or values[0] != live.generation
            seen.add(live.generation)
print(len(seen), torn)
"""


async def read(address, generations, ready):
    command = (sys.executable, "-c", READER, address, str(generations))
    reader = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert await reader.stdout.readline() == b"ready\n"
    ready.release()
    seen, torn = (await reader.stdout.read()).split()
    await reader.wait()
    return int(seen), int(torn)


async def main():
    generations = int(sys.argv[1]) if sys.argv[1:] else 20
    async with hugepool.aio.connect() as pool, asyncio.timeout(120):
        await pool.publish("live", np.full(ELEMENTS, 1))
        async with asyncio.TaskGroup() as tasks:
            ready = asyncio.Semaphore(0)
            reading = (read(pool.address, generations, ready) for _ in range(READERS))
            readers = [tasks.create_task(one) for one in reading]
            for _ in readers:
                await ready.acquire()
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
