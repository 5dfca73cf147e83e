"""Arrays: every index becomes a job exactly once, no more at a time than asked, and none is lost on any path."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from app.domain.array import ArrayAsked
from app.domain.errors import Invalid, KeyReused, NotFound, QuotaExceeded, StateConflict, Unavailable
from app.domain.policy import Ending
from app.domain.resources import Resources
from app.domain.states import JobState, StopCause
from app.services import arrays, recover
from app.services.arrays import ArrayView
from app.services.idempotency import IdempotencyKey
from app.services.stop import cancel_pending, request_stop
from app.services.submit import submit_array
from app.storage.faults import Fault, FaultPlan
from tests.factories import Fabric, Node, at_once, in_thread, job, make_fabric, raw, share, until
from tests.integration.services.array_lab import (
    assert_sound,
    cancel,
    counts,
    job_at,
    look,
    open_jobs,
    refusal,
    retry,
    submit_an_array,
    tick,
    with_window,
)

FAILED = Ending(exit_code=1)


def test_an_array_becomes_jobs_that_know_their_index(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 3, environment={"MODE": "fast"})
    taken = fabric.claim(node)
    assert [one.environment for one in taken] == [
        {"MODE": "fast", "CFAB_ARRAY_ID": str(array_id), "CFAB_ARRAY_INDEX": str(index), "CFAB_ARRAY_COUNT": "3"}
        for index in range(3)
    ]
    assert counts(fabric, array_id) == {"running": 3}
    for one in taken:
        fabric.finish(one)
    assert (look(fabric, array_id).status, look(fabric, array_id).finished_at) == ("running", None)
    tick(fabric)
    seen = look(fabric, array_id)
    assert (seen.status, seen.counts.completed, seen.counts.progress) == ("completed", 3, 1.0)
    assert seen.finished_at is not None
    assert_sound(fabric, array_id)


def test_only_a_window_is_made_ahead_and_every_index_counts_from_the_start(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 10)
    array_id = submit_an_array(fabric, 25)
    assert (counts(fabric, array_id), look(fabric, array_id).counts.unmade) == ({"pending": 25}, 15)
    seen: list[str] = []
    while taken := fabric.claim(node, 4):
        seen += [one.environment["CFAB_ARRAY_INDEX"] for one in taken]
        for one in taken:
            fabric.finish(one)
        assert fabric.value("SELECT count(*) FROM job WHERE state = 0") <= 10
        assert_sound(fabric, array_id)
        tick(fabric)
    assert seen == [str(index) for index in range(25)]
    assert look(fabric, array_id).status == "completed"


def test_max_parallel_is_exact_and_an_end_passes_its_turn_on_at_once(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 8, 3)
    order: list[int] = []
    running = fabric.claim(node)
    while running:
        assert len(running) <= 3
        assert fabric.claim(node) == []
        one = running.pop(0)
        order.append(int(one.environment["CFAB_ARRAY_INDEX"]))
        # No tick of the scheduler in between.
        fabric.finish(one, FAILED if order[-1] == 2 else None)
        running += fabric.claim(node)
        assert_sound(fabric, array_id)
    assert order == list(range(8))
    tick(fabric)
    assert (look(fabric, array_id).status, counts(fabric, array_id)) == ("failed", {"completed": 7, "failed": 1})


def test_a_job_that_is_tried_again_keeps_its_turn(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 3, 1, max_retries=1)
    fabric.finish(fabric.run(node), FAILED)
    assert fabric.claim(node) == []
    tick(fabric)
    assert fabric.claim(node) == []
    fabric.due()
    recover.promote(fabric.db)
    again = fabric.run(node)
    assert (again.environment["CFAB_ARRAY_INDEX"], again.attempt) == ("0", 2)
    fabric.expire(again)
    fabric.reap()
    assert fabric.claim_one(node).environment["CFAB_ARRAY_INDEX"] == "0"
    assert_sound(fabric, array_id)


def test_a_job_that_waits_for_its_turn_says_so(fabric: Fabric) -> None:
    array_id = submit_an_array(fabric, 2, 1)
    row = job_at(fabric, array_id, 1)
    assert (row.state, row.ready, row.reason, row.waits) == (0, False, "array", 2)
    with pytest.raises(Exception, match="ck_job_waits"):
        fabric.sql("UPDATE job SET ready = true WHERE id = %s", row.id)


def test_cancelling_all_ends_what_was_never_made_too(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 5)
    array_id = submit_an_array(fabric, 100, 2)
    running = fabric.run(node)
    done = cancel(fabric, array_id)
    assert (done.cancelled, done.stopping, list(done.nodes)) == (99, 1, [node.id])
    assert fabric.row(running.job_id).stop_cause == StopCause.CANCEL
    assert counts(fabric, array_id) == {"cancelled": 99, "running": 1}
    assert cancel(fabric, array_id).cancelled == 0
    fabric.finish(running, Ending(signal=15))
    tick(fabric)
    seen = look(fabric, array_id)
    assert (seen.status, seen.counts.cancelled, seen.stop_by, seen.stop_reason) == ("cancelled", 100, "ann", "enough")
    assert isinstance(refusal(lambda: cancel(fabric, array_id)), StateConflict)
    assert fabric.claim(node) == []
    assert_sound(fabric, array_id)


def test_cancelling_some_passes_their_turns_on(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 6)
    array_id = submit_an_array(fabric, 20, 2)
    # 0 and 1 may start; 2 to 5 wait for their turn; 6 to 19 are not made yet.
    done = cancel(fabric, array_id, (0, 1), (3, 5), (10, 19))
    assert (done.cancelled, done.stopping) == (12, 0)
    assert_sound(fabric, array_id)
    left = []
    while taken := fabric.claim(node):
        assert len(taken) <= 2
        for one in taken:
            left.append(int(one.environment["CFAB_ARRAY_INDEX"]))
            fabric.finish(one)
        tick(fabric)
    assert left == [1, 2, 5, 6, 7, 8, 9, 19]
    assert counts(fabric, array_id) == {"completed": 8, "cancelled": 12}
    assert look(fabric, array_id).status == "cancelled"


def test_what_runs_can_be_left_alone(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 4)
    running = fabric.run(node)
    assert cancel(fabric, array_id, running=False).stopping == 0
    assert fabric.state(running.job_id) == JobState.RUNNING
    fabric.finish(running)
    tick(fabric)
    assert counts(fabric, array_id) == {"completed": 1, "cancelled": 3}


def test_single_jobs_of_an_array_can_be_cancelled_and_stopped_like_any(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 4, 1)
    cancel_pending(fabric.db, fabric.tenant, job_at(fabric, array_id, 2).id)
    request_stop(fabric.db, fabric.tenant, job_at(fabric, array_id, 0).id, "ann")
    assert fabric.claim_one(node).environment["CFAB_ARRAY_INDEX"] == "1"
    assert counts(fabric, array_id) == {"cancelled": 2, "running": 1, "pending": 1}
    assert_sound(fabric, array_id)


def test_only_failed_indices_run_again_as_new_jobs(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 6, 2)
    while taken := fabric.claim(node):
        for one in taken:
            fabric.finish(one, FAILED if int(one.environment["CFAB_ARRAY_INDEX"]) % 2 else None)
    tick(fabric)
    assert look(fabric, array_id).status == "failed"
    before = {index: job_at(fabric, array_id, index).id for index in range(6)}

    assert retry(fabric, array_id) == 3

    assert (look(fabric, array_id).status, counts(fabric, array_id)) == ("running", {"completed": 3, "pending": 3})
    assert look(fabric, array_id).finished_at is None
    new = {index: job_at(fabric, array_id, index).id for index in range(6)}
    assert [index for index in range(6) if new[index] != before[index]] == [1, 3, 5]
    assert fabric.row(before[1]).replaced_by == new[1]
    while taken := fabric.claim(node):
        assert len(taken) <= 2
        for one in taken:
            assert one.attempt == 1
            fabric.finish(one)
    tick(fabric)
    assert (look(fabric, array_id).status, counts(fabric, array_id)) == ("completed", {"completed": 6})
    assert isinstance(refusal(lambda: retry(fabric, array_id)), StateConflict)
    assert_sound(fabric, array_id)


def test_a_retry_is_made_in_windows_too_and_can_be_taken_back(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 3)
    array_id = submit_an_array(fabric, 10)
    while taken := fabric.claim(node):
        for one in taken:
            fabric.finish(one, FAILED)
        tick(fabric)
    assert counts(fabric, array_id) == {"failed": 10}
    assert retry(fabric, array_id, (0, 8)) == 8
    assert (counts(fabric, array_id), look(fabric, array_id).counts.unmade) == ({"failed": 2, "pending": 8}, 5)
    assert retry(fabric, array_id) == 2
    shown, total = arrays.list_array_jobs(fabric.db, fabric.tenant, array_id, [JobState.FAILED], 100, 0)
    assert (shown, total) == ([], 0)
    # What had failed before and does not run again has failed.
    cancel(fabric, array_id, (5, 10))
    assert counts(fabric, array_id) == {"failed": 5, "pending": 5}
    assert_sound(fabric, array_id)
    cancel(fabric, array_id)
    assert counts(fabric, array_id) == {"failed": 7, "cancelled": 3}
    assert look(fabric, array_id).status == "failed"
    assert_sound(fabric, array_id)


def test_a_failed_job_that_was_forgotten_meanwhile_runs_again_all_the_same(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 1)
    array_id = submit_an_array(fabric, 3)
    while taken := fabric.claim(node):
        fabric.finish(taken[0], FAILED)
        tick(fabric)
    assert retry(fabric, array_id) == 3
    fabric.sql("DELETE FROM job WHERE array_index = 2")
    while taken := fabric.claim(node):
        fabric.finish(taken[0])
        tick(fabric)
    assert look(fabric, array_id).finished_at is not None
    assert fabric.value("SELECT count(*) FROM job WHERE state = 4") == 3


def test_jobs_are_listed_by_index_with_exact_totals(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 7)
    array_id = submit_an_array(fabric, 30)
    for one in fabric.claim(node, 2):
        fabric.finish(one)
    fabric.claim(node, 1)

    def listed(*states: JobState, limit: int = 100, offset: int = 0) -> tuple[list[int | None], int]:
        rows, total = arrays.list_array_jobs(fabric.db, fabric.tenant, array_id, states or None, limit, offset)
        return [row.array_index for row in rows], total

    assert listed() == ([0, 1, 2, 3, 4, 5, 6], 7)
    assert listed(limit=2, offset=3) == ([3, 4], 7)
    assert listed(JobState.COMPLETED) == ([0, 1], 2)
    assert listed(JobState.STARTING, JobState.RUNNING, JobState.STOPPING) == ([2], 1)
    assert listed(JobState.FAILED) == ([], 0)


def test_another_tenants_array_cannot_be_found(fabric: Fabric) -> None:
    array_id, stranger = submit_an_array(fabric, 2), fabric.add_tenant()
    for work in (
        lambda: arrays.get_array(fabric.db, stranger, array_id),
        lambda: arrays.list_array_jobs(fabric.db, stranger, array_id, None, 10, 0),
        lambda: cancel(replace(fabric, tenant=stranger), array_id),
        lambda: retry(replace(fabric, tenant=stranger), array_id),
        lambda: arrays.get_array(fabric.db, fabric.tenant, uuid4()),
    ):
        assert isinstance(refusal(work), NotFound)
    assert arrays.list_arrays(fabric.db, stranger, 10, 0) == []
    assert [one.id for one in arrays.list_arrays(fabric.db, fabric.tenant, 10, 0)] == [array_id]


def test_quota_tier_and_bounds_count_as_for_jobs(fabric: Fabric, node: Node) -> None:
    small = fabric.add_tenant(quota_jobs=2, quota_cpus_milli=4000, tier="low")
    huge = refusal(lambda: submit_an_array(fabric, 5, tenant=small, resources=share(cpus=8)))
    assert isinstance(huge, QuotaExceeded)
    array_id = submit_an_array(fabric, 5, tenant=small, priority=5000)
    key = fabric.one("SELECT k.* FROM scheduling_key k JOIN job_array a ON a.key_id = k.id WHERE a.id = %s", array_id)
    assert key.priority < 5000
    assert len(fabric.claim(node)) == 2
    fabric.settings = replace(fabric.settings, array_max=10)
    assert isinstance(refusal(lambda: submit_an_array(fabric, 11)), Invalid)
    assert "bytes" in refusal(lambda: submit_an_array(with_room(fabric), 100_000, script="x" * 2**20)).message


def with_room(fabric: Fabric) -> Fabric:
    fabric.settings = replace(fabric.settings, array_max=10**6)
    return fabric


def test_a_key_covers_the_whole_array(fabric: Fabric) -> None:
    key = IdempotencyKey(fabric.tenant, "POST", "/jobs", "k", b"1")

    def render(array: ArrayView) -> tuple[int, object]:
        return 201, {"id": str(array.id)}

    def send(idempotency: IdempotencyKey) -> tuple[int, object] | None:
        asked = ArrayAsked(3)
        return submit_array(fabric.db, fabric.settings, fabric.tenant, job(), asked, idempotency, render).replay

    assert send(key) is None
    (array,) = arrays.list_arrays(fabric.db, fabric.tenant, 10, 0)
    assert send(key) == (201, {"id": str(array.id)})
    with pytest.raises(KeyReused):
        send(replace(key, body_sha256=b"2"))
    assert fabric.value("SELECT count(*) FROM job") == 3


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("name", ["submit", "arrays", "stop", "retry", "finish"])
def test_a_crash_at_any_commit_loses_and_doubles_no_index(database_url: str, name: str, point: str) -> None:
    faults = FaultPlan([])
    fabric = with_window(make_fabric(database_url, faults), 4)
    node = fabric.add_node()
    try:
        key = IdempotencyKey(fabric.tenant, "POST", "/jobs", "k", b"1")
        faults.faults.append(Fault(name, point, times=1))

        def surely(work: object) -> None:
            for _ in range(3):
                try:
                    work()  # type: ignore[operator]
                except Unavailable:
                    continue
                except StateConflict:
                    pass
                return

        surely(
            lambda: submit_array(
                fabric.db, fabric.settings, fabric.tenant, job(), ArrayAsked(12, 2), key,
                lambda array: (201, {"id": str(array.id)}),
            )
        )  # fmt: skip
        (array,) = arrays.list_arrays(fabric.db, fabric.tenant, 10, 0)
        ran: list[int] = []
        for turn in range(60):
            taken = fabric.claim(node)
            assert open_jobs(fabric, array.id) <= 2
            for one in taken:
                ran.append(int(one.environment["CFAB_ARRAY_INDEX"]))
                surely(lambda one=one: fabric.finish(one, FAILED if ran.count(ran[-1]) == 1 else None))
            surely(lambda: tick(fabric))
            if turn == 10:
                surely(lambda: cancel(fabric, array.id, (10, 12)))
            if not taken and look(fabric, array.id).finished_at is not None:
                if not counts(fabric, array.id)["failed"]:
                    break
                surely(lambda: retry(fabric, array.id))
        assert_sound(fabric, array.id)
        seen = counts(fabric, array.id)
        assert seen["completed"] + seen["cancelled"] == 12
        assert all(ran.count(index) == 2 for index in range(10))
        assert faults.fired == [(name, point)]
    finally:
        fabric.db.close()


def test_two_schedulers_and_many_nodes_make_each_index_once(fabric: Fabric) -> None:
    with_window(fabric, 20)
    array_id = submit_an_array(fabric, 150, 7)
    nodes = [fabric.add_node() for _ in range(4)]
    ran: list[int] = []

    def work(number: int) -> None:
        for _ in range(400):
            if number < 2:
                tick(fabric)
            else:
                for one in fabric.claim(nodes[number - 2], 3):
                    ran.append(int(one.environment["CFAB_ARRAY_INDEX"]))
                    assert open_jobs(fabric, array_id) <= 7
                    fabric.finish(one)
            if len(ran) >= 150:
                return

    at_once(6, work)
    tick(fabric)
    assert sorted(ran) == list(range(150))
    assert look(fabric, array_id).status == "completed"
    assert_sound(fabric, array_id)


def test_an_end_during_an_expansion_loses_no_turn(fabric: Fabric, node: Node, database_url: str) -> None:
    with_window(fabric, 2)
    array_id = submit_an_array(fabric, 5, 1)
    one = fabric.run(node)
    with raw(database_url) as other, other.cursor() as cursor:
        # A finish that has ended the job, and could pass its turn on to nobody, has not committed yet.
        cursor.execute("SELECT 1 FROM job WHERE array_id = %s AND state = 0 FOR UPDATE", (str(array_id),))
        fabric.finish(one)
        assert open_jobs(fabric, array_id) == 0
        other.rollback()
    tick(fabric)
    assert open_jobs(fabric, array_id) == 1
    assert fabric.claim_one(node).environment["CFAB_ARRAY_INDEX"] == "1"
    assert_sound(fabric, array_id)


def test_a_turn_that_is_being_passed_on_is_not_given_twice(fabric: Fabric, node: Node, database_url: str) -> None:
    array_id = submit_an_array(fabric, 5, 1)
    one = fabric.run(node)
    with raw(database_url) as other, other.cursor() as cursor:
        cursor.execute(
            """UPDATE job SET state = 4, attempt_id = NULL, finished_at = now() WHERE id = %s""", (str(one.job_id),)
        )
        arrays_touched = fabric.value("SELECT count(*) FROM array_delta")
        fabric.sql("INSERT INTO array_delta (array_id) VALUES (%s)", array_id)
        assert arrays_touched == 1
        tick(fabric)
        other.commit()
    assert open_jobs(fabric, array_id) == 1
    tick(fabric)
    assert open_jobs(fabric, array_id) == 1


def test_an_array_that_another_advances_is_left_to_it(fabric: Fabric, database_url: str) -> None:
    with_window(fabric, 2)
    array_id = submit_an_array(fabric, 5)
    cancel_pending(fabric.db, fabric.tenant, job_at(fabric, array_id, 0).id)
    with raw(database_url) as other, other.cursor() as cursor:
        cursor.execute("SELECT 1 FROM job_array WHERE id = %s FOR NO KEY UPDATE", (str(array_id),))
        tick(fabric)
        assert fabric.value("SELECT count(*) FROM job") == 2
    tick(fabric)
    assert fabric.value("SELECT count(*) FROM job") == 3


def test_a_cancel_waits_for_a_claim_that_is_under_way(fabric: Fabric, node: Node, database_url: str) -> None:
    array_id = submit_an_array(fabric, 2)
    with raw(database_url) as other, other.cursor() as cursor:
        cursor.execute("SELECT * FROM job WHERE array_id = %s AND array_index = 0 FOR UPDATE", (str(array_id),))
        with in_thread(lambda: cancel(fabric, array_id)) as done:
            until(lambda: fabric.blocked() == 1)
            other.rollback()
            assert done.result().cancelled == 2
    assert look(fabric, array_id).status == "cancelled"


def test_one_array_that_cannot_be_advanced_holds_up_no_other(fabric: Fabric) -> None:
    with_window(fabric, 1)
    bad, good = submit_an_array(fabric, 3), submit_an_array(fabric, 3)
    fabric.sql("UPDATE job_array SET template = template - 'runner' WHERE id = %s", bad)
    for array_id in (bad, good):
        cancel_pending(fabric.db, fabric.tenant, job_at(fabric, array_id, 0).id)
    done = arrays.advance(fabric.db, fabric.settings)
    assert [str(bad) in alert for alert in done.detail["alerts"]] == [True]
    assert job_at(fabric, good, 1).state == JobState.PENDING


def test_old_arrays_are_forgotten_after_their_jobs(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 1)
    fabric.finish(fabric.run(node))
    tick(fabric)
    fabric.sql("UPDATE job_array SET finished_at = now() - interval '100 days'")
    assert arrays.forget(fabric.db, fabric.settings).detail == {"forgotten": 0}
    fabric.sql("DELETE FROM job")
    assert arrays.forget(fabric.db, fabric.settings).detail == {"forgotten": 1}
    assert isinstance(refusal(lambda: look(fabric, array_id)), NotFound)


def test_what_an_array_asks_for_reaches_each_job(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(
        fabric, 2, time_limit_s=60.0, grace_s=3.0, max_retries=4, arguments=("a", "b"),
        resources=Resources(2000, 2**30),
    )  # fmt: skip
    one = fabric.claim_one(node)
    assert (one.time_limit_s, one.grace_s, one.arguments, one.hard_limits) == (60.0, 3.0, ("a", "b"), True)
    assert one.resources == Resources(2000, 2**30)
    spec = fabric.one("SELECT * FROM job_spec WHERE job_id = %s", job_at(fabric, array_id, 1).id)
    assert (spec.max_retries, spec.members) == (4, 1)
