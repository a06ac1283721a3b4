"""Jobs, parts, epochs and workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hugepool_common import wire
from hugepool_common.errors import InvalidSpecError, NotEnoughMemoryError, NoWorkersError
from hugepool_common.messages import (
    MAX_PARTS,
    PAGE_OF_JOBS,
    Counted,
    JobDone,
    JobInfo,
    JobsListed,
    Operand,
    RunPart,
    SubmitJob,
    Timing,
)
from hugepool_server.job_requests import MAX_OPERANDS, check_submission
from hugepool_server.jobs import MAX_CPU, Jobs
from hugepool_server.leases import Asker, Session
from hugepool_server.parts import Worker, clipped
from hugepool_server.records import Identity
from hugepool_server.whereabouts import MOST_TROUBLES, TROUBLE_BYTES
from support.crowd import CLIENT, PATIENCE, Crowd, operand, session

# What may be submitted --------------------------------------------------------

GOOD = SubmitJob(
    "gather",
    (Operand("x", "a"), Operand("idx", "b", view="heap"), Operand("out", "c", True)),
    (0, 5, 5, 9),
    "numba",
)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rows": (0, 0)},
        {"rows": (0, 1 << 48)},
        {"rows": tuple(range(MAX_PARTS + 1))},
        {"kernel": "my.package:kernel-2_x"},
        {"kernel": "k" * 64},
        {"operands": ()},
        {"operands": tuple(Operand(f"r{k}", "a") for k in range(MAX_OPERANDS))},
        {"operands": (Operand("x", "a"), Operand("out", "a", True))},
    ],
)
def test_a_good_job_passes(change: dict[str, object]) -> None:
    check_submission(msgspec.structs.replace(GOOD, **change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": ()}, "needed 2 to 129, had 0"),
        ({"rows": (0,)}, "had 1"),
        ({"rows": tuple(range(MAX_PARTS + 2))}, "had 130"),
        ({"rows": (1, 2)}, "no partition"),
        ({"rows": (-1, 2)}, "no partition"),
        ({"rows": (0, 5, 4)}, "no partition"),
        ({"rows": (0, (1 << 48) + 1)}, "no partition"),
        ({"rows": (0, 5, (1 << 48) + 1)}, "no partition"),
        ({"kernel": ""}, "names no kernel"),
        ({"kernel": "k" * 65}, "names no kernel"),
        ({"kernel": "k" * 99}, f"^'{'k' * 80}' names no kernel"),
        ({"operands": (Operand("x", "a", False, "v" * 99),)}, f"had {'v' * 80}[)]"),  # type: ignore[arg-type]
        ({"kernel": "os.system('x')"}, "names no kernel"),
        ({"kernel": "gather\n"}, "names no kernel"),
        ({"implementation": "a/b"}, "names no kernel"),
        ({"operands": (Operand("", "a"),)}, "names no kernel"),
        ({"operands": (Operand("x", "a"), Operand("x", "b"))}, "same role"),
        ({"operands": (Operand("x", "a", False, "tape"),)}, "shared or heap or private"),  # type: ignore[arg-type]
        ({"operands": (Operand("x", "a", True, "heap"),)}, "private copy"),
        ({"operands": (Operand("x", "a", True, "private"),)}, "private copy"),
        ({"operands": tuple(Operand(f"r{k}", "a") for k in range(17))}, "at most 16, had 17"),
    ],
)
def test_a_bad_job_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidSpecError, match=told):
        check_submission(msgspec.structs.replace(GOOD, **change))


# Assignment -------------------------------------------------------------------


def test_parts_go_to_distinct_workers_and_the_rest_waits() -> None:
    crowd = Crowd(2)
    crowd.submit(3)
    assert crowd.assign() == [(1, 1, 0, 1), (2, 1, 1, 1)]
    assert crowd.assign() == []
    assert crowd.report(2, 1, 1)
    assert crowd.assign() == [(2, 1, 2, 1)]


def test_the_oldest_job_goes_first() -> None:
    crowd = Crowd(3)
    crowd.submit(2)
    crowd.submit(2)
    assert crowd.assign() == [(1, 1, 0, 1), (2, 1, 1, 1), (3, 2, 0, 1)]
    assert crowd.report(1, 1, 0)
    assert crowd.assign() == [(1, 2, 1, 1)]


def test_a_part_carries_its_rows_and_operands() -> None:
    crowd = Crowd(1)
    ops = (operand(1), operand(2, writable=True))
    request = SubmitJob("gather", (), (0, 4, 9), "take")
    crowd.all.submit(request, ops, Asker(CLIENT, 1))
    ((worker, first),) = crowd.all.assign(5)
    assert worker is crowd.workers[0]
    assert first == RunPart(1, 0, 1, "gather", "take", ops, 0, 4)
    crowd.report(1, 1, 0)
    ((_, second),) = crowd.all.assign(6)
    assert (second.part, second.row_start, second.row_stop) == (1, 4, 9)


def test_the_result_has_timings_by_part_and_the_time_since_the_first_was_sent() -> None:
    crowd = Crowd(2)
    job = crowd.submit(3)
    crowd.assign(1000)
    crowd.report(2, 1, 1)
    crowd.assign(2000)
    crowd.report(2, 1, 2)
    assert not job.done
    crowd.report(1, 1, 0)
    assert job.done
    result = job.result(4500)
    assert (result.job, result.wall_ns) == (1, 3500)
    assert [timing.part for timing in result.timings] == [0, 1, 2]
    assert [timing.worker for timing in result.timings] == [1, 2, 2]
    assert (crowd.all.done_count, crowd.all.failed_count, crowd.all.live) == (1, 0, ())


def test_a_timing_carries_what_the_coordinator_knows() -> None:
    crowd = Crowd(1)
    crowd.submit(2)
    crowd.assign()
    crowd.report(1, 1, 0)
    (timing,) = crowd.all.timings
    assert (timing.worker, timing.pid, timing.part) == (1, 102, 0)
    assert (timing.row_start, timing.row_stop) == (0, 1)
    assert (timing.label, timing.wall_ns) == ("gather", 5)


# Epochs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "job", "part", "epoch"),
    [(2, 1, 0, 1), (1, 2, 0, 1), (1, 1, 1, 1), (1, 1, 0, 2), (1, 1, 0, 0), (3, 1, 0, 1)],
)
def test_only_the_worker_that_was_sent_a_part_may_report_it(
    worker: int, job: int, part: int, epoch: int
) -> None:
    crowd = Crowd(3)
    crowd.submit(2)
    assert crowd.assign() == [(1, 1, 0, 1), (2, 1, 1, 1)]
    assert not crowd.report(worker, job, part, epoch)
    assert crowd.assign() == [], "a stale report changed something"
    assert crowd.report(1, 1, 0)


def test_a_client_that_is_no_worker_reports_nothing() -> None:
    crowd = Crowd(1)
    crowd.submit(1)
    crowd.assign()
    assert crowd.all.take_report(CLIENT, 1, 0, 1) is None


def test_a_report_is_taken_once() -> None:
    crowd = Crowd(1)
    crowd.submit(2)
    crowd.assign()
    assert crowd.report(1, 1, 0)
    assert not crowd.report(1, 1, 0)
    assert crowd.workers[0].parts_done == 1


def test_a_part_of_a_worker_that_goes_is_run_again_under_a_new_epoch() -> None:
    crowd = Crowd(2)
    crowd.submit(2)
    crowd.assign()
    crowd.all.unregister(crowd.sessions[0])
    crowd.all.validate()
    assert crowd.assign() == []
    assert not crowd.report(1, 1, 0), "the dead worker spoke"
    assert crowd.report(2, 1, 1)
    assert crowd.assign() == [(2, 1, 0, 2)]
    assert not crowd.report(2, 1, 0, epoch=1)
    assert crowd.report(2, 1, 0, epoch=2)
    assert crowd.all.live == ()


def test_an_idle_worker_may_go_and_a_stranger_too() -> None:
    crowd = Crowd(1)
    crowd.all.unregister(CLIENT)
    crowd.all.unregister(crowd.sessions[0])
    assert crowd.all.workers == ()


def test_reports_of_a_job_that_is_over_are_stale_and_free_the_worker() -> None:
    crowd = Crowd(2)
    job = crowd.submit(3)
    crowd.assign()
    crowd.all.finish(job, failed=True)
    crowd.all.validate()
    crowd.submit(2)
    assert crowd.assign() == []
    assert not crowd.report(1, 1, 0)
    assert crowd.workers[0].parts_done == 0
    assert crowd.assign() == [(1, 2, 0, 1)]
    assert (crowd.all.done_count, crowd.all.failed_count) == (0, 1)


def test_a_segment_that_is_still_written_for_an_ended_job_is_not_used() -> None:
    crowd = Crowd(3)
    job = crowd.submit(2, operand(1), operand(2, writable=True))
    crowd.assign()
    crowd.all.finish(job, failed=True)
    crowd.submit(1, operand(2))
    crowd.submit(1, operand(1))
    assert crowd.assign() == [(3, 3, 0, 1)], "what the old ones only read is free"
    crowd.report(1, 1, 0)
    assert crowd.assign() == [], "another part may still write"
    crowd.report(2, 1, 1)
    assert crowd.assign() == [(1, 2, 0, 1)]


def test_a_worker_that_goes_while_at_an_ended_job_no_longer_writes() -> None:
    crowd = Crowd(2)
    job = crowd.submit(1, operand(2, writable=True))
    crowd.assign()
    crowd.all.finish(job, failed=True)
    crowd.submit(1, operand(2))
    assert crowd.assign() == []
    crowd.all.unregister(crowd.sessions[0])
    assert crowd.assign() == [(2, 2, 0, 1)]


# Workers and limits -----------------------------------------------------------


def test_registering_again_only_tells_the_cpus() -> None:
    crowd = Crowd(1)
    assert crowd.all.register(crowd.sessions[0], (3,)) is crowd.workers[0]
    assert crowd.workers[0].cpus == (3,)
    assert crowd.all.worker_of(crowd.sessions[0]) is crowd.workers[0]
    assert crowd.all.worker_of(CLIENT) is None


@pytest.mark.parametrize("cpus", [(-1,), (0, 65_536)])
def test_impossible_cpus_are_refused(cpus: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSpecError):
        Crowd(0).all.register(session(2), cpus)


def test_cpus_of_large_machines_are_told() -> None:
    cpus = (0, 65_535)
    worker = Crowd(0).all.register(session(2), cpus)
    assert worker.cpus == cpus


def test_worker_numbers_are_not_used_again() -> None:
    crowd = Crowd(1, max_workers=1)
    with pytest.raises(NotEnoughMemoryError, match="needed fewer than 1 workers, had 1"):
        crowd.all.register(session(9), ())
    crowd.all.unregister(crowd.sessions[0])
    assert crowd.all.register(session(9), ()).number == 2


def test_numbers_begin_where_they_are_told_to() -> None:
    crowd = Crowd(2, first_number=7 << 32)
    assert [worker.number for worker in crowd.workers] == [(7 << 32) + 1, (7 << 32) + 2]
    assert crowd.submit(1).number == (7 << 32) + 1
    assert crowd.assign() == [((7 << 32) + 1, (7 << 32) + 1, 0, 1)]


def test_a_job_needs_a_worker_and_room() -> None:
    crowd = Crowd(0)
    with pytest.raises(NoWorkersError, match="needed 1 worker, had 0"):
        crowd.submit(1)
    crowd = Crowd(1, max_jobs=1)
    crowd.submit(1)
    with pytest.raises(NotEnoughMemoryError, match="needed fewer than 1 jobs, had 1"):
        crowd.submit(1)


def test_who_uses_and_writes_a_segment() -> None:
    crowd = Crowd(1)
    job = crowd.submit(1, operand(1), operand(2, writable=True))
    assert [crowd.all.uses(number) for number in (1, 2, 3)] == [True, True, False]
    assert [crowd.all.writes(number) for number in (1, 2, 3)] == [False, True, False]
    assert not crowd.all.runs_on(crowd.sessions[0], 1)
    crowd.assign()
    assert crowd.all.runs_on(crowd.sessions[0], 1)
    assert not crowd.all.runs_on(crowd.sessions[0], 3)
    assert not crowd.all.runs_on(CLIENT, 1)
    crowd.all.finish(job, failed=True)
    assert not crowd.all.uses(1)
    assert crowd.all.runs_on(crowd.sessions[0], 1), "it cannot be interrupted"


def test_repr_tells_counts() -> None:
    crowd = Crowd(3)
    job = crowd.submit(3)
    crowd.assign()
    crowd.report(1, 1, 0)
    assert repr(crowd.all) == "<Jobs: 1 jobs, 2 of 3 workers busy>"
    assert repr(job) == "<Job 1 gather: 1 of 3 parts done>"


def test_validate_sees_an_epoch_that_moved_under_work() -> None:
    crowd = Crowd(1)
    crowd.submit(1)
    crowd.assign()
    running = crowd.workers[0].running
    assert running is not None
    crowd.workers[0].running = replace(running, epoch=2)
    with pytest.raises(AssertionError, match="an epoch fell"):
        crowd.all.validate()


# Frames -----------------------------------------------------------------------

HUGE = (1 << 64) - 1


def largest_timing() -> Timing:
    numbers = {
        field.name: HUGE for field in msgspec.structs.fields(Timing) if field.type is not str
    }
    return Timing("\N{SNOWMAN}" * 5000, implementation="i" * 5000, tlb_note="n" * 5000, **numbers)


def test_the_largest_result_fits_a_frame() -> None:
    result = JobDone(HUGE, (clipped(largest_timing()),) * MAX_PARTS, HUGE)
    assert len(wire.encode(1, result)[2]) <= wire.MAX_BODY


def test_the_largest_stats_fit_a_frame() -> None:
    all_ = Jobs(max_jobs=1, max_workers=512, patience=PATIENCE, first_number=0)
    for number in range(512):
        one = Session(number, b"%d" % number, Identity(HUGE, HUGE, (1 << 32) - 1), "")
        worker = all_.register(one, (MAX_CPU,) * 8)
        worker.parts_done = (1 << 32) - 1
    for _ in range(100):
        all_.timings.append(clipped(largest_timing()))
    counts: dict[str, Any] = {
        field.name: HUGE for field in msgspec.structs.fields(Counted) if field.type is int
    }
    counted = Counted(
        instance="f" * 16,
        version="0" * 30,
        workers=all_.describe_workers(),
        timings=tuple(all_.timings),
        tcp="tcp://255.255.255.255:65535",
        troubles=("t" * TROUBLE_BYTES,) * MOST_TROUBLES,
        **counts,
    )
    assert len(counted.timings) == 32
    assert all(len(worker.cpus) == 8 for worker in counted.workers)
    assert len(wire.encode(1, counted)[2]) <= wire.MAX_BODY


def test_the_largest_page_of_jobs_fits_a_frame() -> None:
    words, counts = "k" * 64, (MAX_PARTS, MAX_PARTS)
    shares = [512 // PAGE_OF_JOBS] * PAGE_OF_JOBS  # no more workers than there may be
    jobs = [
        JobInfo(HUGE, words, words, HUGE, *counts, (HUGE,) * share, True, True, HUGE)
        for share in shares
    ]
    assert len(wire.encode(1, JobsListed(tuple(jobs), True))[2]) <= wire.MAX_BODY


@pytest.mark.parametrize("more", [False, True])
def test_cpus_that_would_pass_a_frame_are_left_out(more: bool) -> None:
    crowd = Crowd(0)
    for number in range(4):
        crowd.all.register(session(number), tuple(range(1024)))
    crowd.all.register(session(4), (0,) * more)
    counts = [0] * 5 if more else [1024] * 4 + [0]
    assert [len(worker.cpus) for worker in crowd.all.describe_workers()] == counts


def test_what_a_worker_is_at_is_told_in_24_bytes() -> None:
    crowd = Crowd(2)
    request = SubmitJob("k" * 24 + "lm", (), (0, 1))
    crowd.all.submit(request, (), Asker(CLIENT, 1))
    crowd.assign()
    assert [worker.kernel for worker in crowd.all.describe_workers()] == ["k" * 24, ""]


def test_texts_are_cut_at_whole_characters_and_known_numbers_win() -> None:
    timing = clipped(Timing("\N{SNOWMAN}" * 50, tlb_note="ok", pid=5, nnz=6), pid=7)
    assert timing.label == "\N{SNOWMAN}" * 21
    assert (timing.tlb_note, timing.pid, timing.nnz) == ("ok", 7, 6)
    assert clipped(Timing("a\udc80b")).label == "a?b"
    long = clipped(Timing("l" * 99, implementation="i" * 99, tlb_note="n" * 99))
    assert [len(long.label), len(long.implementation), len(long.tlb_note)] == [64, 64, 96]


def test_worker_is_told_in_full() -> None:
    crowd = Crowd(1)
    crowd.submit(1)
    crowd.assign()
    (told,) = crowd.all.describe_workers()
    assert (told.worker, told.pid, told.busy, told.parts_done) == (1, 102, True, 0)
    assert isinstance(crowd.workers[0], Worker)
