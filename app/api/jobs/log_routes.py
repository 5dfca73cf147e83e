"""The output of a job: as text, as bytes, as JSON lines, or live, as an event stream or over a WebSocket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.hub import hub
from app.api.jobs import schemas, translate
from app.api.jobs.blueprint import blueprint
from app.api.jobs.follow import render, render_raw
from app.api.limits import limited
from app.api.live.lines import STREAMS, as_lines, as_text, last_lines, only, own_lines, slices, stamped
from app.api.live.log_feed import LogAsked, LogFeed, check_readable
from app.api.live.place import Place, parse_place
from app.services import logs
from app.services.logs import FABRIC, Frame, LogSlice

_EVENTS = "text/event-stream"
_BYTES = "application/octet-stream"
_PATH = "/jobs/<job_id>/logs"


@blueprint.route(_PATH, methods=["GET"], tags=["logs"])
@limited("stream")
@blueprint.arguments(schemas.LogsAsked(), location="query")
@blueprint.response(200, {"type": "string"}, content_type="text/plain", description="The output, safe for a terminal")
@blueprint.response(
    200, {"type": "string", "format": "binary"}, content_type=_BYTES, description="With raw=true: bytes"
)
@blueprint.response(200, schemas.LogLines, content_type="application/json", description="The output as lines")
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="With follow=true: events until the end")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(
    summary="Read or follow the output of a job",
    parameters=[{"in": "header", "name": "Last-Event-ID", "schema": {"type": "string"}}],
)
def show_log(asked: Mapping[str, Any], job_id: str) -> Response:
    """Text by default, `{"lines": …}` for `Accept: application/json`, server-sent events with follow=true."""
    identity = translate.parse_job_id(job_id)
    best = request.accept_mimetypes.best_match(
        ["text/plain", "application/json", _EVENTS, _BYTES], default="text/plain"
    )
    if asked["follow"] or best == _EVENTS:
        feed = _feed(asked, identity, request.headers.get("Last-Event-ID"), "Last-Event-ID")
        return hub().live.sse(feed, principal().expires_at)
    first = check_readable(hub().db, principal().tenant_id, identity, asked.get("attempt"), asked["member"])
    frames = _frames(asked, identity, first)
    if best == "application/json":
        frames = own_lines(frames)
        lines, truncated = as_lines(stamped(frames) if asked["timestamps"] else frames, asked.get("tail"))
        return json_answer({"lines": lines, "truncated": truncated, "attempt": first.attempt})
    return _text(asked, frames, first, raw=asked["raw"] or best == _BYTES)


def _text(asked: Mapping[str, Any], frames: Iterator[Frame], first: LogSlice, raw: bool) -> Response:
    """Text with everything that could drive a terminal taken out, or (`raw`) the very bytes and nothing else."""
    frames = (frame for frame in frames if frame.stream != FABRIC) if raw else own_lines(frames)
    if "tail" in asked:
        frames = iter(last_lines(frames, asked["tail"]))
    if asked["timestamps"]:
        frames = stamped(frames)
    if raw:
        response = Response((frame.data for frame in frames), mimetype=_BYTES)
    else:
        response = Response(as_text(frames), mimetype="text/plain")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Attempt"] = str(first.attempt)
    response.headers["X-Truncated-Bytes"] = str(first.truncated_bytes)
    response.headers["X-Log-Gap"] = "true" if first.log_gap else "false"
    return response


@limited("stream")
@blueprint.arguments(schemas.LogsAsked(), location="query")
def follow_log(asked: Mapping[str, Any], job_id: str) -> Response:
    """The events of the same path over a WebSocket; `after` is the id of the last event received."""
    identity = translate.parse_job_id(job_id)
    feed = _feed(asked, identity, request.args.get("after"), "after")
    return hub().live.websocket(feed, principal().expires_at)


# Past the documented blueprint: OpenAPI has no words for WebSockets, and the path is described above.
Blueprint.add_url_rule(blueprint, _PATH, "follow_log", follow_log, websocket=True)


def _frames(asked: Mapping[str, Any], job_id: UUID, first: LogSlice) -> Iterator[Frame]:
    read = partial(logs.read_log, hub().db, principal().tenant_id, job_id, first.attempt, member=asked["member"])
    stream = STREAMS[asked["stream"]] if "stream" in asked else None
    return (frame for part in slices(read, first) for frame in only(part.frames, stream))


def _feed(asked: Mapping[str, Any], job_id: UUID, after: str | None, field: str) -> LogFeed:
    """The feed of what was asked. Raises NotFound before the stream begins, Invalid for a wrong `after`."""
    shared, caller = hub(), principal()
    place = parse_place(after, field) if after else Place(asked.get("attempt", 0))
    check_readable(shared.db, caller.tenant_id, job_id, place.attempt or None, asked["member"])
    wanted = LogAsked(
        place=place,
        member=asked["member"],
        stream=STREAMS[asked["stream"]] if "stream" in asked else None,
        tail=None if after else asked.get("tail"),
        fixed="attempt" in asked,
    )
    shown = render_raw if asked["raw"] else render
    return LogFeed(shared.db, shared.live.reads, caller.tenant_id, job_id, wanted, shown)
