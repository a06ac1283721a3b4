"""A crew's control block as Python sees it, and what is written into it.

The words that the compiled loops read and write are laid out by ``kernels.crew_words``.
Behind them lie a mailbox, in which the leader describes a step to all members, and one
slip a seat, on which a member writes what went wrong.
"""

from __future__ import annotations

import functools
import os
import signal
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from hugepool.array import SharedObject
from hugepool.kernels import crew_words as words
from hugepool.kernels.base import Array, Operand
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.native import NativeCall, compiled_for
from hugepool.operands import operand_over
from hugepool_common.errors import InvalidSpecError, ProtocolError
from hugepool_common.messages import Failed

MAX_STEPS = 64
"""Steps that may be prepared at once."""

MAX_SEATS = 128

_MAGIC = 0x3177657263_706875  # "hup" and "crew1"
_MAILBOX_BYTES = 256 << 10
_SLIP_BYTES = 8 << 10
_LENGTH_BYTES = 8
_LOOPS = "hugepool.kernels.crew_loops"
_SLEEP_NS = 100_000_000

_T = TypeVar("_T")


class HandedArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shared object that a member attaches by name, if it is still the same one."""

    name: str
    segment_id: int
    writable: bool


class HandedPhase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A phase: a kernel, the numbers of its operands, the bounds of its parts."""

    kernel: str
    implementation: str
    operands: dict[str, int]
    rows: tuple[int, ...]


class HandedStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a member needs to prepare a step."""

    arrays: tuple[HandedArray, ...]
    phases: tuple[HandedPhase, ...]


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one of the same pid.

    Parameters
    ----------
    pid
        In its own namespace.
    started
        Clock ticks from boot to its start (``proc(5)``, field 22 of ``stat``).
    namespace
        Inode of its pid namespace.
    """

    pid: int
    started: int
    namespace: int

    @classmethod
    def of_this(cls) -> ProcessIdentity:
        """Our own."""
        return cls(os.getpid(), _stat_of("self")[1], _namespace())

    def open(self) -> int:
        """A pidfd of this process.

        Raises
        ------
        ProcessLookupError
            It has ended.
        InvalidSpecError
            It lives in another pid namespace, so we could not see it end.
        """
        if self.namespace != _namespace():
            raise InvalidSpecError(
                "a crew needs all its processes in one pid namespace",
                had=f"pid {self.pid} in namespace {self.namespace}, we are in {_namespace()}",
                remedy="start the workers in the container of their leader",
            )
        fd = os.pidfd_open(self.pid)
        try:
            # After the descriptor is open its pid can change owner no more.
            if _stat_of(str(self.pid))[1] != self.started:
                raise ProcessLookupError(f"pid {self.pid} is another process now")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def stopped(self) -> bool:
        """Whether a signal has stopped it, so that it may sleep for ever."""
        try:
            state, started, _ = _stat_of(str(self.pid))
        except ProcessLookupError:
            return False
        return state == "T" and started == self.started

    def cpu_s(self) -> float:
        """CPU time that it has used, in seconds; 0 if it has ended."""
        try:
            return _stat_of(str(self.pid))[2] / os.sysconf("SC_CLK_TCK")
        except ProcessLookupError:
            return 0.0


def kill(pidfd: int) -> None:
    """SIGKILL to the process of a descriptor; nothing if it has ended."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _stat_of(pid: str) -> tuple[str, int, int]:
    """State, start and CPU time of a process, as proc(5) tells them, in clock ticks."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise ProcessLookupError(f"pid {pid}: {error.strerror}") from None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything
    return fields[0], int(fields[19]), int(fields[11]) + int(fields[12])


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def operand_of(handle: SharedObject) -> Operand:
    """A shared object as kernels take it.

    Raises
    ------
    DetachedError
        The handle is detached.
    """
    parts = handle.spec.parts
    return operand_over(handle.spec, {part.role: handle._array(part.role) for part in parts})


