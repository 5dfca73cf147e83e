"""A job that waited too long has its tenant's quota kept for it, against endless smaller jobs of the tenant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from app.domain.explain import Code
from app.domain.job import Assignment
from app.domain.states import JobState
from app.services import control
from app.services.explain import explain
from app.services.inspect import job_detail
from app.services.place import Spot, place
from app.services.stop import cancel_pending
from app.services.tenants import change
from scheduler.plan import run_plan
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, Node, gpu, job, make_fabric, share
from tests.integration.services.test_quotas_exact import OVER

RUNNERS = ("process", "gang-process")
ROUNDS = 12


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    """A fabric whose planner waits for nothing."""
    fabric = make_fabric(database_url, min_runtime_s=0.0, reserve_after_s=0.0)
    yield fabric
    fabric.db.close()


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node("n0", cpus=64, runners=RUNNERS)


def _plan(fabric: Fabric) -> None:
    """One cycle, however long the last one took."""
    fabric.sql("UPDATE task_run SET detail = detail - 'at' WHERE name = 'plan'")
    run_plan(fabric.db, replace(fabric.settings, starvation_s=3600.0))


def _age(fabric: Fabric, job_id: UUID, hours: int = 3) -> UUID:
    fabric.sql("UPDATE job SET created_at = now() - make_interval(hours => %s) WHERE id = %s", hours, job_id)
    return job_id


def _small(fabric: Fabric, tenant: UUID, count: int = 1, **changes: Any) -> list[UUID]:
    asked = {"priority_class": BEST_EFFORT, "resources": share(cpus=1), **changes}
    return fabric.submit(*[job(**asked) for _ in range(count)], tenant=tenant)


def _run(fabric: Fabric, node: Node) -> list[Assignment]:
    taken = fabric.claim(node)
    fabric.start(*taken)
    return taken


def _full(fabric: Fabric, node: Node, tenant: UUID, **changes: Any) -> list[Assignment]:
    """Four small jobs run, and one more waits."""
    _small(fabric, tenant, 4, **changes)
    live = _run(fabric, node)
    assert len(live) == 4
    _small(fabric, tenant, **changes)
    return live


def _ended_before(fabric: Fabric, node: Node, live: list[Assignment], starved: UUID, **changes: Any) -> int:
    """How many small jobs ended until the starved one started, while another came for each; no quota is ever broken."""
    tenant = fabric.row(starved).tenant_id
    for ended in range(ROUNDS):
        if fabric.state(starved) != JobState.PENDING:
            return ended
        assert live, "nothing of its tenant runs, and it does not start"
        _small(fabric, tenant, **changes)
        fabric.finish(live.pop(0))
        _plan(fabric)
        live += [one for one in _run(fabric, node) if one.job_id != starved]
        assert fabric.all(OVER) == []
        fabric.assert_in_order()
    return ROUNDS


def _held(fabric: Fabric) -> list[UUID]:
    return [row.job_id for row in fabric.all("SELECT job_id FROM quota_hold ORDER BY made_at, job_id")]


def _waits(fabric: Fabric, node: Node, tenant: UUID, members: int = 4) -> tuple[UUID, list[Assignment]]:
    """An old gang that waits for its tenant's quota, which is kept for it; one job of it is free, three run."""
    live = _full(fabric, node, tenant)
    gang = _age(fabric, fabric.submit(job(members=members), tenant=tenant)[0])
    fabric.finish(live.pop())
    _plan(fabric)
    assert _held(fabric) == [gang]
    assert fabric.claim(node) == []
    return gang, live


def test_a_gang_is_not_starved_by_small_jobs_of_its_own_tenant(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=4, tier="critical")
    live = _full(fabric, node, tenant)
    gang = _age(fabric, fabric.submit(job(members=4, priority_class=FOREGROUND), tenant=tenant)[0])
    assert _ended_before(fabric, node, live, gang) == 4
    assert len(fabric.attempts(gang)) == 4


@pytest.mark.parametrize("cls", [FOREGROUND, BEST_EFFORT])
def test_a_plain_job_is_not_starved_by_smaller_ones_of_its_own_tenant(fabric: Fabric, node: Node, cls: Any) -> None:
    tenant = fabric.add_tenant(quota_cpus_milli=4000, tier="critical")
    live = _full(fabric, node, tenant)
    large = _age(fabric, _small(fabric, tenant, resources=share(cpus=4), priority_class=cls)[0])
    assert _ended_before(fabric, node, live, large) == 4


