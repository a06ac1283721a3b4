"""The control block's text, the identity of processes, and how long a crew waits."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hugepool.crew_control import (
    ControlBlock,
    HandedArray,
    HandedPhase,
    HandedStep,
    ProcessIdentity,
)
from hugepool.crew_cpus import usable_cpus
from hugepool.crew_roster import Patience
from hugepool.kernels import crew_words as words
from hugepool_common.errors import IndexOutOfRangeError, InvalidSpecError, ProtocolError
from hugepool_common.messages import Failed

STEP = HandedStep(
    (HandedArray("A", 7, False), HandedArray("y", 8, True)),
    (HandedPhase("matvec", "auto", {"A": 0, "out": 1}, (0, 5, 9)),),
)


def block_of(seats: int) -> ControlBlock:
    return ControlBlock.laid_out(np.zeros(ControlBlock.nbytes(seats), np.uint8), seats, 10, 10)


def test_a_step_is_read_as_it_was_written() -> None:
    block = block_of(3)
    block.put_step(STEP)
    assert block.take_step() == STEP


def test_a_failure_is_read_as_it_was_written_by_every_seat() -> None:
    block = block_of(3)
    for seat in range(3):
        error = IndexOutOfRangeError(f"at {seat}", position=seat, needed="n", where="idx")
        block.put_failure(seat, Failed.from_error(error))
    for seat in range(3):
        found = block.take_failure(seat).to_error()
        assert isinstance(found, IndexOutOfRangeError)
        assert (found.position, found.message) == (seat, f"at {seat}")


def test_a_failure_too_long_for_its_slip_is_cut() -> None:
    block = block_of(2)
    euros = "\u20ac" * 2000
    block.put_failure(1, Failed(15, "x" * 2000, euros, euros, euros))
    assert block.take_failure(1).message.startswith("xxx")


def test_a_step_too_long_for_the_mailbox_is_refused() -> None:
    arrays = tuple(HandedArray("n" * 128, number, False) for number in range(2000))
    with pytest.raises(InvalidSpecError, match="too long"):
        block_of(2).put_step(HandedStep(arrays, STEP.phases))


def test_garbage_in_the_block_is_refused_and_not_followed() -> None:
    memory = np.zeros(ControlBlock.nbytes(3), np.uint8)
    with pytest.raises(InvalidSpecError):
        ControlBlock.joined(memory, 1)
    with pytest.raises(InvalidSpecError):
        ControlBlock(memory[:100])
    block = ControlBlock.laid_out(memory, 3, 1, 1)
    for garbage in (0, -1, 1 << 62):
        with pytest.raises(ProtocolError):
            block.take_failure(1)
        memory[-16384:].view(np.int64)[:] = garbage
    memory[:] = 255
    with pytest.raises(InvalidSpecError):
        ControlBlock.joined(memory, 1)


@pytest.mark.parametrize("seat", [-1, 0, 3, 1000])
def test_there_are_no_other_seats(seat: int) -> None:
    memory = np.zeros(ControlBlock.nbytes(3), np.uint8)
    ControlBlock.laid_out(memory, 3, 1, 1)
    with pytest.raises(InvalidSpecError):
        ControlBlock.joined(memory, seat)


def test_a_claim_of_more_seats_than_fit_is_refused() -> None:
    memory = np.zeros(ControlBlock.nbytes(3), np.uint8)
    block = ControlBlock.laid_out(memory, 3, 1, 1)
    block.words[words.SEATS] = 100
    with pytest.raises(InvalidSpecError):
        ControlBlock.joined(memory, 50)


def test_a_process_is_known_by_more_than_its_pid() -> None:
    me = ProcessIdentity.of_this()
    assert me.pid == os.getpid()
    os.close(me.open())
    assert not me.stopped()
    assert me.cpu_s() > 0
    with pytest.raises(ProcessLookupError):
        replace(me, started=me.started + 1).open()
    with pytest.raises(InvalidSpecError, match="namespace"):
        replace(me, namespace=me.namespace + 1).open()


def test_an_ended_process_cannot_be_opened() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    stat = Path(f"/proc/{child}/stat").read_text()
    started = int(stat[stat.rindex(")") + 2 :].split()[19])
    process = replace(ProcessIdentity.of_this(), pid=child, started=started)
    os.close(process.open())
    os.write(writer, b".")
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError):
        process.open()
    assert process.cpu_s() == 0 and not process.stopped()
    os.close(reader)
    os.close(writer)


def test_patience_is_not_lost_with_a_process_that_computes() -> None:
    me = ProcessIdentity.of_this()
    assert not Patience(1e9).over(1, me)
    busy = Patience(0.05)
    assert not busy.over(1, me)
    began, began_s = me.cpu_s(), time.monotonic()
    # On a busy machine longer: what counts is the share of a CPU that was used.
    while me.cpu_s() - began < max(0.2, 0.1 * (time.monotonic() - began_s)):
        pass
    assert not busy.over(1, me)
    assert Patience(0).over(1, me)


def test_there_is_at_least_one_cpu_and_not_more_than_allowed() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
