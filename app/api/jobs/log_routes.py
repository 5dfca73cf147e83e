"""The output of a job: as text, as JSON lines, or as a live event stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from flask import Response, request

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.hub import hub
from app.api.jobs import schemas, translate
from app.api.jobs.blueprint import blueprint
from app.api.jobs.follow import Follower, Place, check_exists, parse_place
from app.api.jobs.log_lines import STREAMS, as_lines, last_lines, only, slices
from app.api.limits import limited
from app.services import logs
from app.services.logs import Frame, LogSlice

_EVENTS = "text/event-stream"


@blueprint.route("/jobs/<job_id>/logs", methods=["GET"], tags=["logs"])
@limited("stream")
@blueprint.arguments(schemas.LogsAsked(), location="query")
@blueprint.response(200, {"type": "string"}, content_type="text/plain", description="The output")
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
    best = request.accept_mimetypes.best_match(["text/plain", "application/json", _EVENTS], default="text/plain")
    if asked["follow"] or best == _EVENTS:
        return _follow(asked, identity)
    first = check_exists(hub().db, principal().tenant_id, identity, asked.get("attempt"))
    frames = _frames(asked, identity, first)
    if best == "application/json":
        lines, truncated = as_lines(frames, asked.get("tail"))
        return json_answer({"lines": lines, "truncated": truncated, "attempt": first.attempt})
    if "tail" in asked:
        frames = iter(last_lines(frames, asked["tail"]))
    response = Response((frame.data for frame in frames), mimetype="text/plain")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Attempt"] = str(first.attempt)
    return response


def _frames(asked: Mapping[str, Any], job_id: UUID, first: LogSlice) -> Iterator[Frame]:
    read = partial(logs.read_log, hub().db, job_id, first.attempt)
    stream = STREAMS[asked["stream"]] if "stream" in asked else None
    return (frame for part in slices(read, first) for frame in only(part.frames, stream))


def _follow(asked: Mapping[str, Any], job_id: UUID) -> Response:
    shared, caller = hub(), principal()
    resumed = request.headers.get("Last-Event-ID")
    place = parse_place(resumed) if resumed else Place(asked.get("attempt", 0))
    check_exists(shared.db, caller.tenant_id, job_id, place.attempt or None)
    follower = Follower(
        db=shared.db,
        tenant_id=caller.tenant_id,
        job_id=job_id,
        closing=shared.closing,
        place=place,
        stream=STREAMS[asked["stream"]] if "stream" in asked else None,
        tail=None if resumed else asked.get("tail"),
        fixed="attempt" in asked,
    )
    shared.streams.take()
    response = Response(follower.events(), mimetype=_EVENTS)
    response.call_on_close(shared.streams.give_back)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
