"""OpenAPI and Swagger UI of one contract, from files on this machine: the pages ask nothing of the internet."""

from __future__ import annotations

import importlib.util
import json
import threading
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask, Response, send_from_directory
from flask_smorest import Api
from werkzeug.exceptions import NotFound

from app.api.auth import browsable
from app.api.contract import Contract
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
VERSION = "1"
_ONE_AT_A_TIME = threading.Lock()
ASSETS = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "favicon-16x16.png"})


def install(app: Flask, contract: Contract) -> None:
    """Serves the contract's /openapi.json and /docs below its prefix.

    Paths in the document are relative to its server, which is the prefix that the reader used.
    """
    at, title = contract.at, contract.title
    folder = assets_folder()

    @browsable
    def openapi_json() -> Response:
        document = {**document_of(contract), "servers": [{"url": shown_prefix(at)}]}
        return Response(json.dumps(document), mimetype="application/json")

    @browsable
    def docs() -> Response:
        page = PAGE.format(prefix=shown_prefix(at), title=title)
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
        app.add_url_rule(at + rule, f"{contract.name}_{view.__name__}", view)


def document_of(contract: Contract) -> dict[str, Any]:
    """The contract's OpenAPI document, its paths below its prefix. Made when first asked for: it takes long."""
    with _ONE_AT_A_TIME:
        return _make_document(contract)


@cache
def _make_document(contract: Contract) -> dict[str, Any]:
    # An application of its own, since a serving one takes no more routes; and one document is true of all of them.
    app = Flask("document", static_folder=None)
    app.config.update({"API_TITLE": contract.title, "API_VERSION": VERSION, "OPENAPI_VERSION": "3.0.3"})
    api = type("ContractApi", (Api,), {"ERROR_SCHEMA": contract.error_schema, "DEFAULT_ERROR_RESPONSE_NAME": None})(app)
    api.spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    api.register_blueprint(contract.blueprint, url_prefix=contract.at)
    document = {**api.spec.to_dict(), "security": [{"bearer": []}]}
    add_refusals(document, contract.error_schema.__name__)
    return {**document, "paths": {path.removeprefix(contract.at): item for path, item in document["paths"].items()}}


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
