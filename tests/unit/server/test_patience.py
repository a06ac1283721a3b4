"""Patience with workers that are stopped or gone: what is taken back, what waits, what fails."""

from __future__ import annotations

import pytest

from hugepool_common.messages import PartOperand
from hugepool_server.parts import PartState
from support.crowd import CLIENT, Crowd, operand, session

# A stopped worker's part ------------------------------------------------------


def test_a_part_is_taken_back_when_its_worker_has_been_stopped_for_long() -> None:
    crowd = Crowd(2)
    job = crowd.submit(2, operand(1))
    assert crowd.assign() == [(1, 1, 0, 1), (2, 1, 1, 1)]
    crowd.report(2, 1, 1)
    assert crowd.all.wake_ns is None
    assert crowd.stop(1, 1000) == []
    assert crowd.all.wake_ns == 1100
    assert crowd.stop(1, 1099) == [], "it counts from the first time"
    assert job.parts[0].epoch == 1
    assert crowd.settle(1100) == [(2, 1, 0, 2)]
    assert crowd.all.wake_ns is None
    assert not crowd.report(1, 1, 0, epoch=1), "its report is stale"
    assert crowd.report(2, 1, 0, epoch=2)
    assert job.over


@pytest.mark.parametrize("how", ["continued", "reported"])
def test_a_worker_that_goes_on_in_time_keeps_its_part(how: str) -> None:
    crowd = Crowd(2)
    crowd.submit(2)
    crowd.assign()
    crowd.stop(1, 1000)
    if how == "continued":
        assert crowd.go_on(1, 1050) == []
        assert crowd.all.wake_ns is None
        assert crowd.stop(1, 1090) == [], "it counts anew"
        assert crowd.settle(1189) == []
    assert crowd.report(1, 1, 0)
    assert crowd.workers[0].stopped_ns is None
    assert crowd.all.wake_ns is None


def test_a_stale_worker_gets_no_part_until_it_reports() -> None:
    crowd = Crowd(2)
    crowd.submit(2)
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.report(2, 1, 1)
    assert crowd.settle(1100) == [(2, 1, 0, 2)]
    crowd.submit(1)
    assert crowd.go_on(1, 1200) == [], "it runs, and is still at what it was given"
    assert not crowd.report(1, 1, 0)
    assert crowd.workers[0].parts_done == 0
    assert crowd.assign() == [(1, 2, 0, 1)]


def test_what_may_still_be_written_is_given_to_nobody() -> None:
    crowd = Crowd(2)
    job = crowd.submit(3, operand(1), operand(2, writable=True))
    crowd.assign()
    crowd.stop(1, 1000)
    assert crowd.settle(1100) == []
    assert (job.parts[0].state, job.parts[0].epoch) == (PartState.PENDING, 2)
    crowd.report(2, 1, 1)
    assert crowd.assign() == [(2, 1, 2, 1)], "its other rows are nobody else's"
    crowd.report(2, 1, 2)
    assert crowd.assign() == []
    assert not crowd.report(1, 1, 0, epoch=1)
    assert crowd.assign() == [(1, 1, 0, 2)]
    assert crowd.report(1, 1, 0, epoch=2)
    assert job.over


def test_a_stopped_worker_that_ends_sets_its_part_free_and_is_no_loss() -> None:
    crowd = Crowd(2)
    job = crowd.submit(1, operand(2, writable=True))
    crowd.assign()
    crowd.stop(1, 1000)
    assert crowd.settle(1100) == []
    crowd.end(1)
    assert crowd.assign() == [(2, 1, 0, 2)]
    assert job.parts[0].losses == 0
    crowd.end(2)
    assert (job.parts[0].losses, job.parts[0].epoch) == (1, 3)


def test_a_later_job_over_what_may_still_be_written_waits() -> None:
    crowd = Crowd(3)
    crowd.submit(1, operand(2, writable=True))
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.settle(1100)
    crowd.submit(1, operand(2))
    crowd.submit(1, operand(3))
    assert crowd.assign() == [(2, 3, 0, 1)]
    assert not crowd.report(1, 1, 0)
    assert crowd.assign() == [(1, 1, 0, 2), (3, 2, 0, 1)]


