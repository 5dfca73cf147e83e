"""Routes about the whole: health, metrics, counts, executors."""

from __future__ import annotations

from flask import Response

from app.api.answers import json_answer
from app.api.auth import OPERATOR, always, needs, public
from app.api.errors import RETRY_AFTER_S
from app.api.hub import hub
from app.api.jobs import schemas, translate
from app.api.jobs.blueprint import blueprint
from app.api.limits import UNLIMITED, limited
from app.api.metrics import exporter
from app.domain.errors import Unavailable
from app.services import inspect


@blueprint.route("/health", methods=["GET"], tags=["health"])
@limited(UNLIMITED)
@public(always)
@blueprint.response(200, schemas.HealthShown)
@blueprint.alt_response(503, schema=schemas.HealthShown)
@blueprint.doc(summary="Health of the server", security=[])
def health() -> Response:
    """Whether the server can reach its database. Needs no token."""
    try:
        inspect.health(hub().db)
    except Unavailable:
        words = {"status": "unhealthy", "database": "disconnected"}
        return json_answer(words, 503, {"Retry-After": str(RETRY_AFTER_S)})
    return json_answer({"status": "healthy", "database": "connected"})


@blueprint.route("/admin/stats", methods=["GET"], tags=["admin"])
@limited("admin")
@needs(OPERATOR)
@blueprint.response(200, schemas.StatsShown)
@blueprint.doc(summary="Counts over all jobs")
def show_stats() -> Response:
    """Jobs by status, pending jobs by priority, executors that live."""
    return json_answer(translate.stats_shown(inspect.stats(hub().db, None)))


@blueprint.route("/admin/executors", methods=["GET"], tags=["admin"])
@limited("admin")
@needs(OPERATOR)
@blueprint.response(200, schemas.ExecutorShown(many=True))
@blueprint.doc(summary="Executors that live")
def list_executors() -> Response:
    """Each with the job it runs (the latest, when it runs several), or null when it is idle."""
    return json_answer([translate.executor_shown(one) for one in inspect.executors(hub().db)])


@blueprint.route("/metrics", methods=["GET"], tags=["health"])
@limited("admin")
@public(lambda settings: settings.metrics_open)
@needs(OPERATOR)
@blueprint.response(200, {"type": "string"}, content_type="text/plain", description="Prometheus text format")
@blueprint.doc(summary="Numbers for Prometheus")
def show_metrics() -> Response:
    """Requests of this process, and the fabric's jobs, executors and upkeep."""
    return exporter().render()
