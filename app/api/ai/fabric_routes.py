"""Routes of the ai contract about the whole: queues, clusters, figures, probes."""

from __future__ import annotations

from typing import Any

from flask import Response

from app.api.ai import fabric_translate, schemas, translate
from app.api.ai.blueprint import blueprint
from app.api.answers import json_answer
from app.api.auth import ADMIN, OPERATOR, USER, always, needs, principal, public
from app.api.hub import hub
from app.api.limits import UNLIMITED, limited
from app.bells import broker_answers
from app.domain.errors import NotFound, Unavailable
from app.services import clusters, inspect, queues, statistics


@blueprint.route("/queues/", methods=["GET"], tags=["queues"])
@needs(USER, OPERATOR)
@blueprint.response(200, schemas.QueueList)
@blueprint.doc(summary="Show the queues")
def list_queues() -> Response:
    """How many jobs wait and run in each, over all tenants."""
    return json_answer(fabric_translate.queues_shown(queues.queues(hub().db)))


@blueprint.route("/queues/<queue_name>", methods=["GET"], tags=["queues"])
@needs(USER, OPERATOR)
@blueprint.response(200, schemas.QueueDetail)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a queue")
def show_queue(queue_name: str) -> Response:
    """The caller's own waiting jobs (an operator's: all), the next ones first, and what the queue did lately."""
    of, db, caller = translate.class_of_queue(queue_name), hub().db, principal()
    sees_all = not caller.roles.isdisjoint({OPERATOR, ADMIN})
    view = next(one for one in queues.queues(db) if one.priority_class == of)
    jobs = queues.next_jobs(db, of, None if sees_all else caller.tenant_id)
    hour = statistics.lately(db).hour_by_class[of]
    return json_answer(fabric_translate.queue_shown(view, jobs, hour))


@blueprint.route("/clusters/", methods=["GET"], tags=["clusters"])
@needs(USER, OPERATOR)
@blueprint.response(200, schemas.ClusterList)
@blueprint.doc(summary="List compute clusters")
def list_clusters() -> Response:
    """Each cluster's nodes, GPUs and running jobs, added up."""
    return json_answer({"clusters": [fabric_translate.cluster_listed(one) for one in clusters.clusters(hub().db)]})


@blueprint.route("/clusters/<cluster_name>", methods=["GET"], tags=["clusters"])
@needs(USER, OPERATOR)
@blueprint.response(200, schemas.ClusterShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a compute cluster")
def show_cluster(cluster_name: str) -> Response:
    """Each node with what it has and what is free."""
    for one in clusters.clusters(hub().db):
        if one.name == cluster_name:
            return json_answer(fabric_translate.cluster_shown(one))
    raise NotFound(f"There is no cluster {cluster_name[:100]!r}.")


@blueprint.route("/metrics/", methods=["GET"], tags=["metrics"])
@needs(USER, OPERATOR)
@blueprint.response(200, schemas.FiguresShown)
@blueprint.doc(summary="Show figures of the whole")
def show_metrics() -> Response:
    """Jobs of the last day; latencies and throughput of the last hour."""
    return json_answer(fabric_translate.figures_shown(statistics.lately(hub().db)))


@blueprint.route("/health/live", methods=["GET"], tags=["health"])
@limited(UNLIMITED)
@public(always)
@blueprint.response(200, schemas.LiveShown)
@blueprint.doc(summary="Liveness probe", security=[])
def show_live() -> Response:
    """This process serves."""
    return json_answer({"status": "ok"})


@blueprint.route("/health/ready", methods=["GET"], tags=["health"])
@limited(UNLIMITED)
@public(always)
@blueprint.response(200, schemas.ReadyShown)
@blueprint.alt_response(503, schema=schemas.ReadyShown)
@blueprint.doc(summary="Readiness probe", security=[])
def show_ready() -> Response:
    """PostgreSQL, the broker, and the fabric's own scheduler and registry of nodes, under the document's names."""
    checks: dict[str, Any] = {"database": "ok", "redis": "ok", "kubernetes": "ok"}
    try:
        inspect.health(hub().db)
        if not inspect.scheduler_is_alive(hub().db):
            checks["kubernetes"] = "error"
    except Unavailable:
        checks |= {"database": "error", "kubernetes": "error"}
    if not broker_answers(hub().settings):
        checks["redis"] = "error"
    well = set(checks.values()) == {"ok"}
    return json_answer({"status": "ok" if well else "degraded", "checks": checks}, 200 if well else 503)
