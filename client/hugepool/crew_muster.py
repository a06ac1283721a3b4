"""How a crew comes together and goes apart: its session, its control block, its job."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from hugepool import crew_cpus
from hugepool.array import SharedArray
from hugepool.channel import Channel
from hugepool.crew_control import ControlBlock, Participant
from hugepool.crew_cpus import allowed_cpus, usable_cpus
from hugepool.crew_member import CONTROL, KERNEL
from hugepool.crew_roster import Roster
from hugepool.kernels import crew_words as words
from hugepool.progress import Waiting
from hugepool.store import ArrayStore
from hugepool_common.errors import (
    ArrayBusyError,
    CoordinatorUnreachableError,
    HugepoolError,
    JobInterruptedError,
    NoWorkersError,
    RequestTimeoutError,
)
from hugepool_common.messages import Counted, JobDone, Operand, Stats, SubmitJob

log = logging.getLogger("hugepool.crew")

JOIN_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 5.0

SPIN_TURNS = 200
YIELD_TURNS = 100
"""Where each participant has a CPU: how often to look before sleeping, some 100 us in all."""

CROWDED_YIELD_TURNS = 20
"""Where they share CPUs: how often to let others run before sleeping."""

_SUBMIT_TIMEOUT_S = 0.02
_LOOK_S = 0.5
_POLL_S = 0.001


class Muster:
    """A crew from its call to arms to its end.

    Parameters
    ----------
    address
        Of the coordinator.
    workers
        Participants, the leader included.
    pin
        Give each a CPU.
    patience_s
        As :class:`~hugepool.crew_roster.Roster` takes it.

    Attributes
    ----------
    channel
        The crew's own session: its end ends the job by which members joined.
    leader, roster
        The leader's side of the control block, and who sits at it.

    Raises
    ------
    NoWorkersError
        The members are not there, or did not join within two minutes.
    JobInterruptedError
        The coordinator was restarted meanwhile.
    MissingExtraError
        numba is not installed.
    """

    leader: Participant
    roster: Roster

    def __init__(self, address: str, workers: int, *, pin: bool, patience_s: float) -> None:
        self._workers = workers
        self._pinned: int | None = None
        self._control: SharedArray | None = None
        self.channel = Channel(address, client="crew")
        self.session = self.channel.welcome.session
        try:
            self._lay_out(pin)
            self.roster = Roster(self.leader, patience_s)
            if workers > 1:
                self._submit()
                with Waiting(f"waiting for {workers - 1} worker(s) to join the crew"):
                    self._await_members()
        except BaseException:
            self._abandon()
            raise

    def dissolve(self) -> None:
        """Have all members leave, as far as they do what they are told, and let go of all."""
        try:
            if self._workers > 1:
                self._dismiss()
        finally:
            self._abandon()

    def _lay_out(self, pin: bool) -> None:
        spins = self._workers <= usable_cpus()
        turns = (SPIN_TURNS, YIELD_TURNS) if spins else (0, CROWDED_YIELD_TURNS)
        memory = self._memory(ControlBlock.nbytes(self._workers))
        block = ControlBlock.laid_out(memory, self._workers, *turns)
        cpus = sorted(allowed_cpus())
        for seat in range(self._workers):
            block.seat(seat)[words.CPU] = cpus[seat % len(cpus)] if pin else -1
        self.leader = Participant(block, 0)
        if pin:
            self._pinned = crew_cpus.pin(cpus[0])

    def _memory(self, nbytes: int) -> Any:
        if self._workers == 1:
            return np.zeros(nbytes, np.uint8)
        store = ArrayStore(self.channel, "off", "auto")
        name = f"crew-{os.getpid()}-{self.session}-control"
        self._control = store.create(name, nbytes, "u1")
        return self._control.array

    def _submit(self) -> None:
        control = self._control
        assert control is not None
        described = Operand(CONTROL, control.name, True, "shared", control.info.segment.segment_id)
        job = SubmitJob(KERNEL, (described,), tuple(range(self._workers)), standing=True)
        try:
            # Refusals come at once. The job itself lasts as long as the crew, and nobody
            # waits for its reply: members say in the control block that they left.
            self.channel.request(job, JobDone, timeout_s=_SUBMIT_TIMEOUT_S)
        except RequestTimeoutError:
            pass

    def _await_members(self) -> None:
        reunions = self.channel.reunions
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        next_look = time.monotonic() + _LOOK_S
        while self.roster.vacant:
            for seat in self.roster.joiners():
                self.roster.receive(seat)
            now = time.monotonic()
            if now > next_look:
                next_look = now + _LOOK_S
                counted = self.channel.request(Stats(), Counted)
                if reunions != self.channel.reunions:
                    raise JobInterruptedError(
                        "the coordinator was restarted while the crew came together",
                        remedy="make the crew again",
                    )
                registered = len(counted.workers)
                refused = not counted.jobs_running
                if refused or registered < self._workers - 1 or now > deadline:
                    raise NoWorkersError(
                        "the crew is not complete",
                        needed=f"{self._workers - 1} idle workers",
                        had=f"{len(self.roster.seated)} joined of {registered} registered",
                        remedy="start more with hugepool worker, or wait until others are done",
                    )
            if self.roster.vacant:
                time.sleep(_POLL_S)

    def _dismiss(self) -> None:
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        pids = {seated.process.pid for seated in self.roster.seated.values()}
        try:
            self.leader.stop_order()
            self.roster.await_done(self.leader.epoch)
        except HugepoolError as error:
            log.warning("the crew ends with a member that does not answer: %s", error)
        self.leader.dissolve()
        while not self.roster.all_left():
            if time.monotonic() > deadline:
                log.warning("a member has not left the crew within %.0f s", CLOSE_TIMEOUT_S)
                return
            time.sleep(_POLL_S)
        self._await_idle(pids, deadline)

    def _await_idle(self, pids: Collection[int], deadline: float) -> None:
        """Let the next job find the members idle."""
        while time.monotonic() < deadline:
            try:
                workers = self.channel.request(Stats(), Counted, timeout_s=1.0).workers
            except (CoordinatorUnreachableError, RequestTimeoutError):
                return
            if not any(worker.busy and worker.pid in pids for worker in workers):
                return
            time.sleep(_POLL_S)

    def _abandon(self) -> None:
        """Give back what this process holds."""
        if hasattr(self, "roster"):
            self.roster.close()
        if hasattr(self, "leader"):
            self.leader.dissolve()  # who joined while we gave up is not to wait for us
            self.leader.detach()
        if self._pinned is not None:
            crew_cpus.unpin(self._pinned)
            self._pinned = None
        try:
            if self._control is not None:
                self._control.detach()
        except ArrayBusyError:
            pass  # an error under way holds it, and with the last view it goes
        finally:
            self._control = None
            self.channel.close()
