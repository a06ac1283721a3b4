"""How others hand a small step to worker processes: Pool, Pipe, Ray.

The workers hold the matrix and both vectors, as they attached them, and a step sends
nothing but "do it": no way is charged with copying data. Each multiplies its rows with
SciPy's compiled loop, the fastest of the peers for so few.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, ClassVar, Self

import hugepool
from peers import ONE_THREAD, ProductPart
from product_peers import ScipyKernel


@dataclass(frozen=True, slots=True)
class Operands:
    """Where the arrays are.

    Parameters
    ----------
    address
        Of the coordinator.
    matrix, x, out
        Names.
    cuts
        Partition bounds of the rows.
    cpus
        One for each part.
    """

    address: str
    matrix: str
    x: str
    out: str
    cuts: tuple[int, ...]
    cpus: tuple[int, ...]

    @property
    def parts(self) -> int:
        """How many workers share the rows."""
        return len(self.cuts) - 1


class Multiplier:
    """One worker's rows, ready to be multiplied."""

    def __init__(self, operands: Operands, part: int) -> None:
        os.sched_setaffinity(0, {operands.cpus[part]})
        self._pool = hugepool.connect(operands.address)
        a, x = self._pool.attach(operands.matrix), self._pool.attach(operands.x)
        self._out = self._pool.attach(operands.out, readonly=False)
        self._rows = slice(operands.cuts[part], operands.cuts[part + 1])
        self._kernel = ScipyKernel()
        self._kernel.prepare(
            ProductPart.of_rows(a.indptr, a.indices, a.data, a.shape[1], x.array, self._rows)
        )
        self._target = self._out.array[self._rows]

    def step(self) -> None:
        """Multiply once."""
        self._kernel.run(self._target)


class Way:
    """A way to have a step done; a context manager that ends its workers."""

    name: ClassVar[str]

    def __init__(self, operands: Operands) -> None:
        self._operands = operands

    def step(self) -> None:
        """Return when all workers are done."""
        raise NotImplementedError

    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class PipeWay(Way):
    """A pipe to each worker: the leanest that multiprocessing has."""

    name = "multiprocessing Pipe"

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for part in range(operands.parts):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, operands, part), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        for end in self._ends:
            end.recv_bytes()

    def step(self) -> None:
        for end in self._ends:
            end.send_bytes(b".")
        for end in self._ends:
            end.recv_bytes()

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)


def _serve(end: Connection, operands: Operands, part: int) -> None:
    multiplier = Multiplier(operands, part)
    try:
        while True:
            end.send_bytes(b".")
            end.recv_bytes()
            multiplier.step()
    except (EOFError, OSError, KeyboardInterrupt):
        return


class PoolWay(Way):
    """``multiprocessing.Pool.map``: any worker may get any part."""

    name = "multiprocessing Pool.map"

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(operands.parts, _begin, (operands,))
        self.step()

    def step(self) -> None:
        self._pool.map(_step_part, range(self._operands.parts), chunksize=1)

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


_multipliers: list[Multiplier] = []


def _begin(operands: Operands) -> None:
    _multipliers.extend(Multiplier(operands, part) for part in range(operands.parts))
    os.sched_setaffinity(0, operands.cpus)  # a task may go to any worker


def _step_part(part: int) -> None:
    _multipliers[part].step()


class RayWay(Way):
    """An actor for each part, and ``ray.get`` of all their results."""

    name = "ray actors"

    def __init__(self, operands: Operands) -> None:
        super().__init__(operands)
        self._actors: list[Any] = []
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = importlib.import_module("ray")
        if not self._ray.is_initialized():  # once for all; it ends with this process
            here = os.path.dirname(os.path.abspath(__file__))
            self._ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": {**ONE_THREAD, "PYTHONPATH": _python_path(here)}},
            )
        remote = self._ray.remote(num_cpus=0)(Multiplier)
        self._actors += [remote.remote(operands, part) for part in range(operands.parts)]
        self.step()

    def step(self) -> None:
        self._ray.get([actor.step.remote() for actor in self._actors])

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)


def _python_path(first: str) -> str:
    rest = os.environ.get("PYTHONPATH")
    return os.pathsep.join([first, rest] if rest else [first])


WAYS: tuple[type[Way], ...] = (PipeWay, PoolWay, RayWay)
