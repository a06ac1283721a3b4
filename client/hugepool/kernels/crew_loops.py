"""How a crew steps: orders, phases and barriers, without Python in between.

Importing this module imports numba. `own` is the address of the words that a process
keeps for itself, `control` that of the control block; for both see ``crew_words``.

Every wait looks for an abort, spins for a bounded number of turns, lets others run, and
then sleeps on the bell. What is waited for is looked at again after the sleeper has said
that it sleeps, and who changes it looks for sleepers after the change; both with a full
fence between, so no wake-up is lost. A sleep has a time-out all the same.
"""

from __future__ import annotations

from typing import Any

import numba

from hugepool.kernels import crew_words as words
from hugepool.kernels import native
from hugepool.kernels.atomics import (
    add_to,
    call_with_16,
    call_with_32,
    call_with_64,
    call_with_128,
    full_fence,
    load,
    pause,
    raise_to,
    sleep_on,
    store,
    wake_all,
    yield_cpu,
)
from hugepool.kernels.intrinsics import store_fence

_MAGIC = words.MAGIC * 8
_EPOCH = words.EPOCH * 8
_KIND = words.KIND * 8
_STEP = words.STEP * 8
_FIRST_PHASE = words.FIRST_PHASE * 8
_LAST_PHASE = words.LAST_PHASE * 8
_ABORT = words.ABORT * 8
_BELL = words.BELL * 8
_FIRST_SEAT = words.FIRST_SEAT * 8
_SEAT = words.SEAT_WORDS * 8
_TICK = words.TICK * 8
_DONE = words.DONE * 8
_SLEEPING = words.SLEEPING * 8
_SEATED = words.SEATED * 8
_SEATED_INCARNATION = words.SEATED_INCARNATION * 8

_OWN_CONTROL = words.OWN_CONTROL * 8
_OWN_SEAT = words.OWN_SEAT * 8
_OWN_SEATS = words.OWN_SEATS * 8
_OWN_SPIN = words.OWN_SPIN * 8
_OWN_YIELDS = words.OWN_YIELDS * 8
_OWN_LEAVING = words.OWN_LEAVING * 8
_OWN_EPOCH = words.OWN_EPOCH * 8
_OWN_TABLES = words.OWN_TABLES * 8
_OWN_TABLE_COUNT = words.OWN_TABLE_COUNT * 8
_OWN_PHASE = words.OWN_PHASE * 8
_OWN_LAST_PHASE = words.OWN_LAST_PHASE * 8
_OWN_WAITING = words.OWN_WAITING * 8
_OWN_FAILED = words.OWN_FAILED * 8
_OWN_TIMEOUT = words.OWN_TIMEOUT_S * 8
_OWN_STEPS = words.OWN_STEPS * 8
_OWN_KIND = words.OWN_KIND * 8
_OWN_STEP = words.OWN_STEP * 8
_OWN_FIRST_PHASE = words.OWN_FIRST_PHASE * 8
_OWN_INCARNATION = words.OWN_INCARNATION * 8

_FUNCTION = native.FUNCTION * 8
_CALL_WORDS = native.CALL_WORDS * 8
_CHECKS = native.CHECKS * 8
_SUCCEEDED = native.SUCCEEDED * 8
_RESULT = native.RESULT * 8
_FIRST = native.FIRST * 8

_SHIFT = words.EPOCH_SHIFT
_NEVER = words.NEVER
_FINISHED = words.FINISHED
_PAUSED = words.PAUSED
_ABORTED = words.ABORTED
_FAILED = words.FAILED
_ORDERED = words.ORDERED
_LEFT_CREW = words.LEFT_CREW
_STEPS_KIND = words.STEPS

_SPIN_BETWEEN = 32

_NEW_ORDER = 0
_ARRIVALS = 1


@numba.njit
def _seat(control: Any, seat: Any) -> Any:
    return control + _FIRST_SEAT + seat * _SEAT


@numba.njit
def call_native(block: Any) -> Any:
    """Call a loop by its block (see ``native``); 0 if all went well."""
    function = load(block + _FUNCTION)
    size = load(block + _CALL_WORDS)
    first = block + _FIRST
    if size == 32:
        status = call_with_32(function, first)
    elif size == 64:
        status = call_with_64(function, first)
    elif size == 16:
        status = call_with_16(function, first)
    else:
        status = call_with_128(function, first)
    if status != 0:
        return 1
    if load(block + _CHECKS) != 0 and load(block + _RESULT) != load(block + _SUCCEEDED):
        return 1
    return 0


