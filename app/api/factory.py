"""Builds the Flask application of one listener: its hub, and each contract at its prefixes."""

from __future__ import annotations

from flask import Flask
from flask_smorest import Api

from app.api import auth, documentation, errors, trace
from app.api.hub import Bells, Hub
from app.api.jobs import admin_routes, executor_routes, log_routes, routes
from app.api.jobs.blueprint import blueprint
from app.api.jobs.schemas import ErrorShown
from app.api.jobs.translate import JobsErrorForm
from app.api.metrics import Exporter
from app.api.stream_budget import StreamBudget
from app.bells import Ringer
from app.storage.database import Database
from config.settings import Settings

JOBS_ALWAYS_AT = "/jobs/api/v1"
PRIMARY_AT = "/api/v1"
VERSION = "1"

JOBS_ROUTES = (routes, executor_routes, admin_routes, log_routes)
"""The modules that add the contract's routes to its blueprint when they are imported."""


class _Api(Api):  # type: ignore[misc]
    ERROR_SCHEMA = ErrorShown


def create_app(settings: Settings, db: Database | None = None, ringer: Bells | None = None) -> Flask:
    """The application of a listener whose primary contract is jobs.

    Makes no connection and starts no thread, so that a server may fork after it. Raises SettingsError when the
    settings would leave the API open to others, or closed to everyone.
    """
    who = auth.authenticator(settings)
    app = Flask("cfab", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        API_TITLE="Compute Fabric: jobs",
        API_VERSION=VERSION,
        OPENAPI_VERSION="3.0.3",
    )
    shared = Hub(
        settings=settings,
        db=db or Database(settings.database_url, settings.database_pool, "cfab-api", settings.statement_timeout_s),
        ringer=ringer or Ringer(settings),
        streams=StreamBudget(max(1, settings.api_threads // 2)),
    )
    app.extensions["cfab"] = shared
    trace.install(app)
    app.extensions["cfab_exporter"] = Exporter(app, shared.db, shared.streams)
    auth.install(app, who, settings)
    _mount_jobs(app)
    form = JobsErrorForm()
    errors.install(app, errors.ErrorForms(primary=form, by_prefix={JOBS_ALWAYS_AT: form}))
    return app


def _mount_jobs(app: Flask) -> None:
    """The jobs contract at its own prefix and at the primary one; both show the same document."""
    api = _Api(app)
    api.spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    api.register_blueprint(blueprint, url_prefix=PRIMARY_AT)
    app.register_blueprint(blueprint, url_prefix=JOBS_ALWAYS_AT, name="jobs_always")
    spec = {**api.spec.to_dict(), "security": [{"bearer": []}]}
    documentation.install(app, PRIMARY_AT, "primary", spec, PRIMARY_AT)
    documentation.install(app, JOBS_ALWAYS_AT, "jobs_always", spec, PRIMARY_AT)
