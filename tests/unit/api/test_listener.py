"""Which contract answers at the shared prefix, by the listening port alone."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from werkzeug.test import EnvironBuilder, run_wsgi_app

from app.api.listener import Listener, asked_path, primary_at, shown_prefix

ALWAYS = ("/jobs/api/v1", "/ai/api/v1", "/api/v1/runtime/compute")


def seen(path: str, port: str = "8080", **headers: str) -> dict[str, Any]:
    app = Flask("test", static_folder=None)

    @app.route("/", defaults={"rest": ""})
    @app.route("/<path:rest>")
    def show(rest: str) -> dict[str, Any]:
        from flask import request

        shown = [shown_prefix(at) for at in ALWAYS]
        return {"path": request.path, "asked": asked_path(request), "primary": primary_at(), "shown": shown}

    environ = EnvironBuilder(path, headers=list(headers.items())).get_environ()
    environ["SERVER_PORT"] = port
    listener = Listener(app.wsgi_app, "/jobs/api/v1", {8000: "/ai/api/v1"}, ALWAYS)
    body, status, _ = run_wsgi_app(listener, environ)
    assert status == "200 OK"
    return dict(app.json.loads(b"".join(body)))


@pytest.mark.parametrize(
    ("port", "path", "meant"),
    [
        ("8080", "/api/v1/jobs", "/jobs/api/v1/jobs"),
        ("8000", "/api/v1/jobs/", "/ai/api/v1/jobs/"),
        ("8000", "/api/v1", "/ai/api/v1"),
        ("1", "/api/v1/jobs", "/jobs/api/v1/jobs"),
        ("", "/api/v1/jobs", "/jobs/api/v1/jobs"),
        ("8000", "/api/v12/jobs", "/api/v12/jobs"),
        ("8000", "/jobs/api/v1/jobs", "/jobs/api/v1/jobs"),
        ("8000", "/api/v1/runtime/compute/jobs", "/api/v1/runtime/compute/jobs"),
        ("8000", "/v1/jobs", "/v1/jobs"),
        ("8000", "/api/v1/jobs/ä%2F", "/ai/api/v1/jobs/ä/"),
    ],
)
def test_the_port_decides_what_the_shared_prefix_means(port: str, path: str, meant: str) -> None:
    found = seen(path, port)
    assert found["path"] == meant
    assert found["asked"] == path.replace("%2F", "/")


def test_no_header_changes_the_primary_contract() -> None:
    for headers in ({"Host": "x:8000"}, {"X-Forwarded-Port": "8000"}, {"X-Forwarded-Host": "x:8000"}):
        assert seen("/api/v1/jobs", "8080", **headers)["primary"] == "/jobs/api/v1"


def test_links_begin_with_the_prefix_that_was_asked() -> None:
    assert seen("/api/v1/jobs", "8000")["shown"] == ["/jobs/api/v1", "/api/v1", "/api/v1/runtime/compute"]
    assert seen("/ai/api/v1/jobs", "8000")["shown"] == list(ALWAYS)
