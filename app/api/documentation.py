"""OpenAPI and Swagger UI of one contract, from files on this machine: the pages ask nothing of the internet."""

from __future__ import annotations

import importlib.util
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask, Response, send_from_directory
from werkzeug.exceptions import NotFound

from app.api.auth import browsable
from app.api.listener import shown_prefix

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<link rel="stylesheet" href="{prefix}/docs/assets/swagger-ui.css">
<link rel="icon" href="{prefix}/docs/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{prefix}/docs/assets/swagger-ui-bundle.js"></script>
<script src="{prefix}/docs/start.js"></script>
</body>
</html>
"""
START = """window.ui = SwaggerUIBundle({{url: "{prefix}/openapi.json", dom_id: "#swagger-ui", deepLinking: true,
  persistAuthorization: false, validatorUrl: null}});
"""
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
REFUSALS, BODY_REFUSALS, FAULTS = (401, 403, 404, 429), (400, 413, 415), (500, 503)
"""What every route may answer (404: an administrator named no tenant), those with a body, and those without a token."""
ASSETS = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "favicon-16x16.png"})


def install(app: Flask, name: str, spec: dict[str, Any], at: str) -> None:
    """Serves `at`/openapi.json and `at`/docs; `spec` has its paths under `at`.

    Paths in the document are relative to its server, which is the prefix that the reader used.
    """
    paths = {path.removeprefix(at): item for path, item in spec["paths"].items()}
    folder = assets_folder()

    @browsable
    def openapi_json() -> Response:
        document = {**spec, "paths": paths, "servers": [{"url": shown_prefix(at)}]}
        return Response(json.dumps(document), mimetype="application/json")

    @browsable
    def docs() -> Response:
        page = PAGE.format(prefix=shown_prefix(at), title=spec["info"]["title"])
        return Response(page, mimetype="text/html", headers={"Content-Security-Policy": POLICY})

    @browsable
    def start() -> Response:
        return Response(START.format(prefix=shown_prefix(at)), mimetype="text/javascript")

    @browsable
    def asset(file: str) -> Response:
        if file not in ASSETS:
            raise NotFound
        return send_from_directory(folder, file, max_age=86_400)

    for rule, view in (
        ("/openapi.json", openapi_json),
        ("/docs", docs),
        ("/docs/start.js", start),
        ("/docs/assets/<file>", asset),
    ):
        app.add_url_rule(at + rule, f"{name}_{view.__name__}", view)


def add_refusals(spec: dict[str, Any], error_schema: str) -> None:
    """Adds to each operation the refusals that any may meet, so that a status which is not named is never answered."""
    told = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error_schema}"}}}
    for item in spec["paths"].values():
        for method, operation in item.items():
            if method == "parameters":
                continue
            statuses = () if operation.get("security") == [] else REFUSALS
            for status in (*statuses, *(BODY_REFUSALS if "requestBody" in operation else ()), *FAULTS):
                answer = {"description": HTTPStatus(status).phrase, "content": told}
                operation["responses"].setdefault(str(status), answer)


def assets_folder() -> Path:
    """Where the installed flask-swagger-ui keeps Swagger UI's files; only the files are used, not its code."""
    found = importlib.util.find_spec("flask_swagger_ui")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("flask-swagger-ui is not installed; `make setup` installs it")
    return Path(found.origin).parent / "dist"
