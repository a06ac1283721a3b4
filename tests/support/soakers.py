"""The clients of the kill soak: batches of calls by chance, each told before and after.

What a client wrote into its pipe outlives it, so the harness knows of every call of a
client that was killed whether it had begun and whether it had ended.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from hugepool.connection import connect
from hugepool.pool import Pool
from hugepool_common.errors import HugepoolError
from support.payloads import content_of, payload

ROWS = 2000
"""Of the matrix that all multiply with."""

SMALL, HUGE = 4000, 1 << 19
"""Elements of a payload: 32 kB, or two huge pages."""


class Wrong(Exception):
    """A call succeeded with a result that is not right."""


def common_matrix() -> tuple[Any, np.ndarray[Any, Any]]:
    """The matrix and the vector that every process can make for itself; small integers, so
    that every order of summation gives the same bits."""
    rng = np.random.default_rng(2024)
    A: Any = scipy.sparse.random_array((ROWS, ROWS), density=0.005, format="csr", rng=rng)
    A.data[:] = rng.integers(1, 9, A.nnz)
    return A, rng.integers(0, 99, ROWS).astype("f8")


def warm_kernels() -> None:
    """Compile what the workers will run, in the process that they are forked off."""
    from hugepool import kernels
    from hugepool.kernels.base import CsrArrays, Operands

    A, x = common_matrix()
    out = np.zeros(ROWS)
    operands: Operands = {
        "A": CsrArrays(A.indptr, A.indices, A.data, (ROWS, ROWS)),
        "x": x,
        "out": out,
    }
    kernel = kernels.resolve("matvec")
    kernel.prepare(operands)
    kernel(operands, 0, ROWS)
    gathered: Operands = {"x": x, "idx": np.zeros(10, "i8"), "out": np.zeros(10)}
    kernel = kernels.resolve("gather")
    kernel.prepare(gathered)
    kernel(gathered, 0, 10)


class Soaker:
    """One client.

    Parameters
    ----------
    number
        Prefix of the names that only it writes to.
    address
        Of the coordinator.
    """

    def __init__(self, number: int, address: str) -> None:
        self._number = number
        self._address = address
        self._pool: Pool | None = None
        self._held: dict[str, tuple[Any, int | None]] = {}
        self._matrix, self._x = common_matrix()
        self._product = self._matrix @ self._x
        self._content = 0
        self._rng = random.Random()

    @property
    def pool(self) -> Pool:
        """The session, opened at first use."""
        if self._pool is None:
            self._pool = connect(self._address)
        return self._pool

    def batch(self, seed: int, calls: int) -> None:
        """So many calls by chance, then let go of everything."""
        self._rng = random.Random(seed)
        choices: list[tuple[Callable[[], None], int]] = [
            (self._put, 5),
            (self._create_and_seal, 3),
            (self._publish, 4),
            (self._attach, 6),
            (self._reread, 4),
            (self._destroy, 4),
            (self._matvec, 3),
            (self._gather, 3),
            (self._list, 1),
        ]
        acts, weights = zip(*choices, strict=True)
        for act in self._rng.choices(acts, weights, k=calls):
            act()
        self._let_go()

    def _call(self, verb: str, name: str, content: int | None, act: Callable[[], Any]) -> Any:
        """Tell, do, tell what came of it; None if it failed."""
        began_ns = time.monotonic_ns()
        told = {"verb": verb, "name": name, "content": content}
        say({"begin": told})
        result, outcome = None, "ok"
        try:
            result = act()
        except HugepoolError as error:
            outcome = type(error).__name__
        except Wrong as error:
            outcome = f"WRONG {error}"
        except BaseException as error:
            traceback.print_exc()
            outcome = f"WRONG {type(error).__name__}: {error}"
        say({"end": told, "outcome": outcome, "ns": time.monotonic_ns() - began_ns})
        return result

    def _own(self) -> str:
        return f"c{self._number}-{self._rng.randrange(4)}"

    def _any(self) -> str:
        return f"c{self._rng.randrange(3)}-{self._rng.randrange(4)}"

    def _new(self) -> np.ndarray[Any, Any]:
        # A content is written once in a soak: the reader can tell whose it is, and when.
        self._content = self._rng.getrandbits(62) | 1
        return payload(self._content, HUGE if self._rng.random() < 0.15 else SMALL)

    @staticmethod
    def _backing(array: np.ndarray[Any, Any]) -> str:
        return "hugetlbfs-2m" if len(array) == HUGE else "shm-4k"

    def _keep(self, name: str, handle: Any, content: int | None) -> None:
        if handle is not None:
            former = self._held.pop(name, None)
            if former is not None:
                self._detach(former[0])
            self._held[name] = handle, content

    def _put(self) -> None:
        name, array = self._own(), self._new()
        act = lambda: self.pool.put(name, array, backing=self._backing(array))  # noqa: E731
        self._keep(name, self._call("put", name, self._content, act), self._content)

    def _create_and_seal(self) -> None:
        name, array = self._own(), self._new()

        def create() -> Any:
            return self.pool.create(name, len(array), "u8", backing=self._backing(array))

        handle = self._call("create", name, None, create)
        if handle is None:
            return
        handle.array[:] = array
        self._keep(name, handle, self._content)
        if self._rng.random() < 0.7:
            self._call("seal", name, self._content, handle.seal)

    def _publish(self) -> None:
        name, source, array = self._own(), f"c{self._number}-next", self._new()
        act = lambda: self.pool.put(source, array, backing=self._backing(array))  # noqa: E731
        handle = self._call("put", source, self._content, act)
        if handle is not None:
            publish = lambda: self.pool.publish(name, handle)  # noqa: E731
            self._call("publish", name, self._content, publish)
            self._detach(handle)
        self._call("destroy", source, None, lambda: self.pool.destroy(source))

    def _attach(self) -> None:
        name = self._any()

        def attach() -> Any:
            handle = self.pool.attach(name)
            content = content_of(handle.array)
            if handle.sealed and content is None:
                raise Wrong(f"{name} is torn")
            return handle, content if handle.sealed else None

        found = self._call("attach", name, None, attach)
        if found is not None:
            self._keep(f"{name} attached", *found)

    def _reread(self) -> None:
        for name, (handle, content) in self._held.items():
            if content is not None and content_of(handle.array) != content:
                say({"end": {"verb": "reread", "name": name}, "outcome": "WRONG changed", "ns": 0})

    def _destroy(self) -> None:
        name = self._own()
        self._call("destroy", name, None, lambda: self.pool.destroy(name))

    def _matvec(self) -> None:
        out = f"c{self._number}-out"

        def multiply() -> None:
            with self.pool.matvec("A", "x", out=out, workers=2) as y:
                if not np.array_equal(y.array, self._product):
                    raise Wrong("matvec")

        self._call("matvec", out, None, multiply)
        self._call("destroy", out, None, lambda: self.pool.destroy(out))

    def _gather(self) -> None:
        out = f"c{self._number}-out"
        idx = np.asarray([self._rng.randrange(ROWS) for _ in range(500)])

        def gather() -> None:
            with self.pool.gather("x", idx, out=out, workers=2) as y:
                if not np.array_equal(y.array, self._x[idx]):
                    raise Wrong("gather")

        self._call("gather", out, None, gather)
        self._call("destroy", out, None, lambda: self.pool.destroy(out))

    def _list(self) -> None:
        self._call("list", "", None, lambda: len(self.pool.list()))

    @staticmethod
    def _detach(handle: Any) -> None:
        try:
            handle.detach()
        except HugepoolError:
            pass  # the coordinator is away; its next one hears of it

    def _let_go(self) -> None:
        while self._held:
            _, (handle, _content) = self._held.popitem()
            self._detach(handle)
        handle = None
        gc.collect()
        for _ in range(2):  # the first may find another coordinator, the second tells it the rest
            self._call("stats", "", None, lambda: self.pool.stats().sessions)


def say(told: dict[str, Any]) -> None:
    """One line to the harness, at once."""
    print(json.dumps(told), flush=True)


def main(number: int, address: str) -> int:
    """Serve batches until stdin ends."""
    soaker = Soaker(number, address)
    for line in sys.stdin:
        asked = json.loads(line)
        soaker.batch(asked["seed"], asked["calls"])
        say({"done": asked["seed"]})
    return 0
