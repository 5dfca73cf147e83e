"""Explanations tell of room that is kept: for the job itself, in the planner's words, or for others before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.domain.explain import Code
from app.domain.job import DEFAULT_TENANT
from app.services.explain import Explanation, explain
from scheduler.plan import run_plan
from tests.factories import FOREGROUND, Fabric, job, share


def _explain(fabric: Fabric, job_id: Any) -> Explanation:
    return explain(fabric.db, fabric.settings, DEFAULT_TENANT, job_id)


def test_room_that_is_kept_for_others_is_told_and_for_whom_is_not(fabric: Fabric) -> None:
    fabric.settings = replace(fabric.settings, reserve_after_s=0.0)
    node = fabric.add_node(cpus=4)
    fabric.submit(job(resources=share(cpus=2)))
    fabric.run(node)
    large, small = fabric.submit(job(resources=share(cpus=4)), job(resources=share(cpus=1)))
    run_plan(fabric.db, fabric.settings)
    own = _explain(fabric, large).causes[0]
    assert own.code == Code.RESERVED and own.message.startswith("Room is kept on one node for it"), own
    assert own.numbers["starts_in_s"] is None
    other = _explain(fabric, small)
    assert other.causes[0].code == Code.KEPT, other.causes
    assert node.id in other.causes[0].message and str(large) not in other.causes[0].message
    urgent = fabric.submit_one(priority_class=FOREGROUND, resources=share(cpus=1))
    assert _explain(fabric, urgent).causes[0].code == Code.STARTS_NOW


def test_nothing_is_kept_that_is_over(fabric: Fabric) -> None:
    fabric.settings = replace(fabric.settings, reserve_after_s=0.0)
    node = fabric.add_node(cpus=4)
    fabric.submit(job(resources=share(cpus=2)))
    fabric.run(node)
    small = fabric.submit(job(resources=share(cpus=4)), job(resources=share(cpus=1)))[1]
    run_plan(fabric.db, fabric.settings)
    fabric.sql("UPDATE reservation SET expires_at = now()")
    assert Code.KEPT not in {cause.code for cause in _explain(fabric, small).causes}
