"""A trace id per request: the caller's X-Request-Id when it is usable, else a new one; every answer carries it."""

from __future__ import annotations

import re
from uuid import uuid4

from flask import Flask, Response, g, request

_USABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def install(app: Flask) -> None:
    """Gives each request of `app` an id in `flask.g.request_id` and in the answer's X-Request-Id."""

    def begin() -> None:
        asked = request.headers.get("X-Request-Id", "")
        g.request_id = asked if _USABLE.fullmatch(asked) else uuid4().hex

    def end(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.get("request_id", "")
        return response

    app.before_request(begin)
    app.after_request(end)
