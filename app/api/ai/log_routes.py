"""The output of a job in the ai contract: lines of text with their times, or live."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from app.api.ai import schemas, translate
from app.api.ai.blueprint import blueprint
from app.api.answers import utc
from app.api.auth import principal
from app.api.hub import hub
from app.api.live.feed import Message
from app.api.live.lines import as_text, last_lines, own_lines, slices, stamped
from app.api.live.log_feed import LogAsked, LogFeed, LogPiece, check_readable
from app.api.live.place import Place, parse_place
from app.services import logs
from app.services.plain_text import Plain
from app.services.views import JobView

_EVENTS, _TEXT = "text/event-stream", "text/plain"
_PATH = "/jobs/<job_id>/logs"


@blueprint.route(_PATH, methods=["GET"], tags=["jobs"])
@blueprint.arguments(schemas.LogsAsked(), location="query")
@blueprint.response(200, {"type": "string"}, content_type=_TEXT, description="The last lines")
@blueprint.response(200, {"type": "string"}, content_type=_EVENTS, description="With follow=true: live")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.alt_response(503, schema=schemas.ErrorShown, description="Too many open streams; see Retry-After")
@blueprint.doc(summary="Read or follow the output of a job")
def show_log(asked: Mapping[str, Any], job_id: str) -> Response:
    """Text with the time of each line; with follow=true events until the end, text for `Accept: text/plain`."""
    identity = translate.parse_job_id(job_id)
    if asked["follow"]:
        plain = [kind.lower() for kind, _quality in request.accept_mimetypes] == [_TEXT]
        feed = _feed(asked, identity, request.headers.get("Last-Event-ID"), "Last-Event-ID")
        live, expires_at = hub().live, principal().expires_at
        return live.text(feed, expires_at, _Shown(asked["timestamps"])) if plain else live.sse(feed, expires_at)
    db, tenant_id = hub().db, principal().tenant_id
    first = check_readable(db, tenant_id, identity, None, asked["member"])
    read = partial(logs.read_log, db, tenant_id, identity, first.attempt, member=asked["member"])
    frames = iter(last_lines(own_lines(f for part in slices(read, first) for f in part.frames), asked["tail"]))
    shown = stamped(frames, _stamp) if asked["timestamps"] else frames
    response = Response(as_text(shown), mimetype=_TEXT)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@blueprint.arguments(schemas.LogsAsked(), location="query")
def follow_log(asked: Mapping[str, Any], job_id: str) -> Response:
    """The events of the same path over a WebSocket; `after` is the id of the last event received."""
    feed = _feed(asked, translate.parse_job_id(job_id), request.args.get("after"), "after")
    return hub().live.websocket(feed, principal().expires_at)


# Past the documented blueprint: OpenAPI has no words for WebSockets, and the path is described above.
Blueprint.add_url_rule(blueprint, _PATH, "follow_log", follow_log, websocket=True)


def _feed(asked: Mapping[str, Any], job_id: UUID, after: str | None, field: str) -> LogFeed:
    shared, caller = hub(), principal()
    place = parse_place(after, field) if after else Place()
    check_readable(shared.db, caller.tenant_id, job_id, place.attempt or None, asked["member"])
    wanted = LogAsked(place=place, tail=None if after else asked["tail"], member=asked["member"])
    shown = partial(_render, asked["timestamps"])
    return LogFeed(shared.db, shared.live.reads, caller.tenant_id, job_id, wanted, shown)


def _render(timestamps: bool, one: LogPiece | JobView) -> Message:
    """A piece of output as `log`, the end of the job as `end`."""
    if isinstance(one, JobView):
        return Message("end", {"status": translate.STATUS[one.phase], "exit_code": one.exit_code, "signal": one.signal})
    time = {"timestamp": _stamp(one.at).rstrip()} if timestamps else {}
    return Message("log", {**time, "stream": one.stream, "text": one.text}, one.id)


class _Shown:
    """A live log as text: what could drive a terminal is taken out, and each line begins with its time."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._plain = Plain()
        self._begins = True

    def __call__(self, message: Message) -> str:
        """The text of one message."""
        if message.name != "log":
            return self._plain.rest()
        text = self._plain.feed(message.data["text"])
        if not self._timestamps or not text:
            return text
        stamp = message.data["timestamp"] + " "
        ends = text.endswith("\n")
        told = (stamp if self._begins else "") + text.removesuffix("\n").replace("\n", "\n" + stamp)
        self._begins = ends
        return told + ("\n" if ends else "")


def _stamp(at: float) -> str:
    return f"{utc(datetime.fromtimestamp(at, UTC))} "
