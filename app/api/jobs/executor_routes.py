"""Routes for executors outside the fabric: claim a job, keep it, tell its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from app.api.answers import json_answer, utc
from app.api.auth import EXECUTOR, needs
from app.api.hub import hub
from app.api.jobs import schemas, translate
from app.api.jobs.blueprint import blueprint
from app.api.limits import limited
from app.domain.errors import NotFound, StateConflict
from app.services import external

TAGS = ["executors"]


@blueprint.route("/jobs/claim", methods=["POST"], tags=TAGS)
@limited("executor")
@needs(EXECUTOR)
@blueprint.arguments(schemas.ClaimAsked())
@blueprint.response(200, schemas.JobClaimed)
@blueprint.alt_response(204, description="No jobs available", success=True)
@blueprint.doc(summary="Claim the next job")
def claim_job(asked: Mapping[str, Any]) -> Response:
    """Gives the next job that needs no GPU to this executor; it is running from now on."""
    shared = hub()
    address = asked["executor_ip"] or request.remote_addr
    claim = external.claim_external(shared.db, shared.settings, asked["executor_id"], address, shared.ranking)
    if claim is None:
        return Response(status=204)
    shared.hint([claim.detail.job.id])
    shown = translate.detailed(claim.detail)
    return json_answer({**shown, "attempt": claim.attempt, "lease_expires_at": utc(claim.lease_expires_at)})


@blueprint.route("/jobs/<job_id>/heartbeat", methods=["PUT"], tags=TAGS)
@limited("executor")
@needs(EXECUTOR)
@blueprint.arguments(schemas.HeartbeatAsked())
@blueprint.response(200, schemas.HeartbeatTaken)
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="Job not found or not running")
@blueprint.doc(summary="Keep a job that runs")
def keep_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """Extends the executor's lease, and tells it whether to stop the job."""
    shared = hub()
    try:
        beat = external.heartbeat_external(
            shared.db, shared.settings, translate.parse_job_id(job_id), asked["executor_id"], asked["attempt"]
        )
    except StateConflict as exc:
        raise NotFound("Job not found or not running", job_id=job_id) from exc
    until = utc(beat.lease_expires_at)
    return json_answer({"stop": beat.stop, "grace_seconds": beat.grace_s, "lease_expires_at": until})


@blueprint.route("/jobs/<job_id>/complete", methods=["PUT"], tags=TAGS)
@limited("executor")
@needs(EXECUTOR)
@blueprint.arguments(schemas.CompleteAsked())
@blueprint.response(200, schemas.JobFinished)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="Invalid state transition")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Tell that a job is completed")
def complete_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """Accepts the result from the job's holder; the same again is accepted, another one is not."""
    return _finish(asked, job_id, completed=True)


@blueprint.route("/jobs/<job_id>/fail", methods=["PUT"], tags=TAGS)
@limited("executor")
@needs(EXECUTOR)
@blueprint.arguments(schemas.FailAsked())
@blueprint.response(200, schemas.JobFinished)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="Invalid state transition")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Tell that a job has failed")
def fail_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """Accepts the failure from the job's holder; a job with retries left becomes pending again."""
    return _finish(asked, job_id, completed=False)


def _finish(asked: Mapping[str, Any], job_id: str, completed: bool) -> Response:
    shared = hub()
    view, ready_again = external.finish_external(
        shared.db,
        translate.parse_job_id(job_id),
        asked["executor_id"],
        completed=completed,
        exit_code=asked["exit_code"],
        stdout=asked["stdout"] or "",
        stderr=asked["stderr"] or "",
        error_message=asked.get("error_message"),
        attempt=asked["attempt"],
    )
    shared.ring(ready_again)
    shared.hint([view.id])
    return json_answer({"id": str(view.id), **translate.state_of(view)})
