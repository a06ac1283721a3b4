"""Time how an array is made, attached elsewhere, and read there for the first time.

    python benchmarks/create_attach.py --size 400MB --rounds 7

hugepool on each page kind, ``multiprocessing.shared_memory``, and ``numpy.memmap`` on a file of
``/dev/shm``. *Create and fill* lasts until every element is written: hugepool zeroes all
pages before it gives the array away (on several CPUs, so that nobody meets SIGBUS later),
the others leave that to the first write. The attaching process is another one, which
sums the array twice: the first pass also fills its page table.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

import numpy as np

import hugepool
from contest import Contender, Group, Sample, Work, entries, progress, ratios
from hugepool.array import SharedArray
from options import Options, read_options
from report import Contest, new_run, publish
from setting import Setting

STAGES = ("create and fill", "attach", "attach and first pass", "second pass")
_SHM = "/dev/shm"
_VALUE = 2.0


class Maker:
    """One way to have an array that several processes see."""

    name: ClassVar[str] = ""
    group: ClassVar[Group] = "peer"
    pages = "4K"

    def create(self, elements: int) -> tuple[Any, np.ndarray[Any, Any]]:
        """What keeps it alive, and the array."""
        raise NotImplementedError

    def recipe(self, kept: Any) -> tuple[str, str]:
        """How another process attaches it: a key of :data:`ATTACHERS` and a name."""
        raise NotImplementedError

    def remove(self, kept: Any) -> None:
        """Leave nothing behind."""
        raise NotImplementedError


class Hugepool(Maker):
    """``pool.create``."""

    name, group = "hugepool", "hugepool"

    def __init__(self, pool: hugepool.Pool, pages: str) -> None:
        self._pool, self.pages = pool, pages

    def create(self, elements: int) -> tuple[SharedArray, np.ndarray[Any, Any]]:
        made = self._pool.create(f"made-{secrets.token_hex(4)}", elements, "f8")
        return made, made.array

    def recipe(self, kept: SharedArray) -> tuple[str, str]:
        return "hugepool", kept.name

    def remove(self, kept: SharedArray) -> None:
        name = kept.name
        kept.detach()
        self._pool.destroy(name)


class CpythonShared(Maker):
    """``multiprocessing.shared_memory.SharedMemory``."""

    name = "multiprocessing shared_memory"

    def create(self, elements: int) -> tuple[SharedMemory, np.ndarray[Any, Any]]:
        made = SharedMemory(create=True, size=8 * elements)
        return made, np.ndarray(elements, np.float64, made.buf)

    def recipe(self, kept: SharedMemory) -> tuple[str, str]:
        return "shared_memory", kept.name

    def remove(self, kept: SharedMemory) -> None:
        kept.close()
        kept.unlink()


class NumpyMemmap(Maker):
    """``numpy.memmap`` on tmpfs."""

    name = "numpy memmap"

    def create(self, elements: int) -> tuple[str, np.ndarray[Any, Any]]:
        path = os.path.join(_SHM, f"memmap-{os.getpid()}-{secrets.token_hex(4)}")
        return path, np.memmap(path, np.float64, "w+", shape=(elements,))

    def recipe(self, kept: str) -> tuple[str, str]:
        return "memmap", kept

    def remove(self, kept: str) -> None:
        os.unlink(kept)


Detach = Callable[[], object]


def attach_hugepool(pool: hugepool.Pool, name: str) -> tuple[Any, Detach]:
    """In the other process, by name."""
    made = pool.attach(name)
    return made.array, made.detach


def attach_shared_memory(pool: hugepool.Pool, name: str) -> tuple[Any, Detach]:
    """In the other process, by name; length and dtype do not travel."""
    made = SharedMemory(name)
    return np.ndarray(made.size // 8, np.float64, made.buf), made.close


def attach_memmap(pool: hugepool.Pool, name: str) -> tuple[Any, Detach]:
    """In the other process, by path."""
    return np.memmap(name, np.float64, "r"), lambda: None


ATTACHERS = {
    "hugepool": attach_hugepool,
    "shared_memory": attach_shared_memory,
    "memmap": attach_memmap,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    options = read_options(
        __doc__, size="400MB", size_help="bytes of the array", arguments=arguments
    )
    with Setting(options, workers=False) as setting:
        contests = _contests(setting, options)
    publish(new_run(contests, setting.missing, setting.backings), options)
    return 0


def _contests(setting: Setting, options: Options) -> list[Contest]:
    elements = max(1, options.nbytes // 8)
    setting.check_room(2 * 8 * elements)
    makers: list[Maker] = [Hugepool(pool, pages) for pages, pool in setting.pools.items()]
    makers += [one for one in (CpythonShared(), NumpyMemmap()) if options.wants(one.name)]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    cpu = max(os.sched_getaffinity(0))
    process = context.Process(target=_serve, args=(theirs, setting.main.address, cpu), daemon=True)
    process.start()
    theirs.close()
    stages = {stage: [_contender(maker) for maker in makers] for stage in STAGES}
    try:
        for number in range(options.rounds + 1):  # the first only warms
            order = range(len(makers)) if number % 2 else reversed(range(len(makers)))
            for place in order:
                times = _round(makers[place], elements, ours)
                for stage, ns in zip(STAGES, times, strict=True):
                    if number:
                        stages[stage][place].samples.append(Sample(ns, ns))
            progress(f"round {number} of {options.rounds}")
    finally:
        ours.close()
        process.join(10)
    return [_contest(stage, stages[stage], elements) for stage in STAGES]


def _contender(maker: Maker) -> Contender:
    def never() -> Sample:
        raise NotImplementedError("timed by stages")

    return Contender(maker.name, maker.group, maker.pages, 1, "", never)


def _round(maker: Maker, elements: int, far: Connection) -> tuple[int, int, int, int]:
    """Times in ns of all stages; what was read is compared with what was written."""
    started_ns = time.perf_counter_ns()
    kept, array = maker.create(elements)
    array.fill(_VALUE)
    created_ns = time.perf_counter_ns() - started_ns
    try:
        far.send(maker.recipe(kept))
        attach_ns, first_ns, second_ns, total = far.recv()
    finally:
        del array
        gc.collect()
        maker.remove(kept)
    if total != _VALUE * elements:
        raise SystemExit(f"{maker.name} gave a wrong sum")
    return created_ns, attach_ns, attach_ns + first_ns, second_ns


def _contest(stage: str, contenders: list[Contender], elements: int) -> Contest:
    nbytes = 8 * elements
    found = entries(contenders, Work(1, "array", nbytes, nbytes, 1, {}))
    title = f"{stage}: {nbytes / 1e6:,.1f} MB"
    return Contest(title, "array", 1, nbytes, tuple(found), tuple(ratios(found)))


def _serve(end: Connection, address: str, cpu: int) -> None:
    """The attaching process: times the stages of one array after the other."""
    os.sched_setaffinity(0, {cpu})
    with hugepool.connect(address) as pool:
        while True:
            try:
                kind, name = end.recv()
            except (EOFError, KeyboardInterrupt):
                return
            end.send(_attached(pool, kind, name))
            gc.collect()


def _attached(pool: hugepool.Pool, kind: str, name: str) -> tuple[int, int, int, float]:
    clock = time.perf_counter_ns
    started_ns = clock()
    array, detach = ATTACHERS[kind](pool, name)
    attached_ns = clock()
    total = float(np.sum(array))
    first_ns = clock()
    float(np.sum(array))
    second_ns = clock()
    del array
    detach()
    return attached_ns - started_ns, first_ns - attached_ns, second_ns - first_ns, total


if __name__ == "__main__":
    raise SystemExit(main())