def test_small_jobs_that_never_wait_starve_nobody_either(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_cpus_milli=4000, tier="critical")
    _small(fabric, tenant, 4)
    live = _run(fabric, node)
    large = _age(fabric, _small(fabric, tenant, resources=share(cpus=4))[0])
    _plan(fabric)
    fabric.finish(live.pop())
    _small(fabric, tenant)
    assert _run(fabric, node) == []
    assert _held(fabric) == [large]


def test_a_job_is_not_starved_by_a_better_class_of_its_own_tenant(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=4, tier="critical")
    better = {"priority_class": FOREGROUND}
    live = _full(fabric, node, tenant, **better)
    old = _age(fabric, _small(fabric, tenant)[0])
    assert _ended_before(fabric, node, live, old, **better) == 1


def test_what_a_hold_leaves_others_may_have_and_other_tenants_have_all_of_theirs(fabric: Fabric, node: Node) -> None:
    tenant, other = fabric.add_tenant(quota_jobs=6), fabric.add_tenant(quota_jobs=2)
    _small(fabric, tenant, 3)
    live = _run(fabric, node)
    gang = _age(fabric, fabric.submit(job(members=4), tenant=tenant)[0])
    _plan(fabric)
    fabric.finish(live.pop())
    assert _held(fabric) == [gang]
    # Two run, four are kept.
    _small(fabric, tenant, 3)
    assert fabric.claim(node) == []
    fabric.finish(live.pop())
    _small(fabric, other, 3)
    of = [fabric.row(one.job_id).tenant_id for one in _run(fabric, node)]
    assert sorted(of) == sorted([tenant, other, other])
    _plan(fabric)
    assert fabric.state(gang) == JobState.STARTING
    _plan(fabric)
    assert _held(fabric) == []


def test_what_may_not_start_for_a_hold_hides_nothing_that_may(fabric: Fabric) -> None:
    node = fabric.add_node("g0", gpus=[gpu(n) for n in range(8)], runners=RUNNERS)
    tenant = fabric.add_tenant(quota_gpus=4, tier="critical")
    live = _full(fabric, node, tenant, resources=share(gpus=1))
    _age(fabric, fabric.submit(job(members=2, resources=share(gpus=2)), tenant=tenant)[0])
    _plan(fabric)
    fabric.finish(live.pop())
    for priority in range(10):
        _small(fabric, tenant, priority=100 + priority, resources=share(gpus=1))
    (plain,) = _small(fabric, tenant)
    assert [one.job_id for one in fabric.claim(node)] == [plain]


def test_jobs_that_are_served_in_turn_need_nothing_kept(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=4)
    live = _full(fabric, node, tenant)
    _small(fabric, tenant, 3)
    for waits in fabric.all("SELECT id FROM job WHERE state = 0"):
        _age(fabric, waits.id)
    _plan(fabric)
    assert _held(fabric) == []
    fabric.finish(live[0])
    assert len(fabric.claim(node)) == 1


def test_nothing_is_kept_for_what_the_quota_or_the_fabric_could_never_hold(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=4)
    _full(fabric, node, tenant)
    _age(fabric, _small(fabric, tenant, resources=share(cpus=65))[0])
    gang = _age(fabric, fabric.submit(job(members=4), tenant=tenant)[0])
    fabric.sql("UPDATE tenant SET quota_jobs = 3 WHERE id = %s", tenant)
    _plan(fabric)
    assert _held(fabric) == []
    change(fabric.db, tenant, {"quota": {"jobs": 4}})
    _plan(fabric)
    assert _held(fabric) == [gang]


def test_a_hold_ends_by_itself_when_the_scheduler_died_and_stays_while_it_plans(fabric: Fabric, node: Node) -> None:
    gang, _live = _waits(fabric, node, fabric.add_tenant(quota_jobs=4))
    made = fabric.value("SELECT made_at FROM quota_hold")
    fabric.sql("UPDATE quota_hold SET expires_at = now() + interval '1 second'")
    _plan(fabric)
    assert fabric.value("SELECT expires_at > now() + interval '30 seconds' FROM quota_hold")
    assert (fabric.value("SELECT made_at FROM quota_hold"), _held(fabric)) == (made, [gang])
    fabric.sql("UPDATE quota_hold SET expires_at = now()")
    assert len(fabric.claim(node)) == 1


def _cancel(fabric: Fabric, tenant: UUID, job_id: UUID) -> None:
    cancel_pending(fabric.db, tenant, job_id, "ann")


