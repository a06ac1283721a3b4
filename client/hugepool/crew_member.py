"""A worker as a member of a crew: it joins a seat, prepares steps, and follows its leader.

The steps are carried out by a second thread, inside compiled code. The first one watches
the leader's process and whatever else may end the membership, and so runs the handlers of
signals at once.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Sequence

from hugepool import kernels
from hugepool.array import SharedObject
from hugepool.channel import Channel
from hugepool.crew_control import (
    ControlBlock,
    HandedArray,
    HandedStep,
    Participant,
    ProcessIdentity,
    operand_of,
)
from hugepool.crew_step import Binding
from hugepool.jobs import CREW_KERNEL
from hugepool.kernels import crew_words as words
from hugepool.kernels.base import Array, Operands, Work, vector
from hugepool.kernels.native import NativeCall
from hugepool.store import ArrayStore
from hugepool_common.errors import (
    ArrayBusyError,
    HugepoolError,
    JobFailedError,
    SegmentChangedError,
)
from hugepool_common.messages import Failed

log = logging.getLogger("hugepool.worker")

KERNEL = CREW_KERNEL
"""Name of the job that a worker joins a crew by: part k is seat k + 1."""

CONTROL = "control"
"""Role of the control block in that job."""


class MembershipEnded(BaseException):
    """This worker is stopping while its crew goes on: its part is for another to take up."""


class Membership:
    """The kernel of the job by which workers join a crew.

    Parameters
    ----------
    channel
        The worker's session, by which it attaches what the steps work on.
    watch
        Descriptors that end the membership when they become readable.

    Notes
    -----
    Operand: ``control``, the control block, writable. The part ``[k, k + 1)`` is seat
    ``k + 1``. A call lasts until the crew is closed or its leader ends.
    """

    name = KERNEL
    implementation = "member"

    def __init__(self, channel: Channel, watch: Sequence[int]) -> None:
        self._channel = channel
        self._watch = list(watch)

    def prepare(self, operands: Operands) -> None:
        """Check the control block and compile the loops of crews."""
        Participant(ControlBlock.joined(_control(operands), 1), 1)

    def __call__(self, operands: Operands, row_start: int, row_stop: int) -> Work:
        """Be a member; `elements` of the result is the number of orders carried out.

        Raises
        ------
        HugepoolError
            This process cannot take part.
        MembershipEnded
            One of `watch` became readable.
        """
        seat = int(row_start) + 1
        block = ControlBlock.joined(_control(operands), seat)
        try:
            leader_fd = block.leader.open()
        except ProcessLookupError:
            return Work(0, 0, 0)
        try:
            work = _Member(block, seat, self._channel).run([leader_fd, *self._watch])
        finally:
            os.close(leader_fd)
        if select.select(self._watch, [], [], 0)[0]:
            raise MembershipEnded
        return work


def _control(operands: Operands) -> Array:
    return vector(operands, CONTROL, ("|u1",), writable=True)


class _Member:
    """One membership."""

    def __init__(self, block: ControlBlock, seat: int, channel: Channel) -> None:
        self._block = block
        self._seat = seat
        self._me = Participant(block, seat)
        self._store = ArrayStore(channel, "try", "auto")
        self._steps: dict[int, _MemberStep] = {}
        self._error: BaseException | None = None

    def run(self, watch: list[int]) -> Work:
        done_reader, done_writer = os.pipe2(os.O_CLOEXEC)
        thread = threading.Thread(target=self._follow, args=(done_writer,), name="hugepool-crew")
        try:
            thread.start()
            poller = select.poll()
            for fd in (done_reader, *watch):
                poller.register(fd, select.POLLIN)
            ready = dict(poller.poll())
            if done_reader not in ready:
                self._me.leave()
            thread.join()
        finally:
            os.close(done_reader)
            os.close(done_writer)
        if self._error is not None:
            raise self._error
        return Work(int(self._me.own[words.OWN_STEPS]), 0, 0)

    def _follow(self, done: int) -> None:
        try:
            self._join()
            while self._me.own[words.OWN_LEAVING] == 0:
                result = self._me.follow()
                if result == words.LEFT_CREW:
                    break
                self._deal_with(result)
        except BaseException as error:
            self._error = error
        finally:
            try:
                for number in list(self._steps):
                    self._release(number)
            except BaseException as error:
                self._error = self._error or error
            finally:
                # From here on we touch nothing of the crew: it may give our rows to another.
                self._me.place[words.STATE] = words.LEFT
                os.write(done, b".")

    def _join(self) -> None:
        cpu = int(self._me.place[words.CPU])
        if cpu >= 0:
            try:
                os.sched_setaffinity(0, (cpu,))
            except OSError as error:
                log.warning("seat %d cannot be pinned to CPU %d: %s", self._seat, cpu, error)
        place = self._me.place
        incarnation = int(place[words.INCARNATION]) + 1
        self._me.own[words.OWN_INCARNATION] = incarnation
        me = ProcessIdentity.of_this()
        place[words.STATE] = words.EMPTY
        place[words.PID : words.PID + 3] = (me.pid, me.started, me.namespace)
        place[words.INCARNATION] = incarnation
        place[words.STATE] = words.JOINED

    def _deal_with(self, result: int) -> None:
        """Carry out what needs Python."""
        number = int(self._me.own[words.OWN_STEP])
        kind = int(self._me.own[words.OWN_KIND])
        try:
            if result == words.FAILED:
                self._blame(number)
            elif kind == words.PREPARE:
                self._prepare(number)
            elif kind == words.RELEASE:
                self._release(number)
        except Exception as error:
            if not isinstance(error, HugepoolError):
                log.exception("a crew's order failed")
                error = JobFailedError(
                    f"a member of the crew failed: {type(error).__name__}: {error}",
                    where=f"worker pid {os.getpid()}",
                    remedy="look at the worker's message on its stderr",
                )
            self._block.put_failure(self._seat, Failed.from_error(error))
            self._me.place[words.FAILED_EPOCH] = self._me.epoch
        self._me.finish_order()

    def _prepare(self, number: int) -> None:
        if number in self._steps:
            return  # said again for a member that has joined since
        step = _MemberStep(self._store)
        self._steps[number] = step
        try:
            step.attach(self._block.take_step())
            self._me.lay_table(number, step.calls(self._seat))
        except BaseException:
            self._release(number)
            raise

    def _release(self, number: int) -> None:
        self._me.drop_table(number)
        step = self._steps.pop(number, None)
        if step is not None:
            step.close()

    def _blame(self, number: int) -> None:
        """Raise what the call that failed has to say."""
        if number not in self._steps or self._me.own[words.OWN_FAILED] < 0:
            raise JobFailedError("the crew was told to take a step that it does not know")
        phase = self._me.failed_phase(number)
        self._steps[number].bindings[phase].blame(self._seat)


class _MemberStep:
    """What a member holds for a step."""

    def __init__(self, store: ArrayStore) -> None:
        self._store = store
        self._handles: list[SharedObject] = []
        self.bindings: list[Binding] = []

    def attach(self, step: HandedStep) -> None:
        for handed in step.arrays:
            self._handles.append(self._attached(handed))
        operands = [operand_of(handle) for handle in self._handles]
        for phase in step.phases:
            kernel = kernels.resolve(phase.kernel, phase.implementation)
            taken = {role: operands[index] for role, index in phase.operands.items()}
            self.bindings.append(Binding(kernel, taken, phase.rows))

    def calls(self, seat: int) -> list[list[NativeCall]]:
        return [binding.calls([seat]) for binding in self.bindings]

    def close(self) -> None:
        self.bindings.clear()
        while self._handles:
            handle = self._handles.pop()
            try:
                handle.detach()
            except ArrayBusyError:
                pass  # an error under way holds views of it, and with the last one it goes

    def _attached(self, handed: HandedArray) -> SharedObject:
        handle: SharedObject = self._store.attach(handed.name, readonly=not handed.writable)
        if handle.info.segment.segment_id != handed.segment_id:
            handle.detach()
            raise SegmentChangedError("the name stands for another array now", where=handed.name)
        return handle
