"""The route that shows operators what the planner does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from app.api.answers import json_answer, utc
from app.api.auth import OPERATOR, needs
from app.api.hub import hub
from app.api.jobs.blueprint import blueprint
from app.api.jobs.plan_schemas import PlanPage, PlanShown
from app.api.limits import limited
from app.services import plans
from app.services.plans import Cycle, KeptPlace, KeptQuota, MakingRoom, PlanView


@blueprint.route("/plan", methods=["GET"], tags=["nodes"])
@limited("admin")
@needs(OPERATOR)
@blueprint.arguments(PlanPage(), location="query")
@blueprint.response(200, PlanShown)
@blueprint.doc(summary="Show what the planner does")
def show_plan(asked: Mapping[str, Any]) -> Response:
    """The last cycle, what is reserved for whom and until when, for which jobs their tenants' quotas are kept, and who
    was told to make room and is still ending."""
    shared = hub()
    return json_answer(plan_shown(plans.see(shared.db, shared.settings.plan_s, asked["limit"], asked["offset"])))


def plan_shown(seen: PlanView) -> dict[str, Any]:
    """The plan in the contract's words."""
    return {
        "cycle": None if seen.cycle is None else _cycle(seen.cycle),
        "silent_seconds": None if seen.silent_s is None else round(seen.silent_s, 1),
        "late": seen.late,
        "totals": dict(vars(seen.totals)),
        "reserved_jobs": seen.reserved_jobs,
        "reservations_total": seen.kept_in_all,
        "reservations": [_reservation(one) for one in seen.kept],
        "quota_holds_total": seen.quotas_in_all,
        "quota_holds": [_quota_hold(one) for one in seen.quotas],
        "making_room_total": seen.making_room_in_all,
        "making_room": [_making_room(one) for one in seen.making_room],
    }


def _cycle(cycle: Cycle) -> dict[str, Any]:
    return {
        "ended_at": utc(cycle.ended_at),
        "age_seconds": round(cycle.age_s, 1),
        "seconds": cycle.seconds,
        "load_seconds": cycle.load_s,
        "plan_seconds": cycle.plan_s,
        "apply_seconds": cycle.apply_s,
        "nodes": cycle.nodes,
        "running": cycle.running,
        "waiting": cycle.waiting,
        "placed": cycle.placed,
        "refused": cycle.refused,
        "reserved": cycle.reserved,
        "preempted": cycle.preempted,
    }


def _reservation(one: KeptPlace) -> dict[str, Any]:
    return {
        "job_id": str(one.job_id),
        "type": one.type,
        "tenant": one.tenant,
        "effective_class": one.priority_class.word,
        "counts_as": one.counts_as.word,
        "job_members": one.of_members,
        "node": one.node_id,
        "members": one.members,
        "cpus": one.cpus_milli / 1000,
        "memory_bytes": one.memory_bytes,
        "gpus": list(one.gpu_uuids),
        "starts_at": utc(one.starts_at),
        "made_at": utc(one.made_at),
        "expires_at": utc(one.expires_at),
        "why": one.why,
    }


def _quota_hold(one: KeptQuota) -> dict[str, Any]:
    return {
        "job_id": str(one.job_id),
        "type": one.type,
        "tenant": one.tenant,
        "effective_class": one.priority_class.word,
        "job_members": one.members,
        "jobs": one.jobs,
        "cpus": None if one.cpus_milli is None else one.cpus_milli / 1000,
        "memory_bytes": one.memory_bytes,
        "gpus": one.gpus,
        "gpu_memory_bytes": one.gpu_memory_bytes,
        "made_at": utc(one.made_at),
        "expires_at": utc(one.expires_at),
    }


def _making_room(one: MakingRoom) -> dict[str, Any]:
    return {
        "job_id": str(one.job_id),
        "type": one.type,
        "tenant": one.tenant,
        "nodes": list(one.nodes),
        "cpus": one.cpus_milli / 1000,
        "memory_bytes": one.memory_bytes,
        "gpus": one.gpus,
        "since": utc(one.since),
        "grace_seconds": one.grace_s,
        "reason": one.reason,
        "for_job_id": None if one.for_job is None else str(one.for_job),
    }