class ControlBlock:
    """The words, the mailbox and the slips of a crew, over one array of bytes.

    Parameters
    ----------
    memory
        uint8, shape (:meth:`nbytes` of the number of seats,), beginning on a page.
    """

    def __init__(self, memory: Array) -> None:
        if len(memory) < words.FIRST_SEAT * 8:
            raise InvalidSpecError("this is no control block of a crew", had=f"{len(memory)} bytes")
        self._memory = memory
        self.words: Array = memory[: len(memory) // 8 * 8].view(np.int64)
        self.seats = int(self.words[words.SEATS])

    @staticmethod
    def nbytes(seats: int) -> int:
        """Bytes of a block for so many seats."""
        return _mailbox_at(seats) + _MAILBOX_BYTES + seats * _SLIP_BYTES

    @classmethod
    def laid_out(cls, memory: Array, seats: int, spin: int, yields: int) -> ControlBlock:
        """A new block in memory of zeros, led by this process; every seat is vacant."""
        memory[: _mailbox_at(seats)] = 0
        block = cls(memory)
        block.seats = seats
        block.words[words.SEATS] = seats
        block.words[words.SPIN] = spin
        block.words[words.YIELDS] = yields
        leader = ProcessIdentity.of_this()
        block.words[words.LEADER_PID] = leader.pid
        block.words[words.LEADER_STARTED] = leader.started
        block.words[words.LEADER_NAMESPACE] = leader.namespace
        for seat in range(1, seats):
            block.vacate(seat)
        block.words[words.MAGIC] = _MAGIC
        return block

    @classmethod
    def joined(cls, memory: Array, seat: int) -> ControlBlock:
        """The block of a crew that this process joins.

        Raises
        ------
        InvalidSpecError
            There is no control block, or no such seat in it.
        """
        block = cls(memory)
        fits = block.words[words.MAGIC] == _MAGIC and 1 <= block.seats <= MAX_SEATS
        if not fits or len(memory) < cls.nbytes(block.seats) or not 1 <= seat < block.seats:
            raise InvalidSpecError(f"there is no seat {seat} of a crew", where="control")
        return block

    @property
    def address(self) -> int:
        """Of the first word."""
        return int(self._memory.ctypes.data)

    @property
    def leader(self) -> ProcessIdentity:
        """Whose crew this is."""
        first = words.LEADER_PID
        return ProcessIdentity(*(int(word) for word in self.words[first : first + 3]))

    def seat(self, seat: int) -> Array:
        """The words of a seat."""
        start = words.FIRST_SEAT + seat * words.SEAT_WORDS
        return self.words[start : start + words.SEAT_WORDS]

    def sitting(self, seat: int) -> ProcessIdentity:
        """Who joined on a seat last."""
        first = words.PID
        return ProcessIdentity(*(int(word) for word in self.seat(seat)[first : first + 3]))

    def vacate(self, seat: int) -> None:
        """Nobody waits any more for whom sat here, and no later one takes part unasked."""
        place = self.seat(seat)
        place[words.SEATED] = words.NEVER
        place[words.SLEEPING] = 0
        place[words.TICK] = words.ABSENT_TICK

    # Text ---------------------------------------------------------------------

    def put_step(self, step: HandedStep) -> None:
        """Describe a step in the mailbox.

        Raises
        ------
        InvalidSpecError
            It is too long.
        """
        body = msgspec.json.encode(step)
        if len(body) > _MAILBOX_BYTES - _LENGTH_BYTES:
            raise InvalidSpecError(
                "the step is too long for a crew",
                needed=f"at most {_MAILBOX_BYTES} bytes",
                had=f"{len(body)}",
            )
        self._put(_mailbox_at(self.seats), body)

    def take_step(self) -> HandedStep:
        """The step in the mailbox.

        Raises
        ------
        ProtocolError
            There is no such description.
        """
        return self._taken(_mailbox_at(self.seats), _MAILBOX_BYTES, HandedStep)

    def put_failure(self, seat: int, failure: Failed) -> None:
        """Say what went wrong on a seat."""
        body = msgspec.json.encode(msgspec.to_builtins(failure))
        if len(body) > _SLIP_BYTES - _LENGTH_BYTES:
            body = msgspec.json.encode(Failed(failure.code, failure.message[:500]))
        self._put(self._slip_at(seat), body)

    def take_failure(self, seat: int) -> Failed:
        """What went wrong on a seat."""
        return self._taken(self._slip_at(seat), _SLIP_BYTES, Failed)

    def _slip_at(self, seat: int) -> int:
        return _mailbox_at(self.seats) + _MAILBOX_BYTES + seat * _SLIP_BYTES

    def _put(self, at: int, body: bytes) -> None:
        begin = at + _LENGTH_BYTES
        self._memory[at:begin].view(np.int64)[0] = len(body)
        self._memory[begin : begin + len(body)] = np.frombuffer(body, np.uint8)

    def _taken(self, at: int, limit: int, kind: type[_T]) -> _T:
        begin = at + _LENGTH_BYTES
        length = int(self._memory[at:begin].view(np.int64)[0])
        if not 0 < length <= limit - _LENGTH_BYTES:
            raise ProtocolError("a crew's message has no length", had=str(length))
        try:
            loose = msgspec.json.decode(self._memory[begin : begin + length].tobytes())
            return msgspec.convert(loose, kind)
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"malformed message of a crew: {str(error)[:300]}") from None


