"""Routes of the hpc contract: health, jobs and their samples."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

from flask import Response

from app.api.answers import json_answer, utc
from app.api.auth import always, principal, public
from app.api.errors import RETRY_AFTER_S
from app.api.hpc import schemas, translate
from app.api.hpc.blueprint import blueprint
from app.api.hub import hub
from app.api.limits import UNLIMITED, limited
from app.domain.errors import FieldProblem, Invalid, Unavailable
from app.services import inspect, observed, tracked

try:
    VERSION = version("compute-fabric")
except PackageNotFoundError:  # Run from a checkout that nobody installed.
    VERSION = "0.0.0"


@blueprint.route("/health", methods=["GET"], tags=["health"])
@public(always)
@limited(UNLIMITED)
@blueprint.response(200, schemas.HealthShown)
@blueprint.alt_response(503, schema=schemas.HealthShown)
@blueprint.doc(summary="Health Check", security=[])
def health() -> Response:
    """Whether the service can reach its database. Needs no token."""
    shown = {"status": "healthy", "timestamp": utc(datetime.now(UTC)), "version": VERSION}
    try:
        inspect.health(hub().db)
    except Unavailable:
        return json_answer({**shown, "status": "unhealthy"}, 503, {"Retry-After": str(RETRY_AFTER_S)})
    return json_answer(shown)


@blueprint.route("/jobs", methods=["GET"])
@blueprint.arguments(schemas.ListAsked(), location="query")
@blueprint.response(200, schemas.JobsListed)
@blueprint.doc(summary="List Jobs")
def list_jobs(asked: Mapping[str, Any]) -> Response:
    """Tracked jobs and the fabric's own, newest first, with the exact number of all that match."""
    wanted = translate.job_filter(asked)
    jobs, total = observed.list_jobs(hub().db, principal().tenant_id, wanted, asked["limit"], asked["offset"])
    return json_answer(translate.jobs_listed(jobs, total, asked))


@blueprint.route("/jobs", methods=["POST"])
@blueprint.arguments(schemas.JobAsked())
@blueprint.response(201, schemas.JobShown)
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="Job ID already exists")
@blueprint.doc(summary="Create Job")
def create_job(asked: Mapping[str, Any]) -> Response:
    """Notes a job that runs elsewhere; the fabric never runs it."""
    new = tracked.NewTracked(asked["id"], asked["user"], tuple(asked["nodes"]))
    return json_answer(translate.job_shown(tracked.create(hub().db, principal().tenant_id, new)), 201)


@blueprint.route("/jobs/<job_id>", methods=["GET"])
@blueprint.response(200, schemas.JobShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="Job does not exist")
@blueprint.doc(summary="Get Job")
def get_job(job_id: str) -> Response:
    """One job, tracked or of the fabric."""
    job = observed.get(hub().db, principal().tenant_id, translate.job_key(job_id))
    return json_answer(translate.job_shown(job))


@blueprint.route("/jobs/<job_id>", methods=["PATCH"])
@blueprint.arguments(schemas.JobChanged())
@blueprint.response(200, schemas.JobShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="Job does not exist")
@blueprint.doc(summary="Update Job")
def update_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """Updates the state and usage of a tracked job; `cancelled` stops a job of the fabric."""
    db, caller, key = hub().db, principal(), translate.job_key(job_id)
    job = observed.get(db, caller.tenant_id, key)
    if job.fabric is not None:
        return _update_fabric_job(asked, job)
    state, usage, same = translate.changed_state(asked), translate.changed_usage(asked), translate.repeated(asked)
    return json_answer(translate.job_shown(tracked.change(db, caller.tenant_id, key, state, usage, same)))


def _update_fabric_job(asked: Mapping[str, Any], job: observed.ObservedJob) -> Response:
    tracked.refuse_changes(job, translate.repeated(asked))
    translate.refuse_own_measures(asked)
    if "state" in asked:
        caller = principal()
        job, nodes = observed.cancel(hub().db, caller.tenant_id, job.id, by=caller.subject)
        _wake(nodes)
    return json_answer(translate.job_shown(job))


@blueprint.route("/jobs/<job_id>", methods=["DELETE"])
@blueprint.response(204)
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="Job does not exist")
@blueprint.doc(summary="Delete Job")
def delete_job(job_id: str) -> Response:
    """Forgets a tracked job; stops a job of the fabric if it runs, and shows it here no more."""
    db, caller, key = hub().db, principal(), translate.job_key(job_id)
    if not tracked.remove(db, caller.tenant_id, key):
        job = observed.get(db, caller.tenant_id, key)
        _wake(observed.hide(db, caller.tenant_id, job.id, by=caller.subject))
    return Response(status=204)


@blueprint.route("/jobs/<job_id>/metrics", methods=["GET"])
@blueprint.arguments(schemas.SamplesAsked(), location="query")
@blueprint.response(200, schemas.SamplesListed)
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="Job does not exist")
@blueprint.doc(summary="Get Job Metrics")
def get_samples(asked: Mapping[str, Any], job_id: str) -> Response:
    """Samples in ascending order: with start_time the first from then on, else the latest."""
    start, before = translate.time_range(asked)
    key, tenant_id = translate.job_key(job_id), principal().tenant_id
    name, samples, total = observed.samples(hub().db, tenant_id, key, start, before, asked["limit"])
    shown = [translate.sample_shown(one) for one in samples]
    return json_answer({"job_id": name, "samples": shown, "total": total})


@blueprint.route("/jobs/<job_id>/metrics", methods=["POST"])
@blueprint.arguments(schemas.SampleAsked())
@blueprint.response(201, schemas.SampleShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="Job does not exist")
@blueprint.doc(summary="Record Job Metrics")
def record_sample(asked: Mapping[str, Any], job_id: str) -> Response:
    """Adds a sample of now to a tracked job; it is also the job's usage from then on."""
    db, tenant_id, key = hub().db, principal().tenant_id, translate.job_key(job_id)
    if isinstance(key, UUID) and observed.get(db, tenant_id, key).fabric is not None:
        raise Invalid(problems=[FieldProblem("id", "is a job of the fabric, which measures it itself")])
    return json_answer(translate.sample_shown(tracked.record(db, tenant_id, key, translate.usage_asked(asked))), 201)


def _wake(nodes: list[str]) -> None:
    for node in nodes:
        hub().ringer.wake_node(node)
