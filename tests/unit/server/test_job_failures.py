"""What clients and workers hear when workers end, stop, stay away or outlive a coordinator."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from hugepool_common.errors import ErrorCode
from hugepool_common.messages import (
    CREW_KERNEL,
    Cancel,
    Cancelled,
    Counted,
    DropSegment,
    Failed,
    Goodbye,
    GoodbyeSaid,
    Held,
    JobDone,
    Operand,
    PartAccepted,
    RegisterWorker,
    RunPart,
    Seal,
    Stats,
    SubmitJob,
    WorkerRegistered,
)
from hugepool_server.coordinator import Limits
from hugepool_server.events import PeerUnreachable, Tick, WorkerContinued, WorkerStopped
from support.coordination import Bench, Client

LIMITS = Limits(worker_patience_ns=3_000_000_000, stopped_patience_ns=1_000_000_000)


@pytest.fixture
def bench() -> Bench:
    return Bench(LIMITS)


def stop(worker: Client) -> None:
    worker.bench.handle(WorkerStopped(worker.session))


def pass_time(bench: Bench, ns: int) -> None:
    bench.now_ns += ns
    bench.handle(Tick())


def tick(bench: Bench) -> None:
    """The next Tick, at its time."""
    assert bench.coordinator.wake_ns is not None
    assert bench.coordinator.wake_ns > bench.now_ns
    pass_time(bench, bench.coordinator.wake_ns - bench.now_ns)


def waiting(client: Client) -> int:
    return client.call(Stats(), Counted).jobs_waiting


def test_jobs_without_a_worker_wait_are_counted_and_fail(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    running, queued = client.submit(), client.submit()
    assert waiting(client) == 0
    worker.exit()
    assert client.replies(running) == client.replies(queued) == []
    assert waiting(client) == 2
    client.refused(SubmitJob("gather", (), (0, 1)), ErrorCode.NO_WORKERS)
    tick(bench)
    for job in (running, queued):
        failed = client.reply(job, Failed)
        assert failed.code == ErrorCode.NO_WORKERS
        assert "waited 3 s" in failed.message
        assert (failed.needed, failed.had, failed.where) == ("1 worker", "0", "gather")
        assert "hugepool worker" in failed.remedy
    assert waiting(client) == 0
    assert bench.coordinator.wake_ns is None


def test_patience_ends_at_any_event(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job = client.submit()
    worker.exit()
    bench.now_ns += LIMITS.worker_patience_ns
    client.ask(Stats())
    assert client.reply(job, Failed).code == ErrorCode.NO_WORKERS


def test_a_new_worker_takes_up_a_waiting_job_at_once(bench: Bench) -> None:
    client, first = bench.client(), bench.worker()
    job = client.submit(rows=(0, 1))
    epoch = first.part().epoch
    first.exit()
    second = bench.worker()
    part = second.part()
    assert (part.part, part.epoch) == (0, epoch + 1)
    second.done(part)
    assert client.reply(job, JobDone)
    assert bench.coordinator.wake_ns is None


@pytest.mark.parametrize("how", ["cancel", "goodbye", "exit"])
def test_a_waiting_job_can_be_given_up(bench: Bench, how: str) -> None:
    client, other, worker = bench.client(), bench.client(), bench.worker()
    job = client.submit()
    worker.exit()
    match how:
        case "cancel":
            assert client.call(Cancel(job), Cancelled).found
        case "goodbye":
            client.call(Goodbye(), GoodbyeSaid)
        case "exit":
            client.exit()
    assert [reply.code for reply in client.replies(job) if isinstance(reply, Failed)] == (
        [] if how == "exit" else [ErrorCode.CANCELLED]
    )
    assert waiting(other) == 0
    assert bench.coordinator.wake_ns is None


def test_a_stopped_worker_that_returns_is_told_that_it_is_too_late(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    job = client.submit(rows=(0, 1))
    part = one.part()
    stop(one)
    stop(one)
    assert two.notices(RunPart) == []
    tick(bench)
    again = two.part()
    assert (again.part, again.epoch) == (part.part, part.epoch + 1)
    two.done(again)
    assert client.reply(job, JobDone)
    later = client.submit(rows=(0, 1, 2))
    assert one.notices(RunPart) == [], "it is still at the first"
    assert one.reply(one.done(part), PartAccepted).stale
    assert one.part().job != part.job
    assert client.replies(later) == []


def test_a_continued_worker_keeps_its_part(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    job = client.submit(rows=(0, 1))
    part = one.part()
    stop(one)
    bench.handle(WorkerContinued(one.session))
    assert bench.coordinator.wake_ns is None
    pass_time(bench, LIMITS.stopped_patience_ns)
    assert two.notices(RunPart) == []
    assert not one.reply(one.done(part), PartAccepted).stale
    assert client.reply(job, JobDone)


def test_news_of_a_session_that_is_over_is_let_be(bench: Bench) -> None:
    worker = bench.worker()
    number = worker.session
    worker.exit()
    assert bench.handle(WorkerStopped(number)) == []
    assert bench.handle(WorkerContinued(number)) == []
    assert bench.handle(Tick()) == []


def test_rows_that_a_stopped_worker_may_write_are_not_given_away(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("out")
    client.create("fresh")
    job = client.submit(("out", "out", True), rows=(0, 1))
    part = one.part()
    stop(one)
    tick(bench)
    assert two.notices(RunPart) == []
    assert waiting(client) == 1
    tick(bench)
    failed = client.reply(job, Failed)
    assert failed.code == ErrorCode.JOB_FAILED
    assert "waited 3 s for workers that are stopped" in failed.message
    pid = one.identity.pid
    assert failed.had == f"pid {pid}"
    assert f"kill -CONT {pid}" in failed.remedy and f"kill -KILL {pid}" in failed.remedy
    client.refused(Seal("out"), ErrorCode.ARRAY_BUSY)
    # Again into another array: that works.
    client.submit(("out", "fresh", True), rows=(0, 1))
    two.done(two.part())
    # Into the same one: not before it is certain who writes it.
    same = client.submit(("out", "out", True), rows=(0, 1))
    assert two.notices(RunPart) == []
    assert one.reply(one.done(part), PartAccepted).stale
    one.done(one.part())
    assert client.reply(same, JobDone)


def test_a_dead_stopped_worker_s_rows_are_done_by_another(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("out")
    job = client.submit(("out", "out", True), rows=(0, 1))
    one.part()
    stop(one)
    tick(bench)
    one.exit()
    two.done(two.part())
    assert client.reply(job, JobDone)
    assert bench.coordinator.wake_ns is None


@pytest.mark.parametrize("how", ["exit", "stop"])
def test_a_job_that_cannot_be_run_twice_fails_with_its_worker(bench: Bench, how: str) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("out")
    operands = (Operand("out", "out", True),)
    job = client.ask(SubmitJob("scatter_add", operands, (0, 5, 9), once=True))
    one.part()
    second = two.part()
    if how == "exit":
        one.exit()
    else:
        stop(one)
        tick(bench)
    failed = client.reply(job, Failed)
    assert failed.code == ErrorCode.JOB_FAILED
    assert "part 0 of job" in failed.message and "cannot be run twice" in failed.message
    assert failed.had == "an unknown share of rows 0 to 5 done"
    assert failed.where == "scatter_add"
    assert two.reply(two.done(second), PartAccepted).stale


def test_a_part_at_which_three_workers_ended_fails_its_job(bench: Bench) -> None:
    client, left = bench.client(), bench.worker()
    other = client.submit(rows=(0, 1))
    left.part()
    job = client.submit(rows=(0, 4, 9))
    for number in range(3):
        assert client.replies(job) == [], number
        worker = bench.worker()
        assert worker.part().part == 0
        worker.exit()
    failed = client.reply(job, Failed)
    assert failed.code == ErrorCode.JOB_FAILED
    assert failed.message.startswith("every worker that ran part 0 of job")
    assert failed.had == "3 workers lost at rows 0 to 4"
    assert failed.where == "gather"
    assert client.replies(other) == []


def test_a_crew_without_members_stays_for_the_next_worker(bench: Bench) -> None:
    leader, member = bench.client(), bench.worker()
    job = leader.ask(SubmitJob(CREW_KERNEL, (), (0, 1), standing=True))
    member.exit()
    assert waiting(leader) == 0
    pass_time(bench, 100 * LIMITS.worker_patience_ns)
    assert leader.replies(job) == []
    assert bench.worker().part().kernel == CREW_KERNEL


def test_a_busy_worker_out_of_reach_keeps_its_part(bench: Bench) -> None:
    """It may still write: only its death, or its report, tells that it does not."""
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("out")
    job = client.submit(("out", "out", True), rows=(0, 1))
    part = one.part()
    one.vanish()
    assert two.notices(RunPart) == []
    assert not one.reply(one.done(part), PartAccepted).stale
    assert client.reply(job, JobDone)


def test_a_part_that_could_not_be_sent_is_done_by_another(bench: Bench) -> None:
    client, one = bench.client(), bench.worker()
    client.create("out")
    job = client.submit(("out", "out", True), rows=(0, 1))
    part = one.part()
    bench.handle(PeerUnreachable(one.peer, part))
    again = bench.worker().part()
    assert (again.job, again.part, again.epoch) == (part.job, part.part, part.epoch + 1)
    assert client.replies(job) == []


def test_a_worker_that_a_part_could_not_be_sent_to_is_tried_again(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    job = client.submit(rows=(0, 1))
    bench.handle(PeerUnreachable(worker.peer, worker.part()))
    assert bench.coordinator.busy_workers == ((worker.session, worker.identity.pid),)
    bench.handle(WorkerContinued(worker.session))
    worker.done(worker.part())
    assert client.reply(job, JobDone)
    assert not bench.coordinator.busy_workers


def test_a_part_that_was_sent_before_stays_where_it_is(bench: Bench) -> None:
    client, one, two = bench.client(), bench.worker(), bench.worker()
    client.create("out")
    client.submit(("out", "out", True), rows=(0, 1))
    part = one.part()
    for unsent in (DropSegment(7), msgspec.structs.replace(part, epoch=part.epoch + 1)):
        bench.handle(PeerUnreachable(one.peer, unsent))
    bench.handle(PeerUnreachable(client.peer, part))
    assert two.notices(RunPart) == []
    assert not one.reply(one.done(part), PartAccepted).stale


# After a restart --------------------------------------------------------------


def restarted(bench: Bench) -> tuple[Client, Client, Client]:
    """A client that writes `out` and reads `x`, a worker at a lost part, and a fresh one."""
    client, old = bench.client(), bench.worker()
    client.sealed("x")
    lease = client.create("out")
    client.submit(("x", "x"), ("out", "out", True), rows=(0, 1))
    old.part()
    bench.restart()
    segment_id = lease.array.segment.segment_id
    assert client.resume(Held(lease.lease, segment_id, readonly=False)).gone == ()
    return client, old, bench.worker()


def test_what_a_worker_of_before_may_write_is_left_to_it_until_it_is_heard(bench: Bench) -> None:
    client, old, fresh = restarted(bench)
    again = client.submit(("x", "x"), ("out", "out", True), rows=(0, 1))
    assert fresh.notices(RunPart) == []
    assert waiting(client) == 1
    old.resume()
    assert fresh.notices(RunPart) == [], "it may be at that part still"
    old.call(RegisterWorker(), WorkerRegistered)
    assert waiting(client) == 0
    fresh.done(fresh.part())
    assert client.reply(again, JobDone)


def test_the_end_of_a_worker_of_before_sets_free_what_it_may_have_written(bench: Bench) -> None:
    client, old, fresh = restarted(bench)
    again = client.submit(("out", "out", True), rows=(0, 1))
    assert fresh.notices(RunPart) == []
    old.exit()
    fresh.done(fresh.part())
    assert client.reply(again, JobDone)
    assert bench.coordinator.wake_ns is None


def test_what_no_worker_of_before_can_write_is_used_at_once(bench: Bench) -> None:
    client, _, fresh = restarted(bench)
    client.create("fresh")
    job = client.submit(("x", "x"), ("out", "fresh", True), rows=(0, 1))
    fresh.done(fresh.part())
    assert client.reply(job, JobDone)


def test_a_worker_of_before_is_not_waited_for_for_ever(bench: Bench) -> None:
    client, old, fresh = restarted(bench)
    job = client.submit(("x", "out"), rows=(0, 1))
    tick(bench)
    failed = client.reply(job, Failed)
    assert failed.code == ErrorCode.JOB_FAILED
    assert "before the coordinator was restarted" in failed.message
    assert failed.had == f"pid {old.identity.pid}"
    assert fresh.notices(RunPart) == []


def test_a_worker_of_before_that_is_one_too_many_is_not_waited_for() -> None:
    bench = Bench(replace(LIMITS, max_workers=1))
    client, old, fresh = restarted(bench)
    job = client.submit(("x", "out"), rows=(0, 1))
    assert fresh.notices(RunPart) == []
    old.resume()
    old.refused(RegisterWorker(), ErrorCode.NOT_ENOUGH_MEMORY)
    fresh.done(fresh.part())
    assert client.reply(job, JobDone)