def _mailbox_at(seats: int) -> int:
    line = words.LINE * 8
    return -(-(words.FIRST_SEAT + seats * words.SEAT_WORDS) * 8 // line) * line


class Participant:
    """What one process keeps of a crew for the compiled loops, and these loops.

    Parameters
    ----------
    block
        The control block.
    seat
        Ours.
    """

    def __init__(self, block: ControlBlock, seat: int) -> None:
        self.block = block
        self.own: Array = np.zeros(words.OWN_WORDS, np.int64)
        self.tables: Array = np.zeros(MAX_STEPS, np.int64)
        self._kept: dict[int, tuple[Array, list[NativeCall]]] = {}
        self.place: Array = block.seat(seat)
        own = self.own
        own[words.OWN_CONTROL] = block.address
        own[words.OWN_SEAT] = seat
        own[words.OWN_SEATS] = block.seats
        own[words.OWN_SPIN] = block.words[words.SPIN]
        own[words.OWN_YIELDS] = block.words[words.YIELDS]
        own[words.OWN_TIMEOUT_NS] = _SLEEP_NS
        own[words.OWN_EPOCH] = block.words[words.EPOCH]
        own[words.OWN_TABLES] = self.tables.ctypes.data
        own[words.OWN_TABLE_COUNT] = MAX_STEPS
        self.address = int(own.ctypes.data)
        self._give_up = _compiled("give_up", 2)
        # Of the rest each side needs only its own.
        if seat == 0:
            self.lead = _compiled("lead", 4)
            self._order = _compiled("order", 3)
        else:
            self._follow = _compiled("follow", 1)
            self._finish_order = _compiled("finish_order", 1)

    @property
    def epoch(self) -> int:
        """Of the newest order that this participant knows."""
        return int(self.own[words.OWN_EPOCH])

    def give_order(self, kind: int, step: int) -> int:
        """Publish an order that is no step, and return its epoch; for a leader."""
        return int(self._order(self.address, kind, step))

    def stop_order(self) -> None:
        """Have everybody give up the newest order, if it is still under way."""
        self._give_up(self.block.address, self.epoch)

    def follow(self) -> int:
        """Carry out orders until one needs Python; for a member. See ``crew_loops``."""
        return int(self._follow(self.address))

    def finish_order(self) -> None:
        """Say that the newest order is dealt with; for a member."""
        self._finish_order(self.address)

    def leave(self) -> None:
        """End :meth:`follow`, also while it sleeps. Called in another thread."""
        self.own[words.OWN_LEAVING] = 1
        self._give_up(self.block.address, 0)  # rings the bell and aborts nothing

    def dissolve(self) -> None:
        """Have everybody leave, also who has no seat yet or comes later."""
        self._give_up(self.block.address, words.NEVER)

    def detach(self) -> None:
        """Let go of the control block; nothing else of this object may be used then."""
        del self.block, self.place
        self._kept.clear()

    def lay_table(self, step: int, calls: list[list[NativeCall]]) -> None:
        """Set, or replace, what this participant does in each phase of a step."""
        flat = [call for phase in calls for call in phase]
        first = 1 + len(calls) + 1
        bounds = [first]
        for phase in calls:
            bounds.append(bounds[-1] + len(phase))
        addresses = [call.address for call in flat]
        table = np.array([len(calls), *bounds, *addresses], np.int64)
        self.tables[step] = table.ctypes.data
        self._kept[step] = (table, flat)

    def drop_table(self, step: int) -> None:
        """Forget a step."""
        self.tables[step] = 0
        self._kept.pop(step, None)

    def failed_phase(self, step: int) -> int:
        """The phase in which a call failed last in a step."""
        table = self._kept[step][0]
        bounds = table[1 : 2 + int(table[0])]
        entry = int(self.own[words.OWN_FAILED])
        return int(np.searchsorted(bounds, entry, side="right")) - 1


@functools.cache  # each compilation maps memory that numba never gives back
def _compiled(function: str, integers: int) -> Any:
    """A loop of the crew, compiled for so many integers."""
    return compiled_for(CompiledLoop(_LOOPS, function), (0,) * integers)
