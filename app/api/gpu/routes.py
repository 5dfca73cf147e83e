"""Routes of the gpu contract: jobs, tenants, the cluster, health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from app.api.answers import json_answer
from app.api.auth import ADMIN, OPERATOR, USER, always, needs, public
from app.api.gpu import schemas, translate
from app.api.gpu.blueprint import beside, blueprint
from app.api.gpu.whose import owner_of, tenant_asked
from app.api.hub import hub
from app.api.idempotency import KEY_HEADER, idempotency_key
from app.api.limits import UNLIMITED, limited
from app.api.stopping import answer_stop
from app.api.submission import answer_submit
from app.domain.errors import Unavailable
from app.domain.states import JobState
from app.domain.tenant import Usage
from app.services import clusters, inspect, queue, statistics, tenants


@blueprint.route("/jobs", methods=["POST"])
@blueprint.arguments(schemas.JobAsked())
@blueprint.response(201, schemas.JobSubmitted)
@blueprint.alt_response(403, schema=schemas.ErrorShown, description="The job alone exceeds its tenant's quota")
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="There is no such tenant")
@blueprint.alt_response(409, schema=schemas.ErrorShown, description="The idempotency key is in use")
@blueprint.doc(summary="Submit a job", parameters=[KEY_HEADER])
def submit_job(asked: Mapping[str, Any]) -> Response:
    """Makes a job durable and pending. A job beyond what its tenant has left waits; one beyond its quota is refused."""
    tenant = tenant_asked(asked.get("tenant_id"), ADMIN)
    wanted = [translate.job_request(asked, tenant, hub().settings)]
    return answer_submit(
        tenant.id, wanted, idempotency_key(request), lambda jobs: (201, translate.submitted(jobs[0].id))
    )


@blueprint.route("/jobs", methods=["GET"])
@blueprint.arguments(schemas.ListAsked(), location="query")
@blueprint.response(200, schemas.JobList)
@blueprint.doc(summary="List jobs")
def list_jobs(asked: Mapping[str, Any]) -> Response:
    """Newest first, with the exact number of all that match; operators may name any tenant."""
    tenant = tenant_asked(asked.get("tenant_id"), OPERATOR)
    wanted = translate.job_filter(asked)
    details, total = inspect.list_details(hub().db, tenant.id, wanted, asked["limit"], asked["offset"])
    return json_answer({"jobs": [translate.listed(detail) for detail in details], "total": total})


@blueprint.route("/jobs/<job_id>", methods=["GET"])
@blueprint.response(200, schemas.JobShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show how a job stands")
def show_job(job_id: str) -> Response:
    """State, place in the queue, and what the last attempt was given."""
    db, identity = hub().db, translate.parse_job_id(job_id)
    tenant_id = owner_of(identity, OPERATOR)
    detail = inspect.job_detail(db, tenant_id, identity, output_cap=0)
    waits = detail.job.state == JobState.PENDING and detail.job.ready
    position = queue.position(db, tenant_id, identity).position if waits else 0
    wait_s = statistics.expected_wait_s(db, detail.spec.effective_class, position)
    return json_answer(translate.shown(detail, position, wait_s))


@blueprint.route("/jobs/<job_id>", methods=["DELETE"])
@blueprint.response(200, schemas.Message)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="The job has ended")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Cancel a job, pending or running")
def cancel_job(job_id: str) -> Response:
    """The job ends in cancelled; a running one gets SIGTERM, a grace, SIGKILL."""
    identity = translate.parse_job_id(job_id)
    told = {"message": "Job cancelled successfully"}
    return answer_stop(identity, lambda _job: told, tenant_id=owner_of(identity, ADMIN))


@blueprint.route("/tenants", methods=["POST"])
@needs(ADMIN)
@blueprint.arguments(schemas.TenantAsked())
@blueprint.response(201, schemas.TenantShown)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="A field is wrong, or the name is taken")
@blueprint.doc(summary="Create a tenant with its quotas")
def make_tenant(asked: Mapping[str, Any]) -> Response:
    """A tenant without a tier is medium; a quota that is absent is unlimited."""
    made = tenants.create(hub().db, translate.new_tenant(asked))
    return json_answer(translate.tenant_shown(made, Usage()), 201)


@blueprint.route("/cluster/status", methods=["GET"])
@needs(USER, OPERATOR)
@blueprint.response(200, schemas.ClusterStatus)
@blueprint.doc(summary="Show the cluster")
def show_cluster() -> Response:
    """GPUs, nodes and jobs of all tenants now."""
    db = hub().db
    return json_answer(translate.cluster_shown(clusters.clusters(db), inspect.phase_counts(db, None)))


@blueprint.route("/health", methods=["GET"])
@limited(UNLIMITED)
@public(always)
@blueprint.response(200, schemas.Health)
@blueprint.alt_response(503, schema=schemas.Health)
@blueprint.doc(summary="Check health", security=[])
def show_health() -> Response:
    """Whether PostgreSQL answers, which is all that the fabric needs to take jobs."""
    try:
        inspect.health(hub().db)
    except Unavailable:
        return json_answer({"status": "unhealthy"}, 503)
    return json_answer({"status": "healthy"})


beside.add_url_rule("/health", "show_health", show_health, methods=["GET"])