@numba.njit
def _ring(control: Any, seats: Any, me: Any) -> Any:
    """Wake the others if any of them sleeps. What they wait for is stored before."""
    full_fence()
    for other in range(seats):
        if other != me and load(_seat(control, other) + _SLEEPING) != 0:
            add_to(control + _BELL, 1)
            wake_all(control + _BELL)
            return


@numba.njit
def _give_up(control: Any, epoch: Any) -> Any:
    raise_to(control + _ABORT, epoch)
    add_to(control + _BELL, 1)
    wake_all(control + _BELL)


@numba.njit
def _all_arrived(control: Any, seats: Any, tick: Any) -> Any:
    for other in range(seats):  # noqa: SIM110  (numba compiles no generator here)
        if load(_seat(control, other) + _TICK) < tick:
            return False
    return True


@numba.njit
def _is_there(own: Any, control: Any, seats: Any, what: Any, value: Any) -> Any:
    """Whether a wait is over: a new order after epoch `value`, or all at tick `value`."""
    if what == _ARRIVALS:
        return _all_arrived(control, seats, value)
    return load(control + _EPOCH) > value


@numba.njit
def _is_off(own: Any, control: Any, epoch: Any) -> Any:
    return load(control + _ABORT) >= epoch or load(own + _OWN_LEAVING) != 0


@numba.njit
def _wait(own: Any, control: Any, epoch: Any, what: Any, value: Any) -> Any:
    """FINISHED when it is there, ABORTED, or PAUSED when a sleep timed out.

    An abort of `epoch` or a later order, or leaving, ends it.
    """
    seats = load(own + _OWN_SEATS)
    for _ in range(load(own + _OWN_SPIN)):
        if _is_there(own, control, seats, what, value):
            return _FINISHED
        if _is_off(own, control, epoch):
            return _ABORTED
        pause()
    # On a CPU that we share with whom we wait for, spinning only keeps it from running.
    between = min(load(own + _OWN_SPIN), _SPIN_BETWEEN)
    for _ in range(load(own + _OWN_YIELDS)):
        yield_cpu()
        for _ in range(between + 1):
            if _is_there(own, control, seats, what, value):
                return _FINISHED
            if _is_off(own, control, epoch):
                return _ABORTED
            pause()
    sleeping = _seat(control, load(own + _OWN_SEAT)) + _SLEEPING
    result = -1
    while result < 0:
        bell = load(control + _BELL)
        store(sleeping, 1)
        full_fence()
        if _is_there(own, control, seats, what, value):
            result = _FINISHED
        elif _is_off(own, control, epoch):
            result = _ABORTED
        elif (
            sleep_on(control + _BELL, bell, own + _OWN_TIMEOUT) != 0
            and load(control + _BELL) == bell
        ):
            result = _PAUSED  # a time-out: the bell did not ring before the kernel looked
    store(sleeping, 0)
    return result


@numba.njit
def _run_phases(own: Any, control: Any, epoch: Any, last_waits: Any) -> Any:
    """Carry out the order from where it stands; FINISHED, PAUSED, ABORTED or FAILED.

    `last_waits` says whether to wait at the last barrier too.
    """
    seats = load(own + _OWN_SEATS)
    me = load(own + _OWN_SEAT)
    mine = _seat(control, me)
    table = load(load(own + _OWN_TABLES) + load(own + _OWN_STEP) * 8)
    phases = load(table)
    phase = load(own + _OWN_PHASE)
    last = load(own + _OWN_LAST_PHASE)
    waiting = load(own + _OWN_WAITING)
    while True:
        if waiting == 0:
            if phase == last:
                return _FINISHED
            where = table + 8 * (1 + phase % phases)
            for entry in range(load(where), load(where + 8)):
                if _is_off(own, control, epoch):
                    return _ABORTED
                block = load(table + 8 * entry)
                if call_native(block) != 0:
                    store(own + _OWN_FAILED, entry)
                    _give_up(control, epoch)
                    return _FAILED
            phase += 1
            store(own + _OWN_PHASE, phase)
            store_fence()
            store(mine + _TICK, (epoch << _SHIFT) | phase)
            full_fence()
            if _all_arrived(control, seats, (epoch << _SHIFT) | phase):
                _ring(control, seats, me)
                continue
            if phase == last and not last_waits:
                return _FINISHED
            store(own + _OWN_WAITING, 1)
        result = _wait(own, control, epoch, _ARRIVALS, (epoch << _SHIFT) | phase)
        if result != _FINISHED:
            if result == _PAUSED and not last_waits:
                waiting = 1  # a member has nothing to look after
                continue
            return result
        waiting = 0
        store(own + _OWN_WAITING, 0)


