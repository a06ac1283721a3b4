"""The compiled loops of crews, with threads in the place of processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from hugepool import partition
from hugepool.crew_control import ControlBlock, Participant
from hugepool.kernels import crew_words as words
from hugepool.kernels.base import Bound
from hugepool.kernels.compiler import CompiledLoop
from hugepool.kernels.gather import NumbaGather
from hugepool.kernels.native import NativeCall
from hugepool.kernels.spmv import NumbaMatvec
from hugepool_common.errors import InvalidSpecError
from support.extras import need

need("numba")

ROWS = 500


class Crowd:
    """A leader and members that are threads of this process."""

    def __init__(self, seats: int) -> None:
        memory = np.zeros(ControlBlock.nbytes(seats), np.uint8)
        self.block = ControlBlock.laid_out(memory, seats, spin=50, yields=5)
        self.everybody = [Participant(self.block, seat) for seat in range(seats)]
        self.leader = self.everybody[0]
        self.ends: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._follow, args=(seat,)) for seat in range(1, seats)
        ]

    def seat_all(self) -> None:
        """Let everybody take part from the next order on."""
        for seat in range(1, self.block.seats):
            place = self.block.seat(seat)
            place[words.TICK] = 0
            place[words.SEATED] = self.leader.epoch + 1

    def start(self) -> None:
        """Have the members follow."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have them leave."""
        self.leader.dissolve()
        for thread in self._threads:
            thread.join()

    def lay(self, step: int, bounds: Sequence[tuple[Bound, Sequence[int]]]) -> None:
        """Give everybody their part of every phase."""
        for seat, participant in enumerate(self.everybody):
            calls = [[NativeCall(bound, *rows[seat : seat + 2])] for bound, rows in bounds]
            participant.lay_table(step, calls)

    def lead(self, step: int, first: int, last: int) -> int:
        """Give an order and see it through."""
        code = self.leader.lead(self.leader.address, step, first, last)
        while code == words.PAUSED:
            code = self.leader.lead(self.leader.address, -1, 0, 0)
        return int(code)

    def _follow(self, seat: int) -> None:
        me = self.everybody[seat]
        while True:
            self.ends[seat] = me.follow()
            if self.ends[seat] == words.LEFT_CREW:
                return
            me.finish_order()


@contextmanager
def crowd_of(seats: int) -> Iterator[Crowd]:
    crowd = Crowd(seats)
    crowd.seat_all()
    crowd.start()
    try:
        yield crowd
    finally:
        crowd.stop()


def gather_bound(x: Any, idx: Any, out: Any) -> Bound:
    return NumbaGather().bind({"x": x, "idx": idx, "out": out})


@pytest.mark.parametrize("dtype", ["f8", "f4", "i2", "c16", "u1"])
@pytest.mark.parametrize("index", ["i4", "u4", "i8", "u8"])
def test_a_bound_gather_is_called_by_address(dtype: str, index: str) -> None:
    x = np.arange(ROWS).astype(dtype)
    idx = np.random.default_rng(0).integers(0, ROWS, ROWS).astype(index)
    out = np.zeros(ROWS, dtype)
    with crowd_of(1) as crowd:
        crowd.lay(0, [(gather_bound(x, idx, out), (3, ROWS - 5))])
        assert crowd.lead(0, 0, 1) == words.FINISHED
    np.testing.assert_array_equal(out[3:-5], x[idx][3:-5])
    assert not out[:3].any() and not out[-5:].any()


def test_rows_of_several_elements_are_gathered_too() -> None:
    x = np.arange(3.0 * ROWS).reshape(ROWS, 3)
    idx = np.random.default_rng(0).integers(0, ROWS, ROWS)
    out = np.zeros((ROWS, 3))
    with crowd_of(1) as crowd:
        crowd.lay(0, [(gather_bound(x, idx, out), (0, ROWS))])
        assert crowd.lead(0, 0, 1) == words.FINISHED
    np.testing.assert_array_equal(out, x[idx])


def test_a_loop_that_reports_a_failure_ends_the_order_for_all() -> None:
    x, idx, out = np.arange(ROWS), np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    rows = partition.by_rows(ROWS, 3)
    with crowd_of(3) as crowd:
        bound = gather_bound(x, idx, out)
        crowd.lay(0, [(bound, rows), (bound, rows)])
        assert crowd.lead(0, 0, 2) == words.FINISHED
        idx[rows[1]] = ROWS
        assert crowd.lead(0, 0, 2) == words.ABORTED
        assert crowd.everybody[1].failed_phase(0) == 0
        idx[rows[1]] = 0
        idx[0] = -1
        assert crowd.lead(0, 0, 2) == words.FAILED
        idx[0] = 0
        assert crowd.lead(0, 0, 2) == words.FINISHED