def test_the_end_of_a_stale_worker_s_job_leaves_its_part_alone() -> None:
    crowd = Crowd(1)
    job = crowd.submit(1, operand(2, writable=True))
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.all.finish(job, failed=True)
    assert crowd.settle(1100) == []
    assert job.parts[0].epoch == 1, "nobody is to have it"
    crowd.end(1)
    assert (job.parts[0].epoch, job.parts[0].losses) == (1, 0)


def test_only_busy_workers_can_be_stopped() -> None:
    crowd = Crowd(1)
    assert crowd.stop(1, 1000) == []
    crowd.all.stopped(CLIENT, 1000)
    crowd.all.continued(CLIENT)
    assert crowd.all.wake_ns is None
    crowd.submit(1)
    assert crowd.assign() == [(1, 1, 0, 1)]
    assert crowd.settle(1100) == []
    assert crowd.all.wake_ns is None


def test_members_of_a_crew_are_left_to_their_leader() -> None:
    crowd = Crowd(1)
    crew = crowd.submit(1, operand(2, writable=True), standing=True)
    crowd.assign()
    crowd.stop(1, 1000)
    assert crowd.all.wake_ns is None
    assert crowd.settle(100_000) == []
    assert crew.parts[0].epoch == 1
    crowd.all.finish(crew, failed=True)
    crowd.submit(1, operand(2))
    crowd.settle(100_000)
    assert crowd.all.waiting == 1, "but when the crew is over it is a worker like all"


# Waiting ----------------------------------------------------------------------


def test_a_job_whose_workers_are_all_gone_waits_for_another() -> None:
    crowd = Crowd(2)
    running, queued = crowd.submit(2), crowd.submit(1)
    crowd.assign()
    crowd.end(1)
    assert crowd.settle(1500) == []
    assert (crowd.all.waiting, crowd.all.wake_ns) == (0, None)
    crowd.end(2)
    assert crowd.settle(2000) == []
    assert (crowd.all.waiting, crowd.all.wake_ns) == (2, 5000)
    assert crowd.settle(4999) == []
    assert crowd.all.live == (running, queued)
    crowd.sessions.append(session(4))
    crowd.workers.append(crowd.all.register(crowd.sessions[2], ()))
    assert crowd.settle(4999) == [(3, 1, 0, 2)]
    assert (crowd.all.waiting, crowd.all.wake_ns) == (0, None)
    assert crowd.settle(50_000) == []
    assert crowd.all.live == (running, queued)


def test_a_job_that_nobody_takes_up_fails_when_patience_ends() -> None:
    crowd = Crowd(1)
    job = crowd.submit(1)
    crowd.assign()
    crowd.end(1)
    crowd.settle(2000)
    crowd.settle(4999)
    assert not job.over
    crowd.settle(5000)
    assert job.over
    assert (crowd.all.failed_count, crowd.all.waiting, crowd.all.wake_ns) == (1, 0, None)


def test_a_job_for_a_stopped_worker_s_rows_fails_when_patience_ends() -> None:
    crowd = Crowd(2)
    job = crowd.submit(2, operand(2, writable=True))
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.settle(1100)
    assert (crowd.all.waiting, crowd.all.wake_ns) == (0, None), "another part is running"
    crowd.report(2, 1, 1)
    crowd.settle(2000)
    assert (crowd.all.waiting, crowd.all.wake_ns) == (1, 5000)
    assert crowd.all.in_the_way(job) == [crowd.sessions[0]]
    crowd.settle(5000)
    assert job.over
    later = crowd.submit(1, operand(2))
    crowd.settle(6000)
    assert (crowd.all.waiting, crowd.all.wake_ns) == (1, 9000), "nor does a later one hang"
    assert crowd.all.in_the_way(later) == [crowd.sessions[0]]
    assert crowd.go_on(1, 7000) == []
    assert crowd.all.waiting == 0, "it computes, and will report"
    assert crowd.settle(50_000) == []
    assert not crowd.report(1, 1, 0)
    assert crowd.settle(50_001) == [(1, 2, 0, 1)]


def test_a_job_does_not_wait_while_somebody_may_take_it_up() -> None:
    crowd = Crowd(2)
    other = crowd.submit(1)
    crowd.assign()
    late = crowd.submit(2, operand(2, writable=True))
    crowd.assign()
    crowd.stop(2, 1000)
    crowd.settle(1100)
    assert late.parts[0].epoch == 2
    assert crowd.all.waiting == 0, "the first worker can do its second part"
    crowd.report(1, other.number, 0)
    assert crowd.settle(1200) == [(1, 2, 1, 1)]
    crowd.report(1, 2, 1)
    assert crowd.settle(1300) == []
    assert crowd.all.waiting == 1, "now only what the stopped one may write is left"


