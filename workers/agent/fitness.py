"""Claims nothing while the runner may start nothing, and says so where operators look: the node drains by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

from app.services.nodes import Drain, hold_back, take_again
from app.storage.database import Database
from workers.runners.base import Runner

log = logging.getLogger(__name__)

UNTIL = "jobs that run go on; nothing more is taken until they have ended and a new keeper has its place"


class Fitness:
    """Compares, with each renewal, what the runner says with whether the node drains for it."""

    def __init__(self, db: Database, runner: Runner, ring: Callable[[], None]) -> None:
        self._db = db
        self._runner = runner
        self._ring = ring
        self._said: str | None = None

    def is_unfit(self) -> bool:
        """Whether nothing is to be claimed now."""
        return self._runner.obstacle() is not None

    def heed(self, node_id: str, incarnation: UUID, drain: Drain | None) -> None:
        """Begins or ends the node's own drain; what an operator ordered is left alone."""
        why = self._runner.obstacle()
        if why is not None and why != self._said:
            log.warning("%s: %s", why, UNTIL)
        if why is None and self._said is not None:
            log.warning("node %s takes jobs again: a new keeper serves it", node_id)
            self._ring()
        self._said = why
        if why is not None and drain is None:
            hold_back(self._db, node_id, incarnation, f"{why}: {UNTIL}")
        elif why is None and drain is not None and drain.own:
            take_again(self._db, node_id, incarnation)
            self._ring()
