"""Routes that change a job after its submit, besides stop: hold, release, reprioritise, requeue, resubmit.

Users do so with jobs of their tenant, operators with all jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from flask import Response, request

from app.api.auth import ADMIN, OPERATOR, USER, needs, principal
from app.api.auth.gate import TENANT_HEADER
from app.api.hub import hub
from app.api.idempotency import KEY_HEADER, answered, idempotency_key
from app.api.jobs import schemas, translate
from app.api.jobs.blueprint import blueprint
from app.api.jobs.control_schemas import HoldAsked, JobChanged, JobChanges, ReleaseAsked, RequeueAsked
from app.api.limits import limited
from app.api.submission import answer_submit
from app.domain.priority import PriorityClass, class_of
from app.services import control
from app.services.control import Caller, Changed, Wanted
from app.services.idempotency import answer_once
from app.services.resubmit import request_of
from app.storage.database import Tx

Change = Callable[[Tx, Caller, UUID], Changed]


@blueprint.route("/jobs/<job_id>/hold", methods=["POST"])
@needs(USER, OPERATOR)
@blueprint.arguments(HoldAsked(), required=False)
@blueprint.response(200, JobChanged)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job is not pending")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Hold a pending job back", parameters=[KEY_HEADER])
def hold_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """No node gets it until it is released; its age counts on. Asking again changes nothing."""
    return _answer(job_id, lambda tx, who, identity: control.hold_in(tx, who, identity, asked["reason"]))


@blueprint.route("/jobs/<job_id>/release", methods=["POST"])
@needs(USER, OPERATOR)
@blueprint.arguments(ReleaseAsked(), required=False)
@blueprint.response(200, JobChanged)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job has ended")
@blueprint.alt_response(403, schema=schemas.ErrorShown, description="An operator holds it, and the caller is none")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Release a job that is held", parameters=[KEY_HEADER])
def release_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """It waits where it was in its queue. One that nobody holds stays as it is."""
    return _answer(job_id, control.release_in)


@blueprint.route("/jobs/<job_id>", methods=["PATCH"])
@needs(USER, OPERATOR)
@blueprint.arguments(JobChanges())
@blueprint.response(200, JobChanged)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job is not pending")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Change the priority of a pending job", parameters=[KEY_HEADER])
def reprioritise_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """It keeps its age. What counts is capped by the tenant's tier, as at submit."""
    settings, wanted = hub().settings, _wanted(asked)
    return _answer(job_id, lambda tx, who, identity: control.reprioritise_in(tx, settings, who, identity, wanted))


@blueprint.route("/jobs/<job_id>/requeue", methods=["POST"])
@needs(USER, OPERATOR)
@blueprint.arguments(RequeueAsked(), required=False)
@blueprint.response(200, JobChanged)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job has ended or is being cancelled")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Stop a job and let it wait again", parameters=[KEY_HEADER])
def requeue_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """SIGTERM, the job's grace, SIGKILL; then it is pending with the age it has. It costs no retry."""
    reason, hold = asked["reason"], asked["hold"]
    return _answer(job_id, lambda tx, who, identity: control.requeue_in(tx, who, identity, reason, hold))


@blueprint.route("/jobs/<job_id>/resubmit", methods=["POST"])
@limited("submit")
@blueprint.arguments(ReleaseAsked(), required=False)
@blueprint.response(201, schemas.JobSubmitted)
@blueprint.alt_response(403, schema=schemas.ErrorShown, description="It exceeds the tenant's quota by now")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Submit the same as a job anew", parameters=[KEY_HEADER])
def resubmit_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """A new job of the caller's tenant with everything that was asked of this one, whatever became of it."""
    tenant_id = principal().tenant_id
    same = request_of(hub().db, tenant_id, translate.parse_job_id(job_id))
    return answer_submit(tenant_id, [same], idempotency_key(request), lambda jobs: (201, translate.submitted(jobs[0])))


def _wanted(asked: Mapping[str, Any]) -> Wanted:
    priority, word = asked.get("priority"), asked.get("priority_class")
    if isinstance(priority, int):
        return Wanted(PriorityClass[word.upper()] if word else class_of(priority), priority)
    return Wanted(PriorityClass[(word or str(priority)).upper()])


def _caller() -> Caller:
    """Operators and admins act on all jobs, unless they name a tenant; others on those of their own tenant."""
    who = principal()
    operator = not who.roles.isdisjoint({OPERATOR, ADMIN})
    everywhere = operator and TENANT_HEADER not in request.headers
    return Caller(who.subject, None if everywhere else who.tenant_id, operator)


def _answer(job_id: str, change: Change) -> Response:
    """Does `change` once for each idempotency key, and tells workers and readers after the commit."""
    shared, who, identity = hub(), _caller(), translate.parse_job_id(job_id)
    answer = answer_once(
        shared.db, "control", idempotency_key(request), lambda tx: change(tx, who, identity),
        lambda changed: (200, _shown(changed)),
    )  # fmt: skip
    if answer.fresh is not None:
        if answer.fresh.ready is not None:
            shared.ring([answer.fresh.ready])
        for node in answer.fresh.wake:
            shared.ringer.wake_node(node)
        shared.hint([identity])
    return answered(answer)


def _shown(changed: Changed) -> dict[str, Any]:
    detail = changed.detail
    return {
        "id": str(detail.job.id),
        **translate.state_of(detail.job),
        "message": detail.job.message or None,
        "priority": detail.job.priority_class.word,
        "effective_class": detail.spec.effective_class.word,
        "effective_priority": detail.spec.effective_priority,
        "queue_position": changed.position,
        "hold": None if detail.hold is None else translate.hold_shown(detail.hold),
    }
