"""The output of a job in the compute contract: one JSON object, an event stream, or a WebSocket."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.compute import schemas, translate
from app.api.compute.blueprint import blueprint
from app.api.hub import hub
from app.api.live.feed import Message
from app.api.live.lines import as_lines, own_lines, slices
from app.api.live.log_feed import LogAsked, LogFeed, LogPiece, check_readable
from app.api.live.place import Place, parse_place
from app.services import logs
from app.services.views import JobView

_EVENTS = "text/event-stream"
_PATH = "/jobs/<job_id>/logs"


@blueprint.route(_PATH, methods=["GET"])
@blueprint.arguments(schemas.LogsAsked(), location="query")
@blueprint.response(200, schemas.LogLines)
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="With Accept: text/event-stream")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(
    summary="Read or follow the output of a job",
    parameters=[{"in": "header", "name": "Last-Event-ID", "schema": {"type": "string"}}],
)
def show_log(asked: Mapping[str, Any], job_id: str) -> Response:
    """The last lines; live for `Accept: text/event-stream`, and over a WebSocket when the connection is upgraded."""
    accepted = request.accept_mimetypes.best_match(["application/json", _EVENTS], default="application/json")
    if accepted == _EVENTS:
        feed = _feed(asked, job_id, request.headers.get("Last-Event-ID"), "Last-Event-ID")
        return hub().live.sse(feed, principal().expires_at)
    db, tenant_id, identity = hub().db, principal().tenant_id, translate.parse_job_id(job_id)
    first = check_readable(db, tenant_id, identity, None)
    read = partial(logs.read_log, db, tenant_id, identity, first.attempt)
    frames = own_lines(frame for part in slices(read, first) for frame in part.frames)
    lines, truncated = as_lines(frames, asked.get("tail"))
    return json_answer({"lines": lines, "truncated": truncated})


@blueprint.arguments(schemas.LogsAsked(), location="query")
def follow_log(asked: Mapping[str, Any], job_id: str) -> Response:
    """The events of the same path over a WebSocket; `after` is the id of the last event received."""
    return hub().live.websocket(_feed(asked, job_id, request.args.get("after"), "after"), principal().expires_at)


# Past the documented blueprint: OpenAPI has no words for WebSockets, and the path is described above.
Blueprint.add_url_rule(blueprint, _PATH, "follow_log", follow_log, websocket=True)


def _feed(asked: Mapping[str, Any], job_id: str, after: str | None, field: str) -> LogFeed:
    shared, caller, identity = hub(), principal(), translate.parse_job_id(job_id)
    place = parse_place(after, field) if after else Place()
    check_readable(shared.db, caller.tenant_id, identity, place.attempt or None)
    wanted = LogAsked(place=place, tail=None if after else asked.get("tail"))
    return LogFeed(shared.db, shared.live.reads, caller.tenant_id, identity, wanted, render)


def render(one: LogPiece | JobView) -> Message:
    """A piece of output as `log`, the end of the job as `end`."""
    if isinstance(one, JobView):
        return Message("end", {**translate.state_of(one), "exit_code": one.exit_code, "signal": one.signal})
    told = {"stream": one.stream, "attempt": one.attempt, "time": round(one.at, 6), "text": one.text}
    return Message("log", told, one.id)
