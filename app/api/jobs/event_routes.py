"""The event feed: every change of a job's state, as pages and as streams; and the history of one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from app.api.answers import json_answer
from app.api.auth import ADMIN, OPERATOR, USER, needs, principal
from app.api.errors import Forbidden
from app.api.hub import hub
from app.api.jobs import schemas
from app.api.jobs.blueprint import blueprint
from app.api.jobs.event_schemas import EventsAsked, EventsFollowed, EventsShown, HistoryAsked, HistoryFollowed
from app.api.jobs.event_translate import page_shown, told
from app.api.jobs.translate import parse_job_id
from app.api.limits import limited
from app.api.live.event_feed import EventFeed, JobEventFeed, end_of_job, place_asked
from app.domain.errors import NotFound
from app.services import events, inspect, tenants
from app.services.events import Page

EVERYONE = "*"
_EVENTS = "text/event-stream"
_STREAM, _JOB_STREAM = "/events/stream", "/jobs/<job_id>/events/stream"
_LAST_ID = {"in": "header", "name": "Last-Event-ID", "schema": {"type": "string"}}


@blueprint.route("/events", methods=["GET"], tags=["events"])
@limited("read")
@needs(USER, OPERATOR)
@blueprint.arguments(EventsAsked(), location="query")
@blueprint.response(200, EventsShown)
@blueprint.alt_response(403, schema=schemas.ErrorShown, description="Another tenant, or all, is for operators")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Changes of all jobs, each exactly once")
def list_events(asked: Mapping[str, Any]) -> Response:
    """Go on with `next` and you miss no event, however late a change becomes certain."""
    tenant_id, job_id = tenant_asked(asked.get("tenant")), _job_asked(asked)
    cursor = place_asked(asked["after"])
    if cursor is None:
        return json_answer(page_shown(Page([], events.now(hub().db))))
    page = events.after(hub().db, tenant_id, cursor, asked["limit"], job_id, asked.get("type"))
    return json_answer(page_shown(page))


@blueprint.route("/jobs/<job_id>/events", methods=["GET"], tags=["events"])
@limited("read")
@blueprint.arguments(HistoryAsked(), location="query")
@blueprint.response(200, EventsShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Changes of one job")
def list_job_events(asked: Mapping[str, Any], job_id: str) -> Response:
    """The job's history from its submit on. Events are kept for fewer days than jobs."""
    identity, tenant_id = parse_job_id(job_id), principal().tenant_id
    cursor = place_asked(asked["after"])
    if cursor is None:
        return json_answer(page_shown(Page([], end_of_job(hub().db, tenant_id, identity))))
    return json_answer(page_shown(events.of_job_after(hub().db, tenant_id, identity, cursor, asked["limit"])))


@blueprint.route(_STREAM, methods=["GET"], tags=["events"])
@limited("stream")
@needs(USER, OPERATOR)
@blueprint.arguments(EventsFollowed(), location="query")
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="Events as they happen")
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(summary="Follow the changes of all jobs", parameters=[_LAST_ID])
def stream_events(asked: Mapping[str, Any]) -> Response:
    """Server-sent events; the same over a WebSocket. A client that reconnects with the last id misses none."""
    last = request.headers.get("Last-Event-ID")
    feed = _feed(asked, last or asked["after"], "Last-Event-ID" if last else "after")
    return hub().live.sse(feed, principal().expires_at)


@limited("stream")
@needs(USER, OPERATOR)
@blueprint.arguments(EventsFollowed(), location="query")
def speak_events(asked: Mapping[str, Any]) -> Response:
    """The same over a WebSocket; `after` is the id of the last message received."""
    return hub().live.websocket(_feed(asked, asked["after"], "after"), principal().expires_at)


@blueprint.route(_JOB_STREAM, methods=["GET"], tags=["events"])
@limited("stream")
@blueprint.arguments(HistoryFollowed(), location="query")
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="Its history, then what happens")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(summary="Follow the changes of one job until it ends", parameters=[_LAST_ID])
def stream_job_events(asked: Mapping[str, Any], job_id: str) -> Response:
    """Server-sent events from the job's submit on; `end` comes once, after the last. The same over a WebSocket."""
    last = request.headers.get("Last-Event-ID")
    feed = _job_feed(job_id, last or asked["after"], "Last-Event-ID" if last else "after")
    return hub().live.sse(feed, principal().expires_at)


@limited("stream")
@blueprint.arguments(HistoryFollowed(), location="query")
def speak_job_events(asked: Mapping[str, Any], job_id: str) -> Response:
    """The same over a WebSocket; `after` is the id of the last message received."""
    return hub().live.websocket(_job_feed(job_id, asked["after"], "after"), principal().expires_at)


# Past the documented blueprint: OpenAPI has no words for WebSockets, and the paths are described above.
Blueprint.add_url_rule(blueprint, _STREAM, "speak_events", speak_events, websocket=True)
Blueprint.add_url_rule(blueprint, _JOB_STREAM, "speak_job_events", speak_job_events, websocket=True)


def _feed(asked: Mapping[str, Any], after: str, name: str) -> EventFeed:
    """The feed of what was asked; refuses before the stream begins."""
    shared, tenant_id = hub(), tenant_asked(asked.get("tenant"))
    cursor = place_asked(after, name)
    return EventFeed(shared.db, shared.live.reads, tenant_id, cursor, told, _job_asked(asked), asked.get("type"))


def _job_feed(job_id: str, after: str, name: str) -> JobEventFeed:
    """The feed of one job. Raises NotFound before the stream begins."""
    shared, caller, identity = hub(), principal(), parse_job_id(job_id)
    inspect.get_job(shared.db, caller.tenant_id, identity)
    cursor = place_asked(after, name) or end_of_job(hub().db, caller.tenant_id, identity)
    return JobEventFeed(shared.db, shared.live.reads, caller.tenant_id, identity, cursor, told)


def tenant_asked(named: str | None) -> UUID | None:
    """Whose events: the caller's own, or, for operators, a named tenant's or (None) everyone's."""
    caller = principal()
    if named is None:
        return caller.tenant_id
    sees_all = not caller.roles.isdisjoint({OPERATOR, ADMIN})
    if named == EVERYONE:
        if not sees_all:
            raise Forbidden("The events of all tenants are for operators; leave tenant out for your own.")
        return None
    found = tenants.find(hub().db, named)
    if found is None or (found.id != caller.tenant_id and not sees_all):
        raise NotFound("Tenant not found", tenant=named[:100])
    return found.id


def _job_asked(asked: Mapping[str, Any]) -> UUID | None:
    """The job of the filter; a foreign one has no events for the caller."""
    return parse_job_id(asked["job_id"]) if "job_id" in asked else None
