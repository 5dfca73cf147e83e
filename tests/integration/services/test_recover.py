"""The reaper, the promoter and the sweeper: bounded, repeatable, and none of them ever hides or ends a job wrongly."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.domain.job import DEFAULT_TENANT, Assignment, Submitted
from app.domain.policy import POISON_NODES, Ending
from app.domain.states import JobState, Reason, StopCause
from app.services import recover, report
from app.services.logs import read_log
from app.services.stop import request_stop
from app.services.submit import IdempotencyKey, submit
from app.storage import keys, upkeep
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, Node, finished, job, share, until

# -- reap ------------------------------------------------------------------------------------------------------


def test_a_job_whose_lease_ran_out_waits_again_and_pays_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.expire()
    done = fabric.reap()
    row = fabric.row(taken.job_id)
    assert (done.detail["reaped"], done.ready) == (1, {BACKGROUND})
    assert (row.state, row.ready, row.reason, row.failures) == (JobState.PENDING, True, Reason.LOST, 0)
    assert row.lost_nodes == [node.id]
    assert fabric.attempts(taken.job_id)[0].outcome == "lost"
    fabric.assert_in_order()


def test_the_log_of_a_lost_attempt_says_that_more_may_have_been_printed(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(), job())
    started, waiting = fabric.claim(node, 2)
    fabric.start(started)
    fabric.expire()
    fabric.reap()
    assert [(a.outcome, a.log_gap) for a in fabric.attempts(started.job_id)] == [("lost", True)]
    assert [(a.outcome, a.log_gap) for a in fabric.attempts(waiting.job_id)] == [("lost", False)]
    log = read_log(fabric.db, DEFAULT_TENANT, started.job_id)
    assert [frame.data for frame in log.frames] == [b"[log gap: output may be missing here]\n"]


def test_one_attempt_that_cannot_be_ended_holds_up_no_other(fabric: Fabric, node: Node) -> None:
    other = fabric.add_tenant()
    fabric.submit_one()
    fabric.submit_one(tenant=other)
    fabric.run(node)
    fabric.run(node)
    fabric.sql("UPDATE usage SET jobs = 0 WHERE tenant_id = %s", other)
    fabric.expire()
    done = fabric.reap()
    assert done.detail["reaped"] == 1
    assert len(done.detail["alerts"]) == 1
    assert done.ready == {BACKGROUND}


def test_a_lease_that_holds_is_left_alone(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    assert fabric.reap().detail["reaped"] == 0
    assert fabric.state(taken.job_id) == JobState.RUNNING


def test_nothing_is_reaped_within_one_lease_of_the_databases_start(fabric: Fabric, node: Node) -> None:
    """Nobody could renew while it was down; it would look as if every node had died."""
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.expire()
    up_s = float(fabric.value("SELECT extract(epoch FROM now() - pg_postmaster_start_time())"))
    done = fabric.reap(lease_s=up_s + 3600)
    assert "just started" in done.detail["waits"]
    assert fabric.state(taken.job_id) == JobState.RUNNING


def test_when_many_leases_expire_at_once_the_reaper_waits_one_lease_and_counts_no_node(
    fabric: Fabric, node: Node
) -> None:
    fabric.submit(*[job()] * 10)
    taken = fabric.claim(node)
    fabric.start(*taken)
    fabric.expire()
    assert "too many" in fabric.reap(lease_s=0.5).detail["waits"]
    assert "too many" in fabric.reap(lease_s=0.5).detail["waits"]
    assert {fabric.state(t.job_id) for t in taken} == {JobState.RUNNING}
    fabric.sql("UPDATE task_run SET detail = jsonb_set(detail, '{mass_since}', '1') WHERE name = 'reap'")
    assert fabric.reap(lease_s=0.5).detail["reaped"] == 10
    assert {tuple(fabric.row(t.job_id).lost_nodes) for t in taken} == {()}
    fabric.assert_in_order()


def test_when_many_leases_expire_at_once_one_attempt_that_cannot_be_ended_holds_up_no_other(
    fabric: Fabric, node: Node
) -> None:
    other = fabric.add_tenant()
    fabric.submit_one(tenant=other)
    fabric.submit(*[job()] * 9)
    taken = fabric.claim(node)
    fabric.start(*taken)
    fabric.sql("UPDATE usage SET jobs = 0 WHERE tenant_id = %s", other)
    fabric.expire()
    assert "too many" in fabric.reap(lease_s=0.5).detail["waits"]
    fabric.sql("UPDATE task_run SET detail = jsonb_set(detail, '{mass_since}', '1') WHERE name = 'reap'")
    done = fabric.reap(lease_s=0.5)
    assert (done.detail["reaped"], len(done.detail["alerts"])) == (9, 1)
    assert {tuple(fabric.row(t.job_id).lost_nodes) for t in taken} == {()}


def test_leases_renewed_while_the_reaper_waited_are_spared(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 10)
    taken = fabric.claim(node)
    fabric.expire()
    fabric.reap()
    fabric.renew(node, *taken[1:])
    assert fabric.reap().detail["reaped"] == 1
    assert sum(fabric.state(t.job_id) == JobState.PENDING for t in taken) == 1


def test_a_few_among_many_are_reaped_without_a_wait(fabric: Fabric) -> None:
    dead, well = fabric.add_node(), fabric.add_node()
    fabric.submit(*[job()] * 46)
    lost = fabric.claim(dead, 6)
    fabric.claim(well, 40)
    fabric.expire(*lost)
    assert fabric.reap().detail["reaped"] == 6


def test_one_pass_is_bounded_and_the_next_goes_on(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 4)
    fabric.claim(node)
    fabric.expire()
    settings = replace(fabric.settings, lease_s=0.001)
    assert [recover.reap(fabric.db, settings, batch=3).detail["reaped"] for _ in range(2)] == [3, 1]


@pytest.mark.parametrize(
    ("cause", "state"), [(StopCause.CANCEL, JobState.CANCELLED), (StopCause.PREEMPT, JobState.PENDING)], ids=str
)
def test_a_lost_job_that_was_being_stopped(fabric: Fabric, node: Node, cause: StopCause, state: JobState) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    request_stop(fabric.db, DEFAULT_TENANT, taken.job_id, "ann", None, cause)
    fabric.expire()
    fabric.reap()
    assert fabric.state(taken.job_id) == state
    fabric.assert_in_order()


def lose(fabric: Fabric, name: str, started: bool = True) -> JobState:
    node = fabric.add_node(name)
    taken = fabric.claim_one(node)
    if started:
        fabric.start(taken)
    fabric.expire()
    fabric.reap()
    return fabric.state(taken.job_id)


def test_a_job_that_ran_on_five_distinct_nodes_that_were_lost_fails(fabric: Fabric) -> None:
    fabric.submit_one(max_retries=9)
    names = ["a", "a", "b", "c", "b", "d"]
    assert [lose(fabric, name) for name in names] == [JobState.PENDING] * 6
    assert lose(fabric, "e") == JobState.FAILED
    fabric.assert_in_order()


def test_nodes_lost_before_the_start_never_poison_a_job(fabric: Fabric) -> None:
    fabric.submit_one()
    assert [lose(fabric, f"n{n}", started=False) for n in range(POISON_NODES + 1)] == [JobState.PENDING] * 6


def test_two_reapers_at_once_do_the_work_of_one(fabric: Fabric, node: Node) -> None:
    with fabric.db.transaction() as tx:
        assert upkeep.try_task_lock(tx, "reap")
        assert not fabric.reap().ran
    assert fabric.reap().ran


# -- promote ---------------------------------------------------------------------------------------------------


def test_a_job_is_ready_again_when_its_backoff_is_over_and_not_before(fabric: Fabric, node: Node) -> None:
    fabric.submit_one(max_retries=1, priority_class=FOREGROUND)
    taken = fabric.run(node)
    fabric.finish(taken, Ending(exit_code=1))
    recover.sweep(fabric.db)
    assert recover.promote(fabric.db).detail["promoted"] == 0
    fabric.due()
    done = recover.promote(fabric.db)
    assert (done.detail["promoted"], done.ready) == (1, {FOREGROUND})
    fabric.assert_in_order()
    assert fabric.claim_one(node).attempt == 2


def test_a_promotion_is_bounded(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job(max_retries=1)] * 5)
    fabric.finish_all(*[finished(t, Ending(exit_code=1)) for t in fabric.claim(node)])
    fabric.due()
    assert [recover.promote(fabric.db, limit=3).detail["promoted"] for _ in range(3)] == [3, 2, 0]
    fabric.assert_in_order()


# -- sweep: low_water and live never hide a job ------------------------------------------------------------------


def test_a_sweep_ends_shapes_without_jobs_and_passes_dead_index_entries(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 120, job(priority=1))
    old = fabric.claim(node) + fabric.claim(fabric.add_node(slots=50), 50)
    recover.sweep(fabric.db)
    assert fabric.value("SELECT low_water FROM scheduling_key WHERE priority = 500") > 100
    fabric.assert_in_order()
    fabric.finish_all(*[finished(t) for t in old])
    fabric.claim(fabric.add_node())
    assert recover.sweep(fabric.db).detail["ended"] == 2
    fabric.assert_in_order()


def test_a_sweep_says_where_jobs_wait(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(priority_class=BEST_EFFORT), job(priority_class=FOREGROUND))
    assert recover.sweep(fabric.db).ready == {FOREGROUND, BEST_EFFORT}


def test_sweeps_take_all_shapes_in_turn(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job(priority=n) for n in range(7)])
    fabric.claim(node)
    fabric.submit(*[job(priority=n) for n in range(2)])
    assert [recover.sweep(fabric.db, limit=3).detail["ended"] for _ in range(3)] == [1, 3, 1]
    fabric.assert_in_order()


def far_behind(fabric: Fabric, node: Node) -> list[Assignment]:
    """Sixty claimed jobs, and a low-water mark beyond them."""
    fabric.submit(*[job(max_retries=3, backoff_s=0.0)] * 130)
    taken = fabric.claim(node, 64)
    fabric.claim(fabric.add_node(), 64)
    recover.sweep(fabric.db)
    assert fabric.value("SELECT low_water FROM scheduling_key") > 100
    return taken


@pytest.mark.parametrize("way", ["failed", "lost", "handed back", "promoted"])
def test_a_job_that_comes_back_lowers_the_mark(fabric: Fabric, node: Node, way: str) -> None:
    first = far_behind(fabric, node)[0]
    if way == "failed":
        fabric.finish(first, Ending(exit_code=1))
    elif way == "lost":
        fabric.expire(first)
        fabric.reap()
    elif way == "handed back":
        recover.hand_back(fabric.db, [recover.Orphan(first.attempt_id, first.token, True)], "x")
    else:
        fabric.sql("UPDATE job_spec SET backoff_s = 60")
        fabric.finish(first, Ending(exit_code=1))
        recover.sweep(fabric.db)
        fabric.due()
        recover.promote(fabric.db)
    fabric.assert_in_order()
    fabric.finish_all(*[finished(t) for t in fabric.claim(fabric.add_node(), 1)])
    assert fabric.attempts(first.job_id)[-1].number == 2


KEY = IdempotencyKey(DEFAULT_TENANT, "POST", "/", "k", b"")


def submit_and(fabric: Fabric, meanwhile: Any) -> None:
    """Submits one job and calls `meanwhile` after the insert, before the commit."""

    def render(_jobs: list[Submitted]) -> tuple[int, Any]:
        meanwhile()
        return 201, {}

    submit(fabric.db, fabric.settings, DEFAULT_TENANT, [job()], KEY, render)


@pytest.mark.parametrize("known", ["new shape", "live shape", "ended shape"])
def test_a_sweep_while_a_submit_is_in_flight_hides_nothing(fabric: Fabric, node: Node, known: str) -> None:
    if known != "new shape":
        fabric.submit_one()
        fabric.claim_one(node)
    if known == "ended shape":
        recover.sweep(fabric.db)
    submit_and(fabric, lambda: recover.sweep(fabric.db))
    fabric.assert_in_order()
    assert len(fabric.claim(node)) == 1


def test_a_submit_that_meets_a_sweep_in_flight_waits_and_revives_the_shape(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    fabric.claim_one(node)
    with ThreadPoolExecutor(1) as beside:
        with fabric.db.transaction() as tx:
            assert keys.settle_keys(tx, keys.idle_keys(tx, 100, 0)) == 1
            submitting = beside.submit(fabric.submit_one)
            until(fabric.blocked)
        submitting.result(20)
    fabric.assert_in_order()
    assert len(fabric.claim(node)) == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_sweep_while_an_end_requeues_hides_nothing(fabric: Fabric, node: Node, alone: bool) -> None:
    taken = far_behind(fabric, node)[0]
    if alone:
        fabric.claim(fabric.add_node())
        recover.sweep(fabric.db)
    with fabric.db.transaction() as tx:
        report.finish_in(tx, [finished(taken, Ending(exit_code=1))])
        recover.sweep(fabric.db)
    fabric.assert_in_order()
    recover.sweep(fabric.db)
    fabric.assert_in_order()


def test_an_end_that_meets_a_sweep_in_flight_waits_and_lowers_the_mark(fabric: Fabric, node: Node) -> None:
    taken = far_behind(fabric, node)[0]
    fabric.claim(fabric.add_node())
    with ThreadPoolExecutor(1) as beside:
        with fabric.db.transaction() as tx:
            assert keys.settle_keys(tx, keys.idle_keys(tx, 100, 0)) == 1
            ending = beside.submit(fabric.finish, taken, Ending(exit_code=1))
            until(fabric.blocked)
        ending.result(20)
    fabric.assert_in_order()


# -- counts, audit, retention --------------------------------------------------------------------------------------


def test_counts_stay_exact_through_every_change_and_every_fold(fabric: Fabric, node: Node) -> None:
    sent = fabric.submit(*[job(type=f"t{n % 3}", priority_class=[FOREGROUND, BACKGROUND][n % 2]) for n in range(12)])
    taken = fabric.claim(node, 8)
    recover.fold_stats(fabric.db, limit=3)
    fabric.start(*taken[:5])
    fabric.finish_all(*[finished(t, Ending(exit_code=n % 2)) for n, t in enumerate(taken[:4])])
    fabric.assert_in_order()
    recover.fold_stats(fabric.db)
    request_stop(fabric.db, DEFAULT_TENANT, sent[-1], "ann")
    fabric.assert_in_order()
    recover.fold_stats(fabric.db)
    assert fabric.value("SELECT count(*) FROM job_count_delta") == 0
    fabric.assert_in_order()


def test_an_audit_finds_nothing_when_all_is_well(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job(resources=share(1))] * 2)
    fabric.finish(fabric.claim(node)[0])
    assert recover.audit(fabric.db).detail["alerts"] == []


@pytest.mark.parametrize(
    "drift",
    [
        "UPDATE usage SET jobs = jobs + 1",
        "UPDATE usage SET cpus_milli = cpus_milli + 1",
        "UPDATE usage SET gpus = gpus + 1",
        "DELETE FROM usage",
        "DELETE FROM allocation",
    ],
)
def test_an_audit_finds_planted_drift_and_mends_nothing(fabric: Fabric, node: Node, drift: str) -> None:
    fabric.submit_one()
    fabric.claim_one(node)
    fabric.sql(drift)
    for _ in range(2):
        (alert,) = recover.audit(fabric.db).detail["alerts"]
        assert f"on {node.id}" in alert


def test_old_partitions_go_and_new_partitions_come(new_fabric: Fabric) -> None:
    fabric = new_fabric
    fabric.sql(
        "CREATE TABLE log_chunk_20200101 PARTITION OF log_chunk FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')"
    )
    done = recover.retain(fabric.db, fabric.settings, ahead=16)
    assert done.detail["dropped"] == ["log_chunk_20200101"]
    assert done.detail["made"] == 3 * 2
    assert recover.retain(fabric.db, fabric.settings, ahead=16).detail["made"] == 0
    fabric.assert_in_order()


@pytest.mark.parametrize("partitioned", [True, False], ids=["a day with a partition", "a day without"])
def test_the_log_of_a_job_that_runs_longer_than_the_retention_stays_that_long_after_its_end(
    new_fabric: Fabric, partitioned: bool
) -> None:
    fabric = new_fabric
    node = fabric.add_node()
    job_id = fabric.submit_one()
    taken = fabric.run(node)
    fabric.sql("UPDATE attempt SET log_day = CURRENT_DATE - 20")
    day = fabric.value("SELECT log_day FROM attempt")
    if partitioned:
        bounds = f"FROM ('{day}') TO ('{day + timedelta(days=1)}')"
        fabric.sql(f"CREATE TABLE log_chunk_{day:%Y%m%d} PARTITION OF log_chunk FOR VALUES {bounds}")
    said = report.Chunk(taken.attempt_id, day, 0, 6, 0, b"hello\n")
    stranger = report.Chunk(uuid4(), day - timedelta(days=1), 0, 1, 0, b"x")
    report.append_output(fabric.db, [said, stranger])

    def kept() -> list[bytes]:
        recover.retain(fabric.db, fabric.settings)
        return [bytes(row.data) for row in fabric.all("SELECT data FROM log_chunk")]

    assert kept() == [b"hello\n"], "while it runs"
    fabric.finish(taken)
    assert fabric.state(job_id) == JobState.COMPLETED
    assert kept() == [b"hello\n"], "when it has ended"
    fabric.sql(
        """UPDATE task_run SET detail = jsonb_set(detail, ARRAY['kept_logs', %s],
            to_jsonb(to_char(CURRENT_DATE - 15, 'YYYYMMDD'))) WHERE name = 'retain'""",
        f"{day:%Y%m%d}",
    )
    assert kept() == [], "later"


def test_jobs_that_ended_long_ago_go_in_bounded_steps_past_those_that_go_on(
    fabric: Fabric, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    hundred_days_ago = time.time_ns() - 100 * 86_400 * 10**9
    with monkeypatch.context() as then:
        then.setattr("app.services.submit.time.time_ns", lambda: hundred_days_ago)
        old = fabric.submit(*[job()] * 6)
    fabric.submit(*[job()] * 2)
    taken = fabric.claim(node)
    late, *early = [one for one in taken if one.job_id in old][1:]
    for one in taken:
        if one.job_id != old[0]:
            fabric.finish(one)
    fabric.sql("UPDATE job SET finished_at = now() - interval '91 days' WHERE state > 3 AND id <> %s", str(late.job_id))
    gone = []
    for _ in range(4):
        gone.append(recover.forget_jobs(fabric.db, fabric.settings, limit=2).detail["job"])
    left = {row.id for row in fabric.all("SELECT id FROM job")}
    assert {old[0], late.job_id} == left & set(old)
    assert len(left) == 4, "what was submitted lately is not even looked at"
    assert (sum(gone), max(gone)) == (len(early), 2)
    assert fabric.value("SELECT count(*) FROM attempt") == 4
    fabric.assert_in_order()


def test_output_written_before_its_days_partition_existed_does_not_stop_retention(new_fabric: Fabric) -> None:
    fabric = new_fabric
    node = fabric.add_node()
    fabric.submit_one()
    taken = fabric.run(node)
    day = fabric.value("SELECT CURRENT_DATE + 16")
    late = report.Chunk(taken.attempt_id, day, 0, 1, 0, b"x")
    report.append_output(fabric.db, [late])
    assert recover.retain(fabric.db, fabric.settings, ahead=17).detail["made"] == 3 * 3 - 1
    assert fabric.value("SELECT count(*) FROM log_chunk") == 1
    fabric.sql("UPDATE log_chunk_default SET log_day = '2020-01-01'")
    recover.retain(fabric.db, fabric.settings, ahead=17)
    assert fabric.value("SELECT count(*) FROM log_chunk") == 0
