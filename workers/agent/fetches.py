"""Programs on their way to this node: each download in a thread of its own, so many at a time and for one tenant."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from app.domain.job import Assignment
from app.services.turns import NoTurn, Turns
from workers.agent.registry import Entry
from workers.artifacts import Artifact, ArtifactCache, FetchCancelled
from workers.runners.base import RunSpec

log = logging.getLogger(__name__)

MOST, MOST_EACH = 64, 8
"""Downloads at a time, and for one tenant: a tenant whose servers drip delays no other's jobs."""


class Fetches:
    """Fetches the program of each attempt that is given to it; may be used from any thread."""

    def __init__(
        self,
        cache: ArtifactCache,
        then: Callable[[Assignment, Entry, RunSpec, Artifact], None],
        failed: Callable[[Entry, Exception], None],
    ) -> None:
        """`then` gets an attempt with its program, held against eviction; `failed` one whose program cannot be had.

        An attempt that is cancelled meanwhile is let go of, untold: whoever set `cancelled` sees to its end.
        """
        self._cache = cache
        self._then = then
        self._failed = failed
        self._turns = Turns(MOST, MOST_EACH)

    def begin(self, one: Assignment, entry: Entry, spec: RunSpec) -> None:
        """Begins to fetch as soon as it is its tenant's turn, and returns."""
        name = f"fetch {entry.attempt_id}"
        threading.Thread(target=self._fetch, args=(one, entry, spec), name=name, daemon=True).start()

    def _fetch(self, one: Assignment, entry: Entry, spec: RunSpec) -> None:
        try:
            # However long it waits for its turn: that is its own tenant's doing, and a stop ends it.
            with self._turns.turn(one.tenant_id, math.inf, entry.cancelled):
                artifact = self._cache.fetch(one.binary_url or "", one.binary_sha256 or "", entry.cancelled)
        except (NoTurn, FetchCancelled):
            return
        except Exception as exc:
            if not entry.cancelled.is_set():
                self._failed(entry, exc)
            return
        self._then(one, entry, spec, artifact)
