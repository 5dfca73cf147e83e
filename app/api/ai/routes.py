"""Routes of the ai contract about jobs: create, list, show, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response, request

from app.api.ai import schemas, translate
from app.api.ai.blueprint import blueprint
from app.api.answers import json_answer
from app.api.auth import principal
from app.api.hub import hub
from app.api.idempotency import KEY_HEADER, idempotency_key
from app.api.ids import shown_id
from app.api.limits import limited
from app.api.listener import shown_prefix
from app.api.stopping import answer_stop
from app.api.submission import answer_submit
from app.domain.errors import StateConflict
from app.domain.phase import Phase
from app.domain.states import JobState
from app.services import inspect, queue

AT = "/ai/api/v1"


@blueprint.route("/jobs/", methods=["POST"], tags=["jobs"])
@limited("submit")
@blueprint.arguments(schemas.JobAsked())
@blueprint.response(201, schemas.JobCreated)
@blueprint.alt_response(403, schema=schemas.ErrorShown, description="Beyond the quota, or the image is not trusted")
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The idempotency key is in use")
@blueprint.doc(summary="Create a job", parameters=[KEY_HEADER])
def create_job(asked: Mapping[str, Any]) -> Response:
    """Makes a job durable; it runs as soon as a node has room for it."""
    shared, caller = hub(), principal()
    return answer_submit(
        caller.tenant_id,
        [translate.job_request(asked, shared.settings)],
        idempotency_key(request),
        lambda jobs: (201, translate.created(jobs[0], asked["priority"])),
        places=True,
    )


@blueprint.route("/jobs/", methods=["GET"], tags=["jobs"])
@limited("list")
@blueprint.arguments(schemas.ListAsked(), location="query")
@blueprint.response(200, schemas.JobList)
@blueprint.doc(summary="List jobs")
def list_jobs(asked: Mapping[str, Any]) -> Response:
    """Newest first, with the exact number of all that match."""
    wanted, limit, offset = translate.job_filter(asked), asked["limit"], asked["offset"]
    views, total = inspect.list_jobs(hub().db, principal().tenant_id, wanted, limit, offset)
    items = [translate.listed(view) for view in views]
    return json_answer({"items": items, "total": total, "limit": limit, "offset": offset})


@blueprint.route("/jobs/<job_id>", methods=["GET"], tags=["jobs"])
@blueprint.response(200, schemas.JobShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a job")
def show_job(job_id: str) -> Response:
    """What was asked, as it was asked, and what became of it."""
    db, tenant_id, identity = hub().db, principal().tenant_id, translate.parse_job_id(job_id)
    detail = inspect.job_detail(db, tenant_id, identity, output_cap=0)
    waits = detail.job.state == JobState.PENDING and detail.job.ready
    place = queue.position(db, tenant_id, identity).position if waits else 0
    logs_url = f"{shown_prefix(AT)}/jobs/{shown_id(translate.PREFIX, identity)}/logs"
    return json_answer(translate.detailed(detail, place, logs_url))


@blueprint.route("/jobs/<job_id>", methods=["DELETE"], tags=["jobs"])
@blueprint.response(200, schemas.JobCancelled)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The job has ended or was cancelled already")
@blueprint.doc(summary="Cancel a job, pending or running")
def cancel_job(job_id: str) -> Response:
    """The job ends in cancelled; a running one gets SIGTERM, a grace, SIGKILL."""
    shared, caller, identity = hub(), principal(), translate.parse_job_id(job_id)
    if inspect.get_job(shared.db, caller.tenant_id, identity).phase == Phase.CANCELLING:
        raise StateConflict("The job is cancelled already.", job_id=job_id)
    return answer_stop(identity, lambda job: translate.cancelled(identity, job.finished_at or datetime.now(UTC)))