@pytest.mark.parametrize("seats", [1, 2, 3, 5])
def test_no_phase_begins_before_the_one_before_is_done(seats: int) -> None:
    # Every phase reads what the others wrote in the last one, cut in other places.
    random = np.random.default_rng(seats)
    idx = random.permutation(ROWS)
    x, y = random.random(ROWS), np.zeros(ROWS)
    expected = x.copy()
    cuts = np.sort(random.integers(0, ROWS + 1, seats - 1)).tolist()
    with crowd_of(seats) as crowd:
        there = (gather_bound(x, idx, y), partition.by_rows(ROWS, seats))
        back = (gather_bound(y, idx, x), (0, *cuts, ROWS))
        crowd.lay(3, [there, back])
        for steps in (1, 1, 100):
            assert crowd.lead(3, 0, 2 * steps) == words.FINISHED
            for _ in range(2 * steps):
                expected = expected[idx]
            np.testing.assert_array_equal(x, expected)


def test_an_order_may_begin_in_the_middle_of_a_step() -> None:
    idx = np.random.default_rng(1).permutation(ROWS)
    x, y = np.arange(float(ROWS)), np.zeros(ROWS)
    with crowd_of(2) as crowd:
        rows = partition.by_rows(ROWS, 2)
        crowd.lay(0, [(gather_bound(x, idx, y), rows), (gather_bound(y, idx, x), rows)])
        y[:] = 7
        assert crowd.lead(0, 1, 2) == words.FINISHED
    np.testing.assert_array_equal(x, np.full(ROWS, 7.0))


def test_who_has_no_seat_takes_no_part() -> None:
    x, idx, out = np.arange(ROWS), np.arange(ROWS), np.zeros(ROWS, np.int64)
    crowd = Crowd(2)
    crowd.start()
    try:
        crowd.leader.lay_table(0, [[NativeCall(gather_bound(x, idx, out), 0, ROWS // 2)]])
        for _ in range(10):
            assert crowd.lead(0, 0, 1) == words.FINISHED
    finally:
        crowd.stop()
    assert crowd.ends == {1: words.LEFT_CREW}
    assert not out[ROWS // 2 :].any()


def test_a_step_that_a_member_does_not_know_is_given_up() -> None:
    x, idx, out = np.arange(ROWS), np.arange(ROWS), np.zeros(ROWS, np.int64)
    with crowd_of(2) as crowd:
        crowd.leader.lay_table(0, [[NativeCall(gather_bound(x, idx, out), 0, ROWS)]])
        assert crowd.lead(0, 0, 1) == words.ABORTED


def test_a_leader_waits_for_a_member_that_does_not_come_until_it_gives_up() -> None:
    x, idx, out = np.arange(ROWS), np.arange(ROWS), np.zeros(ROWS, np.int64)
    crowd = Crowd(2)
    crowd.seat_all()
    crowd.leader.lay_table(0, [[NativeCall(gather_bound(x, idx, out), 0, ROWS)]])
    leader = crowd.leader
    assert leader.lead(leader.address, 0, 0, 1) == words.PAUSED
    assert leader.lead(leader.address, -1, 0, 0) == words.PAUSED
    leader.stop_order()
    assert leader.lead(leader.address, -1, 0, 0) == words.ABORTED


@pytest.mark.parametrize("rows", [(-1, 3), (3, 2), (0, ROWS + 1)])
def test_a_range_outside_the_operands_is_refused(rows: tuple[int, int]) -> None:
    x, idx, out = np.arange(ROWS), np.arange(ROWS), np.zeros(ROWS, np.int64)
    with pytest.raises(InvalidSpecError):
        NativeCall(gather_bound(x, idx, out), *rows)


def test_a_product_is_bound_with_everything_checked() -> None:
    with pytest.raises(InvalidSpecError):
        NumbaMatvec().bind({"x": np.zeros(3), "out": np.zeros(3)})
    loop = CompiledLoop("hugepool.kernels.gather_loops", "gather_elements", outputs=("out",))
    strided = np.zeros(2 * ROWS)[::2]
    with pytest.raises(InvalidSpecError, match="contiguous"):
        NativeCall(Bound(loop, (strided, np.zeros(1, "u8"), np.zeros(1)), ROWS), 0, 1)
