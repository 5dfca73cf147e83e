"""The route that says why a job waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flask import Response

from app.api.answers import json_answer, utc
from app.api.auth import principal
from app.api.hub import hub
from app.api.jobs import translate
from app.api.jobs.blueprint import blueprint
from app.api.jobs.explain_schemas import ExplanationShown
from app.api.jobs.schemas import ErrorShown
from app.api.limits import limited
from app.domain.explain import Cause, Fit, NodeNow, lacks, suiting
from app.domain.resources import Resources
from app.services.explain import Change, Explanation, explain


@blueprint.route("/jobs/<job_id>/explain", methods=["GET"])
@limited("read")
@blueprint.response(200, ExplanationShown)
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.doc(summary="Say why a job waits")
def explain_job(job_id: str) -> Response:
    """Why the job is not running, with numbers, as the claims of all nodes see it now; and how it came there."""
    shared = hub()
    told = explain(shared.db, shared.settings, principal().tenant_id, translate.parse_job_id(job_id))
    return json_answer(explanation_shown(told))


def explanation_shown(told: Explanation) -> dict[str, Any]:
    """An explanation in the contract's words."""
    first, need = told.causes[0], told.ask.need
    return {
        "id": str(told.job.id),
        **translate.state_of(told.job),
        "code": first.code.value,
        "message": first.message,
        "causes": [_cause(cause) for cause in told.causes],
        "asks": {
            "cpus": need.cpus_milli / 1000,
            "memory_bytes": need.memory_bytes,
            "gpus": need.gpus,
            "gpu_memory_bytes": need.gpu_memory_bytes,
            "gpu_model": need.gpu_model,
            "gpu_shared": need.gpu_shared,
            "runner": told.ask.runner,
        },
        "tenant": {
            "name": told.tenant.name,
            "active": told.tenant.active,
            "quota": asdict(told.tenant.quota),
            "used": asdict(told.tenant.used),
        },
        "ahead": told.ahead,
        "queue": None if told.place is None else asdict(told.place),
        "nodes": [_node(node, fit, need) for node, fit in told.nodes],
        "nodes_seen": told.nodes_seen,
        "history": [_change(change) for change in told.history],
    }


def _cause(cause: Cause) -> dict[str, Any]:
    return {"code": cause.code.value, "message": cause.message, "numbers": dict(cause.numbers)}


def _node(node: NodeNow, fit: Fit, need: Resources) -> dict[str, Any]:
    never = fit in {Fit.TOO_SMALL, Fit.NO_GPU}
    return {
        "id": node.id,
        "kind": "external" if node.external else "agent",
        "state": node.state,
        "fit": fit.value,
        "lacks": list(lacks(node.total if never else node.free, need)),
        "silent_seconds": round(node.silent_s, 1),
        "slots": _amount(node.free.slots, node.total.slots),
        "cpus": _amount(node.free.cpus_milli / 1000, node.total.cpus_milli / 1000),
        "memory_bytes": _amount(node.free.memory_bytes, node.total.memory_bytes),
        "gpus": _amount(suiting(node.free, need), suiting(node.total, need)) if need.gpus else None,
    }


def _amount(free: float, total: float) -> Mapping[str, float]:
    return {"free": free, "total": total}


def _change(change: Change) -> dict[str, Any]:
    return {
        "timestamp": utc(change.at),
        "status": translate.STATUS[change.state],
        "state_detail": change.state.word,
        "reason": change.stop_cause.word if change.stop_cause is not None else change.reason,
        "attempt": change.attempt,
        "executor_id": change.node_id,
    }
