"""Routes of the compute contract: submit and stop as documented; showing and listing, which it lacks, beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.compute import schemas, translate
from app.api.compute.blueprint import blueprint
from app.api.hub import hub
from app.api.idempotency import idempotency_key
from app.api.ids import shown_id
from app.api.stopping import answer_stop
from app.api.submission import answer_submit
from app.domain.job import Submitted
from app.services import inspect

KEY = "X-Request-Id"
KEY_HEADER = {
    "in": "header",
    "name": KEY,
    "schema": {"type": "string", "maxLength": 255},
    "description": "Idempotency key: the same request with the same key has one effect, and gets the first answer.",
}


@blueprint.route("/jobs", methods=["POST"])
@blueprint.arguments(schemas.JobAsked())
@blueprint.response(201, schemas.JobState)
@blueprint.alt_response(403, schema=schemas.ErrorShown, description="Beyond the quota, or the image is not trusted")
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The key is in use, or was used with another body")
@blueprint.alt_response(429, schema=schemas.ErrorShown)
@blueprint.doc(summary="Submit a job", parameters=[KEY_HEADER])
def submit_job(asked: Mapping[str, Any]) -> Response:
    """Makes a job durable and queued; it runs as soon as a node with a container runner has room for it."""
    wanted = [translate.job_request(asked, hub().settings)]
    return answer_submit(principal().tenant_id, wanted, idempotency_key(request, KEY), _queued)


def _queued(jobs: list[Submitted]) -> tuple[int, Any]:
    return 201, {"job_id": shown_id(translate.PREFIX, jobs[0].id), "state": "queued"}


@blueprint.route("/jobs", methods=["GET"])
@blueprint.arguments(schemas.ListAsked(), location="query")
@blueprint.response(200, schemas.JobList)
@blueprint.doc(summary="List jobs")
def list_jobs(asked: Mapping[str, Any]) -> Response:
    """Newest first, with the exact number of all that match."""
    wanted, limit, offset = translate.job_filter(asked), asked["limit"], asked["offset"]
    views, total = inspect.list_jobs(hub().db, principal().tenant_id, wanted, limit, offset)
    shown = [translate.summary(view) for view in views]
    return json_answer({"jobs": shown, "total": total, "limit": limit, "offset": offset})


@blueprint.route("/jobs/<job_id>", methods=["GET"])
@blueprint.response(200, schemas.JobShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a job")
def show_job(job_id: str) -> Response:
    """What was asked, and what became of it."""
    detail = inspect.job_detail(hub().db, principal().tenant_id, translate.parse_job_id(job_id), output_cap=0)
    return json_answer(translate.detailed(detail.job, detail.spec))


@blueprint.route("/jobs/<job_id>/stop", methods=["POST"])
@blueprint.arguments(schemas.StopAsked(), required=False)
@blueprint.response(200, schemas.JobState)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The job has ended")
@blueprint.doc(summary="Stop a job", parameters=[KEY_HEADER])
def stop_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """SIGTERM, a grace, SIGKILL; the job ends in stopped. Asking again changes nothing."""
    identity = translate.parse_job_id(job_id)
    told = {"job_id": shown_id(translate.PREFIX, identity), "state": "stopping"}
    return answer_stop(identity, lambda _job: told, asked["reason"], idempotency_key(request, KEY))
