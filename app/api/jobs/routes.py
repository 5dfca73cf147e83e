"""Routes of the jobs contract for users: submit, list, show, cancel, stop, and the same in bulk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from flask import Response, request

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.hub import hub
from app.api.idempotency import KEY_HEADER, answered, idempotency_key
from app.api.jobs import schemas, translate
from app.api.jobs.array_translate import array_asked, array_submitted
from app.api.jobs.blueprint import blueprint
from app.api.jobs.rehearsal import RehearsalShown, SubmitOptions, answer_rehearsal
from app.api.jobs.submit_schemas import BulkAsked, JobAsked
from app.api.limits import limited
from app.api.stopping import answer_stop
from app.api.submission import Render, answer_array, answer_submit
from app.domain.errors import FabricError, NotFound
from app.domain.states import JobState
from app.services import inspect, queue, stop
from app.services.idempotency import answer_once


@blueprint.route("/jobs", methods=["POST"])
@limited("submit")
@blueprint.arguments(SubmitOptions(), location="query")
@blueprint.arguments(JobAsked())
@blueprint.response(201, schemas.JobSubmitted)
@blueprint.alt_response(200, schema=RehearsalShown, description="What a submit would lead to, with dry_run=true")
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Submit a job", parameters=[KEY_HEADER])
def submit_job(options: Mapping[str, Any], asked: Mapping[str, Any]) -> Response:
    """Makes a job durable and pending; it runs as soon as a node has room for it. With `array` it is many jobs.

    A dry run only says what would become of it (of an array: of one of its jobs).
    """
    many = array_asked(asked["array"]) if "array" in asked else None
    if options["dry_run"]:
        return answer_rehearsal(translate.job_request(asked, hub().settings))
    if many is not None:
        return answer_array(
            principal().tenant_id,
            translate.job_request(asked, hub().settings),
            many,
            idempotency_key(request),
            lambda array: (201, array_submitted(array)),
        )
    return _submit([asked], lambda jobs: (201, translate.submitted(jobs[0])))


@blueprint.route("/jobs/bulk", methods=["POST"])
@limited("bulk")
@blueprint.arguments(BulkAsked(many=True))
@blueprint.response(201, schemas.BulkSubmitted(many=True))
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Submit up to 1000 jobs", parameters=[KEY_HEADER])
def submit_jobs(asked: Sequence[Mapping[str, Any]]) -> Response:
    """Makes all of the jobs durable in one transaction, or none."""
    return _submit(asked, lambda jobs: (201, translate.bulk_submitted(jobs)))


def _submit(asked: Sequence[Mapping[str, Any]], render: Render) -> Response:
    requests = [translate.job_request(one, hub().settings) for one in asked]
    return answer_submit(principal().tenant_id, requests, idempotency_key(request), render)


@blueprint.route("/jobs", methods=["GET"])
@limited("read")
@blueprint.arguments(schemas.ListAsked(), location="query")
@blueprint.response(200, schemas.JobListed(many=True), headers={"X-Total-Count": {"schema": {"type": "integer"}}})
@blueprint.doc(summary="List jobs")
def list_jobs(asked: Mapping[str, Any]) -> Response:
    """Newest first; X-Total-Count says how many match in all."""
    wanted = translate.job_filter(asked)
    views, total = inspect.list_jobs(hub().db, principal().tenant_id, wanted, asked["limit"], asked["offset"])
    return json_answer([translate.listed(view) for view in views], headers={"X-Total-Count": str(total)})


@blueprint.route("/jobs/<job_id>", methods=["GET"])
@limited("read")
@blueprint.response(200, schemas.JobShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a job")
def show_job(job_id: str) -> Response:
    """What was asked, what became of it, each attempt, and the beginning of its output."""
    db, tenant_id, identity = hub().db, principal().tenant_id, translate.parse_job_id(job_id)
    detail = inspect.job_detail(db, tenant_id, identity, translate.OUTPUT_CAP)
    waits = detail.job.state == JobState.PENDING and detail.job.ready
    place = queue.position(db, tenant_id, identity).position if waits else 0
    return json_answer(translate.detailed(detail, place))


@blueprint.route("/jobs/<job_id>", methods=["DELETE"])
@blueprint.response(200, schemas.JobCancelled)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job is not pending")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Cancel a pending job")
def cancel_job(job_id: str) -> Response:
    """Cancels a job that has not been started; use stop for one that runs."""
    caller = principal()
    view = stop.cancel_pending(hub().db, caller.tenant_id, translate.parse_job_id(job_id), by=caller.subject)
    hub().hint([view.id])
    return json_answer({"id": str(view.id), "status": translate.STATUS[view.state]})


@blueprint.route("/jobs/<job_id>/stop", methods=["POST"])
@blueprint.arguments(schemas.StopAsked(), required=False)
@blueprint.response(200, schemas.JobStopped)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job has ended")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Stop a job, running or not", parameters=[KEY_HEADER])
def stop_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """SIGTERM, the job's grace, SIGKILL; the job ends in cancelled. Asking again changes nothing."""
    return answer_stop(
        translate.parse_job_id(job_id),
        lambda job: {"id": str(job.id), **translate.state_of(job)},
        asked["reason"],
        idempotency_key(request),
    )


@blueprint.route("/jobs/bulk/cancel", methods=["POST"])
@limited("bulk")
@blueprint.arguments(schemas.BulkCancelAsked())
@blueprint.response(200, schemas.BulkCancelled)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=schemas.ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Cancel up to 1000 pending jobs", parameters=[KEY_HEADER])
def cancel_jobs(asked: Mapping[str, Any]) -> Response:
    """Cancels those that are pending; the others are named with the reason."""
    caller = principal()
    known: dict[str, UUID] = {}
    errors: list[dict[str, str]] = []
    for text in dict.fromkeys(asked["job_ids"]):
        try:
            known[text] = translate.parse_job_id(text)
        except NotFound as exc:
            errors.append({"job_id": text, "error": exc.message})
    ids = list(dict.fromkeys(known.values()))

    def render(results: Mapping[UUID, FabricError | None]) -> tuple[int, Any]:
        refused = [{"job_id": t, "error": why.message} for t, i in known.items() if (why := results[i]) is not None]
        cancelled = sum(why is None for why in results.values())
        return 200, {"cancelled": cancelled, "failed": len(errors + refused), "errors": errors + refused}

    answer = answer_once(
        hub().db,
        "stop",
        idempotency_key(request),
        lambda tx: stop.cancel_many_in(tx, caller.tenant_id, ids, caller.subject),
        render,
    )
    if answer.fresh is not None:
        hub().hint(job_id for job_id, why in answer.fresh.items() if why is None)
    return answered(answer)
