"""What a node tells is accepted once, under the fence, whatever else it brings along."""

from __future__ import annotations

import zlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.policy import Ending
from app.domain.states import JobState, Outcome, Reason, StopCause
from app.services import logs, report
from app.services.inspect import job_detail
from app.services.report import Answer, Chunk
from app.services.stop import request_stop
from tests.factories import Fabric, Node, finished, in_thread, job, raw, until


def chunk(taken: Assignment, text: bytes, position: int = 0, **changes: Any) -> Chunk:
    framed = logs.frame(logs.STDOUT, 1.0, text)
    return replace(Chunk(taken.attempt_id, taken.log_day, position, len(framed), logs.PLAIN, framed), **changes)


def output(fabric: Fabric, taken: Assignment) -> bytes:
    return job_detail(fabric.db, DEFAULT_TENANT, taken.job_id).stdout


def test_a_job_that_started_is_running_and_one_that_ends_with_0_is_completed(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    assert fabric.state(taken.job_id) == JobState.RUNNING
    assert fabric.finish(taken, cpu_seconds=1.5, peak_memory_bytes=77) == Answer.ACCEPTED
    row, attempt = fabric.row(taken.job_id), fabric.attempts(taken.job_id)[0]
    assert (row.state, row.exit_code, row.attempt_id) == (JobState.COMPLETED, 0, None)
    assert row.started_at <= row.finished_at
    assert (attempt.outcome, attempt.exit_code, attempt.cpu_seconds, attempt.peak_memory_bytes) == (
        "completed", 0, 1.5, 77,
    )  # fmt: skip
    fabric.assert_in_order()


def test_an_end_may_come_before_its_start_was_told(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    started = datetime(2026, 1, 2, tzinfo=UTC)
    assert fabric.finish(taken, started_at=started) == Answer.ACCEPTED
    assert fabric.row(taken.job_id).started_at == started
    assert fabric.start(taken) == set()
    assert fabric.state(taken.job_id) == JobState.COMPLETED


def test_a_signal_is_never_folded_into_the_exit_code(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.finish(taken, Ending(signal=9, oom=True), message="out of memory")
    row, attempt = fabric.row(taken.job_id), fabric.attempts(taken.job_id)[0]
    assert (row.state, row.exit_code, row.signal, row.message) == (JobState.FAILED, None, 9, "out of memory")
    assert (attempt.outcome, attempt.oom) == (Outcome.OUT_OF_MEMORY, True)


def test_a_wrong_token_changes_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    forged = replace(taken, token=uuid4())
    assert fabric.start(forged) == set()
    assert fabric.finish(forged) == Answer.STALE
    assert fabric.state(taken.job_id) == JobState.STARTING
    assert fabric.finish(taken) == Answer.ACCEPTED


def test_an_unknown_attempt_is_stale(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = replace(fabric.claim_one(node), attempt_id=uuid4())
    assert fabric.finish(taken) == Answer.STALE


def test_the_same_end_again_is_known_and_changes_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.finish(taken, Ending(exit_code=3))
    before = fabric.row(taken.job_id)
    assert fabric.finish(taken) == Answer.KNOWN
    assert fabric.row(taken.job_id) == before
    fabric.assert_in_order()


def test_an_attempt_that_was_lost_and_taken_by_another_is_stale(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    old = fabric.run(node)
    fabric.expire(old)
    fabric.reap()
    new = fabric.run(fabric.add_node())
    assert new.job_id == old.job_id
    assert fabric.finish(old) == Answer.STALE
    assert fabric.state(new.job_id) == JobState.RUNNING
    assert fabric.finish(new, Ending(exit_code=4)) == Answer.ACCEPTED
    assert [a.outcome for a in fabric.attempts(new.job_id)] == ["lost", "failed"]
    fabric.assert_in_order()


def test_a_late_result_is_accepted_while_the_job_waits_on_that_very_attempt(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.expire(taken, seconds=3600)
    assert fabric.finish(taken) == Answer.ACCEPTED
    assert fabric.state(taken.job_id) == JobState.COMPLETED


def test_a_failure_waits_out_its_backoff_and_pays_with_a_retry(fabric: Fabric, node: Node) -> None:
    fabric.submit_one(max_retries=1, backoff_s=30.0)
    first = fabric.run(node)
    fabric.finish(first, Ending(exit_code=1))
    row = fabric.row(first.job_id)
    assert (row.state, row.ready, row.reason, row.failures) == (JobState.PENDING, False, Reason.BACKOFF, 1)
    assert fabric.claim(node) == []
    fabric.sql("UPDATE job SET not_before = NULL, ready = true")
    second = fabric.run(node)
    assert second.attempt == 2
    fabric.finish(second, Ending(exit_code=2))
    row = fabric.row(first.job_id)
    assert (row.state, row.exit_code, row.failures) == (JobState.FAILED, 2, 1)


def test_a_nodes_own_fault_costs_the_user_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    fabric.finish(taken, Ending(started=False, node_fault=True))
    row = fabric.row(taken.job_id)
    assert (row.state, row.reason, row.failures) == (JobState.PENDING, Reason.NODE_FAULT, 0)


def test_a_nodes_own_fault_that_comes_again_is_tried_ever_more_rarely(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    waits = []
    for _ in range(4):
        taken = fabric.claim_one(node)
        fabric.finish(taken, Ending(started=False, node_fault=True))
        waits.append(fabric.value("SELECT round(extract(epoch FROM not_before - now()))::int FROM job"))
        fabric.sql("UPDATE job SET not_before = NULL, ready = true")
    assert waits == sorted(set(waits)) and waits[-1] > 10


@pytest.mark.parametrize(
    ("cause", "ending", "state", "outcome"),
    [
        (StopCause.CANCEL, Ending(signal=15, stopped=True), JobState.CANCELLED, "cancelled"),
        (StopCause.CANCEL, Ending(exit_code=0), JobState.CANCELLED, "cancelled"),
        (StopCause.PREEMPT, Ending(signal=15, stopped=True), JobState.PENDING, "preempted"),
        (StopCause.PREEMPT, Ending(exit_code=0, stopped=True), JobState.PENDING, "preempted"),
        (StopCause.PREEMPT, Ending(exit_code=0), JobState.COMPLETED, "completed"),
        (StopCause.DRAIN, Ending(signal=9, stopped=True), JobState.PENDING, "drained"),
        (StopCause.TIME_LIMIT, Ending(signal=9, stopped=True), JobState.FAILED, "timed_out"),
    ],
    ids=str,
)
def test_the_cause_of_a_stop_decides_an_end_after_the_signal(
    fabric: Fabric, node: Node, cause: StopCause, ending: Ending, state: JobState, outcome: str
) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    request_stop(fabric.db, DEFAULT_TENANT, taken.job_id, "ann", "because", cause)
    assert fabric.state(taken.job_id) == JobState.STOPPING
    fabric.finish(taken, ending)
    attempt = fabric.attempts(taken.job_id)[0]
    assert (fabric.state(taken.job_id), attempt.outcome, attempt.stopped_by) == (state, outcome, "ann")
    fabric.assert_in_order()


def test_who_stopped_one_attempt_is_not_said_of_the_next(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    request_stop(fabric.db, DEFAULT_TENANT, taken.job_id, "ann", "make room", StopCause.PREEMPT)
    fabric.finish(taken, Ending(signal=15, stopped=True))
    fabric.finish(fabric.run(node))
    assert [a.stopped_by for a in fabric.attempts(taken.job_id)] == ["ann", None]
    row = fabric.row(taken.job_id)
    assert (row.stop_by, row.stop_reason) == (None, None)


def test_a_job_being_stopped_stays_so_when_its_start_is_told(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    request_stop(fabric.db, DEFAULT_TENANT, taken.job_id, "ann")
    assert fabric.start(taken) == {taken.attempt_id}
    assert fabric.state(taken.job_id) == JobState.STOPPING
    assert fabric.attempts(taken.job_id)[0].started_at is not None


def test_output_comes_with_the_end_and_a_repeat_changes_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    first = chunk(taken, b"one ")
    packed = zlib.compress(logs.frame(logs.STDOUT, 1.0, b"two " * 100))
    second = chunk(taken, b"two " * 100, first.length, codec=logs.ZLIB, data=packed)
    report.append_output(fabric.db, [first])
    report.append_output(fabric.db, [first])
    assert fabric.finish(taken, chunks=(first, second)) == Answer.ACCEPTED
    assert fabric.finish(taken, chunks=(second,)) == Answer.KNOWN
    assert output(fabric, taken) == b"one " + b"two " * 100


def test_output_of_an_attempt_that_is_no_longer_current_is_dropped_with_its_end(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.expire(taken)
    fabric.reap()
    fabric.finish(taken, chunks=(chunk(taken, b"late"),))
    assert fabric.value("SELECT count(*) FROM log_chunk") == 0


@pytest.mark.parametrize("broken", [{"codec": 99_999}, {"position": 2**70}, {"data": None}], ids=str)
def test_output_that_cannot_be_stored_never_blocks_the_end(fabric: Fabric, node: Node, broken: dict[str, Any]) -> None:
    fabric.submit(job(), job())
    bad, good = fabric.claim(node)
    result = fabric.finish_all(
        finished(bad, chunks=(chunk(bad, b"x", **broken),)), finished(good, chunks=(chunk(good, b"fine"),))
    )
    assert result.answers == {bad.attempt_id: Answer.ACCEPTED, good.attempt_id: Answer.ACCEPTED}
    assert [fabric.attempts(t.job_id)[0].log_gap for t in (bad, good)] == [True, False]
    assert output(fabric, good) == b"fine"
    fabric.assert_in_order()


@pytest.mark.parametrize("message", ["a\x00b", "half \ud800 a pair", "x" * 100_000], ids=["nul", "surrogate", "long"])
def test_no_message_can_block_an_end(fabric: Fabric, node: Node, message: str) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    assert fabric.finish(taken, Ending(exit_code=1), message=message) == Answer.ACCEPTED
    assert fabric.row(taken.job_id).message[:1] == message[:1]


def test_one_row_that_cannot_be_written_holds_up_no_other(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 7)
    taken = fabric.claim(node)
    ends = [finished(t) for t in taken]
    ends[3] = finished(taken[3], Ending(exit_code=2**40))
    result = fabric.finish_all(*ends)
    assert set(result.answers) == {t.attempt_id for t in taken} - {taken[3].attempt_id}
    assert fabric.state(taken[3].job_id) == JobState.STARTING
    assert fabric.finish_all(ends[3]).answers == {}
    fabric.assert_in_order()


def test_many_ends_at_once_each_get_their_own_verdict(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job(max_retries=n % 2, backoff_s=0.0) for n in range(8)])
    taken = fabric.claim(node)
    result = fabric.finish_all(*[finished(t, Ending(exit_code=n // 4)) for n, t in enumerate(taken)])
    assert list(result.answers.values()) == [Answer.ACCEPTED] * 8
    states = [fabric.state(t.job_id) for t in taken]
    assert states == [JobState.COMPLETED] * 4 + [JobState.FAILED, JobState.PENDING] * 2
    assert result.ready_again == {taken[5].priority_class}
    fabric.assert_in_order()


def test_ends_lock_leases_in_the_order_in_which_a_renewal_does(fabric: Fabric, node: Node, database_url: str) -> None:
    fabric.submit(*[job()] * 12)
    taken = sorted(fabric.claim(node), key=lambda t: t.attempt_id)
    with raw(database_url) as renewal:
        lock = "SELECT 1 FROM lease WHERE attempt_id = %s FOR UPDATE"
        renewal.cursor().execute(lock, (str(taken[0].attempt_id),))
        with in_thread(lambda: fabric.finish_all(*[finished(t) for t in reversed(taken)])) as ends:
            until(fabric.blocked)
            for later in taken[1:]:
                renewal.cursor().execute(lock, (str(later.attempt_id),))
            renewal.rollback()
            assert set(ends.result(20).answers.values()) == {Answer.ACCEPTED}
    fabric.assert_in_order()


def test_an_end_and_the_reaper_at_once_leave_one_outcome(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 20)
    taken = fabric.claim(node)
    fabric.start(*taken)
    fabric.expire()
    with in_thread(lambda: fabric.reap(lease_s=0.0)) as reaped:
        answers = [fabric.finish(t) for t in taken]
        reaped.result(20)
    for t, answer in zip(taken, answers, strict=True):
        ended = fabric.state(t.job_id) == JobState.COMPLETED
        assert (answer == Answer.ACCEPTED) == ended
    fabric.assert_in_order()
