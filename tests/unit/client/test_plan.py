"""A plan's results are x[idx] whichever way it takes, and its report says which and why."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

from hugepool import plan as plans
from hugepool.kernels.samples import copy_ns_per_byte
from hugepool.plan import BINNED, DIRECT, GatherPlan, plan_gather
from hugepool_common.errors import (
    IndexOutOfRangeError,
    InvalidSpecError,
    MissingExtraError,
    NotEnoughMemoryError,
)
from support.extras import need

Array = np.ndarray[Any, Any]
ROWS, ENTRIES = 70_000, 150_001


def _index(entries: int = ENTRIES, rows: int = ROWS) -> Array:
    return np.random.default_rng(1).integers(0, rows, entries)


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No x is small enough to be gathered directly for that reason."""
    need("numba")
    monkeypatch.setattr(plans, "last_level_cache_bytes", lambda: 0)


def _predicts(monkeypatch: pytest.MonkeyPatch, direct_ns: int, binned_ns: int) -> None:
    monkeypatch.setattr(GatherPlan, "_predict", lambda self, x: (direct_ns, binned_ns))


def _clock(monkeypatch: pytest.MonkeyPatch, *steps_ns: int) -> None:
    """Let the intervals that a plan measures last these many ns, in turn."""
    times: list[int] = []
    for step_ns in steps_ns:
        start = times[-1] if times else 0
        times += [start, start + step_ns]
    ticks = iter(times)
    monkeypatch.setattr("hugepool.plan.time.thread_time_ns", lambda: next(ticks))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8", "<c8", "|u1", "<c16"])
@pytest.mark.parametrize("shape", [(ENTRIES,), (3, 50_000), (), (0,)])
def test_every_run_equals_numpy(small_cache: None, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(2).integers(0, 200, ROWS).astype(dtype)
    idx = _index(int(np.prod(shape))).reshape(shape)
    x.flags.writeable = idx.flags.writeable = False
    plan = plan_gather(idx, ROWS, dtype=dtype)
    if x.itemsize in (4, 8):
        plan.build()
    for _ in range(6):
        out = np.zeros(shape, dtype)
        work = plan.run(x, out)
        assert out.tobytes() == x[idx].tobytes()
        assert work.elements == idx.size
    assert plan.describe().settled
    assert plan.describe().runs == 6


def test_a_plan_keeps_its_own_index(small_cache: None) -> None:
    idx, x, out = _index(), np.arange(float(ROWS)), np.zeros(ENTRIES)
    expected = x[idx]
    plan = plan_gather(idx, ROWS, dtype="f8")
    idx[:] = -1
    plan.run(x, out)
    assert (out == expected).all()
    plan.build()
    plan.run(x, out)
    assert (out == expected).all()
    assert plan._idx.dtype == np.uint32


def test_rows_beyond_32_bits_keep_64_bit_indices() -> None:
    big = plan_gather(np.array([1 << 33, 5]), (1 << 33) + 1, dtype="u1")
    assert big._idx.tolist() == [1 << 33, 5]
    with pytest.raises(IndexOutOfRangeError):
        plan_gather(np.array([1 << 33, 5]), 1 << 32, dtype="u1")


@pytest.mark.parametrize("position", [0, 65_535, 65_536, ENTRIES - 1])
@pytest.mark.parametrize("value", [-1, ROWS, 1 << 32, -(2**63)])
def test_the_first_bad_index_is_named(position: int, value: int) -> None:
    idx = _index()
    idx[position:] = value
    with pytest.raises(IndexOutOfRangeError) as caught:
        plan_gather(idx, ROWS, dtype="f8")
    assert (caught.value.position, caught.value.had) == (position, str(value))


@pytest.mark.parametrize(
    "change",
    [
        {"idx": np.arange(3.0)},
        {"idx": np.arange(8)[::2]},
        {"idx": [1, 2]},
        {"idx": np.arange(3, dtype=np.int16)},
        {"rows": -1},
        {"rows": 1.5},
        {"uses": 0},
        {"uses": "many"},
        {"dtype": ">f8"},
        {"dtype": object},
    ],
)
def test_plans_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"idx": np.arange(3), "rows": 10, "dtype": "f8"} | change
    with pytest.raises(InvalidSpecError):
        plan_gather(given.pop("idx"), given.pop("rows"), **given)


_PAIR = np.arange(400.0)
_READONLY = np.full(100, -1.0)
_READONLY.flags.writeable = False


@pytest.mark.parametrize("build", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"x": np.ones(199)},
        {"x": np.ones(201)},
        {"x": np.ones(200, "f4")},
        {"x": np.ones(200, "i8")},
        {"x": np.ones(400)[::2]},
        {"x": np.ones((200, 1))},
        {"x": [1.0] * 200},
        {"x": np.frombuffer(bytes(1601), "f8", count=200, offset=1)},
        {"out": np.ones(99)},
        {"out": np.ones((10, 10))},
        {"out": np.ones(100, "f4")},
        {"out": np.ones(200)[::2]},
        {"out": _READONLY},
        {"x": _PAIR[:200], "out": _PAIR[150:250]},
    ],
)
def test_operands_that_do_not_fit_are_refused_before_any_write(
    small_cache: None, build: bool, change: dict[str, Any]
) -> None:
    plan = plan_gather(_index(100, 200), 200, dtype="f8")
    if build:
        plan.build()
    operands = {"x": np.ones(200), "out": np.full(100, -1.0)} | change
    before = [np.array(one, copy=True) for one in operands.values()]
    with pytest.raises(InvalidSpecError):
        plan.run(operands["x"], operands["out"])
    for one, kept in zip(operands.values(), before, strict=True):
        assert (np.asarray(one) == kept).all()
    assert plan.describe().runs == 0


