"""State changes of the gpu contract as they happen: of one job until it ends, and of all jobs of a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from app.api.auth import OPERATOR, principal
from app.api.gpu import schemas
from app.api.gpu.blueprint import blueprint
from app.api.gpu.event_schemas import JobFollowed, JobsFollowed
from app.api.gpu.event_translate import told
from app.api.gpu.translate import parse_job_id
from app.api.gpu.whose import owner_of, tenant_asked
from app.api.hub import hub
from app.api.live.event_feed import EventFeed, JobEventFeed, end_of_job, place_asked
from app.services import inspect

_EVENTS = "text/event-stream"
_JOB, _ALL = "/jobs/<job_id>/events", "/events"
_LAST_ID = {"in": "header", "name": "Last-Event-ID", "schema": {"type": "string"}}


@blueprint.route(_JOB, methods=["GET"])
@blueprint.arguments(JobFollowed(), location="query")
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="Its history, then what happens")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(summary="Follow the state of a job until it ends", parameters=[_LAST_ID])
def stream_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """Server-sent events from the job's submit on; `end` comes once, after the last. The same over a WebSocket."""
    last = request.headers.get("Last-Event-ID")
    feed = _job_feed(job_id, last or asked["after"], "Last-Event-ID" if last else "after")
    return hub().live.sse(feed, principal().expires_at)


@blueprint.arguments(JobFollowed(), location="query")
def speak_job(asked: Mapping[str, Any], job_id: str) -> Response:
    """The same over a WebSocket."""
    return hub().live.websocket(_job_feed(job_id, asked["after"], "after"), principal().expires_at)


@blueprint.route(_ALL, methods=["GET"])
@blueprint.arguments(JobsFollowed(), location="query")
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="State changes as they happen")
@blueprint.alt_response(404, schema=schemas.ErrorShown, description="There is no such tenant")
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(summary="Follow the states of all jobs", parameters=[_LAST_ID])
def stream_jobs(asked: Mapping[str, Any]) -> Response:
    """Server-sent events; the same over a WebSocket. A client that goes on behind the last id misses none."""
    last = request.headers.get("Last-Event-ID")
    feed = _feed(asked, last or asked["after"], "Last-Event-ID" if last else "after")
    return hub().live.sse(feed, principal().expires_at)


@blueprint.arguments(JobsFollowed(), location="query")
def speak_jobs(asked: Mapping[str, Any]) -> Response:
    """The same over a WebSocket."""
    return hub().live.websocket(_feed(asked, asked["after"], "after"), principal().expires_at)


# Past the documented blueprint: OpenAPI has no words for WebSockets, and the paths are described above.
Blueprint.add_url_rule(blueprint, _JOB, "speak_job", speak_job, websocket=True)
Blueprint.add_url_rule(blueprint, _ALL, "speak_jobs", speak_jobs, websocket=True)


def _job_feed(job_id: str, after: str, name: str) -> JobEventFeed:
    """The feed of one job. Raises NotFound and Invalid before the stream begins."""
    shared, identity = hub(), parse_job_id(job_id)
    tenant_id = owner_of(identity, OPERATOR)
    inspect.get_job(shared.db, tenant_id, identity)
    cursor = place_asked(after, name) or end_of_job(shared.db, tenant_id, identity)
    return JobEventFeed(shared.db, shared.live.reads, tenant_id, identity, cursor, told)


def _feed(asked: Mapping[str, Any], after: str, name: str) -> EventFeed:
    """The feed of a tenant. Raises NotFound and Invalid before the stream begins."""
    shared, tenant = hub(), tenant_asked(asked.get("tenant_id"), OPERATOR)
    return EventFeed(shared.db, shared.live.reads, tenant.id, place_asked(after, name), told)