def lead(own: int, step: int, first: int, last: int) -> Any:
    """The leader's side of an order: the phases ``[first, last)`` of a step.

    Returns FINISHED when all participants are through, PAUSED after a sleep that timed
    out, ABORTED or FAILED. After PAUSED, a call with -1 for `step` goes on.
    """
    control = load(own + _OWN_CONTROL)
    if step >= 0:
        store(own + _OWN_EPOCH, load(own + _OWN_EPOCH) + 1)
        store(own + _OWN_STEP, step)
        store(own + _OWN_FIRST_PHASE, first)
        store(own + _OWN_PHASE, first)
        store(own + _OWN_LAST_PHASE, last)
        store(own + _OWN_WAITING, 0)
        publish(own, _STEPS_KIND)
    epoch = load(own + _OWN_EPOCH)
    result = _run_phases(own, control, epoch, True)
    if result != _PAUSED:
        store(_seat(control, 0) + _DONE, epoch)
    return result


@numba.njit
def publish(own: Any, kind: Any) -> Any:
    """Write an order and its epoch, and wake who sleeps."""
    control = load(own + _OWN_CONTROL)
    # Members read this line all the time: words that stay are left alone.
    step = load(own + _OWN_STEP)
    first = load(own + _OWN_FIRST_PHASE)
    last = load(own + _OWN_LAST_PHASE)
    if load(control + _KIND) != kind:
        store(control + _KIND, kind)
    if load(control + _STEP) != step:
        store(control + _STEP, step)
    if load(control + _FIRST_PHASE) != first:
        store(control + _FIRST_PHASE, first)
    if load(control + _LAST_PHASE) != last:
        store(control + _LAST_PHASE, last)
    store(control + _EPOCH, load(own + _OWN_EPOCH))
    _ring(control, load(own + _OWN_SEATS), load(own + _OWN_SEAT))


def order(own: int, kind: int, step: int) -> Any:
    """Publish an order that is no step; members answer by their DONE. Returns its epoch."""
    epoch = load(own + _OWN_EPOCH) + 1
    store(own + _OWN_EPOCH, epoch)
    store(own + _OWN_STEP, step)
    publish(own, kind)
    return epoch


def give_up(control: int, epoch: int) -> Any:
    """Abort an order, and all before it, and wake everybody."""
    _give_up(control, epoch)
    return 0


def finish_order(own: int) -> Any:
    """Say that this member is through with the newest order that it took."""
    control = load(own + _OWN_CONTROL)
    store(_seat(control, load(own + _OWN_SEAT)) + _DONE, load(own + _OWN_EPOCH))
    _ring(control, load(own + _OWN_SEATS), load(own + _OWN_SEAT))
    return 0


def follow(own: int) -> Any:
    """A member's side: carry out orders of steps until there is one of another kind.

    Returns ORDERED with OWN_KIND set, FAILED with OWN_FAILED set, or LEFT_CREW. After the
    first two `finish_order` is to be called when the order is dealt with.
    """
    control = load(own + _OWN_CONTROL)
    mine = _seat(control, load(own + _OWN_SEAT))
    while True:
        epoch = load(own + _OWN_EPOCH)
        # No order is so new that it could be aborted before it is given.
        result = _wait(own, control, epoch + (1 << 40), _NEW_ORDER, epoch)
        if load(own + _OWN_LEAVING) != 0 or load(control + _ABORT) == _NEVER:
            return _LEFT_CREW
        if result != _FINISHED:
            continue
        epoch = load(control + _EPOCH)
        kind = load(control + _KIND)
        step = load(control + _STEP)
        first = load(control + _FIRST_PHASE)
        last = load(control + _LAST_PHASE)
        store(own + _OWN_EPOCH, epoch)
        if (
            load(mine + _SEATED_INCARNATION) != load(own + _OWN_INCARNATION)
            or load(mine + _SEATED) > epoch
        ):
            continue
        store(own + _OWN_KIND, kind)
        store(own + _OWN_STEP, step)
        if kind != _STEPS_KIND:
            return _ORDERED
        known = step >= 0 and step < load(own + _OWN_TABLE_COUNT)
        if not known or load(load(own + _OWN_TABLES) + step * 8) == 0 or first < 0 or last < first:
            store(own + _OWN_FAILED, -1)
            _give_up(control, epoch)
            return _FAILED
        store(own + _OWN_PHASE, first)
        store(own + _OWN_LAST_PHASE, last)
        store(own + _OWN_WAITING, 0)
        result = _run_phases(own, control, epoch, False)
        if result == _FAILED:
            return _FAILED
        if load(own + _OWN_LEAVING) != 0:
            return _LEFT_CREW
        store(own + _OWN_STEPS, load(own + _OWN_STEPS) + 1)
        store(mine + _DONE, epoch)
