"""Before a container starts: its tenant's policy about images, checked on its node, and the login for its registry."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from app.domain.errors import FabricError, Refused
from app.domain.image_name import BadImageName, parse_image_name
from app.domain.job import Assignment
from app.services.image_trust import trust_of
from app.services.images import ImageGate
from app.services.turns import Turns
from app.storage.database import Database
from config.settings import Settings
from workers.agent.registry import Entry
from workers.runners.container import ContainerSpec

log = logging.getLogger(__name__)

CHECK_S = 20.0
WAIT_S = 300.0
MOST, MOST_EACH = 64, 8
"""Registries asked at a time, and for one tenant: a tenant whose registry hangs delays no other's jobs."""


class Admission:
    """Asks for each container attempt, in a thread of its own; then hands its specification on, whatever came of it."""

    def __init__(
        self, settings: Settings, db: Database, then: Callable[[Assignment, Entry, ContainerSpec], None]
    ) -> None:
        """`then` gets every attempt that was asked about. Raises SettingsError for trusted keys that are none."""
        self._db = db
        self._then = then
        self._gate = ImageGate(settings, CHECK_S, Turns(MOST, MOST_EACH), WAIT_S)
        # An agent has two connections to the database: those who claim and report must not wait for these.
        self._reading = threading.Lock()

    def ask(self, one: Assignment, entry: Entry, spec: ContainerSpec) -> None:
        """Begins to ask, and returns."""
        name = f"admit {entry.attempt_id}"
        threading.Thread(target=self._ask, args=(one, entry, spec), name=name, daemon=True).start()

    def _ask(self, one: Assignment, entry: Entry, spec: ContainerSpec) -> None:
        try:
            answered = self._answered(one, entry, spec)
        except Exception as exc:
            log.exception("the image of attempt %s could not be checked", entry.attempt_id)
            answered = replace(spec, trouble=f"the node could not check the image: {type(exc).__name__}")
        self._then(one, entry, answered)

    def _answered(self, one: Assignment, entry: Entry, spec: ContainerSpec) -> ContainerSpec:
        """The specification of exactly the image that was checked, or one that says why it is not to run."""
        try:
            with self._reading:
                tenant, trust = trust_of(self._db, one.tenant_id)
            found = self._gate.decide(one.tenant_id, tenant, trust, spec.image, True, entry.cancelled)
        except Refused as exc:
            return replace(spec, refused=exc.message)
        except FabricError as exc:
            return replace(spec, trouble=exc.message)
        login, owner = found.chosen
        credentials = None if login is None else login.as_engine_takes_it(_registry(found.image))
        notes = () if found.signer is None else (f"image {found.image} is signed by key {found.signer}",)
        return replace(spec, image=found.image, credentials=credentials, scope=owner, notes=notes)


def _registry(image: str) -> str:
    try:
        return parse_image_name(image).registry
    except BadImageName:
        return ""
