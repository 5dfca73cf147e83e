"""Builds the Flask application: the hub, each contract at its prefix, and the listeners' primary ones at `/api/v1`."""

from __future__ import annotations

from functools import partial
from threading import Event

from flask import Flask

from app.api import auth, documentation, errors, limits, trace
from app.api.ai import contract as ai
from app.api.compute import contract as compute
from app.api.contract import Contract
from app.api.gpu import contract as gpu
from app.api.hpc import contract as hpc
from app.api.hub import Bells, Hub
from app.api.jobs import contract as jobs
from app.api.listener import Listener
from app.api.live.service import LiveService
from app.api.metrics import Exporter
from app.api.stream_budget import StreamBudget
from app.bells import Ringer
from app.services import tenants
from app.services.images import ImageGate
from app.services.turns import Turns
from app.services.watch import Watch
from app.storage.database import Database
from app.storage.faults import parse_faults
from config.settings import Settings

CONTRACTS: tuple[Contract, ...] = (jobs.CONTRACT, ai.CONTRACT, compute.CONTRACT, gpu.CONTRACT, hpc.CONTRACT)
IMAGE_CHECK_S = 10.0
"""How long a submit may wait for the registry of its image, where the image must be signed."""


def create_app(
    settings: Settings, db: Database | None = None, ringer: Bells | None = None, primary: str = "jobs"
) -> Flask:
    """The application of all listeners; `primary` names the contract of a socket whose port has no other.

    Makes no connection and starts no thread, so that a server may fork after it. Raises SettingsError when the
    settings would leave the API open to others, or closed to everyone.
    """
    who = auth.authenticator(settings)
    app = Flask("cfab", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    db = db or _database(settings)
    closing = Event()
    streams = StreamBudget(settings.api_streams)
    watch = Watch(db, settings.broker_url, closing)
    shared = Hub(
        settings=settings,
        db=db,
        ringer=ringer or Ringer(settings),
        streams=streams,
        watch=watch,
        live=LiveService(watch, streams, closing, max(1, settings.database_pool // 4)),
        images=ImageGate(settings, IMAGE_CHECK_S, _image_turns(settings.api_threads), IMAGE_CHECK_S / 2),
        closing=closing,
    )
    app.extensions["cfab"] = shared
    trace.install(app)
    app.extensions["cfab_exporter"] = Exporter(app, shared.db, shared.streams)
    limiting = limits.install(app, settings, CONTRACTS)
    auth.install(app, who, settings, auth.TenantBook(partial(tenants.find, db)))
    limiting.count()
    app.extensions["cfab_exporter"].add(limiting.measures)
    for contract in CONTRACTS:
        _mount(app, contract)
    errors.install(app, errors.ErrorForms(_forms(app)))
    _listen(app, settings, primary)
    limits.trust_proxies(app, settings.trusted_proxies)
    return app


def _database(settings: Settings) -> Database:
    return Database(
        settings.database_url,
        settings.database_pool,
        "cfab-api",
        settings.statement_timeout_s,
        parse_faults(settings.faults) if settings.faults else None,
    )


def _image_turns(threads: int) -> Turns:
    """How many threads may wait for registries: never all, and never all of those for one tenant."""
    return Turns(max(1, threads // 4), max(1, threads // 16))


def _mount(app: Flask, contract: Contract) -> None:
    """A contract at its prefix, with a document of its own."""
    app.register_blueprint(contract.blueprint, url_prefix=contract.at)
    for beside in contract.outside:
        app.register_blueprint(beside)
    documentation.install(app, contract)


def _forms(app: Flask) -> dict[str, errors.ErrorForm]:
    """The form of each contract's errors, by its prefix and by the paths that it has outside of that."""
    forms = {contract.at: contract.errors for contract in CONTRACTS}
    owners = {beside.name: contract for contract in CONTRACTS for beside in contract.outside}
    for rule in app.url_map.iter_rules():
        owner = owners.get(rule.endpoint.partition(".")[0])
        if owner is not None:
            forms[rule.rule] = owner.errors
    return forms


def _listen(app: Flask, settings: Settings, primary: str) -> None:
    at = {contract.name: contract.at for contract in CONTRACTS}
    ports = {port: at[name] for name, port in (("ai", settings.ai_port), ("gpu", settings.gpu_port)) if name in at}
    ports.pop(settings.api_port, None)
    app.wsgi_app = Listener(app.wsgi_app, at[primary], ports, at.values())  # type: ignore[method-assign]
