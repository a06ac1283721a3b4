"""Where things lie in a crew's control block, and what its numbers mean.

A control block is an array of int64 in shared memory. It is cut into lines of 128 bytes,
two cache lines, because processors fetch these in pairs; each has one writer. First come
lines of the whole crew, then three a *seat*: one participant, of which seat 0 is the
leader, the process that the crew belongs to.

A *tick* is an order's epoch in the high half and a number of finished phases in the low
half: ticks only rise, so a participant has passed a barrier if its tick is not below the
barrier's.
"""

from __future__ import annotations

LINE = 16
"""Words of a line."""

# Line 0, written once by the leader.
MAGIC, SEATS, LEADER_PID, LEADER_STARTED, LEADER_NAMESPACE, SPIN, YIELDS = range(7)

# Line 1, written by the leader: an order, EPOCH last.
EPOCH, KIND, STEP, FIRST_PHASE, LAST_PHASE = range(16, 21)

ABORT = 32
"""The newest epoch whose order is to be given up; whoever sees a reason raises it.

Raised to NEVER when the crew is dissolved: then everybody leaves, who is not seated too.
"""

BELL = 48
"""Rung for those who sleep: they sleep for as long as it keeps its value."""

FIRST_SEAT = 64
SEAT_WORDS = 3 * LINE

TICK = 0
"""Of a seat: how far it is. Written at every barrier."""
DONE = 1
"""Of a seat: the newest epoch that it is through with, finished or not."""
SLEEPING = LINE
"""Of a seat: whether it sleeps, or is about to. Seldom written, so its line stays shared."""
STATE = 2 * LINE
"""Of a seat: one of the states below."""
PID, STARTED, NAMESPACE, INCARNATION, FAILED_EPOCH = range(2 * LINE + 1, 2 * LINE + 6)
"""Of a seat: which process sits there, how many sat there with it, what it failed at."""
SEATED, SEATED_INCARNATION, CPU = range(2 * LINE + 6, 2 * LINE + 9)
"""Of a seat, by the leader: from which epoch on who takes part, and where to pin it.

Whoever joins takes part in no order before the leader says so: it may have come in the
middle of one.
"""

EMPTY, JOINED, LEFT = range(3)
"""States of a seat."""

STEPS, PREPARE, RELEASE = range(3)
"""Kinds of orders."""

NEVER = (1 << 63) - 1
"""The epoch of which a seat takes part that is vacant."""

ABSENT_TICK = NEVER
"""The tick of a seat with nobody on it: nobody waits for it."""

EPOCH_SHIFT = 32
"""A tick is ``epoch << EPOCH_SHIFT | phases``."""

MOST_PHASES = (1 << EPOCH_SHIFT) - 1

# What a participant's own process keeps for the loops, beside the control block.
(
    OWN_CONTROL,
    OWN_SEAT,
    OWN_SEATS,
    OWN_SPIN,
    OWN_YIELDS,
    OWN_LEAVING,
    OWN_EPOCH,
    OWN_TABLES,
    OWN_TABLE_COUNT,
    OWN_PHASE,
    OWN_LAST_PHASE,
    OWN_WAITING,
    OWN_FAILED,
    OWN_TIMEOUT_S,
    OWN_TIMEOUT_NS,
    OWN_STEPS,
    OWN_KIND,
    OWN_STEP,
    OWN_FIRST_PHASE,
    OWN_INCARNATION,
) = range(20)
OWN_WORDS = 32

# How a loop of the crew ends.
FINISHED, PAUSED, ABORTED, FAILED, ORDERED, LEFT_CREW = range(6)
