"""Crews: workers that repeat planned steps together, at the cost of microseconds a step.

The process that makes a crew is its leader and works as one of it. The others are workers
of the coordinator, which are members for as long as a job lasts that ends with the crew.
Orders and barriers go through a control block in shared memory; the coordinator is asked
for nothing while steps are taken, and may even be gone.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from hugepool import partition
from hugepool.array import SharedArray
from hugepool.crew_control import MAX_SEATS, MAX_STEPS
from hugepool.crew_muster import Muster
from hugepool.crew_roster import Loss
from hugepool.crew_step import CrewStep, Lock, Planned, released
from hugepool.kernels import crew_words as words
from hugepool.kernels import normalise as norms
from hugepool.phases import Phase
from hugepool.store import ArrayStore
from hugepool_common.errors import ArrayBusyError, DetachedError, InvalidSpecError
from hugepool_common.spec import HugePages, PageSize

Norm = Literal["l2", "l1", "max"]

PATIENCE_S = 30.0
"""How long everybody waits for one member before it is taken for hung, and killed."""

COMPILE_TIMEOUT_S = 150.0
"""How long a member may be idle while it prepares: another may compile the same for it."""

_CHUNK_NS = 100_000_000
_MOST_CHUNK_PHASES = 1 << 30

_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


class Crew:
    """A leader and its members. Made by ``pool.crew``; a context manager.

    Parameters
    ----------
    address
        Of the coordinator, where at least ``workers - 1`` workers are idle.
    workers
        Participants, this process being one of them, as the master thread of OpenMP and
        rank 0 of MPI are.
    pin
        Keep each participant, and so the calling thread, on a CPU of its own.
    patience_s
        Seconds without progress after which a member is taken for hung.
    huge_pages, page_size
        Policy of the arrays that :meth:`iterate` makes for itself.

    Attributes
    ----------
    workers
        As asked for.

    Raises
    ------
    InvalidSpecError
        `workers` is no count that a crew can have, or `patience_s` no time.
    NoWorkersError
        The workers are not there, or did not join within two minutes.
    MissingExtraError
        numba is not installed.

    Notes
    -----
    Not for a forked child. Threads that share a crew wait for each other.
    """

    def __init__(
        self,
        address: str,
        *,
        workers: int = 2,
        pin: bool = False,
        patience_s: float = PATIENCE_S,
        huge_pages: HugePages = "try",
        page_size: PageSize = "auto",
    ) -> None:
        self.workers = checked_size(workers)
        _check_patience(patience_s)
        self._lock = threading.RLock()
        self._unsettled = False
        self._closed = False
        self._forked = False
        self._numbers = itertools.count(1)
        self._steps: dict[int, CrewStep] = {}
        self._muster = Muster(address, self.workers, pin=pin, patience_s=patience_s)
        self._store = ArrayStore(self._muster.channel, huge_pages, page_size)
        self._roster = self._muster.roster
        self._me = self._muster.leader
        self._lead = self._me.lead
        self._address = self._me.address
        _crews.add(self)

    @property
    def closed(self) -> bool:
        """Whether the crew is dissolved."""
        return self._closed

    @property
    def members(self) -> tuple[int, ...]:
        """Pids of the members that take part now, without the leader."""
        return tuple(seated.process.pid for seated in list(self._roster.seated.values()))

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Members that ended. The leader does their rows until others take their seats."""
        return tuple(self._roster.losses)

    def prepare(self, plan: Planned, x: SharedArray, out: SharedArray) -> CrewStep:
        """Make everybody ready to carry out a plan on two arrays, again and again.

        Parameters
        ----------
        plan
            What to do: a :class:`hugepool.SharedPlan`.
        x
            What is read.
        out
            What is written: writable here.

        Returns
        -------
        CrewStep
            Call it to take one step. While it is not released, `x` and `out` and what
            the plan consists of cannot be detached.

        Raises
        ------
        InvalidSpecError
            The arrays do not fit the plan or are one and the same, or there are 64
            prepared steps already.
        DetachedError
            The crew is closed, or a handle is detached.
        HugepoolError
            A member could not prepare, and why.
        """
        with self._lock:
            self._check_usable()
            for role, operand in (("x", x), ("out", out)):
                if not isinstance(operand, SharedArray):
                    raise InvalidSpecError(
                        f"{role} is no handle of a shared array",
                        had=type(operand).__name__,
                        remedy="make one with pool.create, pool.put or pool.attach",
                    )
            if not hasattr(plan, "phases"):
                raise InvalidSpecError(
                    "the plan is none",
                    had=type(plan).__name__,
                    remedy="make one with pool.plan_matvec or pool.plan_gather, or attach it",
                )
            if x is out or x.info.segment.segment_id == out.info.segment.segment_id:
                raise InvalidSpecError(
                    "the output may not be the input too",
                    where=out.name,
                    remedy="write into an array of its own",
                )
            return self._prepare(plan, tuple(plan.phases(x, out, self.workers)))

    def iterate(
        self, plan: Planned, x: SharedArray, steps: int, normalise: Norm | None = None
    ) -> float | None:
        """Replace `x` by the plan's result on it, `steps` times.

        Parameters
        ----------
        plan
            Of a square matrix, say.
        x
            Float32 or float64, 1-D, writable here. Overwritten.
        steps
            How often; 0 changes nothing.
        normalise
            Divide each result by its norm: ``l2``, ``l1`` or ``max``, as
            ``numpy.linalg.norm`` defines them, summed in double precision in an order
            that does not depend on the number of workers. None divides by nothing.

        Returns
        -------
        float or None
            The last norm: of the last result before it was divided. None without
            `normalise` or without steps.

        Raises
        ------
        JobFailedError
            A norm is 0, infinite or not a number: `x` is the last iterate before.
        InvalidSpecError, DetachedError
            As :meth:`prepare`.
        """
        count = _count("steps", steps, 0, 1 << 62)
        kind = norms.checked_kind(normalise)
        with self._lock:
            self._check_usable()
            if not x.writable:
                raise InvalidSpecError(
                    "x is read-only here",
                    where=x.name,
                    remedy="attach it with readonly=False",
                )
            norms.check_vector(x.dtype.str, x.shape)
            if count == 0:
                return None
            blocks = norms.blocks_of(x.shape[0])
            with (
                self._temporary("iterate", x.shape, x.dtype) as result,
                self._temporary("partials", (max(blocks, 1),), np.float64) as partials,
            ):
                phases = (
                    *plan.phases(x, result, self.workers),
                    *_norm_phases(result, partials, x, normalise, self.workers),
                )
                step = self._prepare(plan, phases)
                try:
                    self._take_steps(step, count)
                    if kind is None:
                        return None
                    return norms.norm_of(partials.array[:blocks], kind)
                finally:
                    step.release()

    def close(self) -> None:
        """Dissolve the crew: its workers are idle again, and its steps can be taken no more."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._roster.attention = True
            steps = list(self._steps.values())
            self._steps.clear()
            for step in steps:
                step.let_go()
            if not self._forked:
                self._muster.dissolve()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<Crew of {1 + len(self._roster.seated)} of {self.workers}{state}>"

    # For its steps ------------------------------------------------------------

    def take_step(self, number: int, last: int, lock: Lock) -> None:
        """Carry out the phases ``[0, last)`` of a step, each run of them anew; for CrewStep."""
        # The plan's lock too: its bins may be another crew's, or a job's, at this moment.
        with self._lock, lock:
            if self._roster.attention:
                self._attend(number)
            try:
                code = self._lead(self._address, number, 0, last)
                if code:
                    self._see_through(code, number, 0, last)
            except BaseException:
                # Ctrl-C, or a kernel's error, leaves an order that all are to let be.
                self._unsettled = self._roster.attention = True
                self._me.stop_order()
                raise

    def release(self, step: CrewStep) -> None:
        """Have everybody forget a step; for CrewStep."""
        with self._lock:
            if self._steps.get(step.number) is not step:
                return
            del self._steps[step.number]
            step.let_go()
            self._me.drop_table(step.number)
            self._settle_and_seat()
            self._order(words.RELEASE, step.number)

    # Within -------------------------------------------------------------------

    def _prepare(self, plan: Planned, phases: tuple[Phase, ...]) -> CrewStep:
        number = next((n for n in range(MAX_STEPS) if n not in self._steps), None)
        if number is None:
            raise InvalidSpecError(
                "the crew has too many prepared steps",
                needed=f"at most {MAX_STEPS}",
                remedy="release some",
            )
        self._settle_and_seat()
        step = CrewStep(self, number, plan, phases, self.workers)
        self._steps[number] = step
        try:
            epoch = self._tell(step)
            self._roster.raise_failure(epoch)
            step.lay(self._me, self._roster.vacant)
        except BaseException:
            self.release(step)
            raise
        return step

    def _tell(self, step: CrewStep) -> int:
        """Have the members prepare a step, and wait for all of them."""
        self._me.block.put_step(step.handed)
        return self._order(words.PREPARE, step.number)

    def _order(self, kind: int, step: int) -> int:
        self._unsettled = True  # until all are through with it, whatever interrupts us
        epoch = self._me.give_order(kind, step)
        self._roster.await_done(epoch, at_least_s=COMPILE_TIMEOUT_S)
        self._unsettled = False
        return epoch

    def _take_steps(self, step: CrewStep, count: int) -> None:
        """Take many, in orders short enough that Ctrl-C is heard soon."""
        phases, chunk = step.phase_count, 1
        most = max(1, _MOST_CHUNK_PHASES // phases)
        while count:
            chunk = min(chunk, count, most)
            started_ns = time.monotonic_ns()
            self.take_step(step.number, chunk * phases, step.lock)
            elapsed_ns = max(1, time.monotonic_ns() - started_ns)
            count -= chunk
            chunk = min(8 * chunk, max(1, chunk * _CHUNK_NS // elapsed_ns))

    def _see_through(self, code: int, number: int, first: int, last: int) -> None:
        """Go on with an order that did not finish at once, whatever is in its way."""
        tick = -1
        while code != words.FINISHED:
            if code == words.PAUSED:
                if tick != int(self._me.place[words.TICK]):
                    tick = int(self._me.place[words.TICK])
                    waited = self._roster.patience()
                self._roster.look_after(waited, tick)
                code = self._lead(self._address, -1, 0, 0)
                continue
            epoch = self._me.epoch
            self._settle()
            if code == words.FAILED:
                phase = self._me.failed_phase(number)
                self._steps[number].blame(phase, 0, *self._roster.vacant)
            self._roster.raise_failure(epoch)
            first = self._roster.passed(epoch, first)
            if self._roster.bury_ended():
                self._share_out()
            code = self._lead(self._address, number, first, last)

    def _settle(self) -> None:
        """Wait until no member works on an order any more."""
        self._me.stop_order()
        self._roster.await_done(self._me.epoch)
        self._unsettled = False

    def _attend(self, number: int) -> None:
        """Before a step: see to everything that is not as it was at the last one."""
        self._check_usable()
        if number not in self._steps:
            raise released()
        self._settle_and_seat()

    def _settle_and_seat(self) -> None:
        self._roster.attention = False  # first: what happens from now on sets it again
        try:
            if self._unsettled:
                self._settle()
            if self._roster.bury_ended():
                self._share_out()
            self._seat_joiners()
        except BaseException:
            self._roster.attention = True
            raise

    def _share_out(self) -> None:
        """The leader does what nobody else does."""
        for step in self._steps.values():
            step.lay(self._me, self._roster.vacant)
        self._roster.look_for_joiners()

    def _seat_joiners(self) -> None:
        """Let those in who came for a vacant seat, once they know every step."""
        joiners = self._roster.joiners()
        if not joiners:
            return
        received = [seat for seat in joiners if self._roster.receive(seat)]
        for step in self._steps.values():
            epoch = self._tell(step)
            for seat in received:
                self._roster.dismiss_if_failed(seat, epoch)
        self._roster.bury_ended()
        self._share_out()

    def _check_usable(self) -> None:
        if self._forked:
            raise DetachedError(
                "this crew belongs to the parent process", remedy="make one in the child"
            )
        if self._closed:
            raise DetachedError("the crew is closed", remedy="make another with pool.crew")

    @contextmanager
    def _temporary(self, role: str, shape: tuple[int, ...], dtype: Any) -> Iterator[SharedArray]:
        """An array for the time of a call."""
        name = f"crew-{os.getpid()}-{self._muster.session}-{role}-{next(self._numbers)}"
        made = self._store.create(name, shape, dtype, temporary=True)
        try:
            yield made
        finally:
            try:
                made.detach()
            except ArrayBusyError:
                pass  # an error under way holds views of it, and with the last one it goes
            self._store.discard(made)


def _norm_phases(
    result: SharedArray,
    partials: SharedArray,
    x: SharedArray,
    normalise: Norm | None,
    parts: int,
) -> tuple[Phase, ...]:
    rows = partition.by_rows(norms.blocks_of(x.shape[0]), parts)
    scale = Phase(
        f"scale_blocks_{normalise or 'none'}",
        {"out": result, "partials": partials, "x": x},
        rows,
        frozenset({"x"}),
    )
    if normalise is None:
        return (scale,)
    operands = {"out": result, "partials": partials}
    shares = Phase(f"block_norms_{normalise}", operands, rows, frozenset({"partials"}))
    return shares, scale


def checked_size(workers: Any) -> int:
    """`workers` if a crew can have so many.

    Raises
    ------
    InvalidSpecError
        It is no int, or not of 1 to 128.
    """
    return _count("workers", workers, 1, MAX_SEATS)


def _check_patience(patience_s: Any) -> None:
    if not isinstance(patience_s, (int, float)) or not 0 < patience_s < math.inf:
        raise InvalidSpecError(
            "patience_s is no time to wait",
            needed="seconds, more than 0",
            had=repr(patience_s)[:80],
        )


def _count(name: str, value: Any, least: int, most: int) -> int:
    count = operator.index(value) if isinstance(value, np.integer) else value
    if type(count) is not int or not least <= count <= most:
        raise InvalidSpecError(
            f"{name} must be an int", needed=f"{least} to {most}", had=repr(value)[:80]
        )
    return count


def _disown_crews() -> None:
    """In a forked child: the parent's members are not ours to order about."""
    for crew in list(_crews):
        crew._lock = threading.RLock()  # another thread of the parent may have had it
        crew._forked = crew._roster.attention = True


os.register_at_fork(after_in_child=_disown_crews)
