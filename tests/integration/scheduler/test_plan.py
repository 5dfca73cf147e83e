"""The task `plan` on a real database: who is placed, what is kept, who makes room, and that nothing leaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from app.domain.dependency import After
from app.domain.errors import Unavailable
from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.policy import Ending
from app.domain.states import JobState, StopCause
from app.services import control, dependencies
from app.services.passes import Pass
from app.services.stop import cancel_pending
from app.storage import upkeep
from app.storage.faults import parse_faults
from scheduler.plan import APPLY_S, PART_OF_TIME, lasts_s, run_plan
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, Node, at_once, gpu, job, make_fabric, share

RULES: dict[str, Any] = {"min_runtime_s": 0.0, "reserve_after_s": 0.0}
RUNNERS = ("process", "gang-process")


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    """A fabric whose planner waits for nothing."""
    fabric = make_fabric(database_url, **RULES)
    yield fabric
    fabric.db.close()


def _plan(fabric: Fabric, **settings: Any) -> Pass:
    """One cycle, however long the last one took."""
    fabric.sql("UPDATE task_run SET detail = detail - 'at' WHERE name = 'plan'")
    return run_plan(fabric.db, replace(fabric.settings, **settings))


def _gang(fabric: Fabric, members: int, tenant: UUID | None = None, **changes: Any) -> UUID:
    return fabric.submit(job(members=members, **changes), tenant=tenant)[0]


def _reserved(fabric: Fabric) -> int:
    return int(fabric.value("SELECT count(*) FROM reservation"))


def _fill(fabric: Fabric, node: Node, count: int, **changes: Any) -> list[Assignment]:
    fabric.submit(*[job(**changes) for _ in range(count)])
    taken = fabric.claim(node)
    fabric.start(*taken)
    assert len(taken) == count
    return taken


def _note(fabric: Fabric, job_id: UUID) -> Any:
    return fabric.one("SELECT reason, message, numbers FROM plan_note WHERE job_id = %s", job_id)


def test_a_gang_is_placed_whole_and_its_nodes_are_woken(fabric: Fabric) -> None:
    nodes = [fabric.add_node(f"n{i}", slots=1, runners=RUNNERS) for i in range(3)]
    gang = _gang(fabric, 3)
    done = _plan(fabric)
    assert (done.wake, done.detail["placed"]) == ({"n0", "n1", "n2"}, 1)
    assert [len(fabric.claim(node)) for node in nodes] == [1, 1, 1]
    assert len(fabric.attempts(gang)) == 3


def test_a_gang_that_does_not_fit_takes_nothing_and_says_why(fabric: Fabric) -> None:
    fabric.add_node(slots=2, runners=RUNNERS)
    gang = _gang(fabric, 3)
    _plan(fabric)
    assert fabric.attempts(gang) == []
    assert _note(fabric, gang).reason == "too_large"
    assert "2 of 3 members" in _note(fabric, gang).message
    fabric.add_node(slots=2, runners=RUNNERS)
    _plan(fabric)
    assert fabric.state(gang) == JobState.STARTING
    assert fabric.all("SELECT * FROM plan_note") == []


def test_a_large_job_is_not_starved_by_a_stream_of_small_ones(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=4)
    running = _fill(fabric, node, 4, resources=share(cpus=1))
    large = fabric.submit(job(resources=share(cpus=4)), job(resources=share(cpus=1)))[0]
    _plan(fabric)
    assert _note(fabric, large).reason == "reserved"
    while running:
        fabric.submit_one(resources=share(cpus=1))
        fabric.finish(running.pop())
        assert fabric.claim(node) == []
        _plan(fabric)
    assert fabric.state(large) == JobState.STARTING
    assert _reserved(fabric) == 0
    assert [a.job_id for a in fabric.claim(node)] == [large]


def test_without_a_planner_small_jobs_do_starve_it(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=4)
    running = _fill(fabric, node, 4, resources=share(cpus=1))
    large = fabric.submit_one(resources=share(cpus=4))
    fabric.submit_one(resources=share(cpus=1))
    fabric.finish(running.pop())
    assert len(fabric.claim(node)) == 1
    assert fabric.state(large) == JobState.PENDING


def test_a_job_that_ends_in_time_runs_in_the_hole(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=4)
    _fill(fabric, node, 1, resources=share(cpus=3), time_limit_s=600)
    large, late, short = fabric.submit(
        job(resources=share(cpus=4)),
        job(resources=share(cpus=1), time_limit_s=6000),
        job(resources=share(cpus=1), time_limit_s=60),
    )
    assert _plan(fabric).wake == {node.id}
    assert [a.job_id for a in fabric.claim(node)] == [short]
    assert fabric.state(large) == fabric.state(late) == JobState.PENDING


def test_room_is_made_by_the_cheapest_of_lower_rank_and_is_the_preemptors(fabric: Fabric) -> None:
    low = fabric.add_tenant(tier="critical")
    high = fabric.add_tenant(tier="critical", can_preempt_others=True)
    node = fabric.add_node(cpus=2, gpus=[gpu(0), gpu(1)])
    fabric.submit(*[job(priority_class=BEST_EFFORT, resources=share(gpus=1)) for _ in range(2)], tenant=low)
    old, new = fabric.run(node), fabric.run(node)
    fabric.sql("UPDATE attempt SET started_at = now() - interval '1 hour' WHERE id = %s", old.attempt_id)
    urgent = fabric.submit(job(priority_class=FOREGROUND, resources=share(gpus=1)), tenant=high)[0]
    done = _plan(fabric)
    assert done.wake == {node.id}
    assert fabric.renew(node, old, new).stops == {new.attempt_id: (StopCause.PREEMPT, new.grace_s)}
    assert _note(fabric, urgent).reason == "preempting"
    assert "job of tier critical" in fabric.row(new.job_id).stop_reason
    fabric.submit(job(priority_class=BEST_EFFORT, resources=share(gpus=1)), tenant=low)
    fabric.finish(new, Ending(signal=15, stopped=True))
    assert fabric.claim(node) == []
    _plan(fabric)
    assert [a.job_id for a in fabric.claim(node)] == [urgent]
    victim = fabric.row(new.job_id)
    assert (victim.state, victim.ready, victim.reason, victim.failures) == (0, True, "preempted", 0)
    assert fabric.state(old.job_id) == JobState.RUNNING


def test_a_checkpoint_makes_a_victim_cheap(fabric: Fabric) -> None:
    high = fabric.add_tenant(tier="critical", can_preempt_others=True)
    node = fabric.add_node(gpus=[gpu(0), gpu(1)])
    fabric.submit(*[job(priority_class=BEST_EFFORT, resources=share(gpus=1)) for _ in range(2)])
    saved, fresh = fabric.run(node), fabric.run(node)
    fabric.sql("UPDATE attempt SET started_at = now() - interval '2 hours' WHERE id = %s", saved.attempt_id)
    fabric.sql("UPDATE attempt SET started_at = now() - interval '1 hour' WHERE id = %s", fresh.attempt_id)
    fabric.sql("UPDATE attempt SET checkpoint_at = now() - interval '1 minute' WHERE id = %s", saved.attempt_id)
    fabric.submit(job(priority_class=FOREGROUND, resources=share(gpus=1)), tenant=high)
    _plan(fabric)
    assert list(fabric.renew(node, saved, fresh).stops) == [saved.attempt_id]


@pytest.mark.parametrize("who", ["job", "tenant", "young", "equal", "may_not"])
def test_nobody_makes_room_against_policy(fabric: Fabric, who: str) -> None:
    low = fabric.add_tenant(tier="critical", allow_preemption=who != "tenant")
    high = fabric.add_tenant(tier="critical", can_preempt_others=who != "may_not")
    node = fabric.add_node(slots=1)
    mine = FOREGROUND if who == "equal" else BEST_EFFORT
    fabric.submit(job(priority_class=mine, preemptible=False if who == "job" else None), tenant=low)
    fabric.run(node)
    fabric.submit(job(priority_class=FOREGROUND), tenant=high)
    done = _plan(fabric, min_runtime_s=600.0 if who == "young" else 0.0)
    assert not done.wake
    assert fabric.value("SELECT count(*) FROM job WHERE state = 3") == 0


def test_a_job_may_offer_itself_where_its_tenant_does_not(fabric: Fabric) -> None:
    low = fabric.add_tenant(tier="critical", allow_preemption=False)
    high = fabric.add_tenant(tier="critical", can_preempt_others=True)
    node = fabric.add_node(slots=1)
    fabric.submit(job(priority_class=BEST_EFFORT, preemptible=True), tenant=low)
    assert fabric.run(node).preemptible
    fabric.submit(job(priority_class=FOREGROUND), tenant=high)
    assert _plan(fabric).wake == {node.id}


def test_an_old_job_of_the_lowest_class_has_its_turn(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=4)
    running = _fill(fabric, node, 4, resources=share(cpus=1), priority_class=FOREGROUND)
    old = fabric.submit_one(resources=share(cpus=2), priority_class=BEST_EFFORT)
    fabric.sql("UPDATE job SET created_at = now() - interval '2 hours' WHERE id = %s", old)
    for _ in range(2):
        fabric.submit_one(resources=share(cpus=1), priority_class=FOREGROUND)
        fabric.finish(running.pop())
        _plan(fabric, starvation_s=3600.0)
        taken = fabric.claim(node)
    assert [a.job_id for a in taken] == [old]


@pytest.mark.parametrize("way", ["held", "after another"])
def test_only_time_in_which_a_job_could_have_started_makes_it_old(fabric: Fabric, way: str) -> None:
    node = fabric.add_node(cpus=2)
    parent = fabric.submit_one(resources=share(cpus=2))
    running = fabric.run(node)
    asked: dict[str, Any] = {"hold": True} if way == "held" else {"after": (After(parent),)}
    late = fabric.submit_one(resources=share(cpus=2), priority_class=BEST_EFFORT, **asked)
    fabric.sql("UPDATE job SET created_at = now() - interval '2 hours' WHERE id = %s", late)
    urgent = fabric.submit_one(resources=share(cpus=2), priority_class=FOREGROUND)
    fabric.finish(running)
    if way == "held":
        with fabric.db.transaction("control") as tx:
            control.release_in(tx, control.Caller("ann", None), late)
    else:
        dependencies.release(fabric.db, fabric.settings)
    assert fabric.row(late).ready
    _plan(fabric, starvation_s=3600.0)
    assert [a.job_id for a in fabric.claim(node)] == [urgent]
    assert fabric.state(late) == JobState.PENDING


def test_a_tenant_that_used_more_lately_goes_after_others(fabric: Fabric) -> None:
    greedy, modest = fabric.add_tenant("greedy", tier="critical"), fabric.add_tenant("modest", tier="critical")
    node = fabric.add_node(slots=1)
    fabric.submit(*[job(resources=share(cpus=8)) for _ in range(3)], tenant=greedy)
    first = fabric.run(node)
    _plan(fabric)
    assert fabric.value("SELECT average FROM tenant_share WHERE tenant_id = %s", greedy) == 0
    fabric.sql("UPDATE tenant_share SET at = now() - interval '1 day'")
    _plan(fabric, fair_share_half_life_s=86_400.0)
    assert fabric.value("SELECT average FROM tenant_share WHERE tenant_id = %s", greedy) == pytest.approx(4, rel=0.01)
    fabric.submit(*[job(resources=share(cpus=8)) for _ in range(2)], tenant=modest)
    fabric.finish(first)
    # What it used yesterday counts against it still, although it holds nothing now.
    assert fabric.claim_one(node).tenant_id == modest


def test_what_was_used_is_forgotten(fabric: Fabric) -> None:
    tenant = fabric.add_tenant("past", tier="critical")
    fabric.sql("INSERT INTO tenant_share (tenant_id, average, at) VALUES (%s, 8, now() - interval '10 hours')", tenant)
    _plan(fabric, fair_share_half_life_s=3600.0)
    assert fabric.value("SELECT average FROM tenant_share") == pytest.approx(8 / 1024, rel=0.01)
    fabric.sql("UPDATE tenant_share SET at = now() - interval '10 hours'")
    _plan(fabric, fair_share_half_life_s=3600.0)
    fabric.sql("UPDATE tenant_share SET at = now() - interval '10 hours'")
    _plan(fabric, fair_share_half_life_s=3600.0)
    assert fabric.all("SELECT * FROM tenant_share") == []


def _reserve_on(fabric: Fabric) -> tuple[Node, UUID]:
    """A full node with a reservation for a large job."""
    node = fabric.add_node(cpus=4)
    _fill(fabric, node, 2, resources=share(cpus=2))
    large = fabric.submit(job(resources=share(cpus=4)), job(resources=share(cpus=1)))[0]
    _plan(fabric)
    assert _reserved(fabric) == 1
    return node, large


@pytest.mark.parametrize("fault", ["cancelled", "node", "expired", "drained"])
def test_no_fault_leaks_a_reservation(fabric: Fabric, fault: str) -> None:
    node, large = _reserve_on(fabric)
    match fault:
        case "cancelled":
            cancel_pending(fabric.db, DEFAULT_TENANT, large)
        case "node":
            fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
        case "drained":
            fabric.sql("UPDATE node SET state = 'draining'")
        case "expired":
            # A dead scheduler: nobody plans, time passes.
            fabric.sql("UPDATE reservation SET expires_at = now()")
            fabric.sql("UPDATE node SET cpus_milli = 5000")
            assert len(fabric.claim(node)) == 1
            return
    _plan(fabric)
    assert _reserved(fabric) == 0


def test_two_planners_at_once_do_no_harm(fabric: Fabric) -> None:
    nodes = [fabric.add_node(f"n{i}", slots=4, runners=RUNNERS) for i in range(2)]
    gangs = [_gang(fabric, 3) for _ in range(4)]
    at_once(4, lambda _i: _plan(fabric))
    for node in nodes:
        fabric.claim(node)
    _plan(fabric)
    assert sum(fabric.state(gang) == JobState.STARTING for gang in gangs) == 2
    assert fabric.value("SELECT max(n) FROM (SELECT count(*) AS n FROM allocation GROUP BY node_id) u") <= 4


def test_one_planner_waits_for_no_other(fabric: Fabric) -> None:
    fabric.add_node(runners=RUNNERS)
    gang = _gang(fabric, 2)
    with fabric.db.transaction() as tx:
        assert upkeep.try_task_lock(tx, "plan")
        assert not _plan(fabric).ran
    assert fabric.state(gang) == JobState.PENDING
    assert _plan(fabric).ran
    assert fabric.state(gang) == JobState.STARTING


@pytest.mark.parametrize("point", ["reserve:before", "reserve:after", "place:before", "place:after", "notes:before"])
def test_a_scheduler_that_dies_between_two_steps_leaves_order(fabric: Fabric, point: str) -> None:
    nodes = [fabric.add_node(f"n{i}", slots=2, runners=RUNNERS) for i in range(2)]
    gang, later = _gang(fabric, 3), _gang(fabric, 4)
    _plan(fabric)
    for node in nodes:
        fabric.claim(node)
    leader = fabric.row(gang).attempt_id
    fabric.db.faults = parse_faults(f"{point}:1.0")
    other = _gang(fabric, 1 + 1)
    try:
        _plan(fabric)
    except Unavailable:
        pass
    fabric.db.faults = None
    _plan(fabric)
    assert fabric.row(gang).attempt_id == leader
    assert {fabric.state(later), fabric.state(other)} <= {JobState.PENDING, JobState.STARTING}
    whole = """SELECT count(*) FROM attempt a JOIN job_spec s USING (job_id) WHERE a.outcome IS NULL
        GROUP BY a.leader_id, s.members HAVING count(*) <> s.members"""
    assert fabric.all(whole) == []
    assert fabric.value("SELECT max(n) FROM (SELECT count(*) AS n FROM allocation GROUP BY node_id) u") <= 2


def test_a_planner_that_takes_long_plans_less_often(fabric: Fabric) -> None:
    fabric.add_node(runners=RUNNERS)
    assert _plan(fabric).ran
    fabric.sql("""UPDATE task_run SET detail = detail || '{"plan_s": 60, "took_s": 0}' WHERE name = 'plan'""")
    gang = _gang(fabric, 2)
    for _ in range(2):
        run_plan(fabric.db, fabric.settings)
    assert fabric.state(gang) == JobState.PENDING
    fabric.sql("""UPDATE task_run SET detail = detail || '{"load_s": 0, "plan_s": 0, "took_s": 60}'""")
    run_plan(fabric.db, fabric.settings)
    assert fabric.state(gang) == JobState.STARTING


@pytest.mark.parametrize("worked_s", [0.0, 1.0, 60.0])
def test_what_a_slow_cycle_reserves_outlasts_its_rest(fabric: Fabric, worked_s: float) -> None:
    # A reservation is renewed when half of its time is over.
    rest_s = worked_s / PART_OF_TIME
    assert lasts_s(fabric.settings, worked_s) / 2 > rest_s + APPLY_S


def test_few_heads_of_each_key_are_read_whatever_the_backlog(fabric: Fabric) -> None:
    fabric.submit(*[job() for _ in range(300)], *[job(priority_class=BACKGROUND, members=2) for _ in range(300)])
    assert _plan(fabric).detail["waiting"] == 16