def test_a_small_x_is_gathered_directly() -> None:
    plan = plan_gather(_index(1000, 100), 100, dtype="f8", uses=10**9)
    out = np.zeros(1000)
    plan.run(np.arange(100.0), out)
    report = plan.describe()
    assert (report.choice, report.settled) == (DIRECT, True)
    assert "last-level cache" in report.reason
    assert report.nbytes == plan.nbytes == 4000
    assert report.build_ns == 0


@pytest.mark.parametrize(
    ("entries", "dtype", "reason"),
    [(10, "f8", "too few"), (0, "f8", "too few"), (ENTRIES, "u2", "2 bytes")],
)
def test_what_cannot_gain_is_gathered_directly(
    small_cache: None, entries: int, dtype: str, reason: str
) -> None:
    rows = 4_000_000
    report = plan_gather(_index(entries, rows), rows, dtype=dtype).describe()
    assert (report.choice, report.settled) == (DIRECT, True)
    assert reason in report.reason


def test_the_faster_way_is_kept_after_the_trial(
    small_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    for steps_ns, choice, even in (
        ((900, 9999, 500, 200), BINNED, 3),
        ((900, 1, 200, 500), DIRECT, None),
    ):
        plan = plan_gather(idx, ROWS, dtype="f8")
        before = plan.nbytes
        _clock(monkeypatch, *steps_ns)
        plan.build()
        built = plan.nbytes
        assert built > before + ENTRIES * 12
        for _ in range(3):
            assert not plan.describe().settled
            plan.run(x, out)
        report = plan.describe()
        assert (report.choice, report.settled) == (choice, True)
        # The first run after the build, of 9999 or 1 ns, is not counted.
        assert {report.direct_ns, report.binned_ns} == {200, 500}
        assert (report.build_ns, report.break_even) == (900, even)
        assert report.nbytes == (built if choice == BINNED else before)
        assert choice in report.reason and choice in str(report)


def test_known_uses_decide_on_the_first_run(
    small_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    cost_ns = plans._BUILD_NS_PER_INDEX * ENTRIES
    for uses, direct_ns, built in (
        (3, cost_ns // 2, True),
        (2, cost_ns // 2, False),
        (9, 0, False),
    ):
        _predicts(monkeypatch, direct_ns, 0)
        plan = plan_gather(idx, ROWS, dtype="f8", uses=uses)
        plan.run(x, out)
        assert (out == x[idx]).all()
        report = plan.describe()
        assert (report.choice == BINNED) == built
        assert report.settled != built


def test_unknown_uses_build_once_the_loss_reaches_the_cost(
    small_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    cost_ns = plans._BUILD_NS_PER_INDEX * ENTRIES
    _predicts(monkeypatch, cost_ns, 100)
    plan = plan_gather(idx, ROWS, dtype="f8")
    half_ns = cost_ns // 2 + 101
    _clock(monkeypatch, half_ns, half_ns, 77, 50, 60, 55)
    choices = []
    for _ in range(5):
        plan.run(x, out)
        choices.append(plan.describe().choice)
    assert choices == [DIRECT, DIRECT, BINNED, BINNED, BINNED]
    assert plan.describe().build_ns == 77
    assert plan.describe().settled


def test_the_sample_and_the_copy_give_times(small_cache: None) -> None:
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    plan = plan_gather(idx, ROWS, dtype="f8")
    plan.run(x, out)
    report = plan.describe()
    assert report.predicted_direct_ns is not None and report.predicted_direct_ns > 0
    assert report.predicted_binned_ns is not None and report.predicted_binned_ns > 0
    odd = np.frombuffer(bytearray(4 * ROWS + 4), "<f4", offset=4)
    assert copy_ns_per_byte(odd) > 0
    assert copy_ns_per_byte(odd[:0]) == 0


def test_memory_that_is_not_there_means_direct(
    small_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    _predicts(monkeypatch, 10**12, 0)
    plan = plan_gather(idx, ROWS, dtype="f8", uses=1000)
    monkeypatch.setattr(plans, "_free_bytes", lambda: 10_000)
    with pytest.raises(NotEnoughMemoryError):
        plan.build()
    plan.run(x, out)
    assert (out == x[idx]).all()
    report = plan.describe()
    assert (report.choice, report.settled) == (DIRECT, True)
    assert "do not fit" in report.reason
    early = plan_gather(idx, ROWS, dtype="f8").describe()
    assert early.settled and "MB free" in early.reason


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(plans, "last_level_cache_bytes", lambda: 0)
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    plan = plan_gather(idx, ROWS, dtype="f8", uses=1000)
    plan.run(x, out)
    assert (out == x[idx]).all()
    assert "numba" in plan.describe().reason
    with pytest.raises(MissingExtraError):
        plan.build()


def test_an_interrupted_run_is_repeated_by_the_next(
    small_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, idx, out = np.arange(float(ROWS)), _index(), np.zeros(ENTRIES)
    plan = plan_gather(idx, ROWS, dtype="f8")
    plan.build()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GatherPlan, "_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan.run(x, out)
    for _ in range(3):
        assert not plan.describe().settled
        plan.run(x, out)
        assert (out == x[idx]).all()
    assert plan.describe().settled


def test_threads_take_turns(small_cache: None) -> None:
    idx = _index()
    plan = plan_gather(idx, ROWS, dtype="f8")
    plan.build()
    xs = [np.random.default_rng(seed).random(ROWS) for seed in range(4)]
    wrong = []

    def use(x: Array) -> None:
        out = np.zeros(ENTRIES)
        for _ in range(10):
            plan.run(x, out)
            if not (out == x[idx]).all():
                wrong.append(x)

    threads = [threading.Thread(target=use, args=(x,)) for x in xs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert plan.describe().runs == 40