def _put_on_hold(fabric: Fabric, tenant: UUID, job_id: UUID) -> None:
    with fabric.db.transaction() as tx:
        control.hold_in(tx, control.Caller("ann", tenant), job_id)


def _change_quota(fabric: Fabric, tenant: UUID, _job_id: UUID) -> None:
    change(fabric.db, tenant, {"quota": {"jobs": 4}})


@pytest.mark.parametrize("end", [_cancel, _put_on_hold, _change_quota])
def test_a_hold_ends_with_its_reason(fabric: Fabric, node: Node, end: Any) -> None:
    tenant = fabric.add_tenant(quota_jobs=4)
    end(fabric, tenant, _waits(fabric, node, tenant)[0])
    assert len(fabric.claim(node)) == 1


def test_placements_of_any_class_leave_it_alone_as_well_and_its_own_does_not(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=4, tier="critical")
    gang, live = _waits(fabric, node, tenant, members=2)
    urgent = fabric.submit(job(members=2, priority_class=FOREGROUND), tenant=tenant)[0]
    for one in live[:2]:
        fabric.finish(one)
    spots = [Spot(node.id), Spot(node.id)]
    # One runs, two are kept.
    assert "quota" in place(fabric.db, urgent, spots, FOREGROUND, 60.0).refusal
    assert place(fabric.db, gang, spots, BACKGROUND, 60.0).nodes == {node.id}
    assert fabric.all(OVER) == []


def test_the_explanations_of_all_jobs_of_the_tenant_tell_of_it(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant("vision", quota_jobs=4)
    gang, live = _waits(fabric, node, tenant)
    small = fabric.value("SELECT id FROM job WHERE state = 0 AND id <> %s", gang)
    (cause, *_rest) = explain(fabric.db, fabric.settings, tenant, gang).causes
    assert cause.code == Code.QUOTA
    assert cause.message == (
        "Tenant vision holds 3 of 4 jobs; this job asks 4 jobs more. What comes free is kept for it: it has waited too"
        " long."
    )
    (cause, *_rest) = explain(fabric.db, fabric.settings, tenant, small).causes
    assert (cause.code, cause.numbers["kept_for"]) == (Code.QUOTA_KEPT, str(gang))
    assert cause.numbers["limits"] == {"jobs": {"limit": 4, "used": 3, "asks": 1, "kept": 4}}
    assert cause.message == (
        f"Tenant vision holds 3 of 4 jobs, and what is left is kept for job {gang}, which has waited too long and needs"
        " 4 jobs; this job asks 1 job more."
    )
    assert job_detail(fabric.db, tenant, small).job.message == cause.message
    for one in live:
        fabric.finish(one)
    assert [one.code for one in explain(fabric.db, fabric.settings, tenant, gang).causes] == [Code.STARTS_NOW]


def test_a_plain_job_that_has_its_quota_is_started_by_the_next_plan(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant("vision", quota_cpus_milli=4000)
    live = _full(fabric, node, tenant)
    large = _age(fabric, _small(fabric, tenant, resources=share(cpus=4))[0])
    _plan(fabric)
    for one in live:
        fabric.finish(one)
    assert fabric.claim(node) == []
    (cause,) = explain(fabric.db, fabric.settings, tenant, large).causes
    assert (cause.code, cause.message) == (
        Code.RESERVED,
        "Tenant vision's quota is kept for this job and has room for it now: the scheduler starts it as soon as a node"
        " has.",
    )
    assert job_detail(fabric.db, tenant, large).job.reason == "new"
    _plan(fabric)
    assert [one.job_id for one in fabric.claim(node)] == [large]


def test_the_plan_notes_what_it_keeps_of_a_quota(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=4)
    gang, _live = _waits(fabric, node, tenant)
    pair = fabric.submit(job(members=2), tenant=tenant)[0]
    _plan(fabric)
    told = {row.job_id: (row.reason, row.message) for row in fabric.all("SELECT * FROM plan_note")}
    assert told[gang] == (
        "quota_kept",
        "Its tenant's quota has 1 job left of the 4 jobs that it needs; what comes free is kept for it, whatever else"
        " of its tenant waits.",
    )
    assert told[pair] == (
        "quota_behind",
        f"Its tenant's quota has 1 job left; 4 jobs are kept for job {gang}, which has waited too long, and this one"
        " needs 2 jobs.",
    )