def test_a_job_waits_when_every_worker_is_stopped() -> None:
    crowd = Crowd(2)
    first = crowd.submit(2)
    crowd.assign()
    second = crowd.submit(1)
    crowd.stop(1, 1000)
    crowd.settle(1100)
    assert crowd.all.waiting == 0
    crowd.stop(2, 1100)
    assert crowd.all.wake_ns == 1200
    crowd.settle(1200)
    assert (crowd.all.waiting, crowd.all.wake_ns) == (2, 4200)
    assert crowd.all.in_the_way(second) == crowd.sessions
    crowd.go_on(2, 1300)
    assert crowd.all.waiting == 0
    assert not crowd.report(2, 1, 1)
    assert crowd.settle(1400) == [(2, 1, 0, 2)]
    assert not first.over


def test_only_who_is_in_the_way_is_blamed() -> None:
    crowd = Crowd(3)
    for number in (1, 2):
        crowd.submit(1, operand(number, writable=True))
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.stop(2, 1000)
    crowd.settle(1100)
    job = crowd.submit(1, operand(2))
    crowd.settle(1200)
    assert crowd.all.in_the_way(job) == [crowd.sessions[1]]


def test_patience_that_ends_first_is_the_one_to_wake_for() -> None:
    crowd = Crowd(2)
    crowd.submit(1, operand(2, writable=True))
    crowd.submit(1)
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.settle(1100)
    assert crowd.all.wake_ns == 4100
    crowd.stop(2, 1200)
    assert crowd.all.wake_ns == 1300


def test_a_standing_job_waits_for_ever_and_is_taken_up() -> None:
    crowd = Crowd(1)
    crew = crowd.submit(1, standing=True)
    crowd.assign()
    crowd.end(1)
    crowd.settle(2000)
    assert (crowd.all.waiting, crowd.all.wake_ns) == (0, None)
    crowd.settle(1 << 60)
    assert not crew.over
    crowd.sessions.append(session(4))
    crowd.all.register(crowd.sessions[1], ())
    assert crowd.settle(1 << 60) == [(2, 1, 0, 2)]


# What may be run once ---------------------------------------------------------


@pytest.mark.parametrize("how", ["ended", "stopped"])
def test_a_part_that_adds_to_what_is_there_is_not_run_again(how: str) -> None:
    crowd = Crowd(2)
    job = crowd.submit(3, operand(2, writable=True), once=True)
    crowd.assign()
    crowd.report(2, 1, 1)
    assert crowd.all.doomed() == []
    assert crowd.assign() == [(2, 1, 2, 1)]
    if how == "ended":
        crowd.end(1)
    else:
        crowd.stop(1, 1000)
        crowd.all.take_back_stopped(1100)
    assert crowd.all.doomed() == [(job, job.parts[0])]
    assert crowd.settle(1100) == []
    assert job.over


def test_a_job_that_fails_for_two_reasons_fails_once() -> None:
    crowd = Crowd(2)
    job = crowd.submit(2, operand(2, writable=True), once=True)
    crowd.assign()
    crowd.stop(1, 1000)
    crowd.stop(2, 1000)
    crowd.all.take_back_stopped(1100)
    assert crowd.all.doomed() == [(job, job.parts[0])]


def test_an_idle_worker_s_end_harms_no_job_that_is_run_once() -> None:
    crowd = Crowd(2)
    job = crowd.submit(1, operand(2, writable=True), once=True)
    crowd.assign()
    crowd.end(2)
    assert crowd.all.doomed() == []
    assert crowd.report(1, 1, 0)
    assert job.over


@pytest.mark.parametrize(
    ("operands", "once"),
    [
        ((operand(1), operand(2, writable=True)), False),
        ((operand(1), operand(1, role="idx"), operand(2, writable=True)), False),
        ((operand(1), operand(2, role="idx"), operand(2, writable=True)), True),
        ((operand(2, writable=True), operand(2, writable=True, role="carry")), True),
    ],
)
def test_what_is_written_over_its_own_source_is_run_once(
    operands: tuple[PartOperand, ...], once: bool
) -> None:
    assert Crowd(1).submit(1, *operands).once is once
