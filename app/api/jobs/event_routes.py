"""The event feed: every change of a job's state, as pages and as streams; and the history of one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import Response

from app.api.answers import json_answer
from app.api.auth import ADMIN, OPERATOR, USER, needs, principal
from app.api.errors import Forbidden
from app.api.hub import hub
from app.api.jobs import schemas
from app.api.jobs.blueprint import blueprint
from app.api.jobs.event_schemas import EventsAsked, EventsShown, HistoryAsked
from app.api.jobs.event_translate import page_shown
from app.api.jobs.translate import parse_job_id
from app.api.limits import limited
from app.domain.errors import NotFound
from app.services import events, tenants
from app.services.events import Cursor, Page

EVERYONE = "*"
NOW = "now"


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
    cursor = _place(asked["after"])
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
    cursor = _place(asked["after"])
    if cursor is None:
        last = events.of_job(hub().db, tenant_id, identity, limit=1)
        return json_answer(page_shown(Page([], last[-1].cursor if last else events.START)))
    return json_answer(page_shown(events.of_job_after(hub().db, tenant_id, identity, cursor, asked["limit"])))


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


def _place(text: str, name: str = "after") -> Cursor | None:
    """The place that a caller names; None is the end of the feed."""
    return None if text == NOW else events.parse_cursor(text, name)
